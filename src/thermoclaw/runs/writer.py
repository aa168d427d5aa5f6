"""Writes a run on a thread of its own: training hands over what is on the host already and never waits for a disk."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from thermoclaw.files import atomic_file
from thermoclaw.quantities import LAYER_COLUMNS, RUN_COLUMNS
from thermoclaw.record import LayerInfo
from thermoclaw.runs.claim import Claim, Lost
from thermoclaw.runs.names import EVENTS, FORMAT, META, SCHEMA_VERSION
from thermoclaw.runs.rows import Rows, joined
from thermoclaw.runs.store import Store

logger = logging.getLogger("thermoclaw")

FLUSH_S, FIRST_FLUSH_S = 5.0, 0.5  # between two writes; a young run is written sooner
DESCRIBE_S = 30.0  # between two descriptions of a run, unless its layers changed
RETRY_S = 10.0  # after a write that failed
MOST_WAITING = 16 << 20  # bytes of rows that wait for a disk; what comes later stays in the observer's history
CLOSE_S = 60.0  # to wait for a disk at the end


@dataclass(frozen=True)
class Description:
    """What a run is: its layers, and `Record.meta`."""

    layers: tuple[LayerInfo, ...]
    meta: dict[str, Any]


class Writer:
    """Keeps one directory.

    Args:
        claim: the directory.
        max_bytes: what its rows may take.
        last_step: where the run was in this directory before, the step after which it goes on.

    A disk that is full or does not answer is told once and tried again; any other error ends the writing.
    """

    def __init__(self, claim: Claim, *, max_bytes: int, last_step: int = 0) -> None:
        self.claim = claim
        self._store = Store(claim.folder, max_bytes=max_bytes)
        self._last_step = last_step
        self._is_open = not claim.goes_on
        self._lock = threading.Condition()
        self._rows: list[Rows] = []
        self._events: list[dict[str, Any]] | None = None
        self._described: Description | None = None
        self._latest = Description((), {})
        self._written_events: list[dict[str, Any]] | None = None
        self._began_s = time.monotonic()
        self._flushed_s = self._described_s = -1e9
        self._waiting = 0  # bytes of rows
        self._is_ending = self._is_over = self._is_told = False
        self.is_off = False
        self._thread = threading.Thread(target=self._work, name="thermoclaw-run", daemon=True)

    # -- called by training -------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether as much waits as may."""
        return self._waiting >= MOST_WAITING

    @property
    def wants_description(self) -> bool:
        """Whether it is time to describe the run again."""
        return time.monotonic() - self._described_s >= DESCRIBE_S

    def give(
        self, rows: Rows | None, *, events: list[dict[str, Any]] | None = None, described: Description | None = None
    ) -> None:
        """Hand over rows, all events if any came or went, and what the run is. Returns at once."""
        with self._lock:
            if rows is not None and len(rows):
                self._rows.append(rows)
                self._waiting += rows.num_bytes
                if self._waiting >= MOST_WAITING // 4:
                    self._lock.notify()
            if events is not None:
                self._events = events
            if described is not None:
                self._described, self._described_s = described, time.monotonic()
        if not self._thread.is_alive() and not self._is_ending:
            with contextlib.suppress(
                RuntimeError
            ):  # at the interpreter's end none can be started; `finish` writes then
                self._thread.start()

    def end(self) -> None:
        """Write the rest and stop, soon, and before the interpreter ends."""
        atexit.register(self.finish)
        with self._lock:
            self._is_ending = True
            self._lock.notify()

    def finish(self) -> None:
        """Write the rest and stop; waits for the disk, for a while."""
        with self._lock:
            self._is_ending = True
            self._lock.notify()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)
        elif not self._is_over:
            self._guard(is_last=True)
        if self._thread.is_alive():
            logger.warning("thermoclaw: %s does not answer; the last rows are given up", self.claim.folder)

    # -- on the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self.is_off:
            with self._lock:
                self._lock.wait_for(self._is_urgent, timeout=self._pause_s())
                is_last = self._is_ending
            self._guard(is_last=is_last)
            if is_last:
                break
        self._is_over = True
        atexit.unregister(self.finish)

    def _is_urgent(self) -> bool:
        return self._is_ending or (self._waiting >= MOST_WAITING // 4 and not self._is_told)

    def _pause_s(self) -> float:
        if self._is_told:
            return RETRY_S
        return min(FLUSH_S, max(FIRST_FLUSH_S, (time.monotonic() - self._began_s) / 10))

    def _guard(self, *, is_last: bool) -> None:
        folder = self.claim.folder
        try:
            self._flush(is_last=is_last)
        except Lost as reason:
            self._stop("%s; from here on nothing is kept there. Training goes on", reason)
        except OSError as error:
            if is_last:
                self._stop("the end of the run was not written to %s: %s", folder, error)
            elif not self._is_told:
                self._is_told = True
                logger.warning(
                    "thermoclaw: %s cannot be written: %s. Training goes on; rows wait in memory, to be tried again",
                    folder,
                    error,
                )
        except Exception:
            self._stop("keeping the run in %s failed and is off from here on; training goes on", folder, trace=True)
        else:
            if self._is_told:
                self._is_told = False
                logger.warning("thermoclaw: %s is written again", folder)

    def _stop(self, message: str, *details: Any, trace: bool = False) -> None:
        self.is_off = self._is_over = True
        self._rows = []
        logger.warning(f"thermoclaw: {message}", *details, exc_info=trace)

    def _flush(self, *, is_last: bool) -> None:
        self.claim.check()
        with self._lock:
            rows, described, events = list(self._rows), self._described, self._events
            self._described = self._events = None
        try:
            if not self._is_open:
                self._store.go_on(last_step=self._last_step)
                self._is_open = True
            self._write(rows, described, events, is_last=is_last)
        except BaseException:
            with self._lock:  # what is newer stands
                self._described = self._described or described
                self._events = self._events if self._events is not None else events
            raise
        with self._lock:
            del self._rows[: len(rows)]
            self._waiting -= sum(held.num_bytes for held in rows)

    def _write(
        self,
        rows: list[Rows],
        described: Description | None,
        events: list[dict[str, Any]] | None,
        *,
        is_last: bool,
    ) -> None:
        if described is not None:
            self._latest = described
            self._write_meta(described)
        if rows:
            self._store.add(joined(rows))
        if events is not None:
            self._write_events(events)
        if is_last:
            self._write_meta(self._latest, closed=True)

    def _write_meta(self, described: Description, *, closed: bool = False) -> None:
        data = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "run_id": self.claim.run_id,
            "closed": closed,
            "layer_columns": LAYER_COLUMNS,
            "run_columns": RUN_COLUMNS,
            "layers": [asdict(layer) for layer in described.layers],
            "meta": described.meta,
        }
        with atomic_file(self.claim.folder / META, "w") as handle:
            handle.write(json.dumps(data, default=str, allow_nan=True))

    def _write_events(self, events: list[dict[str, Any]]) -> None:
        """Append what is new, or write all anew where earlier ones went or the last attempt failed."""
        path, before = self.claim.folder / EVENTS, self._written_events
        self._written_events = None
        if before is not None and _begins_with(events, before):
            with open(path, "ab") as handle:
                handle.write(_lines(events[len(before) :]))
        else:
            with atomic_file(path, "wb") as handle:
                handle.write(_lines(events))
        self._written_events = events


def _begins_with(events: Sequence[Any], first: Sequence[Any]) -> bool:
    return len(events) >= len(first) and all(one is other for one, other in zip(events, first, strict=False))


def _lines(events: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(event, default=str, allow_nan=True) + "\n" for event in events).encode()
