"""The numbers with which steps were made."""

from __future__ import annotations

from dataclasses import dataclass

from thermoclaw.quantities import Array


@dataclass(frozen=True)
class HyperRows:
    """Hyper-parameters by row and unit, each [B, U]."""

    lr: Array
    weight_decay: Array
    momentum: Array
    dampening: Array
    sign: Array
    decoupled: Array  # bool
    adaptive: Array  # bool
    nesterov: Array  # bool
    has_grad: Array  # 1 or 0; NaN where no parameter is to be trained
