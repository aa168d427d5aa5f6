"""Reads a run: a record file, a folder with one, or a run directory, also while it grows. Executes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thermoclaw.quantities import LAYER_COLUMNS, RUN_COLUMNS, Array
from thermoclaw.record import LayerInfo, Record, RecordError
from thermoclaw.runs.names import EVENTS, FORMAT, META, OWNER, SCHEMA_VERSION, is_run, parts_in
from thermoclaw.runs.rows import Rows, joined, read_part
from thermoclaw.wording import one_line

NOTES = "unreadable"  # in a record's meta: what of its directory could not be read
_PAUSES_S = (0.01, 0.05, 0.2, 0.5, 1.0)  # between attempts, while parts are merged under the reader's hands


@dataclass(frozen=True)
class Run:
    """What a run directory holds now.

    Attributes:
        record: the run so far.
        is_closed: the run has ended in good order; otherwise it goes on, or was killed.
        marks: how far the run was, and when, in seconds since the epoch by the clock of the disk: where this process
            began to write, and at the last step of each part.
    """

    record: Record
    is_closed: bool
    marks: tuple[tuple[int, float], ...] = ()


def load(path: str | os.PathLike[str]) -> Record:
    """Read the record of a run.

    Args:
        path: a run directory (`Observer(..., run_dir=)`), also while the run goes on; a record file that
            `Observer.save` or a callback wrote; or a folder with one of these in it.

    Returns:
        The record. What of a run directory cannot be read is left out and named in `record.meta["unreadable"]`.

    Raises:
        FileNotFoundError: there is nothing.
        PermissionError: it may not be read.
        RecordError: it is no record, is damaged, or was written by a newer version; the message says what lies there.

    Example:
        >>> import tempfile, torch, thermoclaw
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> folder = tempfile.mkdtemp() + "/run"
        >>> with thermoclaw.Observer(model, optimizer, run_dir=folder) as observer:
        ...     for _ in range(20):
        ...         loss = model(torch.ones(8, 4)).square().mean()
        ...         loss.backward()
        ...         optimizer.step()
        ...         snapshot = observer.step(loss=loss)
        >>> thermoclaw.load(folder)
        Record(steps 1–20, 20 rows, 1 layers, SGD)
    """
    found = find_run(path)
    return RunReader(found).read().record if found.is_dir() else Record.load(found)


def find_run(path: str | os.PathLike[str]) -> Path:
    """The record file or run directory that a path stands for.

    Raises:
        FileNotFoundError: there is nothing.
        RecordError: it is neither, and holds not exactly one of them.
    """
    source = Path(path)
    if not source.exists() and source.with_name(source.name + ".npz").exists():
        source = source.with_name(source.name + ".npz")
    if not source.exists():
        raise FileNotFoundError(f"no record at {source}{_nearby(source)}")
    if not source.is_dir() or is_run(source):
        return source
    inside = sorted(source.iterdir())
    records = [one for one in inside if one.suffix == ".npz" and one.is_file()]
    found = records or [one for one in inside if is_run(one)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise RecordError(f"{source} holds no record and no run: {_listing(inside)}")
    what = f"{len(found)} .npz files" if records else f"{len(found)} runs"
    raise RecordError(f"{source} is a folder with {what}; name one of them: {_listing(found)}")


def _listing(paths: list[Path], most: int = 6) -> str:
    names = [one_line(path.name, 60) + ("/" if path.is_dir() else "") for path in paths[:most]]
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(names) + more if names else "it is empty"


def _nearby(source: Path) -> str:
    """What lies where a path that does not exist would."""
    with contextlib.suppress(OSError):
        there = sorted(one for one in source.parent.iterdir() if one.suffix == ".npz" or is_run(one))
        if there:
            return f"; in {source.parent} there are {_listing(there)}"
    return ""


class RunReader:
    """Reads a run directory again and again while it grows; parts that it has read are not read again.

    Args:
        folder: the directory.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._parts: dict[Path, tuple[tuple[int, int], Rows | RecordError]] = {}

    def read(self) -> Run:
        """What the directory holds now. A part that cannot be read is left out and noted.

        Raises:
            OSError: the directory is gone, or may not be read.
            RecordError: it is no run, or a newer version's.
        """
        for pause_s in (*_PAUSES_S, None):
            meta = self._read_meta()
            num_layers = len(meta["layers"])
            notes, is_whole = self._read_parts(num_layers)
            if is_whole or pause_s is None:
                break
            time.sleep(pause_s)
        return self._run(meta, notes)

    def _read_meta(self) -> dict[str, Any]:
        path = self.folder / META
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise RecordError(f"{path} is no description of a run")
            version = int(data["schema_version"])
            if version > SCHEMA_VERSION:
                raise RecordError(
                    f"{self.folder} has schema version {version}, this thermoclaw reads up to {SCHEMA_VERSION}: "
                    "upgrade thermoclaw"
                )
            data["layers"] = tuple(LayerInfo.from_json(layer) for layer in data["layers"])
            data["meta"] = dict(data["meta"])
            return data
        except FileNotFoundError:
            raise RecordError(f"{self.folder} holds no rows yet: the run has just begun, or made no step") from None
        except (RecordError, OSError):
            raise
        except Exception as error:
            raise RecordError(f"{path} is damaged ({type(error).__name__}: {error})") from error

    def _read_parts(self, num_layers: int) -> tuple[list[str], bool]:
        """Notes on what could not be read, and whether nothing went away or came while it was read."""
        held, notes, is_whole = {}, [], True
        for path in parts_in(self.folder).values():
            try:
                state = path.stat()
                key = (state.st_mtime_ns, state.st_size)
                before = self._parts.get(path)
                if before is not None and before[0] == key and isinstance(before[1], Rows):
                    held[path] = before
                else:
                    held[path] = (key, _part_or_error(path))
            except PermissionError as error:
                notes.append(f"{path.name}: {error.strerror}")
            except OSError as error:  # merged into another part, or (network file systems) not to be had just now
                notes.append(f"{path.name}: {error.strerror}")
                is_whole = False
        for _, rows in held.values():
            if isinstance(rows, RecordError):
                notes.append(one_line(rows))
            elif rows.num_layers > num_layers:  # layers joined after the description was read
                is_whole = False
        self._parts = held
        return notes, is_whole

    def _run(self, meta: dict[str, Any], notes: list[str]) -> Run:
        layers = meta["layers"]
        good = [rows for _, rows in self._parts.values() if isinstance(rows, Rows) and rows.num_layers <= len(layers)]
        rows = joined(good, num_layers=len(layers)) if good else _no_rows(len(layers))
        _, first = np.unique(rows.steps, return_index=True)
        if len(first) != len(rows) or (np.diff(first) != 1).any():
            rows = rows[first]
        events, num_bad = self._read_events()
        if num_bad:
            notes = [*notes, f"{EVENTS}: {num_bad} lines"]
        if notes:
            meta["meta"][NOTES] = notes
        record = Record(rows.steps, layers, rows.layer_values, rows.run_values, meta["meta"], tuple(events))
        return Run(record, bool(meta.get("closed")), self._marks())

    def _marks(self) -> tuple[tuple[int, float], ...]:
        marks = [
            (int(rows.steps[-1]), key[0] / 1e9)
            for key, rows in self._parts.values()
            if isinstance(rows, Rows) and len(rows)
        ]
        with contextlib.suppress(OSError):
            marks.append((0, (self.folder / OWNER).stat().st_mtime))
        return tuple(sorted(marks))

    def _read_events(self) -> tuple[list[dict[str, Any]], int]:
        """The events, and how many lines are none; the last one may be half written."""
        try:
            lines = (self.folder / EVENTS).read_bytes().split(b"\n")
        except OSError:
            return [], 0
        events, num_bad = [], 0
        for line in lines[:-1]:
            try:
                event = json.loads(line)
                if not isinstance(event, dict) or not isinstance(event.get("step"), int):
                    raise ValueError("no event")
                events.append(event)
            except ValueError:
                num_bad += 1
        return events, num_bad


def _part_or_error(path: Path) -> Rows | RecordError:
    try:
        return read_part(path)
    except RecordError as error:
        return error


def _no_rows(num_layers: int) -> Rows:
    nothing = np.empty(0, dtype=np.int64)
    layer_values: Array = np.empty((0, num_layers, len(LAYER_COLUMNS)), dtype=np.float32)
    return Rows(nothing, nothing, layer_values, np.empty((0, len(RUN_COLUMNS))))
