"""The reference backend: torch operations on any device, exact norms and linear sketches.

It reads the gradients before the optimizer's step and the parameters after it and answers with one row of raw columns
(`columns.RAW_COLUMNS`) per unit. Nothing here waits for the device. A faster backend has only to write the same rows:
the `Backend` protocol is the seam.

Legend: U units, K raw columns, p sketch size.
"""

from __future__ import annotations

import sys
from typing import Protocol

import torch
from torch import Tensor

from thermoclaw.layers import Unit
from thermoclaw.measure.columns import RAW, RAW_COLUMNS
from thermoclaw.measure.native import NativePass
from thermoclaw.measure.sketch import Sketcher

_WIDE = (torch.float32, torch.float64)
_NORM_ROW = 1024  # squared norms are summed in rows this long, then in double precision


class Backend(Protocol):
    """Measures the units on one device."""

    device: torch.device

    def read_gradients(self, *, scale: Tensor | None = None) -> None:
        """Take in each parameter's `.grad` (divided by `scale`), before the optimizer may touch it."""

    def read_parameters(self, out: Tensor, *, lrs: dict[int, Tensor], skipped: Tensor | None = None) -> None:
        """Take in the parameters after the step and write the raw row [U, K]; `lrs` by group, where on a device."""

    def num_bytes(self) -> int:
        """Bytes held between steps."""

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
    """What both reference backends do alike: reading tensors, norms, and the fixed columns of a row."""

    def __init__(self, units: list[Unit]) -> None:
        self.units = units
        self.device = units[0].device
        double = any(p.dtype in (torch.float64, torch.complex128) for u in units for p in u.params)
        self.dtype = torch.float64 if double else torch.float32
        self.wide = torch.float32 if self.device.type == "mps" else torch.float64
        # one entry a parameter: which unit it belongs to
        owner = [u for u, unit in enumerate(units) for _ in unit.params]
        self._owner = torch.tensor(owner, device=self.device)
        self._nothing = torch.zeros(1, device=self.device, dtype=self.dtype)
        self._g_g = torch.zeros(len(units), device=self.device, dtype=self.wide)

    def _per_unit(self, norms: Tensor, owner: Tensor) -> Tensor:
        return torch.zeros(len(self.units), device=self.device, dtype=self.wide).index_add_(0, owner, norms)

    def _gradients(self) -> list[list[Tensor | None]]:
        """Flat gradients by unit; sparse ones stay sparse (coalesced), missing and empty ones are None."""
        grads: list[list[Tensor | None]] = []
        for unit in self.units:
            row: list[Tensor | None] = []
            for p in unit.params:
                g = p.grad
                if g is None:
                    row.append(None)
                elif g.is_sparse:
                    row.append(g.detach().coalesce())
                else:
                    row.append(flat(g.detach(), p.detach()))
            grads.append(row)
        return grads

    def _parameters(self) -> list[list[Tensor]]:
        return [[flat(p.detach(), p.detach()) for p in unit.params] for unit in self.units]

    def _norms(self, tensors: list[list[Tensor | None]]) -> Tensor:
        """‖x‖² of each unit; missing tensors count as zeros."""
        flat_ones = [x for row in tensors for x in row]
        dense = [self._nothing if x is None else x.values().reshape(-1) if x.is_sparse else x for x in flat_ones]
        return self._per_unit(squared_norms(dense, dtype=self.wide), self._owner)

    def _write_lrs(self, out: Tensor, lrs: dict[int, Tensor], skipped: Tensor | None) -> None:
        out[:, RAW["lr"]] = float("nan")
        for u, unit in enumerate(self.units):
            if unit.group in lrs:
                out[u, RAW["lr"]] = lrs[unit.group].reshape(()).to(device=out.device, dtype=out.dtype)
        out[:, RAW["skipped"]] = 0.0 if skipped is None else skipped.reshape(()).to(device=out.device, dtype=out.dtype)


class SketchBackend(UnitReader):
    """Norms exactly, every other product from sketches of p numbers a unit."""

    # places in the state [U, slots, p]
    _G, _D, _P, _ORIGIN, _SLOTS = 0, 4, 6, 8, 9

    def __init__(self, units: list[Unit], *, size: int = 1021) -> None:
        super().__init__(units)
        sizes = [[p.numel() * (2 if p.is_complex() else 1) for p in unit.params] for unit in units]
        self._sketcher = Sketcher(sizes, size=size, device=self.device, dtype=self.dtype)
        self._state = torch.full((len(units), self._SLOTS, size), float("nan"), device=self.device, dtype=self.dtype)
        self._now = 0
        self._native = NativePass(sizes, self._sketcher) if self.device.type == "cpu" else None
        params = self._parameters()
        self._p_p = self._measure([list(row) for row in params], self._P)
        self._state[:, self._P + 1] = self._state[:, self._P]
        self._state[:, self._ORIGIN] = self._state[:, self._P]

    def num_bytes(self) -> int:
        """Bytes held between steps."""
        return self._state.numel() * self._state.element_size() + self._sketcher.num_bytes

    def _measure(self, tensors: list[list[Tensor | None]], slot: int) -> Tensor:
        """Sketch all units into a slot of the state and return their squared norms [U]."""
        if self._native is not None:
            norms = self._native([x for row in tensors for x in row], self._state[:, slot])
            if norms is not None:
                return self._per_unit(norms.to(self.wide), self._owner)
        for u, row in enumerate(tensors):
            out = self._state[u, slot]
            self._sketcher.sketch(u, [None if x is None or x.is_sparse else x for x in row], out)
            for i, x in enumerate(row):
                if x is not None and x.is_sparse:
                    self._sketcher.add_sparse(u, i, *flat_index(x), out)
        return self._norms(tensors)

    def _slot(self, base: int, count: int, lag: int = 0) -> int:
        return base + (self._now - lag) % count

    def read_gradients(self, *, scale: Tensor | None = None) -> None:
        """See `Backend`."""
        grads = self._gradients()
        slot = self._slot(self._G, 4)
        self._g_g = self._measure(grads, slot)
        if scale is not None:
            inverse = scale.reshape(()).to(self.device).reciprocal()
            self._state[:, slot].mul_(inverse.to(self.dtype))
            self._g_g.mul_(inverse.to(self.wide).square())

    def read_parameters(self, out: Tensor, *, lrs: dict[int, Tensor], skipped: Tensor | None = None) -> None:
        """See `Backend`."""
        params = self._parameters()
        state = self._state
        now, before = self._slot(self._P, 2), self._slot(self._P, 2, 1)
        # the slot of θ two steps ago takes θ now; Δ is formed from the two
        norms = self._measure([list(row) for row in params], now)
        delta = self._slot(self._D, 2)
        torch.sub(state[:, now], state[:, before], out=state[:, delta])
        grad = state[:, self._slot(self._G, 4)]
        with_grad = torch.matmul(state, grad.unsqueeze(-1)).squeeze(-1).to(self.wide)
        drift = state[:, now] - state[:, self._ORIGIN]
        step = state[:, delta]

        out[:, RAW["g_g"]] = self._g_g
        out[:, RAW["p_p"]] = norms
        for name, slot in (
            ("gs_gs", self._slot(self._G, 4)),
            ("g_g1", self._slot(self._G, 4, 1)),
            ("g_g2", self._slot(self._G, 4, 2)),
            ("g_g3", self._slot(self._G, 4, 3)),
            ("g_d", delta),
            ("g_d1", self._slot(self._D, 2, 1)),
            ("g_p", before),
        ):
            out[:, RAW[name]] = with_grad[:, slot]
        out[:, RAW["d_d"]] = (step * step).sum(1).to(self.wide)
        old = state[:, before]
        out[:, RAW["d_p"]] = (step * old).sum(1).to(self.wide)
        out[:, RAW["ps_ps"]] = (old * old).sum(1).to(self.wide)
        out[:, RAW["f_f"]] = (drift * drift).sum(1).to(self.wide)
        self._write_lrs(out, lrs, skipped)
        if skipped is not None:  # products with a refused gradient are undefined, not wrong
            refused = skipped.reshape(()).to(self.device) > 0
            for slot in (self._slot(self._G, 4), delta):
                state[:, slot].masked_fill_(refused, float("nan"))
        self._now += 1

    def adopt(self, other: Backend) -> None:
        """See `Backend`."""
        if not isinstance(other, SketchBackend) or other._sketcher.size != self._sketcher.size:
            return
        place = {unit.key: u for u, unit in enumerate(other.units)}
        self._now = other._now
        last = self._slot(self._P, 2, 1)
        for u, unit in enumerate(self.units):
            if unit.key in place:
                self._state[u] = other._state[place[unit.key]]
            else:
                self._state[u, last] = self._state[u, self._ORIGIN]


def empty_row(num_units: int, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A raw row of NaN, [U, K]."""
    return torch.full((num_units, len(RAW_COLUMNS)), float("nan"), device=device, dtype=dtype)
