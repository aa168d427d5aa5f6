"""Copies of a run's weights and optimizer state, a fixed number of steps apart, to go back to. Nothing waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thermoclaw.layers import mesh_of
from thermoclaw.state import StateError, count, take

KEPT = 2  # copies at a time, so that one is at least a whole interval old


@dataclass(frozen=True)
class Copy:
    """What a run was after some step."""

    step: int
    tensors: list[Tensor]
    state: dict[Any, dict[str, Any]]


class Rewind:
    """Keeps the last copies of parameters, buffers and optimizer state, on their devices.

    Args:
        model: the model, or a list of them.
        optimizer: the innermost optimizer.
        interval: steps between copies.
        now: gives the number of steps made.
    """

    def __init__(self, model: Any, optimizer: Any, *, interval: int, now: Callable[[], int]) -> None:
        models: list[nn.Module] = list(model) if isinstance(model, (list, tuple)) else [model]
        held = [p for group in optimizer.param_groups for p in group["params"]]
        mine = [t for one in models for t in (*one.parameters(), *one.buffers())]
        self._tensors = list({id(t): t for t in (*mine, *held)}.values())
        self._optimizer, self._interval, self._now = optimizer, interval, now
        self._copies: deque[Copy] = deque(maxlen=KEPT)
        self.keep()

    @torch.no_grad()
    def keep(self) -> None:
        """Copy what is there now."""
        state = {p: {k: _copied(v) for k, v in held.items()} for p, held in self._optimizer.state.items()}
        self._copies.append(Copy(self._now(), [t.detach().clone() for t in self._tensors], state))

    def keep_if_due(self) -> None:
        """Copy, if the last copy is an interval old."""
        if not self._copies or self._now() >= self._copies[-1].step + self._interval:
            self.keep()

    @torch.no_grad()
    def back(self, before: int) -> int | None:
        """Go back to the newest copy from before a step, or the oldest there is; the step that it was made after.

        None where there is no copy: a run has just gone on from a state without them.

        Copies from later steps are dropped. What the optimizer held of a parameter that it had not stepped by then is
        dropped, too.
        """
        if not self._copies:
            return None
        while len(self._copies) > 1 and self._copies[-1].step >= before:
            self._copies.pop()
        copy = self._copies[-1]
        for tensor, kept in zip(self._tensors, copy.tensors, strict=True):
            tensor.detach().copy_(kept)
        state = self._optimizer.state
        for p in list(state):
            if p not in copy.state:
                del state[p]
                continue
            for key, kept in copy.state[p].items():
                now = state[p].get(key)
                if isinstance(now, Tensor) and isinstance(kept, Tensor) and now.shape == kept.shape:
                    now.copy_(kept)
                else:
                    state[p][key] = _copied(kept)
        self._copies[-1] = Copy(self._now(), copy.tensors, copy.state)  # the next one is due an interval from here
        return copy.step

    def state_dict(self) -> list[dict[str, Any]] | None:
        """The copies on the host, parameters by their places; None where other processes hold the rest of them."""
        if any(mesh_of(t) is not None for t in self._tensors):
            return None
        place = {id(t): i for i, t in enumerate(self._tensors)}
        return [
            {
                "step": copy.step,
                "tensors": copy.tensors,
                "state": [[place[id(p)], dict(held)] for p, held in copy.state.items()],
            }
            for copy in self._copies
        ]

    def load_state_dict(self, copies: Any) -> None:
        """Go on with the copies of `state_dict`; without any (None), the next step makes the first one.

        Raises:
            StateError: they are of other tensors.
        """
        loaded = [self._loaded(copy) for copy in copies or ()]
        self._copies.clear()
        self._copies.extend(loaded)

    def _loaded(self, copy: Any) -> Copy:
        tensors, state = take(copy, "tensors", list), {}
        shapes = [getattr(t, "shape", None) for t in tensors]
        if shapes != [t.shape for t in self._tensors]:
            raise StateError("the copies of weights are of another model")
        for i, held in take(copy, "state", list):
            p = self._tensors[i]
            state[p] = {key: _like(value, p) for key, value in held.items()}
        return Copy(count(copy, "step"), [_like(x, t) for x, t in zip(tensors, self._tensors, strict=True)], state)


def _like(value: Any, p: Tensor) -> Any:
    """A value of a parameter's state where that parameter is; a count of steps stays on the host."""
    if not isinstance(value, Tensor):
        return value
    return value.to(p.device) if value.dim() or not p.dim() else value


def _copied(value: Any) -> Any:
    """A tensor's copy; other values as they are."""
    return value.detach().clone() if isinstance(value, Tensor) else value
