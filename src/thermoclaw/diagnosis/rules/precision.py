"""Numbers too coarse for what they have to hold: lost updates, an epsilon above the gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thermoclaw.diagnosis.finding import Finding, describe_layers
from thermoclaw.diagnosis.remedies import Remedy
from thermoclaw.diagnosis.selection import chosen, tell, two_digits
from thermoclaw.diagnosis.signals import Mask, held, middle, trailing_mean
from thermoclaw.diagnosis.view import View, view_of
from thermoclaw.quantities import Array
from thermoclaw.record import Record

HALF_ULP = {"torch.bfloat16": 2.0**-9, "torch.float16": 2.0**-12}
TYPICAL_WEIGHT = 0.67  # median |θ| over root mean square, for a normal distribution
TYPICAL_STEP = 0.5  # of the learning rate, under Adam
LOST_SHARE_HIGH, LOST_SHARE, LOST_LAYERS = 0.8, 0.5, 0.14
EPSILON_STEP, EPSILON_LARGE, EPSILON_USUAL = 0.02, 1e-5, 1e-6
BELOW_LITTLE, BELOW_STEP, BELOW_SHARE, BELOW_ROWS, BELOW_FROM = 0.5, 0.2, 0.6, 20, 40
CLIPPED_ROWS = 7  # with one and the same gradient norm


def lost_updates(record: Record) -> Finding | None:
    """Steps below half a unit in the last place of the weights they are added to."""
    view = view_of(record)
    half = half_ulps(view)
    if len(record) < 10 or not (half > 0).any() or not (view.is_unit_size or record.optimizer == "SGD"):
        return None
    weight = TYPICAL_WEIGHT * np.sqrt(record["param_sq"] / view.sizes)
    step = TYPICAL_STEP * (record["lr"] if view.is_unit_size else _sgd_step(view))
    lost = (step < half * weight) & (step > 0)
    if not view.is_unit_size:  # there, small gradients make small steps too: in a run that has learned, no loss
        lost &= _has_not_learned(view)[:, None]
    share = (lost * view.sizes).sum(axis=1) / view.sizes.sum()
    span = held((share >= LOST_SHARE) | (lost.mean(axis=1) >= LOST_LAYERS), 8)
    if span is None:
        return None
    row = span[1]
    mask = lost[row]
    names = describe_layers(chosen(record, mask), len(record.layers))
    with np.errstate(divide="ignore", invalid="ignore"):
        worst = middle((half * weight / step)[row][mask])
    return tell(
        record,
        "lost_updates",
        "HIGH" if share[row] >= LOST_SHARE_HIGH else "MEDIUM",
        span,
        mask=mask,
        title="updates are rounded away",
        seen=f"{names} keep their weights in {_dtypes(view)}; at a learning rate of {view.lr[row]:.2g} a typical step "
        f"is {worst:.1f} times below half the spacing of numbers at a typical weight, in {share[row]:.0%} of the "
        "parameters.",
        meaning="Adding such a step gives the old weight back: most of what the optimizer asks for is lost.",
        advice="Keep float32 weights and compute in autocast, or use an optimizer with float32 master weights, "
        "stochastic rounding or Kahan summation.",
        source="IEEE 754 rounding; Zamirai et al. 2020 (arXiv 2010.06192)",
        evidence={"share_lost": float(share[row]), "half_spacing_over_step": worst, "lr": float(view.lr[row])},
    )


def _sgd_step(view: View) -> Array:
    """The longest step a weight can expect of SGD, [T, L]: momentum adds up gradients that agree."""
    record = view.record
    gradient = np.sqrt(record["grad_sq"] / view.sizes)
    return np.asarray(record["lr"] * gradient / (1.0 - np.clip(record["momentum"], 0.0, 0.99)))


def _has_not_learned(view: View) -> Mask:
    """Where the loss is above half of the first one, [T]."""
    if view.loss is None:
        return np.zeros(len(view.record), dtype=bool)
    return np.asarray(trailing_mean(view.record.loss, 20) > 0.5 * abs(view.loss.start))


def half_ulps(view: View) -> Array:
    """Half the relative spacing of each layer's number format where it is a short one, else 0."""
    known = view.record.meta.get("layer_dtypes") or {}
    all_of = view.record.meta.get("dtypes") or []
    only = str(all_of[0]) if len(all_of) == 1 else ""
    return np.array([HALF_ULP.get(str(known.get(layer.name, only)), 0.0) for layer in view.record.layers])


def _dtypes(view: View) -> str:
    known = set(view.record.meta.get("dtypes") or ()) & set(HALF_ULP)
    return " and ".join(sorted(str(name).removeprefix("torch.") for name in known)) or "half precision"


@dataclass(frozen=True)
class BelowEpsilon:
    """Adam's gradients below its ε: from the row `span[0]` on, certain at `span[1]`, in the layers of the mask."""

    span: tuple[int, int]
    mask: Mask
    eps: float
    rms: float
    step: float
    share: float
    is_clipping: bool
    confidence: str = "HIGH"


def below_epsilon(view: View) -> BelowEpsilon | None:
    """Where and by how much ε stands above the root of the second moment; None where it does not."""
    record = view.record
    eps = max((_number(group.get("eps")) for group in view.groups), default=0.0)
    if len(record) < 10 or not view.is_adam or eps <= 0:
        return None
    rms = np.sqrt(record["grad_sq_smooth"] / view.sizes)
    below = (rms < eps) & (trailing_mean(view.unit_update, 10) < EPSILON_STEP) & (record["lr"] > 0) & (rms > 0)
    sizes = np.where(view.trained, view.sizes, 0.0)
    if eps <= EPSILON_USUAL:
        below &= rms > 1e-3 * eps  # less is a gradient that has vanished, whatever it is divided by
    share = (below * sizes).sum(axis=1) / max(sizes.sum(), 1.0)
    span = held(share > (0.5 if eps > EPSILON_USUAL else 0.9), 8)  # with a usual ε, small gradients are the cause
    if span is None or (span[0] > 50 and eps < EPSILON_LARGE):
        return _from_the_start(view, rms, eps)
    row = span[1]
    mask = below[row]
    step, typical = middle(view.unit_update[row][mask]), float(np.median(rms[row][mask]))
    is_clipping = bool(eps <= EPSILON_USUAL and view.is_clipped(CLIPPED_ROWS)[row])
    return BelowEpsilon(span, mask, eps, typical, step, float(share[row]), is_clipping)


def _from_the_start(view: View, rms: Array, eps: float) -> BelowEpsilon | None:
    """From the beginning, whatever has a gradient steps by a fraction of what Adam would make of it without ε."""
    record = view.record
    if not view.fresh or view.loss is None:
        return None
    low = (rms < BELOW_LITTLE * eps) & (rms > 1e-3 * eps) & (trailing_mean(view.unit_update, 10) < BELOW_STEP)
    sizes = np.where(rms > 0, view.sizes, 0.0)
    share = ((low & (record["lr"] > 0)) * sizes).sum(axis=1) / np.maximum(sizes.sum(axis=1), 1.0)
    span = held((share > BELOW_SHARE) & _has_not_learned(view), BELOW_ROWS)
    if span is None or span[0] > BELOW_FROM:
        return None
    row = span[1]
    step, typical = middle(view.unit_update[row][low[row]]), float(np.median(rms[row][low[row]]))
    clipped = bool(eps <= EPSILON_USUAL and view.is_clipped(CLIPPED_ROWS)[row])
    return BelowEpsilon(span, low[row], eps, typical, step, float(share[row]), clipped, confidence="MEDIUM")


def epsilon_dominates(record: Record) -> Finding | None:
    """Adam's ε stands above the root of the second moment, so that small gradients make small steps."""
    told = below_epsilon(view_of(record))
    if told is None or told.is_clipping:  # clipping made them small
        return None
    eps, typical, mask = told.eps, told.rms, told.mask
    value = two_digits(min(1e-8, 1e-3 * typical)) if typical < 1e-6 else 1e-8
    return tell(
        record,
        "epsilon_dominates",
        told.confidence,
        told.span,
        mask=mask,
        title="epsilon hides the gradient",
        seen=f"Gradients of {describe_layers(chosen(record, mask), len(record.layers))} have a root mean square of "
        f"{typical:.1e} a weight, below ε = {eps:.1e}; steps are {told.step:.1e} of the "
        "learning rate, where Adam's usually are 0.1 to 1.",
        meaning="The division by the second moment, which makes the steps the same size in every layer, is switched "
        "off: this is plain momentum at the rate lr/ε, too slow in most layers.",
        advice=f"Lower eps from {eps:.1g} to about {value:.1g} (usual is 1e-8); the steps then grow to the learning "
        "rate, so check that it is one for Adam.",
        source="Wortsman et al. 2023 (arXiv 2309.14322): ε above the gradient's root mean square",
        evidence={"grad_rms": typical, "eps": eps, "share": told.share},
        remedy=Remedy("eps", value, eps),
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and np.isfinite(value) else 0.0
