"""Numbers as the pictures need them: smoothed, binned, thinned, gathered by layer type. Numpy only.

Legend: T recorded steps, L layers, B bins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from thermoclaw.quantities import R_IE_CAP, Array
from thermoclaw.record import Record

LAYER_TYPES = ("embedding", "attention", "mlp", "layernorm", "lm_head", "generic")
"""The order in which layer types are listed and colored."""

SPLIT_PARTS = ("d_eS", "d_iS_momentum", "d_iS_noise", "d_iS_wd")
"""The parts of the entropy production, from the productive one upwards."""


@dataclass(frozen=True)
class Bins:
    """Consecutive rows gathered into at most so many bins.

    Attributes:
        starts: first row of each bin, [B].
        edges: step numbers between which each bin is drawn, [B + 1].
    """

    starts: Any
    edges: Array


def make_bins(steps: Array, limit: int) -> Bins:
    """Split the rows into at most `limit` bins of equal numbers of rows; edges lie half-way between neighbors."""
    num_rows = len(steps)
    if num_rows == 0:
        return Bins(np.zeros(0, dtype=int), np.array([0.0, 1.0]))
    starts = np.unique(np.linspace(0, num_rows, min(limit, num_rows) + 1).astype(int)[:-1])
    inner = 0.5 * (steps[starts[1:]] + steps[starts[1:] - 1])
    return Bins(starts, np.concatenate([[steps[0] - 0.5], inner, [steps[-1] + 0.5]]))


def bin_sum(values: Array, bins: Bins) -> Array:
    """Sum over the rows of each bin, what is not finite left out; NaN where nothing is left. [T, ...] → [B, ...]."""
    good = np.isfinite(values)
    total = np.add.reduceat(np.where(good, values, 0.0), bins.starts, axis=0)
    return np.where(np.add.reduceat(good, bins.starts, axis=0, dtype=int) > 0, total, np.nan)


def bin_mean(values: Array, bins: Bins) -> Array:
    """Mean over the rows of each bin, what is not finite left out; NaN where nothing is left. [T, ...] → [B, ...]."""
    count = np.add.reduceat(np.isfinite(values), bins.starts, axis=0, dtype=int)
    return bin_sum(values, bins) / np.maximum(count, 1)


def smoothing_width(num_rows: int) -> int:
    """Rows in the running mean: a fortieth of the run, an odd number, one (no smoothing) for short runs."""
    width = max(1, num_rows // 40)
    return width if width % 2 else width + 1


def smooth(values: Array, width: int, *, log: bool = False) -> Array:
    """Centered running mean over `width` rows, in logarithms where asked; it starts and ends with the finite data.

    Args:
        values: the series, [T]; what is not finite (with `log`: not positive) is left out.
        width: rows in the window, odd.
        log: take the mean of logarithms, as a curve on a logarithmic axis wants.

    Returns:
        The smoothed series, [T], NaN where the window holds nothing.
    """
    good = np.isfinite(values) & ((values > 0) | (not log))
    if not good.any():
        return np.full(len(values), np.nan)
    numbers = np.where(good, values, 1.0)
    filled = np.where(good, np.log(numbers) if log else numbers, 0.0)
    window = np.ones(min(width, 2 * len(values) - 1))
    half = len(window) // 2
    total = np.convolve(np.pad(filled, half), window, mode="valid")
    count = np.convolve(np.pad(good.astype(float), half), window, mode="valid")
    where = np.flatnonzero(good)
    inside = (count > 0.5) & (np.arange(len(values)) >= where[0]) & (np.arange(len(values)) <= where[-1])
    mean = np.where(inside, total / np.maximum(count, 1.0), np.nan)
    return np.exp(mean) if log else mean


def median_over_layers(values: Array) -> Array:
    """Median of the finite values of each row, NaN where there is none. [T, L] → [T]."""
    ordered = np.sort(np.where(np.isfinite(values), values, np.nan), axis=1)  # NaN goes last
    count = np.isfinite(ordered).sum(axis=1)
    rows = np.arange(len(values))
    low, high = np.maximum(count - 1, 0) // 2, count // 2
    high = np.minimum(high, max(values.shape[1] - 1, 0))
    return (
        np.where(count > 0, 0.5 * (ordered[rows, low] + ordered[rows, high]), np.nan)
        if values.shape[1]
        else (np.full(len(values), np.nan))
    )


def sum_over_layers(values: Array) -> Array:
    """Sum of the finite values of each row, NaN where there is none. [T, L] → [T]."""
    good = np.isfinite(values)
    return np.where(good.any(axis=1), np.where(good, values, 0.0).sum(axis=1), np.nan)


def layer_types(record: Record) -> list[str]:
    """The layer types that occur, in the house order; unknown ones follow."""
    have = dict.fromkeys(layer.ltype for layer in record.layers)
    return [t for t in LAYER_TYPES if t in have] + [t for t in have if t not in LAYER_TYPES]


def by_type(record: Record, name: str, reduce: Callable[[Array], Array]) -> dict[str, Array]:
    """A layer quantity reduced over the layers of each type, {type: [T]}; types without a finite value are left out."""
    values = record[name]
    types = np.array([layer.ltype for layer in record.layers], dtype=object)
    lines = {ltype: reduce(values[:, types == ltype]) for ltype in layer_types(record)}
    return {ltype: line for ltype, line in lines.items() if np.isfinite(line).any()}


def split_shares(parts: Iterable[Array]) -> list[Array]:
    """The parts of a whole as shares that sum to 1; NaN where the whole is not positive."""
    parts = list(parts)
    total = np.sum(parts, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return [np.where(total > 0, part / np.where(total > 0, total, 1.0), np.nan) for part in parts]


def ratio_of_means(record: Record, width: int) -> Array:
    """The model's R_ie as a ratio of running means, [T]: steps count by what flowed in them."""
    internal, external = smooth(record["total_d_iS"], width), smooth(record["total_d_eS"], width)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.minimum(internal / external, R_IE_CAP)
    return np.where(internal > 0, ratio, np.where(np.isfinite(internal), 0.0, np.nan))


def last_value(values: Array) -> float:
    """The last finite value, NaN if there is none."""
    good = values[np.isfinite(values)]
    return float(good[-1]) if len(good) else float("nan")


def silent_from(steps: Array, values: Array) -> float | None:
    """The step from which on no finite value came, if that is longer than any pause before; else None."""
    where = np.flatnonzero(np.isfinite(values))
    if len(where) == 0 or where[-1] == len(values) - 1:
        return None
    pause = int(np.diff(where).max()) if len(where) > 1 else 1
    return float(steps[where[-1] + 1]) if len(values) - 1 - where[-1] >= pause else None


def parting(steps: Array, one: Array, other: Array, *, log: bool = False) -> float | None:
    """The step from which on two series stay apart, by more than their noise and by more than 2 % of their size.

    Both series are smoothed over a fortieth of the run. "Apart" means that the smoothed curves differ by more than
    four standard errors of the running mean, estimated from what smoothing removed. None where they never part, or
    part only in the last twentieth.

    Args:
        steps: step numbers that both series share, [T].
        one: the reference, [T].
        other: the series to compare, [T].
        log: compare logarithms, for series that span decades; what is not positive is left out.

    Returns:
        The first step of the final stretch that they spend apart, or None.
    """
    num_rows = len(steps)
    if num_rows < 3:
        return None
    width = smoothing_width(num_rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        one, other = (np.log(one), np.log(other)) if log else (one, other)
    a, b = smooth(one, width), smooth(other, width)
    both = np.isfinite(a) & np.isfinite(b)
    if not both.any():
        return None
    with np.errstate(invalid="ignore"):
        rest = np.concatenate([(one - a)[both], (other - b)[both]])
        rest = rest[np.isfinite(rest)]
        noise = 1.4826 * float(np.median(np.abs(rest))) if len(rest) else 0.0
        size = 1.0 if log else np.maximum(np.abs(a), np.abs(b))
        near = np.abs(a - b) <= np.maximum(4.0 * noise * np.sqrt(2.0 / width), 0.02 * size)
    lost = np.isfinite(a) != np.isfinite(b)  # one of the two has no value any more
    together = np.flatnonzero((near | ~both) & ~lost)
    first = int(together[-1]) + 1 if len(together) else 0
    if num_rows - first < max(2, num_rows // 20):
        return None
    return float(steps[first])


def series_of(record: Record, name: str, *, width: int = 1) -> Array:
    """A quantity as one series per run, [T]: η as the median over layers, σ as the sum, R_ie as a ratio of means."""
    if name == "lr":
        return median_over_layers(record["lr"])
    if name == "sigma":
        return sum_over_layers(record["sigma"])
    if name == "R_ie_total":
        return ratio_of_means(record, width)
    return record[name]


def parts_at(record: Record, reference: Record, name: str, *, log: bool = False) -> float | None:
    """Where a run parts from the reference in one quantity, on the steps that both recorded; None where it does not."""
    if record is reference:
        return None
    steps, mine, theirs = np.intersect1d(record.steps, reference.steps, return_indices=True)
    one, other = series_of(reference, name)[theirs], series_of(record, name)[mine]
    if name == "R_ie_total":  # the share of overhead, which has no wild values
        one, other = one / (1 + one), other / (1 + other)
    return parting(steps.astype(float), one, other, log=log)
