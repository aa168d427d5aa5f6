"""What every backend needs: reading gradients and parameters, their exact norms, and the seam itself.

A backend reads the gradients before the optimizer's step and the parameters after it and answers with one row of raw
columns (`columns.RAW_COLUMNS`) per unit. Nothing here waits for the device.

Legend: U units, K raw columns.
"""

from __future__ import annotations

import sys
from typing import Protocol

import torch
from torch import Tensor

from thermoclaw.layers import Unit
from thermoclaw.measure.columns import RAW
from thermoclaw.measure.place import Place
from thermoclaw.measure.sharded import Peers, local, local_gradient, place_of

_WIDE = (torch.float32, torch.float64)
_NORM_ROW = 1024  # squared norms are summed in rows this long, then in double precision


class Backend(Protocol):
    """Measures the units on one device."""

    device: torch.device
    peers: Peers
    is_replayable: bool  # its work may be captured in a CUDA graph and replayed

    def start_norms(self) -> Tensor:
        """‖θ‖² of each unit [U] when the backend was made."""

    def forget(self) -> None:
        """Forget all but the start: steps were left out, so products with earlier ones are unknown."""

    def read_gradients(self, *, scale: Tensor | None = None, more: bool = False) -> None:
        """Take in each parameter's `.grad` (divided by `scale`), before the optimizer may touch it.

        With `more`, they come on top of those that were taken in for this step already: of other groups.
        """

    def read_parameters(self, out: Tensor, *, lrs: dict[int, Tensor], skipped: Tensor | None = None) -> None:
        """Take in the parameters after the step and write the raw row [U, K]; `lrs` by group, where on a device."""

    def num_bytes(self) -> int:
        """Bytes held between steps."""

    def memory(self) -> list[Tensor]:
        """What is remembered of each unit [6, n], on the host: g₁ g₂ g₃ Δ₁ θ⁻ θ₀, NaN where unknown. Waits."""

    def remember(self, memory: list[Tensor]) -> None:
        """Go on from what a backend of the same mode remembered, on whatever device and however sharded it was."""

    def adopt(self, other: Backend) -> None:
        """Take over the memory of units that both know (after parameters were added or replaced)."""


def flat(x: Tensor, like: Tensor) -> Tensor:
    """A one-dimensional view of x in the memory order of `like` (a copy only where their layouts differ)."""
    if x.is_complex():
        x, like = torch.view_as_real(x), torch.view_as_real(like)
    if like.is_contiguous():
        return x.reshape(-1)
    strides = like.stride()
    order = sorted(range(like.dim()), key=lambda d: (-strides[d], d))
    return x.permute(order).reshape(-1)


def row_major(x: Tensor) -> Tensor:
    """A one-dimensional tensor of the elements of x in logical order."""
    return (torch.view_as_real(x) if x.is_complex() else x).reshape(-1)


def flat_index(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Flat positions and values of a coalesced sparse COO gradient."""
    indices, values = grad.indices(), grad.values()
    sparse_dim = grad.sparse_dim()
    position = torch.zeros_like(indices[0])
    for d in range(sparse_dim):
        position = position * grad.shape[d] + indices[d]
    block = 1
    for length in grad.shape[sparse_dim:]:
        block *= length
    position = (position[:, None] * block + torch.arange(block, device=position.device)).reshape(-1)
    return position, values.reshape(-1)


def squared_norms(tensors: list[Tensor], *, dtype: torch.dtype) -> Tensor:
    """‖x‖² of each flat tensor, as a vector. Large ones are summed in single precision by rows, all else in `dtype`."""
    many = 16 * _NORM_ROW if tensors[0].device.type == "cpu" else sys.maxsize  # accelerators add up in trees
    small = [i for i, x in enumerate(tensors) if x.numel() < many]
    large = [i for i, x in enumerate(tensors) if x.numel() >= many]
    parts = []
    if small:
        wide = [x if x.dtype in _WIDE else x.float() for x in (tensors[i] for i in small)]
        parts.append(torch.stack(torch._foreach_norm(wide, 2, dtype)).square_())
    if large:
        parts.append(torch.stack([_squared_norm(tensors[i], dtype=dtype) for i in large]))
    if not small or not large:
        return parts[0]
    order = sorted(range(len(tensors)), key=(small + large).__getitem__)
    return torch.cat(parts)[torch.tensor(order)]


def _squared_norm(x: Tensor, *, dtype: torch.dtype) -> Tensor:
    """‖x‖² of one large tensor: torch's own norm loses five digits on millions of elements."""
    acc = torch.float64 if x.dtype == torch.float64 else torch.float32
    cut = x.numel() - x.numel() % _NORM_ROW
    rows = torch.linalg.vector_norm(x[:cut].view(-1, _NORM_ROW), dim=1, dtype=acc).to(dtype)
    total = torch.dot(rows, rows)
    if cut < x.numel():
        total = total + torch.linalg.vector_norm(x[cut:], dtype=acc).to(dtype).square()
    return total


class UnitReader:
    """What the backends do alike: reading the local parts of tensors, norms, and the fixed columns of a row."""

    is_replayable = False

    def __init__(self, units: list[Unit]) -> None:
        self.units = units
        self.device = units[0].device
        double = any(p.dtype in (torch.float64, torch.complex128) for u in units for p in u.params)
        self.dtype = torch.float64 if double else torch.float32
        self.wide = torch.float32 if self.device.type == "mps" else torch.float64
        # by unit and parameter: numbers in the whole of it, and where those of this process lie
        self.sizes = [[p.numel() * (2 if p.is_complex() else 1) for p in unit.params] for unit in units]
        self.places = [
            [place_of(p, sum(sizes[:i])) for i, p in enumerate(unit.params)]
            for unit, sizes in zip(units, self.sizes, strict=True)
        ]
        # one entry a parameter: which unit it belongs to
        owner = [u for u, unit in enumerate(units) for _ in unit.params]
        self._owner = torch.tensor(owner, device=self.device)
        self._nothing = torch.zeros(1, device=self.device, dtype=self.dtype)

    def _per_unit(self, norms: Tensor, owner: Tensor) -> Tensor:
        return torch.zeros(len(self.units), device=self.device, dtype=self.wide).index_add_(0, owner, norms)

    def gradients(self) -> list[list[Tensor | None]]:
        """Flat local gradients by unit; sparse ones stay sparse (coalesced), missing and empty ones are None."""
        return [
            [self._read_gradient(unit, p, place) for p, place in zip(unit.params, places, strict=True)]
            for unit, places in zip(self.units, self.places, strict=True)
        ]

    @staticmethod
    def _read_gradient(unit: Unit, p: Tensor, place: Place) -> Tensor | None:
        if unit.mesh is not None:
            held = local_gradient(p)
            return None if held is None or place.size == 0 else row_major(held)
        g = p.grad
        if g is None:
            return None
        if g.is_sparse:
            return g.detach().coalesce()
        return flat(g.detach(), p.detach())

    def parameters(self) -> list[list[Tensor | None]]:
        """Flat local parameters by unit; those of which this process holds nothing are None."""
        rows: list[list[Tensor | None]] = []
        for unit, places in zip(self.units, self.places, strict=True):
            if unit.mesh is None:
                rows.append([flat(p.detach(), p.detach()) for p in unit.params])
            else:
                held = [local(p.detach()) for p in unit.params]
                rows.append([row_major(x) if place.size else None for x, place in zip(held, places, strict=True)])
        return rows

    def _norms(self, tensors: list[list[Tensor | None]]) -> Tensor:
        """‖x‖² of each unit's local part; missing tensors count as zeros."""
        flat_ones = [x for row in tensors for x in row]
        dense = [self._nothing if x is None else x.values().reshape(-1) if x.is_sparse else x for x in flat_ones]
        return self._per_unit(squared_norms(dense, dtype=self.wide), self._owner)

    def _write_lrs(self, out: Tensor, lrs: dict[int, Tensor], skipped: Tensor | None) -> None:
        out[:, RAW["lr"]] = float("nan")
        for u, unit in enumerate(self.units):
            if unit.group in lrs:
                out[u, RAW["lr"]] = lrs[unit.group].reshape(()).to(device=out.device, dtype=out.dtype)
        out[:, RAW["skipped"]] = 0.0 if skipped is None else skipped.reshape(()).to(device=out.device, dtype=out.dtype)
