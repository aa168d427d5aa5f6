"""Gradients that fall below the smallest number of their format and become zero."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.selection import tell
from thermoclaw.diagnosis.signals import Mask, held, median_over, middle, trailing_mean, trailing_min
from thermoclaw.diagnosis.view import View, view_of
from thermoclaw.quantities import Array
from thermoclaw.record import Record

ZEROS_MORE, ZEROS_MANY, ZEROS_SMALL, ZEROS_LAST, ZEROS_FROM, GONE_ROWS = 0.4, 0.6, 1e-4, 3, 4, 5
ZEROS_LEVEL, SILENT_INPUTS, FLUSHED = 1e-3, 0.5, 1e-5
FLUSHED_PROBES, FLUSHED_SHARE, FLUSHED_WANDERS, FLUSHED_OUTPUTS = 6, 0.8, 0.04, 0.1
FLUSHED_BACK = 0.4  # of how far it wanders
FLUSHED_ALL, FLUSHED_END, FLUSHED_VARIES = 0.99, 0.5, 0.12
FLUSHED_LEAVES = 1e-3  # at most; elements of ordinary size among zeros belong to the few units that are on
SAME_ZEROS, SAME_UP_TO = 0.01, 0.97
DIVERGED = 1.5  # of the loss at the start


def underflow(record: Record) -> Finding | None:
    """Ever more gradient elements are exactly zero, in units that otherwise learn; in the end all of them."""
    view = view_of(record)
    if len(record) < 10:
        return None
    flushed = _flushed_from_the_start(view)
    if flushed is not None:
        return flushed
    gone = _all_gone(view)
    big = view.big & ~view.tables & view.trained
    zeros, silent = view.optional("grad_zeros")[:, big], np.nan_to_num(view.optional("silent_rows")[:, big])
    known = np.isfinite(zeros).any(axis=1) & _sound(view)
    if view.loss is not None:
        known &= ~(np.abs(record.loss) < ZEROS_LEVEL * abs(view.loss.start))  # with the loss gone, so are gradients
        known &= ~(trailing_mean(record.loss, 5) > DIVERGED * abs(view.loss.start))  # what was thrown far has no slope
    ended = all_zero(view)
    if ended is not None and last_gradient(view, ended[0]) > FLUSHED:
        known[ended[0] :] = False  # what was of ordinary size a step before was not flushed
    probed = np.flatnonzero(known) if big.any() else np.zeros(0, dtype=int)
    if len(probed) < 3:
        return gone
    quiet = silent[probed]
    before = np.concatenate([np.zeros((len(probed), 1)), quiet[:, :-1]], axis=1)  # silent units are silent inputs
    lasting = trailing_min(np.nan_to_num(zeros[probed]), ZEROS_LAST)  # silence is told that many probes later
    excess = np.maximum(lasting - (1.0 - (1.0 - quiet) * (1.0 - before)), 0.0)
    most = np.median(excess, axis=1)
    most[:ZEROS_FROM] = most[ZEROS_FROM] if len(most) > ZEROS_FROM else 0.0  # silence is not known before
    base = np.minimum.accumulate(most)
    end = np.where(before[:, -1] < SILENT_INPUTS, quiet[:, -1], 0.0)  # with inputs, no other cause makes errors zero
    end[:ZEROS_FROM] = end[min(ZEROS_FROM, len(end) - 1)]
    ends = end > np.minimum.accumulate(end) + ZEROS_MORE
    span = held((most > base + ZEROS_MORE) | ends, 1)
    if span is None or (gone is not None and gone.raised_step <= record.steps[probed[span[1]]]):
        return gone
    start, row = int(probed[max(span[0] - ZEROS_LAST + 1, 0)]), int(probed[span[1]])
    now, then = (middle(zeros[r]) for r in (row, int(probed[0])))
    if not now > then:  # the last layer that is trained is not the last there is, as with adapters
        return gone
    size = middle(np.sqrt(record["grad_sq"][row] / view.sizes)[big])
    fewer = now <= ZEROS_MANY and size > ZEROS_SMALL  # of this size nothing is flushed: fewer examples reach the units
    of_late = zeros[probed[max(span[1] - ZEROS_LAST + 1, 0) : span[1] + 1]]
    same = now < SAME_UP_TO and middle(np.ptp(of_late, axis=0)) < SAME_ZEROS  # always the same ones: units are off
    if fewer or same or middle(left_size(view)[row, big]) > FLUSHED_LEAVES:
        return gone
    return tell(
        record,
        "underflow",
        "HIGH" if now > ZEROS_MANY else "MEDIUM",
        (start, row),
        mask=big,
        title="gradients underflow to zero",
        seen=f"The share of gradient elements that are exactly zero rose from {then:.0%} to {now:.0%} in a typical "
        f"layer by step {int(record.steps[row])}, in rows that otherwise get a gradient.",
        meaning="Small gradients fall below the smallest number of their format and are flushed to zero; what is "
        "learned from them is lost without a trace in the loss.",
        advice=_MORE_RANGE,
        source="Micikevicius et al. 2018 (arXiv 1710.03740)",
        evidence={"zero_share": now, "zero_share_before": then},
    )


_MORE_RANGE = "Raise the loss scale (or let GradScaler grow it again), or use bfloat16, whose range is that of float32."


def _flushed_from_the_start(view: View) -> Finding | None:
    """Nearly all gradient elements are zero in all layers, here and there another one is not, in the last layer too.

    Units that are off make their own weights' gradients zero, and always the same ones; the last layer's bias has one.
    """
    record, zeros = view.record, view.optional("grad_zeros")
    keep = view.big & ~view.tables
    if not view.fresh or view.loss is None or keep.sum() < 2:
        return None
    last = int(np.flatnonzero(keep)[-1])
    rows = np.flatnonzero(np.isfinite(zeros[:, last]) & _sound(view))[:FLUSHED_PROBES]
    if len(rows) < FLUSHED_PROBES or not (record.loss[rows] > 0.05 * abs(view.loss.start)).all():
        return None
    typical, end = median_over(zeros, keep)[rows], zeros[rows, last]
    silent = view.optional("silent_rows")[rows, last]
    # behind dead units all of them are silent, or none
    some = bool(((silent > FLUSHED_OUTPUTS) & (silent < 1 - FLUSHED_OUTPUTS)).any())
    down = (np.maximum.accumulate(end) - end).max()  # units that die one after another only ever add zeros
    wanders = np.ptp(end) > FLUSHED_WANDERS and down > FLUSHED_BACK * np.ptp(end)
    most = min(typical.min(), end.min()) > FLUSHED_SHARE and (some or wanders)
    # with no input at all the last layer's bias has a gradient nevertheless, and all of it at every step
    left = 1.0 - end
    all_but_few = (
        typical.min() > FLUSHED_ALL and end.min() > FLUSHED_END and np.ptp(left) > FLUSHED_VARIES * left.mean()
    )
    row = int(rows[-1])
    sizes = left_size(view)[rows][:, keep]
    size = middle(sizes[-1])
    ordinary = max(middle(sizes[0]), float(sizes[0, -1])) > FLUSHED_LEAVES  # where errors begin, units are off
    if not (end.min() < 1 and (most or all_but_few)) or ordinary:
        return None
    return tell(
        record,
        "underflow",
        "HIGH",
        (0, row),
        mask=keep,
        title="most of the gradient is flushed to zero",
        seen=f"Since the first step {middle(typical):.0%} of the gradient elements of a typical layer are exactly "
        f"zero, and {middle(end):.0%} of those of {record.layers[last].name}, whose errors are not; what is left "
        f"is about {size:.1e} in size.",
        meaning="Gradients below the smallest number of their format become zero; the few largest are left, by chance "
        "of the batch.",
        advice=_MORE_RANGE,
        source="Micikevicius et al. 2018 (arXiv 1710.03740)",
        evidence={"zero_share": float(middle(typical))},
    )


def left_size(view: View) -> Array:
    """Root mean square of the gradient elements that are not zero, at rows with a probe, [T, L]."""
    share = np.maximum(1.0 - view.optional("grad_zeros"), 1e-9)
    return np.asarray(np.sqrt(np.nan_to_num(view.record["grad_sq"]) / view.sizes / share))


def _sound(view: View) -> Mask:
    """Rows before the first NaN or Inf, after which zeros mean nothing."""
    return np.asarray(~np.maximum.accumulate(np.isinf(view.record.loss) | ~np.isfinite(view.grad)))


def _all_gone(view: View) -> Finding | None:
    """Every gradient of a run that had tiny ones is exactly zero, in the last layer too, whose errors are not."""
    span = all_zero(view)
    if span is None or last_gradient(view, span[0]) > FLUSHED:
        return None
    record = view.record
    return tell(
        record,
        "underflow",
        "HIGH",
        span,
        title="all gradients are zero",
        seen=f"Since step {int(record.steps[span[0]])} every gradient is exactly zero; the last ones had a root mean "
        f"square of {last_gradient(view, span[0]):.1e} a weight.",
        meaning="The loss still differs from batch to batch, so its gradient is not zero: it fell below the smallest "
        "number of its format.",
        advice=_MORE_RANGE,
        source="Micikevicius et al. 2018 (arXiv 1710.03740)",
        evidence={"zero_share": 1.0},
    )


def all_zero(view: View) -> tuple[int, int] | None:
    """Rows from which every gradient of a run that had some is exactly zero while its loss goes on."""
    record = view.record
    alive = (record["grad_sq"] > 0).any(axis=1)
    silent = (np.nan_to_num(record["grad_sq"], nan=1.0) == 0).all(axis=1) & np.maximum.accumulate(alive)
    silent &= np.abs(np.nan_to_num(record.loss, nan=1.0)) > 0  # a margin that is reached has no gradient
    return held(silent & _sound(view) & (view.lr > 0), GONE_ROWS)


def last_gradient(view: View, row: int) -> float:
    """Root mean square a weight of the last gradient before a row, in the layer where it is largest."""
    size = np.sqrt(np.nan_to_num(view.record["grad_sq"][:row]) / view.sizes).max(axis=1)
    told = size[size > 0]
    return float(told[-1]) if len(told) else 0.0
