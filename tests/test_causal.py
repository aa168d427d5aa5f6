"""What becomes of runs that take the advice: one program end to end, and the arithmetic of better and worse."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.zoo import __main__ as command
from benchmarks.zoo import causal
from benchmarks.zoo.cases import Case
from benchmarks.zoo.causal_report import compare, document, figures, total
from benchmarks.zoo.run import run_case
from benchmarks.zoo.store import Store
from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.remedies import Remedy
from thermoclaw.record import Record

FAILING, HEALTHY = Case("regression", "plain", "decay_too_high", 2), Case("regression", "plain", None, 2)


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Store:
    torch.set_num_threads(1)
    store = Store(tmp_path_factory.mktemp("zoo"))
    for case in (FAILING, HEALTHY, Case("regression", "plain", None, 0)):
        run_case(case, store)
    return store


def decay_finding(*, confidence: str = "HIGH") -> Finding:
    return Finding(
        code="weight_decay_too_high",
        confidence=confidence,
        title="decay",
        seen="",
        meaning="",
        advice="",
        source="",
        first_step=1,
        raised_step=16,
        remedy=Remedy("weight_decay", 1e-3, FAILING.recipe()[0].optimizer.weight_decay),
    )


@pytest.fixture
def told_at_16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules that say one thing, of failing runs only, live and afterwards."""

    def live(record: Record, *, known: Any) -> list[Finding]:
        decays = float(record["weight_decay"].max()) > 0.05 if len(record) else False
        return [decay_finding().raised_at(record.num_steps)] if decays and record.num_steps >= 16 and not known else []

    monkeypatch.setattr(causal, "live_findings", live)
    monkeypatch.setattr("thermoclaw.attachment.live_findings", live)


@pytest.mark.usefixtures("told_at_16")
def test_a_failing_run_takes_its_advice_and_a_healthy_one_stays_as_it_is(traces: Store, tmp_path: Path) -> None:
    out = Store(tmp_path)
    assert causal.try_all([HEALTHY, FAILING], out, traces, jobs=1) == []
    failing, healthy = (out.outcome(case.name, causal.KIND) for case in (FAILING, HEALTHY))
    assert failing is not None
    assert healthy is not None
    assert failing["decision"]["alarm"] == {"code": "weight_decay_too_high", "confidence": "HIGH", "step": 16}
    (act,) = failing["acts"]
    assert (act["step"], act["change"]["value"]) == (16, 1e-3)
    assert healthy["bitwise"]
    assert not healthy["acts"]
    results = {case.name: told for case, told in ((FAILING, failing), (HEALTHY, healthy))}
    part = document(results, command.known_outcomes(traces))["dev"]
    (row,) = part["rows"]
    assert row["effect"] == "better"
    assert row["as_control"]
    assert row["effect_rolled_back"] == "better"
    assert failing["rollback"]["acts"][0]["rewound_to"] == 0
    assert part["first_alarm_not_as_on_trace"] == []
    assert part["healthy"]["bitwise_where_nothing_was_done"]["hits"] == 1


@pytest.mark.usefixtures("told_at_16")
def test_only_what_the_rules_say_otherwise_is_made_anew(
    traces: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Store(tmp_path)
    causal.try_case(HEALTHY, out, traces)

    def train(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(causal, "train", train)
    causal.try_case(HEALTHY, out, traces)
    monkeypatch.setattr(causal, "decide", lambda *_: {"alarm": "another", "remedy": None})
    with pytest.raises(AssertionError, match="trained again"):
        causal.try_case(HEALTHY, out, traces)
    assert causal.try_all([HEALTHY], out, traces, jobs=1) == [(HEALTHY.name, "AssertionError: trained again")]


def test_one_bit_of_a_record_is_seen(traces: Store) -> None:
    record = Record.load(traces.trace(HEALTHY.name))
    values = record.layer_values.copy()
    values[-1, 0, 0] = np.nextafter(values[-1, 0, 0], values.dtype.type(np.inf))
    other = Record(record.steps, record.layers, values, record.run_values, record.meta, record.events)
    assert causal.is_same(record, record)
    assert not causal.is_same(record, other)


def test_the_schedule_of_a_loop_is_found() -> None:
    mine, other = (torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1) for _ in range(2))
    schedule, _ = LambdaLR(mine, lambda step: 1.0), LambdaLR(other, lambda step: 1.0)
    assert causal.schedules_of(mine) == [schedule]


def test_better_must_be_beyond_the_margin() -> None:
    inf = math.inf
    assert [compare(new, 1.0, 0.1) for new in (0.8, 0.95, 1.05, 1.2, inf)] == ["better", "tie", "tie", "worse", "worse"]
    assert [compare(new, inf, 0.1) for new in (1e30, inf)] == ["better", "tie"]
    assert total({"train": 1.0, "validation": 2.0}) == 3.0
    assert total({"train": 1.0, "validation": None}) == inf


def test_totals_count_what_was_not_applied() -> None:
    rows = [
        {
            "effect": effect,
            "as_control": effect == "better",
            "effect_rolled_back": "better",
            "as_control_rolled_back": True,
            "continued": 2.0,
            "remedied": 1.0,
            "rolled_back": 0.2,
        }
        for effect in ("better", "better", "tie", "worse", "refused")
    ]
    told = figures(rows)
    assert [told[key]["hits"] for key in ("better", "tie", "worse", "refused", "as_control")] == [2, 1, 1, 1, 2]
    assert told["better"]["of"] == 5
    assert told["median_loss_ratio"] == 0.5
    back = figures(rows, "_rolled_back")
    assert (back["better"]["hits"], back["as_control"]["hits"], back["median_loss_ratio"]) == (5, 5, 0.1)


@pytest.mark.usefixtures("told_at_16")
def test_the_command_writes_figures_and_a_picture(traces: Store, tmp_path: Path) -> None:
    results = tmp_path / "results" / "causal.json"
    arguments = ["causal", "--only", FAILING.name, "--traces", str(traces.folder), "--out", str(tmp_path)]
    assert command.main([*arguments, "--results", str(results)]) == 0
    told = json.loads(results.read_text())
    assert told["dev"]["totals"]["better"]["hits"] == 1
    assert (tmp_path / "causal.png").stat().st_size > 10_000
    assert {row["seed"] for row in told["experiment"]} == {42, 137, 2024}


@pytest.mark.usefixtures("told_at_16")
def test_the_page_is_filled_from_the_figures(traces: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Store(tmp_path)
    causal.try_all([HEALTHY, FAILING], out, traces, jobs=1)
    results = {case.name: out.outcome(case.name, causal.KIND) for case in (FAILING, HEALTHY)}
    measured = tmp_path / "causal.json"
    measured.write_text(json.dumps(document(results, command.known_outcomes(traces))))
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "docs"))
    import causal_tables

    monkeypatch.setattr(causal_tables, "RESULT", measured)
    parts = {name: make() for name, make in causal_tables.PARTS.items()}
    assert "| development programs, every first alarm | 1 of 1 (21%–100%) |" in parts["causal-totals"]
    assert "1 failing runs count; 1 had a remedy" in parts["causal-coverage"]
    assert "`weight_decay_too_high` | 1 of 1" in parts["causal-by-code"]
    assert "| development programs | 1 of 1 " in parts["causal-healthy"]
    assert parts["causal-picture"].startswith("![")
    assert "2024" in parts["causal-experiment"]
    monkeypatch.setattr(causal_tables, "RESULT", tmp_path / "nowhere.json")
    assert causal_tables.totals() == "Not measured yet."
    assert {make() for name, make in causal_tables.PARTS.items() if name != "causal-totals"} == {""}
