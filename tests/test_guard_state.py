"""A guard, a collapse detector and a schedule that go on from a state do what they would have done without the stop."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from tests.conftest import assert_bitwise, seed_everything
from thermoclaw import CollapseDetector, Finding, Guard, Observer, Remedy, ThermoScheduler
from thermoclaw.guard import TRIAL_ROWS
from thermoclaw.state import StateError


def found(remedy: Remedy, *, first_step: int = 1) -> Finding:
    words = dict.fromkeys(("title", "seen", "meaning", "advice", "source"), "x")
    return Finding("weight_decay_too_high", "HIGH", **words, first_step=first_step, raised_step=8, remedy=remedy)


class Run:
    """A training under a guard whose alarms the test raises, in one process or in several."""

    def __init__(
        self, saved: bytes | None = None, *, guard_first: bool = False, decay: float = 1.0, **guard: Any
    ) -> None:
        seed_everything(3)
        self.at = 0
        self.model = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=decay, betas=(0.9, 0.99))
        self.schedule = LambdaLR(self.optimizer, lambda step: 1.0 / (1 + 0.01 * step))
        self.observer = Observer(self.model, self.optimizer)
        self.guard = Guard(self.observer, scheduler=self.schedule, **{"cooldown": 10, **guard})
        if saved is not None:
            self.load(torch.load(io.BytesIO(saved), weights_only=True), guard_first=guard_first)

    def load(self, state: dict[str, Any], *, guard_first: bool) -> None:
        parts: list[tuple[str, Any]] = [
            ("model", self.model), ("optimizer", self.optimizer), ("schedule", self.schedule),
            ("observer", self.observer), ("guard", self.guard),
        ]  # fmt: skip
        for name, part in reversed(parts) if guard_first else parts:
            part.load_state_dict(state[name])
        self.at = state["at"]

    def save(self, **settings: Any) -> bytes:
        names = ("model", "optimizer", "schedule", "observer")
        state = {name: getattr(self, name).state_dict() for name in names}
        file = io.BytesIO()
        torch.save({**state, "guard": self.guard.state_dict(**settings), "at": self.at}, file)
        return file.getvalue()

    def go(self, until: int, alarms: dict[int, Finding], noisy: int | None = None) -> Run:
        while self.at < until:
            self.at += 1
            self.optimizer.zero_grad()
            random = torch.Generator().manual_seed(self.at)
            loss = (self.model(torch.randn(8, 16, generator=random)) - 1.0).square().mean()
            loss.backward()
            self.optimizer.step()
            self.observer.step(loss=loss if noisy is None or self.at <= noisy else loss + 100.0)
            self.schedule.step()
            if self.at in alarms:
                for tell in self.observer._attachment.on_alarm:
                    tell(alarms[self.at])
        return self


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thermoclaw.attachment.live_findings", lambda *_, **__: [])


def told(run: Run) -> Any:
    acts = [(a.step, a.finding, a.applied and a.applied.to_json(), a.is_undone, a.rewound_to) for a in run.guard.acts]
    groups = [{k: v for k, v in group.items() if k != "params"} for group in run.optimizer.param_groups]
    sizes = [[p.shape for p in group["params"]] for group in run.optimizer.param_groups]
    return acts, groups, sizes, run.observer.record().events, [why for _, why in run.guard.refused]


def assert_same(got: Run, want: Run) -> None:
    assert told(got) == told(want)
    assert got.observer.rows_on_host() == want.observer.rows_on_host()
    assert_bitwise(dict(got.model.state_dict()), dict(want.model.state_dict()), "weights")
    assert_bitwise(got.optimizer.state_dict(), want.optimizer.state_dict(), "optimizer")
    assert_bitwise(got.observer.record().layer_values, want.observer.record().layer_values, "record")


REMEDIES = {
    "decay": Remedy("weight_decay", 0.01, 1.0),
    "rate": Remedy("lr", 1e-4, 1e-3),
    "momentum": Remedy("momentum", 0.5, 0.9),
    "beta2": Remedy("beta2", 0.9, 0.99),
    "clip": Remedy("clip", 0.05, 1.0),
}


@pytest.mark.parametrize("guard_first", [False, True])
@pytest.mark.parametrize("name", REMEDIES)
def test_what_was_changed_stays_and_counts(name: str, guard_first: bool) -> None:
    """The second alarm comes within the cool-down, the third after it."""
    alarms = {12: found(REMEDIES[name]), 19: found(replace(REMEDIES[name], knob="eps", value=1e-3, was=1e-8))}
    alarms[30] = found(Remedy("eps", 1e-4, 1e-8), first_step=25)
    want = Run().go(45, alarms)
    assert [act.step for act in want.guard.acts] == [12, 30]
    for stop in (5, 11, 12, 13, 21, 29, 33):
        assert_same(Run(Run().go(stop, alarms).save(), guard_first=guard_first).go(45, alarms), want)


@pytest.mark.parametrize("name", REMEDIES)
def test_what_was_changed_before_the_stop_can_be_taken_back_after_it(name: str) -> None:
    alarms = {12: found(REMEDIES[name])}
    runs = [Run().go(40, alarms), Run(Run().go(20, alarms).save()).go(40, alarms)]
    for run in runs:
        run.guard.undo()
        run.guard.undo()
    want, got = runs
    for one, two in zip(got.optimizer.param_groups, want.optimizer.param_groups, strict=True):
        for key in ("lr", "initial_lr", "weight_decay", "eps"):
            assert one[key] == pytest.approx(two[key], rel=1e-12)
        assert one["betas"] == two["betas"]
    assert got.schedule.base_lrs == pytest.approx(want.schedule.base_lrs, rel=1e-12)
    for run in runs:
        run.go(45, {})
    torch.testing.assert_close(dict(got.model.state_dict()), dict(want.model.state_dict()))
    assert [event["undo"] for event in got.observer.record().events] == [False, True]


def test_split_groups_are_split_again_before_the_optimizers_state_is_loaded() -> None:
    alarms = {12: found(Remedy("lr", 1e-4, 1e-3, params=("0.weight", "0.bias")))}
    want = Run(split=True).go(40, alarms)
    assert len(want.optimizer.param_groups) == 2
    for stop in (11, 12, 25):
        got = Run(Run(split=True).go(stop, alarms).save(), guard_first=True, split=True).go(40, alarms)
        assert_same(got, want)
    got.guard.undo()
    assert [len(group["params"]) for group in got.optimizer.param_groups] == [4]


@pytest.mark.parametrize("stop", [25, 45, 59, 60, 61, 75])
@pytest.mark.parametrize("noisy", [None, 40])
def test_a_trial_goes_on(stop: int, noisy: int | None) -> None:
    assert TRIAL_ROWS == 20
    alarms = {40: found(REMEDIES["decay"])}
    want = Run(trial=True, rollback=False, cooldown=24).go(90, alarms, noisy)
    assert want.guard.acts[0].is_undone == (noisy is not None)
    got = Run(
        Run(trial=True, rollback=False, cooldown=24).go(stop, alarms, noisy).save(),
        trial=True,
        rollback=False,
        cooldown=24,
    )
    assert_same(got.go(90, alarms, noisy), want)


def test_without_copies_there_is_nothing_to_go_back_to_at_first() -> None:
    alarms = {22: found(REMEDIES["decay"]), 40: found(Remedy("eps", 1e-4, 1e-8), first_step=33)}
    saved = Run().go(20, alarms)
    assert len(saved.save()) > 1.5 * len(saved.save(copies=False))
    got = Run(saved.save(copies=False)).go(50, alarms)
    assert [act.rewound_to for act in got.guard.acts] == [21, 32], "of the first step after the stop, not of the start"


def test_a_dry_run_and_a_closed_guard_go_on() -> None:
    alarms = {12: found(REMEDIES["decay"]), 30: found(REMEDIES["decay"])}
    want = Run(dry_run=True).go(40, alarms)
    assert_same(Run(Run(dry_run=True).go(20, alarms).save(), dry_run=True).go(40, alarms), want)
    run = Run().go(5, alarms)
    run.guard.close()
    again = Run(run.save()).go(40, alarms)
    assert again.guard.closed
    assert again.guard.acts == []


def spoil(state: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**state, **fields}


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        (lambda state: None, "no state of thermoclaw.Guard"),
        (lambda state: spoil(state, acts="[{}]"), "cannot be loaded"),
        (lambda state: spoil(state, acts="nothing"), "'acts' cannot be read"),
        (lambda state: spoil(state, on_trial=5), "cannot be loaded"),
        (lambda state: spoil(state, copies=[{"step": 1, "tensors": [], "state": []}]), "of another model"),
        (lambda state: spoil(state, schema_version=7), "schema version 7"),
    ],
)
def test_a_damaged_state_is_refused_and_leaves_no_trace(spoiled: Callable[[Any], Any], message: str) -> None:
    alarms = {12: found(REMEDIES["clip"])}
    state = torch.load(io.BytesIO(Run().go(20, alarms).save()), weights_only=True)["guard"]
    run, want = Run(), Run()
    with pytest.raises(StateError, match=message):
        run.guard.load_state_dict(spoiled(state))
    assert_same(run.go(20, {15: found(REMEDIES["decay"])}), want.go(20, {15: found(REMEDIES["decay"])}))
    with pytest.raises(RuntimeError, match="before the first act"):
        run.guard.load_state_dict(state)


# -- the collapse detector --------------------------------------------------------------------------------------------


def collapse(stops: tuple[int, ...]) -> tuple[list[int], list[Finding]]:
    """Steps at which a collapse was told of, in as many processes as there are stops, and one more."""
    seed_everything(5)
    fired: list[int] = []
    saved: bytes | None = None
    findings: list[Finding] = []
    for start, end in zip((0, *stops), (*stops, 160), strict=True):
        model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=5.0)
        detector = CollapseDetector(model, optimizer)
        if saved is not None:
            state = torch.load(io.BytesIO(saved), weights_only=True)
            for name, part in (("m", model), ("o", optimizer), ("t", detector.observer), ("d", detector)):
                part.load_state_dict(state[name])
        for step in range(start + 1, end + 1):
            optimizer.zero_grad()
            x = torch.randn(4, 16, generator=torch.Generator().manual_seed(step))
            (model(x).square().mean() * 1e-3).backward()
            optimizer.step()
            detector.step()
            if detector.is_collapsing:
                fired.append(step)
        file = io.BytesIO()
        states = (model.state_dict(), optimizer.state_dict(), detector.observer.state_dict(), detector.state_dict())
        torch.save(dict(zip("motd", states, strict=True)), file)
        saved, findings = file.getvalue(), detector.findings
    return fired, findings


def test_a_collapse_is_told_of_once_at_the_same_step() -> None:
    want = collapse(())
    assert len(want[0]) > 2
    first = want[0][0]
    for stops in ((1,), (first - 1,), (first,), (first + 1,), (first + 5, want[0][1])):
        assert collapse(stops) == want


# -- the scheduler ----------------------------------------------------------------------------------------------------


def cooled(stop: int | None, *, observer_first: bool = True) -> list[float]:
    """Rates of a run whose gradients grow, so that the schedule cools it."""
    rates: list[float] = []
    state: dict[str, Any] = {}
    for start, end in ((0, stop), (stop, 80)) if stop else ((0, 80),):
        seed_everything(5)
        model = nn.Linear(16, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        observer = Observer(model, optimizer)
        scheduler = ThermoScheduler(optimizer, total_steps=100, warmup_steps=5, observer=observer)
        parts = [("m", model), ("o", optimizer), ("t", observer), ("s", scheduler)]
        for name, part in (parts if observer_first else reversed(parts)) if state else ():
            part.load_state_dict(state[name])
        for step in range(start + 1, end + 1):
            optimizer.zero_grad()
            (model(torch.ones(4, 16)).sum() * 1.1**step).backward()
            optimizer.step()
            observer.step()
            scheduler.step()
            rates.append(optimizer.param_groups[0]["lr"])
        state = {name: part.state_dict() for name, part in parts}
    assert scheduler.feedback < 0.9
    return rates


@pytest.mark.parametrize("observer_first", [True, False])
def test_a_schedule_that_listens_goes_on(observer_first: bool) -> None:
    want = cooled(None)
    for stop in (7, 8, 9, 40):
        assert cooled(stop, observer_first=observer_first) == want


def test_a_schedule_beside_an_observer_that_counts_anew_listens_at_once() -> None:
    state: dict[str, Any] = {}
    feedback: list[float] = []
    for _ in range(2):
        seed_everything(5)
        model = nn.Linear(16, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scheduler = ThermoScheduler(optimizer, total_steps=400, warmup_steps=5)
        if state:
            scheduler.load_state_dict(state)
        for step in range(1, 41):
            optimizer.zero_grad()
            (model(torch.ones(4, 16)).sum() * 1.1**step).backward()
            optimizer.step()
            scheduler.step()
        state = scheduler.state_dict()
        feedback.append(scheduler.feedback)
    assert feedback[1] < 0.95 * feedback[0]
