"""Causal signals that rules share: each value at a row depends on that row and earlier ones only.

So a rule gives the same first step live, after the run, and on a record from disk.

Legend: T rows, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thermoclaw.quantities import Array
from thermoclaw.record import Record

Mask = NDArray[np.bool_]


def trailing_mean(values: Array, window: int) -> Array:
    """Mean over the last `window` rows along axis 0, NaN ignored; NaN where there is nothing."""
    good = np.isfinite(values)
    total = np.cumsum(np.where(good, values, 0.0), axis=0, dtype=np.float64)
    count = np.cumsum(good, axis=0)
    if len(values) > window:
        total[window:] = total[window:] - total[:-window]
        count[window:] = count[window:] - count[:-window]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def trailing_max(values: Array, window: int) -> Array:
    """Maximum over the last `window` rows along axis 0, NaN ignored; −Inf where there is nothing."""
    padded = np.concatenate(
        [np.full((window - 1, *values.shape[1:]), -np.inf), np.where(np.isnan(values), -np.inf, values)]
    )
    return np.asarray(np.lib.stride_tricks.sliding_window_view(padded, window, axis=0).max(axis=-1))


def trailing_median(values: Array, window: int) -> Array:
    """Median over the last `window` rows, [T]; NaN until there are so many, and where any of them is."""
    padded = np.concatenate([np.full(window - 1, np.nan), values])
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, window), axis=-1))


def trailing_second(values: Array, window: int) -> Array:
    """The largest but one of the last `window` rows, [T]; NaN until there are so many, and where any of them is."""
    padded = np.concatenate([np.full(window - 1, np.nan), values])
    rows = np.lib.stride_tricks.sliding_window_view(padded, window)
    return np.asarray(np.where(np.isnan(rows).any(axis=1), np.nan, np.partition(rows, window - 2, axis=1)[:, -2]))


def trailing_min(values: Array, window: int) -> Array:
    """Minimum over the last `window` rows along axis 0; NaN where any of them is."""
    padded = np.concatenate([np.full((window - 1, *values.shape[1:]), np.inf), values])
    return np.asarray(np.lib.stride_tricks.sliding_window_view(padded, window, axis=0).min(axis=-1))


def weighted_median(values: Array, weights: Array) -> Array:
    """Median over layers that counts each by its weight, [T]; NaN ignored, NaN where there is nothing."""
    good = np.isfinite(values)
    order = np.argsort(np.where(good, values, np.inf), axis=1)
    mass = np.take_along_axis(np.where(good, weights, 0.0), order, axis=1).cumsum(axis=1)
    at = np.argmax(mass >= 0.5 * mass[:, -1:], axis=1)
    row = np.arange(len(values))
    return np.where(good.any(axis=1), values[row, order[row, at]], np.nan)


def first_known(values: Array) -> Array:
    """The first value of each layer that is not NaN, [L]; NaN where there is none."""
    good = np.isfinite(values)
    return np.where(good.any(axis=0), values[np.argmax(good, axis=0), np.arange(values.shape[1])], np.nan)


def middle(values: Array) -> float:
    """Median of what is a number; NaN, and no warning, where nothing is."""
    good = values[np.isfinite(values)]
    return float(np.median(good)) if len(good) else float("nan")


def average(values: Array) -> float:
    """Mean of what is a number; NaN, and no warning, where nothing is."""
    good = values[np.isfinite(values)]
    return float(good.mean()) if len(good) else float("nan")


def largest(values: Array) -> float:
    """Largest of what is a number; NaN, and no warning, where nothing is."""
    good = values[np.isfinite(values)]
    return float(good.max()) if len(good) else float("nan")


def over(top: Array, bottom: Array) -> Array:
    """top / bottom, Inf or NaN where bottom is zero, silent about it."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.asarray(top / bottom)


def lagged(values: Array, rows: int) -> Array:
    """The value `rows` rows ago; the first value before that."""
    return np.concatenate([np.repeat(values[:1], min(rows, len(values)), axis=0), values[: max(len(values) - rows, 0)]])


def held(condition: Mask, rows: int) -> tuple[int, int] | None:
    """(start, confirmed) of the first stretch of at least `rows` rows in which the condition holds."""
    if np.count_nonzero(condition) < rows:
        return None
    place = np.arange(len(condition))
    run = place - np.maximum.accumulate(np.where(condition, -1, place))
    confirmed = int(np.argmax(run >= rows))
    return (confirmed - rows + 1, confirmed) if run[confirmed] >= rows else None


def median_over(values: Array, layers: Mask) -> Array:
    """Median over the chosen layers, [T]; NaN ignored, NaN where there is nothing."""
    chosen = values[:, layers]
    if chosen.shape[1] == 0:
        return np.full(len(values), np.nan)
    good = np.isfinite(chosen)
    ordered = np.sort(np.where(good, chosen, np.inf), axis=1)  # what does not count comes last
    count = good.sum(axis=1)
    row, last = np.arange(len(values)), np.maximum(count - 1, 0)
    low, high = ordered[row, last // 2], ordered[row, (last + 1) // 2]
    with np.errstate(over="ignore"):
        middle = np.where(count % 2 == 1, low, (low + high) / 2)
    return np.where(count > 0, middle, np.nan)


def lower_quartile(values: Array, layers: Mask) -> Array:
    """What three of four of the chosen layers exceed, [T]; NaN counts as least."""
    chosen = np.sort(np.where(np.isnan(values[:, layers]), -np.inf, values[:, layers]), axis=1)
    return chosen[:, chosen.shape[1] // 4] if chosen.shape[1] else np.full(len(values), np.nan)


def weights_of(record: Record, *, least: int = 64) -> Mask:
    """Layers with real weight matrices: not norms, and at least `least` parameters (all layers if none has)."""
    big = np.array([layer.num_params >= least and layer.ltype != "layernorm" for layer in record.layers], dtype=bool)
    if not big.any():
        big = np.array([layer.num_params > 0 for layer in record.layers], dtype=bool)
    return big


@dataclass(frozen=True)
class LossView:
    """The loss, smoothed, with its start, its best so far, and how noisy it is from step to step, [T] each."""

    smooth: Array
    start: float
    best: Array
    noise: Array

    @classmethod
    def of(cls, record: Record, *, window: int = 10) -> LossView | None:
        """None where the run has fewer than five losses."""
        loss = record.loss
        finite = np.flatnonzero(np.isfinite(loss))
        if len(finite) < 5:
            return None
        smooth = trailing_mean(loss, window)
        fresh = int(record.steps[0]) == 1  # then the first loss is that of the untouched model
        start = float(loss[finite[0]]) if fresh else float(np.median(loss[finite[:3]]))
        best = np.fmin.accumulate(np.where(np.isfinite(smooth), smooth, np.inf))
        jumps = np.abs(np.diff(np.where(np.isfinite(loss), loss, np.nan), prepend=np.nan))
        noise = 1.25 / np.sqrt(2.0) * trailing_mean(jumps, 50)  # mean |difference| of Gaussian noise → its deviation
        return cls(smooth, start, best, np.where(np.isfinite(noise), noise, 0.0))

    def lost(self, *, window: int = 10) -> Mask:
        """Where the loss stands above its start, or has given back more than half of what it had gained."""
        margin = 4.0 * self.noise / np.sqrt(window)
        gained = np.maximum(self.start - self.best, 0.0)
        above_start = self.smooth > self.start + margin + 0.02 * abs(self.start)
        given_back = (self.smooth - self.best > 0.5 * gained + margin) & (gained > 2.0 * margin)
        return np.asarray((above_start | given_back) & np.isfinite(self.smooth))

    def stuck(self, *, window: int = 10) -> Mask:
        """Where the loss never came clearly below its start."""
        margin = 4.0 * self.noise / np.sqrt(window)
        return np.asarray(self.start - self.best < margin + 0.01 * abs(self.start))


def decay_rate(record: Record) -> Array:
    """Free decay per step [T, L]: the rate at which decay alone shrinks weights that nothing rebuilds.

    ηλ for decoupled decay. Through SGD's momentum, θ obeys z² − (1 + β − ηλ)z + β = 0, whose larger root gives
    −ln|z|: about ηλ/(1 − β) while that is small, never more than −½ ln β. NaN for optimizers that rescale decay.
    """
    groups = record.meta.get("param_groups") or [{}]
    rate = record["lr"] * record["weight_decay"]
    if any(group.get("adaptive") for group in groups):
        return np.full_like(rate, np.nan)
    if any(group.get("decoupled") for group in groups):
        return rate
    beta = np.clip(record["momentum"], 0.0, 0.9999)
    middle = 0.5 * (1.0 + beta - rate)
    inner = middle**2 - beta
    modulus = np.where(inner >= 0, np.abs(middle) + np.sqrt(np.maximum(inner, 0.0)), np.sqrt(beta))
    return np.where(rate > 0, -np.log(np.clip(modulus, 1e-6, 1.0)), 0.0)


def free_decay(record: Record) -> Array:
    """−ln of what decay alone would have left of the weights since the first row, [T, L].

    Through SGD's momentum the buffer must fill first: x ← x − ηu, u ← βu + λx from x = 1, u = 0, and in the long run
    the rate of `decay_rate`, whichever is less.
    """
    gaps = step_gaps(record)
    free = np.nancumsum(decay_rate(record) * gaps[:, None], axis=0)
    groups = record.meta.get("param_groups") or [{}]
    if any(group.get("decoupled") or group.get("adaptive") for group in groups) or not len(record):
        return free
    left, buffer = np.ones(free.shape[1]), np.zeros(free.shape[1])
    for row, (lr, decay, beta) in enumerate(
        zip(record["lr"], record["weight_decay"], np.clip(record["momentum"], 0.0, 0.9999), strict=True)
    ):
        if gaps[row] > 1 or not np.isfinite(left).all():
            break
        buffer = beta * buffer + decay * left
        left = left - lr * buffer
        free[row] = np.fmin(free[row], -np.log(np.clip(np.abs(left), 1e-12, 1.0)))
    return free


def decay_pull(record: Record) -> Array:
    """Length of the decay part of a step over the step's own length, κλ‖θ‖/‖Δ‖ [T, L]."""
    groups = record.meta.get("param_groups") or [{}]
    pull = record["lr"] * record["weight_decay"]
    if not any(group.get("decoupled") or group.get("adaptive") for group in groups):
        pull = pull / (1.0 - np.clip(record["momentum"], 0.0, 0.9999))
    with np.errstate(divide="ignore", invalid="ignore"):
        return pull * record["param_norm"] / record["update_norm"]


def step_gaps(record: Record) -> Array:
    """Steps that each row stands for, [T] (more than one where history was thinned)."""
    return np.diff(record["step"], prepend=record["step"][:1] - 1) if len(record) else np.zeros(0)
