"""Parameters that get no gradient, or get one and do not move."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding, describe_layers
from thermoclaw.diagnosis.rules.underflow import FLUSHED, all_zero, last_gradient
from thermoclaw.diagnosis.selection import chosen, names_of, tell
from thermoclaw.diagnosis.signals import Mask, held, weights_of
from thermoclaw.diagnosis.view import View, view_of
from thermoclaw.record import Record

SOLVED_ROWS = 40
OVERFLOWS = 1e36  # a squared gradient; single precision ends at 3e38
MORE_THAN_A_HEAD = 3  # weight layers: a head may be trained on random features on purpose
BALANCE = 3.0  # factor within which decay may hold the weights where they are: signed steps stop at 1/λ
UNIFORM = 3.5  # standard deviations within which the largest weight is where a uniform draw has it


def no_gradient(record: Record) -> Finding | None:
    """No layer gets a gradient at all."""
    if len(record) < 3:
        return None
    silent = (record["grad_sq"] == 0).all(axis=1)
    never = np.asarray(~(record["has_grad"] > 0).any(axis=1))
    span = held(silent, 3)
    solved = bool((record.loss[:3] == 0).all())  # nothing to learn has no gradient, but not for ever
    if solved and span is not None:
        span = held(silent, SOLVED_ROWS)
    if span is None or span[0] > 0:
        return _no_gradient_any_more(view_of(record))
    row = span[1]
    what = "missing (None)" if never[row] else "exactly zero"
    return Finding(
        code="no_gradient",
        confidence="MEDIUM" if solved else "HIGH",
        title="no gradient reaches the optimizer",
        seen=f"Every gradient was {what} in the first {row + 1} steps.",
        meaning="The optimizer steps on nothing: the loss does not depend on these parameters, or the gradients were "
        "cleared before the step." + (" The loss is exactly zero as well." if solved else ""),
        advice="Call zero_grad() after optimizer.step() and before backward(), not between backward() and step(); "
        "check that the loss is computed from this model without detach() or no_grad().",
        source="definition",
        first_step=int(record.steps[0]),
        raised_step=int(record.steps[row]),
        evidence={"steps_without_gradient": float(silent.sum())},
    )


def _no_gradient_any_more(view: View) -> Finding | None:
    """Gradients of ordinary size that are gone from one step on."""
    span = all_zero(view)
    size = last_gradient(view, span[0]) if span is not None else 0.0
    if span is None or size <= FLUSHED:
        return None
    record = view.record
    return tell(
        record,
        "no_gradient",
        "HIGH",
        span,
        title="no gradient reaches the optimizer any more",
        seen=f"Since step {int(record.steps[span[0]])} every gradient is exactly zero, while the loss still differs "
        f"from step to step; before that they had a root mean square of {size:.1e} a weight.",
        meaning="The loss no longer depends on the weights: the last activation is dead or saturated, or the graph is "
        "cut, or gradients are cleared before the step.",
        advice="Look at the outputs: where they are all the same, remove the activation after the last layer or lower "
        "the learning rate; otherwise look for detach(), no_grad() or zero_grad() in what begins at that step.",
        source="definition",
        evidence={"gradient_before": size},
    )


def frozen_layers(record: Record) -> Finding | None:
    """Layers that get a gradient and do not move, or parameters that the optimizer was never given."""
    if len(record) < 10:
        return None
    pushed = (record["grad_sq"] > 0) & (record["lr"] > 0)
    # nothing moves NaN, and no gradient a mean square that has overflowed
    pushed &= ~np.maximum.accumulate(~(record["grad_sq"] < OVERFLOWS), axis=0) & np.isfinite(record["param_sq"])
    still = (
        pushed & (record["update_sq"] == 0) & _could_move(record) & (record.optimizer != "LBFGS")
    )  # it stops by itself
    stuck = np.zeros(len(record.layers), dtype=bool)
    rows = []
    for i in np.flatnonzero(still.any(axis=0)):
        span = held(still[:, i], 10)
        if span is not None:
            stuck[i] = True
            rows.append(span)
    if stuck.any():
        start, row = min(rows)
        names = describe_layers(chosen(record, stuck), len(record.layers))
        return Finding(
            code="frozen_layers",
            confidence="HIGH",
            title=f"gradients do not move {names}",
            seen=f"In {names}, weights got gradients for at least 10 steps at a learning rate above zero and did not "
            "change by one bit.",
            meaning="The optimizer's step does not reach these weights, or is smaller than their number format holds.",
            advice="Check that the optimizer was built after the model was moved or re-created; in bfloat16 or float16 "
            "keep float32 master weights.",
            source="TrainCheck (OSDI 2025); SageMaker Debugger, UnchangedTensor",
            first_step=int(record.steps[start]),
            raised_step=int(record.steps[row]),
            layers=names_of(record, stuck),
            evidence={"layers": int(stuck.sum())},
        )
    return _cut_off(record) or _missing_parameters(record)


def _could_move(record: Record) -> Mask:
    """Where the gradient makes a step that the weights' number format can hold and decay does not undo, [T, L]."""
    view = view_of(record)
    gradient = np.sqrt(record["grad_sq"] / view.sizes)
    weight = np.sqrt(record["param_sq"] / view.sizes)
    drive = np.where(gradient > 1e-9, 1.0, 0.0) if view.is_unit_size else gradient
    pull = np.nan_to_num(record["weight_decay"]) * weight
    balanced = (pull > drive / BALANCE) & (pull < drive * BALANCE)
    return np.asarray((record["lr"] * drive > 3e-7 * weight) & ~balanced)


def _is_adapter(name: str) -> bool:
    return any(word in name.lower() for word in ("lora", "adapter", "prompt", "ia3"))


def _cut_off(record: Record) -> Finding | None:
    """Everything before some layer gets no gradient although it asks for one: a detach on the way."""
    asks = np.isfinite(record["has_grad"])
    never = asks.all(axis=0) & (np.nan_to_num(record["has_grad"]) == 0).all(axis=0)
    gets = (record["has_grad"] > 0).mean(axis=0) > 0.5
    if not never.any() or not gets.any():
        return None
    first = int(np.argmax(gets))
    cut = never & (np.arange(len(never)) < first)
    if not (cut & weights_of(record)).any():
        return None
    names = describe_layers(chosen(record, cut), len(record.layers))
    row = min(9, len(record) - 1)
    return tell(
        record,
        "frozen_layers",
        "HIGH",
        (0, row),
        mask=cut,
        title=f"no gradient reaches {names}",
        seen=f"{names} ask for gradients and got none (None) in any of the {len(record)} steps, while everything from "
        f"{record.layers[first].name} on gets them.",
        meaning="The graph is cut between the two: a detach(), a no_grad() or a conversion through numpy on the way.",
        advice=f"Look at what happens to the tensor that goes into {record.layers[first].name}; if the freeze is "
        "meant, set requires_grad = False on the layers before it.",
        source="TrainCheck (OSDI 2025); definition",
        evidence={"layers": float(cut.sum())},
    )


def _as_drawn(record: Record, names: list[str]) -> bool:
    """Whether the matrices among these parameters are uniform, as PyTorch draws them: training softens the edges."""
    edges = record.meta.get("outside_edges") or {}
    told = np.array([float(edges[name]) for name in names if name in edges])
    return len(told) > 0 and view_of(record).fresh and bool((np.abs(told) < UNIFORM).all())


def _missing_parameters(record: Record) -> Finding | None:
    """Parameters outside the optimizer that get gradients and that nobody moves."""
    missing = [str(name) for name in record.meta.get("unoptimized", ())]
    if not missing:
        return None
    optimized = [name for layer in record.layers for name in layer.param_names]
    order = [str(name) for name in record.meta.get("parameter_order", ())]
    place = {name: i for i, name in enumerate(order)}
    deliberate = bool(order) and max(place.get(n, 0) for n in missing) < min(place.get(n, 0) for n in optimized)
    adapters = any(_is_adapter(name) for name in optimized) and not any(_is_adapter(name) for name in missing)
    adapters &= len(missing) >= len(optimized)
    untrained = not adapters and _as_drawn(record, missing)
    deliberate &= not untrained
    only_a_head = untrained and weights_of(record).sum() < MORE_THAN_A_HEAD
    confidence = "LOW" if deliberate or adapters else "MEDIUM" if only_a_head else "HIGH"
    some = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
    return Finding(
        code="frozen_layers",
        confidence=confidence,
        title="parameters missing from the optimizer",
        seen=f"{len(missing)} trainable parameters get gradients but are in no group of the optimizer and never "
        f"change: {some}.",
        meaning="They cost a backward pass and learn nothing."
        + (" It looks deliberate: everything before the trained part is left out." if deliberate else "")
        + (" Their matrices are as they were drawn: nobody has trained them before, either." if untrained else ""),
        advice="Add them to the optimizer, or set requires_grad = False on them to save the work.",
        source="TrainCheck (OSDI 2025)",
        first_step=int(record.steps[0]),
        raised_step=int(record.steps[min(9, len(record) - 1)]),
        layers=tuple(missing),
        evidence={"missing_parameters": len(missing)},
    )
