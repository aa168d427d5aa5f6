"""A second optimizer over the same parameters: of the same class and settings, with state and groups of its own.

It takes trial steps. The user's optimizer is never stepped, so its state stays, and hooks on it (an observer's, say) do
not fire.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from thermoclaw.preflight.probe import Grads
from thermoclaw.preflight.setup import Setup, Weight

_WITH_CLOSURE = ("LBFGS",)


def can_copy(optimizer: Any) -> bool:
    """Whether trial steps of this optimizer can be made and taken back."""
    return isinstance(optimizer, torch.optim.Optimizer) and type(optimizer).__name__ not in _WITH_CLOSURE


def make_twin(setup: Setup, *, factor: float = 1.0) -> Any:
    """The second optimizer.

    Args:
        setup: holds the first.
        factor: on the rate of every group, which is the highest that the schedule reaches.

    Returns:
        An optimizer whose step() moves the model's parameters and nothing else of the user's.
    """
    inner = setup.optimizer
    twin = object.__new__(type(inner))
    own = {key: value for key, value in vars(inner).items() if key != "step"}  # a scheduler's wrapper calls the first
    own |= {key: OrderedDict() for key, value in own.items() if isinstance(value, OrderedDict) and "hook" in key}
    params = {id(p): p for group in inner.param_groups for p in group["params"]}
    memo = dict(params)
    own["param_groups"] = [
        {key: value if key == "params" else copy.deepcopy(value, memo) for key, value in group.items()}
        for group in inner.param_groups
    ]
    own["state"] = defaultdict(dict, {p: copy.deepcopy(state, memo) for p, state in inner.state.items()})
    vars(twin).update(own)
    set_rates(setup, twin, factor)
    return twin


def set_rates(setup: Setup, twin: Any, factor: float) -> None:
    """Rates as multiples of the highest ones."""
    for group, hyper in zip(twin.param_groups, setup.hypers, strict=True):
        if not math.isfinite(hyper.lr):
            continue  # an optimizer without a rate of that name
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(hyper.lr * factor)
        else:
            group["lr"] = hyper.lr * factor


def take_step(setup: Setup, twin: Any, weights: Sequence[Weight], grads: Grads) -> None:
    """One step of the twin on these gradients, clipped as the run will clip them."""
    for w, g in zip(weights, grads, strict=True):
        w.param.grad = g
    try:
        if setup.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_([w.param for w in weights], setup.max_grad_norm)
        twin.step()
    finally:
        for w in weights:
            w.param.grad = None


def state_bytes(twin: Any) -> int:
    """Memory of an optimizer's state."""
    held = [v for state in twin.state.values() for v in state.values() if isinstance(v, Tensor)]
    return sum(t.numel() * t.element_size() for t in held)
