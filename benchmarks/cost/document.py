"""Which rows the CPU document has: rivals side by side, then one axis at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from cost.arms import Arm, memory_by_steps, take_turns
from cost.models import stack

OLD = "thermoclaw 0.1.6"
QUICK = {"gpt-1M", "gpt-10M", "gpt-many-small", "mlp-1M"}


@dataclass(frozen=True)
class Plan:
    """How much is measured, and which rivals there are."""

    rival_python: str | None = None
    cockpit_python: str | None = None
    wandb: bool = True
    quick: bool = False  # fewer steps, models and threads
    tiny: bool = False  # for the test of this script: the smallest models and two steps of each

    def rounds(self, full: int) -> int:
        """Rounds of a comparison."""
        return 2 if self.tiny else max(full // 5, 3) if self.quick else full

    def warmup(self, full: int = 5) -> int:
        """Rounds before those that count."""
        return 1 if self.tiny else 2 if self.quick else full


def arms_for(plan: Plan, base: Arm, *, items: bool = True) -> list[Arm]:
    """The arms that can measure any optimizer's step: none, this version, 0.1.6, norms with `.item()`."""
    if plan.tiny and base.model.startswith("stack"):
        return [base]
    arms = [replace(base, name="plain", instrument="plain"), base]
    if plan.rival_python:
        arms.append(replace(base, name=OLD, python=plan.rival_python))
    if items:
        arms.append(replace(base, name="item norms", instrument="item norms"))
    return arms


def ours(model: str, **kwargs: Any) -> Arm:
    """An arm with this version."""
    return Arm("thermoclaw", "thermoclaw", model, **kwargs)


def wandb_arm(base: Arm, log_freq: int) -> Arm:
    """`wandb.watch` on the same training, logging every so many steps."""
    name = f"wandb.watch, every {log_freq}"
    return replace(base, name=name, instrument="wandb.watch", settings={"log_freq": log_freq})


def rivals(plan: Plan) -> list[dict[str, Any]]:
    """Everything side by side, on GPTs and on perceptrons, where Cockpit runs too."""
    rows: list[dict[str, Any]] = []
    if plan.tiny:
        cases = [(ours("gpt-tiny", batch=2, tokens=8, threads=1), 2)]
    else:
        cases = [
            (ours("gpt-1M"), 40),
            (ours("gpt-10M"), 40),
            (ours("gpt-124M", batch=1, tokens=16), 12),
            (ours("gpt-many-small", tokens=64), 40),
            (ours("mlp-1M", batch=32), 40),
            (ours("mlp-10M", batch=32), 20),
            (ours("gpt-1M", threads=1), 30),
            (ours("gpt-10M", threads=1), 16),
            (ours("gpt-124M", batch=1, tokens=16, threads=1), 8),
            (ours("gpt-many-small", tokens=64, threads=1), 30),
        ]
    if plan.quick and not plan.tiny:
        cases = [case for case in cases if case[0].model in QUICK and case[0].threads > 1]
    for base, full in cases:
        arms = arms_for(plan, base, items=base.threads > 1 or plan.tiny)
        if base.threads > 1 and not plan.tiny:
            arms.append(replace(base, name="without compiler", environment={"THERMOCLAW_NATIVE": "0"}))
        if plan.cockpit_python and base.model.startswith("mlp"):
            arms.append(replace(base, name="cockpit economy", instrument="cockpit", python=plan.cockpit_python))
        rows += take_turns(arms, rounds=plan.rounds(full), warmup=plan.warmup())
        if plan.wandb and base.threads > 1:  # by itself: its own process goes on working after a step
            rows += take_turns([wandb_arm(base, 1)], rounds=plan.rounds(full // 2), warmup=1)
    if plan.cockpit_python:  # kept in the file with its error, so that the page can say why it is missing
        base = Arm("cockpit economy", "cockpit", cases[0][0].model, python=plan.cockpit_python, batch=2, tokens=8)
        rows += take_turns([base], rounds=1, warmup=0)
    return rows


def by_parameters(plan: Plan) -> list[dict[str, Any]]:
    """The same number of layers, more and more parameters."""
    sizes = [100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000]
    sizes = [5_000] if plan.tiny else sizes[:5:2] if plan.quick else sizes
    rows = []
    for params in sizes:
        arms = arms_for(plan, ours(stack(params, 4 if plan.tiny else 48)))
        rows += take_turns(arms, rounds=plan.rounds(30 if params < 3e7 else 10), warmup=plan.warmup(4))
    return rows


def by_layers(plan: Plan) -> list[dict[str, Any]]:
    """The same number of parameters, cut into more and more layers."""
    params, counts = (5_000, [8]) if plan.tiny else (10_000_000, [10, 30, 100, 300, 1000])
    rows = []
    for layers in counts[::2] if plan.quick else counts:
        arms = arms_for(plan, ours(stack(params, layers)))
        rows += take_turns(arms, rounds=plan.rounds(20), warmup=plan.warmup(4))
    return rows


def by_optimizer(plan: Plan) -> list[dict[str, Any]]:
    """The same layers under other optimizers."""
    names = ["sgd-momentum", "adamw", "adamw-foreach", "adamw-fused", "adafactor", "muon"]
    model = stack(5_000, 4) if plan.tiny else stack(10_000_000, 48)
    rows = []
    for name in names[:1] if plan.tiny else names:
        arms = arms_for(plan, ours(model, optimizer=name), items=False)
        rows += take_turns(arms, rounds=plan.rounds(6 if name == "muon" else 20), warmup=plan.warmup(4))
    return rows


def by_dtype(plan: Plan) -> list[dict[str, Any]]:
    """The same layers in single precision and in bfloat16."""
    model = stack(5_000, 4) if plan.tiny else stack(10_000_000, 48)
    rows = []
    for dtype in ("bfloat16",) if plan.tiny else ("float32", "bfloat16"):
        arms = arms_for(plan, ours(model, dtype=dtype))
        rows += take_turns(arms, rounds=plan.rounds(20), warmup=plan.warmup(4))
    return rows


def by_cadence(plan: Plan) -> list[dict[str, Any]]:
    """Every step, every Nth step, and a budget; the mean over many steps is what counts here."""
    base = ours("gpt-tiny", batch=2, tokens=8, threads=1) if plan.tiny else ours("gpt-10M", batch=1, tokens=16)
    block, blocks = (4, 1) if plan.tiny else (64, 1) if plan.quick else (64, 4)
    arms = [
        replace(base, name=f"every={n}", settings={"every": n}) for n in ((1, 8) if plan.tiny else (1, 4, 8, 16, 64))
    ]
    rows = take_turns(arms, rounds=blocks, warmup=0 if plan.tiny else 1, block=block)
    if plan.wandb:
        steps = 4 if plan.tiny else 64 if plan.quick else 1000
        rows += take_turns([wandb_arm(base, steps)], rounds=1, warmup=0, block=steps)
    if accepts("budget"):  # of the time of a step that has a real forward and backward pass
        base = base if plan.tiny else ours("gpt-1M")
        arms = [replace(base, name=f"budget={share}", settings={"budget": share}) for share in (0.03, 0.01, 0.003)]
        arms = arms[:1] if plan.tiny else [replace(base, name="no budget"), *arms]
        rows += take_turns(arms, rounds=blocks, warmup=0 if plan.tiny else 1, block=block)
    return rows


def accepts(keyword: str) -> bool:
    """Whether this version's Observer has the keyword."""
    import thermoclaw

    return keyword in inspect.signature(thermoclaw.Observer).parameters


def memory(plan: Plan) -> list[dict[str, Any]]:
    """What is held after more and more steps of a tiny model."""
    counts = [10, 30, 100, 300, 1000, 3000, 10_000, 30_000]
    base = ours(stack(3_000, 12), threads=1, optimizer="sgd-momentum")
    arms = arms_for(plan, base, items=False)
    return [memory_by_steps(arm, counts[:2] if plan.tiny else counts[:5] if plan.quick else counts) for arm in arms]


SECTIONS: dict[str, Callable[[Plan], list[dict[str, Any]]]] = {
    "rivals": rivals,
    "parameters": by_parameters,
    "layers": by_layers,
    "optimizers": by_optimizer,
    "dtypes": by_dtype,
    "cadence": by_cadence,
    "memory_by_steps": memory,
}


def measure(plan: Plan, names: list[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The sections asked for, one after the other."""
    for name in names:
        yield name, SECTIONS[name](plan)
