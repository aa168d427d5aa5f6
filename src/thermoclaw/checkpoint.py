"""The envelope of a state: plain data and tensors on the host, with a format and a version, and its way back.

What comes out of `pack` is read by `torch.load(..., weights_only=True)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thermoclaw.state import StateError, count
from thermoclaw.version import __version__

SCHEMA_VERSION = 1


def pack(of: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state as a user keeps it; `of` names whose it is."""
    head = {"format": f"thermoclaw.{of}", "schema_version": SCHEMA_VERSION, "thermoclaw_version": __version__}
    return {**head, **_to_host(state)}


def unpack(of: str, state: Any) -> dict[str, Any]:
    """A state with its tensors on the host, wherever it was loaded to.

    Raises:
        StateError: it is something else, or was saved by a newer version.
    """
    if not isinstance(state, Mapping) or state.get("format") != f"thermoclaw.{of}":
        kind = state.get("format", type(state).__name__) if isinstance(state, Mapping) else type(state).__name__
        raise StateError(f"this is no state of thermoclaw.{of}, but {kind!r}: give what {of}.state_dict() returned")
    version = count(state, "schema_version")
    if version > SCHEMA_VERSION:
        raise StateError(
            f"the state has schema version {version}, this thermoclaw reads up to {SCHEMA_VERSION}: upgrade to "
            f"{state.get('thermoclaw_version')} or newer"
        )
    return {str(key): _to_host(value) for key, value in state.items()}


def _to_host(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value))
    if isinstance(value, Tensor):
        return value.detach().to(device="cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _to_host(held) for key, held in value.items()}
    return [_to_host(held) for held in value] if isinstance(value, (list, tuple)) else value
