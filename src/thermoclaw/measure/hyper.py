"""Hyper-parameters of each optimizer group at one step, and how that optimizer applies weight decay.

Legend: B steps, G groups, U units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from thermoclaw.derive.hyper import HyperRows

_NAN = float("nan")

# How the decay λ enters the update; a class that is not listed applies it decoupled, θ ← θ − ηλθ.
#   "sgd":      the gradient becomes g + λθ, then momentum
#   "adaptive": the gradient becomes g + λθ, then momentum and a per-element scale
_COUPLED = {
    "SGD": "sgd",
    "ASGD": "sgd",
    "Adam": "adaptive",
    "NAdam": "adaptive",
    "RAdam": "adaptive",
    "Adamax": "adaptive",
    "Adagrad": "adaptive",
    "Adadelta": "adaptive",
    "RMSprop": "adaptive",
}


class GroupHyper(NamedTuple):
    """What one group's step was taken with, as numbers."""

    lr: float
    weight_decay: float
    momentum: float
    dampening: float
    sign: float  # −1 where the optimizer maximizes
    decoupled: float
    adaptive: float
    nesterov: float


def number(value: Any) -> float:
    """A float without waiting for a device; NaN for a value that lives on one (the ring carries it instead)."""
    if isinstance(value, float):
        return value
    if isinstance(value, torch.Tensor):
        return float(value) if value.device.type == "cpu" and value.numel() == 1 else _NAN
    try:
        return float(value)
    except (TypeError, ValueError):
        return _NAN


def coupling(optimizer: Any, group: dict[str, Any]) -> str:
    """How this optimizer applies weight decay: "decoupled", "sgd" or "adaptive"."""
    if group.get("decoupled_weight_decay"):
        return "decoupled"
    for cls in type(optimizer).__mro__:
        if cls.__name__ in ("AdamW", "SparseAdam"):
            return "decoupled"
        if cls.__name__ in _COUPLED:
            return _COUPLED[cls.__name__]
    return "decoupled"


def read_group(optimizer: Any, group: dict[str, Any]) -> GroupHyper:
    """Read one group; unknown keys mean zero."""
    betas = group.get("betas")
    momentum = betas[0] if betas else group.get("momentum") or group.get("beta1") or 0.0
    kind = coupling(optimizer, group)
    return GroupHyper(
        lr=number(group.get("lr", _NAN)),
        weight_decay=number(group.get("weight_decay") or 0.0),
        momentum=number(momentum),
        dampening=number(group.get("dampening") or 0.0),
        sign=-1.0 if group.get("maximize") else 1.0,
        decoupled=float(kind == "decoupled"),
        adaptive=float(kind == "adaptive"),
        nesterov=float(bool(group.get("nesterov"))),
    )


def read_groups(optimizer: Any) -> list[GroupHyper]:
    """`read_group` for every group."""
    return [read_group(optimizer, group) for group in optimizer.param_groups]


def describe_groups(optimizer: Any) -> list[dict[str, Any]]:
    """What a record keeps of each group: its numbers and, where it has them, `beta2`, `eps`, `name`, `maximize`."""
    described = []
    for group in optimizer.param_groups:
        more = {"beta2": _second_beta(optimizer, group), "eps": number(group.get("eps"))}
        entry: dict[str, Any] = {**read_group(optimizer, group)._asdict()}
        entry |= {name: value for name, value in more.items() if value == value}
        if isinstance(group.get("name"), str):
            entry["name"] = group["name"]
        if group.get("maximize"):
            entry["maximize"] = True
        described.append(entry)
    return described


def _second_beta(optimizer: Any, group: dict[str, Any]) -> float:
    """Weight of the past in the mean of squared gradients; NaN without one."""
    betas = group.get("betas")
    if isinstance(betas, tuple | list) and len(betas) > 1:
        return number(betas[1])
    names = {cls.__name__ for cls in type(optimizer).__mro__}
    if "RMSprop" in names:
        return number(group.get("alpha"))
    return number(group.get("rho")) if "Adadelta" in names else number(group.get("beta2"))


def device_lrs(optimizer: Any) -> dict[int, torch.Tensor]:
    """Learning rates by group, where they are tensors on an accelerator."""
    found = {}
    for i, group in enumerate(optimizer.param_groups):
        lr = group.get("lr")
        if isinstance(lr, torch.Tensor) and lr.device.type != "cpu":
            found[i] = lr.detach()
    return found


def hyper_rows(
    groups: Sequence[Sequence[GroupHyper]], has_grad: Sequence[Sequence[float]], unit_group: np.ndarray
) -> HyperRows:
    """Group numbers of B steps spread over units, [B, U] each."""
    values = np.array(groups, dtype=np.float64)[:, unit_group, :]
    lr, weight_decay, momentum, dampening, sign, decoupled, adaptive, nesterov = np.moveaxis(values, -1, 0)
    clean = np.clip(np.nan_to_num(momentum), 0.0, 1.0 - 1e-9)
    return HyperRows(
        lr=lr,
        weight_decay=np.nan_to_num(weight_decay),
        momentum=clean,
        dampening=np.nan_to_num(dampening),
        sign=sign,
        decoupled=decoupled > 0,
        adaptive=adaptive > 0,
        nesterov=nesterov > 0,
        has_grad=np.array(has_grad, dtype=np.float64),
    )
