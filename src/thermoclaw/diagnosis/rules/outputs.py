"""The two instabilities of large transformers: attention logits that grow, output logits that run away together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thermoclaw.diagnosis.finding import Finding, describe_layers
from thermoclaw.diagnosis.selection import chosen, tell
from thermoclaw.diagnosis.signals import Mask, average, held
from thermoclaw.diagnosis.view import View, view_of
from thermoclaw.quantities import Array
from thermoclaw.record import Record

Rows = NDArray[np.intp]

ATTENTION_PROBES, ATTENTION_GROWTH, ATTENTION_GAIN = 3, 6.0, 15.0
ATTENTION_HIGH, ATTENTION_FAST = 60.0, 9.0
DRIFT_NONE, DRIFT, DRIFT_PROBES, DRIFT_NOISE, DRIFT_LEFT = 1e-4, 5e-3, 3, 0.03, 0.1
DRIFT_MOST, DRIFT_CALM_PROBES = 0.5, 8


def attention_logit_growth(record: Record) -> Finding | None:
    """The product of query and key weights grows many times over within a few probes."""
    view = view_of(record)
    gain, loss = view.optional("attention_gain"), view.loss
    probed = np.flatnonzero(np.isfinite(gain).any(axis=1))
    if len(probed) <= ATTENTION_PROBES:
        return None
    values = gain[probed]
    with np.errstate(divide="ignore", invalid="ignore"):
        growth = values[ATTENTION_PROBES:] / values[:-ATTENTION_PROBES]
        rising = np.diff(values, axis=0)[ATTENTION_PROBES - 1 :] > 0
    hit = (growth > ATTENTION_GROWTH) & rising & (values[ATTENTION_PROBES:] > ATTENTION_GAIN)
    sure = hit & ((growth > ATTENTION_FAST) | (values[ATTENTION_PROBES:] > ATTENTION_HIGH))
    rows = probed[ATTENTION_PROBES:]
    if loss is not None:  # as good as it ever was: a small model may learn to attend as fast
        hit &= sure | (loss.smooth[rows] > loss.best[rows] + loss.noise[rows])[:, None]
    span = held(np.asarray(hit.any(axis=1)), 1)
    if span is None:
        return None
    at = span[1]
    row, start = int(rows[at]), int(probed[at])
    mask = hit[at]
    now, factor = float(values[at + ATTENTION_PROBES][mask].max()), float(growth[at][mask].max())
    return tell(
        record,
        "attention_logit_growth",
        "HIGH" if sure[at].any() else "MEDIUM",
        (start, row),
        mask=mask,
        title="attention logits grow",
        seen=f"In {describe_layers(chosen(record, mask), len(record.layers))} the largest singular value of W_Qᵀ·W_K "
        f"rose {factor:.0f}× between step {int(record.steps[start])} and step {int(record.steps[row])}, to {now:.3g}.",
        meaning="Attention logits grow with it; the softmax saturates to one position, its gradient vanishes, and the "
        "loss diverges or freezes soon after.",
        advice="Normalize queries and keys (QK-norm), lower the learning rate of query and key weights or add weight "
        "decay to them, and lengthen the warm-up.",
        source="Wortsman et al. 2023 (arXiv 2309.14322); Zhai et al. 2023 (arXiv 2303.06296)",
        evidence={"attention_gain": now, "growth": factor},
    )


def _is_gone(record: Record, probed: Rows, layers: Mask) -> Mask:
    """Probes at which next to nothing of the layers' first gradient is left: 1 − p is rounding then."""
    size = np.sqrt(np.nansum(np.where(layers, record["grad_sq"][probed], 0.0), axis=1))
    return np.asarray(size < DRIFT_LEFT * np.median(size[:DRIFT_PROBES]))


def _at_once(view: View, probed: Rows, values: Array) -> tuple[int, int] | None:
    """One probe is enough where most of the gradient is common, none ever was, and the steps after it are as large.

    A single broken number makes half of it common at most.
    """
    calm = np.maximum.accumulate(np.concatenate([[0.0], values[:-1]])) < DRIFT_NONE
    for at in np.flatnonzero(calm & (values > DRIFT_MOST) & (np.arange(len(values)) >= DRIFT_CALM_PROBES)).tolist():
        after = view.grad[probed[at] + 1 : probed[at] + 1 + DRIFT_PROBES]
        if len(after) == DRIFT_PROBES and not (after < 0.5 * view.grad[probed[at]]).any():
            return at, at
    return None


def output_logit_divergence(record: Record) -> Finding | None:
    """A gradient that gave each logit what it took from others, as cross-entropy does, no longer does."""
    view = view_of(record)
    drift = view.optional("output_drift")
    probed = np.flatnonzero(np.isfinite(drift).any(axis=1))
    if len(probed) < 2 * DRIFT_PROBES:
        return None
    values = np.nanmax(drift[probed], axis=1)
    values[_is_gone(record, probed, np.asarray(np.isfinite(drift[probed]).any(axis=0)))] = 0.0
    calm = np.maximum.accumulate(values) < DRIFT_NONE
    first = int(np.argmin(calm)) if not calm.all() else len(calm)
    if first < DRIFT_PROBES:
        return None
    span = held((values > DRIFT) & (np.arange(len(values)) >= first), DRIFT_PROBES) or _at_once(view, probed, values)
    if span is None:
        return None
    start, row = int(probed[span[0] - 1]) + 1, int(probed[span[1]])
    if np.sqrt(average(view.coherence[max(row - 10, 0) : row + 1] ** 2)) < DRIFT_NOISE:
        return None  # noise in every direction, of which some is common
    return tell(
        record,
        "output_logit_divergence",
        "HIGH",
        (start, row),
        mask=np.isfinite(drift[probed[0]]),
        title="output logits are pushed together",
        seen=f"Since step {int(record.steps[start])} {values[span[1]]:.0%} of the last layer's gradient moves all "
        "outputs together; before, it moved none, as the gradient of a cross-entropy does.",
        meaning="The loss does not feel a common shift of the logits, so nothing of it holds them back; they grow "
        "until half precision no longer resolves their differences.",
        advice="Look at what was added to the loss at that step (a penalty of the wrong sign?); a z-loss of about "
        "1e-4 · log² Z holds logits near zero.",
        source="Chowdhery et al. 2022 (arXiv 2204.02311), z-loss; Wortsman et al. 2023 (arXiv 2309.14322)",
        evidence={"output_drift": float(values[span[1]])},
    )
