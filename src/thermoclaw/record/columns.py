"""The columns of a record, stored and derived, each taken out or computed when it is first asked for. No torch.

Legend: T recorded steps, L layers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping

import numpy as np

from thermoclaw.quantities import LAYER_COLUMNS, RUN_COLUMNS, TABLE, Array, canonical

MOST_NUMBERS = 100_000  # of hyper-parameters that are told in as few digits as they have

_LAYER_PLACE = {name: i for i, name in enumerate(LAYER_COLUMNS)}
_RUN_PLACE = {name: i for i, name in enumerate(RUN_COLUMNS)}


class RecordError(ValueError):
    """A file is not a record, or is damaged."""


class Columns(Mapping[str, Array]):
    """By any name of `thermoclaw.quantities`; frozen.

    Args:
        steps: [T].
        layer_values, run_values: as they are stored.
        num_params: of the layers, [L].
    """

    def __init__(self, steps: Array, layer_values: Array, run_values: Array, num_params: Array) -> None:
        self._layer_values, self._run_values = layer_values, run_values
        self._have = {"step": steps, "num_params": num_params}

    def __getitem__(self, name: str) -> Array:
        if name not in self._have:
            values = self._stored(name)
            if values is None:
                quantity = TABLE[canonical(name)]
                if quantity.derive is None:
                    raise KeyError(name)
                values = np.asarray(quantity.derive(self), dtype=np.float64)
            values.flags.writeable = False
            self._have[name] = values
        return self._have[name]

    def _stored(self, name: str) -> Array | None:
        """A column of the record, in double precision."""
        if name in _LAYER_PLACE:
            values = np.array(self._layer_values[:, :, _LAYER_PLACE[name]], dtype=np.float64)
            single = self._layer_values.dtype == np.float32 and name in ("lr", "weight_decay", "momentum")
            return shortest(values) if single else values
        if name in _RUN_PLACE:
            return np.array(self._run_values[:, _RUN_PLACE[name]], dtype=np.float64)
        return None

    def __iter__(self) -> Iterator[str]:
        return iter(TABLE)

    def __len__(self) -> int:
        return len(TABLE)


def shortest(values: Array) -> Array:
    """Single-precision hyper-parameters as they were written: 0.01, not 0.009999999776482582."""
    lines = (values.ravel(), values.T.ravel())  # they change from row to row, or from layer to layer
    starts = [np.flatnonzero(np.append(True, line[1:] != line[:-1])[: len(line)]) for line in lines]
    by_row = len(starts[0]) <= len(starts[1])
    line, first = (lines[0], starts[0]) if by_row else (lines[1], starts[1])
    if len(first) > MOST_NUMBERS:
        return _seven_digits(values)
    numbers = [_shortest_number(x) if math.isfinite(x) else x for x in line[first].tolist()]
    found = np.repeat(np.array(numbers, dtype=np.float64), np.diff(first, append=len(line)))
    return found.reshape(values.shape) if by_row else found.reshape(values.T.shape).T


def _seven_digits(values: Array) -> Array:
    """All at once, rounded to what single precision holds: for rates that differ in every layer and step."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = 10.0 ** (6.0 - np.floor(np.log10(np.abs(values))))
        rounded = np.round(values * scale) / scale
    return np.where(np.isfinite(rounded), rounded, values)


@functools.lru_cache(maxsize=1 << 14)
def _shortest_number(value: float) -> float:
    return float(np.format_float_positional(np.float32(value)))


def fit_columns(values: Array, have: list[str], want: tuple[str, ...]) -> Array:
    """Reorder a file's columns to this version's; columns the file lacks are NaN, unknown ones are dropped."""
    if list(have) == list(want):
        return values
    if values.shape[-1] != len(have):
        raise RecordError(f"{values.shape[-1]} columns of values, {len(have)} names")
    place = {name: i for i, name in enumerate(have)}
    missing = np.full(values.shape[:-1], np.nan, dtype=values.dtype)
    return np.stack([values[..., place[name]] if name in place else missing for name in want], axis=-1)
