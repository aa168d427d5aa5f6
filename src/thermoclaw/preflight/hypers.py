"""Hyper-parameters that cannot be meant: rates worlds apart, a memory longer than the run, formats too coarse."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.remedies import Remedy
from thermoclaw.preflight.result import make_finding, two_digits
from thermoclaw.preflight.setup import Setup, Weight, layers_of

RATES_APART, RATES_APART_HIGH = 200.0, 2000.0
MEMORY = 500.0  # steps that momentum averages over
LOST, LOST_HIGH = 0.5, 0.8
BITS = {torch.bfloat16: 8, torch.float16: 11}  # of the significand, the hidden one included
FINER = ("kahan", "stochastic", "Kahan", "Stochastic")  # in an optimizer's name or settings: nothing is lost


def check_rates(setup: Setup) -> list[Finding]:
    """One optimizer, matrices at rates hundreds of times apart."""
    rates = {w.name: (setup.lr_of(w), w) for w in setup.trained if w.is_matrix and setup.lr_of(w) > 0}
    if len(rates) < 2:
        return []
    ordered = sorted(rates.values(), key=lambda pair: pair[0])
    usual = ordered[len(ordered) // 2][0]
    low, high = ordered[0][0], ordered[-1][0]
    if high < RATES_APART * low:
        return []
    is_hot = high / usual > usual / low
    odd = [w for lr, w in ordered if (lr > RATES_APART**0.5 * usual if is_hot else lr < usual / RATES_APART**0.5)]
    odd = odd or [ordered[-1][1] if is_hot else ordered[0][1]]
    groups = tuple(sorted({w.group for w in odd if w.group is not None}))
    others = tuple(g for g in range(len(setup.hypers)) if g not in groups)
    worst = high if is_hot else low
    return [
        make_finding(
            "layer_lr_mismatch",
            "HIGH" if high > RATES_APART_HIGH * low else "MEDIUM",
            "learning rates worlds apart",
            seen=f"The learning rate of {setup.describe(layers_of(odd))} is {worst:.3g}, that of a typical matrix "
            f"{usual:.3g}.",
            meaning="Rates by layer usually lie within a factor of ten or so."
            if others
            else "Rates by group usually lie within a factor of ten or so.",
            advice=f"Set it to about {two_digits(usual):.2g}, or freeze the layers with requires_grad_(False) if they "
            "should stay.",
            source="Howard and Ruder 2018 (arXiv 1801.06146): a factor of 2.6 from layer to layer",
            layers=layers_of(odd),
            evidence={"lr": worst, "usual_lr": usual, "ratio": high / low},
            remedy=Remedy("lr", two_digits(usual), worst, groups),
        )
    ]


def check_momentum(setup: Setup) -> list[Finding]:
    """Momentum that averages over more steps than a run has time for."""
    groups = {w.group for w in setup.trained if w.group is not None}
    beta = max((setup.hypers[g].momentum for g in groups), default=0.0)
    memory = 1.0 / max(1.0 - beta, 1e-9)
    if memory < MEMORY:
        return []
    return [
        make_finding(
            "momentum_too_high",
            "MEDIUM",
            "momentum averages over too many steps",
            seen=f"With momentum {beta:.6g} a step averages over {memory:,.0f} gradients.",
            meaning="Steps follow gradients that are long out of date, and overshoot or lag.",
            advice="Set momentum (betas[0] for Adam) to 0.9 or 0.95.",
            source="docs: preflight",
            evidence={"momentum": beta, "memory_steps": memory},
            remedy=Remedy("momentum", 0.9, beta),
        )
    ]


@torch.no_grad()
def check_precision(setup: Setup) -> list[Finding]:
    """Steps of the usual size against the spacing of the number format."""
    if not setup.fixes_step_size or keeps_finer(setup):
        return []
    coarse = [w for w in setup.trained if w.param.dtype in BITS and w.param.dim() > 1 and w.param.numel()]
    if not coarse or _is_partitioned(setup):
        return []
    shares = [_share_stuck(w.param, _usual_step(setup, w)) for w in coarse]
    total = sum(w.param.numel() for w in coarse)
    share = sum(s * w.param.numel() for s, w in zip(shares, coarse, strict=True)) / total
    return [lost_updates(coarse, share, setup.top_lr(), measured=False)] if share > LOST else []


def _usual_step(setup: Setup, weight: Weight) -> float:
    """η √((1 − β₁)/(1 + β₁)): the root mean square of Adam's steps on noise, where most of a run is spent."""
    beta = setup.hypers[weight.group].momentum if weight.group is not None else 0.0
    return setup.lr_of(weight) * math.sqrt((1.0 - beta) / (1.0 + beta))


def _is_partitioned(setup: Setup) -> bool:
    return any(not isinstance(p, Tensor) for unit in setup.layout.units for p in unit.params)


def keeps_finer(setup: Setup) -> bool:
    """Whether the optimizer says that it carries what the format cannot hold."""
    words = [setup.kind, *(key for group in setup.optimizer.param_groups for key, on in group.items() if on is True)]
    return any(mark in word for word in words for mark in FINER)


def _share_stuck(param: Tensor, step: float) -> float:
    """Share of weights whose distance to the next number is more than twice the step."""
    _, exponent = torch.frexp(param.detach().float())
    half_gap = torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent - BITS[param.dtype] - 1)
    return float(((half_gap > step) & (param != 0)).double().mean())


def lost_updates(weights: list[Weight], share: float, lr: float, *, measured: bool) -> Finding:
    """The finding, whether foretold from the rate or seen in a trial step."""
    dtype = str(weights[0].param.dtype).removeprefix("torch.")
    how = "did not change by one bit in a trial step" if measured else "are further from the next than twice a step"
    return make_finding(
        "lost_updates",
        "HIGH" if share > LOST_HIGH else "MEDIUM",
        "steps too small for the number format",
        seen=f"Parameters are kept in {dtype}, and at a learning rate of {lr:.3g} {share:.0%} of the weights {how}.",
        meaning="Updates below half the spacing of the format are rounded away.",
        advice="Keep the parameters in float32 and compute under torch.autocast, or use an optimizer with a finer "
        "copy, Kahan summation or stochastic rounding.",
        source="spacing of the format (8 or 11 bits); Zamirai et al. 2020 (arXiv 2010.06192)",
        layers=layers_of(weights),
        evidence={"share": share, "lr": lr},
    )
