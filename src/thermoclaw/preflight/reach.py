"""Which parameters a gradient reaches, and whether any of it is left when it arrives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

import torch

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.preflight.probe import Probe
from thermoclaw.preflight.result import make_finding
from thermoclaw.preflight.setup import Setup, Weight, layers_of

DEAD_ROWS = 0.75
VANISHING, VANISHING_NORM = 1e-3, 1e-4
EXPLODING = 70.0
ELASTICITY, ELASTICITY_UNKNOWN, GUESSING = 20.0, 100.0, 0.7  # the first where a classifier still guesses
SOURCE = "TrainCheck (OSDI 2025); SageMaker Debugger, UnchangedTensor"


def check_reach(setup: Setup, probe: Probe) -> list[Finding]:
    """Parameters whose gradient is None, or exactly zero for no reason that the initial weights give."""
    norms = _most(probe)
    trained = [w for w in probe.weights if w.group is not None]
    if not trained:
        return []
    if all(not norms[w.name] > 0 for w in trained):
        return [_nothing(probe, norms, trained)]
    by_layer: dict[str, list[Weight]] = {}
    for w in trained:
        by_layer.setdefault(w.layer, []).append(w)
    none = [layer for layer, ws in by_layer.items() if all(math.isnan(norms[w.name]) for w in ws)]
    cut = [layer for layer in none if layer in probe.seen.used]
    zero = [layer for layer, ws in by_layer.items() if all(norms[w.name] == 0 for w in ws)]
    found = []
    if cut:
        found.append(_cut(setup, cut, len(probe.losses)))
    elif none:
        found.append(_unused(setup, none))
    if _has_deliberate_zeros(setup):
        return found
    if zero:
        found.append(_zero(setup, zero, len(probe.losses)))
    dead = _dead(probe)
    if dead:
        found.append(_dead_units(setup, dead))
    return found


def _most(probe: Probe) -> dict[str, float]:
    """The largest gradient norm of each parameter over the batches; NaN where there was never one."""
    most: dict[str, float] = {}
    for place, w in enumerate(probe.weights):
        values = [row[place] for row in probe.norms if not math.isnan(row[place])]
        most[w.name] = max(values, default=math.nan)
    return most


@torch.no_grad()
def _has_deliberate_zeros(setup: Setup) -> bool:
    """Whether a branch ends in zeros, behind which gradients of zero are meant."""
    gates = (w for w in setup.weights if w.param.numel() and not w.name.endswith("bias"))
    return any(not bool(w.param.any()) for w in gates)


def _dead(probe: Probe) -> dict[str, float]:
    """Linear and convolutional layers by the share of their units whose gradient is exactly zero, where it is high."""
    found = {}
    for w, g in zip(probe.weights, probe.grads, strict=True):
        if g is None or g.is_sparse or not (hasattr(w.module, "in_features") or hasattr(w.module, "in_channels")):
            continue
        if w.is_matrix and len(g) > 1:
            share = float((g.flatten(1) == 0).all(dim=1).double().mean())
            if DEAD_ROWS < share < 1.0:
                found[w.layer] = share
    return found


def check_depth(setup: Setup, probe: Probe) -> list[Finding]:
    """Gradients that die out, or grow without measure, on their way to the first layers."""
    steep = _elasticity(probe)
    is_fresh = probe.num_classes > 1 and probe.loss > GUESSING * math.log(probe.num_classes)
    if steep > (ELASTICITY if is_fresh else ELASTICITY_UNKNOWN) and not setup.optimizer.state:
        return [_steep(steep)]
    matrices = [w for w in probe.weights if w.is_matrix and w.group is not None and w.layer in probe.seen.used]
    norms = _most(probe)
    sizes = [(w, norms[w.name] / math.sqrt(w.param.numel())) for w in matrices if norms[w.name] > 0]
    if len(sizes) < 4 or _has_deliberate_zeros(setup):
        return []
    (first, begin), (_, end) = sizes[0], sizes[-1]
    layers = layers_of([first])
    evidence = {"first_over_last": begin / end, "first_norm": norms[first.name]}
    if begin < VANISHING * end and norms[first.name] < VANISHING_NORM:
        return [_depth("vanishing_gradients", "vanish on their way to the first layers", layers, evidence)]
    if begin > EXPLODING * end:
        return [_depth("exploding_gradients", "grow on their way to the first layers", layers, evidence)]
    return []


def _elasticity(probe: Probe) -> float:
    """The largest ‖g‖‖θ‖/|loss| of a matrix, a median over the batches: by how many percent one percent may move it."""
    found = []
    for row, loss in zip(probe.norms, probe.losses, strict=True):
        pairs = [(w, g) for w, g in zip(probe.weights, row, strict=True) if w.is_matrix and g > 0]
        sizes = [g * float(w.param.detach().norm()) / max(abs(loss), 1e-30) for w, g in pairs]
        found.append(max(sizes, default=0.0))
    return median(found)


def _steep(elasticity: float) -> Finding:
    return make_finding(
        "exploding_gradients",
        "MEDIUM",
        "the loss is far too steep in the weights",
        seen=f"On the first batches a change of a matrix by 1 % can change the loss by {elasticity:.3g} %, by its "
        "gradient.",
        meaning="Layers multiply one another's errors, and steps of any useful length overshoot.",
        advice="Make the initial weights smaller, normalize between the layers, or clip gradients and lower the rate.",
        source="docs: preflight; usual initializations give 0.1 to 10",
        evidence={"elasticity": elasticity},
    )


def _depth(code: str, title: str, layers: Sequence[str], evidence: dict[str, float]) -> Finding:
    return make_finding(
        code,
        "MEDIUM",
        f"gradients {title}",
        seen=f"On the first batches a weight of the first matrix ({layers[0]}) has {evidence['first_over_last']:.2g} "
        "times the gradient of one in the last.",
        meaning="Each layer multiplies the gradient by the same factor, and the product leaves every useful range.",
        advice="Normalize between the layers, add shortcuts, or choose activations and initial weights that keep the "
        "size of the signal (ReLU with He initialization, for one).",
        source="AutoTrainer (ICSE 2021)",
        layers=tuple(layers),
        evidence=evidence,
    )


def _nothing(probe: Probe, norms: dict[str, float], trained: list[Weight]) -> Finding:
    is_none = all(math.isnan(norms[w.name]) for w in trained)
    cause = "None for every parameter" if is_none else "exactly zero for every parameter"
    return make_finding(
        "no_gradient",
        "HIGH",
        "the loss does not depend on the parameters",
        seen=f"On {len(probe.losses)} batches the gradient is {cause} in the optimizer.",
        meaning="No step will change anything.",
        advice="Look for a detach(), .item(), torch.no_grad() or a new tensor between the model and the loss."
        if is_none
        else "Look at the initial weights: zeros in a row, or units that never fire, let no gradient through.",
        source=SOURCE,
        evidence={"batches": float(len(probe.losses))},
    )


def _cut(setup: Setup, layers: list[str], batches: int) -> Finding:
    return make_finding(
        "frozen_layers",
        "HIGH",
        "no gradient reaches layers that are used",
        seen=f"{setup.describe(layers).capitalize()} run, are in the optimizer and require a gradient, which is None on"
        f" {batches} batches.",
        meaning="The graph is cut between them and the loss; they will never change.",
        advice="Look for a detach(), torch.no_grad() or a conversion through numpy behind them; freeze them with "
        "requires_grad_(False) if that is meant.",
        source=SOURCE,
        layers=tuple(layers),
        evidence={"batches": float(batches), "layers": float(len(layers))},
    )


def _unused(setup: Setup, layers: list[str]) -> Finding:
    return make_finding(
        "frozen_layers",
        "LOW",
        "layers that the loss does not use",
        seen=f"{setup.describe(layers).capitalize()} got no gradient and did not run.",
        meaning="They are not used on these batches and will not change as long as that is so.",
        advice="Nothing, if other batches use them.",
        source=SOURCE,
        layers=tuple(layers),
        evidence={"layers": float(len(layers))},
    )


def _zero(setup: Setup, layers: list[str], batches: int) -> Finding:
    return make_finding(
        "frozen_layers",
        "MEDIUM",
        "gradients of exactly zero",
        seen=f"The gradient of {setup.describe(layers)} is exactly zero on {batches} batches, though no initial "
        "weights of zero explain it.",
        meaning="The units behind them never fire, or a multiplication by zero cuts them off.",
        advice="Look at biases, masks and activations behind these layers.",
        source=SOURCE,
        layers=tuple(layers),
        evidence={"batches": float(batches), "layers": float(len(layers))},
    )


def _dead_units(setup: Setup, dead: dict[str, float]) -> Finding:
    worst = max(dead.values())
    return make_finding(
        "dead_units",
        "MEDIUM",
        "most units never fire",
        seen=f"In {setup.describe(tuple(dead))} up to {worst:.0%} of the units have a gradient of exactly zero on the "
        "first batch.",
        meaning="Units that fire for no input learn nothing, and only luck brings them back.",
        advice="Look at initial biases and at the scale of the inputs.",
        source="SageMaker Debugger, DeadRelu",
        layers=tuple(dead),
        evidence={"dead_share": worst},
    )
