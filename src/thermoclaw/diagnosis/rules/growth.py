"""Weights that grow along themselves."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding, describe_layers
from thermoclaw.diagnosis.selection import chosen, tell
from thermoclaw.diagnosis.signals import held, largest, trailing_mean
from thermoclaw.diagnosis.view import view_of
from thermoclaw.record import Record

GROWTH, RADIAL, GROWTH_ROWS, GROWTH_MOMENTUM, GROWTH_ASKED = 2e-3, 0.9, 12, 0.98, 0.15
GROWTH_UNEVEN = 0.12  # spread of the growth from step to step over its mean


def weight_blow_up(record: Record) -> Finding | None:
    """Norms grow by the same factor at every step, along the weights themselves and not along the gradient."""
    view = view_of(record)
    if len(record) < GROWTH_ROWS + 8 or record.optimizer == "Rprop":  # whose own steps grow like that
        return None
    rate, share = view.radial
    mean = trailing_mean(rate, GROWTH_ROWS)
    spread = np.sqrt(np.maximum(trailing_mean(rate**2, GROWTH_ROWS) - mean**2, 0.0))
    even = spread < GROWTH_UNEVEN * mean
    with np.errstate(invalid="ignore"):
        hit = (mean > GROWTH) & (trailing_mean(share, GROWTH_ROWS) > RADIAL) & even
    hit[: GROWTH_ROWS + 1] = False
    weight = np.where(view.big & view.trained, view.sizes, 0.0)
    hit &= trailing_mean(np.nan_to_num(record["alignment"]), GROWTH_ROWS) < GROWTH_ASKED  # no gradient asks for it
    hit &= ~(record["momentum"] > GROWTH_MOMENTUM)  # there it is the sum of a thousand steps that grows
    span = held((hit * weight).sum(axis=1) > 0.4 * max(weight.sum(), 1.0), 3)
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
        f"step, {trailing_mean(share, GROWTH_ROWS)[row][mask].mean():.0%} of the step along the weights themselves; it "
        f"doubles every {np.log(2) / pace:.0f} steps.",
        meaning="No gradient asks for that: something multiplies the weights. Logits, and with them curvature, grow "
        "with every layer's norm until the numbers overflow.",
        advice="Look for a penalty or decay of the wrong sign, and for code that scales the weights at each step"
        + (f" (weight_decay is {decay:.3g})." if decay else "; a little weight decay would bound them."),
        source="balance of norms: Yaida 2018 (arXiv 1810.00004); Kosson et al. 2024 (arXiv 2305.17212)",
        evidence={"growth_per_step": pace, "radial_share": float(trailing_mean(share, GROWTH_ROWS)[row][mask].mean())},
    )
