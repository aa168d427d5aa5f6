"""What is known of a run beside its numbers: new gradients at each step, and other optimizers between its steps."""

from __future__ import annotations

import gc
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import mlp
from tests.synthetic import Synthetic
from thermoclaw import Observer, diagnose
from thermoclaw.company import Company, _are_same, _mark
from thermoclaw.diagnosis.engine import run_rules
from thermoclaw.record import Record


def run(clear: str, *, micro: int = 1, clip: bool = False, steps: int = 30) -> Record:
    """A run in which gradients are dropped, set to zero, or never cleared."""
    torch.manual_seed(0)
    model = mlp(8, 16, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    observer = Observer(model, optimizer, strict=True)
    for _ in range(steps):
        for _ in range(micro):
            loss = (model(torch.randn(32, 8)) - 1).square().mean()
            loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        observer.step(loss=loss)
        if clear != "never":
            optimizer.zero_grad(set_to_none=clear == "drop")
    return observer.record()


@pytest.mark.parametrize(("micro", "clip"), [(1, False), (4, False), (1, True), (3, True)])
def test_gradients_that_are_dropped_are_new_ones(micro: int, clip: bool) -> None:
    assert run("drop", micro=micro, clip=clip).meta["gradients_are_new"]
    assert run("drop", micro=micro, clip=clip, steps=4).meta["gradients_are_new"] is None  # too few to tell
    assert run("zero", micro=micro, clip=clip).meta["gradients_are_new"] is False
    assert run("never", micro=micro, clip=clip).meta["gradients_are_new"] is False


def test_new_gradients_are_no_running_sum() -> None:
    t = np.arange(1, 201)
    piled = Synthetic(optimizer="SGD").set(coherence=0.97, grad_sq=(0.1 * t[:, None] * np.ones((200, 8))) ** 2)
    piled.set(loss=2.0 + 0.01 * np.sin(t))
    for meta, told in (({}, True), ({"gradients_are_new": False}, True), ({"gradients_are_new": True}, False)):
        codes = [f.code for f in run_rules(piled.record(**meta))]
        assert ("gradient_accumulation_bug" in codes) == told
    codes = [f.code for f in diagnose(run("never")).findings]
    assert "gradient_accumulation_bug" in codes


class Elsewhere:
    """A parameter that another thread may be writing to."""

    requires_grad = True

    @property
    def grad(self) -> Tensor:
        raise AssertionError("read while it may be freed")


def test_a_run_of_another_thread_is_not_looked_at() -> None:
    def begun() -> Company:
        company = Company()
        company.begin([], ())
        company.params = [Elsewhere()]  # type: ignore[list-item]
        return company

    others: list[Company] = []
    thread = threading.Thread(target=lambda: others.append(begun()))
    thread.start()
    thread.join()
    others[0].thread += others[0].thread == threading.get_ident()  # idents are used again
    Company().begin([], [SimpleNamespace(company=others[0])])
    with pytest.raises(AssertionError, match="read while"):
        Company().begin([], [SimpleNamespace(company=begun())])


class Player(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def play(turns: int = 20, *, shared: bool = False, held: bool = False) -> list[Observer]:
    """Two optimizers in turn, one against the other: of two models, or of the two halves of one."""
    one, two = Player(), Player()
    whole = nn.ModuleList([one, two])
    observers = []
    optimizers = [torch.optim.SGD(player.parameters(), lr=0.01) for player in (one, two)]
    for player, optimizer in zip((one, two), optimizers, strict=True):
        observers.append(Observer(whole if shared else player, optimizer, strict=True))
    for _ in range(turns):
        for i, sign in enumerate((1, -1)):
            whole.zero_grad()
            (one, two)[1 - i].requires_grad_(not held)
            made = one(torch.randn(8, 4))
            loss = sign * two(made.detach() if i else made).square().mean()
            loss.backward()
            optimizers[i].step()
            (one, two)[1 - i].requires_grad_()
            observers[i].step(loss=loss)
    return observers


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("held", [False, True])
def test_a_game_of_two_is_known_as_one(shared: bool, held: bool) -> None:
    gc.collect()
    assert [observer.record().meta["is_game"] for observer in play(shared=shared, held=held)] == [True, True]


def test_a_gradient_in_the_place_of_one_that_was_dropped_is_another() -> None:
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    before, place = _mark([p]), id(p.grad)
    assert _are_same(before, _mark([p]))
    others = []
    for _ in range(1000):
        p.grad = None
        p.grad = torch.ones(2)
        others.append(_are_same(before, _mark([p])))
        if id(p.grad) == place:
            break
    assert id(p.grad) == place, "no gradient took its place"
    assert not any(others)


def test_optimizers_of_one_loss_play_no_game() -> None:
    one, two = Player(), Player()
    whole = nn.ModuleList([one, two])
    optimizers = [torch.optim.SGD(player.parameters(), lr=0.01) for player in (one, two)]
    observers = [Observer(whole, optimizer, strict=True) for optimizer in optimizers]
    for _ in range(20):
        loss = two(one(torch.randn(8, 4))).square().mean()
        loss.backward()
        for optimizer, observer in zip(optimizers, observers, strict=True):
            optimizer.step()
            observer.step(loss=loss)
            optimizer.zero_grad()
    assert [observer.record().meta["is_game"] for observer in observers] == [False, False]


def test_a_critic_that_rests_is_no_game() -> None:
    """Frozen for good, though its optimizer is observed."""
    one, two = Player(), Player().requires_grad_(requires_grad=False)
    optimizers = [torch.optim.SGD(player.parameters(), lr=0.01) for player in (one, two)]
    observers = [Observer(m, o) for m, o in zip((one, two), optimizers, strict=True)]
    for _ in range(20):
        optimizers[0].zero_grad()
        two(one(torch.randn(8, 4))).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
        observers[0].step()
    assert not observers[0].record().meta["is_game"]


@pytest.mark.parametrize("order", ["one by one", "both backward first", "dropped at the end"])
def test_runs_side_by_side_are_no_game(order: str) -> None:
    torch.manual_seed(0)
    models = [mlp(4, 8, 1), mlp(4, 8, 1)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in models]
    observers = [Observer(m, o, strict=True) for m, o in zip(models, optimizers, strict=True)]

    def backward(i: int) -> None:
        if order != "dropped at the end":
            optimizers[i].zero_grad()
        models[i](torch.randn(8, 4)).square().mean().backward()

    def step(i: int) -> None:
        optimizers[i].step()
        observers[i].step()
        if order == "dropped at the end":
            optimizers[i].zero_grad()

    for _ in range(30):
        for act in (
            ((backward, 0), (backward, 1), (step, 0), (step, 1))
            if order == "both backward first"
            else ((backward, 0), (step, 0), (backward, 1), (step, 1))
        ):
            act[0](act[1])
    assert [observer.record().meta["is_game"] for observer in observers] == [False, False]


def test_a_run_after_another_is_alone() -> None:
    first = play()
    alone = run("drop")
    assert not alone.meta["is_game"]
    assert len(first) == 2


def test_what_a_loss_says_in_a_game_is_for_information() -> None:
    def found(**meta: Any) -> dict[str, str]:
        made = Synthetic().set(slice(100, None), coherence=-0.3, overshoot=1.0)
        made.loss[100:] = 40.0
        return {f.code: f.confidence for f in run_rules(made.record(**meta))}

    alone, game = found(is_game=False), found(is_game=True)
    assert alone["lr_too_high"] == "HIGH"
    assert game["lr_too_high"] == "LOW"
    assert set(game.values()) == {"LOW"}
    first = Synthetic().set(slice(0, 8), update_sq=64.0)
    first.loss[:] = 3.0
    rewritten = {f.code: f.confidence for f in run_rules(first.record(is_game=True))}
    assert rewritten["lr_too_high"] == "HIGH"  # steps as long as the weights need no loss to be too long


def test_state_carries_what_is_known() -> None:
    torch.manual_seed(0)
    model = mlp(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    observer = Observer(model, optimizer)
    for _ in range(10):
        model(torch.randn(4, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    state = observer.state_dict()
    observer.close()
    other = Observer(model, optimizer)
    other.load_state_dict(state)
    for name in ("gradients_are_new", "is_game", "outside_edges"):
        assert other.record().meta[name] == observer.record().meta[name]
