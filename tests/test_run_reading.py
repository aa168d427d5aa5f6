"""Reading runs: what a path may stand for, what is damaged, what is newer, and that nothing is executed."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import thermoclaw
from kept_runs import Training, assert_same_rows, plain
from thermoclaw import Record, RecordError, load
from thermoclaw.runs import RunReader
from thermoclaw.runs.names import parts_in
from thermoclaw.runs.rows import Rows
from thermoclaw.runs.store import Store


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    """A run of several parts, and its record."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    observed = Training(run_dir=folder)
    observed.go(20).observer.epoch_end(val_loss=0.5)
    observed.go(20)
    observed.observer.note_event("data", text="σ")
    observed.observer.close()
    record = observed.observer.record()
    for path in parts_in(folder).values():
        path.unlink()
    store = Store(folder, max_bytes=1 << 20)
    merge, Store._merge_last = Store._merge_last, lambda self: None
    for first in (0, 16, 32):
        here = slice(first, min(first + 16, 40))
        store.add(Rows(np.arange(40)[here], record.steps[here], record.layer_values[here], record.run_values[here]))
    Store._merge_last = merge
    return folder, record


@pytest.fixture
def copy(run: tuple[Path, Record], tmp_path: Path) -> tuple[Path, Record]:
    """One that may be damaged."""
    import shutil

    return Path(shutil.copytree(run[0], tmp_path / "a")), run[1]


# -- what a path may stand for -----------------------------------------------------------------------------------------


def test_each_kind_of_path(run: tuple[Path, Record], tmp_path: Path) -> None:
    folder, record = run
    record.save(tmp_path / "files" / "run.npz")
    for path in (folder, folder.parent, str(folder), tmp_path / "files" / "run", tmp_path / "files"):
        assert_same_rows(load(path), record)


def test_load_is_public_and_diagnose_takes_the_same_paths(run: tuple[Path, Record]) -> None:
    assert thermoclaw.load is load
    assert thermoclaw.diagnose(run[0]).raw_stats == thermoclaw.diagnose(run[1]).raw_stats


def test_what_is_no_run_is_told_with_what_lies_there(run: tuple[Path, Record], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    for name in ("notes.txt", "weights\n\x1b[31m.pt"):
        (tmp_path / "other" / name).write_text("x")
    two = tmp_path / "two"
    for name in ("x", "y"):
        Training(run_dir=two / name).go(9).observer.close()
    told = {
        "empty": "holds no record and no run: it is empty",
        "other": r"holds no record and no run: notes.txt, weights ·\[31m.pt",
        "two": r"a folder with 2 runs; name one of them: x/, y/",
    }
    for name, words in told.items():
        with pytest.raises(RecordError, match=words):
            load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"no record at .*z; in .*two there are x/, y/"):
        load(two / "z")


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    Training(run_dir=tmp_path / "a")
    with pytest.raises(RecordError, match="holds no rows yet: the run has just begun"):
        load(tmp_path / "a")


# -- damage ------------------------------------------------------------------------------------------------------------

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[:-200],
    "empty": lambda data: b"",
    "a byte": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
    "another file": lambda data: b"step,loss\n1,2\n",
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("which", [0, -1])
def test_a_damaged_part_is_left_out_and_named(how: str, which: int, copy: tuple[Path, Record]) -> None:
    folder, record = copy
    paths = list(parts_in(folder).values())
    paths[which].write_bytes(DAMAGES[how](paths[which].read_bytes()))
    found = load(folder)
    (note,) = found.meta["unreadable"]
    assert note.startswith(f"{paths[which].name} is damaged")
    assert_same_rows(found, record.rows(start=17) if which == 0 else record.rows(stop=33))


def test_a_part_that_is_repaired_is_read_again(copy: tuple[Path, Record]) -> None:
    folder, record = copy
    path = parts_in(folder)[2]
    whole, state = path.read_bytes(), path.stat()
    path.write_bytes(bytes(len(whole)))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    reader = RunReader(folder)
    assert len(reader.read().record) == len(record) - 16
    path.write_bytes(whole)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert_same_rows(reader.read().record, record)


def test_rows_that_stand_twice_are_read_once(copy: tuple[Path, Record]) -> None:
    """As after a kill between writing a merged part and removing what it was made of."""
    folder, record = copy
    Store(folder, max_bytes=1 << 20)
    twice = Rows(np.arange(10, 20), *(x[10:20] for x in (record.steps, record.layer_values, record.run_values)))
    from thermoclaw.runs.rows import write_part

    write_part(folder / "part-00000007.npz", twice)
    assert_same_rows(load(folder), record)


def test_half_an_event_is_no_event(copy: tuple[Path, Record]) -> None:
    folder, record = copy
    events = folder / "events.jsonl"
    with open(events, "ab") as handle:
        handle.write(b'{"kind": "alarm", "st')
    found = load(folder)
    assert list(found.events) == plain(record.events)
    assert "unreadable" not in found.meta
    events.write_bytes(b"junk\n[1]\n\xff\n" + events.read_bytes())
    found = load(folder)
    assert list(found.events) == plain(record.events)
    assert found.meta["unreadable"] == ["events.jsonl: 3 lines"]
    events.unlink()
    assert load(folder).events == ()


@pytest.mark.parametrize("text", ["", "{}", "[]", "{", '{"format": "other"}', "null"])
def test_a_description_that_is_none(text: str, copy: tuple[Path, Record]) -> None:
    (copy[0] / "meta.json").write_text(text)
    with pytest.raises(RecordError, match=r"meta\.json is (damaged|no description of a run)"):
        load(copy[0])


def test_a_newer_directory_is_refused_and_an_older_one_is_read(copy: tuple[Path, Record]) -> None:
    folder, record = copy
    meta = json.loads((folder / "meta.json").read_text())
    meta |= {"schema_version": 2}
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(RecordError, match="schema version 2, this thermoclaw reads up to 1: upgrade thermoclaw"):
        load(folder)
    del meta["run_id"], meta["closed"]
    (folder / "meta.json").write_text(json.dumps({**meta, "schema_version": 1}))
    assert_same_rows(load(folder), record)


def test_columns_of_another_version(copy: tuple[Path, Record]) -> None:
    """Known ones find their places, unknown ones are left out, missing ones are undefined."""
    folder, record = copy
    path = parts_in(folder)[3]
    with np.load(path) as held:
        parts = dict(held)
    header = json.loads(bytes(parts["header"]))
    header["layer_columns"] = ["new", *header["layer_columns"][:0:-1]]
    parts["layer_values"] = np.concatenate([parts["run_values"][:, :1, None] + 0 * parts["layer_values"][..., :1],
                                            parts["layer_values"][..., :0:-1]], axis=-1).astype(np.float32)  # fmt: skip
    parts["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    np.savez(path, **parts)
    found = load(folder)
    assert "unreadable" not in found.meta
    assert np.array_equal(found.layer_values[..., 1:], record.layer_values[..., 1:], equal_nan=True)
    assert np.isnan(found.layer_values[32:, :, 0]).all()


class Evil:
    def __reduce__(self) -> tuple:
        return (os.mkdir, ("executed",))


@pytest.mark.parametrize("name", ["header", "steps", "layer_values"])
def test_nothing_is_executed(name: str, copy: tuple[Path, Record], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = parts_in(copy[0])[2]
    with np.load(path) as held:
        parts = dict(held)
    parts[name] = np.array([Evil()], dtype=object)
    np.savez(path, allow_pickle=True, **parts)
    assert "damaged" in load(copy[0]).meta["unreadable"][0]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.npy", pickle.dumps(Evil()))
    assert "damaged" in load(copy[0]).meta["unreadable"][0]
    assert not (tmp_path / "executed").exists()


def test_a_part_of_impossible_size_is_left_out(copy: tuple[Path, Record]) -> None:
    path = parts_in(copy[0])[2]
    head = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 9, 28), }"
    with np.load(path) as held:
        parts = dict(held)
    del parts["layer_values"]
    np.savez(path, **parts)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("layer_values.npy", head.ljust(127) + b"\n")
    assert "damaged" in load(copy[0]).meta["unreadable"][0]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_a_part_that_may_not_be_read_is_named(copy: tuple[Path, Record]) -> None:
    parts_in(copy[0])[2].chmod(0)
    assert load(copy[0]).meta["unreadable"] == ["part-00000002.npz: Permission denied"]


def test_a_part_that_stays_away_is_named(copy: tuple[Path, Record], monkeypatch) -> None:
    """As on a network file system whose listing is old."""
    from thermoclaw.runs import reader

    monkeypatch.setattr(reader, "_PAUSES_S", (0.01, 0.01))
    looks = []
    listed = reader.parts_in

    def old(folder: Path) -> dict[int, Path]:
        looks.append(1)
        return {**listed(folder), 9: folder / "part-00000009.npz"}

    monkeypatch.setattr(reader, "parts_in", old)
    found = load(copy[0])
    assert len(looks) == 3
    assert found.meta["unreadable"] == ["part-00000009.npz: No such file or directory"]
    assert_same_rows(found, copy[1])


def test_reading_needs_no_torch(run: tuple[Path, Record]) -> None:
    code = (
        "import importlib.util, sys, types\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] == 'torch': raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "package = types.ModuleType('thermoclaw')\n"
        f"package.__path__ = [{str(Path(thermoclaw.__file__).parent)!r}]\n"
        "sys.modules['thermoclaw'] = package\n"
        "from thermoclaw.runs import load\n"
        f"print(load({str(run[0])!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "Record(steps 1–40, 40 rows, 2 layers, AdamW)\n", done.stderr
