"""How the fused backend shares out its work: the elements of all units cut into pieces, pieces gathered in programs.

A piece lies within one parameter and one chunk of its unit, so that one shift into the sign table and one factor serve
all of it (see `sketch`). A program takes neighboring pieces of one unit, about equally many elements each, and writes
one partial sketch; the partials of a unit lie next to one another, in order. All of it depends on shapes alone.

Legend: U units, p sketch size, w chunk width.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoclaw.measure.place import Place
from thermoclaw.measure.sketch import chunk_rows, mix, sign_table

# columns of the table of pieces; a place within a chunk is counted from the chunk's first element
TENSOR, OFFSET, LOW, HIGH, SIGN_AT, FACTOR, RUN, STRIDE, ALONG = range(9)

NUM_PROGRAMS = 1024  # aimed at: some eight for each multiprocessor of a large GPU
LEAST_ROWS, MOST_ROWS = 8, 256  # rows of p elements a program takes
ROWS_AT_ONCE = 2  # rows that a program reads before it looks at them

_MASK = 0xFFFFFFFF

Table = NDArray[np.int64]


class Work(NamedTuple):
    """One launch: pieces [·, 9] and, for each program, its first piece, the one behind its last, and its place."""

    pieces: Table
    programs: NDArray[np.int32]
    is_strided: bool


class Plan(NamedTuple):
    """The launches, and where the partials of each unit begin [U + 1]."""

    work: list[Work]
    unit_places: NDArray[np.int32]


def lanes(size: int) -> int:
    """Threads a program has: an eighth of the power of two that holds p elements."""
    return int(1 << (size - 1).bit_length()) // 8


def widest_chunk(totals: list[int], size: int) -> int:
    """The largest w among units whose elements share buckets; 0 where none do."""
    return max((chunk_rows(n) * size for n in totals if n > size), default=0)


def sign_bytes(widest: int, size: int) -> NDArray[np.uint8]:
    """Signs as the kernel reads them: bit c of byte i is set where element i + c·lanes is negative.

    The last bytes are zeros, for units whose elements have buckets of their own: `no_signs` says where they begin.
    """
    step, margin = lanes(size), ROWS_AT_ONCE * size
    table = np.zeros(no_signs(widest, size) + margin + step, dtype=np.uint8)
    count = no_signs(widest, size)
    if widest:
        signs = sign_table(count + 8 * step, device=torch.device("cpu"), dtype=torch.int8).numpy() < 0
        for bit in range(8):
            table[:count] |= signs[bit * step : bit * step + count].astype(np.uint8) << bit
    return table


def no_signs(widest: int, size: int) -> int:
    """Where in `sign_bytes` the zeros begin."""
    return 2 * widest + ROWS_AT_ONCE * size + lanes(size) if widest else 0


def chunk_shifts(chunks: Tensor, width: int, size: int) -> Tensor:
    """`sketch.chunk_shift` of many chunks (int64, on any device)."""
    return mix((chunks + 0x51ED270B) & _MASK) % (width // size) * size + chunks % size


def chunk_signs(chunks: Tensor) -> Tensor:
    """`sketch.chunk_sign` of many chunks."""
    return torch.where(chunks == 0, 1, 1 - 2 * (mix((chunks + 0x7F4A7C15) & _MASK) & 1))


def table_signs(index: Tensor) -> Tensor:
    """`sketch.sign_table` at many places."""
    return 1 - 2 * (mix((index + 0x9E3779B9) & _MASK) & 1)


def is_strided(place: Place) -> bool:
    """Whether a place has gaps between its runs."""
    return place.rows > 1 and place.run != place.stride


def _held(place: Place, until: Table) -> Table:
    """Elements held among the first `until` of a place's span."""
    if not is_strided(place):
        return until
    return until // place.stride * place.run + np.minimum(until % place.stride, place.run)


def _cut(place: Place, tensor: int, total: int, *, rows: int, size: int, plain_at: int) -> tuple[Table, Table]:
    """The pieces of one parameter and how many elements each holds; `rows`: the most rows of a piece."""
    start, stop = place.start, place.start + place.span
    width = chunk_rows(total) * size if total > size else 0
    cut = min(rows * size, width) if width else max(stop, 1)
    at = np.arange(start // cut, -(-stop // cut), dtype=np.int64) * cut
    first, last = np.maximum(at, start), np.minimum(at + cut, stop)
    chunks = at // width if width else at * 0
    base = chunks * width
    pieces = np.zeros((len(at), 9), dtype=np.int64)
    pieces[:, TENSOR] = tensor
    pieces[:, LOW], pieces[:, HIGH] = first - base, last - base
    pieces[:, SIGN_AT] = chunk_shifts(torch.from_numpy(chunks), width, size).numpy() if width else plain_at
    pieces[:, FACTOR] = chunk_signs(torch.from_numpy(chunks)).numpy() if width else 1
    if is_strided(place):
        run, inside = np.divmod(first - start, place.stride)
        pieces[:, OFFSET] = run * place.run
        pieces[:, RUN], pieces[:, STRIDE] = place.run, place.stride
        pieces[:, ALONG] = inside - pieces[:, LOW]
    else:
        pieces[:, OFFSET] = base - start
    held = _held(place, last - start) - _held(place, first - start)
    return pieces[held > 0], held[held > 0]


def rows_a_program(num_elements: int, size: int) -> int:
    """Rows for each program: a power of two that makes about `NUM_PROGRAMS` of them, within bounds."""
    wanted = max(num_elements // (size * NUM_PROGRAMS), 1)
    return min(max(1 << (wanted - 1).bit_length(), LEAST_ROWS), MOST_ROWS)


def plan(places: list[list[Place]], totals: list[int], size: int) -> Plan:
    """Cut the parameters of units, of which `places` says what this process holds, and `totals` how large they are."""
    rows = rows_a_program(sum(place.size for row in places for place in row), size)
    plain_at = no_signs(widest_chunk(totals, size), size)
    found: dict[bool, tuple[list[Table], list[Table]]] = {False: ([], []), True: ([], [])}
    counts = {False: 0, True: 0}
    unit_places, tensor = [0], 0
    for row, total in zip(places, totals, strict=True):
        num_places = unit_places[-1]
        cuts: dict[bool, list[tuple[Table, Table]]] = {False: [], True: []}
        for place in row:
            if place.size:
                cuts[is_strided(place)].append(_cut(place, tensor, total, rows=rows, size=size, plain_at=plain_at))
            tensor += 1
        for kind, parts in cuts.items():
            if not parts:
                continue
            pieces = np.concatenate([p for p, _ in parts])
            before = np.cumsum(np.concatenate([h for _, h in parts]))
            before = np.concatenate([[0], before[:-1]])
            _, begin = np.unique(before // (rows * size), return_index=True)
            begin = begin + counts[kind]
            counts[kind] += len(pieces)
            end = np.append(begin[1:], counts[kind])
            number = num_places + np.arange(len(begin))
            found[kind][0].append(pieces)
            found[kind][1].append(np.stack([begin, end, number], axis=1))
            num_places += len(begin)
        unit_places.append(num_places)
    work = [
        Work(np.concatenate(pieces), np.concatenate(programs).astype(np.int32), kind)
        for kind, (pieces, programs) in found.items()
        if pieces
    ]
    return Plan(work, np.array(unit_places, dtype=np.int32))
