"""Learning rates that are wrong by what the groups say: gone to zero too early, or apart by orders of magnitude."""

from __future__ import annotations

from math import prod

import numpy as np

from thermoclaw.diagnosis.finding import Finding, describe_layers
from thermoclaw.diagnosis.remedies import Remedy
from thermoclaw.diagnosis.selection import chosen, groups_of, tell, two_digits
from thermoclaw.diagnosis.signals import Mask, held, largest, median_over, trailing_mean
from thermoclaw.diagnosis.view import View, view_of
from thermoclaw.record import Record

ZERO_SHARE, ZERO_ROWS, ZERO_OF_RUN = 1e-6, 10, 0.05
APART_HOT, APART_FAR, APART_COLD = 30.0, 100.0, 1000.0
HOT_UPDATE, HOT_AGAINST_OTHERS = 0.05, 20.0
COLD_AGAINST_OTHERS = 0.1


def lr_schedule_zero(record: Record) -> Finding | None:
    """The schedule has reached zero and the run goes on."""
    view = view_of(record)
    peak = np.maximum.accumulate(view.lr) if len(record) else view.lr
    zero = (peak > 0) & (view.lr <= ZERO_SHARE * peak)
    enough = np.cumsum(zero) >= np.maximum(ZERO_ROWS, ZERO_OF_RUN * np.arange(1, len(record) + 1))
    if not (zero & enough).any():
        return None
    row = int(np.argmax(zero & enough))
    start = row - int(np.argmin(zero[row::-1])) + 1 if not zero[: row + 1].all() else 0
    top, when = float(peak[row]), int(record.steps[max(start - 1, 0)])
    lost = record.num_steps - when
    return tell(
        record,
        "lr_schedule_zero",
        "HIGH",
        (start, row),
        title="the learning rate is zero",
        seen=f"The learning rate fell from {top:.3g} to {view.lr[row]:.3g} after step {when}, and {lost} more steps "
        "were made with it.",
        meaning="The schedule was made for a shorter run than this one; from there on every step costs a full pass and "
        "changes nothing.",
        advice="Give the scheduler the number of optimizer steps of this run (batches per epoch × epochs, divided by "
        "accumulation steps), step it once an optimizer step, and go on from here with a rate above zero.",
        source="definition; Tuning Playbook (Godbole et al. 2023)",
        evidence={"lr": float(view.lr[row]), "peak_lr": top, "steps_at_zero": float(lost)},
    )


def layer_lr_mismatch(record: Record) -> Finding | None:
    """Parameter groups whose rates lie orders of magnitude apart, and whose layers move accordingly."""
    view = view_of(record)
    rates = _rates(view)
    known = np.unique(rates[np.isfinite(rates) & (rates > 0)])
    if len(record) < 10 or len(known) < 2:
        return None
    gap = int(np.argmax(known[1:] / known[:-1]))
    apart = float(known[gap + 1] / known[gap])
    if apart < APART_HOT:
        return None
    hot = _layers_of_groups(view, np.flatnonzero(rates > known[gap]))
    cold = _layers_of_groups(view, np.flatnonzero(rates <= known[gap]))
    moved = trailing_mean(record["update_ratio"], 5)
    fast, slow = (
        median_over(moved, mask & view.big if (mask & view.big).any() else mask) for mask in (hot, cold & ~hot)
    )
    burning = (fast > HOT_UPDATE) & ((fast > HOT_AGAINST_OTHERS * slow) | (apart > APART_FAR))
    burning[:2] = False
    for mask, span, confidence in (
        (hot, held(burning, 4), "HIGH"),
        (cold, held(slow < COLD_AGAINST_OTHERS * fast, 10) if apart >= APART_COLD else None, "MEDIUM"),
        (cold, held(np.ones(len(record), dtype=bool), 10) if apart >= 10 * APART_COLD else None, "MEDIUM"),
    ):
        if span is not None and mask.any():
            return _mismatch(view, mask, (0, span[1]), confidence, apart, float(fast[span[1]]), float(slow[span[1]]))
    return None


def _rates(view: View) -> np.ndarray:
    """Learning rate of each parameter group where the run's rate was highest; what the groups say where unknown.

    NaN for a group without parameters, as trainers make one for what has no decay.
    """
    rates = np.array([float(group.get("lr", np.nan)) for group in view.groups])
    known = view.record.meta.get("layer_groups") or {}
    row = int(np.argmax(view.lr)) if len(view.lr) else 0
    for i, layer in enumerate(view.record.layers):
        groups = {int(g) for g in known.get(layer.name, ())}
        if len(groups) == 1 and len(view.lr):
            rates[min(groups)] = view.record["lr"][row, i]
    for i, layer in enumerate(view.record.layers):  # a group that shares all its layers
        several = [int(g) for g in known.get(layer.name, ())] if len(view.lr) else []
        for g in several:
            if not rates[g] > 0:
                rates[g] = _of_weights(view, i, g, several, rates, float(view.record["lr"][row, i]))
    held = {int(g) for groups in known.values() for g in groups}
    if held:
        rates[[g for g in range(len(rates)) if g not in held]] = np.nan
    return rates


def _of_weights(view: View, i: int, group: int, groups: list[int], rates: np.ndarray, mean: float) -> float:
    """The rate of a layer's weights where its bias is in a group of known rate; else at least the layer's mean."""
    layer, shape = view.record.layers[i], (view.record.meta.get("layer_shapes") or {}).get(view.record.layers[i].name)
    if len(groups) != 2 or groups[0] != group or not shape or layer.num_params != prod(shape) + shape[0]:
        return mean
    bias = shape[0] / layer.num_params
    solved = (mean - bias * rates[groups[1]]) / (1.0 - bias)
    return float(solved) if solved > 0 else mean


def _layers_of_groups(view: View, groups: np.ndarray) -> Mask:
    """Layers with a parameter in one of these groups."""
    wanted = {int(g) for g in groups}
    known = view.record.meta.get("layer_groups") or {}
    return np.array([bool(wanted & {int(g) for g in known.get(layer.name, ())}) for layer in view.record.layers])


def _mismatch(
    view: View, mask: Mask, span: tuple[int, int], confidence: str, apart: float, fast: float, slow: float
) -> Finding:
    record = view.record
    is_hot = confidence == "HIGH"
    names = describe_layers(chosen(record, mask), len(record.layers))
    groups = groups_of(record, mask)
    rates = _rates(view)
    mine = max(rates[g] for g in groups) if groups else largest(rates)
    others = [rate for g, rate in enumerate(rates) if g not in groups and np.isfinite(rate)] or rates
    value = two_digits(float(np.median(others)))
    moving = f"a step rewrites {fast:.1%} of them, {slow:.2%} of the others" if np.isfinite(fast + slow) else ""
    return tell(
        record,
        "layer_lr_mismatch",
        confidence,
        span,
        mask=mask,
        title=f"{names} {'run hot' if is_hot else 'stand still beside the others'}",
        seen=f"The learning rate of {names} is {apart:.0f} times {'above' if is_hot else 'below'} that of the other "
        f"parameter groups ({mine:.3g} against {value:.3g}); {moving or 'the layers move accordingly'}.",
        meaning="The hot part destroys what the rest builds on."
        if is_hot
        else "The cold part keeps its initial values; the rest learns around it.",
        advice=f"Set the learning rate of that parameter group from {mine:.3g} to about {value:.3g}, unless the "
        "difference is meant; a head on a pre-trained trunk usually takes 10 times the trunk's rate.",
        source="dispersion of update to weight ratios over layers: Karpathy 2019; You et al. 2017 (LARS)",
        evidence={"rates_apart": apart, "update_ratio_hot": fast, "update_ratio_cold": slow},
        remedy=Remedy("lr", value, mine, groups) if groups else None,
    )
