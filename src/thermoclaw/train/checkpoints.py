"""Checkpoints of a run: each whole or not there, the newest few and the best, and the newest that can be read."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from thermoclaw.files import atomic_file
from thermoclaw.train.errors import RunError

FOLDER, BEST = "checkpoints", "best.pt"
FORMAT = "thermoclaw.train"
VERSION = 1
_NAME = re.compile(r"step-(\d{1,12})\.pt")


def save_checkpoint(run: Path, step: int, state: dict[str, Any], *, keep: int, best: bool = False) -> Path:
    """Write a checkpoint, and remove those beyond the newest few.

    Args:
        run: the run's folder.
        step: optimizer steps made.
        state: plain data and tensors.
        keep: how many stay, the best one not counted.
        best: whether it is the best so far; then it is kept a second time.

    Raises:
        OSError: it cannot be written.
    """
    folder = run / FOLDER
    target = folder / f"step-{step:08d}.pt"
    whole = {"format": FORMAT, "version": VERSION, "step": step, **state}
    for path in (target, folder / BEST) if best else (target,):
        with atomic_file(path, "wb") as handle:
            torch.save(whole, handle)
    for old in _numbered(run)[keep:]:
        with suppress(OSError):
            old.unlink()
    return target


def newest_checkpoint(run: Path) -> dict[str, Any]:
    """The newest checkpoint that can be read.

    Raises:
        RunError: there is none.
    """
    damaged = []
    for path in _numbered(run):
        try:
            return read_checkpoint(path)
        except RunError as error:
            damaged.append(str(error))
    raise RunError("; ".join(damaged) or f"{run / FOLDER} has no checkpoint: the run ended before its first one")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint; nothing in it is executed.

    Raises:
        RunError: it is none, is damaged, or from a newer version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's errors are of many classes
        raise RunError(f"{path} is not a readable checkpoint ({type(error).__name__})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise RunError(f"{path} is no checkpoint of `thermoclaw train`")
    if state.get("version") != VERSION:
        raise RunError(f"{path} has version {state.get('version')!r}, this thermoclaw reads {VERSION}")
    return state


def _numbered(run: Path) -> list[Path]:
    """The checkpoints by step, the newest first."""
    found = [
        (int(match[1]), path) for path in (run / FOLDER).glob("step-*.pt") if (match := _NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]
