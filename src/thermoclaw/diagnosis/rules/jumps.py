"""What changes from one step to the next although the optimizer did nothing unusual: spikes, and shifts of the data."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.remedies import Remedy
from thermoclaw.diagnosis.selection import tell, two_digits
from thermoclaw.diagnosis.signals import (
    Mask,
    held,
    lagged,
    trailing_max,
    trailing_mean,
    trailing_median,
    trailing_min,
    trailing_second,
)
from thermoclaw.diagnosis.view import View, view_of
from thermoclaw.quantities import Array
from thermoclaw.record import Record

BEFORE, AFTER = 20, 6
SHIFT, SHIFT_HIGH, SHIFT_LEVEL, FALLS_BACK, STAYED = 2.0, 4.0, 0.1, 0.45, 0.25
SPIKE_OVER, SPIKE_OVER_HIGH, SPIKE_OVER_LONE, SPIKE_MEMORY, STAYS = 20.0, 33.0, 1000.0, 50, 4
SPIKE_ALIVE, TOLD, LOUD = 0.5, 2, 3.0
SWING_ROWS, SWING_COHERENCE = 4, -0.4
LOST_AGAIN, THROWN = 0.6, 15.0  # of all that was gained: what is lost for good; a jump that may throw weights so far
LOSS_SPIKE, LOSS_SPIKE_BACK, MANY_SPIKES, LONE_SPIKE = 0.5, 10, 4, 6.0
USUAL_STEP, USUAL_RATE = 3.0, 1.5
SPIKE_FAR, FAR_STEP = 1000.0, 10.0  # so large a gradient is not the doing of a step a few times as long as others


def level_shift(view: View) -> Array:
    """How far the last six losses all lie above all but one of the twenty before them, in spreads of those, [T].

    The spread is 1.48 × the median absolute deviation, and at least a thousandth of the first loss.
    """
    values = view.record.loss
    low = trailing_min(values, AFTER)
    high = lagged(trailing_second(values, BEFORE), AFTER)  # one odd batch says nothing
    apart = np.abs(values - trailing_median(values, BEFORE))
    apart[: BEFORE - 1] = np.abs(values[: BEFORE - 1] - np.median(values[:BEFORE]))  # before there are so many
    spread = 1.48 * lagged(trailing_median(apart, BEFORE), AFTER)
    start = abs(view.loss.start) if view.loss is not None else 0.0
    told = (low - high) / (spread + 1e-3 * start + 1e-300)
    told[: BEFORE + AFTER] = -np.inf
    return np.where(np.isfinite(told), told, -np.inf)


def was_usual(view: View, *, most: float = USUAL_STEP) -> Mask:
    """Whether the step that led to a row was no longer than a few of those before and the rate had not moved, [T]."""
    step = lagged(view.update, 1)
    usual = lagged(trailing_median(view.update, 30), 3)
    rate = view.lr / np.where(lagged(view.lr, 10) > 0, lagged(view.lr, 10), np.nan)
    changed = np.abs(np.log(np.where(np.isfinite(rate) & (rate > 0), rate, 1.0))) > np.log(USUAL_RATE) * 2
    return np.asarray((step < most * usual) & ~changed)


def distribution_shift(record: Record) -> Finding | None:
    """The loss stands on another level from one step to the next, after an ordinary step, and nobody said why."""
    view = view_of(record)
    if view.loss is None or len(record) < BEFORE + AFTER + 4:
        return None
    size = level_shift(view)
    rows = np.flatnonzero(size > SHIFT)
    usual = was_usual(view)
    sudden = _suddenness(view)
    for row in rows.tolist():
        at = row - AFTER + 1
        if not usual[at] or sudden[row] <= 0.5 or _swings(view, at) or _meant(record, at) or _rose(record.loss[:at]):
            continue
        high = np.median(record.loss[at : row + 1]) > SHIFT_LEVEL * abs(view.loss.start)  # not a ripple near its end
        before = float(np.median(record.loss[at - BEFORE : at]))
        if high and not _passes(record.loss[at : row + 1], before, gained=view.loss.start - before):
            return _shift(view, at, row, float(size[row]))
    return None


def _rose(values: Array) -> bool:
    """Whether the last loss already stood above all of those before it: then it began there."""
    return bool(values[-1] > values[-1 - BEFORE : -1].max())


def _swings(view: View, at: int) -> bool:
    """Whether steps had gone past the minimum and back for some time: the swing broke out, and not the data."""
    before = slice(max(at - SWING_ROWS, 0), at)
    back, past = view.coherence[before] < SWING_COHERENCE, view.overshoot[before] > 0
    return bool(back.all() and past.all())


def _meant(record: Record, at: int) -> bool:
    """Whether somebody noted a change, `observer.note_event("data")`, or layers get their first gradients with it."""
    near = range(int(record.steps[at]) - TOLD, int(record.steps[at]) + TOLD + 1)
    told = any(event.get("kind") == "data" and event.get("step") in near for event in record.events)
    has = np.nan_to_num(record["grad_sq"]) > 0
    return told or bool((has[at] & ~has[:at].any(axis=0)).any())


def _falls_back(values: Array) -> bool:
    """Whether the loss falls by more than half from one step to the next: what was odd has passed."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return bool((values[1:] / values[:-1] < FALLS_BACK).any())


def _passes(values: Array, before: float, gained: float) -> bool:
    """Whether the loss falls back, and most of the way: the first of other data may stand out, and the rest stay."""
    left = float(np.median(values[-3:])) - before
    passes = _falls_back(values) and left < STAYED * (values[0] - before)
    return bool(passes and not _is_lost(left, values[0] - before, gained))


def _is_lost(left: float, jumped: float, gained: float) -> bool:
    """Whether most of what was gained is gone, after a jump too small for one step along it to have thrown it away."""
    return LOST_AGAIN * gained < left and jumped < THROWN * gained


def _suddenness(view: View) -> Array:
    """Share of a rise over the last six rows that came with the first of them, [T]."""
    values = view.record.loss
    before = lagged(trailing_median(values, BEFORE), AFTER)
    first = lagged(values, AFTER - 1)
    level = trailing_median(values, AFTER)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((first - before) / (level - before))


def _shift(view: View, at: int, row: int, size: float) -> Finding:
    record, values = view.record, view.record.loss
    before, now = float(np.median(values[at - BEFORE : at])), float(np.median(values[at : row + 1]))
    grown = float(np.median(view.grad[at : row + 1]) / np.median(view.grad[at - BEFORE : at]))
    outside = bool(view.update[at] > 10 * np.median(view.update[at - BEFORE : at]))
    blame = (
        "the weights jumped in the same step by more than the optimizer could have moved them: something else wrote "
        "to them, a checkpoint or a hook"
        if outside
        else "no hyper-parameter changed and the step before it was an ordinary one: what comes in is different, "
        "inputs or labels, or the loss itself"
    )
    return tell(
        record,
        "distribution_shift",
        "HIGH" if size > SHIFT_HIGH else "MEDIUM",
        (at, row),
        title="the data changed",
        seen=f"At step {int(record.steps[at])} the loss went from {before:.4g} to {now:.4g} in one step and stayed "
        f"there, and the gradient norm changed by {grown:.2g}×; {blame}.",
        meaning="The loss moved without the weights having moved for it; the optimizer is not the cause.",
        advice=f"Look at what the loader delivers from step {int(record.steps[at])} on: shard or epoch boundary, "
        "augmentation or tokenizer, label mapping, shuffling, normalization; go back to the checkpoint before it once "
        "that is mended. Where the change is meant, a curriculum or a new loss term, tell it beforehand: "
        "observer.note_event('data').",
        source="docs: diagnosis, level shifts: six losses above all but one of the twenty before, after a usual step",
        evidence={"loss_before": before, "loss_after": now, "gradient_change": grown, "shift": size},
    )


def gradient_spike(record: Record) -> Finding | None:
    """One gradient is out of all proportion to those before it, after an ordinary step."""
    view = view_of(record)
    if len(record) < BEFORE + 2:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        over = view.grad / lagged(trailing_max(view.grad, SPIKE_MEMORY), 1)
    over[:BEFORE] = 0.0
    over[trailing_mean((view.grad > 0).astype(float), BEFORE) < SPIKE_ALIVE] = 0.0  # solved: most batches have none
    over = np.nan_to_num(over, posinf=np.inf)
    hit = (over > SPIKE_OVER) & (was_usual(view) | ((over > SPIKE_FAR) & was_usual(view, most=FAR_STEP)))
    hit &= np.isfinite(view.grad)
    span = held(hit, 1)
    if span is None:
        return None
    row = span[1]
    norm = two_digits(2.0 * float(np.median(view.grad[max(row - SPIKE_MEMORY, 0) : row])))
    lasting = int(np.sum(view.grad[row : row + 10] > 5.0 * norm))
    return tell(
        record,
        "gradient_spike",
        "HIGH" if over[row] > (SPIKE_OVER_LONE if _of_one_batch(view, row) else SPIKE_OVER_HIGH) else "LOW",
        span,
        title="a gradient spike",
        seen=f"At step {int(record.steps[row])} the gradient norm was {view.grad[row]:.3g}, {over[row]:,.0f} times the "
        f"largest of the {SPIKE_MEMORY} steps before, after an ordinary step; {lasting} of the next ten steps were of "
        "that kind.",
        meaning="One bad batch, or a broken number, decides where the weights go; Adam remembers its square for "
        "1/(1 − β₂) steps.",
        advice=f"Clip the gradient norm at about {norm:.3g} (twice its median) or skip such steps, and look at the "
        f"batches around step {int(record.steps[row])}.",
        source="ZClip (2504.02507), OLMo-core SkipStepOptimizer: outliers of the norm against its recent past",
        evidence={
            "grad_norm": float(view.grad[row]),
            "over_recent_maximum": float(over[row]),
            "came_with_the_data": float(_came_with_the_data(view, row)),
        },
        remedy=Remedy("clip", norm, float(view.grad[row])),
    )


def _of_one_batch(view: View, row: int) -> bool:
    """Whether the same batch's loss stood out as well and the next gradient is an ordinary one: an odd example."""
    if view.loss is None:
        return False
    before, after = slice(max(row - SPIKE_MEMORY, 0), row), view.grad[row + 1 : row + 3]
    stood_out = view.record.loss[row] > 2.0 * view.record.loss[before].max()
    return bool(stood_out and (after < LOUD * view.grad[before].max()).all())


def _came_with_the_data(view: View, row: int) -> bool:
    """Whether the loss of the same batch stood out already, and loss and gradient stay where they jumped to."""
    after = slice(row + 1, row + 1 + STAYS)
    if view.loss is None or len(view.grad[after]) < STAYS:
        return False
    before = view.record.loss[row - BEFORE : row]
    high = before.max() + 2.0 * (before.max() - np.median(before))
    loud = view.grad[after] > LOUD * view.grad[row - BEFORE : row].max()
    return bool((view.record.loss[row : row + 1 + STAYS] > high).all() and loud.all())


def _is_alone(record: Record, at: int, start: float) -> bool:
    """Whether a spike falls back at once and is among the first few; where they come again, it is no batch."""
    before = record.loss[max(at - 400, 0) : at]
    return _falls_back(record.loss[at : at + LOSS_SPIKE_BACK + 1]) and int((before > 1.2 * start).sum()) < MANY_SPIKES


def loss_spike(record: Record) -> Finding | None:
    """The loss jumps for a few steps after an ordinary step, and comes back."""
    view = view_of(record)
    if view.loss is None or len(record) < BEFORE + 4:
        return None
    values = record.loss
    recent = lagged(trailing_max(values, 2 * SPIKE_MEMORY), 1)
    gained = np.maximum(view.loss.start - lagged(view.loss.best, 1), 0.0)
    spread = lagged(trailing_median(np.abs(values - trailing_median(values, BEFORE)), BEFORE), 1)
    over = values - recent
    hit = (over > LOSS_SPIKE * gained) & (values > 1.2 * view.loss.start) & (values > 2.0 * recent)
    hit &= (over > 10.0 * spread) & (gained > 0) & was_usual(view)
    lasts = np.concatenate([values[1:], values[-1:]]) > recent  # one hard batch alone must stand out further
    hit &= lasts | (values > LONE_SPIKE * recent)
    hit[:BEFORE] = False
    usual = lagged(trailing_max(values, BEFORE), LOSS_SPIKE_BACK + 1)
    back = trailing_max(values, 3) < usual + 0.25 * lagged(over, LOSS_SPIKE_BACK)
    confirmed = lagged(hit.astype(float), LOSS_SPIKE_BACK).astype(bool) & back
    rows = []
    for row in np.flatnonzero(confirmed).tolist():
        at = row - LOSS_SPIKE_BACK
        left = float(np.median(values[at + AFTER - 3 : at + AFTER]) - np.median(values[max(at - BEFORE, 0) : at]))
        if _is_alone(record, at, view.loss.start) and not _is_lost(left, float(over[at]), float(gained[at])):
            rows.append(row)
    if not rows:
        return None
    row, at = rows[0], rows[0] - LOSS_SPIKE_BACK
    return tell(
        record,
        "loss_spike",
        "HIGH" if over[at] > gained[at] else "MEDIUM",
        (at, row),
        title="a loss spike",
        seen=f"At step {int(record.steps[at])} the loss jumped to {values[at]:.4g}, where the {2 * SPIKE_MEMORY} steps "
        f"before had {recent[at]:.4g} at most, after an ordinary step; {LOSS_SPIKE_BACK} steps later it was back.",
        meaning="What came in was out of the ordinary: a corrupt or mislabelled batch, or one of another kind.",
        advice=f"Look at the batches from step {int(record.steps[at])} on; skip batches whose loss stands out, and "
        "clip the gradient norm.",
        source="PaLM (2204.02311): spikes come from particular batches; docs: diagnosis, spikes",
        evidence={"loss": float(values[at]), "recent_maximum": float(recent[at])},
    )
