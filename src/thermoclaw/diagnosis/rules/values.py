"""NaN and Inf."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding, describe_layers
from thermoclaw.diagnosis.selection import chosen, names_of
from thermoclaw.diagnosis.signals import Mask, held
from thermoclaw.record import Record

LOSS_ROWS = 10  # rows of such losses alone, with sound weights and gradients


def non_finite(record: Record) -> Finding | None:
    """NaN or Inf in the weights, the gradients or the loss."""
    if not len(record):
        return None
    here = np.isfinite(record["lr"])  # a layer that joined later has no numbers before
    weights, grads = ~np.isfinite(record["param_sq"]) & here, ~np.isfinite(record["grad_sq"]) & here
    loss = np.isinf(record.loss) | (np.isnan(record.loss) & (np.fmax.accumulate(record.loss) > -np.inf))
    loss[np.isnan(record.loss) & ~_loss_is_given(record)] = False
    bad = weights.any(axis=1) | grads.any(axis=1) | loss
    if not bad.any():
        return None
    row = int(np.argmax(bad))
    where = grads[row] | weights[row]
    reached = weights.any()
    lasting = int(bad.sum())
    what = [
        name
        for name, hit in (("loss", loss[row]), ("gradient", grads[row].any()), ("weights", weights[row].any()))
        if hit
    ]
    confidence = "MEDIUM" if grads.any() or held(loss, LOSS_ROWS) is not None else "LOW"
    if reached or grads.any(axis=1).sum() >= 2:
        confidence = "HIGH"
    place = f" in {describe_layers(chosen(record, where), len(record.layers))}" if where.any() else ""
    step = int(record.steps[row])
    reach = "The weights themselves are lost." if reached else "The weights are still finite."
    return Finding(
        code="non_finite",
        confidence=confidence,
        title=f"NaN or Inf in the {what[0]}",
        seen=f"The {' and the '.join(what)} became NaN or Inf at step {step}{place}; {lasting} of {len(record)} "
        f"recorded steps are affected. {reach}",
        meaning="A value left the range of its number format; every later step through it is undefined.",
        advice="Go back to a checkpoint before that step, and lower the learning rate or clip gradients at their usual "
        "norm; in half precision use bfloat16 or a loss scaler.",
        source="IEEE 754; torchtitan and PyTorch anomaly mode stop at the same sign",
        first_step=step,
        raised_step=step,
        layers=names_of(record, where),
        evidence={"non_finite_rows": lasting, "layers": int(where.sum())},
    )


def _loss_is_given(record: Record) -> Mask:
    """Rows for which a loss was given: a NaN between losses is a NaN, before the first or after the last it is none."""
    given = np.isfinite(record.loss)
    before = np.cumsum(given) > 0
    last = record.meta.get("last_loss_step")
    if last is not None:
        return np.asarray(before & (record.steps <= last))
    after = np.cumsum(given[::-1])[::-1] > 0
    lost_for_good = before & ~after & (~np.isfinite(record["grad_sq"])).any(axis=1)
    return np.asarray((before & after) | lost_for_good)
