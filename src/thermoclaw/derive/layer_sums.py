"""Adds units up to layers.

Legend: B rows, U units, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thermoclaw.quantities import Array


class LayerSums:
    """See the module's docstring.

    Args:
        unit_layer: the layer of each unit.
        num_layers: L.
    """

    def __init__(self, unit_layer: Sequence[int], num_layers: int) -> None:
        self.num_layers = num_layers
        seen: dict[int, int] = {}
        rounds: dict[int, list[tuple[int, int]]] = {}
        for unit, layer in enumerate(unit_layer):
            turn = seen.get(layer, 0)
            seen[layer] = turn + 1
            rounds.setdefault(turn, []).append((unit, layer))
        self._rounds = [tuple(np.array(column) for column in zip(*pairs, strict=True)) for pairs in rounds.values()]
        self._is_one_to_one = list(unit_layer) == list(range(num_layers))

    def __call__(self, values: Array) -> Array:
        """[B, U] → [B, L]; layers without units are 0."""
        if self._is_one_to_one:
            return values + 0.0
        total = np.zeros((len(values), self.num_layers))
        for units, layers in self._rounds:
            total[:, layers] += values[:, units]
        return total

    def any(self, values: Array) -> Array:
        """Whether any of a layer's units has a 1; NaN where all of them are NaN."""
        known = self((~np.isnan(values)).astype(float)) > 0
        return np.where(known, (self(np.nan_to_num(values)) > 0).astype(float), np.nan)

    def mean(self, values: Array, weight: Array) -> Array:
        """Weighted mean over a layer's units; those that are not finite are left out."""
        weight = np.where(np.isfinite(weight) & (weight > 0), weight, 1e-300)
        known = np.isfinite(values)
        total = self(np.where(known, weight, 0.0))
        return np.where(
            total > 0, self(np.where(known, values * weight, 0.0)) / np.where(total > 0, total, 1.0), np.nan
        )
