"""Gradients that fade on their way through the layers, or with time."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding, describe_layers
from thermoclaw.diagnosis.rules.noise import rests_high
from thermoclaw.diagnosis.selection import chosen, names_of, tell
from thermoclaw.diagnosis.signals import (
    Mask,
    average,
    held,
    largest,
    median_over,
    trailing_mean,
    weights_of,
)
from thermoclaw.diagnosis.view import view_of
from thermoclaw.quantities import Array
from thermoclaw.record import Record

VANISH_RATIO, VANISH_HIGH, VANISH_ROWS, VANISH_MOVES = 2e-3, 3e-4, 20, 0.3
VANISH_STUCK, STUCK, GUESSED = 1e-3, 0.85, 0.97
BROKEN, ZEROS = 2.0, 0.95  # of the first loss; of a gradient's elements
GONE, GONE_HIGH, GONE_KEEPS, GONE_LOST, GONE_ROWS = 1e-2, 1e-3, 0.9, 3.0, 30
BRANCH_LAYERS, BRANCH_RATIO, BRANCH_SHARE, BRANCH_FADES, BRANCH_FROM = 6, 1e-6, 0.4, 200.0, 60
ONE_DROP = 0.5  # of the whole, in logarithms
NEVER_SIZE, NEVER_MOVES, NEVER_RATE, NEVER_ROWS = 1e-8, 1e-8, 1e-5, 40


def depth_profile(record: Record) -> tuple[Mask, Array] | None:
    """Weight layers in order of depth and the root mean square of their gradients, [T, n]."""
    if len(record) < 20:
        return None
    mask = weights_of(record) & ~view_of(record).tables
    mask &= ((record["has_grad"] > 0).mean(axis=0) > 0.5) & view_of(record).began_with_weights
    if mask.sum() < 4:
        return None
    sizes = np.array([layer.num_params for layer in record.layers], dtype=float)[mask]
    return mask, np.sqrt(record["grad_sq"][:, mask] / sizes)


def vanishing_gradients(record: Record) -> Finding | None:
    """Early layers get next to no gradient and do not move; or all have lost it, and the loss is as high as ever."""
    return _early_layers(record) or _everywhere(record) or _never_any(record) or _in_branches(record)


def _in_branches(record: Record) -> Finding | None:
    """Many layers get a millionth of what the loudest gets, wherever they stand, and nothing is learned."""
    view = view_of(record)
    mask = weights_of(record) & ~view.tables
    if view.loss is None or not view.newly_initialised or mask.sum() < BRANCH_LAYERS:
        return None
    sizes = np.sqrt(record["grad_sq"] / view.sizes)
    size = trailing_mean(np.where(mask & (sizes > 0), sizes, np.nan), 10)
    size = np.where(np.isfinite(size), size, np.inf)
    loudest = np.where(np.isfinite(size), size, 0.0).max(axis=1)
    tiny = size < BRANCH_RATIO * loudest[:, None]
    longest = np.where(tiny, size, 0.0).max(axis=1)
    fades = longest > BRANCH_FADES * np.where(tiny, size, np.inf).min(axis=1)  # behind zeros all are alike
    many = tiny.sum(axis=1) > BRANCH_SHARE * mask.sum()
    span = held(_stuck(record) & many & fades & (record["step"] > BRANCH_FROM), VANISH_ROWS)
    if span is None:
        return None
    row = span[1]
    names = describe_layers(chosen(record, tiny[row]), len(record.layers))
    share = float(np.median(size[row][tiny[row]]) / loudest[row])
    return tell(
        record,
        "vanishing_gradients",
        "HIGH",
        (0, row),
        mask=tiny[row],
        title="vanishing gradients",
        seen=f"The gradient of {names} is {share:.1e} of the loudest layer's per weight, and after "
        f"{int(record.steps[row])} steps the loss is about what it was.",
        meaning="The signal dies on its way back through each branch; layers in front stay at their initial values.",
        advice="Use residual connections or normalization, a non-saturating activation, or an initialization that "
        "keeps the variance from layer to layer.",
        source="AutoTrainer (Zhang et al., ICSE 2021), per weight; Glorot and Bengio 2010",
        evidence={"gradient_ratio": share, "layers": float(tiny[row].sum())},
    )


def _everywhere(record: Record) -> Finding | None:
    """The gradient has fallen to a hundredth of what it was, and the loss has not fallen."""
    view = view_of(record)
    first = average(record.loss[:5])
    if not view.fresh or view.loss is None or not first > 0:
        return None
    level, size = trailing_mean(record.loss, 10), trailing_mean(view.grad, 10)
    top = np.maximum.accumulate(np.nan_to_num(trailing_mean(view.grad, 3)))
    hit = (size > 0) & (size < GONE * top) & (level > GONE_KEEPS * first) & (level < GONE_LOST * first)
    span = held(hit & (np.arange(len(level)) >= VANISH_ROWS), GONE_ROWS)
    if span is None:
        return None
    start, row = span
    share = float(size[row] / top[row])
    return tell(
        record,
        "vanishing_gradients",
        "HIGH" if share < GONE_HIGH else "MEDIUM",
        span,
        title="the gradient is gone, and the loss is not",
        seen=f"Since step {int(record.steps[start])} the gradient is below {GONE:.0%} of its largest norm, now "
        f"{share:.1e} of it, while the loss stands at {level[row]:.4g}, against {first:.4g} at the start.",
        meaning="The weights are where the loss is flat and high: outputs are saturated, units are off, or the weights "
        "were thrown there.",
        advice="Look at the outputs: where all are at the end of a sigmoid, tanh or softmax, check that targets lie in "
        "its range and inputs are normalized; lower the learning rate, and start again.",
        source="LeCun et al. 1998, Efficient BackProp: saturated units; docs: diagnosis",
        evidence={"gradient_left": share, "loss": float(level[row]), "loss_at_start": first},
    )


def _never_any(record: Record) -> Finding | None:
    """Since the first step gradients have been so small that no step of SGD changed a weight to speak of."""
    view = view_of(record)
    if not view.fresh or view.is_unit_size:
        return None
    size = median_over(np.sqrt(record["grad_sq"] / view.sizes), view.big)
    small = (size > 0) & (size < NEVER_SIZE) & (view.update_ratio < NEVER_MOVES) & (view.lr > NEVER_RATE)
    span = held(small, NEVER_ROWS)
    if span is None or span[0] > 0:
        return None
    row = span[1]
    return tell(
        record,
        "vanishing_gradients",
        "HIGH",
        span,
        title="there has been next to no gradient since the first step",
        seen=f"In {int(record.steps[row])} steps at a learning rate of {view.lr[row]:.2g} no gradient was larger than "
        f"{largest(size[: row + 1]):.1e} a weight, and a step changes a typical layer by {view.update_ratio[row]:.1e} "
        "of its norm: less than its number format resolves.",
        meaning="The loss as it is computed hardly depends on the weights.",
        advice="Look at what the loss is multiplied or divided by: a temperature without its square, a mean over too "
        "much, a product of small numbers, a saturated output.",
        source="IEEE 754: float32 resolves 6e-8; Hinton et al. 2015 (arXiv 1503.02531) for the square",
        evidence={"grad_rms": float(size[row]), "update_ratio": float(view.update_ratio[row])},
    )


def _early_layers(record: Record) -> Finding | None:
    profile = depth_profile(record)
    if profile is None:
        return None
    mask, rms = profile
    quarter = max(rms.shape[1] // 4, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.median(rms[:, :quarter], axis=1) / np.median(rms[:, -quarter:], axis=1)
    alive = np.isfinite(ratio) & (ratio > 0) & (np.nanmax(np.nan_to_num(record["lr"]), axis=1) > 0)
    moved, ends = (
        median_over(record["update_ratio"][:, mask], which)
        for which in (np.arange(rms.shape[1]) < quarter, np.arange(rms.shape[1]) >= rms.shape[1] - quarter)
    )
    if view_of(record).is_unit_size:  # its steps do not follow the gradient: where they are alike, nothing is lost
        alive &= ~(moved > VANISH_MOVES * ends) | (
            (ratio < VANISH_STUCK) & (_stuck(record) | rests_high(view_of(record)))
        )
    alive &= _fades(rms) & ~_exploded(record) & ~_are_zero(record, np.flatnonzero(mask)[:quarter].tolist())
    span = held(alive & (ratio < VANISH_RATIO), VANISH_ROWS)
    if span is None:
        return None
    start, row = span
    early = np.zeros(len(record.layers), dtype=bool)
    early[np.flatnonzero(mask)[:quarter]] = True
    names = describe_layers(chosen(record, early), len(record.layers))
    return Finding(
        code="vanishing_gradients",
        confidence="HIGH" if ratio[row] < VANISH_HIGH else "MEDIUM",
        title="vanishing gradients",
        seen=f"The gradient of {names} is {ratio[row]:.1e} of the last layers' per weight, and a step moves them by "
        f"{moved[row]:.1e} of their norm.",
        meaning="The signal dies on its way back; the early layers stay at their initial values.",
        advice="Use residual connections or normalization, a non-saturating activation, or an initialization that "
        "keeps the variance from layer to layer.",
        source="AutoTrainer (Zhang et al., ICSE 2021), per weight and over the whole early quarter",
        first_step=int(record.steps[start]),
        raised_step=int(record.steps[row]),
        layers=names_of(record, early),
        evidence={"gradient_ratio": float(ratio[row]), "update_ratio": float(moved[row])},
    )


def _stuck(record: Record) -> Mask:
    """Where the loss of a new run is about what it was at first, or what guessing gives, [T]."""
    view, first = view_of(record), average(record.loss[:5])
    late = trailing_mean(record.loss, 20)
    high = (late > STUCK * first) | (late > GUESSED * view.chance)
    return np.asarray(high & (first > 0) & (record["step"] > 25) & view.fresh)


def _are_zero(record: Record, layers: list[int]) -> Mask:
    """Where next to all gradient elements of those layers are exactly zero: units are off, or all is flushed, [T]."""
    zeros = view_of(record).optional("grad_zeros")[:, layers]
    known = np.isfinite(zeros).all(axis=1)
    last = np.maximum.accumulate(np.where(known, np.arange(len(zeros)), -1))
    return np.asarray((last >= 0) & (np.median(zeros[np.maximum(last, 0)], axis=1) > ZEROS))


def _exploded(record: Record) -> Mask:
    """Where the loss stands at a multiple of the first one: then it is steps that broke what gradients pass, [T]."""
    first = average(record.loss[:5])
    late = trailing_mean(record.loss, 5)
    return np.asarray((late > BROKEN * first) & (first > 0) & view_of(record).fresh)


def _fades(rms: Array) -> Mask:
    """Where gradients fade from layer to layer: one drop alone parts branches, or a layer that is off, [T]."""
    with np.errstate(divide="ignore"):
        size = np.log(np.maximum(trailing_mean(rms, 10), 1e-45))
    return np.asarray(np.diff(size, axis=1).max(axis=1) < ONE_DROP * (size[:, -1] - size[:, 0]))
