"""What the app may look at: runs under one folder, data sets under others, and nothing else. No torch.

Whatever comes from a page (the name of a run, of a file, of a data set) goes through here. A name is taken only if what
it stands for, links followed, lies below a folder that was given on the command line.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from thermoclaw.files import atomic_file
from thermoclaw.runs.names import META
from thermoclaw.train.settings import FILE as SETTINGS_FILE
from thermoclaw.train.status import FILE as STATUS_FILE

VARIABLE = "THERMOCLAW_APP"
"""Environment variable by which the command hands the folders to the page."""

CONSOLE = "console.txt"
UPLOADS = ".uploads"
UPLOAD_MB, UPLOADS_BYTES = 200, 2 << 30
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST = 500  # entries of a folder that are listed
_MARKS = (STATUS_FILE, SETTINGS_FILE, META, CONSOLE)


class PathError(ValueError):
    """A name leads out of the folders, or to nothing."""


@dataclass(frozen=True)
class Folders:
    """The folders that were given.

    Attributes:
        runs: below it runs are looked for, and new ones are made.
        data: below them data sets are looked for.
    """

    runs: Path
    data: tuple[Path, ...] = ()

    @classmethod
    def from_environment(cls) -> Folders:
        """Those that the command was given; `runs` where the page was not started by it."""
        given = json.loads(os.environ.get(VARIABLE, '{"runs": "runs"}'))
        return cls(Path(given["runs"]).resolve(), tuple(Path(folder).resolve() for folder in given.get("data", ())))

    def to_environment(self) -> str:
        """For the variable."""
        return json.dumps({"runs": str(self.runs), "data": [str(folder) for folder in self.data]})

    # -- runs -------------------------------------------------------------------------------------------------------

    def list_runs(self) -> list[str]:
        """Names of the runs, down to two folders deep, the one that was touched last first."""
        found = []
        for folder in _entries(self.runs):
            inside = [folder] if _is_run(folder) else list(_entries(folder)) if folder.is_dir() else []
            found += [run for run in inside if _is_run(run) and _is_below(run, self.runs)]
        return [run.relative_to(self.runs).as_posix() for run in sorted(found, key=_touched, reverse=True)]

    def run(self, name: str) -> Path:
        """The folder of a run.

        Raises:
            PathError: there is none of that name below the folder, or something in it is a link that leads out.
        """
        folder = self._below(name)
        if not _is_run(folder):
            raise PathError("there is no run of that name")
        _check_links(folder, self.runs)
        return folder

    def new_run(self, name: str) -> Path:
        """The folder of a run that is to begin.

        Raises:
            PathError: the name is not one, or is taken.
        """
        if not _NAME.fullmatch(name):
            raise PathError(
                "a run's name has letters, digits, '.', '_' and '-', begins with one of the first two, ≤ 64"
            )
        folder = self._below(name)
        if folder.exists():
            raise PathError("there is a run of that name already")
        return folder

    def file(self, run: Path, name: str) -> Path | None:
        """A file of a run; None where there is none.

        Raises:
            PathError: it lies elsewhere.
        """
        path = run / name
        if not _is_below(path, self.runs):
            raise PathError("that file lies elsewhere")
        return path if path.is_file() else None

    def _below(self, name: str) -> Path:
        parts = name.split("/")
        if not 1 <= len(parts) <= 2 or any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts):
            raise PathError("there is no run of that name")
        folder = self.runs.joinpath(*parts)
        if not _is_below(folder, self.runs) or folder.resolve() == self.runs:
            raise PathError("there is no run of that name")
        return folder

    # -- data -------------------------------------------------------------------------------------------------------

    def data_sets(self) -> dict[str, str]:
        """Label to what `--data` takes, for everything that looks like a data set."""
        found = {"digits (scikit-learn's, 8 × 8)": "digits"}
        for root in (*self.data, self.runs / UPLOADS):
            inside = [(path, _kind(path)) for path in _entries(root) if _is_below(path, root)]
            sets = [(path, kind) for path, kind in inside if kind] or [(root, _kind(root) if root.is_dir() else "")]
            found |= {f"{path.name} ({kind})": f"{kind}:{path}" for path, kind in sets if kind}
        return found

    def check_data(self, spec: str) -> str:
        """A data set that a page asks for.

        Raises:
            PathError: it lies elsewhere.
        """
        kind, _, where = spec.partition(":")
        if spec == "digits":
            return spec
        path = Path(where)
        roots = [root for root in (*self.data, self.runs / UPLOADS) if _is_below(path, root)]
        if kind not in ("cifar10", "folder", "zip") or not path.is_absolute() or not roots or not path.exists():
            raise PathError("that data set lies outside of the folders that were given")
        if path.is_dir():
            _check_links(path, roots[0])
        return spec

    def keep_upload(self, content: bytes) -> str:
        """Keep a ZIP file that was sent; returns what `--data` takes. The same file is kept once.

        Raises:
            PathError: it is too large, or too much was sent already.
        """
        folder = self.runs / UPLOADS
        target = folder / f"{hashlib.sha256(content).hexdigest()[:16]}.zip"
        if not _is_below(target, self.runs):
            raise PathError("the folder for uploads lies elsewhere")
        if len(content) > UPLOAD_MB << 20:
            raise PathError(f"a ZIP file may have {UPLOAD_MB} MB")
        held = sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0
        if not target.exists():
            if held + len(content) > UPLOADS_BYTES:
                raise PathError(f"{folder} holds {held >> 20} MB; remove what is no longer needed")
            with atomic_file(target, "wb") as handle:
                handle.write(content)
        return f"zip:{target}"


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(islice((entry for entry in folder.iterdir() if not entry.name.startswith(".")), _MOST))
    except OSError:
        return


def _is_run(folder: Path) -> bool:
    return folder.is_dir() and any((folder / name).is_file() for name in _MARKS)


def _is_below(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):  # links in a circle, names that no file system has
        return False


def _check_links(folder: Path, root: Path) -> None:
    for entry in (folder, *islice(folder.rglob("*"), 100_000)):
        if entry.is_symlink() and not _is_below(entry, root):
            raise PathError("there is a link in it that leads out of the folders that were given")


def _touched(run: Path) -> float:
    """When a run was last written."""
    times = [(run / name).stat().st_mtime for name in _MARKS if (run / name).is_file()]
    return max(times, default=0.0)


def _kind(path: Path) -> str:
    if path.is_file():
        return "zip" if path.suffix.lower() == ".zip" else ""
    if any(
        (path / inner / f"test_batch{end}").is_file() for inner in ("", "cifar-10-batches-py") for end in ("", ".bin")
    ):
        return "cifar10"
    inside = [entry for entry in _entries(path) if entry.is_dir()]
    holds_files = any(entry.is_file() for folder in inside[:2] for entry in _entries(folder))
    return "folder" if any(entry.name == "train" for entry in inside) or (len(inside) > 1 and holds_files) else ""
