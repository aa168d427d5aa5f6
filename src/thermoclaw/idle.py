"""Parameters that no observed optimizer holds although they get gradients: told, unless somebody else moves them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

LEAST = 2048  # elements of a matrix whose distribution can be told


class Idle:
    """Looks after parameters outside the optimizer, by their version counters. Never waits.

    Args:
        params: the parameters by name.
        is_anothers: whether one belongs to another optimizer that is observed.
    """

    def __init__(self, params: Mapping[str, Tensor], is_anothers: Callable[[Tensor], bool]) -> None:
        self._is_anothers = is_anothers
        self._versions = {name: p._version for name, p in params.items()}
        self._are_old = False  # weights may have been loaded since the versions were looked up
        self.told: dict[str, bool] = {}
        """Of those with a gradient: whether nobody moves them."""
        self.edges = edges(params)
        """Of each matrix at the start, how far its largest value is from where a uniform draw has it."""

    def look(self, params: Mapping[str, Tensor]) -> None:
        """Note which get gradients, and which were moved since the start; `params` as they are outside of it now."""
        if self._are_old:
            self._versions = {name: p._version for name, p in params.items()}
            self._are_old = False
        for name, p in params.items():
            if p._version != self._versions.get(name, p._version):
                self.told[name] = False
            elif p.grad is not None and name not in self.told:
                self.told[name] = not self._is_anothers(p)

    @property
    def names(self) -> list[str]:
        """Parameters that get gradients and are moved by nobody."""
        return [name for name, idle in self.told.items() if idle]

    def load(self, told: Mapping[str, bool], edges: Mapping[str, float]) -> None:
        """Go on from what was told before; weights are loaded with it, so versions are looked up anew."""
        self.told = {str(name): bool(idle) for name, idle in told.items()}
        self.edges = {str(name): float(edge) for name, edge in edges.items()}
        self._are_old = True


@torch.no_grad()
def edges(params: Mapping[str, Tensor]) -> dict[str, float]:
    """How far max|θ|/rms is from the √3 of a uniform distribution, in its standard deviations, by name. Waits.

    Of n uniform draws the root mean square has the relative deviation √(1/5n), and the largest is at the edge. PyTorch
    draws linear, convolutional and recurrent layers so; a little training already takes weights across the edge. Only
    dense matrices of at least 2048 elements can tell.
    """
    found: dict[str, float] = {}
    with contextlib.suppress(RuntimeError, NotImplementedError):  # parameters that are not there yet, or in pieces
        for name, p in params.items():
            if p.ndim > 1 and p.numel() >= LEAST and type(p.data) is Tensor and p.is_floating_point() and not p.is_meta:
                rms = torch.linalg.vector_norm(p.detach(), dtype=torch.float32) / p.numel() ** 0.5
                peak = float(p.detach().abs().max().float() / rms)
                found[name] = (peak / 3**0.5 - 1.0) * (5.0 * p.numel()) ** 0.5
    return found
