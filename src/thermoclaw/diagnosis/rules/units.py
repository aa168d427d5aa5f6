"""Units that no longer take part."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding, describe_layers
from thermoclaw.diagnosis.selection import chosen, tell
from thermoclaw.diagnosis.signals import held, lagged
from thermoclaw.diagnosis.view import view_of
from thermoclaw.record import Record

SILENT, SILENT_MORE, DEAD, ENDS = 0.7, 0.4, 0.72, 0.3
SUDDEN, EARLY_PROBES, FEW_ZEROS, MOST, SOLVED = 4, 20, 0.6, 0.95, 1e-3


def dead_units(record: Record) -> Finding | None:
    """Most rows of some layers get exactly zero gradient, batch after batch."""
    view = view_of(record)
    silent, dead = view.optional("silent_rows"), view.optional("dead_rows")
    known = np.isfinite(silent).any(axis=1)
    if view.loss is not None:
        known &= ~(np.abs(record.loss) <= SOLVED * abs(view.loss.start))  # with the loss gone, so are gradients
    probed = np.flatnonzero(known)
    if len(probed) < 2:
        return None
    quiet, gone = np.nan_to_num(silent[probed]), np.nan_to_num(dead[probed])
    base = np.minimum.accumulate(np.where(np.isfinite(silent[probed]), quiet, np.inf), axis=0)
    has = np.asarray((record["grad_sq"] > 0).any(axis=0))
    last = int(np.flatnonzero(view.big)[-1]) if view.big.any() else 0
    # no activation silences the last layer: that is underflow
    zeros = np.nan_to_num(view.optional("grad_zeros")[probed])
    alive = has[None, :] & ((quiet[:, last] < ENDS) & (zeros[:, last] < MOST))[:, None]
    earlier = lagged(quiet, SUDDEN)  # fewer and fewer zeros come of underflow, at once they come of units
    fell = (
        (quiet > SILENT)
        & (quiet > base + SILENT_MORE)
        & (quiet > earlier + SILENT_MORE)
        & (lagged(zeros, SUDDEN) < FEW_ZEROS)
        & alive
    )
    never = (gone > DEAD) & has[None, :] & (np.arange(len(quiet)) < EARLY_PROBES)[:, None]
    for hit, rows in ((fell, 2), (never, 1)):
        span = held(np.asarray(hit.any(axis=1)), rows)
        if span is not None:
            break
    else:
        return None
    start, row = int(probed[max(span[0] - 2, 0)]), int(probed[span[1]])  # silence is told two probes later
    mask = hit[span[1]]
    share = float(np.median(quiet[span[1]][mask]))
    return tell(
        record,
        "dead_units",
        "HIGH",
        (start, row),
        mask=mask,
        title="units are dead",
        seen=f"In {describe_layers(chosen(record, mask), len(record.layers))} {share:.0%} of the output units got "
        "exactly zero gradient in every batch that was looked at.",
        meaning="They never fire (a ReLU below zero for all inputs) and can never come back: the layer is that much "
        "narrower than it was built.",
        advice="Go back to before they died and lower the learning rate; use GELU, SiLU or LeakyReLU, He "
        "initialization and biases at zero; or re-initialize the dead units (ReDo).",
        source="SageMaker Debugger, DeadRelu; Sokar et al. 2023 (arXiv 2302.12902)",
        evidence={"silent_share": share, "layers": float(mask.sum())},
    )
