"""What is called what in a run directory."""

from __future__ import annotations

import re
from pathlib import Path

FORMAT = "thermoclaw run directory"
SCHEMA_VERSION = 1

META, EVENTS, OWNER = "meta.json", "events.jsonl", "owner.json"
_PART = re.compile(r"part-(\d{8,})\.npz")


def part_name(number: int) -> str:
    """The file of a part."""
    return f"part-{number:08d}.npz"


def part_number(name: str) -> int | None:
    """The number in the name of a part; None for other files."""
    found = _PART.fullmatch(name)
    return int(found[1]) if found else None


def parts_in(folder: Path) -> dict[int, Path]:
    """The parts of a run, by number."""
    numbers = {path: part_number(path.name) for path in folder.iterdir()}
    return dict(sorted((number, path) for path, number in numbers.items() if number is not None))


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, or is about to."""
    return folder.is_dir() and any((folder / name).exists() for name in (META, OWNER))
