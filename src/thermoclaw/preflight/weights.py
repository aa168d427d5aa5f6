"""Initial weights and number formats, from the parameters alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.preflight.result import make_finding
from thermoclaw.preflight.setup import Setup, Weight, layers_of

GAIN_LARGE, GAIN_LARGE_HIGH, GAIN_SMALL = 5.0, 20.0, 0.01
RECURRENT = 4.0
MAJORITY = 0.5
SOURCE = "He et al. 2015 (arXiv 1502.01852): rms = √(2/fan_in); SageMaker Debugger, PoorWeightInitialization"


@dataclass(frozen=True)
class Start:
    """How one matrix starts."""

    weight: Weight
    gain: float
    is_zero: bool
    is_symmetric: bool


@torch.no_grad()
def starts_of(setup: Setup) -> list[Start]:
    """Every matrix of the model, frozen ones included."""
    found = []
    for w in setup.weights:
        if w.is_matrix and w.param.numel() and w.param.device.type != "meta":
            values = w.param.detach().abs()
            rms = float(values.double().square().mean().sqrt())
            found.append(Start(w, rms * math.sqrt(w.fan_in), rms == 0.0, rms > 0 and _is_symmetric(w.param.detach())))
    return found


def _is_symmetric(param: Tensor) -> bool:
    """Whether all rows of a matrix of several rows and columns are one."""
    rows = param.flatten(1)
    return rows.shape[0] > 1 and rows.shape[1] > 1 and bool((rows == rows[:1]).all())


def check_weights(setup: Setup, starts: list[Start]) -> list[Finding]:
    """Weights that cannot begin to learn: not finite, all zero, alike, far too large or far too small."""
    broken = _not_finite(setup)
    if broken:
        return [broken]
    trained = [s for s in starts if s.weight.param.requires_grad]
    if len(starts) > 1 and all(s.is_zero for s in starts):
        return [_all_zero(setup, starts)]
    alike = [s for s in trained if s.is_symmetric]
    if len(alike) > 1 and len(alike) > MAJORITY * len(trained):
        return [_alike(setup, alike)]
    filled = [s for s in trained if not s.is_zero]
    large = [s for s in filled if s.gain > GAIN_LARGE]
    small = [s for s in filled if s.gain < GAIN_SMALL]
    for chosen, title in ((large, "far too large"), (small, "far too small")):
        if len(chosen) > 1 and len(chosen) > MAJORITY * len(filled):
            return [_scale(setup, chosen, title)]
    again = [s for s in filled if "weight_hh" in s.weight.name and s.gain > RECURRENT]
    return [_recurrent(again)] if again else []


def _not_finite(setup: Setup) -> Finding | None:
    bad = [w for w in setup.weights if w.param.device.type != "meta" and not bool(torch.isfinite(w.param).all())]
    if not bad:
        return None
    return make_finding(
        "non_finite",
        "HIGH",
        "initial weights are not finite",
        seen=f"{len(bad)} parameters hold NaN or infinity before the first step, the first is {bad[0].name}.",
        meaning="Every loss will be NaN.",
        advice="Initialize them (memory from torch.empty is not), or load a checkpoint from before it broke.",
        source="torchtitan; PyTorch anomaly mode",
        layers=layers_of(bad),
        evidence={"tensors": float(len(bad))},
    )


def _all_zero(setup: Setup, starts: list[Start]) -> Finding:
    return make_finding(
        "bad_init",
        "HIGH",
        "every weight matrix is zero",
        seen=f"All {len(starts)} weight matrices start at zero.",
        meaning="Zero matrices in a row pass no signal on and no gradient back; only biases will learn.",
        advice="Initialize with torch.nn.init.kaiming_uniform_ or the modules' reset_parameters(); only the last "
        "matrix of a branch may start at zero.",
        source=SOURCE,
        layers=layers_of(s.weight for s in starts),
        evidence={"zero_matrices": float(len(starts))},
    )


def _alike(setup: Setup, alike: list[Start]) -> Finding:
    return make_finding(
        "bad_init",
        "HIGH",
        "all units of a layer start alike",
        seen=f"In {len(alike)} weight matrices ({alike[0].weight.name} …) all rows are the same.",
        meaning="Units that start alike receive the same gradient and stay alike: the layer is as good as one unit.",
        advice="Initialize at random, with torch.nn.init.kaiming_uniform_ for instance.",
        source=SOURCE,
        layers=layers_of(s.weight for s in alike),
        evidence={"symmetric_matrices": float(len(alike))},
    )


def _scale(setup: Setup, chosen: list[Start], title: str) -> Finding:
    middle = sorted(s.gain for s in chosen)[len(chosen) // 2]
    is_sure = middle > GAIN_LARGE_HIGH or middle < GAIN_SMALL / 2
    return make_finding(
        "bad_init",
        "HIGH" if is_sure else "MEDIUM",
        f"initial weights {title}",
        seen=f"In {len(chosen)} weight matrices ({chosen[0].weight.name} …) the root mean square times √fan_in is "
        f"about {middle:.2g}; the usual initializations have 0.1 to 1.5.",
        meaning="Each layer multiplies signal and gradient by about that factor.",
        advice=f"Scale them by about {1.0 / middle:.1g}, or initialize with torch.nn.init.kaiming_uniform_.",
        source=SOURCE,
        layers=layers_of(s.weight for s in chosen),
        evidence={"gain": middle, "matrices": float(len(chosen))},
    )


def _recurrent(chosen: list[Start]) -> Finding:
    worst = max(s.gain for s in chosen)
    return make_finding(
        "exploding_gradients",
        "MEDIUM",
        "recurrent weights far too large",
        seen=f"The recurrent weights {chosen[0].weight.name} start at a root mean square times √fan_in of {worst:.2g}.",
        meaning="The gradient is multiplied by about that factor at every step back in time.",
        advice="Initialize them orthogonally (torch.nn.init.orthogonal_), which gives 1.",
        source="Pascanu et al. 2013 (arXiv 1211.5063)",
        layers=layers_of(s.weight for s in chosen),
        evidence={"gain": worst},
    )
