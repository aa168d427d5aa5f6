"""Cadence: which steps are measured and kept, what that saves, and what a budget chooses.

Legend: N the cadence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import assert_bitwise, assert_same_record, mlp, seed_everything
from thermoclaw import CollapseDetector, EntropySplit, Observer, diagnose
from thermoclaw.measure import parts as parts_module
from thermoclaw.measure.cadence import HEADROOM, LARGEST, WARMUP, Cadence
from thermoclaw.measure.timing import Clock, Timing
from thermoclaw.record import Record

INSTANT = ("sigma", "coherence", "distance", "overshoot", "alignment", "update_sq", "param_sq", "grad_sq", "lr", "loss")
SMOOTHED = ("grad_sq_smooth", "noise", "norm_budget", "r")


def train(
    num_steps: int,
    *,
    optimizer: Callable[..., Any] = torch.optim.AdamW,
    on_step: Callable[[int, Any], None] = lambda step, snapshot: None,
    watched: bool = True,
    **settings: Any,
) -> tuple[nn.Module, Observer | None]:
    seed_everything(1)
    model = mlp(12, 40, 40, 4)
    stepping = optimizer(model.parameters(), lr=3e-3, weight_decay=0.1)
    observer = Observer(model, stepping, strict=True, **settings) if watched else None
    random = torch.Generator().manual_seed(5)
    for step in range(1, num_steps + 1):
        x = torch.randn(32, 12, generator=random)
        loss = nn.functional.cross_entropy(model(x), x[:, :4].argmax(1))
        stepping.zero_grad()
        loss.backward()
        stepping.step()
        if observer is not None:
            on_step(step, observer.step(loss=loss))
    return model, observer


def record_of(num_steps: int, **settings: Any) -> Record:
    _, observer = train(num_steps, **settings)
    assert observer is not None
    return observer.record()


class Counted:
    """Counts what a backend is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gradients = self.parameters = 0
        original = parts_module.make_backend

        def make(*args: Any, **kwargs: Any) -> Any:
            backend = original(*args, **kwargs)
            read_gradients, read_parameters = backend.read_gradients, backend.read_parameters

            def gradients(**given: Any) -> None:
                self.gradients += 1
                read_gradients(**given)

            def parameters(*given: Any, **named: Any) -> None:
                self.parameters += 1
                read_parameters(*given, **named)

            backend.read_gradients, backend.read_parameters = gradients, parameters
            return backend

        monkeypatch.setattr(parts_module, "make_backend", make)


# -- a fixed cadence --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sketch", "exact"])
@pytest.mark.parametrize("every", [2, 3, 4, 5, 6, 16, 33])
def test_a_kept_row_is_that_of_a_run_measured_throughout(every: int, mode: str) -> None:
    full, sparse = record_of(100, mode=mode), record_of(100, every=every, mode=mode)
    assert sparse.steps.tolist() == list(range(1, 101, every))
    for name in INSTANT:
        np.testing.assert_allclose(sparse[name], full[name][::every], rtol=1e-6, atol=1e-12, err_msg=name)
    for name in SMOOTHED:  # over as many rows, which span more steps
        assert np.isfinite(sparse[name][1:]).all(), name
        if name == "norm_budget" and every > 8:
            continue  # it drifts in so short a run
        np.testing.assert_allclose(np.median(sparse[name][1:] / full[name][::every][1:]), 1.0, rtol=0.3, err_msg=name)
    assert sparse.meta["settings"]["every"] == sparse.meta["every"] == every


def test_log_every_is_every() -> None:
    assert_same_record(record_of(30, log_every=6), record_of(30, every=6))


@pytest.mark.parametrize(("every", "measured"), [(1, 96), (4, 96), (8, 1 + 4 * 11 + 3), (32, 1 + 4 * 2 + 3), (96, 4)])
def test_steps_between_are_not_measured(every: int, measured: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    train(96, every=every)
    assert counted.gradients == counted.parameters == measured


def test_a_snapshot_between_rows_is_the_last_complete_one() -> None:
    seen = []
    train(30, every=8, on_step=lambda step, snapshot: seen.append((step, snapshot["step"])))
    assert seen == [(step, (step - 1) // 8 * 8 + 1) for step in range(1, 31)]


def test_detectors_listen_at_any_cadence() -> None:
    seed_everything(0)
    model = mlp(8, 16, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    observer = Observer(model, optimizer, every=8, strict=True)
    splitter, detector = EntropySplit(observer), CollapseDetector(observer)
    for step in range(1, 41):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(torch.randn(16, 8)), torch.zeros(16, 4)).backward()
        optimizer.step()
        observer.step()
        assert splitter.step().step == (step - 1) // 8 * 8 + 1
        assert dict(detector.step()).keys() == {"0", "2"}
    assert observer.global_step == 40
    assert diagnose(observer).healthy in (True, False)


def test_training_is_bitwise_the_same_at_any_cadence() -> None:
    plain, _ = train(40, watched=False)
    for settings in ({"every": 7}, {"budget": 0.01}):
        model, _ = train(40, **settings)
        assert_bitwise(dict(plain.state_dict()), dict(model.state_dict()))


def test_epochs_and_losses_belong_to_their_steps() -> None:
    full, sparse = record_of(60), record_of(60, every=12)
    np.testing.assert_array_equal(sparse.loss, full.loss[::12])


def test_steps_that_a_scaler_refuses_between_rows_are_not_counted() -> None:
    seed_everything(0)
    model = mlp(6, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, fused=True)
    observer = Observer(model, optimizer, every=10, strict=True)
    refused = {3, 4, 12, 21, 27}  # 21 is a call at which a row would have been kept
    for call in range(1, 45):
        optimizer.found_inf = torch.tensor(float(call in refused))  # as a fused optimizer under GradScaler has it
        optimizer.zero_grad()
        model(torch.randn(4, 6)).square().mean().backward()
        optimizer.step()
        observer.step()
    record = observer.record()
    # calls 1, 11, 31, 41 are kept; before them 0, 2, 5 and 5 were refused
    assert record.steps.tolist() == [1, 9, 26, 36]
    assert record.meta["num_skipped"] == 5
    assert observer.global_step == 39


def test_groups_added_between_rows_join_at_the_next() -> None:
    seed_everything(0)
    model = mlp(6, 8, 3)
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.05)
    observer = Observer(model, optimizer, every=8, strict=True)
    for step in range(1, 26):
        if step == 11:
            optimizer.add_param_group({"params": list(model[2].parameters())})
        optimizer.zero_grad()
        model(torch.randn(4, 6)).square().mean().backward()
        optimizer.step()
        observer.step()
    record = observer.record()
    assert record.steps.tolist() == [1, 9, 17, 25]
    assert np.isfinite(record["sigma"][:, 0]).all()
    assert np.isnan(record["sigma"][:2, 1]).all()
    assert np.isfinite(record["coherence"][2:, 1]).all()


# -- a budget ---------------------------------------------------------------------------------------------------------


def run_budget(
    budget: float, *, cost_s: float, step_s: float, idle_s: float = 0.0, calls: int = 400
) -> tuple[Cadence, list[bool]]:
    cadence = Cadence(budget=budget)
    measured = []
    for _ in range(calls):
        if cadence.must_choose:
            cadence.choose(cost_s=cost_s, idle_s=idle_s, step_s=step_s)
        measured.append(cadence.next().measured)
    return cadence, measured


@pytest.mark.parametrize("idle", [0.0, 0.05, 0.2])
@pytest.mark.parametrize(("share", "budget"), [(0.005, 0.01), (0.02, 0.01), (0.3, 0.1), (0.01, 0.003)])
def test_a_budget_is_kept_with_the_smallest_cadence(share: float, budget: float, idle: float) -> None:
    cadence, measured = run_budget(budget, cost_s=share, idle_s=idle * share, step_s=1.0, calls=WARMUP + 4096)
    assert [call for call in range(1, WARMUP + 1) if not measured[call - 1]] == list(range(49, 57))
    after = np.array(measured[WARMUP + 1 :])
    spent = np.where(after, share, idle * share).mean()
    assert spent <= HEADROOM * budget * 1.02
    if cadence.every > 1:
        assert spent >= 0.75 * HEADROOM * budget or cadence.every == 5, "no slower than needed"
    decision = cadence.decision
    assert decision is not None
    assert decision["expected_share"] == pytest.approx(spent, rel=0.05)


@pytest.mark.parametrize(("cost_s", "idle_s"), [(1.0, 0.0), (0.1, 0.1)])
def test_no_cadence_is_slower_than_the_slowest(cost_s: float, idle_s: float) -> None:
    cadence, _ = run_budget(1e-6, cost_s=cost_s, idle_s=idle_s, step_s=1e-3)
    assert cadence.every == LARGEST


def test_a_clock_tells_own_work_from_the_rest() -> None:
    now = [0.0]
    clock = Clock(lambda: now[0])
    for _ in range(11):
        with clock.own_work(lap=True):
            now[0] += 0.25
        now[0] += 2.0
        with clock.own_work():
            now[0] += 0.5
        now[0] += 1.0
    cost_s, step_s = clock.result()
    assert cost_s == pytest.approx(0.75)
    assert step_s == pytest.approx(3.0)
    assert Clock().result() == (0.0, math.inf)


def test_the_choice_stands_in_the_record_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Timing, "result", lambda self: (0.03, 0.001, 1.0))
    record = record_of(200, budget=0.01)
    (event,) = [event for event in record.events if event["kind"] == "cadence"]
    assert record.meta["every"] == event["every"] == 17
    assert event["budget"] == record.meta["settings"]["budget"] == 0.01
    assert event["expected_share"] == pytest.approx((4 * 0.03 + 13 * 0.001) / 17)
    assert record.steps.tolist() == [*range(1, 49), *range(60, 65), *range(81, 201, 17)]
    full = record_of(200)
    late = record.steps > 64
    for name in INSTANT:
        np.testing.assert_allclose(record[name], full[name][record.steps - 1], rtol=1e-6, atol=1e-12, err_msg=name)
    assert np.isfinite(record["r"][late]).all()


def test_a_real_budget_is_measured_and_chosen() -> None:
    record = record_of(100, budget=0.5)
    (event,) = [event for event in record.events if event["kind"] == "cadence"]
    assert event["cost_s"] > event["idle_s"] > 0
    assert event["step_s"] > 0
    assert event["every"] == record.meta["every"] >= 1


@pytest.mark.parametrize("budget", [0, 1, -0.1, 2, "1%", True])
def test_a_budget_that_is_none_is_refused(budget: Any) -> None:
    model = mlp(2, 2)
    with pytest.raises(ValueError, match="share of a step"):
        Observer(model, torch.optim.SGD(model.parameters(), lr=0.1), budget=budget)


def test_a_budget_and_a_cadence_exclude_each_other() -> None:
    model = mlp(2, 2)
    with pytest.raises(ValueError, match="chooses the cadence itself"):
        Observer(model, torch.optim.SGD(model.parameters(), lr=0.1), budget=0.01, every=4)
