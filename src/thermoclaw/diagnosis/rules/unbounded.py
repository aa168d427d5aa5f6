"""A loss that falls for ever: there is nothing to stop it, so it is not the one that was meant."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.selection import tell
from thermoclaw.diagnosis.signals import average, held, lagged, middle, trailing_mean
from thermoclaw.diagnosis.view import view_of
from thermoclaw.record import Record

BELOW, STEEPER, FALLING, AGREE, BACK = 10.0, 20.0, 1.3, 0.8, 20


def unbounded_loss(record: Record) -> Finding | None:
    """The loss is far below zero and falls ever faster, along a gradient that only grows."""
    view = view_of(record)
    if view.loss is None or len(record) < 2 * BACK:
        return None
    late = trailing_mean(record.loss, 10)
    first = abs(average(record.loss[:10]))
    steeper = trailing_mean(view.grad, 10) > STEEPER * middle(view.grad[:10])
    hit = (late < -BELOW * max(first, 1e-3)) & (late < FALLING * lagged(late, BACK)) & steeper
    hit &= (trailing_mean(view.coherence, 10) > AGREE) & (np.arange(len(late)) >= 2 * BACK)
    span = held(hit, 3)
    if span is None:
        return None
    row = span[1]
    growth = float(trailing_mean(view.grad, 10)[row] / middle(view.grad[:10]))
    return tell(
        record,
        "unbounded_loss",
        "HIGH",
        span,
        title="the loss falls without bound",
        seen=f"The loss is {late[row]:.4g}, {-late[row] / max(first, 1e-12):.0f} times below zero of what it was above "
        f"or below it at first, and falls faster and faster: gradients are {growth:.0f} times those of the start and "
        f"point the same way at every step (cosine {float(trailing_mean(view.coherence, 10)[row]):.2f}).",
        meaning="Nothing bounds this loss from below: outputs and weights grow for ever, whatever the data.",
        advice="Check the sign of the loss and of every term in it, and `maximize` of the optimizer; a density or a "
        "critic needs a floor for its scale, a penalty or a constraint.",
        source="docs: diagnosis",
        evidence={"loss": float(late[row]), "gradient_growth": growth},
    )
