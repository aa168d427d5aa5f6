"""Numbers too coarse for what they have to hold: lost updates, underflow, an epsilon above the gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thermoclaw.diagnosis.finding import Finding, describe_layers
from thermoclaw.diagnosis.remedies import Remedy
from thermoclaw.diagnosis.selection import chosen, tell, two_digits
from thermoclaw.diagnosis.signals import Mask, held, median_over, middle, trailing_mean, trailing_min
from thermoclaw.diagnosis.view import View, view_of
from thermoclaw.quantities import Array
from thermoclaw.record import Record

HALF_ULP = {"torch.bfloat16": 2.0**-9, "torch.float16": 2.0**-12}
TYPICAL_WEIGHT = 0.67  # median |θ| over root mean square, for a normal distribution
TYPICAL_STEP = 0.5  # of the learning rate, under Adam
LOST_SHARE_HIGH, LOST_SHARE, LOST_LAYERS = 0.8, 0.5, 0.14
ZEROS_MORE, ZEROS_MANY, ZEROS_SMALL, ZEROS_LAST, ZEROS_FROM, GONE_ROWS = 0.4, 0.6, 1e-4, 3, 4, 5
ZEROS_LEVEL, SILENT_INPUTS, FLUSHED = 1e-3, 0.5, 1e-5
EPSILON_STEP, EPSILON_LARGE, EPSILON_USUAL = 0.02, 1e-5, 1e-6
FLUSHED_PROBES, FLUSHED_SHARE, FLUSHED_WANDERS, FLUSHED_OUTPUTS = 6, 0.8, 0.04, 0.1
FLUSHED_ALL, FLUSHED_END, FLUSHED_VARIES = 0.99, 0.5, 0.12
BELOW_LITTLE, BELOW_STEP, BELOW_SHARE, BELOW_ROWS, BELOW_FROM = 0.5, 0.2, 0.6, 20, 40
DIVERGED = 1.5  # of the loss at the start
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


def underflow(record: Record) -> Finding | None:
    """Ever more gradient elements are exactly zero, in units that otherwise learn; in the end all of them."""
    view = view_of(record)
    if len(record) < 10:
        return None
    flushed = _flushed_from_the_start(view)
    if flushed is not None:
        return flushed
    gone = _all_gone(view)
    big = view.big & ~view.tables & view.trained
    zeros, silent = view.optional("grad_zeros")[:, big], np.nan_to_num(view.optional("silent_rows")[:, big])
    known = np.isfinite(zeros).any(axis=1) & _sound(view)
    if view.loss is not None:
        known &= ~(np.abs(record.loss) < ZEROS_LEVEL * abs(view.loss.start))  # with the loss gone, so are gradients
        known &= ~(trailing_mean(record.loss, 5) > DIVERGED * abs(view.loss.start))  # what was thrown far has no slope
    ended = all_zero(view)
    if ended is not None and last_gradient(view, ended[0]) > FLUSHED:
        known[ended[0] :] = False  # what was of ordinary size a step before was not flushed
    probed = np.flatnonzero(known) if big.any() else np.zeros(0, dtype=int)
    if len(probed) < 3:
        return gone
    quiet = silent[probed]
    before = np.concatenate([np.zeros((len(probed), 1)), quiet[:, :-1]], axis=1)  # silent units are silent inputs
    lasting = trailing_min(np.nan_to_num(zeros[probed]), ZEROS_LAST)  # silence is told that many probes later
    excess = np.maximum(lasting - (1.0 - (1.0 - quiet) * (1.0 - before)), 0.0)
    most = np.median(excess, axis=1)
    most[:ZEROS_FROM] = most[ZEROS_FROM] if len(most) > ZEROS_FROM else 0.0  # silence is not known before
    base = np.minimum.accumulate(most)
    end = np.where(before[:, -1] < SILENT_INPUTS, quiet[:, -1], 0.0)  # with inputs, no other cause makes errors zero
    end[:ZEROS_FROM] = end[min(ZEROS_FROM, len(end) - 1)]
    ends = end > np.minimum.accumulate(end) + ZEROS_MORE
    span = held((most > base + ZEROS_MORE) | ends, 1)
    if span is None or (gone is not None and gone.raised_step <= record.steps[probed[span[1]]]):
        return gone
    start, row = int(probed[max(span[0] - ZEROS_LAST + 1, 0)]), int(probed[span[1]])
    now, then = (middle(zeros[r]) for r in (row, int(probed[0])))
    if not now > then:  # the last layer that is trained is not the last there is, as with adapters
        return gone
    size = middle(np.sqrt(record["grad_sq"][row] / view.sizes)[big])
    if now <= ZEROS_MANY and size > ZEROS_SMALL:  # of this size nothing is flushed: fewer examples reach the units
        return gone
    return tell(
        record,
        "underflow",
        "HIGH" if now > ZEROS_MANY else "MEDIUM",
        (start, row),
        mask=big,
        title="gradients underflow to zero",
        seen=f"The share of gradient elements that are exactly zero rose from {then:.0%} to {now:.0%} in a typical "
        f"layer by step {int(record.steps[row])}, in rows that otherwise get a gradient.",
        meaning="Small gradients fall below the smallest number of their format and are flushed to zero; what is "
        "learned from them is lost without a trace in the loss.",
        advice=_MORE_RANGE,
        source="Micikevicius et al. 2018 (arXiv 1710.03740)",
        evidence={"zero_share": now, "zero_share_before": then},
    )


_MORE_RANGE = "Raise the loss scale (or let GradScaler grow it again), or use bfloat16, whose range is that of float32."


def _flushed_from_the_start(view: View) -> Finding | None:
    """Nearly all gradient elements are zero in all layers, here and there another one is not, in the last layer too.

    Units that are off make their own weights' gradients zero, and always the same ones; the last layer's bias has one.
    """
    record, zeros = view.record, view.optional("grad_zeros")
    keep = view.big & ~view.tables
    if not view.fresh or view.loss is None or keep.sum() < 2:
        return None
    last = int(np.flatnonzero(keep)[-1])
    rows = np.flatnonzero(np.isfinite(zeros[:, last]) & _sound(view))[:FLUSHED_PROBES]
    if len(rows) < FLUSHED_PROBES or not (record.loss[rows] > 0.05 * abs(view.loss.start)).all():
        return None
    typical, end = median_over(zeros, keep)[rows], zeros[rows, last]
    silent = view.optional("silent_rows")[rows, last]
    # behind dead units all of them are silent, or none
    some = bool(((silent > FLUSHED_OUTPUTS) & (silent < 1 - FLUSHED_OUTPUTS)).any())
    wanders = np.ptp(end) > FLUSHED_WANDERS or bool((silent == 0).any() and (silent == 1).any())
    most = min(typical.min(), end.min()) > FLUSHED_SHARE and (some or wanders)
    # with no input at all the last layer's bias has a gradient nevertheless, and all of it at every step
    left = 1.0 - end
    all_but_few = (
        typical.min() > FLUSHED_ALL and end.min() > FLUSHED_END and np.ptp(left) > FLUSHED_VARIES * left.mean()
    )
    if not (end.min() < 1 and (most or all_but_few)):
        return None
    row = int(rows[-1])
    size = middle(np.sqrt(record["grad_sq"][row] / view.sizes / np.maximum(1.0 - zeros[row], 1e-9))[keep])
    return tell(
        record,
        "underflow",
        "HIGH",
        (0, row),
        mask=keep,
        title="most of the gradient is flushed to zero",
        seen=f"Since the first step {middle(typical):.0%} of the gradient elements of a typical layer are exactly "
        f"zero, and {middle(end):.0%} of those of {record.layers[last].name}, whose errors are not; what is left "
        f"is about {size:.1e} in size.",
        meaning="Gradients below the smallest number of their format become zero; the few largest are left, by chance "
        "of the batch.",
        advice=_MORE_RANGE,
        source="Micikevicius et al. 2018 (arXiv 1710.03740)",
        evidence={"zero_share": float(middle(typical))},
    )


def _sound(view: View) -> Mask:
    """Rows before the first NaN or Inf, after which zeros mean nothing."""
    return np.asarray(~np.maximum.accumulate(np.isinf(view.record.loss) | ~np.isfinite(view.grad)))


def _all_gone(view: View) -> Finding | None:
    """Every gradient of a run that had tiny ones is exactly zero, in the last layer too, whose errors are not."""
    span = all_zero(view)
    if span is None or last_gradient(view, span[0]) > FLUSHED:
        return None
    record = view.record
    return tell(
        record,
        "underflow",
        "HIGH",
        span,
        title="all gradients are zero",
        seen=f"Since step {int(record.steps[span[0]])} every gradient is exactly zero; the last ones had a root mean "
        f"square of {last_gradient(view, span[0]):.1e} a weight.",
        meaning="The loss still differs from batch to batch, so its gradient is not zero: it fell below the smallest "
        "number of its format.",
        advice=_MORE_RANGE,
        source="Micikevicius et al. 2018 (arXiv 1710.03740)",
        evidence={"zero_share": 1.0},
    )


def all_zero(view: View) -> tuple[int, int] | None:
    """Rows from which every gradient of a run that had some is exactly zero while its loss goes on."""
    record = view.record
    alive = (record["grad_sq"] > 0).any(axis=1)
    silent = (np.nan_to_num(record["grad_sq"], nan=1.0) == 0).all(axis=1) & np.maximum.accumulate(alive)
    silent &= np.abs(np.nan_to_num(record.loss, nan=1.0)) > 0  # a margin that is reached has no gradient
    return held(silent & _sound(view) & (view.lr > 0), GONE_ROWS)


def last_gradient(view: View, row: int) -> float:
    """Root mean square a weight of the last gradient before a row, in the layer where it is largest."""
    size = np.sqrt(np.nan_to_num(view.record["grad_sq"][:row]) / view.sizes).max(axis=1)
    told = size[size > 0]
    return float(told[-1]) if len(told) else 0.0


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
