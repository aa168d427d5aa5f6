"""The same run twice is the same record to the last bit, on any number of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import MODELS, OPTIMIZERS, assert_bitwise, seed_everything, train_step
from thermoclaw import CollapseDetector, EntropySplit, Observer, Record, diagnose
from thermoclaw.measure.meter import Meter


def assert_identical(got: Record, want: Record) -> None:
    """Stored columns and all that follows from them, bit by bit."""
    assert got.layers == want.layers
    assert got.events == want.events
    assert got.meta == want.meta
    for name in ("steps", "layer_values", "run_values"):
        assert_bitwise(getattr(got, name), getattr(want, name), name)
    for name in ("r", "D", "R_ie_total", "eq_frac", "temperature"):
        assert_bitwise(np.asarray(got[name]), np.asarray(want[name]), name)


@pytest.mark.parametrize("settings", [{}, {"mode": "exact"}, {"every": 6}], ids=str)
@pytest.mark.parametrize("case", MODELS, ids=lambda c: c.name)
def test_the_same_run_twice_is_the_same_record(case: Any, settings: dict[str, Any]) -> None:
    def go() -> Observer:
        seed_everything(7)
        model = case.make()
        optimizer_case = next(c for c in OPTIMIZERS if c.name == ("sgd" if "sparse" in case.traits else "adamw"))
        optimizer = optimizer_case.make(model)
        observer = Observer(model, optimizer, strict=True, **settings)
        splitter, detector = EntropySplit(observer), CollapseDetector(observer)
        for _ in range(30):
            observer.step(loss=train_step(model, optimizer, case))
            splitter.step()
            detector.step()
        return observer

    one, two = go(), go()
    assert_identical(one.record(), two.record())
    assert str(diagnose(one)) == str(diagnose(two))


class Large(nn.Module):
    """Layers of many chunks that threads share between them, and one smaller than a sketch."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.wide = nn.Linear(1300, 1000, dtype=dtype)
        self.deep = nn.Linear(1000, 1200, dtype=dtype)
        self.norm = nn.LayerNorm(300, dtype=dtype)


def measured(threads: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> Record:
    """Training on one thread, so that it is the same; measuring on several."""
    seed_everything(1)
    model = Large(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    observer = Observer(model, optimizer, strict=True)
    with monkeypatch.context() as patch:
        for part in ("before_step", "after_step"):
            original = getattr(Meter, part)

            def on_threads(self: Meter, *args: Any, _original: Any = original, **kwargs: Any) -> None:
                torch.set_num_threads(threads)
                try:
                    _original(self, *args, **kwargs)
                finally:
                    torch.set_num_threads(1)

            patch.setattr(Meter, part, on_threads)
        random = torch.Generator().manual_seed(2)
        for _ in range(4):
            for p in model.parameters():
                noise: Tensor = torch.randn(p.shape, generator=random)
                p.grad = noise.to(dtype)
            optimizer.step()
            observer.step(loss=1.0)
    return observer.record()


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("kernel", torch.float32), ("kernel", torch.bfloat16), ("torch", torch.float32)],
    indirect=["backend"],
)
def test_the_number_of_threads_changes_nothing(
    dtype: torch.dtype, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = measured(1, dtype, monkeypatch)
    assert np.isfinite(want["coherence"][1:]).all()
    for threads in (2, 3):
        assert_identical(measured(threads, dtype, monkeypatch), want)
