"""What a user hands over, checked with words that say what to do; and whether this process is the one that writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from thermoclaw.attach import unwrap

MODES = ("sketch", "exact")

_REFUSED = {
    "alpha": "σ* is the plain running median now, so a steady layer has r = 1; drop alpha, and widen the band with "
    "diagnose(..., equilibrium_band=) if you need to",
    "calib_start": "the baseline is running from the first step; drop calib_start",
}


def check_pair(model: Any, optimizer: Any) -> Any:
    """The innermost optimizer, after checking that both arguments are what they should be."""
    models = model if isinstance(model, (list, tuple)) else [model]
    if not models or not all(isinstance(m, nn.Module) for m in models):
        raise TypeError(
            f"the first argument is the model (an nn.Module, or a list of them), not {type(model).__name__}: "
            "Observer(model, optimizer)"
        )
    inner = unwrap(optimizer)
    if not hasattr(inner, "param_groups") or not callable(getattr(inner, "step", None)):
        raise TypeError(
            f"the second argument is the optimizer (with param_groups and step()), not {type(optimizer).__name__}: "
            "Observer(model, optimizer)"
        )
    return inner


def refuse(name: str, value: Any, default: Any) -> None:
    """Refuse a keyword of thermoclaw 0.1.6 that has no meaning any more, unless it has its default."""
    if value is not None and value != default:
        raise ValueError(f"{name}={value!r} is not supported: {_REFUSED[name]}")


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Refuse what is not among the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(str, choices))}")


def check_budget(budget: Any, *, every: int) -> None:
    """Refuse what is no share of time, and a cadence beside it."""
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget < 1:
        raise ValueError(f"budget={budget!r}: give the share of a step's time that measuring may take, such as 0.01")
    if every != 1:
        raise ValueError(f"every={every} and budget={budget}: a budget chooses the cadence itself; give one of the two")


def check_at_least(name: str, value: Any, least: int) -> None:
    """Refuse what is no whole number, or a smaller one."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r}: give a whole number of at least {least}")


def is_main_process() -> bool:
    """Whether this is the first of several training processes, or the only one."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank() == 0
    return os.environ.get("RANK", "0") == "0"  # what a launcher says, before the processes have met
