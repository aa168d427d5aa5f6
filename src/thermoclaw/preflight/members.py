"""Whether the optimizer holds what the model trains."""

from __future__ import annotations

from collections import Counter

from torch import Tensor

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.preflight.result import make_finding
from thermoclaw.preflight.setup import Setup, Weight, layers_of

SOURCE = "TrainCheck (OSDI 2025); SageMaker Debugger, UnchangedTensor"


def check_members(setup: Setup) -> list[Finding]:
    """Parameters that nobody trains, parameters that nobody uses, and nothing to train at all."""
    found = []
    if not setup.trained:
        found.append(_all_frozen(setup))
    missing = [w for w in setup.weights if w.group is None and w.param.requires_grad and w.param.numel()]
    missing = [w for w in missing if id(w.param) not in setup.others]
    known = {id(w.param) for w in setup.weights}
    held = (p for group in setup.optimizer.param_groups for p in group["params"])
    strays = [] if _is_partitioned(setup) else [p for p in held if id(p) not in known]
    if missing and _are_former_selves(missing, strays):
        found.append(_stale(setup, missing, strays))
    elif missing:
        found.append(_missing(setup, missing))
    elif strays:
        found.append(_strays(strays))
    return found


def _is_partitioned(setup: Setup) -> bool:
    """Whether the optimizer holds flat tensors instead of the model's parameters."""
    return any(not isinstance(p, Tensor) for unit in setup.layout.units for p in unit.params)


def _are_former_selves(missing: list[Weight], strays: list[Tensor]) -> bool:
    """Whether the optimizer holds, for most of what is missing, something of the same shape that is not the model's."""
    shapes = Counter(tuple(p.shape) for p in strays)
    wanted = Counter(tuple(w.param.shape) for w in missing)
    return 2 * sum((shapes & wanted).values()) > len(missing)


def _count(weights: list[Weight]) -> int:
    return sum(w.param.numel() for w in weights)


def _stale(setup: Setup, missing: list[Weight], strays: list[Tensor]) -> Finding:
    layers = layers_of(missing)
    return make_finding(
        "frozen_layers",
        "HIGH",
        "the optimizer holds parameters of another model",
        seen=f"{len(missing)} parameters ({missing[0].name}{' …' if len(missing) > 1 else ''}) require a gradient and "
        f"are not in the optimizer, which holds {len(strays)} of the same shapes that are not the model's.",
        meaning="The layers were made anew, copied or moved after the optimizer was built; they will never change.",
        advice="Build the optimizer after the model is complete and on its device.",
        source=SOURCE,
        layers=layers,
        evidence={"missing_params": float(_count(missing)), "stray_tensors": float(len(strays))},
    )


def _missing(setup: Setup, missing: list[Weight]) -> Finding:
    layers = layers_of(missing)
    total = _count([w for w in setup.weights if w.param.requires_grad])
    return make_finding(
        "frozen_layers",
        "MEDIUM",
        "parameters missing from the optimizer",
        seen=f"{len(missing)} parameters in {len(layers)} layers ({missing[0].name}{' …' if len(missing) > 1 else ''})"
        f", {_count(missing) / max(total, 1):.1%} of all that require a gradient, are not in the optimizer.",
        meaning="They will never change.",
        advice="Add them with optimizer.add_param_group, set requires_grad_(False) if they are frozen on purpose, or "
        "name the optimizer that trains them: preflight(…, other_optimizers=[…]).",
        source=SOURCE,
        layers=layers,
        evidence={"missing_params": float(_count(missing)), "missing_share": _count(missing) / max(total, 1)},
    )


def _strays(strays: list[Tensor]) -> Finding:
    return make_finding(
        "frozen_layers",
        "LOW",
        "the optimizer also holds parameters that are not the model's",
        seen=f"{len(strays)} tensors in the optimizer are not the model's.",
        meaning="They may belong to another model, or be left over from one that was replaced.",
        advice="Pass every model that this optimizer trains: preflight([model, other], optimizer).",
        source=SOURCE,
        evidence={"stray_tensors": float(len(strays))},
    )


def _all_frozen(setup: Setup) -> Finding:
    return make_finding(
        "no_gradient",
        "HIGH",
        "nothing is trained",
        seen="None of the model's parameters in the optimizer requires a gradient.",
        meaning="No step will change anything.",
        advice="Call requires_grad_(True) on what should be trained.",
        source=SOURCE,
        evidence={"trained_params": 0.0},
    )
