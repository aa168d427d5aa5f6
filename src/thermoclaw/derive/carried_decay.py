"""Weight decay that SGD's momentum carries on, by lengths: exact while parameters keep their direction.

Legend: B rows, U units.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from thermoclaw.derive.hyper import HyperRows
from thermoclaw.quantities import Array
from thermoclaw.state import maybe_array, take


class CarriedDecay:
    """b ← βb + (1 − dampening)λ‖θ⁻‖ from row to row, the first undampened.

    Args:
        started: the optimizer has made steps before the first row, so its momentum is built up.
    """

    def __init__(self, *, started: bool) -> None:
        self._started = started
        self._before_sq: Array | None = None  # ‖θ⁻‖² of the units before the next row
        self._carried: Array | None = None  # length of the decay in the momentum, by unit

    def bind(self, num_units: int) -> None:
        """Set the units that the next rows are made of."""
        self._before_sq = None
        if self._carried is not None and len(self._carried) != num_units:
            self._carried, self._started = None, True  # which unit carried what is not known any more

    def start_from(self, param_sq: Array) -> None:
        """Tell the squared norms [U] before the next step."""
        self._before_sq = param_sq

    def gap(self) -> None:
        """Tell that steps were left out before the next row."""
        self._before_sq = self._carried = None
        self._started = True

    def rows(self, raw: Mapping[str, Array], hyper: HyperRows) -> Array:
        """Decay in a step of rate 1 over ‖θ⁻‖, [B, U]."""
        first = raw["ps_ps"][:1] if self._before_sq is None else self._before_sq[None]
        before = np.sqrt(np.concatenate([first, raw["p_p"][:-1]]))
        self._before_sq = raw["p_p"][-1]
        step = np.empty_like(before)
        for b, length in enumerate(before):
            beta, gain = hyper.momentum[b], 1.0 - hyper.dampening[b]
            force = hyper.weight_decay[b] * length
            if self._carried is None:
                carried = gain * force / (1.0 - beta) if self._started else force
            else:
                carried = np.where(hyper.has_grad[b] == 1, beta * self._carried + gain * force, self._carried)
            self._carried = np.where(beta > 0, carried, force)
            step[b] = np.where(hyper.nesterov[b] & (beta > 0), force + beta * self._carried, self._carried) / length
        return step

    def state_dict(self) -> dict[str, Any]:
        """What is carried."""
        return {"started": self._started, "before_sq": self._before_sq, "carried": self._carried}

    def load_state_dict(self, state: Any, num_units: int) -> None:
        """Go on from `state_dict`."""
        self._started = take(state, "started", bool)
        self._before_sq = maybe_array(state, "before_sq", num_units)
        self._carried = maybe_array(state, "carried", num_units)
