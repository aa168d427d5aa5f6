"""Law 1: with and without a measurement, training is the same to the last bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import (
    MODELS,
    OPTIMIZERS,
    PAIRS,
    ModelCase,
    OptimizerCase,
    Outcome,
    assert_bitwise,
    outcome,
    seed_everything,
    train_step,
)
from thermoclaw import CollapseDetector, EntropySplit, Observer

STEPS = 5


class Watch:
    """All consumers on; half of what they return is looked at."""

    def __init__(self, model: nn.Module, optimizer: Any, **settings: Any) -> None:
        self.observer = Observer(model, optimizer, strict=True, **settings)
        self.splitter = EntropySplit(self.observer)
        self.detector = CollapseDetector(model, optimizer)

    def step(self, loss: Any) -> None:
        snapshot, split, ratios = self.observer.step(loss=loss), self.splitter.step(), self.detector.step()
        if self.observer.global_step % 2:
            assert snapshot["layers"]
            assert split.layers
            assert len(ratios)


def run(optimizer_case: OptimizerCase, case: ModelCase, watch: Callable[..., Any] | None, **settings: Any) -> Outcome:
    seed_everything(7)
    model = case.make()
    optimizer = optimizer_case.make(model)
    watcher = watch(model, optimizer, **settings) if watch else None
    losses = []
    for _ in range(STEPS):
        losses.append(train_step(model, optimizer, case, closure=optimizer_case.closure))
        if watcher is not None:
            watcher.step(losses[-1])
    if isinstance(watcher, Watch):
        assert watcher.observer.global_step == STEPS
        assert len(watcher.observer.record()) == -(-STEPS // settings.get("every", 1))
    return outcome(model, optimizer, losses)


@pytest.mark.parametrize(("optimizer_case", "case"), PAIRS, ids=lambda c: c.name)
def test_training_is_bitwise_the_same(optimizer_case: OptimizerCase, case: ModelCase) -> None:
    assert_bitwise(run(optimizer_case, case, Watch), run(optimizer_case, case, None))


@pytest.mark.parametrize("case", MODELS, ids=lambda c: c.name)
@pytest.mark.parametrize("settings", [{"mode": "exact"}, {"sketch_size": 251, "lag": 1}, {"every": 3}], ids=str)
def test_training_is_bitwise_the_same_at_every_setting(case: ModelCase, settings: dict[str, Any]) -> None:
    optimizer_case = next(c for c in OPTIMIZERS if c.name == ("sgd" if "sparse" in case.traits else "adamw"))
    assert_bitwise(run(optimizer_case, case, Watch, **settings), run(optimizer_case, case, None))


class Spoiler:
    """Breaks law 1 in one way."""

    def __init__(self, model: nn.Module, optimizer: Any, *, way: str) -> None:
        self._model, self._optimizer, self._way = model, optimizer, way
        self._last: list[torch.Tensor] = []

    def step(self, loss: Any) -> None:
        p = next(self._model.parameters())
        if self._way == "torch generator":
            torch.rand(1)
        elif self._way == "numpy generator":
            np.random.rand()  # noqa: NPY002
        elif self._way == "python generator":
            random.random()
        elif self._way == "last bit of a parameter":
            with torch.no_grad():
                p.view(-1)[0] = torch.nextafter(p.view(-1)[0], torch.tensor(9.0))
        elif self._way == "optimizer state":
            self._optimizer.state[p]["sketch"] = torch.zeros(1)
        elif self._way == "parameter group":
            self._optimizer.param_groups[0]["name"] = "first"
        elif self._way == "gradient":
            p.grad = None


@pytest.mark.parametrize(
    "way",
    [
        "torch generator",
        "numpy generator",
        "python generator",
        "last bit of a parameter",
        "optimizer state",
        "parameter group",
        "gradient",
    ],
)
def test_the_comparison_can_fail(way: str) -> None:
    optimizer_case = next(c for c in OPTIMIZERS if c.name == "adamw")
    with pytest.raises(AssertionError):
        assert_bitwise(run(optimizer_case, MODELS[0], Spoiler, way=way), run(optimizer_case, MODELS[0], None))


def test_constructing_and_closing_change_nothing() -> None:
    case = MODELS[0]

    def start() -> tuple[nn.Module, Any]:
        seed_everything(7)
        model = case.make()
        return model, next(c for c in OPTIMIZERS if c.name == "adamw").make(model)

    plain = outcome(*start(), [])
    model, optimizer = start()
    observer = Observer(model, optimizer)
    EntropySplit(observer)
    observer.close()
    assert_bitwise(outcome(model, optimizer, []), plain)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_a_checkpoint_taken_while_observed_is_the_same_file(tmp_path: Any) -> None:
    """state_dict, pickle and deepcopy of an observed optimizer carry nothing of the observer."""
    import copy
    import io

    def saved(watch: Any) -> tuple[bytes, Any]:
        seed_everything(7)
        model = MODELS[0].make()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        watcher = watch(model, optimizer) if watch else None
        for _ in range(3):
            loss = train_step(model, optimizer, MODELS[0])
            if watcher:
                watcher.step(loss)
        buffer = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
        return buffer.getvalue(), copy.deepcopy(optimizer)

    with_observer, copied = saved(Watch)
    assert with_observer == saved(None)[0]
    assert not copied._optimizer_step_pre_hooks


@pytest.mark.parametrize("set_to_none", [True, False])
def test_accumulation_clipping_and_a_schedule_are_the_same(set_to_none: bool) -> None:
    case = MODELS[0]

    def go(watched: bool) -> Outcome:
        seed_everything(7)
        model = case.make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
        watcher = Watch(model, optimizer) if watched else None
        losses = []
        for micro in range(12):
            loss = case.loss(model)
            (loss / 2).backward()
            losses.append(loss.detach())
            if micro % 2:
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=set_to_none)
            if watcher:
                watcher.step(loss)
        return outcome(model, optimizer, losses)

    assert_bitwise(go(True), go(False))


@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_with_a_scaler_is_the_same(dtype: torch.dtype, fused: bool, unscale_first: bool) -> None:
    """With overflows, refused steps and a scale that grows: parameters, gradients, state, and the scaler's own."""
    case = MODELS[0]

    def go(watched: bool) -> tuple[Outcome, dict[str, Any]]:
        seed_everything(7)
        model = case.make()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
        watcher = Watch(model, optimizer) if watched else None
        losses = []
        for t in range(8):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=dtype):
                loss = case.loss(model)
            scaler.scale(loss * float("inf") if t in (2, 5) else loss).backward()
            if unscale_first:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.detach())
            if watcher:
                watcher.step(loss)
        if watcher:
            assert len(watcher.observer.record()) == 6
        return outcome(model, optimizer, losses), scaler.state_dict()

    assert_bitwise(go(True), go(False))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_step_is_the_same(backend: str) -> None:
    case = ModelCase("mlp", lambda: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)), MODELS[0].loss)

    def go(watched: bool) -> Outcome:
        torch._dynamo.reset()
        seed_everything(7)
        model = case.make()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        compiled = torch.compile(model, backend=backend)
        watcher = Watch(model, optimizer) if watched else None
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = case.loss(compiled)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            if watcher:
                watcher.step(loss)
        if watcher:
            assert watcher.observer.global_step == 3
        return outcome(model, optimizer, losses)

    assert_bitwise(go(True), go(False))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_a_compiled_optimizer_step_is_the_same_and_is_measured() -> None:
    def go(watched: bool) -> Outcome:
        torch._dynamo.reset()
        seed_everything(7)
        model = MODELS[0].make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        watcher = Watch(model, optimizer) if watched else None
        compiled_step = torch.compile(optimizer.step, backend="eager")
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = MODELS[0].loss(model)
            loss.backward()
            compiled_step()
            losses.append(loss.detach())
            if watcher:
                watcher.step(loss)
        if watcher:
            assert watcher.observer.global_step == 3
        return outcome(model, optimizer, losses)

    assert_bitwise(go(True), go(False))
