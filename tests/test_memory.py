"""A step allocates next to nothing, keeps no gradient alive, and what is held does not grow with the run."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.conftest import mlp
from thermoclaw import CollapseDetector, EntropySplit, Observer
from thermoclaw.measure.meter import Meter
from thermoclaw.measure.sketched import SketchBackend

KIBI, MEBI = 1 << 10, 1 << 20


class _Allocations(TorchDispatchMode):
    """Sizes of the storages that operations make, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in given:
                self.made.append(x.untyped_storage().nbytes())
        return result


@contextmanager
def allocations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int, int]]]:
    """Of each hook's work: the largest tensor that it made, all of them together, and the peak of Python and NumPy."""
    found: list[tuple[int, int, int]] = []
    with monkeypatch.context() as patch:
        for part in ("before_step", "after_step"):
            original = getattr(Meter, part)

            def watched(self: Meter, *args: Any, _original: Any = original, **kwargs: Any) -> None:
                tracemalloc.start()
                try:
                    with _Allocations() as seen:
                        _original(self, *args, **kwargs)
                    found.append((max(seen.made, default=0), sum(seen.made), tracemalloc.get_traced_memory()[1]))
                finally:
                    tracemalloc.stop()

            patch.setattr(Meter, part, watched)
        yield found


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.01)
    optimizer.step()


LARGE = 1500 * 1400
NUM_BYTES = {torch.float32: 4 * LARGE, torch.bfloat16: 2 * LARGE}


def large(dtype: torch.dtype) -> nn.Module:
    return nn.Sequential(nn.Linear(1500, 1400, bias=False), nn.LayerNorm(1400), nn.Linear(1400, 4)).to(dtype)


@pytest.mark.parametrize("dtype", list(NUM_BYTES))
def test_a_step_makes_no_tensor_of_a_parameters_size(
    dtype: torch.dtype, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = large(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = Observer(model, optimizer, strict=True)
    step(model, optimizer)
    with allocations(monkeypatch) as found:
        for _ in range(10):
            step(model, optimizer)
            observer.step(loss=1.0)
    largest, total, host = (max(column) for column in zip(*found, strict=True))
    assert largest > 0
    assert host > 0
    # the compiled pass needs room for products of sketches alone, torch operations one chunk and a share of sums
    assert largest <= (64 * KIBI if backend == "kernel" else MEBI)
    assert total <= (256 * KIBI if backend == "kernel" else 4 * MEBI)
    assert host <= 512 * KIBI
    assert total < NUM_BYTES[dtype], "together, less than one copy of the layer"


def test_a_copy_of_a_gradient_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the exact mode, which keeps copies, and in a backend that makes one."""
    model = large(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = Observer(model, optimizer, strict=True, mode="exact")
    with allocations(monkeypatch) as found:
        step(model, optimizer)
    assert max(largest for largest, _, _ in found) >= 8 * LARGE
    observer.close()

    original = SketchBackend.read_gradients

    def copies(self: SketchBackend, **given: Any) -> None:
        _ = [p.grad.clone() for unit in self.units for p in unit.params if p.grad is not None]
        original(self, **given)

    monkeypatch.setattr(SketchBackend, "read_gradients", copies)
    observer = Observer(model, optimizer, strict=True)
    with allocations(monkeypatch) as found:
        step(model, optimizer)
    assert max(largest for largest, _, _ in found) >= 4 * LARGE


# -- nothing is kept --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"mode": "exact"}], ids=str)
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_no_gradient_is_kept_alive(kind: str, settings: dict[str, Any], backend: str) -> None:
    """What `zero_grad` lets go of is gone: the memory of gradients is the largest that training can give back."""
    model = nn.Sequential(nn.Embedding(500, 12, sparse=kind == "sparse"), nn.Linear(12, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = Observer(model, optimizer, strict=True, **settings)
    for _ in range(4):
        model(torch.randint(500, (16,))).square().mean().backward()
        grads = [p.grad for p in model.parameters()]
        parts = [[g._values(), g._indices()] if g.is_sparse else [g] for g in grads]
        refs = [StorageWeakRef(x.untyped_storage()) for row in parts for x in row]
        del grads, parts
        optimizer.step()
        observer.step()
        assert not all(ref.expired() for ref in refs)
        optimizer.zero_grad()
        gc.collect()
        assert all(ref.expired() for ref in refs)


def live_bytes() -> int:
    """Bytes of all tensors that Python knows of, each storage once."""
    gc.collect()
    storages = {}
    for x in gc.get_objects():
        if type(x) in (Tensor, nn.Parameter) and x.layout == torch.strided:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
    return sum(storages.values())


def growth(settings: dict[str, Any], each: Callable[[], None] = lambda: None) -> int:
    """Bytes of tensors that a run holds more after 160 steps than after 64."""
    model = mlp(6, 40, 30, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    observer = Observer(model, optimizer, strict=True, history_bytes=0, **settings)
    splitter, detector = EntropySplit(observer), CollapseDetector(observer)
    held = []
    for num_steps in (64, 96):
        for _ in range(num_steps):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 6)).square().mean()
            loss.backward()
            optimizer.step()
            observer.step(loss=loss)
            splitter.step()
            detector.step()
            each()
        held.append(live_bytes())
    return held[1] - held[0]


@pytest.mark.parametrize("settings", [{}, {"mode": "exact"}, {"every": 5}], ids=str)
def test_tensors_that_are_held_do_not_grow_with_the_run(settings: dict[str, Any]) -> None:
    """What Python and NumPy hold is counted in tests/test_buffer.py."""
    assert growth(settings) == 0


def test_one_number_a_step_would_be_seen() -> None:
    hoard: list[Tensor] = []
    assert growth({}, lambda: hoard.append(torch.zeros(1))) == 4 * 96
