"""Runs that get nowhere because their steps are too short: by the rate itself, or by clipping."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.remedies import Remedy
from thermoclaw.diagnosis.rules import precision
from thermoclaw.diagnosis.selection import tell, two_digits
from thermoclaw.diagnosis.signals import Mask, average, held, trailing_max, trailing_mean, trailing_min
from thermoclaw.diagnosis.view import View, view_of
from thermoclaw.quantities import Array
from thermoclaw.record import Record

LOW_REACH, LOW_ROWS, LOW_GAIN = -0.4, 40, 0.02
LOW_UPDATE, LOW_PACE, LOW_PACE_HIGH = 2e-4, 3.0, 25.0
LOW_ROWS_TRAINED, LOW_UPDATE_TRAINED = 100, 1e-4  # a model that was trained before is moved with care
LOW_TINY, LOW_REACH_TINY = 2e-5, -0.2  # such steps are too short whatever the noise
LATE_ROWS, LATE_UPDATE, LATE_GAIN, LATE_REACH, LATE_PACE = 100, 6e-4, 0.01, -0.25, 10.0  # nothing gained for long
SHORT_REACH, SHORT_UPDATE, SHORT_ROWS = -0.75, 1.5e-4, 40  # of a model that is new
SHORT_SIGNAL, SHORT_NOISY = 0.3, 1e-4
STRAIGHT_REACH, STRAIGHT_USUAL, STRAIGHT_LONG = -0.92, 3e-3, 60
STRAIGHT_AGREES, STRAIGHT_SHORT, STRAIGHT_LEFT = 0.75, 5e-4, 0.85  # without noise less is enough
SHORT_LEFT, SHORT_PACE = 0.7, 3e-3  # of the first loss; what may be gained of it in a step
SHORT_NEEDED = 60.0  # steps that a tenth of the loss takes; in fewer a run gets somewhere, however straight it goes
NOWHERE_PATH, NOWHERE_ROWS = 0.01, 150  # all steps together
LOW_TARGET = 3e-3  # update ratio that the advice aims at: between fine-tuning and small models from scratch
CLIPPED_UPDATE, CLIPPED_GAIN = 6e-4, 0.15
CLIPPED_TO_NOTHING = 1e-6
STRAIGHT_UPDATE, STRAIGHT_BOUND, STRAIGHT_ROWS = 5e-5, 1e-2, 150
CLIP_ROWS, SAME_GRADIENT = 20, 0.999
USUAL_BOUND = 0.1  # and above: it is common to clip there, and then the rate is what holds steps back
VALUE_SPREAD, VALUE_PROBES = 1.03, 4  # nothing but clipping gives all layers gradient elements of one size


def _crawling(view: View, *, update: float = LOW_UPDATE, gain: float = LOW_GAIN) -> tuple[Mask, Array] | None:
    """Where the run descends all the time and gets nowhere, and the steps a tenth of the loss takes over those made."""
    record, loss = view.record, view.loss
    if loss is None or len(record) < LOW_ROWS:
        return None
    descent = -trailing_mean(view.overshoot, 40)
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = np.where(descent > 0, 0.1 * np.abs(loss.smooth) / descent, np.inf)
    pace = needed / np.maximum(record["step"], 1.0)
    ratio = trailing_mean(view.update_ratio, 20)
    first = average(record.loss[:10])
    little = first - trailing_mean(record.loss, 20) < gain * abs(first)
    where = (
        (view.reach < np.where(ratio < LOW_TINY, LOW_REACH_TINY, LOW_REACH))
        & (ratio < update)
        & little
        & (pace > LOW_PACE)
        & ~view.rate_rises
        & (view.lr > 0)
    )
    where &= np.arange(len(record)) >= LOW_ROWS
    nothing = (first - trailing_mean(record.loss, 20) < LATE_GAIN * abs(first)) & (
        loss.start - loss.best < LATE_GAIN * abs(loss.start)
    )
    late = (view.reach < LATE_REACH) & (ratio < LATE_UPDATE) & nothing & (pace > LATE_PACE)
    where |= late & ~view.rate_rises & (view.lr > 0) & (np.arange(len(record)) >= LATE_ROWS)
    where |= _never_curves(view, ratio, first) & (needed > SHORT_NEEDED)
    path = np.nancumsum(view.update_ratio)
    stands = (path < NOWHERE_PATH) & little & (np.arange(len(record)) >= NOWHERE_ROWS)
    where |= stands & (view.reach < 0) & (descent > 0) & ~view.rate_rises & (view.lr > 0)
    return np.asarray(where & np.isfinite(pace)), pace


def _never_curves(view: View, ratio: Array, first: float) -> Mask:
    """Where a new model has made many steps, each far within the region in which its gradient holds, [T]."""
    if not view.newly_initialised:
        return np.zeros(len(ratio), dtype=bool)  # a model that was trained before may be meant to move slowly
    left = np.maximum(SHORT_LEFT, 1.0 - SHORT_PACE * view.record["step"])
    signal = np.maximum(1.0 - trailing_mean(view.noise_share, SHORT_ROWS), SHORT_SIGNAL)
    noisy = (view.reach < SHORT_REACH * signal) & (ratio < SHORT_NOISY)  # of another batch only the signal is there
    short = (((view.reach < SHORT_REACH) & (ratio < SHORT_UPDATE)) | noisy) & ~view.rate_rises
    straight = (view.reach < STRAIGHT_REACH) & (ratio < STRAIGHT_USUAL) & ~view.rate_rises
    straight &= trailing_mean(straight.astype(float), STRAIGHT_LONG) > 0.99
    short = (short & (trailing_mean(view.record.loss, 20) > left * first)) | (
        straight & (trailing_mean(view.record.loss, 20) > SHORT_LEFT * first)
    )
    short |= (
        (view.reach < STRAIGHT_REACH * signal)
        & (trailing_mean(view.coherence, 20) > STRAIGHT_AGREES)
        & (ratio < STRAIGHT_SHORT)
        & (trailing_mean(view.record.loss, 20) > STRAIGHT_LEFT * first)
        & ~view.rate_rises
    )
    short &= view.lr > 0.3 * np.maximum.accumulate(view.lr)
    return np.asarray(
        short & (trailing_mean(short.astype(float), SHORT_ROWS) > 0.97) & (np.arange(len(short)) >= SHORT_ROWS)
    )


def _is_clipped(view: View) -> Mask:
    """Where norms are equal, and low, though gradients are not: a full batch that stands still gives the same one."""
    same = trailing_mean(view.coherence, CLIP_ROWS) > SAME_GRADIENT
    return np.asarray(view.is_clipped(CLIP_ROWS) & ~same & (view.grad < USUAL_BOUND))


def clip_value(view: View) -> Array:
    """The size that every gradient element has had for some probes, as clipping by value makes it, [T]; else NaN."""
    zeros = view.optional("grad_zeros")
    value = np.full(len(zeros), np.nan)
    probed = np.flatnonzero(np.isfinite(zeros).any(axis=1))
    if view.big.sum() < 2 or len(probed) < VALUE_PROBES:
        return value
    with np.errstate(divide="ignore", invalid="ignore"):
        size = (np.sqrt(view.record["grad_sq"] / view.sizes / (1.0 - zeros)))[probed][:, view.big]
    low, high = trailing_min(size.min(axis=1), VALUE_PROBES), trailing_max(size.max(axis=1), VALUE_PROBES)
    hit = (high < VALUE_SPREAD * low) & (low > 0) & (np.arange(len(probed)) >= VALUE_PROBES - 1)
    for row, at in zip(probed[hit], np.flatnonzero(hit), strict=True):
        until = probed[at + 1] if at + 1 < len(probed) else len(value)
        value[row:until] = high[at]
    return value


def lr_too_low(record: Record) -> Finding | None:
    """The gradient keeps its direction over many steps, the steps follow it, and the loss hardly moves."""
    view = view_of(record)
    found = _crawling(view)
    if found is None or view.loss is None:
        return None
    where, pace = found
    clipped = _is_clipped(view) | np.isfinite(clip_value(view))
    pace_of_weights = trailing_mean(view.update_ratio, 20)
    careful = (np.arange(len(record)) >= LOW_ROWS_TRAINED) & (pace_of_weights < LOW_UPDATE_TRAINED)
    where &= view.newly_initialised | (pace_of_weights < LOW_TINY) | careful
    usual = ~clipped | (view.is_unit_size & (view.grad > CLIPPED_TO_NOTHING))
    span = held(where & usual, 8)
    if span is None:
        return None
    row = span[1]
    rate, ratio = float(view.lr[row]), float(trailing_mean(view.update_ratio, 20)[row])
    factor = float(np.clip(LOW_TARGET / max(ratio, 1e-12), 3.0, 1000.0))
    gained = (view.loss.start - view.loss.best[row]) / abs(view.loss.start)
    return tell(
        record,
        "lr_too_low",
        "HIGH" if pace[row] > LOW_PACE_HIGH and ratio < LOW_UPDATE else "MEDIUM",
        (0, row),
        title="learning rate too low",
        seen=f"After {int(record.steps[row])} steps {max(gained, 0.0):.1%} of the loss is gained. A step changes a "
        f"typical layer by {ratio:.1e} of its norm, and the next batch still falls along it "
        f"{min(-view.reach[row], 1.0):.0%} as steeply: at this pace a tenth of the loss takes "
        f"{pace[row] * record['step'][row]:,.0f} steps.",
        meaning="The steps are far shorter than the region in which the gradient holds.",
        advice=f"Raise the learning rate from {rate:.3g} to about {two_digits(rate * factor):.2g} (an update of about "
        f"{LOW_TARGET:g} of the weights), with a short warm-up. On a well pre-trained model a slow pace may be what "
        "you want."
        + (
            " If that rate is usual for such a model, look for what flattens the loss: a softmax or sigmoid before a "
            "loss that applies its own."
            if ratio > LOW_UPDATE
            else ""
        ),
        source="Karpathy 2019 (update ratio about 1e-3); descent measured on the next batch, docs: theory, overshoot",
        evidence={
            "update_ratio": ratio,
            "reach": float(view.reach[row]),
            "steps_for_a_tenth": float(pace[row] * record["step"][row]),
            "gained": float(gained),
        },
        remedy=Remedy("lr", two_digits(rate * factor), rate),
    )


def _below_epsilon(view: View) -> Finding | None:
    """Gradients of Adam that are clipped to less than its ε: usual gradients would be far above it."""
    told = precision.below_epsilon(view)
    if told is None or not told.is_clipping:
        return None
    norm = float(view.grad[told.span[1]])
    value = two_digits(max(1.0, 1e3 * told.eps / told.rms * norm))
    return tell(
        view.record,
        "over_clipping",
        told.confidence,
        told.span,
        title="clipping holds every step back",
        seen=f"The gradient norm was {norm:.3g} at every step, as clipping makes it: {told.rms:.1e} a weight, below "
        f"ε = {told.eps:.1e}; steps are {told.step:.1e} of the learning rate, where Adam's usually are 0.1 to 1.",
        meaning="Adam's steps do not depend on the size of the gradient, but for one so small that ε hides it.",
        advice=f"Raise max_norm from {norm:.3g} to about {value:.2g}, so that only outliers are cut.",
        source="Wortsman et al. 2023 (arXiv 2309.14322): ε above the gradient's root mean square",
        evidence={"max_norm": norm, "grad_rms": told.rms, "eps": told.eps},
    )


def _always_straight(view: View) -> Mask:
    """Where a new model under SGD has made many steps, tiny by their bound, that never left the straight line."""
    ratio = trailing_mean(view.update_ratio, 20)
    short = (view.reach < SHORT_REACH) & (ratio < STRAIGHT_UPDATE) & (view.grad < STRAIGHT_BOUND)
    always = (trailing_mean(short.astype(float), SHORT_ROWS) > 0.97) & view.newly_initialised
    return np.asarray(short & always & (np.arange(len(short)) >= STRAIGHT_ROWS))


def over_clipping(record: Record) -> Finding | None:
    """Clipping cuts every gradient, and what is left of it is too short to get anywhere."""
    view = view_of(record)
    if view.is_unit_size:  # the size of a step does not depend on the gradient's, as long as ε does not hide it
        told = _below_epsilon(view)
        if told is not None or not (view.grad < CLIPPED_TO_NOTHING).any():
            return told
    found = _crawling(view, update=CLIPPED_UPDATE, gain=CLIPPED_GAIN)
    if found is None or view.loss is None:
        return None
    where, pace = found
    each = clip_value(view)
    if view.is_unit_size:
        where = where & (view.grad < CLIPPED_TO_NOTHING)
    else:
        where = where | _always_straight(view)
    span = held(where & (_is_clipped(view) | np.isfinite(each)), 8)
    if span is None:
        return None
    row = span[1]
    by_value = bool(np.isfinite(each[row]))
    norm, ratio = float(each[row] if by_value else view.grad[row]), float(trailing_mean(view.update_ratio, 20)[row])
    knob = "clip_value" if by_value else "max_norm"
    seen = (
        f"In every layer gradient elements that are not zero are {norm:.3g} in size, as clipping by value makes them"
        if by_value
        else f"The gradient norm was {norm:.3g} at every one of the last {CLIP_ROWS} steps, as clipping makes it"
    )
    value = two_digits(norm * float(np.clip(1e-3 / max(ratio, 1e-12), 3.0, 3000.0)))
    return tell(
        record,
        "over_clipping",
        "HIGH" if pace[row] > LOW_PACE_HIGH else "MEDIUM",
        (0, row),
        title="clipping holds every step back",
        seen=f"{seen}, and a step changes a typical layer by {ratio:.1e} of its norm: at this pace a tenth of the loss "
        f"takes {pace[row] * record['step'][row]:,.0f} steps.",
        meaning=f"With every gradient cut, lr × {knob} is the real step length, and it is too short.",
        advice=f"Raise {knob} from {norm:.3g} to about {value:.2g}, so that only outliers are cut (fewer than half "
        "of the steps).",
        source="Tuning Playbook (Godbole et al. 2023): clipping more than half of the updates",
        evidence={knob: norm, "update_ratio": ratio, "steps_for_a_tenth": float(pace[row] * record["step"][row])},
    )
