"""An optimizer state that is lost, at every step or every few."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.selection import tell
from thermoclaw.diagnosis.signals import Mask, held, lagged, median_over, step_gaps, trailing_mean
from thermoclaw.diagnosis.view import View, view_of
from thermoclaw.record import Record

AGAIN_SHORTER, AGAIN_TIMES, AGAIN_EVERY = 0.9, 5, 25
FRESH_FROM, FRESH_PROBES, FRESH_NEAR, FRESH_COHERENCE, FRESH_BETA = 20, 4, 0.02, 0.5, 0.8


def optimizer_state_reset(record: Record) -> Finding | None:
    """Adam steps by the gradient's sign although gradients disagree: its means are new, at each step or every few."""
    view = view_of(record)
    if record.optimizer not in ("Adam", "AdamW") or len(record) < FRESH_FROM:
        return None
    usual = view.big & view.trained & (np.nanmax(record["momentum"], axis=0) >= FRESH_BETA)
    if not usual.any():
        return None
    return _forgets_each_step(view, usual) or _forgets_often(view, usual)


def _forgets_often(view: View, usual: Mask) -> Finding | None:
    """Again and again, a step of the very size that the first one had, among others that are shorter."""
    record = view.record
    if not view.fresh:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        of_first = median_over(view.unit_update / view.unit_update[0], usual)
        apart = median_over(np.abs(view.unit_update / view.unit_update[0] - 1.0), usual)
    disagree = trailing_mean(np.nan_to_num(view.coherence), 10) < FRESH_COHERENCE
    hit = (apart < FRESH_NEAR) & disagree & (np.arange(len(record)) >= FRESH_FROM)
    hit &= (lagged(of_first, 1) < AGAIN_SHORTER) & (step_gaps(record) == 1)
    rows = np.flatnonzero(hit)
    for i in range(len(rows) - AGAIN_TIMES + 1):
        some = rows[i : i + AGAIN_TIMES]
        every = int(np.median(np.diff(some)))
        if np.diff(some).max() <= min(AGAIN_EVERY, 2 * every):
            return _forgotten(
                record,
                (int(some[0]), int(some[-1])),
                title=f"the optimizer forgets its state every {every} steps",
                seen=f"About every {every} steps all layers move as they did in the first step "
                f"({of_first[some[-1]]:.2f} of its length), and by less in between: {record.optimizer} does that only "
                "when its state is new.",
                size=float(median_over(view.unit_update, usual)[some[-1]]),
            )
    return None


def _forgets_each_step(view: View, usual: Mask) -> Finding | None:
    record, zeros = view.record, view.optional("grad_zeros")
    with np.errstate(invalid="ignore"):
        size = view.unit_update / np.sqrt(np.clip(1.0 - zeros, 1e-3, 1.0))
    disagree = trailing_mean(np.nan_to_num(record["coherence"]), 10) < FRESH_COHERENCE
    rows = np.flatnonzero(np.isfinite(zeros).any(axis=1) & (np.arange(len(record)) >= FRESH_FROM))
    unit = (np.abs(size[rows] - 1.0) < FRESH_NEAR) & disagree[rows]
    span = held(unit[:, usual].mean(axis=1) >= 0.8, FRESH_PROBES) if len(rows) else None
    if span is None:
        return None
    start, row = int(rows[span[0]]), int(rows[span[1]])
    typical = float(np.median(size[row][usual]))
    return _forgotten(
        record,
        (start, row),
        title="the optimizer forgets its state at every step",
        seen=f"Every weight moves by {typical:.2f} of the learning rate, whatever its gradient, while successive "
        f"gradients do not agree (cosine {float(trailing_mean(view.coherence, 10)[row]):.2f}): {record.optimizer} does "
        "that in its very first step only.",
        size=typical,
    )


def _forgotten(record: Record, span: tuple[int, int], *, title: str, seen: str, size: float) -> Finding:
    return tell(
        record,
        "optimizer_state_reset",
        "HIGH",
        span,
        title=title,
        seen=seen,
        meaning="Its means of gradients and squares begin anew each time, so there is little momentum and little "
        "adaptation: this is descent by signs, far noisier at the same learning rate.",
        advice="Make the optimizer once, before the loop; do not clear or reload its state inside it.",
        source="Kingma and Ba 2015 (arXiv 1412.6980): the first step is the learning rate times the sign",
        evidence={"step_over_lr": size},
    )
