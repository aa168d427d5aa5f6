"""`thermoclaw export`: every number as it is in the record, in each format, in pieces, whatever layers are called."""

from __future__ import annotations

import csv
import io
import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from kept_runs import Training, assert_same_record, command, keep_run, plain
from thermoclaw import Record, cli, load
from thermoclaw.quantities import LAYER_COLUMNS, TABLE
from thermoclaw.record import LayerInfo
from thermoclaw.report.export import export, table
from thermoclaw.report.export.table import LongTable


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return keep_run(tmp_path_factory.mktemp("runs") / "a", steps=90)


def cells(record: Record, name: str) -> list[float]:
    """A quantity as the long table has it."""
    values = record[name]
    return (values.ravel() if values.ndim == 2 else np.repeat(values, len(record.layers))).tolist()


def same(one: float | None, other: float) -> bool:
    return one == other or ((one is None or math.isnan(one)) and not math.isfinite(other))


@pytest.fixture(params=[100_000, 50])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one piece, and in many."""
    monkeypatch.setattr(table, "PIECE_ROWS", request.param)


def test_csv(run: Path, tmp_path: Path, pieces: None, capsys) -> None:
    assert cli.main(["export", str(run), "-o", str(tmp_path / "a.csv")]) == 0
    assert "90 steps, 3 layers" in capsys.readouterr().out
    record = load(run)
    with open(tmp_path / "a.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == ["step", "layer", "ltype", *TABLE]
    assert [int(row["step"]) for row in rows] == np.repeat(record.steps, 3).tolist()
    assert [row["layer"] for row in rows[:3]] == ["0", "2", "4"]
    for name in TABLE:
        read = [float(row[name]) if row[name] else math.nan for row in rows]
        assert np.array_equal(read, cells(record, name), equal_nan=True), name


def test_json(run: Path, tmp_path: Path, pieces: None) -> None:
    cli.main(["export", str(run), "-o", str(tmp_path / "a.json"), "--quiet"])
    record, data = load(run), json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert data["columns"] == ["step", "layer", "ltype", *TABLE]
    assert len(data["rows"]) == 270
    for place, name in enumerate(data["columns"][3:], start=3):
        assert all(map(same, (row[place] for row in data["rows"]), cells(record, name))), name
    assert data["meta"] == plain(record.meta)
    assert [layer["name"] for layer in data["layers"]] == record.layer_names


def test_parquet(run: Path, tmp_path: Path, pieces: None) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    cli.main(["export", str(run), "-o", str(tmp_path / "a.parquet"), "--quiet"])
    record, read = load(run), pq.read_table(tmp_path / "a.parquet")
    assert read.column_names == ["step", "layer", "ltype", *TABLE]
    assert read["layer"].to_pylist()[:4] == ["0", "2", "4", "0"]
    for name in TABLE:
        assert all(map(same, read[name].to_pylist(), cells(record, name))), name
    assert read["coherence"].null_count == np.isnan(record["coherence"]).sum() > 0
    assert json.loads(read.schema.metadata[b"thermoclaw"])["meta"] == plain(record.meta)


def test_parquet_without_pyarrow_names_the_extra(run: Path, tmp_path: Path) -> None:
    done = command("export", str(run), "-o", str(tmp_path / "a.parquet"), refuse="pyarrow torch")
    assert done.returncode == 2
    assert done.stderr == "thermoclaw export: Parquet files need pyarrow: pip install 'thermoclaw[parquet]'\n"
    assert list(tmp_path.iterdir()) == []


def test_npz_is_the_record(run: Path, tmp_path: Path) -> None:
    assert cli.main(["export", str(run), "-o", str(tmp_path / "a.npz"), "--json"]) == 0
    assert_same_record(load(tmp_path / "a.npz"), load(run))


def test_a_choice_of_quantities_layers_and_steps(run: Path, tmp_path: Path, capsys) -> None:
    target = tmp_path / "a.csv"
    choice = ["--quantities", "loss, rho,sigma,loss", "--layers", "[24]", "--start", "11", "--stop", "12"]
    assert cli.main(["export", str(run), "-o", str(target), *choice, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"path": str(target), "steps": 2, "layers": 3, "bytes": target.stat().st_size}
    rows = list(csv.reader(target.read_text().splitlines()))
    assert rows[0] == ["step", "layer", "ltype", "loss", "coherence", "sigma"]
    assert [row[:2] for row in rows[1:]] == [["11", "2"], ["11", "4"], ["12", "2"], ["12", "4"]]
    assert float(rows[1][3]) == load(run).loss[10]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "a.xlsx"], "choose a name that ends in one of .csv, .parquet, .json, .npz"),
        (["-o", "a.csv", "--quantities", "speed"], "no quantity 'speed'; there are grad_sq"),
        (["-o", "a.csv", "--layers", "h.*"], "no layer is called 'h.*'; there are 0, 2, 4"),
        (["-o", "a.npz", "--layers", "0"], "a .npz file holds the whole record"),
        (["-o", "a.csv/b.csv"], "cannot write"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(arguments: list, words: str, run: Path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("mine")
    assert cli.main(["export", str(run), *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert (tmp_path / "a.csv").read_text() == "mine"  # half a file is no file


def test_hostile_names(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    names = ['a\n"b",c', "=1+1", "\ud800", "σ"]
    model = nn.Sequential(nn.Linear(6, 3))
    for name in names:
        model.add_module(name, nn.Linear(3, 3))
    run = Training(model, run_dir=tmp_path / "a").go(9)
    run.observer.close()
    for suffix in (".csv", ".json", ".parquet"):
        export(load(tmp_path / "a"), tmp_path / f"out{suffix}", quantities=["loss"])
    rows = list(csv.reader(io.StringIO((tmp_path / "out.csv").read_bytes().decode(), newline="")))
    assert [row[1] for row in rows[1:6]] == ["0", names[0], "'=1+1", "\\ud800", "σ"]
    assert [row[1] for row in json.loads((tmp_path / "out.json").read_text())["rows"][1:5]] == names
    assert pq.read_table(tmp_path / "out.parquet")["layer"].to_pylist()[3] == "\\ud800"


def test_a_record_without_rows(run: Path, tmp_path: Path) -> None:
    record = load(run).rows(stop=0)
    for suffix in (".csv", ".json"):
        export(record, tmp_path / f"a{suffix}")
    assert (tmp_path / "a.csv").read_text().count("\n") == 1
    assert json.loads((tmp_path / "a.json").read_text())["rows"] == []


def test_memory_does_not_grow_with_the_run() -> None:
    """All quantities of 3000 steps × 100 layers are 110 MB; a piece is a small part of that."""
    steps, layers = 3000, tuple(LayerInfo(f"h.{i}", "generic", 10) for i in range(100))
    values = np.ones((steps, 100, len(LAYER_COLUMNS)), dtype=np.float32)
    record = Record(np.arange(1, steps + 1), layers, values, np.ones((steps, 2)))
    tracemalloc.start()
    for piece in LongTable(record, ["sigma", "r", "R_ie", "d_eS", "loss", "eq_frac"]).pieces():
        assert len(piece) <= table.PIECE_ROWS
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6
