"""Gradients that fade or grow on their way through the layers."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding, describe_layers
from thermoclaw.diagnosis.selection import chosen, names_of, tell, two_digits
from thermoclaw.diagnosis.signals import LossView, Mask, held, median_over, trailing_mean, weights_of
from thermoclaw.quantities import Array
from thermoclaw.record import Record

VANISH_RATIO, VANISH_UPDATE = 1e-4, 1e-6
EXPLODE_RATIO = 70.0
BLAST_ROWS, BLAST_GRADIENT, BLAST_LOSS = 20, 8.0, 8.0


def _depth_profile(record: Record) -> tuple[Mask, Array] | None:
    """Weight layers in order of depth and the root mean square of their gradients, [T, n]."""
    if len(record) < 20:
        return None
    mask = weights_of(record) & np.array([layer.ltype != "embedding" for layer in record.layers], dtype=bool)
    mask &= record["has_grad"].mean(axis=0) > 0.5
    if mask.sum() < 4:
        return None
    sizes = np.array([layer.num_params for layer in record.layers], dtype=float)[mask]
    return mask, np.sqrt(record["grad_sq"][:, mask] / sizes)


def vanishing_gradients(record: Record) -> Finding | None:
    """Early layers get next to no gradient, and do not move for it."""
    profile = _depth_profile(record)
    if profile is None:
        return None
    mask, rms = profile
    quarter = max(rms.shape[1] // 4, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.median(rms[:, :quarter], axis=1) / np.median(rms[:, -quarter:], axis=1)
    faded = ratio < VANISH_RATIO
    if not faded.any():
        return None
    moved = median_over(record["update_ratio"][:, mask], np.arange(rms.shape[1]) < quarter)
    span = held(faded & (moved < VANISH_UPDATE) & (np.nanmax(record["lr"], axis=1) > 0), 20)
    if span is None:
        return None
    start, row = span
    early = np.zeros(len(record.layers), dtype=bool)
    early[np.flatnonzero(mask)[:quarter]] = True
    names = describe_layers(chosen(record, early), len(record.layers))
    return Finding(
        code="vanishing_gradients",
        confidence="HIGH" if row - start >= 19 and ratio[row] < 0.01 * VANISH_RATIO else "MEDIUM",
        title="vanishing gradients",
        seen=f"The gradient of {names} is {ratio[row]:.1e} of the last layers' per weight, and a step moves them by "
        f"{moved[row]:.1e} of their norm.",
        meaning="The signal dies on its way back; the early layers stay at their initial values.",
        advice="Use residual connections or normalisation, a non-saturating activation, or an initialisation that "
        "keeps the variance from layer to layer.",
        source="AutoTrainer (Zhang et al., ICSE 2021), with the update as a second condition",
        first_step=int(record.steps[start]),
        raised_step=int(record.steps[row]),
        layers=names_of(record, early),
        evidence={"gradient_ratio": float(ratio[row]), "update_ratio": float(moved[row])},
    )


def exploding_gradients(record: Record) -> Finding | None:
    """Gradients grow from layer to layer, or from step to step, out of all proportion."""
    profile = _depth_profile(record)
    loss = LossView.of(record)
    if profile is None or loss is None:
        return None
    mask, rms = profile
    quarter = max(rms.shape[1] // 4, 1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.median(rms[:, :quarter], axis=1) / np.median(rms[:, -quarter:], axis=1)
        total = np.sqrt(np.nansum(record["grad_sq"], axis=1))
        growth = trailing_mean(total, 5) / max(float(np.median(total[:10])), 1e-300)
    blast = _blast(record, loss, total)
    if blast is not None:
        return blast
    bad = loss.lost() | loss.stuck()
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
        advice=f"Clip the gradient norm (at about {two_digits(norm):.2g}), lower the learning rate, or normalise "
        "between layers.",
        source="AutoTrainer (Zhang et al., ICSE 2021): ratio above 70",
        first_step=int(record.steps[start]),
        raised_step=int(record.steps[row]),
        layers=names_of(record, mask) if by_depth else (),
        evidence={"gradient_ratio": float(ratio[row]), "gradient_growth": float(growth[row])},
    )


def _blast(record: Record, loss: LossView, total: Array) -> Finding | None:
    """A first loss and a first gradient far above what they are a few steps later: signals grow through the layers."""
    if int(record.steps[0]) != 1 or len(record) < BLAST_ROWS + 10 or not loss.start > 0:
        return None
    first, later = float(np.median(total[:2])), float(np.median(total[BLAST_ROWS : BLAST_ROWS + 10]))
    fell = loss.start / max(float(np.nanmedian(record.loss[BLAST_ROWS : BLAST_ROWS + 10])), 1e-300)
    if not (first > BLAST_GRADIENT * later and fell > BLAST_LOSS):
        return None
    norm = two_digits(later)
    return tell(
        record,
        "exploding_gradients",
        "MEDIUM",
        (0, BLAST_ROWS + 9),
        title="exploding gradients at the start",
        seen=f"The first loss was {loss.start:.4g} and the first gradient norm {first:.3g}; {BLAST_ROWS} steps later they "
        f"are {fell:.0f} and {first / later:.0f} times smaller.",
        meaning="The untouched model multiplies its signal on the way through the layers; the first steps go into "
        "undoing that, and what the gradients say meanwhile is of no use.",
        advice=f"Normalize between layers or start with smaller weights (gain near 1), and clip the gradient norm at about "
        f"{norm:.2g}.",
        source="He et al. 2015 (arXiv 1502.01852); Karpathy 2019: check the first loss",
        evidence={"first_gradient": first, "gradient_fell": first / later, "loss_fell": fell},
    )
