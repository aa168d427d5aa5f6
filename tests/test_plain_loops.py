"""What a loop of one's own may do around an observer: pause it, and close it by `with`."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.conftest import assert_bitwise, assert_same_record, mlp, seed_everything
from thermoclaw import CollapseDetector, Observer, diagnose

UNKNOWN_AFTER_A_PAUSE = ("update_sq", "coherence", "overshoot", "alignment", "d_iS_momentum")


class Run:
    """A small run on the digits, with AdamW."""

    def __init__(self, digits: tuple[Tensor, Tensor], **settings: Any) -> None:
        seed_everything(3)
        self.images, self.labels = digits
        self.model = mlp(64, 100, 10)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-3)
        self.observer = Observer(self.model, self.optimizer, strict=True, **settings)

    def step(self, number: int) -> Tensor:
        at = torch.arange(64 * number, 64 * number + 64) % len(self.images)
        loss = functional.cross_entropy(self.model(self.images[at]), self.labels[at])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def go(self, start: int, stop: int) -> None:
        for number in range(start, stop):
            self.observer.step(loss=self.step(number))

    def seek_a_rate(self) -> None:
        """As a search for a learning rate does: rates up to 1, and back to where it was."""
        kept = copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))
        for number, rate in enumerate(np.geomspace(1e-5, 1.0, 20)):
            self.optimizer.param_groups[0]["lr"] = float(rate)
            self.observer.step(loss=self.step(number))
        self.model.load_state_dict(kept[0])
        self.optimizer.load_state_dict(kept[1])


@pytest.mark.parametrize("settings", [{}, {"mode": "exact"}, {"every": 8}])
@pytest.mark.usefixtures("backend")
def test_a_pause_leaves_no_trace(digits: tuple[Tensor, Tensor], settings: dict[str, Any]) -> None:
    """The record is that of the run without it, but for what is made of neighboring steps in the row after it."""
    runs = []
    for pauses in ((), (0, 20, 21, 60)):
        run = Run(digits, **settings)
        for start, stop in ((0, 20), (20, 21), (21, 60), (60, 120)):
            if start in pauses:
                with run.observer.paused():
                    run.seek_a_rate()
            run.go(start, stop)
        runs.append(run)
    plain, paused = runs
    assert_bitwise(dict(paused.model.state_dict()), dict(plain.model.state_dict()))
    got, want = paused.observer.record(), plain.observer.record()
    assert got.steps.tolist() == want.steps.tolist()
    for name in ("loss", "lr", "grad_sq", "param_sq", "sigma"):
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    np.testing.assert_allclose(got["distance"], want["distance"], rtol=1e-5, atol=1e-9)
    if "every" not in settings:
        after = np.isin(got.steps, (21, 22, 61))
        for name in UNKNOWN_AFTER_A_PAUSE:
            assert np.isnan(got[name][after]).all(), name
        known = ~np.isin(got.steps, [s + lag for s in (1, 21, 22, 61) for lag in range(3)])
        np.testing.assert_allclose(got["update_sq"][known], want["update_sq"][known], rtol=1e-6)
        np.testing.assert_allclose(got["coherence"][known], want["coherence"][known], rtol=1e-6)
    assert not paused.observer.alarms
    assert diagnose(paused.observer).healthy


def test_what_moved_the_weights_in_a_pause_is_not_the_next_steps(digits: tuple[Tensor, Tensor]) -> None:
    run = Run(digits)
    run.go(0, 20)
    with run.observer.paused(), torch.no_grad():
        for p in run.model.parameters():
            p *= 3.0
    run.go(20, 24)
    budget = run.observer.record()["norm_budget"]
    np.testing.assert_array_equal(budget[20], budget[19])  # smoothed over what is known
    assert np.isfinite(budget[21:]).all()
    assert np.abs(budget[21:]).max() < 10 * np.abs(budget[:20][np.isfinite(budget[:20])]).max()


def test_a_pause_holds_for_everyone_and_ends_with_an_exception(digits: tuple[Tensor, Tensor]) -> None:
    run = Run(digits)
    collapse = CollapseDetector(run.model, run.optimizer)

    def breaks_off() -> None:
        with run.observer.paused():
            run.go(0, 4)
            collapse.step()
            raise KeyError

    with pytest.raises(KeyError):
        breaks_off()
    assert run.observer.global_step == 0
    run.go(4, 8)
    collapse.step()
    assert run.observer.record().steps.tolist() == [1, 2, 3, 4]
    assert np.isfinite(run.observer.record().loss).all()


def test_two_pauses_inside_each_other_end_with_the_outer_one(digits: tuple[Tensor, Tensor]) -> None:
    run = Run(digits)
    with run.observer.paused():
        with run.observer.paused():
            run.go(0, 2)
        run.go(2, 4)
    run.go(4, 6)
    assert run.observer.global_step == 2


def test_with_closes_and_leaves_the_record(digits: tuple[Tensor, Tensor]) -> None:
    run, plain = Run(digits), Run(digits)
    plain.go(0, 20)

    def breaks_off() -> None:
        with run.observer as observer:
            assert observer is run.observer
            run.go(0, 20)
            raise KeyError

    with pytest.raises(KeyError):
        breaks_off()
    assert "closed" in repr(run.observer)
    assert not run.optimizer._optimizer_step_pre_hooks
    assert not run.optimizer._optimizer_step_post_hooks
    run.go(20, 30)  # goes on, unmeasured
    assert_same_record(run.observer.record(), plain.observer.record())
    assert str(diagnose(run.observer)) == str(diagnose(plain.observer))


def test_an_error_while_closing_does_not_hide_that_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(4, 2)
    observer = Observer(model, torch.optim.SGD(model.parameters(), lr=0.1))

    def fail(**_: Any) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(observer._attachment.meter, "ingest", fail)
    with pytest.raises(KeyError), observer:
        raise KeyError
    assert not observer.optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("is_observed", [True, False])
def test_what_another_observed_optimizer_holds_is_not_missing(is_observed: bool) -> None:
    """A critic that is trained alone at first, with gradients that reach the generator, which moves later."""
    pair = nn.ModuleDict({"generator": nn.Linear(4, 4), "critic": nn.Linear(4, 1)})
    optimizer, other = (torch.optim.SGD(pair[name].parameters(), lr=0.01) for name in ("critic", "generator"))
    observer = Observer(pair, optimizer, strict=True)
    held = Observer(pair, other, strict=True) if is_observed else None
    for _ in range(24):
        optimizer.zero_grad()
        pair["critic"](pair["generator"](torch.randn(8, 4))).square().mean().backward()
        optimizer.step()
        observer.step()
    names = [] if held is not None else ["generator.weight", "generator.bias"]
    assert observer.record().meta["unoptimized"] == names
