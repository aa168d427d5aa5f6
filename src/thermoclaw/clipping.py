"""Clipping of the gradient norm as a hook of the optimizer's own step. It never waits for the device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from thermoclaw.diagnosis import remedies
from thermoclaw.partition import find_partition


def install(given: Any, optimizer: Any, value: float) -> Callable[[], None]:
    """Clip the norm of all gradients together to a value before each step.

    The hook comes before those that are there, so that an observer measures the gradients that the optimizer uses.

    Args:
        given: the optimizer as the user has it.
        optimizer: the torch optimizer inside.
        value: the largest norm, of unscaled gradients.

    Returns:
        A function that takes the hook off again.

    Raises:
        RemedyError: each process holds its own part of the gradient, whose norm is not that of the whole.
    """
    if find_partition(given) is not None:
        raise remedies.RemedyError(
            f"{type(given).__name__} holds parts of the gradient only: set gradient_clipping in its own configuration"
        )
    ref = weakref.ref(optimizer)

    def clip(*_: Any) -> None:
        alive = ref()
        if alive is None:
            return
        scale = getattr(alive, "grad_scale", None)  # a fused optimizer under a loss scaler unscales by itself
        params = [p for group in alive.param_groups for p in group["params"] if p.grad is not None]
        nn.utils.clip_grad_norm_(params, value if scale is None else value * scale)

    handle = optimizer.register_step_pre_hook(torch.compiler.disable(clip))
    hooks: Any = getattr(optimizer, "_optimizer_step_pre_hooks", {})
    if handle.id in hooks:
        hooks.move_to_end(handle.id, last=False)
    return lambda: handle.remove()


remedies.install_clip[:] = [install]
