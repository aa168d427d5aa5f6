"""A state in a file beside somebody else's checkpoint: whole, or not there."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from thermoclaw.files import atomic_file

logger = logging.getLogger("thermoclaw")


def state_file(folder: Path, name: str = "") -> Path:
    """Where the state of an optimizer is, `name` telling it from others of the run."""
    return folder / (f"thermoclaw_state_{name}.pt" if name else "thermoclaw_state.pt")


def write_state(folder: Path, name: str, state: dict[str, Any]) -> None:
    """Write a state.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_file(state_file(folder, name), "wb") as handle:
        torch.save(state, handle)


def load_state(folder: Path, name: str = "") -> Any:
    """The state.

    Raises:
        FileNotFoundError: there is none.
        Exception: it cannot be read; torch's errors are of many classes.
    """
    return torch.load(state_file(folder, name), map_location="cpu", weights_only=True)


def read_state(folder: Path, name: str) -> Any:
    """The state, or None with one message where there is none that can be read."""
    path = state_file(folder, name)
    if not path.exists():
        logger.warning("thermoclaw: %s has no %s: the record begins anew at the checkpoint", folder, path.name)
        return None
    try:
        return load_state(folder, name)
    except Exception as error:
        logger.warning("thermoclaw: %s cannot be read (%s): the record begins anew at the checkpoint", path, error)
        return None
