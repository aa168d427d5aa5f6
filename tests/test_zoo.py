"""The detection benchmark: its list of cases, a few runs end to end, and the arithmetic of its judgement."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.zoo import __main__ as command
from benchmarks.zoo import judge, score
from benchmarks.zoo.cases import CATALOGUE, Case, all_cases, chosen
from benchmarks.zoo.faults import FAULTS
from benchmarks.zoo.first_looks import add_first_look
from benchmarks.zoo.optimizers import make_optimizer, orthogonalized
from benchmarks.zoo.programs import DEVELOPMENT, HELD_OUT, PROGRAMS
from benchmarks.zoo.recipe import OptimizerSpec, shuffled_order
from benchmarks.zoo.report import as_text, document
from benchmarks.zoo.rivals import RIVALS
from benchmarks.zoo.run import run_case
from benchmarks.zoo.store import Store
from benchmarks.zoo.training import Nobody, train
from benchmarks.zoo.variants import VARIANTS
from benchmarks.zoo.vet import verdict
from synthetic import Synthetic
from thermoclaw.record import Record


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As the zoo's workers: small models gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- the list -------------------------------------------------------------------------------------------------------


def test_at_least_two_in_five_cases_are_healthy() -> None:
    assert np.mean([case.fault is None for case in all_cases()]) >= 0.4


@pytest.mark.parametrize("part", ["all", "dev"])
def test_every_failure_of_the_catalogue_is_on_three_programs(part: str) -> None:
    cases = chosen(part=part)
    programs = {code: set() for code in CATALOGUE}
    for case in cases:
        fault = case.fault_is()
        if fault is not None:
            programs[fault.code].add(case.program)
    least = {"all": 3, "dev": 2}[part]
    assert {code: len(names) for code, names in programs.items() if len(names) < least} == {}


def test_expected_codes_are_in_the_catalogue_and_synonyms_are_defended() -> None:
    for fault in FAULTS.values():
        assert set(fault.codes) <= set(CATALOGUE), fault.name
        assert len(fault.codes) == 1 or fault.why, fault.name
        assert len(fault.codes) <= 3, fault.name


def test_development_and_held_out_share_no_program_and_no_data() -> None:
    assert len(DEVELOPMENT) + len(HELD_OUT) == len(PROGRAMS) >= 12
    assert len(HELD_OUT) >= 3
    inputs = {p.name: p.recipe(0).data.train[1] for p in PROGRAMS.values()}
    for ours in DEVELOPMENT:
        for theirs in HELD_OUT:
            a, b = inputs[ours.name], inputs[theirs.name]
            assert a.shape != b.shape or not torch.equal(a, b)


def test_cases_are_distinct_and_each_control_is_there() -> None:
    cases = all_cases()
    assert len({case.name for case in cases}) == len(cases)
    assert {case.control for case in cases} <= set(cases)


def test_a_pattern_brings_its_controls_along() -> None:
    cases = chosen(only="mlp.plain.rate_too_high")
    assert [case.fault for case in cases] == [None, "rate_too_high"]
    assert chosen(quick=True, part="dev")
    assert not any(case.is_held_out for case in chosen(quick=True, part="dev"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_case_of_a_program_can_be_prepared(name: str) -> None:
    for case in all_cases():
        if case.program == name:
            recipe, first = case.recipe()
            assert 0 <= first < recipe.steps
            assert (first > 0) == (case.fault is not None and FAULTS[case.fault].begins != "start")


# -- training -------------------------------------------------------------------------------------------------------


def few_steps(case: Case, steps: int = 6) -> Any:
    recipe, _ = case.recipe()
    return replace(recipe, steps=steps)


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in ("finetune", "lora")])
def test_a_run_is_a_function_of_its_seed(name: str) -> None:
    first, second = (train(few_steps(Case(name, "plain", None, 1), 2), Nobody()) for _ in range(2))
    assert first.final == second.final
    assert np.isfinite(first.final["train"])


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "pretrained" not in VARIANTS[v].needs])
def test_every_variant_runs(variant: str) -> None:
    outcome = train(few_steps(Case("mlp", variant, None, 0)), Nobody())
    assert np.isfinite(outcome.final["train"])


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_runs_from_its_first_step(fault: str) -> None:
    case = next(c for c in sorted(all_cases(), key=_cost) if c.fault == fault)
    recipe = FAULTS[fault].change(case.control.recipe()[0], 1, np.random.default_rng(0))
    assert np.isfinite(train(replace(recipe, steps=3), Nobody()).initial["train"])


def _cost(case: Case) -> int:
    order = ("regression", "mlp", "vae", "contrastive", "cnn", "table", "graph", "waves", "vit", "lstm", "gpt")
    return order.index(case.program) if case.program in order else len(order)


def test_naming_groups_by_layer_changes_nothing() -> None:
    recipe = few_steps(Case("regression", "plain", None, 0))
    assert train(recipe, Nobody()).final == train(recipe, Nobody(), by_layer=True).final


def test_an_epoch_sees_every_example_once() -> None:
    pick = shuffled_order(3, 12)
    seen = torch.cat([pick(i, 4) for i in range(3)])
    assert sorted(seen.tolist()) == list(range(12))
    assert torch.equal(pick(1, 4), shuffled_order(3, 12)(1, 4))


def test_orthogonalized_has_singular_values_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalized(torch.randn(12, 30)))
    assert values.min() > 0.6
    assert values.max() < 1.3


@pytest.mark.parametrize("kind", ["lion", "muon"])
def test_own_optimizers_descend(kind: str) -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 6))
    optimizer = make_optimizer([{"params": [weight]}], OptimizerSpec(kind, 0.01))
    before = float(weight.detach().square().sum())
    for _ in range(20):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert float(weight.detach().square().sum()) < before


# -- end to end -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three failing runs with their controls."""
    kept = Store(tmp_path_factory.mktemp("zoo"))
    for fault in ("rate_jumps", "zero_grad_before_step", "nan_batch"):
        for case in chosen(only=f"regression.*.{fault}.*"):
            if not kept.has(case.name):
                run_case(case, kept)
    return kept


def test_a_trace_says_what_was_done_and_what_became_of_it(store: Store) -> None:
    (case,) = (c for c in chosen(only="regression.plain.nan_batch") if c.fault)
    told = store.outcome(case.name)
    assert told is not None
    assert told["codes"] == ["non_finite"]
    assert told["non_finite_step"] == told["first_faulty_step"]
    assert told["final"] == {"train": None, "validation": None}
    assert Record.load(store.trace(case.name)).num_steps == told["steps"]
    assert store.stale([case.name]) == []


def test_judging_does_not_read_the_alarms_of_the_day(store: Store) -> None:
    (case,) = (c for c in chosen(only="regression.plain.nan_batch") if c.fault)
    record = Record.load(store.trace(case.name))
    assert any(event["kind"] == "alarm" for event in record.events)
    bare = judge.without_alarms(record)
    assert not any(event["kind"] == "alarm" for event in bare.events)
    said = judge.judge_record(record)
    assert said == judge.judge_record(bare)
    assert said["findings"][0]["code"] == "non_finite"
    live = [event["finding"]["code"] for event in record.events if event["kind"] == "alarm"]
    assert [alarm["code"] for alarm in said["alarms"]] == live


def test_the_replay_looks_when_the_observer_looks() -> None:
    def looks_at(last: int, **losses: float) -> list[int]:
        given = np.array([losses.get(f"at_{step}", 1.0) for step in range(1, last + 1)])
        run = Synthetic(last, layers=1)
        run.loss = given
        return list(judge.looks_at(run.record()))

    assert looks_at(20) == [8, 16]
    assert looks_at(330)[-3:] == [256, 288, 320]
    assert np.diff(looks_at(10_000))[-3:].tolist() == [256, 256, 256]
    assert looks_at(20, at_11=3.0) == [8, 11, 16]


def test_on_an_accelerator_alarms_come_a_block_later_and_none_at_once() -> None:
    given = np.where(np.arange(1, 341) < 290, 1.0 + 0.1 * np.cos(np.arange(340)), np.nan)
    run = Synthetic(340)
    run.loss = given
    said = judge.judge_record(run.set(slice(289, None), grad_sq=np.nan).record())
    assert [(a["code"], a["told_step"]) for a in said["alarms"]] == [("non_finite", 297)]
    assert [(a["code"], a["told_step"]) for a in said["alarms_on_device"]] == [("non_finite", 320 + 8)]


def test_the_command_line_goes_from_traces_to_figures(
    store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    results = tmp_path / "zoo.json"
    arguments = ["--out", str(store.folder), "--only", "regression.plain", "--results", str(results)]
    assert command.main(["judge", *arguments]) == 0
    text = capsys.readouterr().out
    assert "Development programs" in text
    assert "Held-out programs" not in text
    told = json.loads(results.read_text())
    assert told["dev"]["totals"]["failing"] >= 2
    assert told["dev"]["by_failure"]["no_gradient"]["named_first"]["share"] == 1.0
    assert set(told["dev"]["rivals"]) == set(RIVALS)
    assert (store.folder / "zoo_confusion_dev.png").stat().st_size > 10_000


def test_list_counts_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["list", "--only", "gpt.plain", "--dev"]) == 0
    shown = capsys.readouterr()
    assert "gpt.plain.healthy.0" in shown.out
    assert "failures" in shown.err


# -- judgement, on made-up outcomes ---------------------------------------------------------------------------------


def outcome(name: str, *, fault: str | None = None, final: float | None = 0.2, **more: Any) -> dict[str, Any]:
    program, variant, _, seed = name.split(".")
    codes = list(FAULTS[fault].codes) if fault else []
    told = {
        "name": name, "program": program, "variant": variant, "fault": fault, "seed": int(seed), "codes": codes,
        "control": f"{program}.{variant}.healthy.{seed}", "held_out": False, "steps": 300, "learns": 0.5,
        "first_faulty_step": 100 if fault else None, "non_finite_step": None, "wall_s": 1.0,
        "initial": {"train": 2.0, "validation": 2.0}, "final": {"train": final, "validation": final},
        "validations": [[150, 0.5], [300, final]],
    }  # fmt: skip
    return {**told, **more}


def said(*findings: tuple[str, str, int]) -> dict[str, Any]:
    plain = [{"code": c, "confidence": k, "first_step": s, "raised_step": s} for c, k, s in findings]
    urgent = [{**f, "told_step": f["raised_step"]} for f in plain if f["confidence"] != "LOW"]
    late = [{**f, "told_step": f["raised_step"] + 8} for f in urgent]
    return {"findings": plain, "alarms": urgent, "alarms_on_device": late, "rivals": {"NaN or rising": []}}


def test_a_fault_counts_only_if_it_hurts_more_than_seeds_differ() -> None:
    plain = {f"mlp.plain.healthy.{i}": outcome(f"mlp.plain.healthy.{i}", final=0.2 + 0.01 * i) for i in range(3)}
    name = "mlp.plain.rate_jumps.0"
    for final, counts in ((0.21, False), (0.24, False), (0.3, True), (None, True)):
        told = {**plain, name: outcome(name, fault="rate_jumps", final=final)}
        assert verdict(name, told)[0] is counts, final
    assert "was not run" in verdict(name, {name: outcome(name, fault="rate_jumps", final=1.0)})[1]


def test_a_healthy_run_counts_only_if_it_learns() -> None:
    name = "mlp.plain.healthy.0"
    assert verdict(name, {name: outcome(name, final=0.6)})[0]
    assert "does not learn" in verdict(name, {name: outcome(name, final=1.9)})[1]
    risen = outcome(name, final=0.9, validations=[[150, 0.1], [300, 0.9]])
    assert "rose" in verdict(name, {name: risen})[1]


def test_detection_needs_an_urgent_finding_after_the_fault() -> None:
    told = outcome("mlp.plain.rate_jumps.0", fault="rate_jumps")
    row = score.score_case(told, said(("lr_too_high", "HIGH", 120)))
    assert (row["detected"], row["named"], row["delay"], row["on_device"]["delay"]) == (True, True, 20, 28)
    assert row["delay_share"] == pytest.approx(20 / 25)  # the sooner of a tenth of 300 steps and 25
    assert not score.score_case(told, said(("lr_too_high", "LOW", 120)))["detected"]
    early = score.score_case(told, said(("plateau", "MEDIUM", 50), ("lr_too_high", "HIGH", 120)))
    assert (early["early"], early["named"]) == (["plateau"], True)
    second = score.score_case(told, said(("plateau", "HIGH", 110), ("lr_too_high", "HIGH", 120)))
    assert (second["named"], second["named_in_two"]) == (False, True)


def test_divergence_must_be_found_before_the_loss_is_lost() -> None:
    told = outcome("mlp.plain.rate_jumps.0", fault="rate_jumps", final=None, non_finite_step=140)
    assert score.score_case(told, said(("lr_too_high", "HIGH", 120)))["before_broken"] is True
    late = score.score_case(told, said(("lr_too_high", "HIGH", 139)))
    assert (late["before_broken"], late["on_device"]["before_broken"]) == (True, False)
    assert score.score_case(told, said(("lr_too_high", "HIGH", 140)))["before_broken"] is False
    at_once = {**told, "non_finite_step": 100}
    assert score.score_case(at_once, said(("lr_too_high", "HIGH", 120)))["before_broken"] is None


def test_figures_of_a_small_zoo() -> None:
    names = [f"mlp.plain.healthy.{i}" for i in range(3)]
    told = {name: outcome(name) for name in names}
    for name, fault in (("mlp.plain.rate_jumps.0", "rate_jumps"), ("mlp.plain.nan_batch.1", "nan_batch")):
        told[name] = outcome(name, fault=fault, final=None)
    verdicts = {name: said() for name in told}
    verdicts[names[1]] = said(("lr_too_high", "MEDIUM", 50))
    verdicts["mlp.plain.rate_jumps.0"] = said(("lr_too_high", "HIGH", 110))
    verdicts["mlp.plain.nan_batch.1"] = said(("lr_too_high", "HIGH", 110), ("non_finite", "HIGH", 111))
    figures = document(told, verdicts)
    totals = figures["dev"]["totals"]
    assert totals["detected"]["share"] == 1.0
    assert totals["named_first"]["share"] == 0.5
    assert totals["named_in_two"]["share"] == 1.0
    assert totals["accused"] == {**score.share(1, 3)}
    assert totals["accused_high"]["hits"] == 0
    assert figures["dev"]["confusion"]["non_finite"] == {"lr_too_high": 1}
    assert figures["dev"]["precision"]["lr_too_high"]["right"]["share"] == pytest.approx(1 / 3, abs=1e-4)
    assert figures["dev"]["calibration"]["MEDIUM"]["on_failing_runs"]["share"] == 0.0
    assert "What went wrong" in as_text(figures)


def test_a_first_look_is_kept_once(tmp_path: Path) -> None:
    def told(program: str, hits: int) -> dict[str, Any]:
        part = {"by_program": {program: {}}, "totals": {"detected": score.share(hits, 10)}}
        return {"held_out": part, "environment": {"date": "2026-01-01", "revision": "abc"}}

    path = tmp_path / "looks.json"
    assert add_first_look(path, told("one", 5))
    assert not add_first_look(path, told("one", 9))  # later figures on the same programs say less
    assert add_first_look(path, told("two", 7))
    kept = json.loads(path.read_text())
    assert [(look["programs"], look["totals"]["detected"]["hits"]) for look in kept] == [(["one"], 5), (["two"], 7)]


def test_wilson_intervals() -> None:
    assert score.share(0, 0)["share"] is None
    figure = score.share(1, 100)
    assert figure["low"] < 0.01 < figure["high"] == pytest.approx(0.0545, abs=1e-3)


@pytest.mark.parametrize("rival", RIVALS)
def test_rivals_take_any_record(rival: str, store: Store) -> None:
    heard = Counter()
    for path in sorted((store.folder / "traces").glob("*.npz")):
        told = store.outcome(path.stem)
        assert told is not None
        with np.errstate(all="ignore"):
            for saying in RIVALS[rival](Record.load(path), told):
                assert set(saying["codes"]) <= set(CATALOGUE)
                assert 1 <= saying["step"] <= told["steps"]
                heard[saying["said"]] += 1
    assert heard
