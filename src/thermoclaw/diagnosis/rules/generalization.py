"""Training and validation loss that part."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.selection import tell
from thermoclaw.diagnosis.signals import lagged, trailing_max, trailing_mean, trailing_min
from thermoclaw.diagnosis.view import view_of
from thermoclaw.record import Record

GAP, GAP_HIGH, SHARE, PATIENCE = 0.22, 0.45, 0.4, 3
BENIGN_RISE, BENIGN_SHARE = 0.02, 0.7
RISE, STEADY, FALLING, IMPROVING = 0.1, 1.4, 0.85, 0.985


def overfitting(record: Record) -> Finding | None:
    """The training loss goes on falling far below a validation loss that no longer follows."""
    view = view_of(record)
    told = [
        (int(event["step"]), float(event["val_loss"]))
        for event in record.events
        if event.get("kind") == "epoch" and _is_number(event.get("val_loss"))
    ]
    if len(told) < PATIENCE or view.loss is None:
        return None
    steps, values = np.array([s for s, _ in told]), np.array([v for _, v in told])
    rows = np.clip(np.searchsorted(record["step"], steps, side="right") - 1, 0, None)
    train = trailing_mean(record.loss, 20)[rows]
    start = abs(view.loss.start)
    best = np.minimum.accumulate(values)
    gap = (values - train) / max(start, 1e-300)
    rise = (values - best) / np.maximum(max(view.loss.start, float(values[0])) - best, 1e-300)
    apart = (gap > GAP) & (train < SHARE * values) & (train >= 0)  # below zero they are not of one scale
    with np.errstate(divide="ignore", invalid="ignore"):
        follows = (view.loss.start - values) / (view.loss.start - train)
    apart &= ~((rise < BENIGN_RISE) & (follows > BENIGN_SHARE))  # as good as it ever was, and that is much
    low, high = trailing_min(values, PATIENCE), trailing_max(values, PATIENCE)
    steady = (high < STEADY * low) & (values > FALLING * high)  # running means of batch norm lag, and then jump
    steady &= values > IMPROVING * lagged(values, PATIENCE - 1)  # what comes late comes all the same
    parted = (trailing_min(apart.astype(float), PATIENCE) > 0) & steady
    if not parted[PATIENCE - 1 :].any():
        return None
    i = PATIENCE - 1 + int(np.argmax(parted[PATIENCE - 1 :]))
    widest = trailing_min(np.maximum(gap / GAP_HIGH, rise / RISE), PATIENCE)
    b = int(np.argmin(values[: i + 1]))
    return tell(
        record,
        "overfitting",
        "HIGH" if bool((parted & (widest > 1.0))[PATIENCE - 1 :].any()) else "MEDIUM",
        (int(rows[i - PATIENCE + 1]), int(rows[i])),
        title="overfitting",
        seen=f"At step {steps[i]} the validation loss is {values[i]:.4g} and the training loss {train[i]:.4g}, a gap "
        f"of {gap[i]:.0%} of the first loss; validation was best with {values[b]:.4g} at step {steps[b]}.",
        meaning="The model learns its training examples by heart, and what it gains there no longer carries over.",
        advice=f"Get more data or augment it, regularize (dropout, weight decay, a smaller model), or stop near step "
        f"{steps[b]}.",
        source="SageMaker Debugger, Overfit; Prechelt 1998, Early stopping",
        evidence={"gap": float(gap[i]), "val_loss": float(values[i]), "train_loss": float(train[i])},
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))
