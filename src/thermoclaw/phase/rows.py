"""Rows of numbers by parameter, put together by layer and for the whole model, and kept within bounds. No torch.

Legend: P parameters, C columns, G groups (the whole model, then each layer).
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from thermoclaw.phase.config import MOST_SAMPLED
from thermoclaw.phase.phases import Phase

Array = NDArray[np.float64]

COLUMNS = (
    "delta",
    "param_sq",
    "grad_sq",
    "order",
    "sample_sq",
    "turn_re",  # inner product with the sample before
    "turn_im",
    "first_re",  # inner product with the first sample
    "first_im",
)
COLUMN = {name: i for i, name in enumerate(COLUMNS)}


@dataclass(frozen=True)
class Piece:
    """A parameter as it is measured.

    Args:
        layer, name: of the parameter.
        size: real numbers in it.
        kept: values of it in a sample.
        is_complex: whether values come in pairs.
        is_weight: whether it is a matrix (or an array whose shape is not known), so that its values have a lattice.
    """

    layer: str
    name: str
    size: int
    kept: int
    is_complex: bool
    is_weight: bool


def weighted_mean(values: Array, weights: Array) -> float:
    """Mean over what is defined; NaN where nothing is."""
    good = np.isfinite(values) & (weights > 0)
    return float(np.average(values[good], weights=weights[good])) if good.any() else math.nan


def largest(values: Array) -> float:
    """The maximum, NaN where any value is."""
    return float(np.max(values)) if len(values) else math.nan


def known_sum(values: Array) -> float:
    """Sum of what is defined; NaN where nothing is."""
    good = ~np.isnan(values)
    return float(values[good].sum()) if good.any() else math.nan


@dataclass
class Path:
    """The way of one group's weights: how far they turned, and with which phase."""

    angle: float = 0.0  # Σ of the angles between successive weights
    net: float = 0.0  # angle between the first and the last
    reversals: int = 0  # steps after which weights point the other way
    phase: float = 0.0  # Σ arg⟨w_{t−1}, w_t⟩ of complex weights
    closing: float = 0.0  # arg⟨w_T, w_0⟩
    overlap: float = math.nan  # |⟨ŵ_0, ŵ_T⟩| of complex weights

    @property
    def berry_phase(self) -> float:
        """Discrete Pancharatnam phase of the loop that the last link closes, not wrapped."""
        return self.phase + self.closing


@dataclass
class Groups:
    """Which parameters make the model and its layers.

    Args:
        pieces: P parameters.
        names: "" for the model, then the layers.
        members: by group, places of its parameters.
    """

    pieces: list[Piece]
    names: list[str] = field(init=False)
    members: list[NDArray[np.int64]] = field(init=False)

    def __post_init__(self) -> None:
        layers = list(dict.fromkeys(p.layer for p in self.pieces))
        self.names = ["", *layers]
        self.members = [np.arange(len(self.pieces))]
        self.members += [np.flatnonzero([p.layer == name for p in self.pieces]) for name in layers]
        self.sizes = np.array([p.size for p in self.pieces], dtype=float)
        sampled = np.array([min(p.size, MOST_SAMPLED) for p in self.pieces], dtype=float)
        self.scale = self.sizes / sampled  # what a sampled square stands for
        self.is_complex = np.array([p.is_complex for p in self.pieces])


class History:
    """Rows of the last steps, and what is told about all of them.

    Args:
        groups: of the parameters.
        steps: rows kept.
    """

    def __init__(self, groups: Groups, *, steps: int) -> None:
        self.groups = groups
        self.rows: deque[Array] = deque(maxlen=steps)
        self.paths = [Path() for _ in groups.names]

    def append(self, row: Array) -> None:
        """One step's row [P, C]."""
        before = self.rows[-1] if self.rows else None
        for path, members in zip(self.paths, self.groups.members, strict=True):
            self._turn(path, members, row, before)
        self.rows.append(row)

    def _turn(self, path: Path, members: NDArray[np.int64], row: Array, before: Array | None) -> None:
        scale = self.groups.scale[members]

        def total(name: str, of: Array, where: NDArray[np.bool_] | None = None) -> float:
            values = of[members, COLUMN[name]] * scale
            return float(values.sum() if where is None else values[where].sum())

        if before is None:
            self._start = row
            return
        here, there, start = (total("sample_sq", of) for of in (row, before, self._start))
        turn = total("turn_re", row)
        step = _angle(turn, here, there)
        if math.isnan(step):  # weights that are not finite, or all zero, have no direction
            return
        path.angle += step
        path.net = _angle(total("first_re", row), here, start)
        path.reversals += turn < 0
        mask = self.groups.is_complex[members]
        if mask.any():
            z0 = complex(total("first_re", row, mask), total("first_im", row, mask))
            path.phase += math.atan2(total("turn_im", row, mask), total("turn_re", row, mask))
            path.closing = -math.atan2(z0.imag, z0.real)
            length = math.sqrt(total("sample_sq", row, mask) * total("sample_sq", self._start, mask))
            path.overlap = abs(z0) / length if length > 0 else math.nan

    def column(self, name: str, group: int) -> Array:
        """A column by step, over a group: the sum of squares, the largest δ, the mean order."""
        return np.array([self.reduce(row, name, group) for row in self.rows])

    def reduce(self, row: Array, name: str, group: int) -> float:
        """One row's number for a group."""
        members = self.groups.members[group]
        values = row[members, COLUMN[name]]
        if name == "delta":
            return largest(values)
        return weighted_mean(values, self.groups.sizes[members]) if name == "order" else known_sum(values)


def _angle(inner: float, a_sq: float, b_sq: float) -> float:
    """Angle between two vectors from their inner products; NaN where one is zero."""
    if not (a_sq > 0 and b_sq > 0 and math.isfinite(inner + a_sq + b_sq)):
        return math.nan
    return math.atan2(math.sqrt(max(a_sq * b_sq - inner * inner, 0.0)), inner)


class Tally:
    """Mean, deviation and range of δ, and how often each phase was, over all steps."""

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0
        self.low, self.high = math.inf, -math.inf
        self.phases: Counter[Phase] = Counter()

    def add(self, delta: float, phase: Phase) -> None:
        """One step (Welford's recurrence)."""
        self.phases[phase] += 1
        if not math.isfinite(delta):
            return
        self.count += 1
        gap = delta - self.mean
        self.mean += gap / self.count
        self._squares += gap * (delta - self.mean)
        self.low, self.high = min(self.low, delta), max(self.high, delta)

    @property
    def std(self) -> float:
        """Standard deviation of δ."""
        return math.sqrt(self._squares / self.count) if self.count else math.nan
