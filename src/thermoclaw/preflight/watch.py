"""Hooks that look on while a loss is computed: which modules run, what they are given, what the model answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from thermoclaw.preflight.setup import Setup

_INTEGERS = (torch.int64, torch.int32, torch.uint8)
SAME_LOSS = 0.2


@dataclass(eq=False)
class Seen:
    """What the hooks noted.

    Attributes:
        used: modules that own parameters and were called, by name.
        first_layer: the first of them.
        input_rms: root mean square of what it was given; NaN if that was no real number, or if it is a norm.
    """

    used: set[str] = field(default_factory=set)
    first_layer: str = ""
    input_rms: float = math.nan


@contextmanager
def watched(setup: Setup, seen: Seen, model: Any) -> Iterator[list[Any]]:
    """Note what runs inside; yields a list that receives the model's outputs."""
    outputs: list[Any] = []
    handles = []
    try:
        for layer, module in {w.layer: w.module for w in setup.weights}.items():
            handles.append(module.register_forward_pre_hook(_noting(seen, layer)))
        if isinstance(model, nn.Module):
            handles.append(model.register_forward_hook(lambda _, __, output: outputs.append(output)))
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _noting(seen: Seen, layer: str) -> Callable[[nn.Module, Any], None]:
    def hook(module: nn.Module, inputs: Any) -> None:
        seen.used.add(layer)
        x = inputs[0] if inputs else None
        if seen.first_layer or not isinstance(x, Tensor):
            return
        seen.first_layer = layer
        if x.is_floating_point() and x.numel() and "Norm" not in type(module).__name__:
            seen.input_rms = float(x.detach().float().square().mean().sqrt())

    return hook


def num_classes(outputs: list[Any], batch: Any, loss: float) -> int:
    """C, where the loss is about the cross-entropy of an output [..., C] with integer targets [...]; else 0."""
    output = outputs[0] if outputs else None
    output = getattr(output, "logits", output)
    parts = list(batch.values()) if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else []
    target = parts[-1] if parts else None
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.dim() < 2:
        return 0
    if not isinstance(target, Tensor) or target.dtype not in _INTEGERS or target.shape != output.shape[:-1]:
        return 0
    classes = output.shape[-1]
    if classes < 2 or not 0 <= int(target.min()) <= int(target.max()) < classes:
        return 0
    plain = float(functional.cross_entropy(output.detach().float().flatten(0, -2), target.flatten().long()))
    return int(classes) if abs(loss - plain) <= SAME_LOSS * abs(plain) else 0
