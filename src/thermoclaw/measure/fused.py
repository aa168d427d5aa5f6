"""The CUDA backend: the sketching backend's numbers from three Triton kernels, whatever the number of units.

A step launches five kernels: pieces and sums for the gradients, pieces and sums for the parameters, and the row of
products. Nothing is counted or decided on the host between them, so a captured CUDA graph that holds them measures
every replay. Where the kernels cannot be used, `SketchBackend` does the same with torch operations.

Legend: U units, K raw columns, N tensors, p sketch size.
"""

from __future__ import annotations

import contextlib
import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from thermoclaw.layers import Unit
from thermoclaw.measure import graphs
from thermoclaw.measure.columns import RAW_COLUMNS
from thermoclaw.measure.pieces import (
    ROWS_AT_ONCE,
    Plan,
    chunk_shifts,
    chunk_signs,
    is_strided,
    lanes,
    plan,
    sign_bytes,
    table_signs,
    widest_chunk,
)
from thermoclaw.measure.sharded import Peers, local, local_gradient
from thermoclaw.measure.sketch import chunk_rows, padded, trimmed
from thermoclaw.measure.sums import Backend, UnitReader, flat, row_major

_KINDS = {torch.float32: 0 << 60, torch.bfloat16: 1 << 60, torch.float16: 2 << 60}
_LR_KINDS = {torch.float32: 0 << 60, torch.float64: 1 << 60}
PARAMETERS = (*_KINDS, torch.complex64)
_STRIDE_LIMIT = 1 << 30  # the kernel counts in 32 bits within a chunk

_COPIED = (-1,)  # strides that no tensor has

_MEMORY, _BEFORE, _ORIGIN = 6, 4, 5  # slots of the state: g₁ g₂ g₃ Δ₁ θ⁻ θ₀
_REDUCE_ROWS, _REDUCE_LANES = 32, 128


def load_kernels() -> ModuleType:
    """The kernels.

    Raises:
        ImportError: Triton is not installed.
    """
    try:
        from thermoclaw.measure import kernels
    except ImportError as error:
        raise ImportError(f"Triton is missing ({error}); torch's CUDA wheels for Linux bring it") from error
    return kernels


class FusedBackend(UnitReader):
    """See the module's docstring."""

    is_replayable = True

    def __init__(self, units: list[Unit], *, size: int = 1021) -> None:
        super().__init__(units)
        self._kernels = load_kernels()
        self._size = size
        self._totals = [sum(sizes) for sizes in self.sizes]
        self._params = [p for unit in units for p in unit.params]
        self._sharded = [unit.mesh is not None for unit in units for _ in unit.params]
        places = [place for row in self.places for place in row]
        if any(is_strided(place) and place.stride > _STRIDE_LIMIT for place in places):
            raise NotImplementedError(f"rows of a sharded parameter are longer than {_STRIDE_LIMIT} elements")
        self._counts = [place.size for place in places]
        self._memory_order = [
            _COPIED if sharded else _memory_order(p) for p, sharded in zip(self._params, self._sharded, strict=True)
        ]
        self._launches = self._send_plan(plan(self.places, self._totals, size))
        nan, num_units = float("nan"), len(units)
        self._state = torch.full((num_units, _MEMORY, size), nan, device=self.device)
        self._pack = torch.zeros(2, num_units, size, device=self.device)  # the step's gradients and parameters
        self._squares = torch.zeros(2, num_units, dtype=torch.float64, device=self.device)
        self._one, self._zero = torch.ones((), device=self.device), torch.zeros((), device=self.device)
        self._gradients, self._parameters = (graphs.SentTable(len(places), device=self.device) for _ in range(2))
        self._lrs = graphs.SentTable(num_units, device=self.device)
        self._kept: list[Tensor] = []  # copies that a kernel yet to be launched reads
        self._sparse: list[int] = []  # which gradients of this step are
        self._where = [(u, sum(row[:i])) for u, row in enumerate(self.sizes) for i in range(len(row))]
        self._is_in_a_graph = False
        self._warm_up()
        self.peers = Peers(units, device=self.device, dtype=self.dtype, per_unit=2 * (size + 1))
        self._measure(1, self._parameters, self._params, self._one)
        self.peers.add_up(self._pack[1], self._squares[1])
        self._state[:, _BEFORE] = self._state[:, _ORIGIN] = self._pack[1]
        self._start = self._squares[1].clone()

    def _send_plan(self, shared: Plan) -> list[tuple[Tensor, Tensor, bool]]:
        """The tables on the device; what the launches of pieces need."""
        signs = sign_bytes(widest_chunk(self._totals, self._size), self._size)
        self._signs = torch.from_numpy(signs).to(self.device)
        self._unit_places = torch.from_numpy(shared.unit_places).to(self.device)
        num_places = max(int(shared.unit_places[-1]), 1)
        self._partials = torch.zeros(num_places, self._size, device=self.device)
        self._partial_norms = torch.zeros(num_places, dtype=torch.float64, device=self.device)
        return [
            (torch.from_numpy(w.pieces).to(self.device), torch.from_numpy(w.programs).to(self.device), w.is_strided)
            for w in shared.work
        ]

    def _warm_up(self) -> None:
        """Compile every kernel now: a graph that is captured later could not."""
        out = torch.zeros(len(self.units), len(RAW_COLUMNS), dtype=torch.float64, device=self.device)
        self._make_row(out, self._zero)
        self._state.fill_(float("nan"))

    def start_norms(self) -> Tensor:
        """See `Backend`."""
        return self._start

    def _held(self) -> list[Tensor]:
        """Everything on the device."""
        tables = [t for pieces, programs, _ in self._launches for t in (pieces, programs)]
        codes = [self._gradients.values, self._parameters.values, self._lrs.values]
        scalars = [self._one, self._zero, self._unit_places]
        sums = [self._partials, self._partial_norms, self._pack, self._squares]
        return [self._state, self._signs, *sums, *tables, *codes, *scalars]

    def num_bytes(self) -> int:
        """Bytes held between steps."""
        return sum(t.numel() * t.element_size() for t in self._held())

    def forget(self) -> None:
        """See `Backend`."""
        self._state[:, :_ORIGIN].fill_(float("nan"))
        self._pack[0].fill_(float("nan"))

    # -- launches ---------------------------------------------------------------------------------------------------

    def _on_device(self) -> contextlib.AbstractContextManager[Any]:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()

    def _measure(self, which: int, codes: graphs.SentTable, tensors: list[Any], scale: Tensor) -> None:
        """Sketches and squared norms of all units into place `which`, divided by `scale`."""
        if graphs.is_capturing(self.device) and not self._is_in_a_graph:
            self._is_in_a_graph = True
            graphs.keep_for_graphs(*self._held())
        codes.send(self._addresses(tensors))
        self._sketch(codes.values)
        self._add_up(which, scale)
        self._kept.clear()

    def _sketch(self, codes: Tensor) -> None:
        step = lanes(self._size)
        with self._on_device():
            for pieces, programs, strided in self._launches:
                self._kernels.sketch_pieces[(len(programs),)](
                    codes, pieces, programs, self._signs, self._partials, self._partial_norms,
                    SIZE=self._size, ROWS=ROWS_AT_ONCE, LANES=step, STRIDED=strided,
                    num_warps=max(step // 32, 1), enable_fp_fusion=True,
                )  # fmt: skip

    def _add_up(self, which: int, scale: Tensor) -> None:
        with self._on_device():
            self._kernels.add_up[(len(self.units), -(-self._size // _REDUCE_LANES))](
                self._partials, self._partial_norms, self._unit_places, scale, self._pack, self._squares, which,
                SIZE=self._size, ROWS=_REDUCE_ROWS, LANES=_REDUCE_LANES,
                num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip

    def _make_row(self, out: Tensor, skipped: Tensor) -> None:
        step = lanes(self._size)
        with self._on_device():
            self._kernels.make_row[(len(self.units),)](
                self._pack, self._squares, self._state, self._lrs.values, skipped, out,
                SIZE=self._size, BLOCK=8 * step,
                num_warps=max(step // 32, 1), enable_fp_fusion=True,
            )  # fmt: skip

    # -- what the kernels read --------------------------------------------------------------------------------------

    def _addresses(self, tensors: list[Any]) -> list[int]:
        """Codes of the tensors, 0 for those that are missing or sparse. Most are read where they lie."""
        codes = []
        for i, (x, count, order) in enumerate(zip(tensors, self._counts, self._memory_order, strict=True)):
            if x is None:
                codes.append(0)
                continue
            kind = _KINDS.get(x.dtype)
            if (
                kind is not None
                and x.layout is torch.strided
                and (x.is_contiguous() if order is None else x.stride() == order)
                and x.numel() == count
            ):
                codes.append(x.data_ptr() | kind)
            else:
                codes.append(self._address(x, i))
        return codes

    def _address(self, x: Tensor, i: int) -> int:
        """The code of a tensor of another kind or layout, of which a copy may have to be made."""
        if self._counts[i] == 0:
            return 0
        if x.layout is torch.sparse_coo:
            self._sparse.append(i)
            return 0
        if x.layout is not torch.strided:
            raise TypeError(f"gradients of layout {x.layout} are not measured")
        if self._sharded[i]:
            x = row_major(local(x.detach()))
        else:
            x = flat(x.detach().resolve_conj().resolve_neg(), self._params[i].detach())
        if x.numel() != self._counts[i]:
            raise RuntimeError(f"a parameter of {self._counts[i]} numbers now has {x.numel()}: it was resized in place")
        if x.dtype not in _KINDS:
            x = x.float()
        x = x.contiguous()
        self._kept.append(x)
        return x.data_ptr() | _KINDS[x.dtype]

    def _lr_addresses(self, lrs: dict[int, Tensor]) -> list[int]:
        """Codes of the learning rates that live on a device, by unit."""
        by_group = {}
        for group, lr in lrs.items():
            if lr.device != self.device or lr.dtype not in _LR_KINDS:
                lr = lr.to(device=self.device, dtype=torch.float32, non_blocking=True)
                self._kept.append(lr)
            by_group[group] = lr.data_ptr() | _LR_KINDS[lr.dtype]
        return [by_group.get(unit.group, 0) for unit in self.units]

    def _scalar(self, x: Tensor | None, default: Tensor) -> Tensor:
        if x is None:
            return default
        return x.detach().reshape(()).to(device=self.device, dtype=torch.float32, non_blocking=True)

    # -- the step ---------------------------------------------------------------------------------------------------

    def read_gradients(self, *, scale: Tensor | None = None, more: bool = False) -> None:
        """See `Backend`."""
        before = (self._pack[0].clone(), self._squares[0].clone()) if more else None
        grads = [
            local_gradient(p) if sharded else p.grad for p, sharded in zip(self._params, self._sharded, strict=True)
        ]
        divisor = self._scalar(scale, self._one)
        self._sparse.clear()
        self._measure(0, self._gradients, grads, divisor)
        for i in self._sparse:
            self._add_sparse(i, grads[i], divisor)
        if before is not None:
            self._pack[0].add_(before[0])
            self._squares[0].add_(before[1])

    def read_parameters(self, out: Tensor, *, lrs: dict[int, Tensor], skipped: Tensor | None = None) -> None:
        """See `Backend`."""
        self._measure(1, self._parameters, self._params, self._one)
        if self.peers:
            self.peers.exchange(self._pack[0], self._pack[1], self._squares[0], self._squares[1])
        self._lrs.send(self._lr_addresses(lrs))
        refused = self._scalar(skipped, self._zero)
        if out.dtype == torch.float64 and out.is_contiguous():
            self._make_row(out, refused)
        else:
            row = torch.empty(out.shape, dtype=torch.float64, device=self.device)
            self._make_row(row, refused)
            out.copy_(row)
        self._kept.clear()

    def _add_sparse(self, i: int, grad: Any, scale: Tensor) -> None:
        """Add a sparse gradient, whose repeated elements nobody has added up; its norm is that of its sketch."""
        unit, start = self._where[i]
        position, values = _entries(grad.detach())
        row = self._sketch_entries(unit, position + start, values) / scale
        self._pack[0, unit] += row
        self._squares[0, unit] += row.double().square().sum()

    def _sketch_entries(self, unit: int, position: Tensor, values: Tensor) -> Tensor:
        """The sketch [p] of elements at flat places of a unit. Adds in order of place, so the same way each time."""
        total, size = self._totals[unit], self._size
        if total > size:
            width = chunk_rows(total) * size
            chunk = torch.div(position, width, rounding_mode="floor")
            values = values * chunk_signs(chunk) * table_signs(chunk_shifts(chunk, width, size) + position % width)
        row = torch.zeros(size, device=self.device)
        return row.index_put_((position % size,), values, accumulate=True)

    def memory(self) -> list[Tensor]:
        """See `Backend`."""
        return trimmed(self._state, self.sizes)

    def remember(self, memory: list[Tensor]) -> None:
        """See `Backend`."""
        self._state.copy_(padded(memory, like=self._state))

    def adopt(self, other: Backend) -> None:
        """See `Backend`."""
        if not isinstance(other, FusedBackend) or other._size != self._size:
            return
        place = {unit.key: u for u, unit in enumerate(other.units)}
        for u, unit in enumerate(self.units):
            if unit.key in place:
                self._state[u] = other._state[place[unit.key]]


def _memory_order(p: Tensor) -> tuple[int, ...] | None:
    """The strides with which a tensor lies as `flat` reads this parameter; None for the usual ones."""
    if p.is_contiguous():
        return None
    x = flat(p, p)
    in_place = not p.is_complex() and x.is_contiguous() and x.data_ptr() == p.data_ptr()
    return p.stride() if in_place else _COPIED


def _entries(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Flat places and values of a sparse COO tensor, repeated ones apart: adding them up would wait for the device."""
    indices, values = grad._indices(), grad._values()
    position = torch.zeros_like(indices[0])
    for d in range(grad.sparse_dim()):
        position = position * grad.shape[d] + indices[d]
    block = math.prod(values.shape[1:])
    position = position[:, None] * block + torch.arange(block, device=position.device)
    return position.reshape(-1), values.reshape(-1).float()
