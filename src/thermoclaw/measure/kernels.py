"""Triton kernels of the fused backend; the one module that imports triton. What they compute is said in `sketch`.

Three kernels measure a step, whatever the number of units: `sketch_pieces` reads every element once and writes one
partial sketch and squared norm a program; `add_up` sums the partials of each unit in a fixed order; `make_row` forms
the products and moves the memory on by a step. No atomics, so equal inputs give equal bits; no counter on the host, so
a captured graph repeats the whole step.

Tensors are named by codes, an int64 each: the address, and the kind of number in the bits above it; 0 for none.

Legend: U units, p sketch size (SIZE). A row of p elements is read as 8 × LANES, the power of two that holds it.
"""

# What these functions are given and return are Triton's values.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from thermoclaw.measure.columns import RAW_COLUMNS

# `make_row` writes its columns in this order
_WRITTEN = "g_g p_p gs_gs g_g1 g_g2 g_g3 g_d g_d1 g_p ps_ps d_d d_p f_f lr skipped"
if " ".join(RAW_COLUMNS) != _WRITTEN:
    raise RuntimeError("the raw columns have changed: make_row must write them in their new order")


@triton.jit
def _read(address, index, held, KIND: tl.constexpr):
    """Elements as single precision. bfloat16 is the upper half of a float, which any GPU can make of it."""
    if KIND == 0:
        return tl.load(address.to(tl.pointer_type(tl.float32)) + index, mask=held, other=0.0)
    elif KIND == 1:
        half = tl.load(address.to(tl.pointer_type(tl.int16)) + index, mask=held, other=0)
        return (half.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return tl.load(address.to(tl.pointer_type(tl.float16)) + index, mask=held, other=0.0).to(tl.float32)


@triton.jit
def _one_piece(
    address,
    at,
    signs,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    STRIDED: tl.constexpr,
    KIND: tl.constexpr,
):
    """Signed sums and sums of squares [8, LANES] of a piece, which lies within one chunk."""
    BYTES: tl.constexpr = 4 if KIND == 0 else 2
    offset = tl.load(at + 1)
    low = tl.load(at + 2).to(tl.int32)
    high = tl.load(at + 3).to(tl.int32)
    sign_at = tl.load(at + 4).to(tl.int32)
    length = (high - low).to(tl.uint32)
    lane = tl.arange(0, LANES)
    bit = tl.arange(0, 8)[:, None]
    column = bit * LANES + lane[None, :]
    in_row = column < SIZE
    total = tl.zeros([8, LANES], tl.float32)
    squares = tl.zeros([8, LANES], tl.float32)
    for k in range(low // SIZE, (high + SIZE - 1) // SIZE, ROWS):
        for r in tl.static_range(ROWS):
            head = (k + r) * SIZE  # place in the chunk of the row's first element
            held = in_row & ((head - low + column).to(tl.uint32) < length)
            if STRIDED:
                run = tl.load(at + 6)
                stride = tl.load(at + 7).to(tl.int32)
                along = tl.load(at + 8).to(tl.int32) + head + column
                within = along % stride
                held = held & (within < run)
                x = _read(address, offset + (along // stride) * run + within, held, KIND)
            else:
                x = _read(address + BYTES * (offset + head), column, held, KIND)
            # a byte has the signs of a lane's eight elements: each bit goes to the top, over its number's own sign
            eight = tl.load(signs + (sign_at + head) + lane).to(tl.int32)[None, :]
            flip = (eight << (31 - bit)) & -2147483648
            total += (x.to(tl.int32, bitcast=True) ^ flip).to(tl.float32, bitcast=True)
            squares += x * x
    return total, squares


@triton.jit
def sketch_pieces(
    codes,
    pieces,
    programs,
    signs,
    partials,
    partial_norms,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    STRIDED: tl.constexpr,
):
    """One partial sketch [p] and squared norm a program, of its pieces (see `pieces` for the tables)."""
    mine = programs + 3 * tl.program_id(0)
    first = tl.load(mine)
    last = tl.load(mine + 1)
    place = tl.load(mine + 2).to(tl.int64)
    total = tl.zeros([8, LANES], tl.float32)
    squares = tl.zeros([8, LANES], tl.float32)
    for i in range(first, last):
        at = pieces + 9 * i
        code = tl.load(codes + tl.load(at))
        if code != 0:
            factor = tl.load(at + 5).to(tl.float32)
            kind = code >> 60
            address = code & 0xFFFFFFFFFFFFFFF
            if kind == 0:
                part, square = _one_piece(address, at, signs, SIZE, ROWS, LANES, STRIDED, 0)
            elif kind == 1:
                part, square = _one_piece(address, at, signs, SIZE, ROWS, LANES, STRIDED, 1)
            else:
                part, square = _one_piece(address, at, signs, SIZE, ROWS, LANES, STRIDED, 2)
            total += factor * part
            squares += square
    column = tl.arange(0, 8)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    tl.store(partials + place * SIZE + column, total, mask=column < SIZE)
    tl.store(partial_norms + place, tl.sum(tl.sum(squares.to(tl.float64), axis=0), axis=0))


@triton.jit(do_not_specialize=["scale", "which"])
def add_up(
    partials,
    partial_norms,
    unit_places,
    scale,
    pack,
    norms,
    which,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Sum the partials of a unit into pack [2, U, p] and norms [2, U], at `which`, divided by `scale`."""
    unit = tl.program_id(0)
    first = tl.load(unit_places + unit)
    last = tl.load(unit_places + unit + 1)
    inverse = 1.0 / tl.load(scale).to(tl.float64)
    row = tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * LANES + tl.arange(0, LANES)
    total = tl.zeros([ROWS, LANES], tl.float32)
    for k in range(first, last, ROWS):
        held = (k + row < last) & (column < SIZE)[None, :]
        total += tl.load(partials + (k + row).to(tl.int64) * SIZE + column[None, :], mask=held, other=0.0)
    place = (which * tl.num_programs(0) + unit).to(tl.int64)
    tl.store(pack + place * SIZE + column, tl.sum(total, axis=0) * inverse.to(tl.float32), mask=column < SIZE)
    if tl.program_id(1) == 0:
        squares = tl.zeros([LANES], tl.float64)
        for k in range(first, last, LANES):
            index = k + tl.arange(0, LANES)
            squares += tl.load(partial_norms + index, mask=index < last, other=0.0)
        tl.store(norms + place, tl.sum(squares, axis=0) * inverse * inverse)


@triton.jit
def _dot(x, y):
    """⟨x, y⟩ in double precision."""
    return tl.sum(x.to(tl.float64) * y.to(tl.float64), axis=0)


@triton.jit(do_not_specialize=["skipped", "out"])
def make_row(pack, norms, state, lr_codes, skipped, out, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """The raw row of a unit; then its memory [6, p] (g₁ g₂ g₃ Δ₁ θ⁻ θ₀) moves on by a step."""
    unit = tl.program_id(0)
    num_units = tl.num_programs(0)
    j = tl.arange(0, BLOCK)
    held = j < SIZE
    here = pack + unit.to(tl.int64) * SIZE + j
    g = tl.load(here, mask=held, other=0.0)
    theta = tl.load(here + num_units.to(tl.int64) * SIZE, mask=held, other=0.0)
    slot = state + unit.to(tl.int64) * 6 * SIZE + j
    g1 = tl.load(slot, mask=held, other=0.0)
    g2 = tl.load(slot + SIZE, mask=held, other=0.0)
    g3 = tl.load(slot + 2 * SIZE, mask=held, other=0.0)
    d1 = tl.load(slot + 3 * SIZE, mask=held, other=0.0)
    before = tl.load(slot + 4 * SIZE, mask=held, other=0.0)
    origin = tl.load(slot + 5 * SIZE, mask=held, other=0.0)
    d = theta - before
    f = theta - origin
    row = out + unit * 15
    tl.store(row, tl.load(norms + unit))
    tl.store(row + 1, tl.load(norms + num_units + unit))
    tl.store(row + 2, _dot(g, g))
    tl.store(row + 3, _dot(g, g1))
    tl.store(row + 4, _dot(g, g2))
    tl.store(row + 5, _dot(g, g3))
    tl.store(row + 6, _dot(g, d))
    tl.store(row + 7, _dot(g, d1))
    tl.store(row + 8, _dot(g, before))
    tl.store(row + 9, _dot(before, before))
    tl.store(row + 10, _dot(d, d))
    tl.store(row + 11, _dot(d, before))
    tl.store(row + 12, _dot(f, f))
    code = tl.load(lr_codes + unit)
    if code == 0:
        tl.store(row + 13, float("nan"))
    else:
        address = code & 0xFFFFFFFFFFFFFFF
        if code >> 60 == 0:
            tl.store(row + 13, tl.load(address.to(tl.pointer_type(tl.float32))).to(tl.float64))
        else:
            tl.store(row + 13, tl.load(address.to(tl.pointer_type(tl.float64))))
    refused = tl.load(skipped)
    tl.store(row + 14, refused.to(tl.float64))
    # products with a refused gradient are undefined, not wrong
    g = tl.where(refused > 0, float("nan"), g)
    d = tl.where(refused > 0, float("nan"), d)
    tl.debug_barrier()  # every lane has read what others are about to replace
    tl.store(slot + 2 * SIZE, g2, mask=held)
    tl.store(slot + SIZE, g1, mask=held)
    tl.store(slot, g, mask=held)
    tl.store(slot + 3 * SIZE, d, mask=held)
    tl.store(slot + 4 * SIZE, theta, mask=held)
