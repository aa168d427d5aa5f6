"""Bad input: one clear message each, nothing lost, and training goes on wherever it can."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import MODELS, mlp, train_step
from thermoclaw import (
    CollapseDetector,
    EntropySplit,
    Observer,
    Record,
    RecordError,
    ThermoScheduler,
    diagnose,
    preflight,
)

CASE = MODELS[0]


def pair() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    model = mlp(6, 8, 4)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def trained(num_steps: int = 12, **settings: Any) -> Observer:
    model, optimizer = pair()
    observer = Observer(model, optimizer, **settings)
    for _ in range(num_steps):
        observer.step(loss=train_step(model, optimizer, CASE))
    return observer


# -- model and optimizer ----------------------------------------------------------------------------------------------

TAKERS: list[Callable[[Any, Any], Any]] = [Observer, EntropySplit, CollapseDetector, preflight]


@pytest.mark.parametrize("take", TAKERS)
def test_the_wrong_model_for_the_optimizer(take: Callable[[Any, Any], Any]) -> None:
    _, optimizer = pair()
    other, _ = pair()
    with pytest.raises(ValueError, match="model and optimizer share no parameter: pass the model whose parameters"):
        take(other, optimizer)
    assert not optimizer._optimizer_step_pre_hooks, "nothing was attached"


@pytest.mark.parametrize("take", TAKERS)
def test_a_model_without_parameters(take: Callable[[Any, Any], Any]) -> None:
    _, optimizer = pair()
    with pytest.raises(ValueError, match="model and optimizer share no parameter"):
        take(nn.ReLU(), optimizer)


@pytest.mark.parametrize("take", TAKERS)
def test_an_optimizer_without_parameters(take: Callable[[Any, Any], Any]) -> None:
    empty = torch.optim.SGD([nn.Parameter(torch.zeros(0))], lr=0.1)
    with pytest.raises(
        ValueError, match=r"the optimizer holds no parameters with elements: build it from model\.param"
    ):
        take(nn.Linear(2, 2), empty)


@pytest.mark.parametrize("take", TAKERS)
def test_arguments_in_the_wrong_order(take: Callable[[Any, Any], Any]) -> None:
    model, optimizer = pair()
    with pytest.raises(
        TypeError, match=r"the first argument is the model \(an nn\.Module, or a list of them\), not AdamW"
    ):
        take(optimizer, model)


@pytest.mark.parametrize("take", TAKERS)
@pytest.mark.parametrize("wrong", [None, "adam", 3, torch.nn.Linear(2, 2)], ids=["None", "str", "int", "Linear"])
def test_what_is_no_optimizer(take: Callable[[Any, Any], Any], wrong: Any) -> None:
    model, _ = pair()
    if wrong is None and take in (EntropySplit, CollapseDetector):
        name = take.__name__  # type: ignore[attr-defined]
        with pytest.raises(
            TypeError, match=rf"{name} takes an Observer, or a model and its optimizer: {name}\(observer\)"
        ):
            take(model, wrong)
        return
    with pytest.raises(TypeError, match=rf"the second argument is the optimizer .* not {type(wrong).__name__}"):
        take(model, wrong)


@pytest.mark.parametrize("wrong", [None, [], "model", [1], [nn.Linear(2, 2), None]], ids=str)
def test_what_is_no_model(wrong: Any) -> None:
    _, optimizer = pair()
    with pytest.raises(TypeError, match="the first argument is the model"):
        Observer(wrong, optimizer)


def test_parameters_on_the_meta_device() -> None:
    model = nn.Linear(3, 3, device="meta")
    with pytest.raises(ValueError, match="after the model is on its device"):
        Observer(model, torch.optim.SGD(model.parameters(), lr=0.1))


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "fast"}, "mode='fast': choose one of sketch, exact"),
        ({"sketch_size": 1024}, "sketch_size=1024: choose one of 251, 509, 1021, 2039, 4093"),
        ({"every": 0}, "every=0: give a whole number of at least 1"),
        ({"every": 2.5}, r"every=2\.5: give a whole number"),
        ({"log_every": 0}, "every=0: give a whole number of at least 1"),
        ({"lag": 0}, "lag=0: give a whole number of at least 1"),
        ({"lag": True}, "lag=True: give a whole number"),
        ({"sigma_window_size": 1}, "sigma_window_size=1: give a whole number of at least 4"),
        ({"history_bytes": -1}, "history_bytes=-1: give a whole number of at least 0"),
        ({"alpha": 2.0}, r"alpha=2\.0 is not supported: σ\* is the plain running median now.*drop alpha"),
        ({"calib_start": 10}, r"calib_start=10 is not supported: the baseline is running from the first step; drop"),
    ],
    ids=str,
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    model, optimizer = pair()
    with pytest.raises(ValueError, match=message):
        Observer(model, optimizer, **settings)
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("make", [Observer, EntropySplit, CollapseDetector, ThermoScheduler])
def test_an_unknown_keyword_is_named(make: Callable[..., Any]) -> None:
    model, optimizer = pair()
    arguments = (optimizer,) if make is ThermoScheduler else (model, optimizer)
    with pytest.raises(TypeError, match="unexpected keyword argument 'log_evry'"):
        make(*arguments, log_evry=3)
    assert not optimizer._optimizer_step_pre_hooks


def test_the_seeds_keywords_are_taken() -> None:
    model, optimizer = pair()
    observer = Observer(model, optimizer, log_every=2, alpha=1.2, sigma_window_size=100, calib_start=200)
    EntropySplit(model, optimizer, observer, noise_window=10, min_steps_for_noise_rec=50)
    CollapseDetector(model, optimizer, window=20)
    ThermoScheduler(optimizer, total_steps=100, warmup_steps=5, eta_min=1e-6, adapt_rate=0.1)
    assert observer._attachment.meter.settings.every == 2
    assert observer._attachment.meter.settings.baseline_steps == 100
    positional = Observer(*pair(), 5, 1.2, 100, 200)
    assert positional._attachment.meter.settings.every == 5
    diagnose(observer, splitter=None, collapse_detector=None, equilibrium_band=0.2)


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (EntropySplit, {"noise_window": 0}, "noise_window=0: give a whole number of at least 1"),
        (EntropySplit, {"min_steps_for_noise_rec": "x"}, "min_steps_for_noise_rec='x'"),
        (CollapseDetector, {"window": 0}, "window=0: give a whole number of at least 1"),
        (CollapseDetector, {"window": 2.0}, r"window=2\.0"),
    ],
    ids=str,
)
def test_detector_settings_out_of_range(make: Callable[..., Any], settings: dict[str, Any], message: str) -> None:
    model, optimizer = pair()
    with pytest.raises(ValueError, match=message):
        make(model, optimizer, **settings)


@pytest.mark.parametrize("band", [0.0, 1.0, -0.1, 7.0, float("nan")])
def test_an_equilibrium_band_out_of_range(band: float) -> None:
    with pytest.raises(ValueError, match=r"equilibrium_band=.*: give a number between 0 and 1, such as 0\.15"):
        diagnose(trained(2), equilibrium_band=band)


@pytest.mark.parametrize("wrong", [None, 3, nn.Linear(2, 2), {"record": 1}], ids=["None", "int", "Linear", "dict"])
def test_what_cannot_be_diagnosed(wrong: Any) -> None:
    with pytest.raises(
        TypeError, match=rf"diagnose takes an Observer, a Record or the path .* not {type(wrong).__name__}"
    ):
        diagnose(wrong)


# -- in the loop ------------------------------------------------------------------------------------------------------


def test_steps_without_backward(caplog: pytest.LogCaptureFixture) -> None:
    """No gradients at all: rows are written, and the diagnosis says what is missing."""
    model, optimizer = pair()
    observer = Observer(model, optimizer, strict=True)
    for _ in range(40):
        optimizer.step()
        observer.step(loss=1.0)
    record = observer.record()
    assert len(record) == 40
    assert (record["has_grad"] == 0).all()
    assert (record["sigma"] == 0).all()
    assert np.isfinite(record["R_ie"]).all()
    report = diagnose(observer)
    assert not report.healthy
    assert report.findings[0].code == "no_gradient"
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_observer_step_without_optimizer_step() -> None:
    model, optimizer = pair()
    observer = Observer(model, optimizer, strict=True)
    for _ in range(20):
        CASE.loss(model).backward()
        observer.step(loss=1.0)
    assert len(observer.record()) == 0
    assert observer.global_step == 0
    assert diagnose(observer).healthy
    assert "no optimizer step was measured yet" in str(diagnose(observer))
    optimizer.step()
    observer.step(loss=2.0)
    assert len(observer.record()) == 1


@pytest.mark.parametrize("what", ["loss", "gradient", "weights"])
def test_nan_is_recorded_and_named(what: str) -> None:
    model, optimizer = pair()
    observer = Observer(model, optimizer, strict=True)
    for t in range(30):
        loss = train_step(model, optimizer, CASE)
        if t == 20 and what == "weights":
            with torch.no_grad():
                model[0].weight[0, 0] = float("nan")
        if t == 20 and what == "gradient":
            model[0].weight.grad[0, 0] = float("nan")
            optimizer.step()
        observer.step(loss=float("nan") if what == "loss" and t >= 20 else loss)
    record = observer.record()
    assert np.isfinite(record["param_sq"][:19]).all()
    assert np.isfinite(record["R_ie_total"][:19]).all()
    codes = {finding.code: finding for finding in diagnose(observer).findings}
    if what != "loss":
        assert "non_finite" in codes
        assert 20 <= codes["non_finite"].first_step <= 23
    else:
        assert np.isnan(record.loss[20:]).all()
        assert np.isfinite(record.loss[:20]).all()


def test_a_closed_observer_goes_on_answering() -> None:
    observer = trained()
    observer.close()
    before = len(observer.record())
    train_step(observer.model, observer.optimizer, CASE)
    snapshot = observer.step(loss=1.0)
    assert snapshot["step"] == before == len(observer.record())
    assert diagnose(observer).raw_stats["num_steps"] == before


def test_a_detector_on_a_closed_observer_answers_too() -> None:
    observer = trained()
    splitter, detector = EntropySplit(observer), CollapseDetector(observer)
    observer.close()
    train_step(observer.model, observer.optimizer, CASE)
    assert splitter.step().step == 12
    assert len(detector.step()) == 2
    assert not detector.is_collapsing


# -- files ------------------------------------------------------------------------------------------------------------

WRITERS: dict[str, Callable[[Observer, Path], Any]] = {
    "save": lambda observer, path: observer.save(path / "run.npz"),
    "to_csv": lambda observer, path: observer.to_csv(path / "run.csv"),
    "split": lambda observer, path: EntropySplit(observer).to_csv(path / "split.csv"),
    "report": lambda observer, path: diagnose(observer).save(path / "report.txt"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_folder_that_cannot_be_written(writer: str, tmp_path: Path) -> None:
    """The message names the file, nothing is lost, and the same call works elsewhere."""
    observer = trained()
    blocked = tmp_path / "taken"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(
        OSError, match=r"cannot write .*taken.*: choose|cannot write .*taken.*; choose a folder that can"
    ):
        WRITERS[writer](observer, blocked)
    assert len(observer.record()) == 12
    train_step(observer.model, observer.optimizer, CASE)
    assert len(observer.record()) == 13
    WRITERS[writer](observer, tmp_path / "made" / "for it")
    assert len(list((tmp_path / "made" / "for it").iterdir())) == 1


@pytest.mark.parametrize("read", [Record.load, diagnose])
def test_records_that_are_none(read: Callable[[Any], Any], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no record at .*nothing\.npz"):
        read(tmp_path / "nothing.npz")
    path = tmp_path / "notes.npz"
    path.write_text("to do")
    with pytest.raises(RecordError, match=r"notes\.npz is not a readable thermoclaw record .*: use another copy"):
        read(str(path))
    good = trained().save(tmp_path / "good.npz")
    good.write_bytes(good.read_bytes()[:-200])
    with pytest.raises(RecordError, match="it may be damaged or cut short"):
        read(good)


# -- messages ---------------------------------------------------------------------------------------------------------


def test_every_message_says_what_to_do() -> None:
    """What was wrong, the value, the remedy: each message above ends in an instruction."""
    model, optimizer = pair()
    messages = []
    for attempt in (
        lambda: Observer(nn.ReLU(), optimizer),
        lambda: Observer(optimizer, model),
        lambda: Observer(model, None),
        lambda: Observer(model, optimizer, mode="fast"),
        lambda: Observer(model, optimizer, lag=0),
        lambda: Observer(model, optimizer, alpha=3.0),
        lambda: EntropySplit(model),
        lambda: ThermoScheduler(optimizer, total_steps=0),
        lambda: diagnose(3),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            attempt()
        messages.append(str(caught.value))
    instruction = r"pass the|Observer\(model, optimizer\)|choose|give|drop|takes an Observer"
    assert [m for m in messages if not re.search(instruction, m)] == []
    assert [m for m in messages if "\n" in m] == []
