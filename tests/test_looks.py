"""When the rules look: at fixed steps, and at once at a loss that rises as none of the last ones did."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.zoo import judge
from programs import mlp
from thermoclaw import Observer
from thermoclaw.buffer import DeviceRing
from thermoclaw.diagnosis.looks import MOST_SUDDEN, Looks
from thermoclaw.measure.meter import Meter
from thermoclaw.state import StateError

ANY = st.floats(allow_nan=True, allow_infinity=True)


def sudden(*losses: float) -> list[int]:
    """Places of the losses that are looked at at once."""
    looks = Looks()
    return [place for place, loss in enumerate(losses) if looks.is_sudden(loss)]


def test_twice_the_largest_is_sudden() -> None:
    assert sudden(2.0, 2.1, 1.9, 4.19) == []
    assert sudden(2.0, 2.1, 1.9, 4.21) == [3]


def test_a_loss_below_zero_is_measured_by_the_range_of_losses() -> None:
    assert sudden(-3.0, -3.5, -3.2, -2.9, -2.6) == []
    assert sudden(-0.01, -0.02, -0.01, 0.005) == [3]
    assert sudden(-3.0, -3.5, 0.01) == [2]
    assert sudden(0.1, -0.1, 0.05, 0.29) == []  # noise around zero
    assert sudden(0.1, -0.1, 0.05, 0.31) == [3]


def test_neither_a_fall_nor_the_first_loss_is() -> None:
    assert sudden(1e6, 1.0, 0.9, 1.5) == []
    assert sudden(math.nan, 1.0, 1.5) == []


def test_a_loss_that_stays_lost_is_looked_at_once() -> None:
    assert sudden(1.0, math.nan, 1.1, *7 * [math.inf], 0.9) == []
    assert sudden(1.0, math.nan, 1.1, *20 * [math.nan]) == [10]


def test_looks_between_two_regular_ones_are_few() -> None:
    looks = Looks()
    found = [step for step in range(1, 25) if looks.is_sudden(3.0**step) | looks.is_due(step)]
    assert found == [*range(2, 2 + MOST_SUDDEN), 8, *range(9, 9 + MOST_SUDDEN), 16, *range(17, 17 + MOST_SUDDEN), 24]


@given(st.lists(ANY, max_size=40), st.integers(0, 40))
def test_a_state_goes_on_as_if_it_had_never_been_saved(losses: list[float], stop: int) -> None:
    whole, first = Looks(3), Looks(3)

    def decide(looks: Looks, place: int) -> tuple[bool, bool]:
        return looks.is_sudden(losses[place]), looks.is_due(place + 4)

    stop = min(stop, len(losses))
    want = [decide(whole, place) for place in range(len(losses))]
    got = [decide(first, place) for place in range(stop)]
    rest = Looks()
    rest.load_state_dict(first.state_dict())
    assert got + [decide(rest, place) for place in range(stop, len(losses))] == want


@pytest.mark.parametrize(
    "damage",
    [{"next_step": -1}, {"num_sudden": None}, {"num_lost": "x"}, {"recent": 3}, {"recent": ["a"]}, {"recent": [None]}],
)
def test_a_damaged_state_is_refused_and_changes_nothing(damage: dict[str, object]) -> None:
    looks = Looks()
    looks.is_sudden(1.0)
    before = looks.state_dict()
    with pytest.raises(StateError):
        looks.load_state_dict({**before, **damage})
    assert looks.state_dict() == before


# -- in a run ---------------------------------------------------------------------------------------------------------


class Run:
    """A classifier of digits whose rate is far too high from one step on; it ends when its loss is lost.

    Args:
        jump: that step.
        losses: whether the observer is given them.
        reads: whether the user reads every row before its loss is given.
    """

    def __init__(self, jump: int = 42, *, losses: bool = True, reads: bool = False, **settings: int) -> None:
        torch.manual_seed(0)
        self.model, self._loss_of = mlp(0)
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        self.observer = Observer(self.model, self._optimizer, strict=True, **settings)
        self.told: list[tuple[int, str]] = []
        self.observer.on_alarm(lambda finding: self.told.append((self.step, finding.code)))
        self._jump, self._is_given, self._reads, self.step = jump, losses, reads, 0
        self.losses: list[float] = []

    def go(self, stop: int) -> Run:
        """Train to this step, or until the loss is lost."""
        loss = torch.zeros(())
        while self.step < stop and loss.isfinite():
            self.step += 1
            self._optimizer.param_groups[0]["lr"] = 0.05 if self.step < self._jump else 1000.0
            self._optimizer.zero_grad()
            loss = self._loss_of()
            loss.backward()
            self._optimizer.step()
            self.losses.append(loss.item())
            if self._reads:
                len(self.observer.record())
            self.observer.step(loss if self._is_given else None)
        return self


def test_a_loss_that_explodes_between_two_looks_is_told_of_before_it_is_lost() -> None:
    run = Run().go(60)
    assert run.step == 46
    assert not math.isfinite(run.losses[-1])
    assert run.told[0] == (45, "lr_too_high")
    assert [finding.raised_step for finding in run.observer.alarms] == [step for step, _ in run.told]


def test_a_replay_of_the_record_looks_where_the_observer_did() -> None:
    run = Run().go(60)
    alarms = [(f.raised_step, f.code, f.confidence) for f in run.observer.alarms]
    again = [(f.raised_step, f.code, f.confidence) for f in judge.replayed(judge.without_alarms(run.observer.record()))]
    assert again == alarms


@pytest.mark.parametrize("elsewhere", ["device", "peers"])
def test_nothing_is_waited_for_where_rows_are_elsewhere(elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator, or of a model that several processes hold together."""
    if elsewhere == "device":
        monkeypatch.setattr(DeviceRing, "last_on_host", lambda _: None)
    else:
        monkeypatch.setattr(Meter, "is_on_host", property(lambda _: False))
    run = Run().go(60)
    assert run.told == []
    run.observer.close()
    assert len(run.observer.record()) == 46


def test_alarms_are_the_same_whether_or_not_anybody_reads() -> None:
    assert Run(reads=True).go(60).told == Run().go(60).told


def test_without_losses_rules_look_at_fixed_steps_alone() -> None:
    run = Run(losses=False).go(60)
    assert run.told == []


def test_rows_that_were_read_early_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    early = Run().go(60).observer.record()
    monkeypatch.setattr(Looks, "_rises", lambda *_: False)
    late = Run().go(60).observer.record()
    assert np.array_equal(early.layer_values, late.layer_values, equal_nan=True)
    assert np.array_equal(early.run_values, late.run_values, equal_nan=True)
