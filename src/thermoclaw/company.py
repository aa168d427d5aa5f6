"""Whether other observed optimizers, of models of their own, step between this one's steps, as in a game of two."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

LEAST, SHARE = 8, 0.1  # steps that can tell, and their share before which others stepped


class Other(Protocol):
    """Another attachment, as far as it is looked at."""

    model: Any
    meter: Any


class Company:
    """Counts steps of one optimizer, and those before which others stepped. Never waits.

    Args:
        model: of this optimizer, or several.
        between: steps so far before which others stepped.
        steps: steps so far.
    """

    def __init__(self, model: Any, between: int = 0, steps: int = 0) -> None:
        self.between, self.steps = between, steps
        self._model = model
        self._calls = -1
        self._own: frozenset[int] | None = None
        self._shares: dict[int, bool] = {}

    @property
    def told(self) -> bool:
        """Whether others step between these steps again and again."""
        return self.steps >= LEAST and self.between > SHARE * self.steps

    def look(self, others: Iterable[Other]) -> None:
        """At a step that was made, with all others that are observed."""
        self.steps += 1
        calls = sum(other.meter.num_calls for other in others if not self._shares_with(other))
        self.between += calls > self._calls >= 0  # fewer are those of an observer that is gone
        self._calls = calls

    def _shares_with(self, other: Other) -> bool:
        key = id(other)
        if key not in self._shares:
            if self._own is None:
                self._own = _parameters(self._model)
            self._shares[key] = not self._own.isdisjoint(_parameters(other.model))
        return self._shares[key]


def _parameters(model: Any) -> frozenset[int]:
    models = model if isinstance(model, list) else [model]
    return frozenset(id(p) for part in models for p in part.parameters())
