"""Batches of a single example, as the rank of a gradient tells them."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.selection import tell
from thermoclaw.diagnosis.signals import held, trailing_mean
from thermoclaw.diagnosis.view import View

ONE, ONE_FROM, ONE_ROWS, WINDOW = 1e-5, 60, 10, 40
RESTLESS, NOISY, LEARNED = 0.25, 0.7, 0.25  # of the loss; of the squared gradient; of the first loss


def one_example(view: View) -> Finding | None:
    """Every gradient has had one direction, the loss scatters from step to step, and much of it is still there.

    Where inputs of that layer have become alike for all examples its gradient has one direction as well, but then the
    loss is calm.
    """
    record, rank = view.record, view.optional("stable_rank")
    if view.loss is None or len(record) <= ONE_FROM or not np.isfinite(rank).any():
        return None
    layer = int(np.argmax(np.isfinite(rank).any(axis=0)))
    known = np.isfinite(rank[:, layer])
    always = np.logical_and.accumulate(~known | (np.abs(rank[:, layer] - 1.0) < ONE))
    level = trailing_mean(record.loss, WINDOW)
    hit = always & (view.loss.noise > RESTLESS * np.abs(level)) & (level > LEARNED * view.loss.start)
    hit &= (trailing_mean(view.noise_share, WINDOW) > NOISY) & (np.arange(len(record)) >= ONE_FROM)
    span = held(hit, ONE_ROWS)
    if span is None:
        return None
    row, name = span[1], record.layers[layer].name
    probes, scatter = int(known[: row + 1].sum()), float(view.loss.noise[row] / abs(level[row]))
    return tell(
        record,
        "gradient_noise",
        "MEDIUM",
        (0, row),
        title="each step sees a single example",
        seen=f"At all of {probes} probes the gradient of {name} was that of one example (rank one), and over "
        f"{WINDOW} steps the loss scatters by {scatter:.0%} of its mean, {level[row]:.4g}, "
        f"{level[row] / view.loss.start:.0%} of the first one.",
        meaning="What one example asks for is mostly noise: steps undo each other, and a rate made for batches is too "
        "high for it.",
        advice="Give the loader a batch size (a DataLoader without one makes batches of 1), or accumulate gradients "
        "over 16 examples and more; where batches must be this small, lower the learning rate in proportion.",
        source="McCandlish et al. 2018 (arXiv 1812.06162); the gradient of a linear map is Σ δxᵀ over examples",
        evidence={
            "stable_rank": float(rank[np.flatnonzero(known[: row + 1])[-1], layer]),
            "scatter": scatter,
            "loss_share": float(level[row] / view.loss.start),
        },
    )
