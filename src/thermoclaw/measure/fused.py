"""The CUDA backend: the sketching backend's numbers from three Triton kernels, whatever the number of units.

A step launches five kernels: pieces and sums for the gradients, pieces and sums for the parameters, and the row of
products. Nothing is counted or decided on the host between them, so a captured CUDA graph that holds them measures
every replay. Where the kernels cannot be used, `SketchBackend` does the same with torch operations.

Legend: U units, K raw columns, N tensors, p sketch size.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from thermoclaw.layers import Unit
from thermoclaw.measure.columns import RAW, RAW_COLUMNS
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
from thermoclaw.measure.sketch import Sketcher, chunk_rows, padded, trimmed
from thermoclaw.measure.sketched import SketchBackend
from thermoclaw.measure.sums import Backend, UnitReader, flat, row_major

logger = logging.getLogger("thermoclaw")

_KINDS = {torch.float32: 0 << 60, torch.bfloat16: 1 << 60, torch.float16: 2 << 60}
_LR_KINDS = {torch.float32: 0 << 60, torch.float64: 1 << 60}
_PARAMETERS = (*_KINDS, torch.complex64)
_STRIDE_LIMIT = 1 << 30  # the kernel counts in 32 bits within a chunk
_OLDEST = (7, 0)  # compute capability

_COPIED = (-1,)  # strides that no tensor has

_MEMORY, _BEFORE, _ORIGIN = 6, 4, 5  # slots of the state: g₁ g₂ g₃ Δ₁ θ⁻ θ₀
_REDUCE_ROWS, _REDUCE_LANES = 32, 128

_graph_memory: list[Any] = []


def keep_for_graphs(*held: Any) -> None:
    """Keep what a captured graph reads and writes where it is: nobody can tell which of its replays is the last."""
    known = {id(x) for x in _graph_memory}
    _graph_memory.extend([x for x in held if id(x) not in known])


def sketching_backend(units: list[Unit], *, size: int) -> Backend:
    """The fused backend where it can be had, the torch one elsewhere; on CUDA the reason is logged once."""
    device = units[0].device
    if device.type != "cuda" or os.environ.get("THERMOCLAW_FUSED", "1") == "0":
        return SketchBackend(units, size=size)
    reason = unsupported(units) or unusable(device, size)
    if reason is None:
        try:
            return FusedBackend(units, size=size)
        except Exception as error:  # whatever a compiler or driver may raise: there is another way to measure
            reason = _first_line(error)
    _say(reason)
    return SketchBackend(units, size=size)


@functools.cache
def _say(reason: str) -> None:
    logger.warning(
        "thermoclaw: measuring with torch operations, at a higher cost, as the fused CUDA kernels cannot be used: %s",
        reason,
    )


def unsupported(units: list[Unit]) -> str | None:
    """What about these parameters the kernels cannot measure, if anything."""
    for unit in units:
        for p in unit.params:
            if p.dtype not in _PARAMETERS:
                return f"there are {str(p.dtype).removeprefix('torch.')} parameters"
            held = local(p.detach())
            try:
                has_memory = not held.numel() or held.data_ptr() != 0
            except RuntimeError:
                has_memory = False
            if not has_memory:
                return f"parameters of class {type(p).__name__} have no memory of their own"
    return None


@functools.cache
def unusable(device: torch.device, size: int) -> str | None:
    """Why the kernels cannot be used on a device, if so; compiles them, tries them and waits for the result."""
    if torch.version.hip is not None:
        return "they were never tried on ROCm"
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST:
        return f"compute capability {capability[0]}.{capability[1]} is older than {_OLDEST[0]}.{_OLDEST[1]}"
    try:
        with torch.no_grad():
            return _trial(device, size)
    except Exception as error:
        return _first_line(error)


def _first_line(error: Exception) -> str:
    logger.debug("thermoclaw: the fused kernels failed", exc_info=error)
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"[:300]


def _trial(device: torch.device, size: int) -> str | None:
    """Two steps of a tiny model that does not move, against the same numbers from torch operations on the host."""
    counts, dtypes = [[65 * size + 5, 900, 700], [size // 2]], (torch.float32, torch.bfloat16, torch.float16)
    tensors: list[list[Tensor]] = [[], []]  # gradients and parameters
    for count, dtype in zip((n for row in counts for n in row), (*dtypes, torch.float32), strict=True):
        x = torch.arange(count, dtype=torch.float32).mul_(0.7).cos_()
        tensors[1].append(x.to(device=device, dtype=dtype))
        tensors[0].append(x.square().sub_(0.4).to(device=device, dtype=dtype))
        tensors[1][-1].grad = tensors[0][-1]
    units = [Unit(0, 0, device, tuple(tensors[1][:3])), Unit(0, 0, device, tuple(tensors[1][3:]))]
    backend = FusedBackend(units, size=size)
    row = torch.full((len(units), len(RAW_COLUMNS)), float("nan"), device=device, dtype=torch.float64)
    for _ in range(2):
        backend.read_gradients()
        backend.read_parameters(row, lrs={})

    sketcher = Sketcher(counts, size=size, device=torch.device("cpu"), dtype=torch.float64)
    want = torch.zeros(2, len(units), size, dtype=torch.float64)
    squares = torch.zeros(2, len(units), dtype=torch.float64)
    for which in (0, 1):
        host = [x.cpu().double() for x in tensors[which]]
        for u, mine in enumerate((host[:3], host[3:])):
            sketcher.sketch(u, [*mine], want[which, u])
            squares[which, u] = sum(x.dot(x) for x in mine)
    g, p = want
    products = {"gs_gs": (g * g).sum(1), "g_p": (g * p).sum(1), "ps_ps": (p * p).sum(1)}
    expected = {"g_g": squares[0], "p_p": squares[1], **products, "g_g1": products["gs_gs"]}
    expected |= {name: torch.zeros_like(squares[0]) for name in ("d_d", "d_p", "f_f", "g_d", "skipped")}
    got = row[:, [RAW[name] for name in expected]].cpu()
    same = torch.allclose(got, torch.stack([*expected.values()], dim=1), rtol=1e-4, atol=1e-4)
    if same and torch.allclose(backend._pack.cpu().double(), want, rtol=1e-4, atol=1e-4):
        return None
    return "they give other numbers than torch operations on this machine"


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


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class _Codes:
    """A table of numbers on the device that the host sends again when they change.

    While a graph is captured the table is sent from pinned memory that nobody writes again, so that each replay sends
    it too; from then on it is sent at every step, as replays may have changed it.
    """

    _SPARE = 8  # captures that may follow one another without a step between them

    def __init__(self, count: int, *, device: torch.device) -> None:
        self.values = torch.zeros(count, dtype=torch.int64, device=device)
        self._sent: list[int] | None = [0] * count
        self._in_a_graph = False
        self._spare: list[Tensor] = []
        self._pinned = device.type == "cuda"
        self._restock()

    def _restock(self) -> None:
        """Pinned memory cannot be had during a capture."""
        if len(self._spare) < self._SPARE // 2:
            count = self._SPARE - len(self._spare)
            block = torch.empty(count, len(self.values), dtype=torch.int64, pin_memory=self._pinned)
            self._spare.extend(block.unbind())

    def send(self, codes: list[int]) -> None:
        """Make the table hold these numbers when the work enqueued next reads it."""
        if _is_capturing(self.values.device):
            if not self._spare:
                raise RuntimeError("too many CUDA graphs were captured without a training step outside of them")
            page = self._spare.pop().copy_(torch.tensor(codes, dtype=torch.int64))
            keep_for_graphs(page)
            self._in_a_graph, self._sent = True, None
            self.values.copy_(page, non_blocking=True)
        elif codes != self._sent:
            self._restock()
            page = torch.tensor(codes, dtype=torch.int64, pin_memory=self._pinned)
            self.values.copy_(page, non_blocking=True)
            self._sent = None if self._in_a_graph else codes


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
        self._gradients, self._parameters = (_Codes(len(places), device=self.device) for _ in range(2))
        self._lrs = _Codes(num_units, device=self.device)
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

    def _measure(self, which: int, codes: _Codes, tensors: list[Any], scale: Tensor) -> None:
        """Sketches and squared norms of all units into place `which`, divided by `scale`."""
        if _is_capturing(self.device) and not self._is_in_a_graph:
            self._is_in_a_graph = True
            keep_for_graphs(*self._held())
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
