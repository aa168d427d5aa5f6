"""ThermoScheduler: torch's cosine to the bit without feedback, bounded and repeatable with it, a real LRScheduler."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LRScheduler,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from tests.conftest import MODELS, mlp, seed_everything
from thermoclaw import Observer, ThermoScheduler

CASE = MODELS[0]


def start(lr: Any = 0.1, **settings: Any) -> tuple[nn.Module, Optimizer]:
    seed_everything(1)
    model = mlp(6, 8, 4)
    return model, torch.optim.SGD(model.parameters(), lr=lr, **settings)


def rates_of(optimizer: Optimizer, scheduler: Any, num_steps: int) -> list[list[float]]:
    """The rates of all groups before the first step and after each."""
    rates = [[float(group["lr"]) for group in optimizer.param_groups]]
    for _ in range(num_steps):
        optimizer.step()
        scheduler.step()
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
    return rates


def quiet(optimizer: Any, **settings: Any) -> ThermoScheduler:
    """Without feedback and warm-up."""
    return ThermoScheduler(optimizer, **{"warmup_steps": 0, "adapt_rate": 0.0, **settings})


# -- without feedback: torch's cosine ---------------------------------------------------------------------------------


@pytest.mark.parametrize("eta_min", [0.0, 1e-7, 0.01])
@pytest.mark.parametrize("total", [1, 2, 7, 100, 1000])
def test_without_feedback_it_is_torchs_cosine_to_the_bit(total: int, eta_min: float) -> None:
    _, one = start(lr=0.3)
    _, two = start(lr=0.3)
    got = rates_of(one, quiet(one, total_steps=total, eta_min=eta_min), total)
    want = rates_of(two, CosineAnnealingLR(two, total, eta_min=eta_min), total)
    assert got == want
    assert got[-1][0] == pytest.approx(eta_min, abs=1e-15)


def test_groups_have_their_own_rates_and_cosines() -> None:
    def groups() -> Optimizer:
        model = mlp(6, 8, 4)
        return torch.optim.SGD(
            [{"params": model[0].parameters(), "lr": 1.0}, {"params": model[2].parameters()}], lr=0.01
        )

    one, two = groups(), groups()
    assert rates_of(one, quiet(one, total_steps=30, eta_min=1e-4), 30) == rates_of(
        two, CosineAnnealingLR(two, 30, eta_min=1e-4), 30
    )


def test_a_rate_that_is_a_tensor_stays_one() -> None:
    _, one = start(lr=torch.tensor(0.1, dtype=torch.float64))
    _, two = start(lr=0.1)
    tensor = one.param_groups[0]["lr"]
    got = rates_of(one, quiet(one, total_steps=20, eta_min=0.0), 22)
    np.testing.assert_allclose(got[:21], rates_of(two, CosineAnnealingLR(two, 20), 20), rtol=1e-12, atol=1e-17)
    assert one.param_groups[0]["lr"] is tensor
    assert got[-1][0] <= 1e-15


def test_after_the_end_it_holds_eta_min() -> None:
    """torch's cosine would climb again."""
    _, optimizer = start()
    rates = rates_of(optimizer, quiet(optimizer, total_steps=10, eta_min=1e-3), 40)
    np.testing.assert_allclose(rates[10:], 1e-3, rtol=1e-9)


# -- warm-up ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [1, 5, 9])
def test_warm_up_is_linear_and_the_cosine_follows(warmup: int) -> None:
    _, optimizer = start(lr=0.2)
    rates = [r for (r,) in rates_of(optimizer, quiet(optimizer, total_steps=40, warmup_steps=warmup, eta_min=0.0), 40)]
    ramp = [0.2 * (t + 1) / (warmup + 1) for t in range(warmup)]
    np.testing.assert_allclose(rates[:warmup], ramp, rtol=1e-12)
    cosine = [0.1 * (1 + math.cos(math.pi * t / (40 - warmup))) for t in range(41 - warmup)]
    np.testing.assert_allclose(rates[warmup:], cosine, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(("total", "warmup"), [(100, 10), (1000, 100), (5000, 500), (20_000, 500), (5, 0)])
def test_the_default_warm_up_leaves_room_for_the_rest(total: int, warmup: int) -> None:
    _, optimizer = start()
    assert ThermoScheduler(optimizer, total_steps=total, adapt_rate=0.0).warmup_steps == warmup


def test_a_run_of_a_hundred_steps_leaves_its_warm_up() -> None:
    """The package it succeeds warmed up for 500 steps whatever the length: short runs never reached their rate."""
    _, optimizer = start(lr=0.1)
    rates = [r for (r,) in rates_of(optimizer, ThermoScheduler(optimizer, total_steps=100, adapt_rate=0.0), 100)]
    assert max(rates) == pytest.approx(0.1)
    assert rates.index(max(rates)) == 10
    assert rates[-1] < 1e-6


# -- feedback ---------------------------------------------------------------------------------------------------------


def heated(
    *,
    total: int = 120,
    adapt_rate: float = 0.3,
    factor: float = 5.0,
    start_at: int = 40,
    stop_at: int = 60,
    **settings: Any,
) -> tuple[list[float], list[float], ThermoScheduler]:
    """A run whose gradient is `factor` times larger from one step to another; the rates and φ after each step."""
    seed_everything(1)
    model = nn.Linear(30, 30)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = Observer(model, optimizer, strict=True)
    scheduler = ThermoScheduler(
        optimizer, total_steps=total, warmup_steps=5, adapt_rate=adapt_rate, observer=observer, eta_min=1e-4, **settings
    )
    rates, feedback = [], []
    for t in range(total):
        for p in model.parameters():
            p.grad = torch.randn_like(p) * (factor if start_at <= t < stop_at else 1.0)
        optimizer.step()
        scheduler.step(observer.step())
        rates.append(optimizer.param_groups[0]["lr"])
        feedback.append(scheduler.feedback)
    return rates, feedback, scheduler


def envelope(total: int = 120, warmup: int = 5) -> np.ndarray:
    _, optimizer = start(lr=0.1)
    scheduler = quiet(optimizer, total_steps=total, warmup_steps=warmup, eta_min=1e-4)
    return np.array([r for (r,) in rates_of(optimizer, scheduler, total)][1:])


def test_it_cools_a_run_that_overheats_and_lets_go_again() -> None:
    rates, feedback, _ = heated(factor=3.0, stop_at=44)
    assert feedback[39] > 0.98, "a steady run is left alone"
    assert min(feedback) < 0.7
    coldest = int(np.argmin(feedback))
    assert 40 < coldest < 80
    assert feedback[-1] > 0.9, "and φ finds back to 1 when r has"
    np.testing.assert_allclose(np.array(rates) - 1e-4, np.array(feedback) * (envelope() - 1e-4), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("adapt_rate", [0.05, 0.3, 1.0])
def test_rates_stay_within_their_bounds(adapt_rate: float) -> None:
    """eta_min + 0.25 (envelope − eta_min) ≤ lr ≤ envelope, however hot it gets."""
    rates, feedback, _ = heated(adapt_rate=adapt_rate, factor=1e4, stop_at=200)
    top = envelope()
    assert (np.array(rates) <= top * (1 + 1e-9)).all()
    assert (np.array(rates)[6:] >= (1e-4 + 0.25 * (top - 1e-4))[6:] * (1 - 1e-9)).all()
    assert min(feedback) >= 0.25
    assert max(feedback) <= 1.0
    if adapt_rate >= 0.3:
        assert min(feedback) == 0.25


def test_a_gradient_that_is_not_finite_does_not_break_it() -> None:
    rates, feedback, _ = heated(factor=float("nan"))
    assert np.isfinite(rates).all()
    assert np.isfinite(feedback).all()


def test_runs_repeat_to_the_bit() -> None:
    assert heated()[:2] == heated()[:2]


def test_without_a_rate_of_adaption_nothing_is_observed() -> None:
    _, optimizer = start()
    scheduler = quiet(optimizer, total_steps=10)
    assert scheduler.observer is None
    assert not optimizer._optimizer_step_pre_hooks


def test_it_finds_or_makes_its_observer() -> None:
    model, optimizer = start()
    observer = Observer(model, optimizer)
    assert ThermoScheduler(optimizer, total_steps=10).observer._attachment is observer._attachment
    _, other = start()
    scheduler = ThermoScheduler(other, total_steps=10, warmup_steps=0)
    for p in other.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    other.step()
    scheduler.step()
    assert scheduler.observer.global_step == 1
    assert len(scheduler.observer.record().layers) == 4, "a layer a parameter, as it knows no modules"


# -- spellings --------------------------------------------------------------------------------------------------------


def test_the_spellings_of_the_seed() -> None:
    model, optimizer = start()
    observer = Observer(model, optimizer)
    for scheduler in (
        ThermoScheduler(observer, optimizer, total_steps=50),
        ThermoScheduler(observer, total_steps=50),
        ThermoScheduler(optimizer, total_steps=50, observer=observer),
        ThermoScheduler(optimizer, 50),
    ):
        assert isinstance(scheduler, LRScheduler)
        assert scheduler.optimizer is optimizer
        assert scheduler.total_steps == 50
        assert scheduler.observer._attachment is observer._attachment
    snapshot = observer.step()
    optimizer.step()
    for argument in ((), (None,), (snapshot,), ({"D": 0.1},)):
        before = scheduler.last_epoch
        scheduler.step(*argument)
        assert scheduler.last_epoch == before + 1
    assert scheduler.get_last_lr() == [optimizer.param_groups[0]["lr"]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_steps": 0}, r"total_steps=0: give the number of optimizer steps of the whole run"),
        ({"total_steps": 1.5}, r"total_steps=1\.5"),
        ({"total_steps": 10, "warmup_steps": 10}, r"warmup_steps=10: choose from 0 to total_steps − 1 = 9"),
        ({"total_steps": 10, "warmup_steps": -1}, r"warmup_steps=-1"),
        ({"total_steps": 10, "adapt_rate": 1.5}, r"adapt_rate=1\.5: choose from 0 \(no feedback\) to 1"),
        ({"total_steps": 10, "eta_min": -1.0}, r"eta_min=-1\.0: give a rate of at least 0"),
        ({"total_steps": 10, "eta_min": float("nan")}, r"eta_min=nan"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    _, optimizer = start()
    with pytest.raises(ValueError, match=message):
        ThermoScheduler(optimizer, **settings)
    assert optimizer.param_groups[0]["lr"] == 0.1, "nothing was touched"


def test_what_is_no_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match="ThermoScheduler takes a torch optimizer, not Linear"):
        ThermoScheduler(nn.Linear(2, 2), total_steps=10)


# -- a scheduler among others -----------------------------------------------------------------------------------------


def chained(ours: bool, how: str) -> list[list[float]]:
    """Our cosine, or torch's, in company."""
    _, optimizer = start(lr=0.2)
    cosine = quiet(optimizer, total_steps=40, eta_min=0.0) if ours else CosineAnnealingLR(optimizer, 40)
    if how == "exponential":
        return rates_of(optimizer, ChainedScheduler([cosine, ExponentialLR(optimizer, 0.95)], optimizer), 35)
    if how == "step before":
        return rates_of(optimizer, ChainedScheduler([StepLR(optimizer, 10, gamma=0.5), cosine], optimizer), 35)
    if how == "first in sequence":
        return rates_of(optimizer, SequentialLR(optimizer, [cosine, StepLR(optimizer, 5)], milestones=[20]), 35)
    warm = LambdaLR(optimizer, lambda t: min((t + 1) / 8, 1.0))
    return rates_of(optimizer, SequentialLR(optimizer, [warm, cosine], milestones=[8]), 35)


@pytest.mark.parametrize("how", ["exponential", "step before", "first in sequence", "second in sequence"])
def test_it_keeps_company_as_torchs_cosine_does(how: str) -> None:
    np.testing.assert_allclose(chained(True, how), chained(False, how), rtol=1e-12, atol=1e-17)


def test_a_plateau_scheduler_may_lower_its_rates() -> None:
    _, optimizer = start(lr=0.2)
    scheduler, plateau = quiet(optimizer, total_steps=100), ReduceLROnPlateau(optimizer, factor=0.1, patience=0)
    for t in range(5):
        optimizer.step()
        scheduler.step()
        plateau.step(1.0 + t)
    assert optimizer.param_groups[0]["lr"] < 0.2 * 1e-3


def test_feedback_multiplies_into_company() -> None:
    """With another scheduler on the same rates, the product of all three factors."""
    seed_everything(1)
    model = nn.Linear(30, 30)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ThermoScheduler(optimizer, total_steps=80, warmup_steps=5, adapt_rate=0.3, eta_min=0.0)
    other = ExponentialLR(optimizer, 0.99)
    plain = envelope_of(80, 5)
    for t in range(70):
        for p in model.parameters():
            p.grad = torch.randn_like(p) * (3.0 if t >= 30 else 1.0)
        optimizer.step()
        scheduler.step()
        other.step()
        want = plain[t] * scheduler.feedback * 0.99 ** (t + 1)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(want, rel=1e-9)
    assert scheduler.feedback < 0.9


def envelope_of(total: int, warmup: int) -> list[float]:
    _, optimizer = start(lr=0.1)
    return [
        r for (r,) in rates_of(optimizer, quiet(optimizer, total_steps=total, warmup_steps=warmup, eta_min=0.0), total)
    ][1:]


# -- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 3, 20, 47])
@pytest.mark.parametrize("adapt_rate", [0.0, 0.3])
def test_a_state_goes_there_and_back_in_the_middle_of_a_run(at: int, adapt_rate: float) -> None:
    """A new scheduler that takes over at any step continues as if it had been there from the start."""

    def go(stop: bool) -> list[float]:
        seed_everything(1)
        model = nn.Linear(30, 30)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        observer = Observer(model, optimizer, strict=True)
        settings = {"total_steps": 60, "warmup_steps": 5, "adapt_rate": adapt_rate}
        scheduler = ThermoScheduler(optimizer, observer=observer, **settings)
        rates = []
        for t in range(60):
            if stop and t == at:
                saved = copy.deepcopy(scheduler.state_dict()), copy.deepcopy(optimizer.state_dict())
                scheduler = ThermoScheduler(optimizer, observer=observer, **settings)
                optimizer.load_state_dict(saved[1])
                scheduler.load_state_dict(saved[0])
            for p in model.parameters():
                p.grad = torch.randn_like(p) * (4.0 if t >= 15 else 1.0)
            optimizer.step()
            scheduler.step()
            rates.append(optimizer.param_groups[0]["lr"])
        return rates

    got, want = go(True), go(False)
    assert got == want
    if adapt_rate:
        assert min(a / b for a, b in zip(want[20:50], envelope_of(60, 5)[20:50], strict=True)) < 0.9


def test_a_state_is_plain_data(tmp_path: Any) -> None:
    _, optimizer = start()
    scheduler = ThermoScheduler(optimizer, total_steps=30)
    state = scheduler.state_dict()
    assert "observer" not in state
    assert "optimizer" not in state
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert loaded == state
    scheduler.load_state_dict(loaded)
    assert scheduler.observer is not None


def test_a_resume_in_a_new_process_continues_the_schedule() -> None:
    """Model, optimizer and scheduler from a checkpoint, a new observer: the envelope goes on where it was."""
    _, optimizer = start()
    settings = {"total_steps": 40, "warmup_steps": 4, "adapt_rate": 0.05}
    scheduler = ThermoScheduler(optimizer, **settings)
    straight = rates_of(optimizer, scheduler, 12)
    saved = copy.deepcopy((scheduler.state_dict(), optimizer.state_dict()))
    straight += rates_of(optimizer, scheduler, 20)[1:]
    _, optimizer = start()
    scheduler = ThermoScheduler(optimizer, **settings)
    optimizer.load_state_dict(saved[1])
    scheduler.load_state_dict(saved[0])
    assert rates_of(optimizer, scheduler, 20) == straight[12:]


def test_feedback_goes_along_to_a_new_process() -> None:
    """A new observer knows nothing of the past: φ comes from the state."""
    _, _, hot = heated(factor=100.0, stop_at=200, total=80)
    assert hot.feedback == 0.25
    model, optimizer = start()
    fresh = ThermoScheduler(optimizer, total_steps=80, observer=Observer(model, optimizer))
    assert fresh.feedback == 1.0
    fresh.load_state_dict(hot.state_dict())
    assert (fresh.feedback, fresh.last_epoch, fresh.warmup_steps) == (0.25, 80, 5)
    assert fresh.observer.optimizer is optimizer


def test_last_epoch_resumes_as_torch_does() -> None:
    def go(ours: bool) -> list[list[float]]:
        _, optimizer = start(lr=0.2)
        make = (
            (lambda **k: quiet(optimizer, total_steps=30, eta_min=0.0, **k))
            if ours
            else (lambda **k: CosineAnnealingLR(optimizer, 30, **k))
        )
        first = rates_of(optimizer, make(), 10)
        return first + rates_of(optimizer, make(last_epoch=9), 10)

    np.testing.assert_allclose(go(True), go(False), rtol=1e-12)
