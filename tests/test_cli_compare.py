"""`thermoclaw compare`: what differs, where runs part, which is healthier."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from kept_runs import keep_run
from thermoclaw import Record, cli, diagnose, load
from thermoclaw.report.terminal.differences import differences


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    keep_run(folder / "well")
    keep_run(folder / "again")
    keep_run(folder / "eroded", weight_decay=30.0)
    keep_run(folder / "wider", width=32)
    return folder


def compared(runs: Path, *names: str) -> tuple[list[Record], dict]:
    records = [load(runs / name) for name in names]
    return records, differences(records, [diagnose(record) for record in records], names).to_json()


def test_a_run_with_a_new_finding_is_told_and_exits_1(runs: Path, capsys) -> None:
    assert cli.main(["compare", str(runs / "well"), str(runs / "eroded")]) == 1
    out = capsys.readouterr().out
    assert "eroded: weight_decay_too_high (HIGH)" in out
    assert re.search(r"^weight_decay +0\.01 +30$", out, flags=re.MULTILINE)
    assert "parts from well at step" in out
    assert "First layers of eroded whose σ parts: " in out
    assert out.endswith("well is healthier: no finding to act on, against 1 HIGH finding.\n")
    assert max(map(len, out.splitlines())) <= 120


def test_the_other_way_round_nothing_is_worse(runs: Path, capsys) -> None:
    assert cli.main(["compare", str(runs / "eroded"), str(runs / "well"), "--quiet"]) == 0
    assert capsys.readouterr().out == "well is healthier: no finding to act on, against 1 HIGH finding.\n"


def test_equal_runs_do_not_part(runs: Path, capsys) -> None:
    assert cli.main(["compare", str(runs / "well"), str(runs / "again")]) == 0
    out = capsys.readouterr().out
    assert "The settings are the same." in out
    assert "No run parts from well by more than its noise." in out
    assert "Equally healthy: no finding to act on each." in out


def test_json_says_where_and_what(runs: Path, capsys) -> None:
    assert cli.main(["compare", str(runs / "well"), str(runs / "eroded"), str(runs / "again"), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert [run["label"] for run in data["runs"]] == ["well", "eroded", "again"]
    assert data["settings"] == {"weight_decay": {"well": "0.01", "eroded": "30", "again": "0.01"}}
    assert data["parts_at"]["loss"]["well"] is None
    assert data["parts_at"]["loss"]["again"] is None
    assert 1 <= data["parts_at"]["loss"]["eroded"] < 100
    assert data["layers_part_at"]["again"] == {}
    assert data["worse"] is True


def test_the_step_of_parting_is_where_they_part(runs: Path) -> None:
    """A copy whose loss is much higher from step 121 on."""
    record = load(runs / "well")
    values = record.run_values.copy()
    values[120:, 0] += 5.0
    other = Record(record.steps, record.layers, record.layer_values, values, record.meta, record.events)
    report = diagnose(record)
    found = differences([record, other], [report, report], ["one", "other"])
    (at,) = found.partings["loss"][1:]
    assert at is not None
    assert 115 <= at <= 125
    assert found.partings["sigma"] == (None, None)
    assert found.healthier.startswith("Equally healthy: no finding to act on each. one ends at the lowest loss")


def test_layers_that_not_all_have(runs: Path) -> None:
    _, data = compared(runs, "well", "wider")
    assert data["layers"] == ["3 layers of another size in wider: 0, 2, 4"]
    record = load(runs / "well")
    fewer = Record(record.steps, record.layers[:2], record.layer_values[:, :2], record.run_values, record.meta)
    report = diagnose(record)
    found = differences([record, fewer], [report, report], ["a", "b"])
    assert found.layers == ("1 layer only in a: 4",)
    found = differences([fewer, record], [report, report], ["a", "b"])
    assert found.layers == ("1 layer only in b: 4",)


def test_runs_of_different_steps(runs: Path, tmp_path: Path, capsys) -> None:
    """Nothing in common, or nothing at all."""
    record = load(runs / "well")
    record.rows(stop=50).save(tmp_path / "early.npz")
    record.rows(start=150).save(tmp_path / "late.npz")
    record.rows(stop=0).save(tmp_path / "none.npz")
    paths = [str(tmp_path / f"{name}.npz") for name in ("early", "late", "none")]
    assert cli.main(["compare", *paths, "--json"]) in (0, 1)
    data = json.loads(capsys.readouterr().out)
    assert data["parts_at"]["loss"] == {"early": None, "late": None, "none": None}
    assert data["runs"][2]["loss_last"] is None
    assert cli.main(["compare", *paths]) in (0, 1)


def test_groups_and_schedules_are_settings(runs: Path) -> None:
    record = load(runs / "well")
    group = record.meta["param_groups"][0]
    meta = {**record.meta, "param_groups": [group, {**group, "weight_decay": 0.0}], "settings": {"mode": "exact"}}
    values = record.layer_values.copy()
    from thermoclaw.quantities import LAYER_COLUMNS

    values[100:, :, LAYER_COLUMNS.index("lr")] *= np.float32(0.5)
    other = Record(record.steps, record.layers, values, record.run_values, meta, record.events)
    report = diagnose(record)
    found = differences([record, other], [report, report], ["a", "b"]).settings
    assert found["weight_decay (group 1)"] == ("–", "0")
    assert found["η at the last step"] == ("0.003", "0.0015")
    assert "η at its highest" not in found
    assert found["Observer(mode=)"] == ("sketch", "exact")
    assert not any("run_id" in name or "layer" in name for name in found)


def test_the_picture(runs: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "pictures" / "both.png"
    cli.main(["compare", str(runs / "well"), str(runs / "eroded"), "-o", str(target), "--quiet"])
    assert target.read_bytes().startswith(b"\x89PNG")


def test_one_run_is_not_enough(runs: Path, capsys) -> None:
    assert cli.main(["compare", str(runs / "well")]) == 2
    assert capsys.readouterr().err == (
        "thermoclaw compare: name at least two runs to compare: thermoclaw compare RUN RUN\n"
    )


def test_outcomes_are_the_runs_own(runs: Path) -> None:
    records, data = compared(runs, "well", "eroded")
    for record, told in zip(records, data["runs"], strict=True):
        assert told["steps"] == 200
        assert told["loss_first"] == record.loss[0]
        assert math.isclose(told["loss_last"], record.loss[-20:].mean())
        assert told["healthy"] == diagnose(record).healthy
