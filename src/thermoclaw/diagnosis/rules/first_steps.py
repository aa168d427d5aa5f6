"""Steps that are too long from the very first on: they rewrite the weights, or sharpen attention."""

from __future__ import annotations

from math import prod

import numpy as np

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.remedies import Remedy
from thermoclaw.diagnosis.rules.outputs import attention_logit_growth
from thermoclaw.diagnosis.rules.underflow import all_zero
from thermoclaw.diagnosis.selection import tell, two_digits
from thermoclaw.diagnosis.signals import decay_pull, largest, lower_quartile, median_over, middle, weights_of
from thermoclaw.diagnosis.view import View, view_of
from thermoclaw.quantities import Array
from thermoclaw.record import Record

LR_THROWN_STEPS = 20
LR_DECAYED = 0.3  # share of the step
LR_SHARPENED = 0.05  # of attention layers' norm in a step
LR_FIRST, LR_FIRST_ROWS, LR_FIRST_FELL, LR_FIRST_ROSE = 0.2, 8, 0.8, 1.1
LR_FIRST_LATER, LR_FIRST_BETTER, LR_FIRST_GAIN = 16, 0.6, 0.3
LR_DEEP = 3


def sharpened(record: Record) -> Finding | None:
    """The first steps, a large part of the weights each, made attention far sharper than it began."""
    found, view = attention_logit_growth(record), view_of(record)
    if found is None or not view.fresh or found.first_step > record.steps[0]:
        return None
    attention = np.asarray(np.isfinite(view.optional("attention_gain")).any(axis=0))
    ratio = middle(median_over(record["update_ratio"][:LR_THROWN_STEPS], attention))
    if not ratio > LR_SHARPENED:
        return None
    lr = largest(view.lr[:LR_THROWN_STEPS])
    value = two_digits(lr * 3e-3 / ratio)
    row = int(np.searchsorted(record.steps, found.raised_step))
    return tell(
        record,
        "lr_too_high",
        "HIGH",
        (0, row),
        mask=attention,
        title="the first steps sharpen attention",
        seen=f"In the first {LR_THROWN_STEPS} steps a step changed attention layers by {ratio:.1%} of their norm, at a "
        f"learning rate of {lr:.3g}; by step {found.raised_step} the largest singular value of W_Qᵀ·W_K had risen "
        f"{found.evidence['growth']:.0f}×.",
        meaning="Attention that is nearly one-hot passes next to no gradient on: what it looks at was decided before "
        "anything was learned.",
        advice=f"Lower the learning rate from {lr:.3g} to about {value:.2g} (steps of 0.3 % of the weights), or warm "
        "it up over the first hundred steps, and start again.",
        source="Wortsman et al. 2023 (arXiv 2309.14322): logits grow with the learning rate; Karpathy 2019",
        evidence={"update_ratio": ratio, "lr": lr, "growth": found.evidence["growth"]},
        remedy=Remedy("lr", value, lr),
    )


def rewritten(record: Record) -> Finding | None:
    """The very first steps are as long as the weights themselves, and the loss is none the better for it."""
    view = view_of(record)
    if not view.fresh or len(record) < 5 or view.big.sum() < 2:  # a single layer goes where it wants at once
        return None
    broke = not np.isfinite(record.loss[:LR_FIRST_LATER]).all()  # then there is nothing to wait for
    if len(record) < LR_FIRST_LATER and not broke:
        return None
    norm = np.maximum.accumulate(np.nan_to_num(record["param_norm"][:LR_FIRST_ROWS]), axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = record["update_norm"][:LR_FIRST_ROWS] / np.maximum(norm, _least_norm(view))
        ratio = lower_quartile(ratio, view.big & view.began_with_weights)
    decayed = np.nan_to_num(median_over(decay_pull(record)[:LR_FIRST_ROWS], view.big))
    ratio = np.where(decayed < LR_DECAYED, ratio, -np.inf)  # decay shrinks the weights by itself, whatever the gradient
    rewrites = not is_deep(view) or "adagrad" in record.optimizer.lower()  # Adagrad begins with its longest steps
    least = LR_FIRST_ROSE if rewrites else LR_FIRST_FELL
    fell = middle(record.loss[3:LR_FIRST_ROWS]) < least * record.loss[0]
    gone = all_zero(view)
    fell &= gone is None or gone[0] > LR_THROWN_STEPS  # to where no gradient is left
    late = record.loss[LR_FIRST_LATER - 4 : LR_FIRST_LATER]
    fell |= not broke and float(np.median(late)) < LR_FIRST_BETTER * record.loss[0]  # RMSprop begins with long steps
    known = np.count_nonzero(np.isfinite(ratio)) if broke else 2  # a single one may be somebody else's write
    if fell or np.count_nonzero(ratio > LR_FIRST) < min(max(known, 1), 2):
        return None
    worst, row = largest(ratio), int(np.argmax(~np.isfinite(record.loss))) if broke else LR_FIRST_LATER - 1
    at = int(np.nanargmax(ratio))
    value = two_digits(float(view.lr[at]) * 3e-3 / worst)
    lr = largest(view.lr)  # it may have been warming up
    return tell(
        record,
        "lr_too_high",
        "HIGH",
        (0, row),
        title="the first steps rewrite the weights",
        seen=f"Step {int(record.steps[at])} moved three in four layers by {worst:.0%} of their norm and more, at "
        f"a learning rate of {view.lr[at]:.3g}, and at step {int(record.steps[row])} the loss stands at "
        f"{record.loss[row]:.4g}, against {record.loss[0]:.4g} at the first.",
        meaning="What the initialization (or the pre-training) put there is gone before anything is learned; the run "
        "goes on from random large weights.",
        advice=f"Lower the learning rate from {lr:.3g} to about {value:.2g} (steps of 0.3 % of the weights), or warm "
        "it up over the first hundred steps, and start again.",
        source="Karpathy 2019: an update ratio of about 1e-3 is usual; docs: diagnosis",
        evidence={"update_ratio": worst, "lr": lr},
        remedy=Remedy("lr", value, lr),
    )


def _least_norm(view: View) -> Array:
    """Norm below which the matrix of a new layer holds nothing yet: it began small, and steps make it grow, [L]."""
    record, shapes = view.record, view.record.meta.get("layer_shapes") or {}
    if not view.newly_initialised:
        return np.zeros(len(record.layers))
    inputs = np.array([prod(shapes.get(layer.name, ())[1:]) for layer in record.layers], dtype=float)
    return np.where(view.tables | (inputs <= 1), 0.0, LR_FIRST_GAIN * np.sqrt(view.sizes / np.maximum(inputs, 1.0)))


def is_deep(view: View) -> bool:
    """Whether there is depth to lose: shallow models rewrite their weights, and tables alone begin at any size."""
    big = weights_of(view.record)
    return int(big.sum()) >= LR_DEEP and int((big & ~view.tables).sum()) >= LR_DEEP - 1
