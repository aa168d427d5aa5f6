"""Updates that follow gradients of long ago."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.remedies import Remedy
from thermoclaw.diagnosis.signals import held, largest, median_over, trailing_mean, weights_of
from thermoclaw.diagnosis.view import view_of
from thermoclaw.record import Record

MOMENTUM_LEAST = 0.97
MOMENTUM_COHERENCE = 0.05
MOMENTUM_LONG, MOMENTUM_UPHILL, MOMENTUM_LEARNED = 0.995, 0.15, 0.3
MOMENTUM_LASTING, MOMENTUM_EXTREME, MOMENTUM_GROWTH = 30, 0.99, 0.01


def momentum_too_high(record: Record) -> Finding | None:
    """The update follows gradients of long ago although today's gradients agree with each other."""
    beta = largest(record["momentum"]) if len(record) else 0.0
    if not beta >= MOMENTUM_LEAST or len(record) < 30:
        return None
    big = weights_of(record)
    alignment = trailing_mean(median_over(record["alignment"], big), 25)
    coherence = trailing_mean(median_over(record["coherence"], big), 25)
    floor = float(np.sqrt(1.0 - beta**2))
    lagging = (
        (coherence > MOMENTUM_COHERENCE) & (alignment < np.maximum(0.5 * coherence, 0.0)) & (alignment < 0.5 * 0.44)
    )
    loss = view_of(record).loss
    if loss is not None and beta >= MOMENTUM_EXTREME:
        growing = trailing_mean(median_over(view_of(record).radial[0], big), 12) > MOMENTUM_GROWTH
        lagging |= loss.lost() | (loss.stuck() & (record["step"] > 60)) | growing
    if beta >= MOMENTUM_LONG:  # steps of hundreds of gradients ago lead uphill
        lagging |= (trailing_mean(view_of(record).reach, 60) > MOMENTUM_UPHILL) & (record["step"] > 60)
    if loss is not None and beta < MOMENTUM_LONG:  # some recipes have 0.98 and 0.99, and learn
        lagging &= ~(loss.smooth < MOMENTUM_LEARNED * loss.start) | loss.lost()
    lagging &= record["step"] > min(2.0 / (1.0 - beta), 40)
    lasting = held(lagging, MOMENTUM_LASTING)
    span = lasting or held(lagging, 10)
    if span is None:
        return None
    start, row = span
    c, rho = float(alignment[row]), float(coherence[row])
    start = 0 if record["momentum"][0].max() >= beta - 1e-6 else start  # it is there from the first step, seen later
    confidence = "HIGH" if beta >= MOMENTUM_EXTREME and (lasting or c < 0.3 * rho) else "MEDIUM"
    return Finding(
        code="momentum_too_high",
        confidence=confidence,
        title="momentum over-damped",
        seen=f"Successive gradients agree (coherence {rho:.2f}) but the update hardly follows them (alignment {c:.2f}; "
        f"momentum β₁ = {beta:.4g} gives {floor:.2f} on pure noise, 0.9 gives 0.44).",
        meaning="The update is an average over gradients from so long ago that it points where the loss was, not where "
        "it is.",
        advice=f"Lower β₁ (momentum) from {beta:.4g} to 0.9.",
        source="docs: theory, alignment; the floor √(1 − β₁²) is exact for momentum on white noise",
        first_step=int(record.steps[start]),
        raised_step=int(record.steps[row]),
        evidence={"alignment": c, "coherence": rho, "momentum": beta, "noise_floor": floor},
        remedy=Remedy("momentum", 0.9, beta),
    )
