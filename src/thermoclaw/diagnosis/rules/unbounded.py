"""A loss that falls for ever: there is nothing to stop it, so it is not the one that was meant."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.selection import tell
from thermoclaw.diagnosis.signals import average, held, lagged, middle, trailing_mean
from thermoclaw.diagnosis.view import view_of
from thermoclaw.record import Record

STRAIGHT, STRAIGHT_ROWS, STRAIGHT_LEAST = 0.95, 40, 3.0  # downhill in one direction, that never bends
BELOW, STEEPER, FALLING, AGREE, BACK = 10.0, 20.0, 1.3, 0.8, 20


def unbounded_loss(record: Record) -> Finding | None:
    """The loss is far below zero and falls ever faster along a growing gradient, or straight on along a steady one."""
    view = view_of(record)
    if view.loss is None or len(record) < 2 * BACK:
        return None
    late = trailing_mean(record.loss, 10)
    first = abs(average(record.loss[:10]))
    steeper = trailing_mean(view.grad, 10) > STEEPER * middle(view.grad[:10])
    hit = (late < -BELOW * max(first, 1e-3)) & (late < FALLING * lagged(late, BACK)) & steeper
    hit &= trailing_mean(view.coherence, 10) > AGREE
    straight = (trailing_mean(view.coherence, STRAIGHT_ROWS) > STRAIGHT) & (view.reach < -STRAIGHT)
    straight &= (late < -BELOW * max(first, STRAIGHT_LEAST)) & (late < lagged(late, BACK) - first)
    straight &= trailing_mean(view.grad, 10) > middle(view.grad[:10])
    span = held((hit | straight) & (np.arange(len(late)) >= 2 * BACK), 3)
    if span is None:
        return None
    row = span[1]
    how = "falls faster and faster" if hit[row] else "goes on falling at an even pace"
    growth = float(trailing_mean(view.grad, 10)[row] / middle(view.grad[:10]))
    return tell(
        record,
        "unbounded_loss",
        "HIGH" if hit[row] else "MEDIUM",
        span,
        title="the loss falls without bound",
        seen=f"The loss is {late[row]:.4g}, {-late[row] / max(first, 1e-12):.0f} times below zero of what it was above "
        f"or below it at first, and {how}: gradients are {growth:.0f} times those of the start and "
        f"point the same way at every step (cosine {float(trailing_mean(view.coherence, 10)[row]):.2f}).",
        meaning="Nothing bounds this loss from below: outputs and weights grow for ever, whatever the data.",
        advice="Check the sign of the loss and of every term in it, and `maximize` of the optimizer; a density or a "
        "critic needs a floor for its scale, a penalty or a constraint.",
        source="docs: diagnosis",
        evidence={"loss": float(late[row]), "gradient_growth": growth},
    )
