"""The validation: it passes where things are right, fails where they are not, and says both."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from thermoclaw import validate
from thermoclaw.lab import tiers
from thermoclaw.lab.analytic import Check
from thermoclaw.lab.models import GPTShape
from thermoclaw.lab.training import Workload

SHAPE = GPTShape(vocab_size=300, context=16, width=32, num_layers=1, num_heads=2)
SMALL = Workload(SHAPE, batch_size=2, length=16, steps=50, validation_tokens=512)
TINY = tiers.Scale("tiny", SMALL, SMALL, seeds=(42,))


def report(healthy: bool, *findings: tuple[str, str]) -> SimpleNamespace:
    found = [SimpleNamespace(code=code, confidence=confidence) for code, confidence in findings]
    return SimpleNamespace(healthy=healthy, findings=found)


@pytest.mark.parametrize(
    ("tier", "good", "bad"),
    [
        ("T2A", report(False, ("lr_too_high", "HIGH")), report(False, ("lr_too_high", "MEDIUM"))),
        ("T2A", report(False, ("non_finite", "HIGH")), report(False, ("momentum_too_high", "HIGH"))),
        ("T2B", report(False, ("weight_decay_too_high", "MEDIUM")), report(True, ("weight_decay_too_high", "LOW"))),
        ("T2C", report(False, ("momentum_too_high", "MEDIUM")), report(True, ("momentum_too_high", "LOW"))),
        ("T2D", report(True, ("plateau", "LOW")), report(False, ("plateau", "MEDIUM"))),
        ("T2D", report(True), report(False)),
    ],
)
def test_each_run_is_judged_by_its_report(tier: str, good: SimpleNamespace, bad: SimpleNamespace) -> None:
    run = next(run for run in tiers.RUNS if run.tier == tier)
    assert run.accepts(good)
    assert not run.accepts(bad)


def test_the_runs_differ_from_the_baseline_in_one_setting_each() -> None:
    settings = {}
    for run in tiers.RUNS:
        group = run.make_optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]
        settings[run.tier] = {name: group[name] for name in ("lr", "weight_decay", "betas")}
    base = settings.pop("T2D")
    changed = {tier: {k: v for k, v in values.items() if v != base[k]} for tier, values in settings.items()}
    assert changed == {
        "T2A": {"lr": pytest.approx(0.03)},
        "T2B": {"weight_decay": 5.0},
        "T2C": {"betas": (0.999, 0.999)},
    }


def test_all_tiers_run_and_are_written(tmp_path: Path, capsys) -> None:
    code = validate.run_validation(scale=TINY, json_path=tmp_path / "made" / "table.json")
    out, err = capsys.readouterr()
    written = json.loads((tmp_path / "made" / "table.json").read_text())
    tiers_run = [check["tier"] for check in written["checks"]]
    assert tiers_run.count("T1") >= 8
    assert tiers_run[-5:] == ["T2D", "T2A", "T2B", "T2C", "T3"]
    assert all(check["passed"] for check in written["checks"] if check["tier"] == "T1")
    failed = sum(not check["passed"] for check in written["checks"])
    assert (code == 0) == written["passed"] == (failed == 0)
    assert out.count("PASS  ") == len(tiers_run) - failed
    assert out.count("FAIL  ") == failed
    assert f"{len(tiers_run) - failed} of {len(tiers_run)} checks passed" in out
    assert "250/250" in err


def test_one_failure_is_enough_to_fail(capsys, monkeypatch) -> None:
    checks = [Check("T1", "fine", "1", "1", True), Check("T2A", "broken", "nothing was said", "an alarm", False)]
    monkeypatch.setattr(validate, "_all_checks", lambda sizes, on_step: iter(checks))
    assert validate.run_validation(quiet=True) == 1
    out = capsys.readouterr().out
    assert "FAIL  T2A  broken" in out
    assert "1 of 2 checks passed" in out
    monkeypatch.setattr(validate, "_all_checks", lambda sizes, on_step: iter(checks[:1]))
    assert validate.run_validation(quiet=True) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": "huge"}, "no scale 'huge': use laptop or full"),
        ({"scale": "full"}, "needs --device cuda"),
        ({"device": "toaster"}, "no device 'toaster'"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate.run_validation(**arguments)


def test_cuda_without_cuda_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="finds no CUDA device"):
        validate.run_validation(device="cuda", scale="full")


def test_the_full_scale_is_the_one_of_the_original_experiments() -> None:
    assert (tiers.FULL.tier2.shape.width, tiers.FULL.tier2.shape.num_layers) == (1024, 24)
    assert (tiers.FULL.tier3.shape.width, tiers.FULL.tier3.shape.vocab_size) == (768, 50257)
    assert tiers.FULL.seeds == (42, 137, 2024)
    assert tiers.FULL.tier2.autocast
    assert tiers.FULL.tier3.autocast
    assert {tiers.FULL.tier2.text, tiers.FULL.tier3.text} == {"python"}


def test_a_table_that_cannot_be_written_is_found_before_training(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(validate, "_all_checks", lambda sizes, on_step: pytest.fail("trained first"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot write"):
        validate.run_validation(json_path=tmp_path / "file" / "table.json")


@pytest.mark.slow
def test_the_baseline_is_silent_and_the_three_faults_are_named() -> None:
    scale = replace(TINY, tier2=tiers.LAPTOP.tier2)
    assert [f"{check.tier}: {check.measured}" for check in tiers.tier2(scale) if not check.passed] == []


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_tiers_run_on_cuda(capsys) -> None:
    validate.run_validation(device="cuda", scale=TINY, quiet=True)
    assert capsys.readouterr().out.count("T1 ") >= 8
