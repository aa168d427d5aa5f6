"""What the first steps show of the beginning: weights at the wrong scale, inputs at the wrong scale."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding, describe_layers
from thermoclaw.diagnosis.rules.precision import half_ulps
from thermoclaw.diagnosis.selection import chosen, tell, two_digits
from thermoclaw.diagnosis.signals import Mask, first_known, held, trailing_mean
from thermoclaw.diagnosis.view import View, view_of
from thermoclaw.quantities import Array
from thermoclaw.record import Record

GAIN_LARGE, GAIN_SMALL = 2.5, 5e-3
ALIKE, ALIKE_ROWS = 0.999, 4
TABLE_LARGE, TABLE_ROWS, TABLE_LOSS = 3.5, 20, 1.5
INPUT_LARGE, INPUT_ROWS, INPUT_PROBES, INPUT_SPREAD = 40.0, 64, 4, 1.0
INPUT_SPREAD_NORMED = 0.15  # a norm right behind cancels the bias's gradient; in half precision as much is left
INPUT_ROUNDING = 2e4  # beyond, a batch norm has cancelled the bias's gradient, and what is left is rounding


def bad_init(record: Record) -> Finding | None:
    """Most weight matrices start at zero, far too large, far too small, or with all rows alike."""
    view = view_of(record)
    if not view.fresh or len(record) < 3:
        return None
    gain = first_known(view.optional("start_gain"))
    known = np.isfinite(gain) & view.trained & (~view.tables | (gain == 0))  # tables have no fan-in; zeros are zeros
    if known.sum() < 1:
        return None
    for what, mask in _wrong_starts(record, gain, known):
        most = mask.sum() > 0.5 * known.sum() or (what == "zero" and mask.sum() == 0.5 * known.sum())
        if most and (known.sum() > 1 or what in ("zero", "alike")):
            return _bad_init(record, what, mask, gain)
    return _large_tables(view, gain)


def _large_tables(view: View, gain: Array) -> Finding | None:
    """Embeddings of a new model start far beyond unit scale, and the first loss is far above what soon follows."""
    loss, large = view.loss, view.tables & view.trained & (gain > TABLE_LARGE)
    if loss is None or not large.any() or not view.matrices_are_new:
        return None
    below = TABLE_LOSS * np.abs(trailing_mean(view.record.loss, 5)) < view.record.loss[:3].min()
    span = held(below & (np.arange(len(below)) >= TABLE_ROWS), 1)
    return None if span is None else _bad_init(view.record, "table", large, gain, raised=span[1])


def _wrong_starts(record: Record, gain: Array, known: Mask) -> list[tuple[str, Mask]]:
    shapes = record.meta.get("layer_shapes") or {}
    many = np.array([(shapes.get(layer.name) or [0])[0] >= ALIKE_ROWS for layer in record.layers], dtype=bool)
    alike = many & (first_known(view_of(record).optional("row_likeness")) > ALIKE)
    return [
        ("zero", known & (gain == 0) & _passes_nothing(record, known & (gain == 0))),
        ("large", known & (gain > GAIN_LARGE)),
        ("small", known & (gain > 0) & (gain < GAIN_SMALL)),
        ("alike", known & (gain > 0) & alike),
    ]


def _passes_nothing(record: Record, zero: Mask) -> Mask:
    """All of them where most get no gradient at the first step, as behind a last layer of zeros; else none.

    A second half of an adapter, or a residual branch's last layer, starts at zero on purpose and gets its gradient.
    """
    stuck = zero & (record["grad_sq"][0] == 0) & (record["has_grad"][0] > 0)
    some = bool((record["grad_sq"][0] > 0).any())  # else it is not the weights that no gradient passes
    return np.full(len(zero), some and stuck.sum() > 0.4 * zero.sum() > 0)


def _bad_init(record: Record, what: str, mask: Mask, gain: Array, raised: int = 2) -> Finding:
    names = describe_layers(chosen(record, mask), len(record.layers))
    typical = float(np.median(gain[mask]))
    seen, factor = {
        "zero": (f"All weights of {names} start at exactly zero.", 0.0),
        "large": (f"{names} start {typical:.1f} times as large as keeps a signal's size (gain, rms·√fan-in).", 1.0),
        "small": (f"{names} start at {typical:.1e} of what keeps a signal's size (gain, rms·√fan-in).", 1.0),
        "alike": (f"In {names} every output unit starts with the same weights.", 0.0),
        "table": (
            f"The vectors of {names} start at a root mean square of {typical:.2g}, where 0.02 to 1 is usual.",
            1.0,
        ),
    }[what]
    meaning = {
        "zero": "Zero weights pass neither signal nor gradient on: nothing behind the last layer can learn.",
        "large": "Each layer multiplies what it is given: activations saturate or explode, and the first steps are "
        "spent on undoing that.",
        "small": "Each layer shrinks what it is given: nothing of the input reaches the output, nor of the gradient "
        "the input.",
        "alike": "Units that start equal get equal gradients and stay equal: the layer is one unit wide.",
        "table": "What is computed from them is as much too large: the first loss is far above that of a guess, and "
        "the first steps undo that.",
    }[what]
    scale = f" (here: multiply them by about {two_digits(factor / typical):.2g})" if factor and typical > 0 else ""
    return tell(
        record,
        "bad_init",
        "HIGH",
        (0, min(raised, len(record) - 1)),
        mask=mask,
        title="weights start alike" if what in ("zero", "alike") else "weights start at a wrong scale",
        seen=seen,
        meaning=meaning,
        advice=f"Initialize with a gain near 1, such as torch.nn.init.kaiming_normal_ or xavier_uniform_{scale}, and "
        "start again.",
        source="He et al. 2015 (arXiv 1502.01852): variance kept from layer to layer; SageMaker Debugger, "
        "PoorWeightInitialization",
        evidence={"gain": typical, "layers": float(mask.sum())},
    )


def unnormalised_input(record: Record) -> Finding | None:
    """The first layer is driven by inputs far from unit scale."""
    view = view_of(record)
    if not view.fresh or len(record) < 5:
        return None
    matrices = np.isfinite(first_known(view.optional("start_gain"))) & view.trained
    if max(matrices.sum(), view.big.sum()) < 2:  # errors of a linear model cancel in its bias
        return None
    scales = view.optional("input_scale")[:INPUT_ROWS]
    if not np.isfinite(scales).any():
        return None
    first = int(np.argmax(np.isfinite(scales).any(axis=0)))
    if half_ulps(view)[first] > 0:  # a bias in a short format has lost part of its gradient
        return None
    told = scales[:, first]
    told = told[np.isfinite(told) & (told > 0)][:INPUT_PROBES]
    if not len(told):
        return None
    scale, spread = float(told.min()), float(np.std(np.log(told)))  # errors that cancel make it larger
    normed = first + 1 < len(record.layers) and record.layers[first + 1].ltype == "layernorm"
    if not INPUT_LARGE < scale < INPUT_ROUNDING or spread > (INPUT_SPREAD_NORMED if normed else INPUT_SPREAD):
        return None
    mask = np.arange(len(record.layers)) == first
    return tell(
        record,
        "unnormalised_input",
        "HIGH",
        (0, min(8, len(record) - 1)),
        mask=mask,
        title="inputs at a wrong scale",
        seen=f"The gradient of {record.layers[first].name} says that its inputs have a root mean square of about "
        f"{scale:.3g}, where 1 is usual.",
        meaning="The first layer's activations and gradients are larger than all others by that factor: one learning "
        "rate cannot fit both it and the rest.",
        advice=f"Normalize the inputs: subtract the mean and divide by the standard deviation of the training set "
        f"(here roughly {two_digits(scale):.2g}).",
        source="LeCun et al. 1998, Efficient BackProp; UMLAUT (Schoop et al., CHI 2021)",
        evidence={"input_scale": scale},
    )
