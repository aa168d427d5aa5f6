"""What is remembered from row to row, with bounded memory: the last rows, exponential means, a running median.

Legend: B rows, L layers, S series.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from thermoclaw.quantities import Array
from thermoclaw.state import StateError, array, count, maybe_array, take

SMOOTHING = 0.95
"""Weight of the past in every exponential mean."""

HORIZON = round((1 + SMOOTHING) / (1 - SMOOTHING))
"""Effective number of steps in such a mean: 39."""

BASELINE_EVERY = 4  # rows between two renewals of a running median


class Lagged:
    """The last rows of a series, put before the next block."""

    def __init__(self, depth: int) -> None:
        self._rows: deque[Array] = deque(maxlen=depth)
        self.depth = depth

    def extend(self, values: Array) -> Array:
        """[B, L] → [depth + B, L] with NaN where nothing was seen yet; remembers the tail."""
        width = values.shape[1]
        joined = np.full((self.depth + len(values), width), np.nan)
        for place, row in enumerate(self._rows, self.depth - len(self._rows)):
            joined[place, : len(row)] = row[:width]
        joined[self.depth :] = values
        for row in joined[-self.depth :]:
            self._rows.append(row)
        return joined

    def state(self, width: int) -> Array:
        """The rows [≤ depth, L]."""
        return np.array(self._rows).reshape(len(self._rows), -1 if self._rows else width)

    def load(self, rows: Array) -> None:
        """Go on from `state`."""
        self._rows = deque(rows.copy(), maxlen=self.depth)


class Smoother:
    """Bias-corrected exponential means of several series; a value that is not finite leaves its mean as it was.

    Args:
        names: of the series.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._sum = np.zeros((len(names), 0))
        self._weight = np.zeros((len(names), 0))

    def widen(self, num_layers: int) -> None:
        """Have so many layers from here on; they may only be added."""
        extra = ((0, 0), (0, num_layers - self._sum.shape[1]))
        self._sum, self._weight = np.pad(self._sum, extra), np.pad(self._weight, extra)

    def state_dict(self) -> dict[str, Any]:
        """Sums and weights [S, L]."""
        return {"series": self._names, "sum": self._sum, "weight": self._weight}

    def load_state_dict(self, state: Any) -> None:
        """Go on from `state_dict`."""
        if take(state, "series", list) != self._names:
            raise StateError(f"it smooths {state['series']}, and this version {self._names}")
        self._sum, self._weight = (array(state, name, *self._sum.shape) for name in ("sum", "weight"))

    def push(self, values: Array) -> Array:
        """[S, L] → the means [S, L], NaN before the first finite value."""
        good = np.isfinite(values)
        old, new = SMOOTHING, 1.0 - SMOOTHING
        if good.all():
            self._sum = old * self._sum + new * values
            self._weight = old * self._weight + new
            return self._sum / self._weight
        self._sum = np.where(good, old * self._sum + new * np.where(good, values, 0.0), self._sum)
        self._weight = np.where(good, old * self._weight + new, self._weight)
        return np.where(self._weight > 0, self._sum / np.maximum(self._weight, 1e-300), np.nan)


class Baseline:
    """The running median of a series, renewed every few rows.

    Args:
        window: rows that it is of.
    """

    def __init__(self, window: int) -> None:
        self._samples: deque[Array] = deque(maxlen=max(window // BASELINE_EVERY, 1))
        self._median: Array | None = None
        self._num_rows = 0

    def push(self, values: Array) -> Array:
        """[L] → the median [L]."""
        if self._num_rows % BASELINE_EVERY == 0 or self._median is None:
            if self._samples and len(self._samples[0]) != len(values):
                self._samples = deque(self._padded(len(values)), maxlen=self._samples.maxlen)
            self._samples.append(values.copy())  # not a view, which would keep its whole block
            window = np.array(self._samples)
            bad = np.isnan(window)
            self._median = _nanmedian(window, bad) if bad.any() else np.median(window, axis=0)
        elif len(self._median) != len(values):
            self._median = _widened(self._median, len(values))
        self._num_rows += 1
        return self._median

    def _padded(self, num_layers: int) -> list[Array]:
        return [_widened(sample, num_layers) for sample in self._samples]

    def state_dict(self, num_layers: int) -> dict[str, Any]:
        """Samples [≤ window / 4, L], the median that they had, and the rows so far."""
        samples = np.array(self._padded(num_layers)).reshape(len(self._samples), num_layers)
        return {"samples": samples, "baseline": self._median, "num_rows": self._num_rows}

    def load_state_dict(self, state: Any, num_layers: int) -> None:
        """Go on from `state_dict`."""
        self._samples = deque(array(state, "samples", None, num_layers), maxlen=self._samples.maxlen)
        median = maybe_array(state, "baseline", None)
        self._median = None if median is None else median[:num_layers]
        self._num_rows = count(state, "num_rows")


def _widened(values: Array, num_layers: int) -> Array:
    """With NaN for layers that joined later."""
    return np.pad(values, (0, num_layers - len(values)), constant_values=np.nan)


def _nanmedian(window: Array, bad: Array) -> Array:
    """Median over rows that ignores NaN; NaN where there is nothing else."""
    empty = bad.all(axis=0)
    return np.where(empty, np.nan, np.nanmedian(np.where(empty, 0.0, window), axis=0))
