"""The compiled CPU pass writes what the torch operations write, or declines."""

from __future__ import annotations

import logging
import multiprocessing
import os

import pytest
import torch

from thermoclaw import Observer
from thermoclaw.measure import native
from thermoclaw.measure.native import NativePass
from thermoclaw.measure.sketch import Sketcher

# exact units, one above, several chunks, several parameters, an empty one
SIZES = [[500], [1021], [1022], [700, 400], [70_000, 3_000, 1], [1_000_000, 7], [2_400_000], [0, 1300]]

needs_kernel = pytest.mark.skipif(native.library() is None, reason="no C compiler on this machine")


def _pass(sizes=SIZES, *, size: int = 1021) -> tuple[NativePass, Sketcher]:
    sketcher = Sketcher(sizes, size=size, device=torch.device("cpu"), dtype=torch.float32)
    return NativePass(sketcher), sketcher


def _tensors(dtype: torch.dtype = torch.float32) -> list[list[torch.Tensor]]:
    random = torch.Generator().manual_seed(0)
    return [[torch.randn(n, generator=random).to(dtype) for n in parts] for parts in SIZES]


def _flat(rows: list[list[torch.Tensor | None]]) -> list[torch.Tensor | None]:
    return [x for row in rows for x in row]


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
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
    exact = torch.stack([x.double().square().sum() for x in _flat(rows)])
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
    rows = _flat(_tensors())
    one, two = torch.empty(len(SIZES), 1021), torch.empty(len(SIZES), 1021)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = run(rows, one)
        torch.set_num_threads(3)
        assert len(run._ranges(3)) > 1
        second = run(rows, two)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, two)
    assert torch.equal(first, second)


@needs_kernel
@pytest.mark.parametrize(
    "other",
    [
        torch.zeros(500, dtype=torch.float64),
        torch.zeros(500, dtype=torch.float16),
        torch.zeros(499),
        torch.zeros(1000)[::2],
    ],
    ids=["double", "half", "short", "strided"],
)
def test_declines_what_it_does_not_know_and_writes_nothing(other: torch.Tensor) -> None:
    run, _ = _pass()
    rows = _flat(_tensors())
    out = torch.full((len(SIZES), 1021), 7.0)
    rows[0] = other
    assert run(rows, out) is None
    assert (out == 7.0).all()


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
