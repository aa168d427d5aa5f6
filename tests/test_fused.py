"""The fused backend gives the sketching backend's numbers, to the bit each time, in as many launches for any model.

On a machine with a GPU the compiled kernels are tested; elsewhere the same kernels run in Triton's interpreter, on the
CPU (tests/conftest.py asks for it). Sums of small whole numbers are exact, so where signs and buckets agree, sketches
of whole numbers agree to the bit, in whatever order they were added up.

Legend: U units, K raw columns, p sketch size.
"""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests import sharded_programs as programs
from tests.conftest import assert_bitwise, needs_shards, seed_everything
from thermoclaw import Observer
from thermoclaw.layers import Unit
from thermoclaw.measure import choice, fused, graphs, parts, pieces, sums
from thermoclaw.measure.columns import RAW, RAW_COLUMNS
from thermoclaw.measure.place import Place, whole
from thermoclaw.measure.sketch import SIZES, Sketcher, chunk_shift, chunk_sign, sign_table
from thermoclaw.measure.sketched import SketchBackend

pytest.importorskip("triton", reason="Triton is not installed")
TRITON = tuple(int(part) for part in version("triton").split(".")[:2])

DEVICE = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []
CPU = torch.device("cpu")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
NUM_COLUMNS = len(RAW_COLUMNS)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def whole_numbers(shape: Any, dtype: torch.dtype = F32, *, largest: int = 4) -> Tensor:
    if dtype.is_complex:
        return torch.complex(whole_numbers(shape), whole_numbers(shape))
    return torch.randint(-largest, largest + 1, (shape,) if isinstance(shape, int) else shape).to(dtype)


def make_units(shapes: list[list[Any]], dtypes: list[torch.dtype]) -> tuple[list[Unit], list[Unit]]:
    """The same units on the device and on the host; `dtypes` are dealt out in turn."""
    count, mine, theirs = 0, [], []
    for u, row in enumerate(shapes):
        tensors = []
        for shape in row:
            tensors.append(whole_numbers(shape, dtypes[count % len(dtypes)]))
            count += 1
        mine.append(Unit(u, u, DEVICE, tuple(nn.Parameter(x.to(DEVICE)) for x in tensors)))
        theirs.append(Unit(u, u, CPU, tuple(nn.Parameter(x.clone()) for x in tensors)))
    return mine, theirs


def set_gradients(units: tuple[list[Unit], list[Unit]], make: Callable[[int, Tensor], Tensor | None]) -> None:
    for i, (mine, theirs) in enumerate(zip(*([p for u in side for p in u.params] for side in units), strict=True)):
        g = make(i, theirs)
        mine.grad, theirs.grad = (None, None) if g is None else (g.to(DEVICE), g)


def move(units: tuple[list[Unit], list[Unit]]) -> None:
    """A step: parameters become other whole numbers."""
    for mine, theirs in zip(*([p for u in side for p in u.params] for side in units), strict=True):
        step = whole_numbers(theirs.shape, theirs.dtype, largest=2)
        theirs.add_(step)
        mine.add_(step.to(DEVICE))


class Both:
    """The fused backend, and the reference on the host, on equal units."""

    def __init__(self, shapes: list[list[Any]], dtypes: list[torch.dtype] | None = None, *, size: int = 251) -> None:
        self.units = make_units(shapes, dtypes or [F32])
        self.fused = fused.FusedBackend(self.units[0], size=size)
        self.reference = SketchBackend(self.units[1], size=size)
        num_units = len(shapes)
        self.rows = [torch.full((num_units, NUM_COLUMNS), float("nan"), dtype=torch.float64) for _ in range(2)]

    def step(
        self,
        make: Callable[[int, Tensor], Tensor | None] = lambda i, p: whole_numbers(p.shape, p.dtype),
        *,
        scale: float | None = None,
        skipped: float | None = None,
    ) -> None:
        set_gradients(self.units, make)
        for backend, device in ((self.fused, DEVICE), (self.reference, CPU)):
            backend.read_gradients(scale=None if scale is None else torch.tensor([scale], device=device))
        if not skipped:
            move(self.units)
        for backend, device, k in ((self.fused, DEVICE, 0), (self.reference, CPU, 1)):
            out = self.rows[k].to(device)
            refused = None if skipped is None else torch.tensor([skipped], device=device)
            backend.read_parameters(out, lrs={}, skipped=refused)
            self.rows[k] = out.cpu()

    def check(self, *, rtol: float = 2e-5, skip: tuple[str, ...] = ()) -> None:
        """Rows agree to the rounding of the reference, which multiplies in single precision."""
        assert self.rows[0][:, RAW["p_p"]].isfinite().all()
        ones = torch.ones(len(self.rows[1]), dtype=torch.float64)
        norm = {x: self.rows[1][:, RAW[f"{x}_{x}"]].nan_to_num(1.0).sqrt() + 1 for x in ("gs", "d", "ps", "f")}
        for name, k in RAW.items():
            if name in skip:
                continue
            left, right = ("gs" if part[0] == "g" else part[0] for part in name.split("_")) if "_" in name else ("", "")
            size = norm.get(left, ones) * norm.get(right if right != "p" else "ps", ones)
            got, want = self.rows[0][:, k], self.rows[1][:, k]
            np.testing.assert_allclose(got / size, want / size, rtol=rtol, atol=rtol, err_msg=name)


def expected_sketch(units: list[Unit], which: Callable[[Tensor], Tensor | None], *, size: int) -> Tensor:
    sizes = [[p.numel() * (2 if p.is_complex() else 1) for p in u.params] for u in units]
    sketcher = Sketcher(sizes, size=size, device=CPU, dtype=torch.float64)
    out = torch.empty(len(units), size, dtype=torch.float64)
    for u, unit in enumerate(units):
        row = [(p, which(p)) for p in unit.params]
        sketcher.sketch(u, [None if x is None else sums.flat(x.cpu(), p.cpu()).double() for p, x in row], out[u])
    return out


# units of one bucket an element, of many; of one parameter, several, an empty one; of one chunk, several
SMALL: list[list[Any]] = [[5], [251], [252], [(30, 8), 0, 7], [0, 3], [(9, 40), 11]]
SHAPES: list[list[Any]] = [*SMALL, [(66, 251), 100, 1]]


# -- sketches and norms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtypes", [[F32], [BF16], [F16], [F32, BF16, F16]], ids=["fp32", "bf16", "fp16", "mixed"])
def test_sketches_and_norms_are_exact_sums_with_the_right_signs(dtypes: list[torch.dtype]) -> None:
    both = Both(SHAPES, dtypes)
    both.step()
    params, grads = both.fused._pack.cpu().double().flip(0)
    assert_bitwise(params, expected_sketch(both.units[1], lambda p: p, size=251))
    assert_bitwise(grads, expected_sketch(both.units[1], lambda p: p.grad, size=251))
    for k, which in ((1, lambda p: p), (0, lambda p: p.grad)):
        want = [sum(float(which(p).double().square().sum()) for p in unit.params) for unit in both.units[1]]
        assert both.fused._squares[k].tolist() == want


@pytest.mark.parametrize("size", SIZES)
def test_every_size(size: int) -> None:
    both = Both([[3 * size + 1], [size], [size // 2, size - 1]], size=size)
    both.step()
    assert_bitwise(both.fused._pack[0].cpu().double(), expected_sketch(both.units[1], lambda p: p.grad, size=size))
    both.check()


def test_a_million_elements_have_wider_chunks() -> None:
    both = Both([[(130, 4093), (127, 4093)], [0, 40]], [BF16, F32], size=4093)
    assert len(both.fused._launches[0][1]) > 8
    assert_bitwise(both.fused._pack[1].cpu().double(), expected_sketch(both.units[1], lambda p: p, size=4093))


def test_real_numbers_agree_to_rounding() -> None:
    both = Both(SHAPES, [F32, BF16, F16])
    both.step(lambda i, p: torch.randn(p.shape).to(p.dtype) * 1e-3)
    want = expected_sketch(both.units[1], lambda p: p.grad, size=251)
    scale = both.fused._squares[0].cpu().sqrt().clamp(min=1e-12)[:, None]
    torch.testing.assert_close(both.fused._pack[0].cpu().double() / scale, want / scale, rtol=0, atol=2e-7)
    squares = [sum(float(p.grad.double().square().sum()) for p in unit.params) for unit in both.units[1]]
    np.testing.assert_allclose(both.fused._squares[0].tolist(), squares, rtol=2e-7)


def test_the_tables_hold_the_signs_of_the_sketch() -> None:
    for size, width in ((251, 64 * 251), (1021, 128 * 1021)):
        step, table = pieces.lanes(size), pieces.sign_bytes(width, size)
        index = torch.randint(2 * width, (500,))
        signs = sign_table(2 * width + 8 * step, device=CPU, dtype=torch.int64)
        for bit in range(8):
            got = 1 - 2 * ((torch.from_numpy(table)[index].long() >> bit) & 1)
            assert torch.equal(got, signs[index + bit * step])
        assert torch.equal(pieces.table_signs(index), signs[index])
        assert not table[pieces.no_signs(width, size) :].any()
        chunks = torch.arange(300)
        assert pieces.chunk_shifts(chunks, width, size).tolist() == [chunk_shift(k, width, size) for k in range(300)]
        assert pieces.chunk_signs(chunks).tolist() == [chunk_sign(k) for k in range(300)]


# -- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtypes", [[F32], [BF16, F32, F16]], ids=["fp32", "mixed"])
def test_rows_are_those_of_the_reference(dtypes: list[torch.dtype]) -> None:
    both = Both(SHAPES, dtypes)
    np.testing.assert_allclose(both.fused.start_norms().tolist(), both.reference.start_norms().tolist(), rtol=1e-7)
    for _ in range(4):
        both.step()
        both.check()
    assert both.rows[0][:, RAW["g_g3"]].isfinite().all()


def test_missing_gradients_are_zeros() -> None:
    both = Both(SMALL)
    for step in range(5):
        both.step(lambda i, p, step=step: None if (i + step) % 3 == 0 else whole_numbers(p.shape))
        both.check()
    both.step(lambda i, p: None)
    both.check()
    assert (both.rows[0][:, RAW["g_g"]] == 0).all()


def test_scaled_gradients() -> None:
    both = Both(SMALL, [F32, F16])
    for scale in (None, 8.0, 3.0, 65536.0):
        both.step(scale=scale)
        both.check()
        want = expected_sketch(both.units[1], lambda p: p.grad, size=251) / (scale or 1.0)
        torch.testing.assert_close(both.fused._pack[0].cpu().double(), want, rtol=2e-7, atol=0)


def test_gradients_that_come_group_by_group() -> None:
    both = Both(SMALL)
    both.step()
    for backend in (both.fused, both.reference):
        backend.forget()
    for part in (0, 1, 2):
        set_gradients(both.units, lambda i, p, part=part: whole_numbers(p.shape) if i % 3 == part else None)
        for backend, device in ((both.fused, DEVICE), (both.reference, CPU)):
            backend.read_gradients(scale=torch.tensor(2.0 + part, device=device), more=part > 0)
    for k, (backend, device) in enumerate(((both.fused, DEVICE), (both.reference, CPU))):
        out = both.rows[k].to(device)
        backend.read_parameters(out, lrs={})
        both.rows[k] = out.cpu()
    both.check()
    assert (both.rows[0][:, RAW["g_g"]] > 0).all()


def test_a_refused_step_leaves_products_undefined() -> None:
    both = Both(SMALL)
    for skipped in (None, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0):
        both.step(skipped=skipped)
        both.check()
        assert both.rows[0][:, RAW["skipped"]].tolist() == [skipped or 0.0] * len(SMALL)
    assert both.rows[0][:, RAW["g_g3"]].isfinite().all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in the interpreter
def test_an_overflow_is_seen_and_does_not_stay() -> None:
    both = Both([[(20, 30)], [7]])
    both.step()
    both.step(lambda i, p: whole_numbers(p.shape).fill_(float("inf")), skipped=1.0)
    assert both.rows[0][:, RAW["g_g"]].isinf().all()
    for _ in range(4):
        both.step()
    both.check()
    assert both.rows[0][:, : RAW["lr"]].isfinite().all()


def test_learning_rates_on_the_device() -> None:
    both = Both([[5], [300], [7], [8]])
    lrs = {0: torch.tensor(0.25), 1: torch.tensor([0.5], dtype=torch.float64), 3: torch.tensor(2.0, dtype=BF16)}
    both.step()
    for values in (lrs, {0: torch.tensor(0.125)}, {}):
        for backend, device, k in ((both.fused, DEVICE, 0), (both.reference, CPU, 1)):
            row = both.rows[k].to(device)
            backend.read_gradients()
            backend.read_parameters(row, lrs={g: lr.to(device) for g, lr in values.items()})
            both.rows[k] = row.cpu()
        both.check()
    assert both.rows[0][:, RAW["lr"]].isnan().all()


def test_a_row_of_another_type_can_be_asked_for() -> None:
    both = Both([[5], [300]])
    both.step()
    both.fused.read_gradients()
    wide = torch.zeros(2, 2 * NUM_COLUMNS, device=DEVICE)
    both.fused.read_parameters(wide[:, ::2], lrs={})
    assert wide[:, ::2][:, RAW["g_g"]].tolist() == both.rows[1][:, RAW["g_g"]].tolist()


def test_forgetting() -> None:
    both = Both(SMALL)
    for _ in range(3):
        both.step()
    both.fused.forget()
    both.reference.forget()
    for _ in range(4):
        both.step()
        both.check()
    set_gradients(both.units, lambda i, p: whole_numbers(p.shape))
    for k, (backend, device) in enumerate(((both.fused, DEVICE), (both.reference, CPU))):
        out = both.rows[k].to(device)
        backend.read_gradients()
        backend.forget()  # the gradients just read as well
        backend.read_parameters(out, lrs={})
        both.rows[k] = out.cpu()
    both.check()
    assert both.rows[0][:, RAW["gs_gs"]].isnan().all()


@pytest.mark.parametrize("size", [251, 509])
def test_adopting(size: int) -> None:
    """Units that stay keep their memory, new ones begin; a backend of another sketch size has nothing to give."""
    both = Both([[300], [5], [(20, 30), 4]], size=251)
    for _ in range(3):
        both.step()
    more = make_units([[40], [700]], [F32])
    kept = [[both.units[k][2], more[k][0], both.units[k][0], more[k][1]] for k in range(2)]
    old = both.fused, both.reference
    both.units = (kept[0], kept[1])
    both.fused, both.reference = fused.FusedBackend(kept[0], size=size), SketchBackend(kept[1], size=size)
    both.rows = [torch.full((4, NUM_COLUMNS), float("nan"), dtype=torch.float64) for _ in range(2)]
    both.fused.adopt(old[0])
    both.reference.adopt(old[1])
    for _ in range(5):
        both.step()
        both.check()
    both.fused.adopt(both.reference)
    both.step()
    both.check()


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_each_goes_on_with_the_memory_of_the_other(steps: int) -> None:
    both = Both(SHAPES)
    for _ in range(steps):
        both.step()
    memories = both.fused.memory(), both.reference.memory()
    for mine, theirs, unit in zip(*memories, both.units[1], strict=True):
        assert mine.device == theirs.device == CPU
        assert_bitwise(mine, theirs)
        assert mine.shape == (6, min(sum(p.numel() for p in unit.params), 251))
    went_on = Both(SHAPES)
    went_on.units = both.units
    went_on.fused, went_on.reference = (
        kind(units, size=251) for kind, units in zip((fused.FusedBackend, SketchBackend), both.units, strict=True)
    )
    went_on.fused.remember(memories[1])
    went_on.reference.remember(memories[0])
    for _ in range(4):
        went_on.step()
        went_on.check()
        after = [backend.memory() for backend in (went_on.fused, went_on.reference)]
        for mine, theirs in zip(*after, strict=True):
            assert_bitwise(mine, theirs)
    if steps > 3:
        assert torch.cat(after[0], dim=1).isfinite().all()


# -- kinds of tensors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 3, 5, 5), (16, 8, 3, 3), (4, 6)])
@pytest.mark.parametrize("way", ["channels_last", "transposed", "one each"])
def test_memory_layouts(shape: tuple[int, ...], way: str) -> None:
    both = Both([[shape]])
    if way != "one each":
        for units in both.units:
            (p,) = units[0].params
            changed = (
                p.contiguous(memory_format=torch.channels_last)
                if way == "channels_last" and p.dim() == 4
                else p.transpose(0, 1).contiguous().transpose(0, 1)
            )
            units[0] = Unit(0, 0, units[0].device, (nn.Parameter(changed),))
        both.fused, both.reference = fused.FusedBackend(both.units[0], size=251), SketchBackend(both.units[1], size=251)
    layouts = [
        lambda g: g.contiguous(),
        lambda g: g.transpose(0, 1).contiguous().transpose(0, 1),
        lambda g: g.new_zeros(*g.shape[:-1], 2 * g.shape[-1])[..., ::2].copy_(g),
        lambda g: g.contiguous(memory_format=torch.channels_last) if g.dim() == 4 else g,
    ]
    for layout in layouts:
        set_gradients(both.units, lambda i, p: whole_numbers(p.shape))
        for units in both.units:
            (p,) = units[0].params
            p.grad = layout(p.grad)
        rows = []
        for backend, device in ((both.fused, DEVICE), (both.reference, CPU)):
            row = torch.zeros(1, NUM_COLUMNS, dtype=torch.float64, device=device)
            backend.read_gradients()
            backend.read_parameters(row, lrs={})
            rows.append(row.cpu())
        both.rows = rows
        both.check()


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, 3:12],
        lambda x: x[:, 3:12].t(),
        lambda x: x[::2],
        lambda x: x.view(-1)[::2],
        lambda x: x[0, :9].expand(5, 9),
    ],
    ids=["columns", "columns, transposed", "every other row", "every other element", "expanded"],
)
def test_a_parameter_with_gaps_in_its_memory(view: Callable[[Tensor], Tensor]) -> None:
    x = whole_numbers((30, 20))
    both = Both([[1]])
    both.units = tuple([Unit(0, 0, d, (view(x.to(d, copy=True)),))] for d in (DEVICE, CPU))
    both.fused, both.reference = fused.FusedBackend(both.units[0], size=251), SketchBackend(both.units[1], size=251)
    for transposed in (False, True):
        for units, device, backend, k in (
            (both.units[0], DEVICE, both.fused, 0),
            (both.units[1], CPU, both.reference, 1),
        ):
            (p,) = units[0].params
            grad = torch.arange(p.numel(), dtype=F32).sub_(40).view(p.shape).to(device)
            p.grad = grad.t().contiguous().t() if transposed else grad
            row = both.rows[k].to(device)
            backend.read_gradients()
            backend.read_parameters(row, lrs={})
            both.rows[k] = row.cpu()
        both.check()


@pytest.mark.parametrize("conjugated", [False, True])
def test_complex_parameters(conjugated: bool) -> None:
    both = Both([[(6, 4)], [(20, 30), 5], [9]], [torch.complex64, F32])
    for _ in range(4):
        both.step(lambda i, p: whole_numbers(p.shape, p.dtype))
        both.check()
    if conjugated:
        plain = both.fused._pack[0].cpu()
        for p in (p for unit in both.units[0] for p in unit.params if p.is_complex()):
            p.grad = p.grad.conj().clone().conj()
            assert p.grad.is_conj()
        both.fused.read_gradients()
        assert_bitwise(both.fused._pack[0].cpu(), plain)


def test_a_gradient_wider_than_its_parameter_is_narrowed() -> None:
    p = whole_numbers(600).to(DEVICE)
    backend = fused.FusedBackend([Unit(0, 0, DEVICE, (p,))], size=251)
    grad = whole_numbers(600).to(DEVICE)
    narrow, wide = backend._addresses([grad]), backend._addresses([grad.double()])
    assert narrow == [grad.data_ptr()]
    assert len(backend._kept) == 1
    assert wide == [backend._kept[0].data_ptr()]
    assert backend._kept[0].dtype == F32


@pytest.mark.parametrize("scale", [None, 4.0])
def test_sparse_gradients(scale: float | None) -> None:
    """Exact where every element has a bucket; elsewhere the products are, and the norm is the sketch's."""
    both = Both([[(20, 12)], [40, (500, 3)], [(260, 66)]])

    def sparse(i: int, p: Tensor) -> Tensor:
        if p.dim() == 1:
            return whole_numbers(p.shape)
        index = torch.randint(p.shape[0], (1, 30)).sort().values
        index[0, 1] = index[0, 0]  # repeated rows add up
        return torch.sparse_coo_tensor(index, whole_numbers((30, p.shape[1])), p.shape)

    for _ in range(4):
        both.step(sparse, scale=scale)
        both.check(skip=("g_g",))
        grads = expected_sketch(both.units[1], lambda p: p.grad.to_dense(), size=251) / (scale or 1.0)
        assert_bitwise(both.fused._pack[0].cpu().double(), grads)
        got, want = (row[:, RAW["g_g"]] for row in both.rows)
        assert float(got[0]) == pytest.approx(float(want[0]), rel=1e-6)
        np.testing.assert_allclose(got[1:], want[1:], rtol=5 * np.sqrt(2 / 251))
    both.step(
        lambda i, p: (
            torch.sparse_coo_tensor(torch.zeros(1, 0, dtype=torch.long), p[:0], p.shape) if p.dim() > 1 else None
        )
    )
    both.check()


def test_gradients_of_other_layouts_are_refused() -> None:
    p = nn.Parameter(whole_numbers((20, 30)).to(DEVICE))
    backend = fused.FusedBackend([Unit(0, 0, DEVICE, (p,))], size=251)
    with pytest.raises(TypeError, match=r"gradients of layout torch\.sparse_csr are not measured"):
        backend._addresses([SimpleNamespace(dtype=F32, layout=torch.sparse_csr)])


def test_gradients_are_not_kept_alive() -> None:
    both = Both([[300], [(4, 5)]])
    for make in (lambda p: whole_numbers(p.shape), lambda p: whole_numbers(p.shape).double()):
        grad = make(both.units[0][0].params[0]).to(DEVICE)
        alive = weakref.ref(grad)
        both.fused._measure(0, both.fused._gradients, [grad, None], both.fused._one)
        del grad
        gc.collect()
        assert alive() is None
        assert not both.fused._kept


def test_a_parameter_resized_in_place_is_not_read() -> None:
    p = nn.Parameter(whole_numbers(600).to(DEVICE))
    backend = fused.FusedBackend([Unit(0, 0, DEVICE, (p,))], size=251)
    p.data = p.data[:10]
    with pytest.raises(RuntimeError, match="a parameter of 600 numbers now has 10"):
        backend.read_parameters(torch.zeros(1, NUM_COLUMNS, dtype=torch.float64, device=DEVICE), lrs={})


# -- parts of parameters ----------------------------------------------------------------------------------------------


class _Parts:
    """Makes backends believe that tensors are parts of larger ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def backend(self, kind: Any, tensors: list[list[Tensor]], places: list[list[Place]], sizes: list[list[int]]) -> Any:
        original = sums.UnitReader.__init__

        def patched(reader: Any, units: list[Unit]) -> None:
            original(reader, units)
            reader.sizes, reader.places = sizes, places

        device = tensors[0][0].device
        with self._monkeypatch.context() as m:
            m.setattr(sums.UnitReader, "__init__", patched)
            return kind([Unit(u, 0, device, tuple(row)) for u, row in enumerate(tensors)], size=251)


@pytest.mark.parametrize(
    ("height", "width", "cuts"),
    [(9, 20, (0.3, 0.31)), (90, 120, (0.5, 0.5)), (10, 1200, (0.0, 0.9)), (300, 60, (0.1, 0.9))],
)
def test_sketches_of_parts_add_up(
    height: int, width: int, cuts: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns of a matrix on several processes (runs with gaps), and rows of a second one (one run each)."""
    matrix, other = whole_numbers((height, width)), whole_numbers((height, 3))
    parts = _Parts(monkeypatch)
    sizes = [[matrix.numel(), other.numel()]]
    sketches, squares = torch.zeros(251), 0.0
    bounds = [0, *(int(width * c) for c in cuts), width]
    rows = [0, *(int(height * c) for c in cuts), height]
    for a, b, top, bottom in zip(bounds, bounds[1:], rows, rows[1:], strict=False):
        places = [[
            Place(a, height if b > a else 0, b - a, width),
            whole(matrix.numel() + 3 * top, 3 * (bottom - top)),
        ]]  # fmt: skip
        mine = [matrix[:, a:b].contiguous().to(DEVICE), other[top:bottom].contiguous().to(DEVICE)]
        backend = parts.backend(fused.FusedBackend, [mine], places, sizes)
        assert [w[2] for w in backend._launches] == ([False] if b > a and b - a == width else [False, True])[
            : len(backend._launches)
        ]
        sketches += backend._pack[1, 0].cpu()
        squares += float(backend._squares[1, 0])
    whole_one = fused.FusedBackend([Unit(0, 0, DEVICE, (matrix.to(DEVICE), other.to(DEVICE)))], size=251)
    assert_bitwise(sketches, whole_one._pack[1, 0].cpu())
    assert squares == float(whole_one._squares[1, 0])


def test_rows_of_parts_are_those_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = _Parts(monkeypatch)
    places = [[Place(40, 50, 7, 90), whole(9000, 30)], [Place(3, 4, 2, 5)], [Place(0, 0, 0, 0)]]
    sizes = [[4500, 5000], [40], [300]]
    shapes: list[list[Any]] = [[(50, 7), 30], [(4, 2)], [0]]
    both = Both(shapes)
    both.fused, both.reference = (
        parts.backend(kind, [list(u.params) for u in units], places, sizes)
        for kind, units in ((fused.FusedBackend, both.units[0]), (SketchBackend, both.units[1]))
    )
    for _ in range(4):
        both.step()
        both.check()


def sharded_run(rank: int, world: int, ways: tuple[str, ...], num_steps: int) -> list[Any]:
    """Sharded trainings measured by the fused backend (run in processes of their own)."""
    fused._REDUCE_LANES = 1024  # fewer programs: each takes a millisecond in the interpreter
    parts.make_backend = lambda units, mode, size: fused.FusedBackend(units, size=size)  # type: ignore[assignment]
    answers = []
    for way in ways:
        model = programs.fully_sharded(F32, world) if way == "fully" else programs.tensor_parallel(F32, world)
        optimizer = programs.make_optimizer(model)
        observer = Observer(model, optimizer, strict=True)
        part = (rank, world) if way == "fully" else (0, 1)
        programs.train(model, optimizer, observer=observer, dtype=F32, part=part, num_steps=num_steps)
        answers.append(programs.columns(observer.record()))
    return answers


@pytest.mark.skipif(DEVICE.type == "cuda", reason="in the interpreter, over gloo")
@needs_shards
@pytest.mark.slow
def test_sharded_models_are_measured_whole() -> None:
    with torch.enable_grad():
        want = programs.plain(F32, num_steps=5)
    for answer in programs.launch(sharded_run, 2, ("fully", "tensor"), 5):
        assert isinstance(answer, list), answer
        for got in answer:
            for name in programs.QUANTITIES:
                scale = np.nanmax(np.abs(want[name]))
                np.testing.assert_allclose(got[name], want[name], rtol=2e-3, atol=2e-3 * scale, err_msg=name)


# -- the same bits, and as many launches ------------------------------------------------------------------------------


def _three_rows(seed: int) -> Tensor:
    seed_everything(seed)
    both = Both([[(9, 251), 33], [(90, 40)], [12]], [F32, BF16])
    rows = []
    for _ in range(3):
        both.step(lambda i, p: torch.randn(p.shape).to(p.dtype))
        rows.append(both.rows[0])
    return torch.stack(rows)


def test_rows_repeat_to_the_bit() -> None:
    assert_bitwise(_three_rows(5), _three_rows(5))
    with pytest.raises(AssertionError):
        assert_bitwise(_three_rows(5), _three_rows(6))


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


def _work_of_a_step(shapes: list[list[Any]], monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """Kernels and torch operations of a step whose gradients have moved."""
    both = Both(shapes)
    both.step()
    launched: list[str] = []

    def noted(name: str) -> Any:
        kernel = getattr(both.fused._kernels, name)

        class Kernel:
            def __getitem__(self, grid: Any) -> Any:
                launched.append(name)
                return kernel[grid]

        return Kernel()

    names = ("sketch_pieces", "add_up", "make_row")
    both.fused._kernels = SimpleNamespace(**{name: noted(name) for name in names})
    set_gradients(both.units, lambda i, p: whole_numbers(p.shape))
    lrs = {0: torch.tensor(0.5, device=DEVICE)}
    out = torch.zeros(len(shapes), NUM_COLUMNS, dtype=torch.float64, device=DEVICE)
    one = torch.ones(1, device=DEVICE)
    with _Counter() as counter:
        both.fused.read_gradients(scale=one)
        both.fused.read_parameters(out, lrs=lrs, skipped=one)
    # looking at a tensor's history is no work of the device
    return launched, [call for call in counter.calls if "detach" not in call]


def test_as_many_launches_for_many_layers_as_for_few(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (_work_of_a_step([[(40, 9), 9]] * count, monkeypatch) for count in (2, 12))
    assert few == many
    assert few[0] == ["sketch_pieces", "add_up", "sketch_pieces", "add_up", "make_row"]
    if DEVICE.type == "cuda":  # the interpreter's own operations count among them
        assert len(few[1]) < 20, few[1]


def test_addresses_that_stay_are_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both([[5], [300]])
    both.step()
    sent: list[int] = []
    original = torch.tensor
    monkeypatch.setattr(fused.torch, "tensor", lambda *a, **k: sent.append(1) or original(*a, **k))
    both.fused.read_gradients()
    both.fused.read_gradients()
    assert not sent
    both.units[0][0].params[0].grad = whole_numbers(5).to(DEVICE) + 0
    both.fused.read_gradients()
    assert len(sent) <= 1


def test_scratch_and_tables_are_a_few_hundredths_of_a_byte_a_parameter() -> None:
    """GPT-2 of 124 million parameters, and one of 1.3 billion."""
    for width, depth, vocabulary in ((768, 12, 50257), (2048, 24, 50257)):
        layer = [[width], [width * 3 * width, 3 * width], [width * width, width], [width]]
        layer += [[width * 4 * width, 4 * width], [width * 4 * width, width]]
        sizes = [[vocabulary * width], [1024 * width], *(layer * depth), [width, width]]
        totals = [sum(row) for row in sizes]
        places = [[whole(sum(row[:i]), n) for i, n in enumerate(row)] for row in sizes]
        shared = pieces.plan(places, totals, 1021)
        scratch = int(shared.unit_places[-1]) * 1021 * 4
        tables = sum(w.pieces.nbytes + w.programs.nbytes for w in shared.work)
        assert scratch < 0.036 * sum(totals)
        assert tables < 0.002 * sum(totals)
        (work,) = shared.work
        held = work.pieces[:, pieces.HIGH] - work.pieces[:, pieces.LOW]
        assert held.sum() == sum(totals)
        loads = np.add.reduceat(held, work.programs[:, 0])
        assert loads.max() <= 2 * pieces.rows_a_program(sum(totals), 1021) * 1021
        assert work.programs[:, 2].tolist() == list(range(len(work.programs)))


def test_held_bytes_are_told() -> None:
    both = Both([[300], [5]])
    seen = {id(t): t.numel() * t.element_size() for t in _tensors_in(both.fused)}
    assert both.fused.num_bytes() == sum(seen.values())


def _tensors_in(backend: Any) -> Iterator[Tensor]:
    """Every tensor that a backend holds, apart from the parameters and what every reader has."""
    base = {"_owner", "_nothing", "_params", "units", "_start", "peers", "_spare"}
    stack = [v for k, v in vars(backend).items() if k not in base]
    while stack:
        x = stack.pop()
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, (list, tuple)):
            stack.extend(x)
        elif isinstance(x, graphs.SentTable):
            yield x.values


# -- through the observer ---------------------------------------------------------------------------------------------


def _record(backend: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    seed_everything(3)
    model = nn.Sequential(nn.Linear(40, 60), nn.Tanh(), nn.Linear(60, 4)).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    monkeypatch.setattr(parts, "make_backend", lambda units, mode, size: backend(units, size=size))
    observer = Observer(model, optimizer, strict=True, sketch_size=251)
    assert isinstance(observer._attachment.meter._parts._parts[0].backend, backend)
    with torch.enable_grad():
        for _ in range(20):
            optimizer.zero_grad()
            loss = model(torch.randn(16, 40).to(DEVICE)).square().mean()
            loss.backward()
            optimizer.step()
            observer.step(loss=loss)
    params = [p.detach().clone() for p in model.parameters()]
    return observer.record(), params


def test_a_run_has_the_record_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    (got, got_params), (want, want_params) = (_record(b, monkeypatch) for b in (fused.FusedBackend, SketchBackend))
    assert_bitwise(got_params, want_params)
    assert len(got) == len(want) == 20
    for name in ("sigma", "grad_sq", "param_sq", "update_sq", "coherence", "alignment", "overshoot", "distance", "r",
                 "noise", "norm_budget", "d_iS_wd", "d_iS_momentum", "d_iS_noise", "lr", "loss"):  # fmt: skip
        scale = np.nanmax(np.abs(want[name]))
        np.testing.assert_allclose(got[name], want[name], rtol=2e-3, atol=1e-4 * scale, err_msg=name)


# -- captured graphs: what can be tested without one ------------------------------------------------------------------


def test_a_captured_table_is_sent_by_every_replay_and_by_every_step_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_memory", [])
    codes = graphs.SentTable(3, device=DEVICE)
    pages: list[Tensor] = []
    capturing = [False]
    monkeypatch.setattr(graphs, "is_capturing", lambda device: capturing[0])

    def send(values: list[int]) -> list[int]:
        codes.send(values)
        return codes.values.tolist()

    assert send([1, 2, 3]) == [1, 2, 3]
    capturing[0] = True
    assert send([4, 5, 6]) == [4, 5, 6]
    pages = list(graphs._memory)
    capturing[0] = False
    assert [page.tolist() for page in pages] == [[4, 5, 6]]
    for _ in range(2):
        assert send([1, 2, 3]) == [1, 2, 3]
        codes.values.copy_(pages[0])  # a replay
    assert pages[0].tolist() == [4, 5, 6], "somebody wrote where the graph reads"
    capturing[0] = True
    for k in range(20):
        capturing[0] = False
        send([k, k, k])
        capturing[0] = True
        send([k + 1] * 3)
    assert [page.tolist()[0] for page in graphs._memory] == [4, *range(1, 21)]
    codes._spare.clear()
    with pytest.raises(RuntimeError, match="too many CUDA graphs"):
        send([0, 0, 0])


def test_launches_that_are_repeated_measure_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph replays kernels and copies with the arguments they were captured with, and nothing on the host runs."""
    monkeypatch.setattr(graphs, "_memory", [])
    both = Both([[(20, 30), 5], [7]])
    both.step()
    both.step()
    launches: list[Callable[[], Any]] = []
    kernels = both.fused._kernels

    def noted(name: str) -> Any:
        class Kernel:
            def __getitem__(self, grid: Any) -> Any:
                return lambda *a, **k: launches.append(lambda: getattr(kernels, name)[grid](*a, **k))

        return Kernel()

    def send(codes: Any, values: list[int]) -> None:
        page = torch.tensor(values, device=DEVICE)
        launches.append(lambda: codes.values.copy_(page))

    out = both.rows[0].to(DEVICE)
    monkeypatch.setattr(graphs.SentTable, "send", send)
    both.fused._kernels = SimpleNamespace(**{name: noted(name) for name in ("sketch_pieces", "add_up", "make_row")})
    both.fused.read_gradients()
    middle = len(launches)
    both.fused.read_parameters(out, lrs={})
    for _ in range(6):
        for mine, theirs in zip(*([p for u in side for p in u.params] for side in both.units), strict=True):
            theirs.grad = whole_numbers(theirs.shape)
            mine.grad.copy_(theirs.grad)
        both.reference.read_gradients()
        for launch in launches[:middle]:
            launch()
        move(both.units)
        both.reference.read_parameters(both.rows[1], lrs={})
        for launch in launches[middle:]:
            launch()
        both.rows[0] = out.cpu()
        both.check()


def test_the_ring_of_a_captured_meter_outlives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_memory", [])
    monkeypatch.setattr(parts, "make_backend", lambda units, mode, size: fused.FusedBackend(units, size=size))
    ring = parts.DeviceRing
    monkeypatch.setattr(parts, "DeviceRing", lambda *a, **k: ring(*a, **{**k, "replayable": True}))
    model = nn.Linear(4, 3).to(DEVICE)
    observer = Observer(model, torch.optim.SGD(model.parameters(), lr=0.1), strict=True, sketch_size=251)
    inner = observer._attachment.meter
    monkeypatch.setattr(type(inner), "is_capturing", lambda self: True)
    inner.before_step(closure=False)
    inner.after_step()
    assert any(x is part.ring for x in graphs._memory for part in inner._parts)


def test_what_a_graph_uses_outlives_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_memory", [])
    both = Both([[5], [300]])
    monkeypatch.setattr(graphs, "is_capturing", lambda device: True)
    both.step()
    kept = {id(x) for x in graphs._memory}
    assert {id(t) for t in both.fused._held()} <= kept
    assert not any(x is p for x in graphs._memory for unit in both.units[0] for p in unit.params)
    count = len(graphs._memory)
    both.step()
    assert len(graphs._memory) == count + 3, "only the tables of addresses are new"


# -- where the kernels cannot be used ---------------------------------------------------------------------------------


@pytest.fixture
def _fresh() -> Iterator[None]:
    for cached in (choice._say, choice.unusable):
        cached.cache_clear()
    yield
    for cached in (choice._say, choice.unusable):
        cached.cache_clear()


def _on_cuda(dtype: torch.dtype = F32) -> list[Unit]:
    return [Unit(0, 0, torch.device("cuda", 0), (torch.zeros(4, dtype=dtype),))]


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize(
    ("dtype", "reason", "told"),
    [
        (F32, "Triton is missing", "Triton is missing"),
        (torch.float64, None, "there are float64 parameters"),
        (torch.complex128, None, "there are complex128 parameters"),
    ],
)
def test_falls_back_with_one_message(
    dtype: torch.dtype, reason: str | None, told: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(choice, "SketchBackend", lambda units, size: "torch")
    monkeypatch.setattr(choice, "FusedBackend", lambda units, size: "fused")
    monkeypatch.setattr(choice, "unusable", lambda device, size: reason)
    with caplog.at_level(logging.WARNING, logger="thermoclaw"):
        for _ in range(2):
            assert choice.sketching_backend(_on_cuda(dtype), size=251) == "torch"
    (line,) = caplog.messages
    assert line.startswith("thermoclaw: measuring with torch operations, at a higher cost, as the fused CUDA kernels")
    assert told in line


@pytest.mark.usefixtures("_fresh")
def test_used_on_cuda_only_and_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(choice, "SketchBackend", lambda units, size: "torch")
    monkeypatch.setattr(choice, "FusedBackend", lambda units, size: "fused")
    monkeypatch.setattr(choice, "unusable", lambda device, size: None)
    assert choice.sketching_backend(_on_cuda(), size=251) == "fused"
    assert choice.sketching_backend([Unit(0, 0, CPU, (torch.zeros(4),))], size=251) == "torch"
    monkeypatch.setenv("THERMOCLAW_FUSED", "0")
    assert choice.sketching_backend(_on_cuda(), size=251) == "torch"
    monkeypatch.setenv("THERMOCLAW_FUSED", "1")

    def broken(units: Any, size: int) -> None:
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(choice, "FusedBackend", broken)
    assert choice.sketching_backend(_on_cuda(), size=251) == "torch"
    assert caplog.messages == [
        "thermoclaw: measuring with torch operations, at a higher cost, as the fused CUDA kernels cannot be used: "
        "RuntimeError: no such kernel"
    ]


def test_the_meter_asks_for_it() -> None:
    seen = []
    original, parts.sketching_backend = parts.sketching_backend, lambda units, size: seen.append(size)
    try:
        parts.make_backend([], mode="sketch", size=509)
    finally:
        parts.sketching_backend = original
    assert seen == [509]


def test_parameters_without_memory_are_left_to_torch() -> None:
    class Wrapper(Tensor):
        @staticmethod
        def __new__(cls, shape: tuple[int, ...]) -> Any:
            return Tensor._make_wrapper_subclass(cls, shape, dtype=F32)

        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return args[0]

    assert choice.unsupported([Unit(0, 0, CPU, (torch.zeros(3), torch.zeros(0)))]) is None
    told = choice.unsupported([Unit(0, 0, CPU, (Wrapper((3,)),))])
    assert told == "parameters of class Wrapper have no memory of their own"


@pytest.mark.parametrize("what", ["signs", "factors", "sums", "nothing"])
def test_kernels_are_tried_before_they_are_used(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if what == "signs":
        monkeypatch.setattr(fused, "sign_bytes", lambda *a: pieces.sign_bytes(*a) ^ 4)
    elif what == "factors":
        monkeypatch.setattr(pieces, "chunk_signs", lambda chunks: torch.full_like(chunks, -1))
    elif what == "sums":
        monkeypatch.setattr(fused, "_REDUCE_LANES", 64)
        kernels = fused.load_kernels()
        original = kernels.add_up
        broken = SimpleNamespace(**{k: getattr(kernels, k) for k in ("sketch_pieces", "make_row")})

        class Fewer:
            def __getitem__(self, grid: Any) -> Any:
                return original[(grid[0], grid[1] - 1)]

        broken.add_up = Fewer()
        monkeypatch.setattr(fused, "load_kernels", lambda: broken)
    told = choice._trial(DEVICE, 251)
    assert (told is None) == (what == "nothing"), told


def test_triton_is_imported_late_and_its_absence_is_told() -> None:
    """In a process of its own."""
    code = (
        "import sys, thermoclaw\n"
        "from thermoclaw.measure import fused\n"
        "assert 'triton' not in sys.modules\n"
        "sys.modules['triton'] = None\n"
        "try: fused.load_kernels()\n"
        "except ImportError as error: print(error)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.startswith("Triton is missing (")
    assert told.strip().endswith("torch's CUDA wheels for Linux bring it")


# -- the compiler -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux")
@pytest.mark.skipif(
    tuple(map(int, version("triton").split(".")[:2])) < (3, 3), reason="the compiler is called in another way there"
)
def test_kernels_compile_for_gpus_that_are_not_here() -> None:
    """The interpreter takes more than the compiler does: compile for real, without spilled registers."""
    script = Path(__file__).with_name("compile_kernels.py")
    env = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("compiled") == 4 * 2 * 2, done.stdout
