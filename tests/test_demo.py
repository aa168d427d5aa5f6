"""The demo: its verdict follows from the numbers, its files are there, and it says what it could not do."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from thermoclaw import demo
from thermoclaw.diagnosis.report import diagnose
from thermoclaw.lab import intervention
from thermoclaw.lab.intervention import Intervention, run_intervention
from thermoclaw.lab.models import GPTShape
from thermoclaw.lab.training import Workload
from thermoclaw.record import Record

TINY = Workload(
    GPTShape(vocab_size=300, context=16, width=32, num_layers=1, num_heads=2),
    batch_size=2,
    length=16,
    steps=60,
    validation_tokens=512,
)


# -- the verdict, from numbers made up ---------------------------------------------------------------------------------


@dataclass
class FakeObserver:
    alarms: list[Any] = field(default_factory=list)


@dataclass
class FakeArm:
    name: str
    step: int = 400
    observer: FakeObserver = field(default_factory=FakeObserver)


def finding(code: str = "weight_decay_too_high", confidence: str = "HIGH", step: int = 16) -> SimpleNamespace:
    return SimpleNamespace(code=code, confidence=confidence, raised_step=step, title=code)


def result(
    *,
    alarm: Any = "default",
    dead: float = 2047.9,
    revived: float = 450.0,
    well: float = 75.0,
    seed: int = 42,
    **more: Any,
) -> Any:
    arms = [FakeArm("unmodified"), FakeArm("healthy AdamW"), FakeArm("remedied")]
    ends = dict(zip((arm.name for arm in arms), (dead, well, revived), strict=True))
    alarm = finding() if alarm == "default" else alarm
    values = dict(zip(("unmodified", "healthy", "remedied"), arms, strict=True)) | more
    return Intervention(
        seed=seed, vocab_size=2048, alarm=alarm, remedy="less decay", norm_left=0.75, perplexity=ends, **values
    )


@pytest.fixture
def _healthy_report(monkeypatch) -> None:
    monkeypatch.setattr(intervention, "diagnose", lambda observer: SimpleNamespace(healthy=True))


@pytest.mark.usefixtures("_healthy_report")
def test_the_verdict_tells_the_numbers() -> None:
    assert result().failures() == []
    assert demo.verdict([result()]) == (
        "The alarm at step 16 of 400 named the cause: left alone, the run ended knowing nothing (perplexity = "
        "vocabulary); with the one change, at a perplexity 4.6 times lower; and the healthy run raised no alarm."
    )
    several = demo.verdict([result(), result(revived=2048 / 3, alarm=finding(step=24), seed=137)])
    assert "steps 16 to 24" in several
    assert "3.0 to 4.6 times lower" in several
    assert several.endswith("In 2 of 2 seeds.")


@pytest.mark.usefixtures("_healthy_report")
@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"alarm": None}, "no HIGH or MEDIUM alarm"),
        ({"alarm": finding("lr_too_high")}, "the first alarm was lr_too_high"),
        ({"remedied": None}, "brought no remedy"),
        ({"dead": 1900.0}, "ended at perplexity 1,900, not 2,048"),
        ({"dead": float("nan")}, "ended at perplexity nan, not 2,048"),
        ({"revived": 1100.0}, "remedied arm ended at perplexity 1,100"),
        ({"revived": float("nan")}, "remedied arm ended at perplexity nan"),
        ({"well": 2048.0}, "healthy arm ended at perplexity 2,048"),
        (
            {"healthy": FakeArm("healthy AdamW", observer=FakeObserver([finding("plateau", "MEDIUM")]))},
            "raised 'plateau'",
        ),
    ],
)
def test_the_verdict_says_what_was_not_shown(broken: dict[str, Any], words: str) -> None:
    failures = result(**broken).failures()
    assert len(failures) == 1
    assert words in failures[0]
    sentence = demo.verdict([result(), result(seed=137, **broken)])
    assert sentence.startswith("The demo did not show what it claims: seed 137: ")
    assert words in sentence


def test_a_healthy_arm_that_the_report_calls_unhealthy_is_no_success(monkeypatch) -> None:
    monkeypatch.setattr(intervention, "diagnose", lambda observer: SimpleNamespace(healthy=False))
    assert result().failures() == ["the report calls the healthy arm unhealthy"]


@pytest.mark.usefixtures("_healthy_report")
def test_a_low_finding_in_the_healthy_arm_is_no_alarm() -> None:
    assert result(healthy=FakeArm("healthy AdamW", observer=FakeObserver([finding("plateau", "LOW")]))).failures() == []


# -- small real runs ---------------------------------------------------------------------------------------------------


def test_the_arms_branch_at_the_alarm_and_share_their_past() -> None:
    told: list[tuple[int, str, str]] = []
    steps: list[tuple[int, int]] = []
    outcome = run_intervention(
        TINY,
        seed=42,
        on_alarm=lambda arm, found, remedy: told.append((arm.step, found.code, remedy)),
        on_step=lambda step, arms: steps.append((step, len(arms))),
    )
    ((at, code, remedy),) = told
    assert code == "weight_decay_too_high"
    assert "weight_decay from 5" in remedy
    assert steps == [(i, 2 if i <= at else 3) for i in range(1, 61)]
    assert outcome.remedied is not None
    assert [arm.step for arm in outcome.arms] == [60, 60, 60]
    assert outcome.remedied.begun_at == at
    decays = [arm.optimizer.param_groups[0]["weight_decay"] for arm in outcome.arms]
    assert decays[0] == 5.0
    assert decays[1] < 0.5
    assert 0 < outcome.norm_left < 1
    assert set(outcome.perplexity) == {"unmodified", "remedied", "healthy AdamW"}


def test_the_demo_writes_what_it_names_and_exits_by_its_verdict(tmp_path: Path, capsys) -> None:
    code = demo.run_demo(out=tmp_path / "made" / "here", workload=TINY)
    out, err = capsys.readouterr()
    folder = tmp_path / "made" / "here"
    named = out.split("Written to ")[1].split(": ", 1)[1].split(".\n")[0].split(", ")
    assert {path.name for path in folder.iterdir()} == {*named, "results.json"}
    assert {"unmodified.npz", "remedied.npz", "healthy.npz", "history.csv", "report.txt", "report.json"} < set(named)
    assert all((folder / name).stat().st_size > 100 for name in named)
    results = json.loads((folder / "results.json").read_text())
    assert results["passed"] == (code == 0)
    assert results["verdict"].split()[0] in out
    assert results["seeds"][0]["alarm"]["code"] == "weight_decay_too_high"
    step = results["seeds"][0]["alarm"]["raised_step"]
    assert f"step {step}: alarm in the arm 'unmodified'" in out
    assert (folder / "report.txt").read_text().strip() in out
    assert "60/60" in err
    assert "\x1b" not in out + err
    saved = Record.load(folder / "unmodified.npz")
    assert saved.num_steps == 60
    assert diagnose(saved).to_json() == json.loads((folder / "report.json").read_text())


def test_the_branch_is_drawn_from_the_step_at_which_it_began(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    plots = importlib.import_module("thermoclaw.report.plots")
    drawn: list[Record] = []
    monkeypatch.setattr(plots, "compare", lambda records, **settings: drawn.extend(records))
    monkeypatch.setattr(plots, "plot_dashboard", lambda *a, **k: None)
    monkeypatch.setattr(plots, "plot_entropy_split", lambda *a, **k: None)
    demo.run_demo(out=tmp_path, workload=TINY, quiet=True)
    alarm = json.loads((tmp_path / "results.json").read_text())["seeds"][0]["alarm"]["raised_step"]
    assert [record.steps[0] for record in drawn] == [1, alarm + 1, 1]
    assert [record.steps[-1] for record in drawn] == [60, 60, 60]


def without_matplotlib(monkeypatch) -> None:
    for name in [name for name in sys.modules if name.startswith("thermoclaw.report.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def test_several_seeds_get_a_row_and_a_folder_each(tmp_path: Path, capsys, monkeypatch) -> None:
    without_matplotlib(monkeypatch)  # pictures take longer than training here
    demo.run_demo(num_seeds=2, out=tmp_path, workload=replace(TINY, steps=50), quiet=True)
    out, err = capsys.readouterr()
    assert err == ""
    assert [line.split()[0] for line in out.splitlines() if "shown" in line][:2] == ["42", "137"]
    assert "alarm in the arm" not in out
    assert (tmp_path / "seed-42" / "unmodified.npz").exists()
    assert (tmp_path / "seed-137" / "report.txt").exists()
    assert len(json.loads((tmp_path / "results.json").read_text())["seeds"]) == 2


def test_without_matplotlib_the_demo_says_so_and_writes_the_rest(tmp_path: Path, capsys, monkeypatch) -> None:
    without_matplotlib(monkeypatch)
    demo.run_demo(out=tmp_path, workload=replace(TINY, steps=50))
    out = capsys.readouterr().out
    assert "Not drawn: drawing needs matplotlib: pip install 'thermoclaw[viz]'" in out
    assert (tmp_path / "report.txt").exists()
    assert not list(tmp_path.glob("*.png"))


def test_a_folder_that_cannot_be_written_is_found_before_training(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(demo, "run_intervention", lambda *a, **k: pytest.fail("trained first"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot write"):
        demo.run_demo(out=tmp_path / "file" / "results", workload=TINY)


@pytest.mark.slow
def test_the_whole_demo_shows_what_it_claims(tmp_path: Path, capsys) -> None:
    assert demo.run_demo(out=tmp_path, quiet=True) == 0
    assert "named the cause" in capsys.readouterr().out
    ends = json.loads((tmp_path / "results.json").read_text())["seeds"][0]["perplexity"]
    assert ends["unmodified"] == pytest.approx(2048, rel=0.001)
    assert ends["remedied"] < 800
    assert ends["healthy AdamW"] < 150
