"""The guard: silent runs stay what they are, alarms are answered once, and everything can be taken back."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from tests.conftest import assert_bitwise, outcome, seed_everything
from thermoclaw import Finding, Guard, Observer, Record, Remedy, diagnose
from thermoclaw.diagnosis import remedies


def found(remedy: Remedy | None = None, *, confidence: str = "HIGH", code: str = "weight_decay_too_high") -> Finding:
    return Finding(
        code=code,
        confidence=confidence,
        title="decay erodes the layers",
        seen="It was seen.",
        meaning="It means.",
        advice="Do it.",
        source="a test",
        first_step=1,
        raised_step=8,
        remedy=remedy,
    )


@pytest.fixture(autouse=True)
def by_hand(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the test raises alarms, unless it asks for the rules."""
    if "rules" not in request.fixturenames:
        monkeypatch.setattr("thermoclaw.attachment.live_findings", lambda *_, **__: [])


@pytest.fixture
def rules() -> None:
    """The real rules raise alarms."""


LOWER = Remedy("weight_decay", 0.01, 1.0)


class Run:
    """A small training with an observer whose alarms the test raises by hand."""

    def __init__(self, *, decay: float = 1.0, lr: float = 1e-3, strict: bool = False, target: float = 1.0) -> None:
        seed_everything(3)
        self.model = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9, weight_decay=decay)
        self.schedule = LambdaLR(self.optimizer, lambda step: 1.0)
        self.observer = Observer(self.model, self.optimizer, strict=strict)
        self.target = target
        self.losses: list[Any] = []

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.optimizer.zero_grad()
            loss = (self.model(torch.randn(8, 16)) - self.target).square().mean()
            loss.backward()
            self.optimizer.step()
            self.observer.step(loss=loss)
            self.schedule.step()
            self.losses.append(loss.detach())

    def alarm(self, finding: Finding) -> None:
        attachment = self.observer._attachment
        for tell in attachment.on_alarm:
            attachment.tell(tell, finding, given_to="on_alarm")

    @property
    def decay(self) -> float:
        return self.optimizer.param_groups[0]["weight_decay"]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for event in self.observer.record().events if event["kind"] == "remedy"]


@pytest.mark.usefixtures("rules")
def test_a_run_that_decays_to_death_is_saved_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    left, right = Run(decay=1.0, lr=0.01), Run(decay=1.0, lr=0.01)
    guard = Guard(right.observer, scheduler=right.schedule, rollback=False)
    with caplog.at_level(logging.WARNING, "thermoclaw"):
        left.steps(200)
        caplog.clear()
        right.steps(200)
    (act,) = guard.acts
    assert act.finding.code == "weight_decay_too_high"
    assert right.decay < 0.1
    assert float(right.losses[-1]) < 0.5 * float(left.losses[-1])
    lines = [r.message for r in caplog.records if "remedy" in r.message]
    assert len(lines) == 1
    assert "because of weight_decay_too_high [HIGH]" in lines[0]
    assert f"(Guard, step {act.step})" in lines[0]
    right.observer.save(tmp_path / "run.npz")
    for source in (right.observer, tmp_path / "run.npz"):
        assert f"Guard changed weight_decay: 1 → {right.decay:.4g} in group 0, after step {act.step}" in str(
            diagnose(source)
        )


def test_an_act_is_an_event_of_the_run_with_plain_data(tmp_path: Path) -> None:
    run = Run()
    guard = Guard(run.observer)
    run.steps(5)
    run.alarm(found(LOWER))
    run.steps(5)
    guard.undo()
    run.observer.save(tmp_path / "run.npz")
    done, undone = (e for e in Record.load(tmp_path / "run.npz").events if e["kind"] == "remedy")
    assert (done["step"], done["finding"], done["by"], done["undo"]) == (5, "weight_decay_too_high", "Guard", False)
    assert done["change"]["changes"] == [{"group": 0, "knob": "weight_decay", "was": 1.0, "now": 0.01}]
    assert (undone["step"], undone["undo"]) == (10, True)
    assert "Guard took back" in diagnose(run.observer).summary


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize(
    "settings",
    [{}, {"trial": True, "at_least": "MEDIUM"}, {"rollback": True, "cooldown": 7}],
    ids=["plain", "trial", "rollback"],
)
def test_a_healthy_run_is_the_same_to_the_bit(settings: dict[str, Any]) -> None:
    def run(*, guarded: bool) -> Any:
        made = Run(decay=0.01)
        guard = Guard(made.observer, scheduler=made.schedule, **settings) if guarded else None
        made.steps(150)
        assert guard is None or not guard.acts
        return outcome(made.model, made.optimizer, made.losses)

    assert_bitwise(run(guarded=True), run(guarded=False))


def test_a_dry_run_changes_nothing_and_says_what_it_would_do(caplog: pytest.LogCaptureFixture) -> None:
    run = Run()
    with caplog.at_level(logging.WARNING, "thermoclaw"):
        guard = Guard(run.observer, dry_run=True)
        run.steps(5)
        run.alarm(found(LOWER))
    assert run.decay == 1.0
    assert [(act.step, act.applied) for act in guard.acts] == [(5, None)]
    assert not run.events
    assert "would act at step 5: set weight_decay from 1 to 0.01" in caplog.text
    guard.undo()


# -- when it acts ---------------------------------------------------------------------------------------------------


def test_a_cool_down_follows_an_act_and_the_limit_ends_them() -> None:
    run = Run()
    guard = Guard(run.observer, cooldown=10, limit=2)
    told = []
    for step in range(40):
        run.steps(1)
        before = run.decay
        run.alarm(found(Remedy("weight_decay", before / 10, before)))
        if run.decay != before:
            told.append(step + 1)
    assert told == [1, 11] == [act.step for act in guard.acts]
    guard.undo()
    assert run.decay == 1.0
    assert all(act.is_undone for act in guard.acts)


@pytest.mark.parametrize(
    ("at_least", "answered"), [("HIGH", ["HIGH"]), ("MEDIUM", ["HIGH", "MEDIUM"]), ("LOW", ["HIGH", "MEDIUM", "LOW"])]
)
def test_findings_of_less_confidence_or_without_a_remedy_are_left(at_least: str, answered: list[str]) -> None:
    for confidence in ("HIGH", "MEDIUM", "LOW"):
        run = Run()
        guard = Guard(run.observer, at_least=at_least)
        run.alarm(found(None, confidence=confidence))
        run.alarm(found(LOWER, confidence=confidence))
        assert len(guard.acts) == (confidence in answered)


def test_a_remedy_that_does_not_fit_is_left_and_the_next_one_taken(caplog: pytest.LogCaptureFixture) -> None:
    run = Run()
    guard = Guard(run.observer)
    with caplog.at_level(logging.WARNING, "thermoclaw"):
        run.alarm(found(Remedy("eps", 1e-8, 1.0)))
    assert "Guard left weight_decay_too_high as it is: parameter group 0 has no 'eps'" in caplog.text
    ((finding, why),) = guard.refused
    assert finding.remedy is not None
    assert "no 'eps'" in why
    run.alarm(found(LOWER))
    assert run.decay == 0.01


def test_the_schedule_follows_and_the_layers_are_split() -> None:
    run = Run()
    Guard(run.observer, scheduler=run.schedule, split=True)
    run.steps(3)
    run.alarm(found(Remedy("lr", 1e-4, 1e-3, params=("0.weight", "0.bias"))))
    run.steps(3)
    assert [group["lr"] for group in run.optimizer.param_groups] == pytest.approx([1e-3, 1e-4])


def test_a_closed_guard_acts_no_more() -> None:
    run = Run()
    with Guard(run.observer) as guard:
        pass
    run.alarm(found(LOWER))
    assert run.decay == 1.0
    assert "off" in repr(guard)


# -- whether it helped ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "is_kept"), [(1e-4, True), (30.0, False)], ids=["helps", "hurts"])
def test_an_act_on_trial_that_makes_it_worse_is_taken_back(value: float, is_kept: bool) -> None:
    run = Run(decay=1e-3, lr=0.02)
    guard = Guard(run.observer, scheduler=run.schedule, cooldown=40, trial=True)
    run.steps(40)
    run.alarm(found(Remedy("weight_decay", value, 1e-3)))
    run.steps(80)
    (act,) = guard.acts
    assert act.is_undone != is_kept
    assert run.decay == (value if is_kept else 1e-3)
    assert [event["undo"] for event in run.events] == ([False] if is_kept else [False, True])
    guard.close()


# -- back to earlier weights ------------------------------------------------------------------------------------------


def weights(run: Run) -> list[torch.Tensor]:
    return [p.detach().clone() for p in run.model.parameters()]


@pytest.mark.parametrize(("first_step", "expected"), [(25, 20), (11, 10), (20, 10), (3, 10)])
def test_a_rollback_puts_back_the_copy_from_before_the_finding(first_step: int, expected: int) -> None:
    """Copies are made at steps 0, 10 and 20, two are kept."""
    run = Run()
    guard = Guard(run.observer, cooldown=10, rollback=True)
    kept = {}
    for step in range(1, 29):
        run.steps(1)
        buffers = [state["momentum_buffer"].clone() for state in run.optimizer.state.values()]
        kept[step] = weights(run), buffers
    run.alarm(replace(found(LOWER), first_step=first_step))
    (act,) = guard.acts
    assert act.rewound_to == expected
    assert run.decay == 0.01
    now = weights(run), [state["momentum_buffer"] for state in run.optimizer.state.values()]
    for here, there in zip(now, kept[expected], strict=True):
        assert all(torch.equal(p, q) for p, q in zip(here, there, strict=True))
    run.steps(10)
    assert run.events[0]["change"]["rewound_to"] == expected
    assert f"with the weights of step {expected}" in diagnose(run.observer).summary
    assert run.observer.record().num_steps == 38


def test_a_rollback_to_the_start_forgets_the_optimizer_state() -> None:
    run = Run()
    Guard(run.observer, rollback=True)
    start = weights(run)
    run.steps(12)
    run.alarm(found(LOWER))
    assert all(torch.equal(p, q) for p, q in zip(weights(run), start, strict=True))
    assert not run.optimizer.state
    run.steps(3)


def test_a_run_whose_weights_are_lost_lives_again() -> None:
    run = Run(decay=0.0, lr=0.02)
    Guard(run.observer, scheduler=run.schedule, rollback=True, cooldown=20)
    run.steps(30)
    run.optimizer.param_groups[0]["lr"] = 1e30
    run.steps(2)
    run.optimizer.param_groups[0]["lr"] = 0.02
    assert not torch.isfinite(run.losses[-1])
    run.alarm(replace(found(Remedy("lr", 0.01, 0.02), code="lr_too_high"), first_step=31))
    run.steps(30)
    assert float(run.losses[-1]) < float(run.losses[0])


def test_an_earlier_second_moment_is_not_put_back_under_another_beta2() -> None:
    run = Run()
    run.optimizer = torch.optim.Adam(run.model.parameters(), betas=(0.9, 0.9999))
    run.schedule = LambdaLR(run.optimizer, lambda step: 1.0)
    run.observer = Observer(run.model, run.optimizer)
    guard = Guard(run.observer, rollback=True)
    run.steps(5)
    run.alarm(found(Remedy("beta2", 0.99, 0.9999)))
    (act,) = guard.acts
    assert act.rewound_to is None


# -- errors and wrong use -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True])
def test_an_error_inside_ends_the_guard_and_not_the_training(
    strict: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    run = Run(strict=strict)
    guard = Guard(run.observer)
    monkeypatch.setattr(remedies.Remedy, "apply", broken)
    with caplog.at_level(logging.ERROR, "thermoclaw"):
        run.alarm(found(LOWER))
        run.alarm(found(LOWER))
    run.steps(20)
    assert guard.closed
    assert caplog.text.count("Guard failed and is off") == 1
    assert run.observer.global_step == 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"at_least": "SURE"}, "at_least='SURE': choose one of HIGH, MEDIUM, LOW"),
        ({"cooldown": 0}, "cooldown=0: give a whole number of at least 1"),
        ({"limit": 1.5}, "limit=1.5"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guard(Run().observer, **settings)


def test_anything_but_an_observer_is_refused() -> None:
    with pytest.raises(TypeError, match="Guard takes an Observer, not SGD"):
        Guard(Run().optimizer)  # type: ignore[arg-type]


# -- several processes ----------------------------------------------------------------------------------------------


def test_several_processes_must_be_asked_for(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    early = Run()
    guard = Guard(early.observer)  # made before the processes joined
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="distributed=True"):
        Guard(Run().observer)
    with caplog.at_level(logging.WARNING, "thermoclaw"):
        early.alarm(found(LOWER))
    assert early.decay == 1.0
    assert not guard.acts
    assert "drift apart" in caplog.text
    asked = Run()
    Guard(asked.observer, distributed=True)
    asked.alarm(found(LOWER))
    assert asked.decay == 0.01


def _one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    seed_everything(3)
    model = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16))
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1.0)
    observer = Observer(model, optimizer, strict=True)
    guard = Guard(observer, distributed=True)
    torch.manual_seed(100 + rank)  # each process its own data
    for _ in range(60):
        optimizer.zero_grad()
        loss = (parallel(torch.randn(8, 16)) - 1.0).square().mean()
        loss.backward()
        optimizer.step()
        shown = loss.detach().clone()
        torch.distributed.all_reduce(shown)
        observer.step(loss=shown / 2)
    torch.save(([act.step for act in guard.acts], [p.detach() for p in model.parameters()]), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_one_loss_act_at_the_same_step(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path),), nprocs=2)
    (acts, weights), (other_acts, other_weights) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert acts == other_acts != []
    assert all(torch.equal(p, q) for p, q in zip(weights, other_weights, strict=True))
