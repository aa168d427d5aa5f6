"""The linear sketch S(x)_j = Σ over i ≡ j (mod p) of s_i x_i, with p prime and signs s_i = ±1 from a hash of i.

S is linear, so S(θ) − S(θ₀) = S(θ − θ₀) and sketches of shards add up to the sketch of the whole. ⟨Sx, Sy⟩ estimates
⟨x, y⟩ with a standard deviation of ‖x‖‖y‖ √((1 + cos²)/p), and is exact where x has at most p elements (every element
then has a bucket of its own). See docs: theory, the sketch.

The sign of element i is read from a table at (shift of chunk ⌊i/w⌋) + (i mod w), times a sign of the chunk's own, where
the chunk width w is p times 64 for units below a million elements and p times 128 above: every pair of elements that
meet in a bucket has independent signs, and the table stays in cache. (Shifts differ modulo p, or the rows of two chunks
would share their signs; beyond p chunks the chunks' own signs keep the estimate unbiased.) Signs are a function of the
index and of the unit's size alone, so any backend on any device makes the same ones.

Legend: N elements of a unit, p sketch size, w chunk width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thermoclaw.measure.place import Place, spread, whole

ROWS_SMALL, ROWS_LARGE, LARGE = 64, 128, 1 << 20
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


def chunk_shift(chunk: int, width: int, size: int) -> int:
    """Where in the sign table a chunk begins: at another place modulo p for each of p chunks in a row."""
    bits = mix(torch.tensor((chunk + 0x51ED270B) & _MASK, dtype=torch.int64, device="cpu"))
    return int(bits) % (width // size) * size + chunk % size


def chunk_sign(chunk: int) -> int:
    """±1, the factor on all signs of a chunk; +1 for the first."""
    bits = mix(torch.tensor((chunk + 0x7F4A7C15) & _MASK, dtype=torch.int64, device="cpu"))
    return 1 if chunk == 0 else 1 - 2 * (int(bits) & 1)


def chunk_rows(total: int) -> int:
    """Rows of p elements that make a chunk, for a unit of `total` elements."""
    return ROWS_LARGE if total >= LARGE else ROWS_SMALL


_Piece = tuple[
    int, int, int, int, int
]  # start and stop in the tensor, places in the accumulator and the signs, a factor


class Sketcher:
    """Sketches the parameters of units into rows of a matrix [units, p].

    Args:
        sizes: for each unit the number of elements of each of its parameters.
        size: p, one of `SIZES`.
        device: where the sketches live.
        dtype: of the sketches; lower-precision inputs are widened as they are read.
        places: where the elements of the tensors to come lie, by unit and parameter; by default they are whole.
    """

    def __init__(
        self,
        sizes: list[list[int]],
        *,
        size: int,
        device: torch.device,
        dtype: torch.dtype,
        places: list[list[Place]] | None = None,
    ) -> None:
        self.size = size
        self._device, self._dtype = device, dtype
        self._totals = [sum(parts) for parts in sizes]
        self._offsets = [[sum(parts[:i]) for i in range(len(parts))] for parts in sizes]
        self.places = places or [
            [whole(at, n) for at, n in zip(offsets, parts, strict=True)]
            for offsets, parts in zip(self._offsets, sizes, strict=True)
        ]
        self._rows = [chunk_rows(total) for total in self._totals]
        self._widest = max(
            (rows * size for rows, n in zip(self._rows, self._totals, strict=True) if n > size), default=0
        )
        self._signs: Tensor | None = None
        self._acc: Tensor | None = None
        self._lookup: dict[int, tuple[Tensor, Tensor]] = {}  # shifts and factors of units with sparse gradients
        self._plans: dict[int, list[list[_Piece]]] = {}

    @property
    def signs(self) -> Tensor:
        """The sign table, made when it is first asked for."""
        if self._signs is None:
            self._signs = sign_table(2 * self._widest, device=self._device, dtype=self._dtype)
        return self._signs

    def total(self, unit: int) -> int:
        """Elements of a whole unit."""
        return self._totals[unit]

    def width(self, unit: int) -> int:
        """Chunk width of a unit; 0 where its elements have buckets of their own."""
        return 0 if self._totals[unit] <= self.size else self._rows[unit] * self.size

    @property
    def num_bytes(self) -> int:
        """Bytes of the sign table and the accumulator."""
        return sum(t.numel() * t.element_size() for t in (self._signs, self._acc) if t is not None)

    def _plan(self, unit: int) -> list[list[_Piece]]:
        """How the span of each parameter of a unit is cut: at the borders of chunks."""
        if unit in self._plans:
            return self._plans[unit]
        width = self._rows[unit] * self.size
        plan = []
        for place in self.places[unit]:
            pieces = []
            position, stop = place.start, place.start + place.span
            while position < stop:
                chunk, inside = divmod(position, width)
                length = min(width - inside, stop - position)
                begin = position - place.start
                sign_at = chunk_shift(chunk, width, self.size) + inside
                pieces.append((begin, begin + length, inside, sign_at, chunk_sign(chunk)))
                position += length
            plan.append(pieces)
        self._plans[unit] = plan
        return plan

    def sketch(self, unit: int, tensors: list[Tensor | None], out: Tensor) -> None:
        """Write the sketch of one unit into `out` [p]. A tensor is flat and dense; None stands for zeros."""
        total, size = self._totals[unit], self.size
        if total <= size:
            self._copy(unit, tensors, out)
            return
        if self._acc is None:
            self._acc = torch.zeros(self._widest, device=self._device, dtype=self._dtype)
        rows = min(self._rows[unit], -(-total // size))
        acc = self._acc[: rows * size]
        first = self._plan(unit)[0]
        # then the first piece fills every row, and its factor is 1
        fresh = tensors[0] is not None and len(first) > 1 and self.places[unit][0].start == 0
        if not fresh:
            acc.zero_()
        for place, pieces, x in zip(self.places[unit], self._plan(unit), tensors, strict=True):
            if x is None:
                continue
            laid = spread(x, place)
            for start, stop, inside, sign_at, factor in pieces:
                into = acc[inside : inside + stop - start]
                signs = self.signs[sign_at : sign_at + stop - start]
                if fresh:
                    torch.mul(laid[start:stop], signs, out=into)
                    fresh = False
                else:
                    into.addcmul_(laid[start:stop], signs, value=factor)
        torch.sum(acc.view(rows, size), 0, out=out)

    def _copy(self, unit: int, tensors: list[Tensor | None], out: Tensor) -> None:
        """A unit of at most p elements: each has a bucket of its own."""
        out.zero_()
        for place, x in zip(self.places[unit], tensors, strict=True):
            if x is not None:
                out[place.start : place.start + place.span].copy_(spread(x, place))

    def add_sparse(self, unit: int, param: int, index: Tensor, values: Tensor, out: Tensor) -> None:
        """Add the sketch of a sparse tensor: `index` are flat positions in the parameter, int64, of `values`."""
        position = index + self._offsets[unit][param]
        values = values.to(out.dtype)
        if self._totals[unit] > self.size:
            width = self._rows[unit] * self.size
            if unit not in self._lookup:
                chunks = range(-(-self._totals[unit] // width))
                shifts = torch.tensor([chunk_shift(k, width, self.size) for k in chunks], device=position.device)
                factors = torch.tensor([chunk_sign(k) for k in chunks], device=position.device)
                self._lookup[unit] = shifts, factors
            shifts, factors = self._lookup[unit]
            chunk = torch.div(position, width, rounding_mode="floor")
            values = values * self.signs[shifts[chunk] + position % width] * factors[chunk]
        out.index_add_(0, position % self.size, values)


def trimmed(state: Tensor, sizes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Sketches of each unit on the host, without buckets that nothing falls into: [U, slots, p] → U of [slots, ≤ p]."""
    held = state.cpu()
    return [held[u, :, : sum(row)].clone() for u, row in enumerate(sizes)]


def padded(sketches: Sequence[Tensor], *, like: Tensor) -> Tensor:
    """The opposite of `trimmed`, on the device and in the numbers of `like`."""
    out = torch.zeros(len(sketches), len(sketches[0]), like.shape[-1], dtype=like.dtype)
    for u, x in enumerate(sketches):
        out[u, :, : x.shape[1]] = x
    return out.to(like.device)
