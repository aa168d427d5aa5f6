"""Units that no longer take part."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thermoclaw.diagnosis.finding import Finding, describe_layers
from thermoclaw.diagnosis.rules.underflow import FLUSHED_LEAVES, left_size
from thermoclaw.diagnosis.selection import chosen, tell
from thermoclaw.diagnosis.signals import Mask, held, lagged, trailing_max, trailing_mean, trailing_min
from thermoclaw.diagnosis.view import View, view_of
from thermoclaw.quantities import Array
from thermoclaw.record import Record

Rows = NDArray[np.intp]

SILENT, SILENT_MORE, DEAD, ENDS = 0.7, 0.4, 0.72, 0.3
UNUSED_ROWS = 3
GONE, LEARNED, LEARNS, LEARNS_ROWS = 0.95, 0.5, 0.8, 40
# one layer of several that slowly falls silent is a symptom
MANY_LAYERS, MANY_LEFT, ROSE, ROSE_ROWS, ROSE_BACK = 4, 0.9, 1.2, 5, 40
GAINS, FEW = 0.7, 0.02  # of the first loss; of the parameters
FROM_THE_START = 0.75  # of the silent share, at the first probe
SILENT_PROBES, DEAD_PROBES, SAME = 3, 12, 0.03  # as those of rows; shares of elements that stay the same
SUDDEN, EARLY_PROBES, FEW_ZEROS, MOST, SOLVED = 4, 20, 0.6, 0.95, 1e-3


def _unused(record: Record, row: int) -> Mask:
    """Layers of parts without any gradient, their last layers included: dead units leave one to the bias there."""
    silent = (record["grad_sq"][max(row + 1 - UNUSED_ROWS, 0) : row + 1] == 0).all(axis=0)
    parents = [layer.name.rpartition(".")[0] for layer in record.layers]
    whole = {
        parent
        for parent in parents
        if parent
        and parents.count(parent) > 1
        and all(silent[i] for i, layer in enumerate(record.layers) if layer.name.startswith(f"{parent}."))
    }
    return np.array([any(f"{parent}.".startswith(f"{part}.") for part in whole) for parent in parents], dtype=bool)


def _left_out(record: Record, mask: Mask, span: tuple[int, int]) -> Finding:
    """A part that the model does not use, such as an expert that no router chooses."""
    return tell(
        record,
        "dead_units",
        "LOW",
        span,
        mask=mask,
        title="a part of the model is not used",
        seen=f"{describe_layers(chosen(record, mask), len(record.layers))} got exactly zero gradient, biases and last "
        "layers included, while the rest of the model learns.",
        meaning="Nothing that goes through this part reaches the loss: an expert that no router chooses, or a branch "
        "that is switched off.",
        advice="If it is an expert, raise the load-balancing loss or the router's noise; if a branch, nothing.",
        source="definition; Fedus et al. 2021 (arXiv 2101.03961) for load balancing",
        evidence={"layers": float(mask.sum())},
    )


def _rose(view: View, start: int, row: int) -> bool:
    """Whether the loss stands above where it was some time before the units were found silent."""
    if view.loss is None:
        return True
    level = trailing_mean(view.record.loss, ROSE_ROWS)
    return not level[row] < ROSE * level[max(start - ROSE_BACK, 0) : start + 1].min()


def _gains(view: View, row: int) -> bool:
    """Whether a good part of the loss is gone at a row."""
    return view.loss is not None and bool(trailing_mean(view.record.loss, ROSE_ROWS)[row] < GAINS * view.loss.start)


def _learns(view: View, row: int) -> bool:
    """Whether most of the loss is gone at a row, and it still falls."""
    if view.loss is None:
        return False
    level = trailing_mean(view.record.loss, LEARNS_ROWS // 2)
    return bool(level[row] < LEARNED * view.loss.start and level[row] < LEARNS * level[max(row - LEARNS_ROWS, 0)])


def _with_norms(view: View, silent: Array, dead: Array) -> tuple[Array, Array]:
    """The same, with the elements of norms that always get no gradient, [T, L] each.

    A layer norm mixes units before they are switched off: rows in front of it have a gradient, its own elements none.
    """
    zeros = view.optional("grad_zeros")
    norms = np.array([layer.ltype == "layernorm" for layer in view.record.layers]) & ~np.isfinite(silent).any(axis=0)
    rows = np.flatnonzero(np.isfinite(zeros[:, norms]).any(axis=1))
    if not len(rows):
        return silent, dead
    silent, dead = silent.copy(), dead.copy()
    for told, probes in ((silent, SILENT_PROBES), (dead, DEAD_PROBES)):
        low, high = trailing_min(zeros[rows], probes), trailing_max(zeros[rows], probes)
        always = np.where((high - low < SAME) & (np.arange(len(rows)) >= probes - 1)[:, None], low, 0.0)
        told[np.ix_(rows, norms)] = always[:, norms]
    return silent, dead


def _silenced(view: View, probed: Rows, silent: Array, gone: Array, zeros: Array) -> tuple[Mask, Mask]:
    """Where most units of a layer fell silent at once, and where they always were, at P probes, [P, L] each."""
    quiet = np.nan_to_num(silent)
    base = np.minimum.accumulate(np.where(np.isfinite(silent), silent, np.inf), axis=0)
    has = np.asarray((view.record["grad_sq"] > 0).any(axis=0))
    ends = np.flatnonzero(has & np.isfinite(view.optional("silent_rows")).any(axis=0))
    last = int(ends[-1]) if len(ends) else 0  # no activation silences the last layer: that is underflow
    ordinary = left_size(view)[probed, last] > FLUSHED_LEAVES  # a few units that are on, and nothing is flushed
    alive = has[None, :] & ((quiet[:, last] < ENDS) & ((zeros[:, last] < MOST) | ordinary))[:, None]
    earlier = lagged(quiet, SUDDEN)  # fewer and fewer zeros come of underflow, at once they come of units
    fell = (quiet > SILENT) & (quiet > base + SILENT_MORE) & (quiet > earlier + SILENT_MORE)
    fell &= (lagged(zeros, SUDDEN) < FEW_ZEROS) & alive
    return fell, (gone > DEAD) & has[None, :] & (np.arange(len(quiet)) < EARLY_PROBES)[:, None]


def dead_units(record: Record) -> Finding | None:
    """Most rows of some layers get exactly zero gradient, batch after batch."""
    view = view_of(record)
    silent, dead = _with_norms(view, view.optional("silent_rows"), view.optional("dead_rows"))
    known = np.isfinite(view.optional("silent_rows")).any(axis=1)
    if view.loss is not None:
        known &= ~(np.abs(record.loss) <= SOLVED * abs(view.loss.start))  # with the loss gone, so are gradients
    probed = np.flatnonzero(known)
    if len(probed) < 2:
        return None
    quiet, zeros = np.nan_to_num(silent[probed]), np.nan_to_num(view.optional("grad_zeros")[probed])
    fell, never = _silenced(view, probed, silent[probed], np.nan_to_num(dead[probed]), zeros)
    for hit, rows in ((fell, 2), (never, 1)):
        span = held(np.asarray(hit.any(axis=1)), rows)
        if span is not None:
            break
    else:
        return None
    start, row = int(probed[max(span[0] - 2, 0)]), int(probed[span[1]])  # silence is told two probes later
    mask, of_rows = hit[span[1]], np.isfinite(view.optional("silent_rows")).any(axis=0)
    if (mask & of_rows).any():
        mask = mask & of_rows  # a norm of the same units is no second layer
    unused = _unused(record, row)
    if (mask & ~unused).any():
        mask = mask & ~unused
    elif unused.any():
        return _left_out(record, mask, (start, row))
    share = float(np.median(quiet[span[1]][mask]))
    if hit is never and np.median(zeros[0][mask]) > FROM_THE_START * share:
        start = 0  # before any step
    learns = mask.sum() == 1 and share < GONE and _learns(view, row)
    learns |= view.sizes[mask].sum() < FEW * view.sizes.sum() and _gains(view, row)  # a bottleneck of a few units
    one = mask.sum() == 1 and view.big.sum() >= MANY_LAYERS and share < MANY_LEFT and not _rose(view, start, row)
    return tell(
        record,
        "dead_units",
        "LOW" if learns or one else "HIGH",
        (start, row),
        mask=mask,
        title="units are dead",
        seen=f"In {describe_layers(chosen(record, mask), len(record.layers))} {share:.0%} of the output units got "
        "exactly zero gradient in every batch that was looked at.",
        meaning="They never fire (a ReLU below zero for all inputs) and can never come back: the layer is that much "
        "narrower than it was built." + (" The run learns all the same, with the rest." if learns else ""),
        advice="Go back to before they died and lower the learning rate; use GELU, SiLU or LeakyReLU, He "
        "initialization and biases at zero; or re-initialize the dead units (ReDo).",
        source="SageMaker Debugger, DeadRelu; Sokar et al. 2023 (arXiv 2302.12902)",
        evidence={"silent_share": share, "layers": float(mask.sum())},
    )
