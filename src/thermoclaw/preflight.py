"""What the hyper-parameters alone foretell, before the first step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from thermoclaw.diagnosis.finding import Finding, describe_layers
from thermoclaw.diagnosis.remedies import Remedy
from thermoclaw.layers import lay_out
from thermoclaw.measure.hyper import read_groups
from thermoclaw.observer import check_pair
from thermoclaw.partition import Fragment, find_partition

EROSION_NORM = 0.5
EROSION_STEPS_HIGH, EROSION_STEPS = 100.0, 1000.0


@dataclass(frozen=True)
class LayerForecast:
    """Where decay will take a layer's norm, and how fast.

    Attributes:
        name: the layer.
        param_norm: ‖θ‖ today.
        equilibrium_norm: √(ηN/2λ) for decoupled decay with updates of unit size per weight (Adam); NaN where the
            optimizer does not fix the size of an update, or without decay.
        decay_steps: steps in which decay alone takes a factor e: 1/(ηλ), (1 − β₁)/(ηλ) through SGD's momentum.
    """

    name: str
    param_norm: float
    equilibrium_norm: float
    decay_steps: float


@dataclass(frozen=True)
class Preflight:
    """What `preflight` found: findings, and a forecast for each layer."""

    findings: list[Finding]
    forecasts: list[LayerForecast] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether nothing of HIGH or MEDIUM confidence was foretold."""
        return not any(f.confidence in ("HIGH", "MEDIUM") for f in self.findings)

    @property
    def recommendations(self) -> list[str]:
        """The findings as strings."""
        return [f.recommendation for f in self.findings]

    def __str__(self) -> str:
        if not self.findings:
            return "Preflight: the hyper-parameters foretell nothing that would hurt."
        return "\n".join(["Preflight:", *(f"  {text}" for text in self.recommendations)])


def preflight(model: nn.Module, optimizer: Any, *, total_steps: int | None = None) -> Preflight:
    """Foretell from hyper-parameters and initial weights alone.

    For decoupled decay and updates of unit size a layer's norm tends to √(ηN/2λ) with a time of 1/(ηλ) steps, whatever
    the loss (Kosson et al. 2024, arXiv 2305.17212). Where that norm is below half of today's and comes within the run,
    decay will erode the layer.

    Args:
        model: the model.
        optimizer: its optimizer, with the hyper-parameters the run will start with (peak rates, not warm-up rates).
        total_steps: length of the run, if known; erosion that takes longer than the run is not reported.

    Returns:
        A `Preflight` with findings and a forecast for each layer. Reads each parameter once, which waits for the
        device.

    Raises:
        TypeError, ValueError: as `Observer`.

    Example:
        >>> import torch, thermoclaw
        >>> model = torch.nn.Linear(64, 64)
        >>> bad = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=5.0)
        >>> thermoclaw.preflight(model, bad).findings[0].code
        'weight_decay_too_high'
        >>> good = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.01)
        >>> thermoclaw.preflight(model, good).healthy
        True
    """
    if total_steps is not None and total_steps < 1:
        raise ValueError(f"total_steps={total_steps!r}: give the number of optimizer steps of the run, or leave it out")
    inner = check_pair(model, optimizer)
    layout = lay_out(model, inner, partition=find_partition(optimizer))
    hypers = read_groups(inner)
    unit_size = any(word in type(inner).__name__ for word in ("Adam", "Lion", "Lamb"))
    forecasts, erosion = [], []
    for index, layer in enumerate(layout.layers):
        units = [u for u in layout.units if u.layer == index]
        size = sum(p.numel() for u in units for p in u.params)
        with torch.no_grad():
            held = [p.param if isinstance(p, Fragment) else p for u in units for p in u.params]
            norm = math.sqrt(sum(float(p.detach().abs().double().square().sum()) for p in held))
        unit = max(units, key=lambda u: hypers[u.group].weight_decay)
        hyper = hypers[unit.group]
        pull = hyper.lr * hyper.weight_decay
        if not hyper.decoupled and not hyper.adaptive:
            pull /= max(1.0 - hyper.momentum, 1e-6)
        steps = 1.0 / pull if pull > 0 and not hyper.adaptive else math.inf
        fixed = unit_size and hyper.decoupled and pull > 0
        balance = math.sqrt(hyper.lr * size / (2.0 * hyper.weight_decay)) if fixed else math.nan
        forecasts.append(LayerForecast(layer.name, norm, balance, steps))
        within = steps < min(EROSION_STEPS, total_steps or math.inf)
        if within and norm > 0 and (balance < EROSION_NORM * norm or (not fixed and steps < EROSION_STEPS_HIGH)):
            erosion.append((index, unit.group))
    findings = [_erosion(layout.layers, erosion, forecasts, hypers)] if erosion else []
    return Preflight(findings, forecasts)


def _erosion(layers: Any, erosion: list[tuple[int, int]], forecasts: list[LayerForecast], hypers: Any) -> Finding:
    chosen = [layers[i] for i, _ in erosion]
    fastest = min((forecasts[i] for i, _ in erosion), key=lambda f: f.decay_steps)
    groups = tuple(sorted({g for _, g in erosion}))
    decay = max(hypers[g].weight_decay for g in groups)
    value = float(f"{decay * fastest.decay_steps / 1e4:.1e}")
    target = ""
    if math.isfinite(fastest.equilibrium_norm):
        target = f" and settle near {fastest.equilibrium_norm / fastest.param_norm:.0%} of their present value"
    return Finding(
        code="weight_decay_too_high",
        confidence="HIGH" if fastest.decay_steps < EROSION_STEPS_HIGH else "MEDIUM",
        title="weight decay will erode the weights",
        seen=f"With weight_decay {decay:.3g} at this learning rate, the norms of "
        f"{describe_layers(chosen, len(layers))} shrink by a factor e every {fastest.decay_steps:.0f} steps{target}.",
        meaning="That is decided by the hyper-parameters, before any data is seen.",
        advice=f"Lower weight_decay from {decay:.3g} to about {value:.2g} (a factor e in 10,000 steps).",
        source="Kosson et al. 2024 (arXiv 2305.17212)",
        first_step=0,
        raised_step=0,
        layers=tuple(layer.name for layer in chosen),
        evidence={"decay_steps": fastest.decay_steps, "weight_decay": decay},
        remedy=Remedy("weight_decay", value, decay, () if len(groups) == len(hypers) else groups),
    )
