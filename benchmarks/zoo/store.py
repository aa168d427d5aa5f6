"""Where traces lie, and what is written beside each: a folder outside the repository. No torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from thermoclaw.files import atomic_file

HERE = Path(__file__).resolve().parent
SHAPES_TRACES = (
    "recipe.py",
    "training.py",
    "optimizers.py",
    "data.py",
    "variants.py",
    "programs",
    "faults",
    "cases.py",
)


def default_folder() -> Path:
    """In the user's cache, so that nothing lands in the repository."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache_home) / "thermoclaw-zoo"


@cache
def fingerprint() -> str:
    """Of the code that decides what a trace looks like."""
    digest = hashlib.sha256()
    for name in SHAPES_TRACES:
        path = HERE / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


class Store:
    """Traces and outcomes by the names of cases.

    Args:
        folder: where they lie; made when something is written.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = Path(folder) if folder is not None else default_folder()

    def trace(self, name: str) -> Path:
        """The record of a run."""
        return self.folder / "traces" / f"{name}.npz"

    def outcome_path(self, name: str, kind: str = "outcome") -> Path:
        """What is known of a run beside its record."""
        return self.folder / "traces" / f"{name}.{kind}.json"

    def has(self, name: str) -> bool:
        """Whether a run is complete."""
        return self.outcome_path(name).exists() and self.trace(name).exists()

    def outcome(self, name: str, kind: str = "outcome") -> dict[str, Any] | None:
        """What was written of a run, or None."""
        path = self.outcome_path(name, kind)
        return json.loads(path.read_text()) if path.exists() else None

    def keep(self, name: str, outcome: dict[str, Any], kind: str = "outcome") -> None:
        """Write what is known of a run, whole or not at all."""
        self._write(self.outcome_path(name, kind), outcome)

    def write(self, name: str, document: dict[str, Any]) -> Path:
        """Write a result of all runs."""
        path = self.folder / name
        self._write(path, document)
        return path

    def stale(self, names: Iterable[str]) -> list[str]:
        """Runs that were made by other code than today's."""
        return [n for n in names if (told := self.outcome(n)) is not None and told["fingerprint"] != fingerprint()]

    @staticmethod
    def _write(path: Path, document: dict[str, Any]) -> None:
        with atomic_file(path, "w") as handle:
            handle.write(json.dumps(document, indent=1) + "\n")
