"""Whatever function of the library fails while training runs: it is said once, and the training goes on unchanged.

The functions are not listed: a run is traced, and each function that took part in it is broken in turn.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest
import torch

import thermoclaw
from tests.conftest import MODELS, Outcome, assert_bitwise, mlp, outcome, seed_everything, train_step
from thermoclaw import Observer, diagnose
from thermoclaw.diagnosis import engine

HOME = str(Path(thermoclaw.__file__).parent)
STEPS = 24
# What a user calls and may fail in a user's face: nothing of the training lies below it.
DOORS = {"Observer.step"}
# What catches the errors of all others, and is nothing but that.
DOORS_BELOW = ("before_step", "after_step", "poll", "give_loss", "advance")
GUARDS = {"Failsafe.guard", *(f"Attachment.{name}" for name in DOORS_BELOW)}


def run(*, watch: bool) -> tuple[Outcome, Observer | None]:
    seed_everything(9)
    model = mlp(6, 12, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=5.0)  # so that rules have something to say
    observer = Observer(model, optimizer) if watch else None
    losses = []
    for _ in range(STEPS):
        losses.append(train_step(model, optimizer, MODELS[0]))
        if observer is not None:
            observer.step(loss=losses[-1])
    return outcome(model, optimizer, losses), observer


def _traced() -> set[CodeType]:
    """The code of the library's functions that ran after the observer was made."""
    seen: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(HOME):
            seen.add(frame.f_code)

    seed_everything(9)
    model = mlp(6, 12, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=5.0)
    observer = Observer(model, optimizer)
    sys.setprofile(note)
    try:
        for _ in range(STEPS):
            observer.step(loss=train_step(model, optimizer, MODELS[0]))
    finally:
        sys.setprofile(None)
    return seen


def _functions() -> Iterator[tuple[str, list[tuple[Any, str]], FunctionType]]:
    """Every function and method of the library: its name, the places that hold it, itself."""
    modules = [importlib.import_module("thermoclaw")]
    for info in pkgutil.walk_packages(thermoclaw.__path__, "thermoclaw."):
        if info.name in sys.modules:
            modules.append(sys.modules[info.name])
    places: dict[FunctionType, list[tuple[Any, str]]] = {}
    names: dict[FunctionType, str] = {}
    for module in modules:
        for name, value in list(vars(module).items()):
            if isinstance(value, FunctionType) and value.__module__.startswith("thermoclaw"):
                places.setdefault(value, []).append((module, name))
                names.setdefault(value, f"{value.__module__}.{value.__qualname__}")
            if isinstance(value, type) and value.__module__ == module.__name__:
                for attribute, method in vars(value).items():
                    if isinstance(method, FunctionType):
                        places.setdefault(method, []).append((value, attribute))
                        names.setdefault(method, f"{value.__module__}.{method.__qualname__}")
    for function, where in places.items():
        yield names[function], where, function


def _stages() -> list[tuple[str, list[tuple[Any, str]], FunctionType]]:
    ran = _traced()
    found = [entry for entry in _functions() if entry[2].__code__ in ran]
    return [
        entry
        for entry in found
        if entry[2].__qualname__ not in DOORS | GUARDS and not entry[2].__name__.startswith("__")
    ]


def _break(monkeypatch: pytest.MonkeyPatch, places: list[tuple[Any, str]], function: Callable[..., Any]) -> list[int]:
    calls = [0]

    def broken(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        raise ZeroDivisionError(f"injected into {function.__qualname__}")

    for owner, name in places:
        monkeypatch.setattr(owner, name, broken)
    return calls


def test_whatever_fails_training_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    plain, _ = run(watch=False)
    stages = _stages()
    assert len(stages) > 60, "the trace found next to nothing"
    silent, loud = [], []
    for name, places, function in stages:
        caplog.clear()
        with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING, logger="thermoclaw"):
            patch.setattr(engine, "_told_broken", set())
            seed_everything(9)
            model = mlp(6, 12, 4)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=5.0)
            observer = Observer(model, optimizer)
            calls = _break(patch, places, function)
            losses = []
            try:
                for _ in range(STEPS):
                    losses.append(train_step(model, optimizer, MODELS[0]))
                    observer.step(loss=losses[-1])
            except ZeroDivisionError:
                loud.append(name)
                continue
            got = outcome(model, optimizer, losses)
        assert_bitwise(got, plain)
        told = [r for r in caplog.records if r.levelno >= logging.ERROR]
        if calls[0] and not told:
            silent.append(name)
        said = [r.getMessage() for r in told]
        assert len(set(said)) == len(said), f"{name}: said again and again"
        diagnose(observer)  # what there is can still be read
    assert not loud, f"these stopped the training: {loud}"
    assert not silent, f"these failed and nobody was told: {silent}"
