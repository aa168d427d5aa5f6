"""Who writes a run directory. One process does; nobody ever waits for a lock.

A directory is claimed by making a file that must not exist yet. Who asks for one that is taken gets a name of its own
beside it (`a`, then `a-2`), so no run is lost and no program is refused. A process that goes on with the same run, as
its state says, takes the directory over; the one before, should it live still, sees that at its next write and stops.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from thermoclaw.files import atomic_file
from thermoclaw.runs.names import META, OWNER, is_run


class Lost(Exception):
    """The directory is another process's now, or gone."""


@dataclass(frozen=True)
class Claim:
    """A directory that this process writes.

    Attributes:
        folder: the directory.
        wanted: the one that was asked for.
        run_id: of the run.
        token: of this process's claim.
        goes_on: the run was in it before.
    """

    folder: Path
    wanted: Path
    run_id: str
    token: str
    goes_on: bool = False

    def check(self) -> None:
        """See that the directory is still this process's.

        Raises:
            Lost: it is not.
            OSError: that cannot be told now.
        """
        try:
            owner = json.loads((self.folder / OWNER).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise Lost(f"{self.folder} was removed") from None
        except ValueError:
            owner = None
        if not isinstance(owner, dict):
            raise Lost(f"{self.folder / OWNER} is not what was written there")
        if owner.get("token") != self.token:
            raise Lost(f"another process (pid {owner.get('pid')} on {owner.get('host')}) goes on with {self.folder}")

    def release(self) -> None:
        """Give a directory back in which nothing was written."""
        with contextlib.suppress(OSError, Lost):
            self.check()
            (self.folder / OWNER).unlink()
            self.folder.rmdir()


def claim(wanted: Path, *, run_id: str) -> Claim:
    """The directory, or the first free one of the names after it.

    Raises:
        OSError: it cannot be made or written; the message says why.
    """
    for folder in _names(wanted):
        if is_run(folder):
            continue
        mine = Claim(folder, wanted, run_id, _token())
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / OWNER, "x", encoding="utf-8") as handle:
                handle.write(_owner(mine))
        except FileExistsError:
            if folder == wanted and not folder.is_dir():
                raise NotADirectoryError(f"run_dir={str(wanted)!r} is a file: give a folder") from None
            continue
        except OSError as error:
            raise OSError(f"run_dir={str(wanted)!r} cannot be written: {error.strerror or error}") from error
        return mine
    raise AssertionError("names do not end")


def take_over(wanted: Path, *, run_id: str) -> Claim | None:
    """The directory of that name, or of one after it, that holds this run; None where there is none.

    Raises:
        OSError: it cannot be written.
    """
    for folder in _beside(wanted):
        if run_in(folder) == run_id:
            mine = Claim(folder, wanted, run_id, _token(), goes_on=True)
            with atomic_file(folder / OWNER, "w") as handle:
                handle.write(_owner(mine))
            return mine
    return None


def run_in(folder: Path) -> str | None:
    """Which run a directory holds."""
    for name in (META, OWNER):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found = json.loads((folder / name).read_text(encoding="utf-8")).get("run_id")
            if found:
                return str(found)
    return None


def _names(wanted: Path) -> Iterator[Path]:
    yield wanted
    number = 2
    while True:
        yield wanted.with_name(f"{wanted.name}-{number}")
        number += 1


def _beside(wanted: Path) -> list[Path]:
    """Existing directories that a run given this name may be in."""
    name = re.compile(re.escape(wanted.name) + r"(-\d+)?")
    with contextlib.suppress(OSError):
        found = [path for path in wanted.parent.iterdir() if name.fullmatch(path.name) and path.is_dir()]
        return sorted(found, key=lambda path: (len(path.name), path.name))
    return []


def _token() -> str:
    return os.urandom(8).hex()


def _owner(mine: Claim) -> str:
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    whose = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
    return json.dumps({"run_id": mine.run_id, "token": mine.token, **whose})
