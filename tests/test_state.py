"""A run that is stopped and goes on from a state is, to the last bit, the run that was never stopped."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.conftest import MODELS, MUON, assert_bitwise, mlp
from tests.stopping import WIDE, Job, Run, assert_same_run, classify, stopped
from thermoclaw.buffer import DeviceRing
from thermoclaw.measure.meter import Meter
from thermoclaw.measure.native import library
from thermoclaw.measure.timing import Clock, Timing
from thermoclaw.state import StateError

SGD = Job(lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01))
MATRICES = Job(lambda model: MUON([p for p in model.parameters() if p.dim() == 2], lr=0.01))
GROUPS = Job(lambda model: _two_groups(model, torch.optim.AdamW, weight_decay=0.1))  # more units than layers
JOBS = {"sgd": SGD, "adamw": Job(), "groups": GROUPS, **({"muon": MATRICES} if MUON else {})}
STOPS = ((1,), (7,), (8,), (9,), (64,), (3, 30))

# -- the same record --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sketch", "exact"])
@pytest.mark.parametrize("name", JOBS)
def test_a_stopped_run_is_the_whole_run(name: str, mode: str, backend: str) -> None:
    job = replace(JOBS[name], settings={"mode": mode, "sketch_size": 251})
    want = Run(job).go(70)
    assert len(want.observer.record()) == 70
    for stops in STOPS:
        assert_same_run(stopped(job, stops, 70), want)


@pytest.mark.parametrize("weights_first", [True, False])
def test_weights_may_be_loaded_before_or_after(weights_first: bool) -> None:
    assert_same_run(stopped(SGD, (11,), 30, weights_first=weights_first), Run(SGD).go(30))


@pytest.mark.parametrize(
    "settings",
    [{"every": 2}, {"every": 4}, {"every": 5}, {"every": 13}, {"lag": 1}, {"lag": 5}, {"sigma_window_size": 4}],
    ids=str,
)
def test_cadence_and_lag_go_on(settings: dict[str, Any]) -> None:
    job = replace(SGD, settings=settings)
    want = Run(job).go(60)
    for stops in ((1,), (2,), (8,), (13,), (14,), (5, 40)):
        assert_same_run(stopped(job, stops, 60), want)


def test_a_thinned_history_goes_on_thinning() -> None:
    job = replace(SGD, settings={"history_bytes": 0})
    want = Run(job).go(420)
    assert len(want.observer.record()) <= 128
    assert want.observer._attachment.meter.intake.history.stride > 2
    for stops in ((127,), (128,), (129,), (200,), (137, 300)):
        assert_same_run(stopped(job, stops, 420), want)


@pytest.mark.parametrize("stop", [10, 30, 50, 63, 64, 65, 90])
def test_a_budget_is_chosen_for_once(stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Timing, "result", lambda self: (0.02, 0.0, 1.0))
    job = replace(SGD, settings={"budget": 0.01})
    want = Run(job).go(140)
    assert want.observer.record().meta["every"] > 4
    assert_same_run(stopped(job, (stop,), 140), want)


@pytest.mark.parametrize("replayable", [False, True])
@pytest.mark.parametrize("stop", [0, 1, 7, 8, 13, 16, 21])
def test_a_ring_goes_on_in_the_same_blocks(stop: int, replayable: bool) -> None:
    def ring() -> DeviceRing:
        device = torch.device("cpu")
        return DeviceRing((1,), block=8, device=device, dtype=torch.float64, replayable=replayable)

    def push(into: DeviceRing, start: int, end: int) -> list[Any]:
        found = []
        for row in range(start, end):
            into.next_row().fill_(row)
            into.advance()
            into.start_copies(row + 1)
            rows = into.take(into.due(row + 1) - into.taken())
            found.append((into.due(row + 1), into._copied, rows.ravel().tolist()))
        return found

    whole, before, after = ring(), ring(), ring()
    push(whole, 0, stop)
    push(before, 0, stop)
    whole.take(whole.pending())  # as asking for a state does
    after.continue_from(stop)
    assert push(after, stop, 40) == push(whole, stop, 40)
    assert after.last_row().item() == 39.0


def test_what_was_timed_before_the_stop_counts() -> None:
    now = [0.0]
    clocks = [Clock(lambda: now[0]) for _ in range(3)]
    whole, first, second = clocks

    def step(*timed: Clock, own: float, rest: float) -> None:
        for clock in timed:
            with clock.own_work(lap=True):
                now[0] += own / len(timed)
        now[0] += rest

    for own in (1.0, 2.0, 4.0):
        step(first, own=own, rest=10.0)
    second.load_state_dict(first.state_dict())
    now[0] += 1e6  # between two processes
    assert second.result() == first.result() == (1.5, 10.0)
    for own in (3.0, 5.0):
        step(second, own=own, rest=20.0)
    assert second.result() == ((1.0 + 2.0 + 3.0) / 3, (10.0 + 10.0 + 20.0) / 3)
    whole.load_state_dict(whole.state_dict())
    assert whole.result() == (0.0, float("inf"))


def test_a_budget_is_chosen_with_real_times() -> None:
    run = stopped(replace(SGD, settings={"budget": 0.5}), (20, 52), 80)
    decision = run.observer.record().events[0]
    assert decision["kind"] == "cadence"
    assert 0 < decision["cost_s"] < decision["step_s"] + decision["cost_s"] < 1.0


@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_every_kind_of_parameter_goes_on(case: Any) -> None:
    def loss(model: nn.Module, step: int) -> torch.Tensor:
        torch.manual_seed(step)
        return case.loss(model)

    job = Job(lambda model: torch.optim.SGD(model.parameters(), lr=0.05), case.make, loss)
    for mode in ("sketch", "exact"):
        job = replace(job, settings={"mode": mode, "sketch_size": 251})
        assert_same_run(stopped(job, (9,), 20), Run(job).go(20))


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_loss_scaler_refused_stay_refused(fused: bool) -> None:
    for every in (1, 6):
        job = Job(
            lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused),
            scaler=True,
            overflow_at=(1, 6, 9, 10, 17, 29),
            settings={"every": every},
        )
        want = Run(job).go(40)
        assert want.observer.global_step == 34
        for stops in ((1,), (5,), (6,), (9,), (10,), (17, 18)):
            assert_same_run(stopped(job, stops, 40), want)


def test_dead_units_and_attention_are_counted_on() -> None:
    """Silent rows, and the direction of the power iteration, are what probes remember."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 24), nn.Linear(24, 4)
            self.attn = nn.ModuleDict({"q_proj": nn.Linear(6, 6), "k_proj": nn.Linear(6, 6)})
            with torch.no_grad():
                self.up.bias[:9] = -100.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores = self.attn["q_proj"](x) @ self.attn["k_proj"](x).t()
            return self.down(functional.relu(self.up(scores.softmax(-1) @ x)))

    job = replace(SGD, make=Net)
    want = Run(job).go(90)
    record = want.observer.record()
    assert np.nanmax(record["dead_rows"]) > 0.3
    assert np.isfinite(record["attention_gain"]).any()
    for stops in ((2,), (9,), (45,), (80,)):
        assert_same_run(stopped(job, stops, 90), want)


def _nothing(run: Run, step: int) -> None:
    pass


def test_steps_too_small_for_sketches_stay_unknown() -> None:
    def optimizer(model: nn.Module) -> Any:
        return _two_groups(model, lr=1e-6)

    def sometimes(run: Run, step: int) -> None:
        for group in run.optimizer.param_groups:
            group["lr"] = 1e-6 if step % 5 else 0.1

    job = Job(optimizer, lambda: mlp(6, 60, 60, 60, 4), settings={"sketch_size": 251}, before=sometimes)
    want = Run(job).go(30)
    assert np.isnan(want.observer.record()["overshoot"][2:]).any()
    assert np.isfinite(want.observer.record()["overshoot"][2:]).any()
    for stop in (7, 9, 10, 11):
        assert_same_run(stopped(job, (stop,), 30), want)


def test_a_layer_that_joined_late_keeps_its_place() -> None:
    def thaw(run: Run, step: int) -> None:
        if step == 12:
            run.optimizer.add_param_group({"params": list(run.model[0].parameters()), "lr": 0.01})

    def optimizer(model: nn.Module) -> Any:
        return torch.optim.SGD(list(model.parameters())[2:], lr=0.05, momentum=0.9)

    def with_both(model: nn.Module) -> Any:
        found = optimizer(model)
        found.add_param_group({"params": list(model[0].parameters()), "lr": 0.01})
        return found

    for mode in ("sketch", "exact"):
        job = Job(optimizer, before=thaw, settings={"mode": mode, "history_bytes": 50_000})
        want = Run(job).go(200)
        assert want.observer.record().layer_names == ["2", "4", "0"]
        assert_same_run(stopped(job, (5,), 200), want)
        for stop in (12, 13, 40):
            got = Run(replace(job, optimizer=with_both), Run(job).go(stop).save())
            assert_same_run(got.go(200), want)
        between = Run(job).go(11)
        thaw(between, 12)
        assert_same_run(Run(replace(job, optimizer=with_both, before=_nothing), between.save()).go(200), want)


# -- in between -------------------------------------------------------------------------------------------------------


def test_losses_of_micro_batches_are_averaged_over_the_stop() -> None:
    def accumulate(*, stop: bool, as_number: bool) -> Run:
        run = Run(SGD)
        for step in range(1, 13):
            run.optimizer.zero_grad()
            for part in range(3):
                loss = classify(run.model, 10 * step + part)
                loss.backward()
                if part < 2:
                    run.observer.step(loss=loss.item() if as_number else loss)
            if stop and step == 7:
                grads = [p.grad for p in run.model.parameters()]
                run = Run(SGD, run.save())
                for p, grad in zip(run.model.parameters(), grads, strict=True):
                    p.grad = grad
            run.optimizer.step()
            run.observer.step(loss=loss.item() if as_number else loss)
            if stop and step == 9:
                run = Run(SGD, run.save())
        return run

    for as_number in (False, True):
        assert_same_run(accumulate(stop=True, as_number=as_number), accumulate(stop=False, as_number=as_number))


def test_a_loss_may_come_after_the_stop() -> None:
    run = Run(SGD).go(8)
    run.optimizer.zero_grad()
    loss = classify(run.model, 9)
    loss.backward()
    run.optimizer.step()
    run.at = 9
    again = Run(SGD, run.save())
    again.observer.step(loss=loss)
    assert_same_run(again.go(30), Run(SGD).go(30))


def test_epochs_go_on() -> None:
    def run(*, stop: bool) -> Run:
        run = Run(SGD)
        for step in range(1, 31):
            run.go(step)
            if step % 10 == 0:
                run.observer.epoch_end(val_loss=1.0 / step, val_acc=torch.tensor(0.5))
            if stop and step in (10, 14):
                run = Run(SGD, run.save())
        return run

    got, want = run(stop=True), run(stop=False)
    assert got.observer.epoch_history == want.observer.epoch_history
    assert [entry["epoch"] for entry in got.observer.epoch_history] == [1, 2, 3]
    np.testing.assert_array_equal(got.observer.record()["epoch"], want.observer.record()["epoch"])


@pytest.mark.parametrize("settings", [{}, {"mode": "exact"}, {"every": 6}, {"lag": 3}], ids=str)
def test_asking_for_it_changes_nothing(settings: dict[str, Any]) -> None:
    job = replace(SGD, settings=settings)
    asking = replace(job, before=lambda run, step: run.observer.state_dict())
    assert_same_run(Run(asking).go(70), Run(job).go(70))


def test_a_state_before_the_first_step_is_the_start() -> None:
    assert_same_run(stopped(SGD, (0,), 20), Run(SGD).go(20))


def test_loading_twice_counts_the_last_time() -> None:
    early, late = Run(SGD).go(5).save(), Run(SGD).go(9).save()
    run = Run(SGD, early)
    for name in ("training", "observer"):
        run._load(name, torch.load(io.BytesIO(late), weights_only=True))
    assert_same_run(run.go(20), Run(SGD).go(20))


def test_a_parameter_that_nobody_trains_is_told_of_all_the_same() -> None:
    """Loading weights touches every parameter, which is not the doing of another optimizer."""
    job = Job(lambda model: torch.optim.SGD(list(model.parameters())[2:], lr=0.05))
    want = Run(job).go(30)
    assert want.observer.record().meta["unoptimized"] == ["0.weight", "0.bias"]
    for weights_first in (True, False):
        for stop in (1, 10):
            assert_same_run(stopped(job, (stop,), 30, weights_first=weights_first), want)


def test_a_parameter_that_somebody_else_moved_once_stays_his() -> None:
    def move(run: Run, step: int) -> None:
        if step == 5:
            with torch.no_grad():
                run.model[0].weight.mul_(0.5)

    job = Job(lambda model: torch.optim.SGD(list(model.parameters())[2:], lr=0.05), before=move)
    want = Run(job).go(30)
    assert want.observer.record().meta["unoptimized"] == ["0.bias"]
    assert_same_run(stopped(job, (10,), 30), want)


class Deaf(torch.optim.SGD):
    """An optimizer whose hooks do not fire."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.step = lambda *_: torch.optim.SGD.step.__wrapped__(self)  # type: ignore[method-assign]


@pytest.mark.parametrize("stop", [1, 2, 9])
def test_an_optimizer_whose_hooks_do_not_fire_is_polled_on(stop: int) -> None:
    job = Job(lambda model: Deaf(model.parameters(), lr=0.05, momentum=0.9))
    want = Run(job).go(30)
    assert len(want.observer.record()) == 29
    if stop == 1:  # not known by then
        assert len(stopped(job, (stop,), 30).observer.record()) == 28
    else:
        assert_same_run(stopped(job, (stop,), 30), want)


# -- alarms -----------------------------------------------------------------------------------------------------------


def _jump(run: Run, step: int) -> None:
    if step == 40:
        for group in run.optimizer.param_groups:
            group["lr"] = 3.0


def _blast(run: Run, step: int) -> None:
    if step == 42:
        for group in run.optimizer.param_groups:
            group["lr"] = 1000.0


FAILING = {
    "decay": Job(lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5.0)),
    "rate": Job(lambda model: torch.optim.AdamW(model.parameters(), lr=1.0)),
    "jump": replace(SGD, before=_jump),
    "blast": replace(SGD, before=_blast),  # looked at between two regular looks
}


@cache
def failing(name: str) -> Run:
    return Run(FAILING[name]).go(90)


@pytest.mark.parametrize("name", FAILING)
def test_alarms_are_raised_once_and_at_the_same_step(name: str) -> None:
    want = failing(name)
    assert want.told
    raised = want.observer.alarms[0].raised_step
    stops = (1, raised // 2, *(raised + d for d in (-9, -8, -3, -1, 0, 1)), 80)
    for stop in sorted({stop for stop in stops if stop > 0}):
        before = Run(FAILING[name]).go(stop)
        after = Run(FAILING[name], before.save()).go(90)
        assert_same_run(after, want)
        assert before.told + after.told == want.told, f"stopped at {stop}"


def test_rules_look_at_the_same_steps_of_a_long_run() -> None:
    """They look more rarely then, and so it matters when."""

    def jump(run: Run, step: int) -> None:
        for group in run.optimizer.param_groups:
            group["lr"] = 3.0 if step >= 261 else 0.05

    job = replace(SGD, before=jump)
    want = Run(job).go(340)
    assert want.observer.alarms[0].raised_step == 288
    for stop in (270, 283):
        assert_same_run(stopped(job, (stop,), 340), want)


def test_remedies_that_were_noted_count_on() -> None:
    """Rules ask for evidence from after a remedy, and raise the same alarm again then."""

    def note(run: Run, step: int) -> None:
        if step == 33:
            run.observer.note_event("remedy", finding="weight_decay_too_high", change={"text": "nothing", "at": (1, 2)})

    job = replace(FAILING["decay"], before=note)
    want = Run(job).go(90)
    assert want.told.count("weight_decay_too_high") == 2
    for stop in (32, 33, 36, 48):
        got = stopped(job, (stop,), 90)
        assert [alarm.raised_step for alarm in got.observer.alarms] == [a.raised_step for a in want.observer.alarms]


# -- what does not fit ------------------------------------------------------------------------------------------------


@cache
def _saved() -> bytes:
    return Run(replace(SGD, settings={"sketch_size": 251})).go(20).save()


def state() -> dict[str, Any]:
    """The state of a small run after 20 steps."""
    found: dict[str, Any] = torch.load(io.BytesIO(_saved()), weights_only=True)
    return found["observer"]


def fresh(**settings: Any) -> Run:
    return Run(replace(SGD, settings={"sketch_size": 251, **settings}))


@cache
def unharmed() -> Run:
    return fresh().go(12)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mode": "exact"}, "mode='sketch', and this one has mode='exact'"),
        ({"sketch_size": 509}, r"Observer\(model, optimizer, sketch_size=251\)"),
        ({"every": 4, "sigma_window_size": 8}, "every=1, sigma_window_size=200, and this one has every=4"),
        ({"lag": 4}, "lag=8"),
    ],
)
def test_other_settings_are_named(settings: dict[str, Any], told: str) -> None:
    run = fresh(**settings)
    with pytest.raises(StateError, match=told):
        run.observer.load_state_dict(state())
    assert_same_run(run.go(12), fresh(**settings).go(12))


def _wrapped(model: nn.Module) -> nn.Module:
    return nn.Sequential(model)


OTHERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "shape": (lambda: mlp(6, 30, 40, 4), "0 has 280 parameters there and 210 here, 2 has"),
    "same size": (lambda: nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 30), nn.Tanh(), Turned()), "shapes"),
    "name": (lambda: _wrapped(mlp(*WIDE)), "this one lacks 0, 2, 4 and the state lacks 0.0, 0.2, 0.4"),
    "fewer": (lambda: mlp(6, 40, 30), "this one lacks 4"),
    "more": (lambda: mlp(*WIDE, 4, 4, 4, 4), r"the state lacks 6, 8, 10"),
}


class Turned(nn.Module):
    """As many numbers as Linear(30, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(30, 4)), nn.Parameter(torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


def _of_ones(model: nn.Module, step: int) -> torch.Tensor:
    return model(torch.ones(2, 6)).square().sum()


@pytest.mark.parametrize("name", OTHERS)
def test_another_model_is_named_and_the_observer_stays_usable(name: str) -> None:
    make, told = OTHERS[name]
    job = replace(SGD, make=make, settings={"sketch_size": 251}, loss=_of_ones)
    run = Run(job)
    with pytest.raises(StateError, match=told):
        run.observer.load_state_dict(state())
    assert_same_run(run.go(12), Run(job).go(12))


def test_other_groups_and_another_memory_format_are_named() -> None:
    run = Run(replace(SGD, settings={"sketch_size": 251}, optimizer=_two_groups))
    with pytest.raises(StateError, match=r"make 3 parts of its layers, and 6 here"):
        run.observer.load_state_dict(state())
    conv = MODELS[1]
    job = Job(make=conv.make, loss=lambda model, step: conv.loss(model))
    saved = Run(job).go(2).save()
    other = Run(replace(job, make=lambda: conv.make().to(memory_format=torch.contiguous_format)))
    with pytest.raises(
        StateError, match=r"layer '0', whose parameters lie otherwise in memory \(channels_last or not\)"
    ):
        other.observer.load_state_dict(torch.load(io.BytesIO(saved))["observer"])


def _two_groups(model: nn.Module, kind: Any = torch.optim.SGD, *, lr: float = 0.01, **settings: Any) -> Any:
    params = list(model.parameters())
    return kind([{"params": params[::2]}, {"params": params[1::2], "weight_decay": 0.0}], lr=lr, **settings)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, "no state of thermoclaw.Observer, but 'NoneType'"),
        ({}, "no state of thermoclaw.Observer"),
        ({"format": "thermoclaw.Guard"}, "but 'thermoclaw.Guard'"),
        ({"format": "thermoclaw.Observer"}, "it lacks 'schema_version'"),
        (
            {"format": "thermoclaw.Observer", "schema_version": 99, "thermoclaw_version": "9.1"},
            "upgrade to 9.1 or newer",
        ),
    ],
    ids=str,
)
def test_what_is_no_state_is_refused(given: Any, told: str) -> None:
    with pytest.raises(StateError, match=told):
        fresh().observer.load_state_dict(given)


def test_a_state_comes_before_the_first_step() -> None:
    run = fresh().go(1)
    with pytest.raises(RuntimeError, match=r"load_state_dict\(\) comes before the first step"):
        run.observer.load_state_dict(state())
    run = fresh()
    run.observer.load_state_dict(state())
    with pytest.raises(RuntimeError, match=r"resume\(\) comes before the first step"):
        run.observer.resume(step=20)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested data."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, held in value.items():
            yield from _paths(held, (*path, key))
    elif isinstance(value, list):
        for i in {0, len(value) - 1} if value else ():
            yield from _paths(value[i], (*path, i))


def _spoil(whole: Any, path: tuple[Any, ...], how: str) -> None:
    *way, last = path
    for key in way:
        whole = whole[key]
    old = whole[last]
    if how == "gone":
        del whole[last]
    elif how == "junk":
        whole[last] = "junk"
    elif how == "nothing":
        whole[last] = None
    elif how == "negative":
        whole[last] = -1
    elif how == "longer":
        whole[last] = torch.cat([old, old]) if isinstance(old, torch.Tensor) and old.dim() else [old] * 3


@pytest.mark.parametrize("how", ["gone", "junk", "nothing", "negative", "longer"])
def test_a_damaged_state_is_refused_or_harmless(how: str) -> None:
    """Wherever it is damaged: an error that says so and an observer as before, or one that goes on without trouble."""
    refused = 0
    for path in _paths(state()):
        spoiled = state()
        _spoil(spoiled, path, how)
        run = fresh()
        try:
            run.observer.load_state_dict(spoiled)
        except StateError:
            refused += 1
            assert run.observer.global_step == 0
            assert_same_run(run.go(12), unharmed())
        else:
            may_lack = path[-1] in ("thermoclaw_version", "budget", "history_bytes") or isinstance(path[-1], int)
            assert how != "gone" or may_lack, path
            run.go(12)
    assert refused > 60


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("events",), "nothing", "'events' cannot be read"),
        (("events",), '[{"kind": "remedy"}]', "its events lack their steps"),
        (("events",), '[{"kind": "alarm", "step": 3, "finding": {}}]', "the state is damaged"),
        (("losses",), [torch.zeros(2)], "the state is damaged"),
        (("losses",), ["much"], "the state is damaged"),
        (("meter", "cadence", "number"), 10**30, "not a number from 0"),
        (("meter", "cadence", "number"), 7, "it counts 7 steps, and its last one is 20"),
        (("meter", "cadence", "every"), 3, "'every' is 3"),
        (("meter", "call"), [1, 2], "the state is damaged"),
        (("meter", "intake", "last_step"), 19, "its history goes to step 20"),
        (("meter", "intake", "history", "steps"), torch.arange(20).flip(0), "in disorder"),
        (("meter", "intake", "history", "capacity"), 10**9, "not a number from 0 to 4096"),
        (("meter", "intake", "derivation", "smoother", "series"), ["other"], r"it smooths \['other'\]"),
    ],
    ids=str,
)
def test_what_would_fail_later_is_refused_at_once(path: tuple[str, ...], value: Any, told: str) -> None:
    spoiled = state()
    place = spoiled["attachment"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    run = fresh()
    with pytest.raises(StateError, match=told):
        run.observer.load_state_dict(spoiled)
    assert_same_run(run.go(12), unharmed())


def test_a_failed_observer_says_so_in_its_state(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(SGD)
    run.observer._attachment.strict = False
    run.go(5)
    run.observer._attachment.meter.after_step = lambda: 1 / 0  # type: ignore[method-assign]
    with caplog.at_level(logging.CRITICAL):
        run.go(9)
    found = run.observer.state_dict()
    again = Run(SGD)
    with pytest.raises(StateError, match=r"measuring had failed before this state was saved.*observer.resume"):
        again.observer.load_state_dict(found)
    assert again.observer.resume(run.observer.record(), step=9)
    assert again.go(3).observer.global_step == 12


def test_an_error_in_making_a_state_stops_no_training(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(SGD).go(5)
    monkeypatch.setattr(Meter, "state_dict", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.observer.state_dict()
    run.observer._attachment.strict = False
    with caplog.at_level(logging.ERROR, "thermoclaw"):
        found = run.observer.state_dict()
    assert caplog.text.count("there is no state to go on from, only the record") == 1
    assert found["attachment"]["failed"]
    assert_same_run(run.go(20), Run(SGD).go(20))


# -- what it holds ----------------------------------------------------------------------------------------------------


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for held in value.values():
            yield from _leaves(held)
    elif isinstance(value, list):
        for held in value:
            yield from _leaves(held)
    else:
        yield value


def test_a_state_is_plain_data_of_its_own() -> None:
    run = Run(SGD).go(10)
    found = run.observer.state_dict()
    copy = torch.load(io.BytesIO(run.save()), weights_only=True)["observer"]
    assert {type(leaf) for leaf in _leaves(found)} <= {torch.Tensor, int, float, str, bool, type(None)}
    tensors = [leaf for leaf in _leaves(found) if isinstance(leaf, torch.Tensor)]
    assert all(x.device.type == "cpu" and not x.requires_grad for x in tensors)
    run.go(30)
    assert_bitwise(found, copy, "state")


def num_bytes(found: Any) -> int:
    return sum(x.numel() * x.element_size() for x in _leaves(found) if isinstance(x, torch.Tensor))


def test_a_state_is_small_and_does_not_grow() -> None:
    job = replace(SGD, make=lambda: mlp(64, 200, 200, 10), settings={"history_bytes": 0})
    job = replace(job, loss=lambda model, step: model(torch.full((2, 64), 0.1 * step)).square().mean())
    run = Run(job).go(150)
    early = run.observer.state_dict()
    late = run.go(900).observer.state_dict()
    parts = early["attachment"]["meter"]["parts"]
    assert parts["memory"].numel() == 6 * 3 * 1021, "six sketches a layer"
    history = num_bytes(late["attachment"]["meter"]["intake"]["history"])
    assert num_bytes(late) - history <= 6 * 3 * 1021 * 4 + 20_000
    assert num_bytes(late) <= num_bytes(early) * 1.2


def test_small_layers_take_little() -> None:
    parts = Run(SGD).go(3).observer.state_dict()["attachment"]["meter"]["parts"]
    assert parts["memory"].numel() == 6 * sum(min(p, 1021) for p in (6 * 40 + 40, 40 * 30 + 30, 30 * 4 + 4))


def test_the_page_goes_on_from_its_own_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "resuming.md").read_text(encoding="utf-8")
    block = page.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    code, found = compile(block, "resuming.md", "exec"), {}
    for _ in range(2):
        exec(code, found := {"__name__": "__main__"})
    got = found["observer"].record()
    assert got.steps.tolist() == list(range(1, 101))
    assert np.isfinite(got["coherence"][1:]).all()
    assert "100 steps" in capsys.readouterr().out


@pytest.mark.skipif(library() is None, reason="no C compiler on this machine")
def test_a_state_fits_the_other_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    from thermoclaw.measure import native

    saved = Run(SGD).go(15).save()
    want = Run(SGD, saved).go(40).observer.record()
    monkeypatch.setattr(native, "library", lambda: None)
    got = Run(SGD, saved).go(40).observer.record()
    for name in ("coherence", "alignment", "distance", "r", "noise", "overshoot"):
        np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-5, err_msg=name)
