"""Attaching to an optimizer's own step hooks and detaching again, without keeping anything alive.

Hooks fire inside `optimizer.step()`, so the order of `observer.step`, `zero_grad`, clipping and schedulers around it
cannot spoil a measurement.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

# Of torch.distributed.checkpoint and DeepSpeed: they step an optimizer without a state, so that it has one to load.
STATE_MAKERS = frozenset({"_init_optim_state", "initialize_optimizer_states"})
STATE_MAKER_WITHIN = 20  # callers: hooks, guards, profilers and schedulers lie between


class Steps(Protocol):
    """What hooks drive."""

    def before_step(self, *, closure: bool) -> None:
        """Called with the gradients in place, before anything moves."""

    def after_step(self) -> None:
        """Called when the parameters have moved."""


def unwrap(optimizer: Any) -> Any:
    """The innermost optimizer of wrappers that keep it as `.optimizer` (Accelerate, DeepSpeed, Lightning)."""
    seen = {id(optimizer)}
    while True:
        inner = getattr(optimizer, "optimizer", None)
        if inner is None or id(inner) in seen or not hasattr(inner, "param_groups") or not hasattr(inner, "step"):
            return optimizer
        seen.add(id(inner))
        optimizer = inner


def can_hook(optimizer: Any) -> bool:
    """Whether step hooks of this object will fire."""
    return isinstance(optimizer, Optimizer) and hasattr(optimizer, "_optimizer_step_pre_hooks")


class Hooks:
    """A pair of step hooks that call a target for as long as it lives."""

    def __init__(self, optimizer: Any, target: Steps) -> None:
        ref = weakref.ref(target)
        handles: list[Any] = []

        def before(stepping: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            alive = ref()
            if alive is None:
                return
            given = args[1:] if args and args[0] is stepping else args  # torch counts the optimizer among them
            closure = given[0] if given else kwargs.get("closure")
            alive.before_step(closure=closure is not None)

        def after(*_: Any) -> None:
            alive = ref()
            if alive is not None:
                alive.after_step()

        # around a compiled step() they run as they are: tracing them would compile the measurement
        handles.append(optimizer.register_step_pre_hook(torch.compiler.disable(before)))
        handles.append(optimizer.register_step_post_hook(torch.compiler.disable(after)))
        self._remove: Callable[[], None] = lambda: _remove(handles)
        self._finalizer = weakref.finalize(target, _remove, handles)

    def remove(self) -> None:
        """Take the hooks off the optimizer, unless it is just stepping; more than once is fine."""
        self._remove()


def _remove(handles: list[Any]) -> None:
    """Take hooks off; inside a step they stay, idle, as torch may be going through them and would raise."""
    if handles and not _inside_a_step():
        while handles:
            handles.pop().remove()


def only_makes_state(optimizer: Any) -> bool:
    """Whether the step that begins has zero gradients and a rate of zero: so distributed checkpoints make a state."""
    if getattr(optimizer, "state", True):
        return False
    frame: FrameType | None = sys._getframe(1)
    for _ in range(STATE_MAKER_WITHIN):
        if frame is None:
            return False
        if frame.f_code.co_name in STATE_MAKERS:
            return True
        frame = frame.f_back
    return False


def _inside_a_step() -> bool:
    """Whether an optimizer's `step` is among the callers (the garbage collector may call from anywhere)."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.optim.optimizer":
            return True
        frame = frame.f_back
    return False
