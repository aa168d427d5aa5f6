"""Optimizers by name: torch's own, and the two that it lacks in older versions, in their plainest form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.zoo.recipe import OptimizerSpec


def make_optimizer(groups: list[dict[str, Any]], spec: OptimizerSpec) -> torch.optim.Optimizer:
    """The optimizer that a spec names, over parameter groups."""
    lr, decay, betas = spec.lr, spec.weight_decay, (spec.momentum, spec.beta2)
    match spec.kind:
        case "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=spec.momentum, weight_decay=decay)
        case "nesterov":
            return torch.optim.SGD(groups, lr=lr, momentum=spec.momentum, weight_decay=decay, nesterov=True)
        case "adam":
            return torch.optim.Adam(groups, lr=lr, betas=betas, eps=spec.eps, weight_decay=decay)
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=spec.eps, weight_decay=decay)
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=lr, alpha=0.99, weight_decay=decay)
        case "adagrad":
            return torch.optim.Adagrad(groups, lr=lr, weight_decay=decay)
        case "adafactor":
            return torch.optim.Adafactor(groups, lr=lr, weight_decay=decay)
        case "lion":
            return Lion(groups, lr=lr, weight_decay=decay)
        case "muon":
            return Muon(groups, lr=lr, weight_decay=decay)
    raise ValueError(f"no optimizer {spec.kind!r}")


class Lion(torch.optim.Optimizer):
    """Sign of an interpolated momentum, with decoupled decay (Chen et al. 2023, arXiv 2302.06675)."""

    def __init__(self, params: Any, *, lr: float, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.99)):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step."""
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                mean = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                direction = mean.lerp(p.grad, 1.0 - first).sign()
                p.mul_(1.0 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
                mean.lerp_(p.grad, 1.0 - second)


class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum for matrices, Adam for the rest (Jordan et al. 2024)."""

    def __init__(self, params: Any, *, lr: float, weight_decay: float = 0.0, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1.0 - group["lr"] * group["weight_decay"])
                    p.sub_(self._direction(p, group["momentum"]), alpha=group["lr"])

    def _direction(self, p: Tensor, beta: float) -> Tensor:
        state = self.state[p]
        mean = state.setdefault("momentum_buffer", torch.zeros_like(p)).lerp_(p.grad, 1.0 - beta)
        if p.dim() < 2:
            state["step"] = state.get("step", 0) + 1
            square = state.setdefault("exp_avg_sq", torch.zeros_like(p)).lerp_(p.grad.square(), 0.05)
            root = (square / (1.0 - 0.95 ** state["step"])).sqrt()
            return mean / (1.0 - beta ** state["step"]) / (root + 1e-8)
        ahead = p.grad.lerp(mean, beta).flatten(1)
        return orthogonalized(ahead).view_as(p) * 0.2 * max(ahead.shape) ** 0.5


def orthogonalized(matrix: Tensor) -> Tensor:
    """The nearest matrix with singular values near one, by five quintic Newton–Schulz steps."""
    x = matrix / (matrix.norm() + 1e-7)
    turned = x.shape[0] > x.shape[1]
    x = x.T if turned else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if turned else x
