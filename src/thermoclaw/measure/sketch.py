"""The linear sketch S(x)_j = Σ over i ≡ j (mod p) of s_i x_i, with p prime and signs s_i = ±1 from a hash of i.

S is linear, so S(θ) − S(θ₀) = S(θ − θ₀) and sketches of shards add up to the sketch of the whole. ⟨Sx, Sy⟩ estimates
⟨x, y⟩ with a standard deviation of ‖x‖‖y‖ √((1 + cos²)/p), and is exact where x has at most p elements (every element
then has a bucket of its own). See docs: theory, the sketch.

The sign of element i is read from a table of length 2w at (shift of chunk ⌊i/w⌋) + (i mod w), where w = p · ROWS: every
pair of elements that meet in a bucket has independent signs, and the table stays in cache. Signs are a function of the
index alone, so any backend on any device makes the same ones.

Legend: N elements of a unit, p sketch size, w = p · ROWS chunk width.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 128
SIZES = (251, 509, 1021, 2039, 4093)

_MASK = 0xFFFFFFFF


def mix(x: Tensor) -> Tensor:
    """A 32-bit integer hash (two multiply-xorshift rounds) of an int64 tensor of values below 2³²."""
    x = (x ^ (x >> 16)) & _MASK
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def sign_table(length: int, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """±1 for each index below `length`, from the lowest bit of its hash."""
    index = torch.arange(length, dtype=torch.int64, device="cpu")
    bits = mix((index + 0x9E3779B9) & _MASK) & 1
    return (1 - 2 * bits).to(device=device, dtype=dtype)


def chunk_shift(chunk: int, width: int) -> int:
    """Where in the sign table a chunk begins."""
    return int(mix(torch.tensor((chunk + 0x51ED270B) & _MASK, dtype=torch.int64, device="cpu"))) % width


class Sketcher:
    """Sketches the parameters of units into rows of a matrix [units, p].

    Args:
        sizes: for each unit the number of elements of each of its parameters.
        size: p, one of `SIZES`.
        device, dtype: of the sketches; lower-precision inputs are widened as they are read.
    """

    def __init__(self, sizes: list[list[int]], *, size: int, device: torch.device, dtype: torch.dtype) -> None:
        self.size = size
        self._width = width = size * ROWS
        biggest = max((sum(parts) for parts in sizes), default=0)
        self._signs = sign_table(2 * width if biggest > size else 0, device=device, dtype=dtype)
        self._acc = torch.zeros(min(width, -(-biggest // size) * size), device=device, dtype=dtype)
        num_chunks = -(-biggest // width)
        self._shifts = [chunk_shift(k, width) for k in range(num_chunks)]
        self._exact = [sum(parts) <= size for parts in sizes]
        self._totals = [sum(parts) for parts in sizes]
        self._offsets = [[sum(parts[:i]) for i in range(len(parts))] for parts in sizes]
        # for each unit and parameter: (start in the parameter, stop, start in the accumulator, start in the signs)
        self._plans = [
            [self._plan(offset, n) for offset, n in zip(offsets, parts, strict=True)]
            for offsets, parts in zip(self._offsets, sizes, strict=True)
        ]

    @property
    def num_bytes(self) -> int:
        """Bytes of the sign table and the accumulator."""
        return sum(t.numel() * t.element_size() for t in (self._signs, self._acc))

    def _plan(self, offset: int, n: int) -> list[tuple[int, int, int, int]]:
        pieces = []
        position = offset
        while position < offset + n:
            chunk, inside = divmod(position, self._width)
            length = min(self._width - inside, offset + n - position)
            start = position - offset
            pieces.append((start, start + length, inside, self._shifts[chunk] + inside))
            position += length
        return pieces

    def sketch(self, unit: int, tensors: list[Tensor | None], out: Tensor) -> None:
        """Write the sketch of one unit into `out` [p]. A tensor is flat and dense; None stands for zeros."""
        if self._exact[unit]:
            out.zero_()
            for offset, x in zip(self._offsets[unit], tensors, strict=True):
                if x is not None:
                    out[offset : offset + x.numel()].copy_(x)
            return
        rows = min(ROWS, -(-self._totals[unit] // self.size))
        acc = self._acc[: rows * self.size]
        acc.zero_()
        for plan, x in zip(self._plans[unit], tensors, strict=True):
            if x is None:
                continue
            for start, stop, at, sign_at in plan:
                length = stop - start
                acc[at : at + length].addcmul_(x[start:stop], self._signs[sign_at : sign_at + length])
        torch.sum(acc.view(rows, self.size), 0, out=out)

    def add_sparse(self, unit: int, param: int, index: Tensor, values: Tensor, out: Tensor) -> None:
        """Add the sketch of a sparse tensor: `index` are flat positions in the parameter, int64, of `values`."""
        position = index + self._offsets[unit][param]
        values = values.to(out.dtype)
        if not self._exact[unit]:
            shifts = torch.tensor(self._shifts, device=position.device)
            chunk = torch.div(position, self._width, rounding_mode="floor")
            values = values * self._signs[shifts[chunk] + position % self._width]
        out.index_add_(0, position % self.size, values)
