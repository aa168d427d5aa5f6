"""Whether a loss reaches models that other observed optimizers move, as in a game of two. Never waits.

Two runs side by side in one process step in turn as well. What makes a game is that one player's backward pass leaves
gradients in the other's parameters, which that other then drops before its own; or that they are held fixed meanwhile.
A run of another thread is left alone: its gradients may be freed while they are looked at.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

LEAST, SHARE, PARAMS = 8, 0.1, 4  # steps that can tell, their share that reached others, parameters looked at

Mark = tuple[tuple[weakref.ref[Tensor], int], ...]


class Other(Protocol):
    """Another attachment, as far as it is looked at."""

    @property
    def company(self) -> Company:
        """What it knows of others."""


class Company:
    """Looks at the gradients of a few parameters of every other optimizer before each step of its own.

    Args:
        reached: steps so far whose backward pass reached another's parameters.
        steps: steps so far.
    """

    def __init__(self, reached: int = 0, steps: int = 0) -> None:
        self.reached, self.steps = reached, steps
        self.params: list[Tensor] = []
        self.thread = 0  # that makes its steps
        self._before: Mark = ()  # of its own gradients, when it was about to step, and when it had stepped
        self._after: Mark = ()
        self._seen: dict[int, tuple[Mark, int]] = {}  # others' gradients that were changed, and steps they had made

    @property
    def told(self) -> bool:
        """Whether the loss reaches others' parameters again and again, or theirs reaches these."""
        return self.steps >= LEAST and self.reached > SHARE * self.steps

    def begin(self, params: Sequence[Tensor], others: Iterable[Other]) -> None:
        """At a step that is about to be made, with gradients in place."""
        self.params, self.thread = list(params[:PARAMS]), threading.get_ident()
        self._before = _mark(self.params)
        self.steps += 1
        seen: dict[int, tuple[Mark, int]] = {}
        for company in (other.company for other in others if other.company.thread == self.thread):
            was, then = self._seen.get(id(company), ((), company.steps))
            if company.steps > then and not _are_same(company._before, was):  # dropped: they were not of its own loss
                self.reached += 1
                company.reached += 1
            now = _mark(company.params)
            if (now and not _are_same(now, company._after)) or _are_held(company.params):
                seen[id(company)] = now, company.steps
        self._seen = seen

    def end(self) -> None:
        """At a step that was made."""
        self._after = _mark(self.params)


def _are_held(params: Sequence[Tensor]) -> bool:
    """Whether no gradient can reach them at present."""
    return bool(params) and not any(p.requires_grad for p in params)


def _mark(params: Sequence[Tensor]) -> Mark:
    """Which gradients these are, and how often they were written to; empty where there are none."""
    grads = [p.grad for p in params]
    return tuple((weakref.ref(grad), grad._version) for grad in grads if grad is not None and type(grad) is Tensor)


def _are_same(one: Mark, other: Mark) -> bool:
    """Of one tensor there is one reference, for as long as it is held; what takes its place has another."""
    return len(one) == len(other) and all(a is b and v == w for (a, v), (b, w) in zip(one, other, strict=True))
