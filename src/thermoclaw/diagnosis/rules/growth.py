"""Weights that grow along themselves."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding, describe_layers
from thermoclaw.diagnosis.selection import chosen, tell
from thermoclaw.diagnosis.signals import Mask, average, held, lagged, largest, trailing_mean
from thermoclaw.diagnosis.view import View, view_of
from thermoclaw.quantities import Array
from thermoclaw.record import Record

GROWTH, RADIAL, GROWTH_ROWS, GROWTH_MOMENTUM, GROWTH_ASKED = 2e-3, 0.9, 12, 0.98, 0.15
PAID, PAID_RADIAL, PAID_ROWS = 2.0, 0.85, 20
RADIAL_ALIKE, ASKED_ALIKE, ALIKE_LAYERS, ALIKE = 0.6, 0.35, 4, 0.15
ALIKE_ROWS, ALIKE_GAIN, ALIKE_MOMENTUM = 30, 0.02, 0.96
MOST_OF_ALL, MOST_SIGNS = 0.4, 0.8  # of the parameters; where steps are signs, which lengthen what they agree on
GROWTH_UNEVEN = 0.12  # spread of the growth from step to step over its mean


def weight_blow_up(record: Record) -> Finding | None:
    """Norms grow by the same factor at every step, along the weights themselves; or the loss pays for their growth."""
    view = view_of(record)
    if len(record) < GROWTH_ROWS + 8 or record.optimizer == "Rprop":  # whose own steps grow like that
        return None
    return _unasked(view) or _paid(view)


def _paid(view: View) -> Finding | None:
    """The loss falls far below zero while steps do little but lengthen the weights: a penalty of the wrong sign."""
    record = view.record
    if view.loss is None or view.big.sum() < 2:  # a single layer may well grow along itself
        return None
    first, late = max(abs(average(record.loss[:10])), 1.0), trailing_mean(record.loss, 10)
    below = (late < -PAID * first) & (late < lagged(late, PAID_ROWS) - 0.1 * first)
    if not below.any():
        return None
    rate, share = (trailing_mean(values, PAID_ROWS) for values in view.radial)
    weight = np.where(view.big & view.trained, view.sizes, 0.0)
    with np.errstate(invalid="ignore"):
        grows = (rate > GROWTH) & (share > PAID_RADIAL)
    span = held(below & ((grows * weight).sum(axis=1) > 0.4 * max(weight.sum(), 1.0)), 5)
    if span is None:
        return None
    row = span[1]
    mask = grows[row] & view.big
    pace, radial = float(np.median(rate[row][mask])), float(share[row][mask].mean())
    return tell(
        record,
        "weight_blow_up",
        "HIGH",
        (max(span[0] - PAID_ROWS, 0), row),
        mask=mask,
        title="the loss pays for growing weights",
        seen=f"The loss is {late[row]:.4g} and falls, while {radial:.0%} of each step of "
        f"{describe_layers(chosen(record, mask), len(record.layers))} goes along the weights themselves: their norm "
        f"grows by {pace:.2%} a step.",
        meaning="A term of the loss falls for ever as the weights grow, whatever the data: a penalty of the wrong "
        "sign, or a score that scales with them.",
        advice="Check the sign of each penalty on weights, activations or logits.",
        source="⟨∇(λ‖θ‖²), θ⟩ = 2λ‖θ‖²: such a gradient points along the weights; docs: theory, the norm budget",
        evidence={"growth_per_step": pace, "radial_share": radial, "loss": float(late[row])},
    )


def _alike(view: View, pace: Array) -> Mask:
    """Rows at which many layers grow by one share and the loss is no better for it, [T]: no gradient asks for that."""
    used = view.big & view.trained
    if used.sum() < ALIKE_LAYERS or view.record.optimizer not in ("Adam", "AdamW", "SGD"):  # signs grow alike
        return np.zeros(len(pace), dtype=bool)
    values, loss, momentum = pace[:, used], view.loss, view.record["momentum"][:, used]
    with np.errstate(invalid="ignore"):
        alike = (values > GROWTH).all(axis=1) & (values.std(axis=1) < ALIKE * values.mean(axis=1))
    alike &= (momentum < ALIKE_MOMENTUM).all(axis=1)  # beyond, sums of steps go straight on for long
    if loss is not None:
        alike &= ~(loss.smooth < lagged(loss.smooth, ALIKE_ROWS) - ALIKE_GAIN * abs(loss.start))
    return np.asarray(alike)


def _unasked(view: View) -> Finding | None:
    record = view.record
    rate, share = view.radial
    mean = trailing_mean(rate, GROWTH_ROWS)
    spread = np.sqrt(np.maximum(trailing_mean(rate**2, GROWTH_ROWS) - mean**2, 0.0))
    even = spread < GROWTH_UNEVEN * mean
    along, alike = trailing_mean(share, GROWTH_ROWS), _alike(view, mean)[:, None]
    with np.errstate(invalid="ignore"):
        hit = (mean > GROWTH) & (along > np.where(alike, RADIAL_ALIKE, RADIAL)) & even
    hit[: GROWTH_ROWS + 1] = False
    weight = np.where(view.big & view.trained, view.sizes, 0.0)
    asked = trailing_mean(np.nan_to_num(record["alignment"]), GROWTH_ROWS)
    hit &= asked < np.where(alike, ASKED_ALIKE, GROWTH_ASKED)  # no gradient asks for it
    hit &= ~(record["momentum"] > GROWTH_MOMENTUM)  # there it is the sum of a thousand steps that grows
    most = MOST_SIGNS if view.is_signed else MOST_OF_ALL
    span = held((hit * weight).sum(axis=1) > most * max(weight.sum(), 1.0), 3)
    if span is None:
        return None
    row = span[1]
    mask = hit[row] & view.big
    pace = float(np.median(mean[row][mask]))
    start = max(span[0] - GROWTH_ROWS + 1, 0)
    decay = largest(np.abs(record["weight_decay"][row]))
    return tell(
        record,
        "weight_blow_up",
        "HIGH",
        (start, row),
        mask=mask,
        title="weights grow without bound",
        seen=f"The norm of {describe_layers(chosen(record, mask), len(record.layers))} grows by {pace:.2%} at every "
        f"step, {along[row][mask].mean():.0%} of the step along the weights themselves; it "
        f"doubles every {np.log(2) / pace:.0f} steps.",
        meaning="No gradient asks for that: something multiplies the weights. Logits, and with them curvature, grow "
        "with every layer's norm until the numbers overflow.",
        advice="Look for a penalty or decay of the wrong sign, and for code that scales the weights at each step"
        + (f" (weight_decay is {decay:.3g})." if decay else "; a little weight decay would bound them."),
        source="balance of norms: Yaida 2018 (arXiv 1810.00004); Kosson et al. 2024 (arXiv 2305.17212)",
        evidence={"growth_per_step": pace, "radial_share": float(along[row][mask].mean())},
    )
