"""The host's end of a probe: counts of units, and what was counted, become shares of layers. No torch.

Legend: B rows, U units, L layers, C probe columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermoclaw.derive.layer_sums import LayerSums
from thermoclaw.measure.columns import PROBE, SEEN, SEEN_COLUMNS
from thermoclaw.quantities import Array
from thermoclaw.state import array

_SHARES = {"grad_zeros": ("zeros", "numbers"), "silent_rows": ("silent", "silent_of"), "dead_rows": ("dead", "dead_of")}
_SINGLE = (  # of one unit of a layer
    "row_likeness",
    "attention_gain",
    "start_gain",
    "input_scale",
    "output_drift",
    "stable_rank",
)
PROBED = (*_SHARES, *_SINGLE)


class ProbedLayers:
    """Turns what probes wrote into layer columns, in order; NaN where there was no probe."""

    def __init__(self) -> None:
        self._start = np.zeros(0)  # gains [L] of rows that a loss scaler refused: the next one tells them

    def bind(self, unit_layer: Sequence[int], num_layers: int) -> None:
        """Set the units that the next rows are made of; layers may only be added."""
        self._num_units = len(unit_layer)
        self._sums = LayerSums(unit_layer, num_layers)
        extra = num_layers - len(self._start)
        self._start = np.pad(self._start, (0, extra), constant_values=np.nan)

    def state_dict(self) -> dict[str, Any]:
        """What the next probe tells."""
        return {"start": self._start}

    def load_state_dict(self, state: Any) -> None:
        """Go on from `state_dict`."""
        self._start = array(state, "start", len(self._start))

    def columns(
        self, values: Array, seen: Sequence[NDArray[np.float64] | None], refused: NDArray[np.bool_]
    ) -> dict[str, Array]:
        """Columns [B, L] by name.

        Args:
            values: as probes wrote them [B, U, C]; rows without a probe hold anything.
            seen: by row, what the probe looked at [U, 3]; None without one.
            refused: rows that are no steps [B].
        """
        nothing = np.full((self._num_units, len(SEEN_COLUMNS)), np.nan)
        out_of = np.stack([nothing if x is None else x for x in seen])
        probed = np.array([x is not None for x in seen])
        values = np.where(probed[:, None, None], values, np.nan)
        columns = {}
        with np.errstate(divide="ignore", invalid="ignore"):
            for name, (part, whole) in _SHARES.items():
                columns[name] = self._sums(values[..., PROBE[part]]) / self._sums(out_of[..., SEEN[whole]])
        for name in _SINGLE:
            column = values[..., PROBE[name]]
            known = ~np.isnan(column)
            total = self._sums(np.where(known, column, 0.0))
            columns[name] = np.where(self._sums(known.astype(float)) > 0, total, np.nan)
        self._hand_on(columns["start_gain"], probed & ~refused)
        return columns

    def _hand_on(self, start: Array, tells: NDArray[np.bool_]) -> None:
        for row, is_told in zip(start, tells, strict=True):
            known = ~np.isnan(row)
            self._start[known] = row[known]
            if is_told:
                row[:] = self._start
                self._start[:] = np.nan
