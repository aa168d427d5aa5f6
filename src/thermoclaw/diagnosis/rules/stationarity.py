"""A loss that has stopped changing."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.signals import LossView, largest
from thermoclaw.record import Record

PLATEAU_STEPS, PLATEAU_TREND = 1000, 0.05


def plateau(record: Record) -> Finding | None:
    """The loss and the norms are stationary over the last thousand steps."""
    if record.num_steps < PLATEAU_STEPS + 100:
        return None
    steps = record["step"]
    recent = steps > steps[-1] - PLATEAU_STEPS
    loss = record.loss[recent]
    good = np.isfinite(loss)
    if good.sum() < 100:
        return None
    batches = np.array([b.mean() for b in np.array_split(loss[good], 10)])
    x = np.arange(10) - 4.5
    slope = float((x * batches).sum() / (x * x).sum())
    residual = batches - batches.mean() - slope * x
    error = float(np.sqrt((residual**2).sum() / 8.0 / (x * x).sum()))
    view = LossView.of(record) if abs(slope) < 2.3 * error else None
    if view is None:
        return None
    gained = view.start - float(batches.mean())
    if not abs(slope) * 10 < PLATEAU_TREND * max(abs(gained), abs(view.start) * 0.01):
        return None
    lr = record["lr"][recent]
    if largest(lr[-1]) < 0.5 * largest(lr[0]):  # a schedule on its way down is doing what it was told
        return None
    return Finding(
        code="plateau",
        confidence="LOW",
        title="the loss is stationary",
        seen=f"Over the last {PLATEAU_STEPS} steps the loss stayed at {batches.mean():.4g}: its slope is "
        f"{slope / (PLATEAU_STEPS / 10):.1e} ± {2.3 * error / (PLATEAU_STEPS / 10):.1e} a step (95 %).",
        meaning="The run has converged at this learning rate, or it is stalled; the loss alone cannot tell which.",
        advice="Lower the learning rate (if noise holds the loss up, it falls at once) or stop here.",
        source="batch means with a confidence interval: Pflug 1990; SASA, Lang et al. 2019 (arXiv 1909.09785)",
        first_step=int(steps[recent][0]),
        raised_step=int(steps[-1]),
        evidence={"loss": float(batches.mean()), "slope": slope / (PLATEAU_STEPS / 10)},
    )
