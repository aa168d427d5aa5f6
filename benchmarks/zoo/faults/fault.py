"""What a fault is: one change to a recipe, the step at which it begins, and what a diagnosis should call it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.zoo.recipe import Recipe

Change = Callable[[Recipe, int, Any], Recipe]


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: what tables call it.
        codes: the code that is expected, then the few that say the same thing; `why` defends each of those.
        change: recipe, first faulty step and random numbers (for strengths) → faulty recipe.
        needs: traits that a program must have.
        lacks: traits that it must not have.
        begins: a key of `ONSETS`, the part of the run in which its first step is drawn.
        optimizers: kinds that it makes sense with; empty means all.
        variant: the variant that it is put into, "plain" by default; its control is the same variant.
        why: why the synonyms are acceptable.
    """

    name: str
    codes: tuple[str, ...]
    change: Change
    needs: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()
    begins: str = "start"
    optimizers: tuple[str, ...] = ()
    variant: str = "plain"
    why: str = ""

    @property
    def code(self) -> str:
        """The code that is expected."""
        return self.codes[0]


ONSETS = {
    "start": (0.0, 0.0),
    "early": (0.05, 0.15),
    "middle": (0.33, 0.6),
    "late": (0.75, 0.88),
    "at decay": (0.4, 0.4),
}
ADAM = ("adam", "adamw")
SGD = ("sgd", "nesterov")


def between(random: Any, low: float, high: float) -> float:
    """A random strength, uniform in its logarithm."""
    return float(low * (high / low) ** random.random())


def needs(words: str) -> frozenset[str]:
    """Traits as a set."""
    return frozenset(words.split())
