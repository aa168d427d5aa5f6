"""Steps that do not follow the gradient, or follow it with a second moment from another time."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding, describe_layers
from thermoclaw.diagnosis.remedies import Remedy
from thermoclaw.diagnosis.selection import chosen, tell
from thermoclaw.diagnosis.signals import (
    Mask,
    held,
    lagged,
    largest,
    over,
    trailing_max,
    trailing_mean,
    trailing_median,
    weighted_median,
)
from thermoclaw.diagnosis.view import View, view_of
from thermoclaw.quantities import Array
from thermoclaw.record import Record

LAG, LAG_HIGH, LAG_SETTLED, LAG_JUMP = 2.3, 3.5, 12, 3.0
LOST_BEFORE, LOST_SHARE, LOST_SIGMA, LOST_BETA = 0.15, 0.4, 4.0, 0.95
LOST_SIGMA_CLEAR, LOST_BEFORE_CLEAR, LOST_STALLS_CLEAR = 7.0, 0.1, 0.75
LOST_ROWS, LOST_BEFORE_ROWS, LOST_FROM, LOST_LEVEL, LOST_STALLS = 10, 25, 50, 0.05, 0.85
LOST_MEMORY, LOST_RATE, LOST_AT_ONCE, LOST_FADED = 60, 1.0, 0.75, 0.2
LOST_ODD, LOST_ODD_ROWS = 4.0, 30  # gradients that momentum remembers
LOST_LONGER, LOST_LONGER_CLEAR = 2.0, 3.0  # steps that are so much longer than before are another matter


def second_moment_lag(record: Record) -> Finding | None:
    """Adam's steps are longer than Adam allows: the gradient outgrew the mean square it is divided by."""
    view = view_of(record)
    if not view.is_adam or len(record) < LAG_SETTLED + 3:
        return None
    typical = weighted_median(view.unit_update, view.sizes)
    size = np.log(np.where(view.grad > 0, view.grad, np.nan))
    before = np.concatenate([np.full(10, np.nan), trailing_mean(size, 10)[:-10]])
    jumped = size > before + np.log(LAG_JUMP)
    follows = (view.alignment > 0.2) & (view.radial_share < 0.7)
    lagging = (typical > LAG) & jumped & follows & (record["step"] > LAG_SETTLED) & np.isfinite(typical)
    span = held(lagging, 1)
    if span is None:
        return None
    row = span[1]
    mask = np.nan_to_num(view.unit_update[row]) > LAG
    beta2 = max((float(g["beta2"]) for g in view.groups if np.isfinite(g.get("beta2", np.nan))), default=np.nan)
    worst = float(typical[row])
    told = f"β₂ = {beta2:.4g} averages over {1 / (1 - beta2):,.0f} steps; lower it to 0.95" if beta2 < 1 else "Lower β₂"
    return tell(
        record,
        "second_moment_lag",
        "HIGH" if worst > LAG_HIGH else "LOW",
        span,
        mask=mask,
        title="the second moment lags behind",
        seen=f"At step {int(record.steps[row])} the steps of "
        f"{describe_layers(chosen(record, mask), len(record.layers))} were {worst:.1f} times the learning rate a "
        f"weight (Adam's are 1 at most in a steady state), after the gradient norm rose "
        f"{np.exp(size[row] - before[row]):.0f}×.",
        meaning="The mean square still remembers the small gradients of before, so the quotient is too large; a spike "
        "of the loss follows within a few steps.",
        advice=f"{told}, clip the update (StableAdamW) or the gradient norm, and look at what made the gradient jump.",
        source="Wortsman et al. 2023 (arXiv 2304.13013): root mean square of g²/v above 2.3",
        evidence={"update_over_lr": worst, "beta2": float(beta2)},
        remedy=Remedy("beta2", 0.95, beta2) if 0.95 < beta2 < 1 else None,
    )


def incoherent_update(record: Record) -> Finding | None:
    """Steps of the usual length that suddenly have nothing to do with the gradient."""
    view = view_of(record)
    if len(record) < 30 or largest(record["momentum"]) > LOST_BETA:
        return None
    still = np.arange(len(record)) >= LOST_FROM
    still &= (np.abs(view.radial_share) < 0.5) & (view.update > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        still &= np.abs(np.log(view.lr / lagged(view.lr, LOST_ROWS + LOST_BEFORE_ROWS))) < LOST_RATE
    size = lagged(trailing_median(view.grad, 20), LOST_ROWS)
    still &= ~(trailing_median(view.grad, LOST_ROWS) < LOST_FADED * size)  # momentum steps on where a gradient has gone
    odd = trailing_max(view.grad, LOST_ODD_ROWS) > LOST_ODD * lagged(trailing_median(view.grad, 20), LOST_ODD_ROWS)
    # of all weights together, or in a typical layer, where one loud layer drowns the others
    found = [
        (span, told)
        for cosine, surely in ((view.own_slope, False), (view.alignment, True))
        if (span := held((told := _lost(view, cosine, surely=surely))[0] & still & ~odd, 2)) is not None
    ]
    if not found:
        return None
    span, (_, usual, now, error) = min(found, key=lambda one: one[0][1])
    row = span[1]
    start = max(span[0] - LOST_ROWS + 1, 0)
    return tell(
        record,
        "incoherent_update",
        "HIGH" if view.update_is_usual(row) else "MEDIUM",
        (start, row),
        title="steps no longer follow the gradient",
        seen=f"The cosine between step and gradient fell from {usual[row]:.2f} to {now[row]:.3f} "
        f"(± {2 * error[row]:.3f}) around step {int(record.steps[start])}, while the steps kept their length.",
        meaning="The optimizer moves the weights as far as before and in directions that have nothing to do with the "
        "loss: the update reaches the wrong weights, or comes from the wrong gradients.",
        advice="Look at what stands between gradient and weights since that step: flattened buckets and their offsets, "
        "a resharded or restored optimizer state, custom hooks, an all-reduce of other tensors.",
        source="Molybog et al. 2023 (arXiv 2304.09871); alignment, docs: theory",
        evidence={"alignment": float(now[row]), "alignment_before": float(usual[row])},
    )


def _lost(view: View, cosine: Array, *, surely: bool) -> tuple[Mask, Array, Array, Array]:
    """Where it fell at once and little is gained since; and what it was, what it is now, and its error, [T] each."""
    now, error = _mean_and_error(cosine, LOST_ROWS)
    mean, wide = _mean_and_error(cosine, LOST_BEFORE_ROWS)
    usual, spread = lagged(mean, LOST_ROWS), np.hypot(error, lagged(wide, LOST_ROWS))
    spread = spread * lagged(_inflation(cosine), LOST_ROWS)
    clear = usual - now > LOST_SIGMA_CLEAR * spread
    lost = (usual > np.where(clear, LOST_BEFORE_CLEAR, LOST_BEFORE)) & (now < LOST_SHARE * usual)
    lost &= clear if surely else usual - now > LOST_SIGMA * spread
    lost &= lagged(trailing_mean(cosine, LOST_ROWS // 2), LOST_ROWS) > LOST_AT_ONCE * usual
    longest = LOST_LONGER_CLEAR if surely else LOST_LONGER
    lost &= view.update < longest * lagged(trailing_median(view.update, 20), LOST_ROWS)
    if view.loss is not None:
        lost &= ~(view.loss.smooth < LOST_LEVEL * view.loss.start)
        stalls = np.where(clear, LOST_STALLS_CLEAR, LOST_STALLS)
        lost &= view.loss.smooth > stalls * lagged(view.loss.smooth, LOST_ROWS + 5)  # little is gained
    return np.asarray(lost), usual, now, error


def _inflation(values: Array) -> Array:
    """√((1 + ρ)/(1 − ρ)), by which successive values that resemble each other widen the error of their mean, [T]."""
    away = values - trailing_mean(values, LOST_MEMORY)
    before = np.concatenate([[np.nan], away[:-1]])
    rho = over(trailing_mean(away * before, LOST_MEMORY), trailing_mean(away**2, LOST_MEMORY))
    rho = np.clip(np.nan_to_num(rho), 0.0, 0.99)
    return np.asarray(np.sqrt((1.0 + rho) / (1.0 - rho)))


def _mean_and_error(values: Array, window: int) -> tuple[Array, Array]:
    """Trailing mean and its standard error."""
    mean = trailing_mean(values, window)
    return mean, np.sqrt(np.maximum(trailing_mean(values**2, window) - mean**2, 0.0) / window)
