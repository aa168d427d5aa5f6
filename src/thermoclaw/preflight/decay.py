"""Weight decay against norms, from hyper-parameters and initial weights alone."""

from __future__ import annotations

import math
from typing import Any

import torch

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.remedies import Remedy
from thermoclaw.partition import Fragment
from thermoclaw.preflight.result import LayerForecast, make_finding, two_digits
from thermoclaw.preflight.setup import Setup

EROSION_NORM = 0.5
EROSION_STEPS_HIGH, EROSION_STEPS = 100.0, 1000.0
UNUSUAL, UNUSUAL_COUPLED = 0.3, 5e-3  # below, fast erosion is the learning rate's doing
SOURCE = "Kosson et al. 2024 (arXiv 2305.17212)"


@torch.no_grad()
def forecast_norms(setup: Setup) -> tuple[list[LayerForecast], list[Finding]]:
    """Where decay takes each layer, and whether it erodes some."""
    forecasts, erosion = [], []
    for index, layer in enumerate(setup.layout.layers):
        units = [u for u in setup.layout.units if u.layer == index]
        if not units:
            continue
        params: list[Any] = [p.param if isinstance(p, Fragment) else p for u in units for p in u.params]
        size = sum(p.numel() for p in params)
        norm = math.sqrt(sum(float(p.detach().abs().double().square().sum()) for p in params))
        unit = max(units, key=lambda u: setup.hypers[u.group].weight_decay)
        hyper = setup.hypers[unit.group]
        pull = hyper.lr * hyper.weight_decay
        if not hyper.decoupled and not hyper.adaptive:
            pull /= max(1.0 - hyper.momentum, 1e-6)
        steps = 1.0 / pull if pull > 0 and not hyper.adaptive else math.inf
        fixed = setup.fixes_step_size and hyper.decoupled and pull > 0
        balance = math.sqrt(hyper.lr * size / (2.0 * hyper.weight_decay)) if fixed else math.nan
        forecast = LayerForecast(layer.name, norm, balance, steps)
        forecasts.append(forecast)
        within = steps < min(EROSION_STEPS, setup.total_steps or math.inf)
        if within and norm > 0 and (balance < EROSION_NORM * norm or (not fixed and steps < EROSION_STEPS_HIGH)):
            erosion.append((forecast, unit.group))
    return forecasts, [_erosion(setup, erosion)] if erosion else []


def _erosion(setup: Setup, erosion: list[tuple[LayerForecast, int]]) -> Finding:
    names = tuple(forecast.name for forecast, _ in erosion)
    fastest = min((forecast for forecast, _ in erosion), key=lambda f: f.decay_steps)
    groups = tuple(sorted({g for _, g in erosion}))
    decay = max(setup.hypers[g].weight_decay for g in groups)
    target = ""
    if math.isfinite(fastest.equilibrium_norm):
        target = f" and settle near {fastest.equilibrium_norm / fastest.param_norm:.0%} of their present value"
    is_unusual = decay >= (UNUSUAL if any(setup.hypers[g].decoupled for g in groups) else UNUSUAL_COUPLED)
    knob, was = ("weight_decay", decay) if is_unusual else ("lr", max(setup.hypers[g].lr for g in groups))
    value = two_digits(was * fastest.decay_steps / 1e4)
    return make_finding(
        "weight_decay_too_high" if is_unusual else "lr_too_high",
        "HIGH" if fastest.decay_steps < EROSION_STEPS_HIGH and is_unusual else "MEDIUM",
        "weight decay will erode the weights",
        seen=f"With weight_decay {decay:.3g} at this learning rate, the norms of {setup.describe(names)} shrink by a "
        f"factor e every {fastest.decay_steps:.0f} steps{target}.",
        meaning="That is decided by the hyper-parameters, before any data is seen.",
        advice=f"Lower {knob} from {was:.3g} to about {value:.2g} (a factor e in 10,000 steps).",
        source=SOURCE,
        layers=names,
        evidence={"decay_steps": fastest.decay_steps, "weight_decay": decay},
        remedy=Remedy(knob, value, was, () if len(groups) == len(setup.hypers) else groups),
    )
