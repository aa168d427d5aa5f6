"""A step's gradients or parameters by the compiled kernel of `native`: one call for the tensors of all units.

Legend: U units, p sketch size, w chunk width, K raw columns.
"""

from __future__ import annotations

import ctypes
import functools
import os
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoclaw.measure import native
from thermoclaw.measure.columns import RAW_COLUMNS
from thermoclaw.measure.place import Place
from thermoclaw.measure.sketch import Sketcher, sign_table

_SPAN = 4  # chunks of a unit that one thread reads in a row
_SHARE = 1 << 20  # elements for which a further thread saves more than its start costs
_MOST_THREADS = 16

# `thermoclaw_products` writes its columns in this order
_WRITTEN = "g_g p_p gs_gs g_g1 g_g2 g_g3 g_d g_d1 g_p ps_ps d_d d_p f_f lr skipped"
if " ".join(RAW_COLUMNS) != _WRITTEN:
    raise RuntimeError("the raw columns have changed: thermoclaw_products must write them in their new order")

_layout, _dtype, _on_cpu = attrgetter("layout"), attrgetter("dtype"), attrgetter("is_cpu")


class _Plan(ctypes.Structure):
    """Tables of the kernel; see there."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("num_tasks", "num_units", "p")),
        *((name, ctypes.c_void_p) for name in ("task", "piece", "width", "buckets", "signs", "partial", "norm")),
    )


class NativePass:
    """Measures the tensors of all units at once, where every one of them is of a kind the kernel knows.

    Args:
        sketcher: whose buckets, signs and places to use.
    """

    def __init__(self, sketcher: Sketcher) -> None:
        units = range(len(sketcher.places))
        self._size = sketcher.size
        self._count = [place.size for row in sketcher.places for place in row]
        self._dtypes: list[torch.dtype] = []
        self._kinds = array("q", [0] * len(self._count))
        widths = [sketcher.width(unit) for unit in units]
        tasks, pieces = _cut(sketcher.places, widths)
        rows = sum(task[-1] >= 0 for task in tasks)
        self._tables: dict[str, NDArray[Any]] = {
            "task": np.array(tasks, dtype=np.int64).reshape(-1, 4),
            "piece": np.array(pieces, dtype=np.int64).reshape(-1, 6),
            "width": np.array(widths, dtype=np.int64),
            "buckets": np.array([min(sketcher.total(unit), self._size) for unit in units], dtype=np.int64),
            "signs": sign_words(max(widths, default=0), self._size),
            "partial": np.zeros((rows, self._size), dtype=np.float32),
            "norm": np.zeros(len(tasks), dtype=np.float64),
        }
        pointers = {name: table.ctypes.data for name, table in self._tables.items()}
        self._plan = _Plan(num_tasks=len(tasks), num_units=len(units), p=self._size, **pointers)
        self._shares = min(sum(self._count) // _SHARE, _MOST_THREADS)
        self._pool: ThreadPoolExecutor | None = None
        self._pool_pid = -1

    def num_bytes(self) -> int:
        """Bytes of the tables."""
        return sum(table.nbytes for table in self._tables.values())

    def __call__(self, tensors: Sequence[Tensor | None], out: Tensor) -> Tensor | None:
        """Sketch into `out` [U, p] (rows may be far apart) and return ‖x‖² by unit; None where it cannot.

        A tensor is read in the order in which it lies in memory. One of another kind, or without the expected elements,
        makes the whole call decline before it writes.
        """
        kernel = native.library()
        if kernel is None or out.dtype != torch.float32 or out.stride(1) != 1:
            return None
        data = self._addresses(tensors)
        if data is None:
            return None
        norms = torch.empty(self._plan.num_units, dtype=torch.float64, device="cpu")
        following = ctypes.c_int64(0)
        plan, into, stride = ctypes.addressof(self._plan), out.data_ptr(), out.stride(0)
        arguments = (
            *(plan, data.buffer_info()[0], self._kinds.buffer_info()[0], into, stride),
            ctypes.addressof(following),
        )
        helpers = []
        try:
            for _ in range(min(torch.get_num_threads(), self._shares) - 1):
                helpers.append(self._threads().submit(kernel.thermoclaw_measure, *arguments))
            kernel.thermoclaw_measure(*arguments)
        finally:  # memory must stay until nobody reads it
            for helper in helpers:
                if not helper.cancel():
                    helper.result()
        kernel.thermoclaw_finish(plan, into, stride, norms.data_ptr())
        return norms

    def products(self, state: Tensor, slots: Sequence[int], g_g: Tensor, p_p: Tensor, out: Tensor) -> bool:
        """Form the step and write the raw row `out` [U, K] from the state [U, slots, p]; False where it cannot.

        `slots` are the places of the gradient and the three before it, of the step and the one before it, and of the
        parameters now, before and at the start; `g_g` and `p_p` squared norms [U].
        """
        kernel = native.library()
        wide = (g_g, p_p, out)
        if (
            kernel is None
            or state.dtype != torch.float32
            or not all(x.dtype == torch.float64 and x.is_contiguous() for x in wide)
        ):
            return False
        order = array("q", slots)
        kernel.thermoclaw_products(
            *(ctypes.addressof(self._plan), state.data_ptr(), order.buffer_info()[0]), *(x.data_ptr() for x in wide)
        )
        return True

    def _addresses(self, tensors: Sequence[Tensor | None]) -> array[int] | None:
        """Where tensors lie, 0 for a missing one; None unless all are what the kernel can read."""
        present = [x for x in tensors if x is not None]
        if not all(map(_is_plain, set(map(type, present)))) or not all(map(_on_cpu, present)):
            return None
        if any(layout is not torch.strided for layout in set(map(_layout, present))):
            return None
        if not all(map(Tensor.is_contiguous, present)):
            return None
        if len(present) == len(tensors):
            count, data = self._count, array("q", map(Tensor.data_ptr, present))
        else:
            count = [n for n, x in zip(self._count, tensors, strict=True) if x is not None]
            data = array("q", [0 if x is None else x.data_ptr() for x in tensors])
        if list(map(Tensor.numel, present)) != count:
            return None
        dtypes = [torch.float32 if x is None else x.dtype for x in tensors]
        if dtypes != self._dtypes:
            if any(dtype not in native.KINDS for dtype in dtypes):
                return None
            self._dtypes = dtypes
            self._kinds = array("q", map(native.KINDS.__getitem__, dtypes))
        return data

    def _threads(self) -> ThreadPoolExecutor:
        """A pool of this very process: a forked child inherits the object but not its threads."""
        if self._pool is None or self._pool_pid != os.getpid():
            self._pool = ThreadPoolExecutor(max_workers=_MOST_THREADS, thread_name_prefix="thermoclaw")
            self._pool_pid = os.getpid()
        return self._pool


@functools.cache
def _is_plain(kind: type) -> bool:
    """Whether tensors of a class keep their numbers at `data_ptr`: those that do not have a `__torch_dispatch__`."""
    return kind.__torch_dispatch__ is Tensor.__torch_dispatch__  # type: ignore[attr-defined]


def sign_words(width: int, size: int) -> NDArray[np.uint32]:
    """The signs of chunks up to `width`, 32 rows of `size` to a word.

    Bit b of word (a, i), i < 2 · size, is 1 where `sign_table` has −1 at (32a + b) · size + i.
    """
    blocks = -(-2 * width // (32 * size))
    bits = np.zeros((32 * blocks + 1) * size, dtype=np.uint32)
    bits[: 2 * width] = sign_table(2 * width, device=torch.device("cpu"), dtype=torch.float32).numpy() < 0
    rows = bits.reshape(-1, size)
    twice = np.concatenate([rows[:-1], rows[1:]], axis=1).reshape(blocks, 32, 2 * size)
    words = np.zeros((blocks, 2 * size), dtype=np.uint32)
    for bit in range(32):
        words |= twice[:, bit] << np.uint32(bit)
    return words


def _cut(places: list[list[Place]], widths: list[int]) -> tuple[list[list[int]], list[list[int]]]:
    """Tasks and pieces of the kernel: units in order, those of many chunks cut between chunks, wherever threads are."""
    tasks: list[list[int]] = []
    pieces: list[list[int]] = []
    tensor = rows = 0
    for unit, (row, width) in enumerate(zip(places, widths, strict=True)):
        parts: dict[int, list[list[int]]] = {}
        for place in row:
            for part, piece in _pieces(place, tensor, _SPAN * width):
                parts.setdefault(part, []).append(piece)
            tensor += 1
        for part in sorted(parts) or [0]:
            first = len(pieces)
            pieces += parts.get(part, [])
            is_split = len(parts) > 1
            tasks.append([first, len(pieces), unit, rows if is_split else -1])
            rows += is_split
    return tasks, pieces


def _pieces(place: Place, tensor: int, span: int) -> list[tuple[int, list[int]]]:
    """A tensor's place in pieces, with the number of the span in which each begins; runs apart are not cut within."""
    if place.size == 0:
        return []
    if span == 0 or place.span <= span - place.start % span:
        part = place.start // span if span else 0
        return [(part, [tensor, 0, *place])]
    pieces = []
    if place.rows == 1 or place.run == place.stride:
        at, stop = place.start, place.start + place.size
        while at < stop:
            length = min(span - at % span, stop - at)
            pieces.append((at // span, [tensor, at - place.start, at, 1, length, length]))
            at += length
        return pieces
    row = 0
    while row < place.rows:
        at = place.start + row * place.stride
        count = min(-(-(span - at % span) // place.stride), place.rows - row)
        pieces.append((at // span, [tensor, row * place.run, at, count, place.run, place.stride]))
        row += count
    return pieces
