"""How far a run has come, in a file that others may read at any time, and a file by which they may ask it to stop.

No torch.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from thermoclaw.files import atomic_file

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger("thermoclaw")

FILE, STOP_FILE, LOCK_FILE = "status.json", "stop", "lock"
RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"
_EVERY_S = 0.5
_TRIES = 5
_SILENT_S = 120.0  # without news, where there is no lock to ask


class Status:
    """Writes a run's status: atomically, and at most twice a second.

    Args:
        folder: of the run.
        clock: seconds, for tests.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self._clock, self._began, self._written = clock, clock(), -math.inf
        self._lock: Any = None
        self._complained = False
        self.values: dict[str, Any] = {"state": RUNNING, "pid": os.getpid(), "error": None}

    def lock(self) -> bool:
        """Take the folder for this process; False where another one trains in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return not is_running(self.folder)
        handle = open(self.folder / LOCK_FILE, "w")  # noqa: SIM115  (held for as long as the run lasts)
        for _ in range(_TRIES):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(0.05)  # somebody who looks whether it is held holds it for a moment
            else:
                self._lock = handle
                return True
        handle.close()
        return False

    def unlock(self) -> None:
        """Give the folder back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def update(self, *, now: bool = False, **values: Any) -> None:
        """Note values; they are written when half a second has gone by, or `now`."""
        self.values.update(values)
        at = self._clock()
        if not now and at - self._written < _EVERY_S:
            return
        self._written = at
        whole = {**self.values, "elapsed_s": round(at - self._began, 2), "updated": time.time()}
        try:
            with atomic_file(self.folder / FILE, "w") as handle:
                json.dump({key: _plain(value) for key, value in whole.items()}, handle, indent=1)
        except OSError as error:  # a disk that is full or away for a moment ends no training
            if not self._complained:
                logger.warning("thermoclaw: the status of %s is not written: %s", self.folder, error)
            self._complained = True

    def left_s(self, done: int, of: int, *, first: int = 0) -> float | None:
        """Seconds until the last step, by the pace since the first one of this process."""
        if done <= first:
            return None
        return (self._clock() - self._began) * (of - done) / (done - first)

    def asked_to_stop(self) -> bool:
        """Whether somebody put the stop file there."""
        return (self.folder / STOP_FILE).exists()

    def answer_stop(self) -> None:
        """Take the stop file away."""
        with suppress(OSError):
            (self.folder / STOP_FILE).unlink()


def read_status(folder: Path) -> dict[str, Any] | None:
    """What a run last said; None where there is nothing to read. A run that died says "failed"."""
    try:
        told = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(told, dict) or not isinstance(told.get("state"), str):
        return None
    if told["state"] == RUNNING and not is_running(folder, told):
        told.update(state=FAILED, error="the process ended without a word; `--resume` goes on from its checkpoint")
    return told


def is_running(folder: Path, told: dict[str, Any] | None = None) -> bool:
    """Whether a process trains in a folder: it holds the lock, or where there are no locks it was heard of lately."""
    if fcntl is not None:
        try:
            with open(folder / LOCK_FILE, "r+") as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False
    told = read_status(folder) if told is None else told
    return told is not None and told["state"] == RUNNING and time.time() - float(told.get("updated", 0)) < _SILENT_S


def ask_to_stop(folder: Path) -> None:
    """Ask the run in a folder to stop after its present step."""
    (folder / STOP_FILE).touch()


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
