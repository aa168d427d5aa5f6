"""The list of all cases, and which of them nobody looks at while rules are tuned. No thermoclaw, no torch until asked.

Whole programs are held out: those of `programs.HELD_OUT`, whose data and architectures appear nowhere in development.
Every fault is tried on every program that can have it (two of three where a code has several faults), at a seed that
its control shares; strength and onset are drawn from the case's name.
"""

from __future__ import annotations

import fnmatch
import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np

from benchmarks.zoo.faults import FAULTS
from benchmarks.zoo.faults.fault import ONSETS, Fault
from benchmarks.zoo.programs import DEVELOPMENT, HELD_OUT, PROGRAMS
from benchmarks.zoo.programs.program import Program
from benchmarks.zoo.recipe import Recipe
from benchmarks.zoo.variants import VARIANTS

SEEDS = (0, 1, 2)
VARIANTS_EACH = 17  # of the variants that are no fault's control, drawn for each program by its name
QUICK_EVERY = 12
COMMON = 0.7  # of the programs

# The failures that gradients, parameters, optimizer state and losses are enough for.
CATALOGUE = (
    "non_finite", "loss_spike", "gradient_spike", "second_moment_lag", "incoherent_update", "lr_too_high",
    "lr_too_low", "weight_decay_too_high", "weight_blow_up", "momentum_too_high", "vanishing_gradients",
    "exploding_gradients", "dead_units", "bad_init", "frozen_layers", "no_gradient", "gradient_accumulation_bug",
    "gradient_noise", "label_noise", "plateau", "overfitting", "over_clipping", "lost_updates", "underflow",
    "epsilon_dominates", "lr_schedule_zero", "layer_lr_mismatch", "unnormalised_input", "distribution_shift",
    "attention_logit_growth", "output_logit_divergence", "wrong_sign",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One run: a program, a healthy variant of its recipe, a fault or none, a seed."""

    program: str
    variant: str
    fault: str | None
    seed: int

    @property
    def name(self) -> str:
        """What files and tables call it."""
        return f"{self.program}.{self.variant}.{self.fault or 'healthy'}.{self.seed}"

    @property
    def is_held_out(self) -> bool:
        """Whether thresholds must not be set on it."""
        return self.program in {program.name for program in HELD_OUT}

    @property
    def control(self) -> Case:
        """The same run without the fault."""
        return Case(self.program, self.variant, None, self.seed)

    def fault_is(self) -> Fault | None:
        """The fault, if any."""
        return FAULTS[self.fault] if self.fault else None

    def recipe(self) -> tuple[Recipe, int]:
        """The recipe with the fault in it, and the first faulty step (0 where it is there from the start)."""
        program = PROGRAMS[self.program]
        recipe = VARIANTS[self.variant].change(program, program.recipe(self.seed))
        fault = self.fault_is()
        if fault is None:
            return recipe, 0
        random = np.random.default_rng(zlib.crc32(self.name.encode()))
        fades = recipe.schedule(sum(ONSETS["late"]) / 2) < 0.5  # then a late fault would hurt nobody
        part = "middle" if fault.begins == "late" and fades else fault.begins
        first = int(recipe.steps * random.uniform(*ONSETS[part]))
        return fault.change(recipe, first, random), first


def fits(program: Program, fault: Fault) -> bool:
    """Whether a fault makes sense with a program."""
    if not fault.needs <= program.traits or fault.lacks & program.traits:
        return False
    spec = VARIANTS[fault.variant].change(program, program.recipe(0)).optimizer
    return not fault.optimizers or spec.kind in fault.optimizers


def _variants_of(program: Program) -> list[str]:
    """Healthy variants of a program: the plain one, those that are controls, and as many others as are drawn."""
    controls = {fault.variant for fault in FAULTS.values() if fits(program, fault)} | {"plain"}
    others = [v.name for v in VARIANTS.values() if v.needs <= program.traits and v.name not in controls]
    random = np.random.default_rng(zlib.crc32(program.name.encode()))
    drawn = random.permutation(len(others))[:VARIANTS_EACH]
    return [*sorted(controls), *(others[i] for i in sorted(drawn))]


@cache
def all_cases() -> tuple[Case, ...]:
    """Every case, controls before what they control."""
    healthy: dict[Case, None] = {}
    faulty = []
    for program in (*DEVELOPMENT, *HELD_OUT):
        for variant in _variants_of(program):
            for seed in SEEDS if variant == "plain" else (_seed_of(program.name, variant),):
                healthy[Case(program.name, variant, None, seed)] = None
        for fault in FAULTS.values():
            if fits(program, fault) and _is_drawn(program, fault):
                case = Case(program.name, fault.variant, fault.name, _seed_of(program.name, fault.name, fault.variant))
                healthy[case.control] = None
                faulty.append(case)
    return (*healthy, *faulty)


def _is_drawn(program: Program, fault: Fault) -> bool:
    """Two programs of three, for a fault that most programs can have and whose code has other faults too."""
    siblings = sum(other.code == fault.code for other in FAULTS.values())
    is_common = sum(fits(other, fault) for other in PROGRAMS.values()) > COMMON * len(PROGRAMS)
    return siblings == 1 or not is_common or zlib.crc32(f"{fault.name} {program.name}".encode()) % 3 > 0


def _seed_of(*words: str) -> int:
    return zlib.crc32(" ".join(words).encode()) % len(SEEDS)


def chosen(*, only: str = "*", quick: bool = False, part: str = "all") -> list[Case]:
    """Cases whose name fits a pattern, in one part ("dev", "held_out" or "all"); quick: a few, with their controls.

    Args:
        only: shell pattern, or a part of the name.
        quick: every twelfth fault and its control.
        part: which programs.

    Returns:
        The cases, controls first.
    """
    pattern = only if any(mark in only for mark in "*?[") else f"*{only}*"
    found = [case for case in all_cases() if fnmatch.fnmatchcase(case.name, pattern)]
    found = [case for case in found if part == "all" or case.is_held_out == (part == "held_out")]
    if quick:
        found = [case for case in found if case.fault][::QUICK_EVERY]
    controls = {case.control: None for case in found}
    return [*controls, *(case for case in found if case.fault)]
