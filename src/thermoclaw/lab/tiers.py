"""Tiers 2 and 3: four runs whose diagnosis is known beforehand, and the intervention experiment, as checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from thermoclaw.diagnosis.report import diagnose
from thermoclaw.lab import intervention
from thermoclaw.lab.analytic import Check
from thermoclaw.lab.intervention import Intervention, loud, run_intervention
from thermoclaw.lab.models import PYTHIA_410M, GPTShape
from thermoclaw.lab.training import Arm, MakeOptimizer, Workload, start_arm
from thermoclaw.quantities import Array

LR, DECAY, BETAS = 3e-4, 0.01, (0.9, 0.999)

DIVERGES = ("lr_too_high", "non_finite", "exploding_gradients", "weight_blow_up")
"""A learning rate a hundred times too high is named as such, or by what it does."""


@dataclass(frozen=True)
class Scale:
    """How large the validation is.

    Attributes:
        name: what to call it.
        tier2: workload of each of the four runs.
        tier3: workload of the intervention.
        seeds: seeds of the intervention.
    """

    name: str
    tier2: Workload
    tier3: Workload
    seeds: tuple[int, ...] = intervention.SEEDS

    @property
    def total_steps(self) -> int:
        """Steps that a progress bar should expect."""
        return len(RUNS) * self.tier2.steps + len(self.seeds) * self.tier3.steps


LAPTOP = Scale(
    "laptop",
    Workload(GPTShape(vocab_size=2048, context=64, width=128, num_layers=4, num_heads=4), steps=300),
    intervention.LAPTOP.with_steps(300),
)
FULL = Scale(
    "full",
    Workload(PYTHIA_410M, "python", batch_size=16, length=512, steps=300, device="cuda", autocast=True),
    intervention.FULL,
)


@dataclass(frozen=True)
class Run:
    """A run of tier 2 and what its diagnosis must be."""

    tier: str
    name: str
    make_optimizer: MakeOptimizer
    wanted: str
    accepts: Callable[[Any], bool]


def _flagged(report: Any, codes: Sequence[str], confidences: Sequence[str]) -> bool:
    return any(finding.code in codes and finding.confidence in confidences for finding in report.findings)


RUNS: tuple[Run, ...] = (
    Run(
        "T2D",
        "baseline: lr 3e-4, decay 0.01, β₁ 0.9",
        partial(torch.optim.AdamW, lr=LR, weight_decay=DECAY, betas=BETAS),
        "healthy, nothing HIGH or MEDIUM",
        lambda report: report.healthy and not loud(report.findings),
    ),
    Run(
        "T2A",
        "learning rate × 100",
        partial(torch.optim.AdamW, lr=100 * LR, weight_decay=DECAY, betas=BETAS),
        "HIGH: learning rate too high, or divergence",
        lambda report: _flagged(report, DIVERGES, ["HIGH"]),
    ),
    Run(
        "T2B",
        "weight decay 5.0",
        partial(torch.optim.AdamW, lr=LR, weight_decay=5.0, betas=BETAS),
        "unhealthy, HIGH or MEDIUM: weight decay",
        lambda report: not report.healthy and _flagged(report, ["weight_decay_too_high"], ["HIGH", "MEDIUM"]),
    ),
    Run(
        "T2C",
        "over-damped: β₁ 0.999",
        partial(torch.optim.AdamW, lr=LR, weight_decay=DECAY, betas=(0.999, 0.999)),
        "momentum too high",
        lambda report: _flagged(report, ["momentum_too_high"], ["HIGH", "MEDIUM"]),
    ),
)


def tier2(scale: Scale, *, seed: int = 42, on_step: Callable[[str], None] = lambda note: None) -> Iterator[Check]:
    """Train the four runs, the baseline first, and judge each by its report.

    Args:
        scale: how large.
        seed: seed of weights and data order.
        on_step: called after every step with a note for the progress bar.

    Yields:
        A check per run, as soon as it is done.
    """
    for run in RUNS:
        arm = start_arm(run.name, scale.tier2, run.make_optimizer, seed=seed)
        while arm.step < scale.tier2.steps:
            arm.train_step()
            on_step(f"{run.tier} {run.name}")
        report = diagnose(arm.observer)
        yield Check(run.tier, run.name, f"{_said(report)}; {_numbers(arm)}", run.wanted, run.accepts(report))
        arm.observer.close()


def _said(report: Any) -> str:
    found = ", ".join(f"{finding.confidence} {finding.code}" for finding in report.findings)
    return found or "no finding"


def _numbers(arm: Arm) -> str:
    """Coherence, overhead and loss over the second half of a run."""
    late = arm.observer.record().rows(start=arm.step // 2)
    rho, overhead, loss = (_mean(late[name]) for name in ("rho_mean", "R_ie_total", "loss"))
    return f"ρ {rho:.2f}, R_ie {overhead:.1f}, loss {loss:.2f}"


def _mean(values: Array) -> float:
    good = values[np.isfinite(values)]
    return float(good.mean()) if len(good) else math.nan


def tier3(scale: Scale, *, on_step: Callable[[str], None] = lambda note: None) -> Iterator[Check]:
    """Run the intervention experiment, once per seed.

    Args:
        scale: how large.
        on_step: called after every step with a note for the progress bar.

    Yields:
        A check per seed, as soon as it is done.
    """
    for seed in scale.seeds:
        result = run_intervention(scale.tier3, seed=seed, on_step=partial(_note_step, on_step, f"T3 seed {seed}"))
        failures = result.failures()
        wanted = "alarm, then dead without and alive with the remedy; AdamW silent"
        yield Check(
            "T3", f"intervention, seed {seed}", failures[0] if failures else _outcome(result), wanted, not failures
        )
        for arm in result.arms:
            arm.observer.close()


def _note_step(on_step: Callable[[str], None], note: str, step: int, arms: Sequence[Arm]) -> None:
    on_step(note)


def _outcome(result: Intervention) -> str:
    alarm = result.alarm
    ends = ", ".join(f"{name} {value:,.0f}" for name, value in result.perplexity.items())
    return f"{alarm.confidence} {alarm.code} at step {alarm.raised_step}; perplexity {ends}" if alarm else ends
