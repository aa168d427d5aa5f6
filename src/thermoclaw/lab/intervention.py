"""The experiment of the demo: a run that decays to death, the alarm, and the same run with the alarm's remedy.

Three arms advance in lockstep on the same data: one with SGD, momentum and far too much weight decay; one with AdamW,
healthy; and, from the step at which the first is found to be dying, a copy of it to which the finding's own remedy was
applied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from thermoclaw.diagnosis.report import diagnose
from thermoclaw.lab.models import GPT2_124M, GPTShape
from thermoclaw.lab.training import Arm, Workload, branch, start_arm

SEEDS = (42, 137, 2024)
WEIGHT_DECAY = 5.0
MOMENTUM = 0.9
CALLED_DEAD = 0.02
"""An arm is called dead when its perplexity is within this share of the vocabulary size."""

CALLED_REVIVED = 0.5
"""An arm is called revived when its perplexity is below this share of the vocabulary size."""

LAPTOP = Workload(GPTShape(vocab_size=2048, context=64, width=256, num_layers=2, num_heads=4))
FULL = Workload(
    GPT2_124M, "python", batch_size=16, length=512, steps=620, device="cuda", autocast=True, validation_tokens=262_144
)

LR = 6e-4  # of both; with momentum, decay then takes ηλ/(1 − β) = 3 % of the weights a step

_sgd = partial(torch.optim.SGD, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
_adamw = partial(torch.optim.AdamW, lr=LR, weight_decay=0.01)


def default_seeds(count: int) -> tuple[int, ...]:
    """The first `count` seeds: those of the original experiment, then consecutive ones."""
    return (SEEDS + tuple(range(3000, 3000 + max(count - len(SEEDS), 0))))[:count]


@dataclass(eq=False)
class Intervention:
    """What became of the arms.

    Attributes:
        seed: seed of the weights and of the data order.
        vocab_size: the perplexity of knowing nothing.
        unmodified: the decaying arm.
        healthy: the AdamW arm.
        remedied: the copy with the remedy, or None where no alarm fired.
        alarm: the finding that fired first with HIGH or MEDIUM confidence, or None.
        remedy: what the remedy did, in words.
        norm_left: share of its initial norm that the token embedding had left at the alarm.
        perplexity: validation perplexity by arm name.
    """

    seed: int
    vocab_size: int
    unmodified: Arm
    healthy: Arm
    remedied: Arm | None
    alarm: Any | None
    remedy: str
    norm_left: float
    perplexity: dict[str, float]

    @property
    def arms(self) -> list[Arm]:
        """The arms that ran."""
        return [arm for arm in (self.unmodified, self.remedied, self.healthy) if arm is not None]

    def failures(self) -> list[str]:
        """What the experiment claims and did not show, in words; empty when it showed all of it."""
        missing: list[str] = []
        if self.alarm is None:
            return ["no HIGH or MEDIUM alarm fired in the decaying arm"]
        if self.alarm.code != "weight_decay_too_high":
            missing.append(f"the first alarm was {self.alarm.code}, not weight_decay_too_high")
        if self.remedied is None:
            return [*missing, "the alarm brought no remedy"]
        dead, revived, well = (self.perplexity[arm.name] for arm in (self.unmodified, self.remedied, self.healthy))
        if not abs(dead / self.vocab_size - 1.0) <= CALLED_DEAD:
            missing.append(f"the unmodified arm ended at perplexity {dead:,.0f}, not {self.vocab_size:,}")
        if not revived <= CALLED_REVIVED * self.vocab_size:
            missing.append(f"the remedied arm ended at perplexity {revived:,.0f} of {self.vocab_size:,}")
        if not well <= CALLED_REVIVED * self.vocab_size:
            missing.append(f"the healthy arm ended at perplexity {well:,.0f} of {self.vocab_size:,}")
        missing += [f"the healthy arm raised {finding.title!r}" for finding in loud(self.healthy.observer.alarms)]
        if not diagnose(self.healthy.observer).healthy:
            missing.append("the report calls the healthy arm unhealthy")
        return missing


def loud(findings: Sequence[Any]) -> list[Any]:
    """Findings of HIGH or MEDIUM confidence."""
    return [finding for finding in findings if finding.confidence in ("HIGH", "MEDIUM")]


def run_intervention(
    workload: Workload,
    *,
    seed: int,
    on_step: Callable[[int, Sequence[Arm]], None] = lambda step, arms: None,
    on_alarm: Callable[[Arm, Any, str], None] = lambda arm, finding, remedy: None,
) -> Intervention:
    """Train the arms in lockstep and branch at the first alarm.

    Args:
        workload: model, text and sizes.
        seed: seed of the weights and of the data order.
        on_step: called after each step with the step and the arms that took it.
        on_alarm: called once, at the alarm, with the arm, the finding and what the remedy did.

    Returns:
        The arms at their last step and what they came to.
    """
    dying = start_arm("unmodified", workload, _sgd, seed=seed)
    healthy = start_arm("healthy AdamW", workload, _adamw, seed=seed, warmup_steps=max(workload.steps // 10, 1))
    first_norm = float(dying.model.wte.weight.detach().norm())
    remedied: Arm | None = None
    alarm, remedy, norm_left = None, "", math.nan
    for step in range(1, workload.steps + 1):
        arms = [arm for arm in (dying, remedied, healthy) if arm is not None]
        for arm in arms:
            arm.train_step()
        if alarm is None and loud(dying.observer.alarms):
            alarm = loud(dying.observer.alarms)[0]
            norm_left = float(dying.model.wte.weight.detach().norm()) / first_norm
            if alarm.remedy is not None:
                remedied = branch(dying, "remedied", _sgd)
                alarm.remedy.apply(remedied.optimizer)
                remedy = alarm.remedy.describe()
            on_alarm(dying, alarm, remedy)
        on_step(step, arms)
    perplexity = {arm.name: arm.perplexity() for arm in (dying, remedied, healthy) if arm is not None}
    return Intervention(seed, workload.shape.vocab_size, dying, healthy, remedied, alarm, remedy, norm_left, perplexity)
