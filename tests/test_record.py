"""The record: frozen, saved and loaded whole, refused when damaged, and the same to everything that reads it."""

from __future__ import annotations

import csv
import json
import os
import pickle
import random
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import MODELS, assert_same_record, mlp, train_step
from thermoclaw import CollapseDetector, EntropySplit, Observer, Record, RecordError, diagnose
from thermoclaw.files import atomic_file
from thermoclaw.quantities import LAYER_COLUMNS, RUN_COLUMNS, TABLE
from thermoclaw.record import LayerInfo, columns
from thermoclaw.record.npz import SCHEMA_VERSION


@pytest.fixture
def observer() -> Observer:
    """Forty steps with two epochs, no loss at one step and a NaN loss at another."""
    model = mlp(6, 40, 30, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    observer = Observer(model, optimizer, strict=True)
    for t in range(40):
        loss = train_step(model, optimizer, MODELS[0])
        observer.step(loss=None if t == 5 else float("nan") if t == 6 else loss)
        if t == 19:
            observer.epoch_end(val_loss=1.5)
    return observer


@pytest.fixture
def record(observer: Observer) -> Record:
    return observer.record()


# -- there and back ---------------------------------------------------------------------------------------------------


def test_what_is_saved_is_what_is_loaded(record: Record, tmp_path: Path) -> None:
    loaded = Record.load(record.save(tmp_path / "run.npz"))
    assert_same_record(loaded, record)
    assert loaded.meta == record.meta
    assert loaded.events == record.events
    assert loaded.optimizer == "AdamW"
    assert loaded.layer_values.dtype == record.layer_values.dtype
    assert loaded.events[0]["kind"] == "epoch"
    assert loaded.events[0]["val_loss"] == 1.5
    assert repr(loaded) == repr(record) == "Record(steps 1–40, 40 rows, 3 layers, AdamW)"


def test_a_record_of_nothing_is_saved_too(tmp_path: Path) -> None:
    model = mlp(6, 4)
    empty = Observer(model, torch.optim.SGD(model.parameters(), lr=0.1)).record()
    assert len(empty) == 0
    loaded = Record.load(empty.save(tmp_path / "empty"))
    assert_same_record(loaded, empty)
    assert repr(loaded) == "Record(no steps, 0 rows, 1 layers, SGD)"
    loaded.to_csv(tmp_path / "empty.csv")
    assert diagnose(loaded).healthy


def test_a_suffix_is_added_where_there_is_none_and_found_again(record: Record, tmp_path: Path) -> None:
    assert record.save(tmp_path / "run") == tmp_path / "run.npz"
    assert record.save(tmp_path / "run.v2") == tmp_path / "run.v2.npz"
    assert record.save(str(tmp_path / "other.npz")) == tmp_path / "other.npz"
    assert_same_record(Record.load(tmp_path / "run"), record)
    assert_same_record(Record.load(str(tmp_path / "run.v2")), record)


def test_folders_are_made_and_searched(record: Record, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    record.save(folder / "run.npz")
    assert_same_record(Record.load(folder), record)
    assert_same_record(Record.load(str(folder)), record)
    record.save(folder / "again.npz")
    with pytest.raises(RecordError, match=r"b is a folder with 2 \.npz files; name one record file"):
        Record.load(folder)
    with pytest.raises(RecordError, match=r"is a folder with 0 \.npz files"):
        Record.load(tmp_path)


def test_saving_again_replaces_the_file_whole(record: Record, tmp_path: Path) -> None:
    path = record.save(tmp_path / "run.npz")
    half = record.rows(stop=21)
    half.save(path)
    assert_same_record(Record.load(path), half)
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"], "no temporary file stays"
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_save_that_fails_leaves_the_old_file(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = record.save(tmp_path / "run.npz")
    before = path.read_bytes()

    def disk_full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", disk_full)
    with pytest.raises(OSError, match="No space left"):
        record.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]


@pytest.mark.parametrize("write", ["save", "to_csv", "split_to_csv"])
def test_a_folder_that_cannot_be_written_is_named(record: Record, tmp_path: Path, write: str) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write .*run.*choose a folder that can be written"):
        getattr(record, write)(blocked / "run.npz")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(record: Record, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="cannot write"):
        record.save(tmp_path / "run.npz")


def test_atomic_file_shows_nothing_before_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    with atomic_file(target, "w") as handle:
        handle.write("half")
        handle.flush()
        assert not target.exists()
        handle.write(" and half")
    assert target.read_text(encoding="utf-8") == "half and half"


# -- killed while writing ---------------------------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
WRITE: dict[str, Callable[[Record, Path], object]] = {
    "run.npz": Record.save,
    "run.csv": Record.to_csv,
    "split.csv": Record.split_to_csv,
}


def in_a_child(work: Callable[[], object]) -> int:
    """Start a child that does some work, again and again; returns its number."""
    child = os.fork()
    if child == 0:
        try:
            while True:
                work()
        finally:
            os._exit(1)
    return child


@needs_fork
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("name", WRITE)
def test_a_file_is_whole_whenever_its_writer_is_killed(name: str, record: Record, tmp_path: Path) -> None:
    """kill -9 at forty moments: what lies under the name is one of the two versions, to the last byte."""
    whole, half = tmp_path / "whole", tmp_path / "half"
    versions = [(WRITE[name], record, whole), (WRITE[name], record.rows(stop=21), half)]
    for write, version, folder in versions:
        write(version, folder / name)
    texts = [(folder / name).read_bytes() for folder in (whole, half)]
    target = tmp_path / "run" / name
    WRITE[name](record, target)
    moments = random.Random(3)
    left_over = 0
    for _ in range(40):
        child = in_a_child(lambda: [write(version, target) for write, version, _ in versions])
        time.sleep(moments.uniform(0.0, 0.02))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the child stopped by itself"
        assert target.read_bytes() in texts
        if name.endswith("npz"):
            loaded = Record.load(target.parent)  # by its folder: what a killed writer left there is no record
            assert len(loaded) in (20, 40)
        parts = [path for path in target.parent.iterdir() if path != target]
        assert all(path.name.startswith(f".{name}.") and path.suffix == ".part" for path in parts)
        left_over += len(parts)
        for path in parts:
            path.unlink()
    assert left_over, "no kill fell into a write: nothing was tested"


# -- files that are no records ----------------------------------------------------------------------------------------


def damaged(path: Path, match: str = r"is not a readable thermoclaw record .*use another copy") -> None:
    with pytest.raises(RecordError, match=match):
        Record.load(path)


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no record at .*nowhere\.npz"):
        Record.load(tmp_path / "nowhere.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello", b"\x93NUMPY", bytes(range(256)), b"{}"], ids=repr)
def test_foreign_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    damaged(path)


def test_arrays_of_others_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "plain.npy", np.arange(3))
    damaged(tmp_path / "plain.npy")
    np.savez(tmp_path / "other.npz", weights=np.arange(3))
    damaged(tmp_path / "other.npz")
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("header.npy", "no array")
    damaged(tmp_path / "zip.npz")


class Harmful:
    """A pickle that would make a folder if anybody ran it."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._target),)


def test_no_pickle_is_ever_run(record: Record, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(Harmful(proof)))
    damaged(tmp_path / "bare.npz")
    np.savez(tmp_path / "hidden.npz", header=np.array([Harmful(proof)], dtype=object), steps=np.arange(3))
    damaged(tmp_path / "hidden.npz")
    parts = dict(np.load(record.save(tmp_path / "run.npz")))
    parts["layer_values"] = np.array([Harmful(proof)], dtype=object)
    np.savez(tmp_path / "inside.npz", **parts)
    damaged(tmp_path / "inside.npz")
    assert not proof.exists()
    pickle.loads((tmp_path / "bare.npz").read_bytes())
    assert proof.exists(), "the pickle would have worked"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_short_is_refused(record: Record, tmp_path: Path, share: float) -> None:
    path = record.save(tmp_path / "run.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    damaged(path)


def test_a_flipped_byte_is_refused_or_harmless(record: Record, tmp_path: Path) -> None:
    """Wherever it is: a RecordError, or the same record (a byte that nobody reads)."""
    path = record.rows(stop=6).save(tmp_path / "run.npz")
    whole = bytearray(path.read_bytes())
    refused = 0
    for place in range(0, len(whole), max(len(whole) // 300, 1)):
        broken = bytearray(whole)
        broken[place] ^= 0xFF
        path.write_bytes(broken)
        try:
            loaded = Record.load(path)
        except RecordError:
            refused += 1
        else:
            assert_same_record(loaded, record.rows(stop=6))
    assert refused > 200


def tampered(record: Record, path: Path, **changes: Any) -> Path:
    """The record's file with parts of its header or its arrays replaced."""
    parts = dict(np.load(record.save(path)))
    header = json.loads(bytes(parts.pop("header")).decode())
    for name, value in changes.items():
        if name in parts:
            parts[name] = value
        elif value is None:
            del header[name]
        else:
            header[name] = value
    np.savez(path, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **parts)
    return path


def test_a_newer_schema_is_refused_with_advice(record: Record, tmp_path: Path) -> None:
    path = tampered(record, tmp_path / "new.npz", schema_version=SCHEMA_VERSION + 1)
    damaged(path, rf"has schema version {SCHEMA_VERSION + 1}, this thermoclaw reads up to {SCHEMA_VERSION}: upgrade")


@pytest.mark.parametrize(
    "changes",
    [
        {"schema_version": None},
        {"schema_version": "soon"},
        {"layers": None},
        {"layers": 5},
        {"layers": [{"name": "a"}]},
        {"meta": "text"},
        {"events": 3},
        {"events": ["text"]},
        {"layer_columns": ["sigma"]},
        {"layer_columns": 7},
        {"steps": np.array([3, 2, 1])},
        {"steps": np.arange(5)},
        {"run_values": np.zeros(3)},
        {"layer_values": np.zeros((40, 2, len(LAYER_COLUMNS)))},
    ],
    ids=str,
)
def test_a_header_that_does_not_fit_is_refused(record: Record, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(RecordError):
        Record.load(tampered(record, tmp_path / "x.npz", **changes))


def test_columns_of_another_version_are_fitted(record: Record, tmp_path: Path) -> None:
    """A column this version does not know is dropped; one the file lacks is NaN; order does not matter."""
    names = [*reversed(LAYER_COLUMNS[1:]), "of_the_future"]
    values = np.concatenate([record.layer_values[:, :, :0:-1], np.ones((40, 3, 1), np.float32)], axis=-1)
    loaded = Record.load(tampered(record, tmp_path / "x.npz", layer_columns=names, layer_values=values))
    assert np.isnan(loaded[LAYER_COLUMNS[0]]).all()
    for name in LAYER_COLUMNS[1:]:
        np.testing.assert_array_equal(loaded[name], record[name])


def test_a_record_that_does_not_fit_itself_is_refused(record: Record) -> None:
    with pytest.raises(RecordError, match=r"columns do not fit: layer values \(40, 3, \d+\) should be \(39, 3, \d+\)"):
        Record(record.steps[1:], record.layers, record.layer_values, record.run_values)
    with pytest.raises(RecordError, match="step numbers must increase"):
        Record(record.steps[::-1], record.layers, record.layer_values, record.run_values)


# -- reading ----------------------------------------------------------------------------------------------------------


def test_rows_are_a_record_of_their_own(record: Record) -> None:
    part = record.rows(start=11, stop=21)
    assert part.steps.tolist() == list(range(11, 21))
    np.testing.assert_array_equal(part["R_ie"], record["R_ie"][10:20])
    assert part.num_steps == 20
    assert record.rows(stop=5).events == ()
    assert len(record.rows(start=100)) == 0


def test_no_file_in_memory_can_be_changed_by_its_reader(record: Record) -> None:
    for name in TABLE:
        with pytest.raises(ValueError, match="read-only"):
            record[name][...] = 0
    with pytest.raises(AttributeError):
        record.steps = np.arange(3)  # type: ignore[misc]


def test_a_record_does_not_change_while_training_goes_on(observer: Observer) -> None:
    before = observer.record()
    kept = before.layer_values.copy(), before.run_values.copy(), before.steps.copy(), before.events
    model, optimizer = observer.model, observer.optimizer
    for _ in range(20):
        observer.step(loss=train_step(model, optimizer, MODELS[0]))
    np.testing.assert_array_equal(before.layer_values, kept[0])
    np.testing.assert_array_equal(before.run_values, kept[1])
    np.testing.assert_array_equal(before.steps, kept[2])
    assert before.events == kept[3]
    assert len(observer.record()) == 60


def test_settings_read_as_they_were_written() -> None:
    """0.01 in single precision is 0.009999999776; the record says 0.01."""
    model = mlp(6, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.3)
    observer = Observer(model, optimizer)
    train_step(model, optimizer, MODELS[0])
    record = observer.record()
    assert (record["lr"][0, 0], record["momentum"][0, 0], record["weight_decay"][0, 0]) == (0.01, 0.9, 0.3)


def test_layer_info_goes_through_json() -> None:
    info = LayerInfo("h.0.attn", "attention", 12, 3, ("h.0.attn.weight",))
    assert LayerInfo.from_json(json.loads(json.dumps(info.__dict__))) == info


# -- CSV and pandas ---------------------------------------------------------------------------------------------------

SEED_HEADS = [
    "step",
    "epoch",
    "optimizer",
    "D",
    "rho_mean",
    "R_median",
    "E_param_dist",
    "loss",
    "layer_name",
    "layer_type",
    "layer_sigma",
    "layer_sigma_ema",
    "layer_sigma_star",
    "layer_r",
    "layer_rho",
    "layer_lr",
]
SEED_SPLIT_HEADS = [
    "step",
    "layer",
    "ltype",
    "sigma_total",
    "d_eS",
    "d_iS",
    "d_iS_wd",
    "d_iS_momentum",
    "d_iS_noise",
    "R_ie",
    "lr",
    "gnorm_sq",
]


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_csv_begins_with_the_seeds_columns(observer: Observer, tmp_path: Path) -> None:
    observer.to_csv(tmp_path / "a.csv")
    observer.export_csv(tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    record, rows = observer.record(), read_csv(tmp_path / "a.csv")
    heads = list(rows[0])
    assert heads[: len(SEED_HEADS)] == SEED_HEADS
    assert len(heads) == len(set(heads))
    assert set(heads[len(SEED_HEADS) :]) <= set(TABLE)
    assert len(rows) == 40 * 3
    names = dict(zip(SEED_HEADS[10:], ("sigma", "sigma_ema", "sigma_star", "r", "rho", "lr"), strict=True))
    for t in (0, 6, 25):
        for i, layer in enumerate(record.layers):
            row = rows[3 * t + i]
            assert (row["step"], row["layer_name"], row["layer_type"]) == (str(t + 1), layer.name, layer.ltype)
            assert row["epoch"] == ("1" if t >= 20 else "0")
            assert row["optimizer"] == "AdamW"
            for head, name in {**names, "R_ie": "R_ie", "d_iS_wd": "d_iS_wd"}.items():
                value = record[name][t, i]
                assert row[head] == ("" if np.isnan(value) else repr(float(value)))
            for head in ("D", "rho_mean", "R_median", "E_param_dist", "loss"):
                assert row[head] == ("" if np.isnan(record[head][t]) else repr(float(record[head][t])))
    assert rows[15]["loss"] == rows[18]["loss"] == ""


def test_split_csv_has_the_seeds_columns(observer: Observer, tmp_path: Path) -> None:
    splitter = EntropySplit(observer)
    splitter.to_csv(tmp_path / "a.csv")
    splitter.export_csv(tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    rows = read_csv(tmp_path / "a.csv")
    assert list(rows[0]) == SEED_SPLIT_HEADS
    assert len(rows) == 40 * 3
    record = observer.record()
    assert float(rows[4]["sigma_total"]) == record["sigma"][1, 1]
    assert float(rows[4]["gnorm_sq"]) == record["grad_sq"][1, 1]


def test_pandas(record: Record) -> None:
    pytest.importorskip("pandas")
    frame = record.to_pandas()
    assert len(frame) == 40 * 3
    assert set(frame.columns) == {"step", "layer", "ltype", *TABLE}
    row = frame[(frame.step == 7) & (frame.layer == record.layers[1].name)].iloc[0]
    assert row["R_ie"] == record["R_ie"][6, 1]
    assert row["D"] == record["D"][6]
    assert frame["step"].dtype == np.int64


def test_pandas_that_is_missing_is_named(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match=r"Record\.to_pandas needs pandas: pip install pandas"):
        record.to_pandas()


# -- the same to everything that reads it -----------------------------------------------------------------------------


def eroding() -> Observer:
    """A run that decay destroys, so that a diagnosis has something to say."""
    model = mlp(6, 40, 30, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, weight_decay=5.0)
    observer = Observer(model, optimizer, strict=True)
    for _ in range(60):
        observer.step(loss=train_step(model, optimizer, MODELS[0]))
    return observer


@pytest.mark.parametrize("kind", ["healthy", "eroding"])
def test_diagnosis_of_an_observer_its_record_and_its_file_are_one(
    kind: str, observer: Observer, tmp_path: Path
) -> None:
    if kind == "eroding":
        observer = eroding()
    path = observer.save(tmp_path / "run")
    want = diagnose(observer)
    if kind == "eroding":
        assert "weight_decay_too_high" in [f.code for f in want.findings]
    sources = [observer.record(), path, str(path), tmp_path, EntropySplit(observer), CollapseDetector(observer)]
    for source in sources:
        got = diagnose(source)
        assert got.to_json() == want.to_json()
        assert str(got) == str(want)
        assert got.findings == want.findings


def test_single_precision_columns_fit_the_table() -> None:
    assert len(LAYER_COLUMNS) + len(RUN_COLUMNS) == sum(q.stored for q in TABLE.values())


def test_rates_that_differ_everywhere_are_rounded_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = np.float32([[0.01, 0.1, 3e-4], [0.0, 1e-30, 0.02], [np.nan, 0.5, 1.0]]).astype(np.float64)
    one_by_one = columns.shortest(rates)
    monkeypatch.setattr(columns, "MOST_NUMBERS", 2)
    np.testing.assert_allclose(columns.shortest(rates), one_by_one, rtol=1e-12)
    assert columns.shortest(rates)[0, 0] == 0.01
