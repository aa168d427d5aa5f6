"""The compiled CPU pass writes what the torch operations write, or declines."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import subprocess

import pytest
import torch

from thermoclaw import Observer
from thermoclaw.layers import Unit
from thermoclaw.measure import native, native_pass
from thermoclaw.measure.columns import RAW, RAW_COLUMNS
from thermoclaw.measure.native_pass import NativePass
from thermoclaw.measure.place import Place
from thermoclaw.measure.sketch import Sketcher, sign_table
from thermoclaw.measure.sketched import SketchBackend

# exact units, one above, several chunks, several parameters, an empty one
SIZES = [[500], [1021], [1022], [700, 400], [70_000, 3_000, 1], [1_000_000, 7], [2_400_000], [0, 1300]]

needs_kernel = pytest.mark.skipif(native.library() is None, reason="no C compiler on this machine")


class Wrapped(torch.Tensor):
    """A tensor without numbers of its own, as quantized ones are."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Wrapped:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return func(*(x.inner if isinstance(x, Wrapped) else x for x in args), **(kwargs or {}))


def _pass(sizes=SIZES, *, size: int = 1021) -> tuple[NativePass, Sketcher]:
    sketcher = Sketcher(sizes, size=size, device=torch.device("cpu"), dtype=torch.float32)
    return NativePass(sketcher), sketcher


def _tensors(dtype: torch.dtype = torch.float32) -> list[list[torch.Tensor]]:
    random = torch.Generator().manual_seed(0)
    return [[torch.randn(n, generator=random).to(dtype) for n in parts] for parts in SIZES]


def _flat(rows: list[list[torch.Tensor | None]]) -> list[torch.Tensor | None]:
    return [x for row in rows for x in row]


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [251, 1021])
def test_same_sketch_and_norms_as_torch(dtype: torch.dtype, size: int) -> None:
    run, sketcher = _pass(size=size)
    rows = _tensors(dtype)
    state = torch.full((len(SIZES), 3, size), float("nan"))
    norms = run(_flat(rows), state[:, 1])
    expected = torch.zeros(len(SIZES), size)
    for unit, row in enumerate(rows):
        sketcher.sketch(unit, list(row), expected[unit])
    scale = expected.abs().amax(1, keepdim=True)
    torch.testing.assert_close(state[:, 1] / scale, expected / scale, rtol=0, atol=1e-5)
    exact = torch.stack([sum(x.double().square().sum() for x in row) for row in rows])
    torch.testing.assert_close(norms, exact, rtol=1e-7, atol=1e-12)
    assert state[:, [0, 2]].isnan().all(), "wrote outside its rows"


@needs_kernel
def test_missing_tensors_are_zeros() -> None:
    run, _ = _pass()
    rows: list[list[torch.Tensor | None]] = [list(row) for row in _tensors()]
    rows[4][1] = rows[6][0] = None
    out = torch.full((len(SIZES), 1021), float("nan"))
    norms = run(_flat(rows), out)
    zeros = [
        [torch.zeros(n) if x is None else x for x, n in zip(r, s, strict=True)]
        for r, s in zip(rows, SIZES, strict=True)
    ]
    again = torch.empty_like(out)
    assert torch.equal(norms, run(_flat(zeros), again))
    assert torch.equal(out, again)
    assert (out[6] == 0).all()


@needs_kernel
def test_threads_change_nothing() -> None:
    run, _ = _pass()
    assert run._plan.num_tasks > len(SIZES), "no unit is cut"
    rows = _flat(_tensors())
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            run._shares = threads
            out = torch.empty(len(SIZES), 1021)
            found.append((run(rows, out), out))
            assert len(run._pool._threads if run._pool else ()) >= min(threads - 1, 1)
    finally:
        torch.set_num_threads(before)
    for norms, out in found[1:]:
        assert torch.equal(out, found[0][1])
        assert torch.equal(norms, found[0][0])


@needs_kernel
def test_all_half_precision_numbers() -> None:
    bits = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        parts = list(bits.view(dtype).split(1000))
        run, _ = _pass([[len(x)] for x in parts])
        out = torch.empty(len(parts), 1021)
        assert run(parts, out) is not None
        for row, x in zip(out, parts, strict=True):
            torch.testing.assert_close(row[: len(x)], x.float(), rtol=0, atol=0, equal_nan=True)


@needs_kernel
@pytest.mark.parametrize(
    "place",
    [
        Place(0, 1, 2_400_000, 2_400_000),
        Place(2**32 + 2**31 + 17, 1, 700_000, 700_000),
        Place(1_234_567, 1, 900_001, 900_001),
        Place(300, 2000, 700, 1000),
        Place(70_000, 3, 500_000, 700_000),
        Place(500_000, 1500, 1000, 1000),
        Place(0, 0, 0, 0),
    ],
    ids=["whole", "far", "tail", "columns", "wide columns", "rows", "nothing"],
)
def test_shards_have_the_signs_of_their_places(place: Place) -> None:
    cpu = torch.device("cpu")
    sketcher = Sketcher(
        [[2**33, 5]], size=1021, device=cpu, dtype=torch.float32, places=[[place, Place(2**33, 1, 5, 5)]]
    )
    run = NativePass(sketcher)
    tensors = [torch.randn(place.size, generator=torch.Generator().manual_seed(0)), torch.ones(5)]
    out, expected = torch.empty(1, 1021), torch.empty(1, 1021)
    norms = run(tensors, out)
    sketcher.sketch(0, tensors if place.size else [None, tensors[1]], expected[0])
    scale = expected.abs().max()
    torch.testing.assert_close(out / scale, expected / scale, rtol=0, atol=1e-5)
    torch.testing.assert_close(norms[0], torch.cat(tensors).double().square().sum(), rtol=1e-7, atol=0)


def test_words_of_signs() -> None:
    size, width = 251, 64 * 251
    words = native_pass.sign_words(width, size)
    signs = sign_table(2 * width, device=torch.device("cpu"), dtype=torch.float32)
    assert words.shape == (4, 2 * size)
    for index in (0, 250, 251, 252, 31 * 251 + 250, 32 * 251, 9999, 2 * width - 1):
        row, column = divmod(index, size)
        assert (words[row // 32, column] >> (row % 32) & 1) == (signs[index] < 0)
        if row % 32:  # the same sign, seen from the row before
            before = row - 1
            assert (words[before // 32, column + size] >> (before % 32) & 1) == (signs[index] < 0)


@needs_kernel
@pytest.mark.parametrize(
    "other",
    [
        torch.zeros(500, dtype=torch.float64),
        torch.zeros(499),
        torch.zeros(1000)[::2],
        torch.zeros(500, device="meta"),
        torch.zeros(500).to_sparse(),
        Wrapped(torch.zeros(500)),
    ],
    ids=["double", "short", "strided", "elsewhere", "sparse", "wrapped"],
)
def test_declines_what_it_does_not_know_and_writes_nothing(other: torch.Tensor) -> None:
    run, _ = _pass()
    rows = _flat(_tensors())
    out = torch.full((len(SIZES), 1021), 7.0)
    rows[0] = other
    assert run(rows, out) is None
    assert (out == 7.0).all()


def _backend(sizes: list[list[int]]) -> SketchBackend:
    random = torch.Generator().manual_seed(1)
    cpu = torch.device("cpu")
    return SketchBackend(
        [
            Unit(u, 0, cpu, tuple(torch.nn.Parameter(torch.randn(n, generator=random)) for n in parts))
            for u, parts in enumerate(sizes)
        ]
    )


SLOTS = (2, 1, 0, 3, 5, 4, 6, 7, 8)


@needs_kernel
def test_same_products_as_torch() -> None:
    """Each product from memory that differs by slot; the step is formed, and nothing else is written."""
    fast, slow = _backend([[3], [1021], [1022, 5], [300, 70_000]]), _backend([[3], [1021], [1022, 5], [300, 70_000]])
    memory = torch.randn(4, 9, 1021, generator=torch.Generator().manual_seed(2))
    memory[0, :, 3:] = 0.0  # as in a unit of three elements
    rows = []
    for backend in (fast, slow):
        backend._state.copy_(memory)
        backend._g_g, backend._p_p = torch.arange(4.0).double(), torch.arange(4.0, 8.0).double()
        rows.append(torch.full((4, len(RAW_COLUMNS)), -7.0, dtype=torch.float64))
    assert fast._native.products(fast._state, SLOTS, fast._g_g, fast._p_p, rows[0])
    slow._write_products(SLOTS, rows[1])
    slow._write_lrs(rows[1], {}, None)
    scale = torch.ones_like(rows[1])
    for name in ("g_g1", "g_g2", "g_g3", "g_d", "g_d1", "g_p", "d_p"):  # products that may cancel
        scale[:, RAW[name]] = (2 * rows[1][:, RAW["gs_gs"]]).clamp(min=1.0)
    torch.testing.assert_close(rows[0] / scale, rows[1] / scale, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert not (rows[0] == -7.0).any()
    assert torch.equal(fast._state, slow._state)
    kept = [slot for slot in range(9) if slot != SLOTS[4]]
    assert torch.equal(fast._state[:, kept], memory[:, kept])
    assert not torch.equal(fast._state[:, SLOTS[4]], memory[:, SLOTS[4]])


@needs_kernel
@pytest.mark.parametrize("slot", range(9))
def test_what_is_unknown_makes_unknown_products(slot: int) -> None:
    """NaN in one slot reaches the same columns as with torch."""
    fast, slow = _backend([[1022]]), _backend([[1022]])
    rows = []
    for backend in (fast, slow):
        backend._state.copy_(torch.randn(1, 9, 1021, generator=torch.Generator().manual_seed(2)))
        backend._state[:, slot] = float("nan")
        rows.append(torch.zeros(1, len(RAW_COLUMNS), dtype=torch.float64))
    fast._native.products(fast._state, SLOTS, fast._g_g, fast._p_p, rows[0])
    slow._write_products(SLOTS, rows[1])
    slow._write_lrs(rows[1], {}, None)
    assert torch.equal(rows[0].isnan(), rows[1].isnan())


@needs_kernel
def test_products_decline_what_they_do_not_know() -> None:
    backend = _backend([[5], [5]])
    out = torch.zeros(2, len(RAW_COLUMNS), dtype=torch.float64)
    wide = backend._g_g
    assert not backend._native.products(backend._state.double(), SLOTS, wide, wide, out)
    assert not backend._native.products(backend._state, SLOTS, wide.float(), wide, out)
    assert not backend._native.products(backend._state, SLOTS, wide, wide, torch.zeros(15, 2, dtype=torch.float64).T)
    assert (out == 0).all()


def _walk(sizes: list[list[int]], *, steps: int = 7) -> list[torch.Tensor]:
    """Rows of a backend through steps with missing gradients, a scaled one and a refused one."""
    backend = _backend(sizes)
    random = torch.Generator().manual_seed(3)
    rows = []
    for step in range(steps):
        params = [p for unit in backend.units for p in unit.params]
        for i, p in enumerate(params):
            missing = step == 2 and i == 0
            p.grad = None if missing else torch.randn(p.shape, generator=random)
        backend.read_gradients(scale=torch.tensor(4.0) if step == 3 else None)
        with torch.no_grad():
            for p in params:
                p.add_(torch.randn(p.shape, generator=random), alpha=0.01)
        rows.append(torch.zeros(len(sizes), len(RAW_COLUMNS), dtype=torch.float64))
        backend.read_parameters(rows[-1], lrs={}, skipped=torch.tensor(1.0) if step == 4 else None)
    return rows


@needs_kernel
def test_a_run_has_the_rows_of_torch(monkeypatch) -> None:
    sizes = [[40], [1021], [1022, 5], [300, 70_000], [300_000]]
    fast = _walk(sizes)
    monkeypatch.setattr(native, "library", lambda: None)
    slow = _walk(sizes)
    for step, (mine, theirs) in enumerate(zip(fast, slow, strict=True)):
        scale = (theirs[:, RAW["gs_gs"]] * theirs[:, RAW["ps_ps"]]).sqrt().nan_to_num(nan=1.0).clamp(min=1.0)
        for column, name in enumerate(RAW_COLUMNS):
            size = 1.0 if name in ("g_g", "p_p", "lr", "skipped") else scale
            torch.testing.assert_close(
                *(mine[:, column] / size, theirs[:, column] / size),
                rtol=1e-5,
                atol=1e-5,
                equal_nan=True,
                msg=lambda text, at=f"{name} at step {step}": f"{at}: {text}",
            )


@needs_kernel
def test_gradients_in_another_order_than_their_parameters(monkeypatch) -> None:
    """A channels-last weight whose gradient is contiguous: both are read in the weight's order."""
    cpu = torch.device("cpu")
    weight = torch.nn.Parameter(torch.randn(8, 16, 5, 5).to(memory_format=torch.channels_last))
    grad = torch.randn(8, 16, 5, 5)
    found = []
    for library in (native.library, lambda: None):
        monkeypatch.setattr(native, "library", library)
        backend = SketchBackend([Unit(0, 0, cpu, (weight,))])
        weight.grad = grad
        backend.read_gradients()
        found.append(backend._state[:, 0].clone())
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


@needs_kernel
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_compiles_without_a_warning(compiler: str, tmp_path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} on this machine")
    command = [
        compiler,
        *native._FLAGS,
        "-Wall",
        "-Wextra",
        "-Werror",
        str(native._SOURCE),
        "-o",
        str(tmp_path / "k.so"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def _record(steps: int = 12):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    observer = Observer(model, optimizer, strict=True)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 64)).square().mean().backward()
        optimizer.step()
        observer.step()
    return observer.record()


@needs_kernel
def test_records_agree_with_and_without_the_kernel(monkeypatch) -> None:
    fast = _record()
    monkeypatch.setattr(native, "library", lambda: None)
    slow = _record()
    for name in ("grad_sq", "param_sq", "update_sq", "coherence", "alignment", "overshoot", "distance"):
        torch.testing.assert_close(
            torch.tensor(fast[name]), torch.tensor(slow[name]), rtol=1e-3, atol=1e-6, equal_nan=True
        )


@pytest.fixture
def fresh_library():
    native.library.cache_clear()
    yield
    native.library.cache_clear()


def test_switch_and_missing_compiler_fall_back(monkeypatch, caplog, fresh_library) -> None:
    monkeypatch.setenv("THERMOCLAW_NATIVE", "0")
    assert native.library() is None
    assert len(_record(3)) == 3
    native.library.cache_clear()
    monkeypatch.delenv("THERMOCLAW_NATIVE")
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    with caplog.at_level(logging.INFO, logger="thermoclaw"):
        assert native.library() is None
        assert native.library() is None
    assert caplog.text.count("no C compiler found") == 1


@needs_kernel
def test_broken_compiler_and_unwritable_cache_fall_back(monkeypatch, tmp_path, caplog, fresh_library) -> None:
    monkeypatch.setenv("THERMOCLAW_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", "false")
    with caplog.at_level(logging.INFO, logger="thermoclaw"):
        assert native.library() is None
    assert "could not be compiled" in caplog.text
    native.library.cache_clear()
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("CC")
    monkeypatch.setenv("THERMOCLAW_CACHE", str(tmp_path / "file" / "below"))
    assert native.library() is None
    assert len(_record(3)) == 3


def _in_child(queue) -> None:
    run, _ = _pass()
    torch.set_num_threads(2)
    queue.put(run(_flat(_tensors()), torch.empty(len(SIZES), 1021)).tolist())


@needs_kernel
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_works_in_a_forked_child() -> None:
    run, _ = _pass()
    mine = run(_flat(_tensors()), torch.empty(len(SIZES), 1021)).tolist()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    theirs = queue.get(timeout=60)
    child.join(timeout=60)
    assert theirs == mine
