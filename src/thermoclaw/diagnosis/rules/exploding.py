"""Gradients that grow on their way through the layers, or with time, and models that multiply what they get."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.rules.initial import GAIN_LARGE, GAIN_SMALL
from thermoclaw.diagnosis.rules.vanishing import depth_profile
from thermoclaw.diagnosis.selection import names_of, tell, two_digits
from thermoclaw.diagnosis.signals import first_known, held, largest, middle, trailing_mean
from thermoclaw.diagnosis.view import view_of
from thermoclaw.record import Record

EXPLODE_RATIO, BLOWN = 70.0, 100.0
STEEP, STEEP_CALM, STEEP_TRAINED, ALREADY = 24.0, 45.0, 1000.0, 0.5
STEEP_HIGH, STEEP_CALM_HIGH, STEEP_USUAL = 30.0, 300.0, 4.0
OFF_STEEP, OFF_FALL, OFF_SOLVED, OFF_ROWS = 8.0, 150.0, 3000.0, 20
GUESS_FIRST, GUESS_LEFT, GUESS_FALL = 5.0, 2.0, 10.0  # a sum over a batch is many times ln C, and stays so
OFF_FROM = 10.0  # a first loss that may be far off: one of unit targets, or of few classes, is not


def exploding_gradients(record: Record) -> Finding | None:
    """Gradients grow from layer to layer, or from step to step, out of all proportion."""
    profile = depth_profile(record)
    blast = _blast(record) or _far_off(record)
    loss = view_of(record).loss
    if blast is not None or profile is None or loss is None:
        return blast
    mask, rms = profile
    quarter = max(rms.shape[1] // 4, 1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.median(rms[:, :quarter], axis=1) / np.median(rms[:, -quarter:], axis=1)
        total = np.sqrt(np.nansum(record["grad_sq"], axis=1))
        growth = trailing_mean(total, 5) / max(float(np.median(total[:10])), 1e-300)
    bad = loss.lost() | loss.stuck()
    bad &= ~view_of(record).rate_rises  # in a warm-up no loss falls
    span = held(((ratio > EXPLODE_RATIO) | (growth > EXPLODE_RATIO)) & bad, 10)
    if span is None:
        return None
    start, row = span
    by_depth = ratio[row] > EXPLODE_RATIO
    seen = (
        f"The first layers' gradient is {ratio[row]:.0f}× the last layers' per weight"
        if by_depth
        else f"The gradient norm grew {growth[row]:.0f}× over its first steps"
    )
    norm = float(np.median(total[:10])) if not by_depth else 1.0
    return Finding(
        code="exploding_gradients",
        confidence="HIGH" if max(ratio[row], growth[row]) > 10 * EXPLODE_RATIO else "MEDIUM",
        title="exploding gradients",
        seen=f"{seen}, and the loss makes no progress.",
        meaning="Each layer, or each step, multiplies the gradient; a few of them dominate every update.",
        advice=f"Clip the gradient norm (at about {two_digits(norm):.2g}), lower the learning rate, or normalize "
        "between layers.",
        source="AutoTrainer (Zhang et al., ICSE 2021): ratio above 70",
        first_step=int(record.steps[start]),
        raised_step=int(record.steps[row]),
        layers=names_of(record, mask) if by_depth else (),
        evidence={"gradient_ratio": float(ratio[row]), "gradient_growth": float(growth[row])},
    )


def _steepness(record: Record, first: float) -> float:
    """‖g‖‖θ‖ of a typical layer over a first loss, before the first step."""
    start = np.sqrt(np.abs(record["param_sq"][0] - record["distance"][0]))  # about ‖θ₀‖
    return middle((record["grad_norm"][0] * start / first)[view_of(record).big])


def _far_off(record: Record) -> Finding | None:
    """A new model's first loss is hundreds of times what the first steps leave of it, by depth; or many times ln C."""
    view, first = view_of(record), float(record.loss[0]) if len(record) >= OFF_ROWS else np.nan
    if not first > 0 or not view.fresh or not view.newly_initialised:
        return None
    left, steep = middle(record.loss[OFF_ROWS - 5 : OFF_ROWS]), _steepness(record, first)
    guess = {}
    if first > OFF_FROM and first / OFF_SOLVED < left < first / OFF_FALL and steep > OFF_STEEP:
        seen = (
            f"{first / left:,.0f} times what {OFF_ROWS} steps left of it, and ‖g‖‖θ‖ of a typical layer was "
            f"{steep:.1f} times it: the loss is a high power of the weights."
        )
    elif first > GUESS_FIRST * view.chance and 0 < left < GUESS_LEFT * view.chance and first > GUESS_FALL * left:
        seen = (
            f"where guessing gives ln C = {view.chance:.3g}, and {OFF_ROWS} steps later it was {left:.4g}: before "
            "anything was learned the model was sure, and wrong."
        )
        guess = {"chance": view.chance}
    else:
        return None
    return tell(
        record,
        "exploding_gradients",
        "MEDIUM",
        (0, OFF_ROWS - 1),
        title="outputs began far too large",
        seen=f"The first loss was {first:.4g}, {seen}",
        meaning="The model multiplies its signal from layer to layer, and with it the gradient; the first steps only "
        "undo that, and the scale of what it learns with is gone.",
        advice="Normalize between layers, use residual connections, start with smaller weights (gain near 1; a new "
        "classifier's first loss should be close to ln C), check the scale of inputs and targets.",
        source="He et al. 2015 (arXiv 1502.01852); ⟨g, θ⟩ = kL for a loss homogeneous of degree k; Karpathy 2019, A "
        "recipe for training neural networks: verify the loss at the start",
        evidence={"steepness": steep, "loss": left, "loss_at_start": first, **guess},
    )


def _was_never_trained(record: Record) -> bool:
    """Whether a small loss is no merit: all is as it was drawn, or some weights are at no scale that training finds."""
    view = view_of(record)
    gain = first_known(view.optional("start_gain"))[view.big]
    return view.newly_initialised or bool(((gain > GAIN_LARGE) | ((gain > 0) & (gain < GAIN_SMALL))).any())


def _first_loss(record: Record) -> float:
    """The loss at first; one alone may be small by chance, but not by orders of magnitude."""
    most, one = largest(record.loss[:3]), float(record.loss[0])
    return one if most > BLOWN * one > 0 or not np.isfinite(record.loss[:3]).all() else most


def _blast(record: Record) -> Finding | None:
    """The untouched model's loss changes by a multiple of itself with a hundredth of its weights."""
    view = view_of(record)
    first = _first_loss(record) if view.fresh and len(record) >= 3 else np.nan
    if not first > 0:
        return None
    with np.errstate(over="ignore"):
        steep = _steepness(record, first)
    soon = record.loss[2:4]
    if (record.loss[:4] <= 0).any() or first < ALREADY * view.chance < np.inf:
        return None  # a margin that is reached, a loss without a natural zero, a model that has learned before
    calm = bool(np.isfinite(soon).all()) and bool((np.abs(np.log(np.abs(soon) / first + 1e-300)) < np.log(3.0)).all())
    if not steep > (STEEP if not calm else STEEP_CALM if _was_never_trained(record) else STEEP_TRAINED):
        return None
    norm = two_digits(float(view.grad[0]) * STEEP_USUAL / steep)
    return tell(
        record,
        "exploding_gradients",
        "HIGH" if steep > (STEEP_CALM_HIGH if calm else STEEP_HIGH) else "MEDIUM",
        (0, 2),
        title="exploding gradients at the start",
        seen=f"Before anything was learned, ‖g‖‖θ‖ of a typical layer is {steep:,.0f} times the loss: a change of its "
        f"weights by one part in {steep:,.0f} changes the loss by as much as itself. Usual is 0.1 to {STEEP_USUAL:g}.",
        meaning="The model multiplies its signal, and with it the gradient, from layer to layer.",
        advice="Normalize between layers, use residual connections, start with smaller weights (gain near 1; spectral "
        f"radius near 1 for recurrences), check the scale of the inputs, and clip the gradient norm near {norm:.2g}.",
        source="He et al. 2015 (arXiv 1502.01852); Pascanu et al. 2013 (arXiv 1211.5063); ⟨g, θ⟩ = kL for a loss "
        "homogeneous of degree k",
        evidence={"steepness": steep, "loss": first, "grad_norm": float(view.grad[0])},
    )
