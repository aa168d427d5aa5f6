"""Whether gradients are new at each step, told by their version counters: nobody adds to what is new."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

STEPS, LEAST = 64, 4  # that are looked at, from the start, and that can tell


class Renewal:
    """Compares a few gradients' version counters from step to step. Never waits, and holds no gradient.

    Autograd adds to a gradient that is there, which raises its counter; so does clearing it in place. Where `zero_grad`
    drops gradients, as PyTorch does by default, each step has new ones, whose counters do not grow.
    """

    PARAMS = 4  # that are looked at

    def __init__(self, renewed: int = 0, compared: int = 0, *before: int) -> None:
        self.renewed, self.compared = renewed, compared
        self._before = before

    @property
    def state(self) -> list[int]:
        """What it is made of again."""
        return [self.renewed, self.compared, *(self._before if -1 not in self._before else ())]

    @property
    def told(self) -> bool | None:
        """Whether gradients were new at most steps, so that nothing adds up; None where nobody knows."""
        return self.renewed > 0.5 * self.compared if self.compared >= LEAST else None

    def look(self, params: Sequence[Tensor]) -> None:
        """At a step that is about to be made, with its gradients in place."""
        if self.compared >= STEPS:
            return
        grads = [p.grad for p in params[: self.PARAMS]]
        now = tuple(-1 if grad is None or type(grad) is not Tensor else grad._version for grad in grads)
        if len(now) == len(self._before) > 0 and -1 not in (*now, *self._before):  # groups may have been added
            self.compared += 1
            self.renewed += all(a <= b for a, b in zip(now, self._before, strict=True))
        self._before = now
