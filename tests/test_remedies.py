"""Remedies: they turn the knob and nothing else, schedules keep their shape, and undoing restores what was there."""

from __future__ import annotations

import copy
import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as torch_schedules

from thermoclaw import Observer, Remedy, ThermoScheduler
from thermoclaw.diagnosis.remedies import RemedyError

FACTOR, BEFORE, AFTER = 0.1, 7, 25


def make_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))


def two_groups(kind: type[torch.optim.Optimizer] = torch.optim.AdamW, **settings: Any) -> Any:
    model = make_model()
    groups = [
        {"params": [*model[0].parameters(), *model[1].parameters()]},
        {"params": list(model[2].parameters()), "lr": 0.03},
    ]
    return model, kind(groups, lr=0.1, **settings)


def train_step(model: nn.Module, optimizer: Any, *, scale: float = 1.0) -> None:
    optimizer.zero_grad()
    (scale * model(torch.ones(3, 4)).square().mean()).backward()
    optimizer.step()


def snapshot(optimizer: Any, *schedules: Any) -> Any:
    """Everything that a remedy may write, copied."""
    groups = [
        {k: list(map(id, v)) if k == "params" else copy.deepcopy(v) for k, v in g.items()} for g in groups_of(optimizer)
    ]
    inside = [
        {k: copy.deepcopy(v) for k, v in vars(s).items() if k != "_schedulers" and isinstance(v, (list, int, float))}
        for s in schedules
    ]
    return groups, inside


def groups_of(optimizer: Any) -> list[dict[str, Any]]:
    return list(optimizer.param_groups)


# -- schedules ------------------------------------------------------------------------------------------------------

Make = Callable[[Any], Any]
SCHEDULES: dict[str, Make] = {
    "lambda": lambda o: torch_schedules.LambdaLR(o, lambda step: 1.0 / (1.0 + step)),
    "multiplicative": lambda o: torch_schedules.MultiplicativeLR(o, lambda step: 0.9),
    "step": lambda o: torch_schedules.StepLR(o, 5),
    "multi step": lambda o: torch_schedules.MultiStepLR(o, [3, 12]),
    "exponential": lambda o: torch_schedules.ExponentialLR(o, 0.9),
    "constant": lambda o: torch_schedules.ConstantLR(o, total_iters=12),
    "linear": lambda o: torch_schedules.LinearLR(o, total_iters=12),
    "polynomial": lambda o: torch_schedules.PolynomialLR(o, total_iters=40),
    "cosine": lambda o: torch_schedules.CosineAnnealingLR(o, 10, eta_min=1e-3),
    "warm restarts": lambda o: torch_schedules.CosineAnnealingWarmRestarts(o, 6, eta_min=1e-3),
    "one cycle": lambda o: torch_schedules.OneCycleLR(o, [0.1, 0.03], total_steps=40),
    "cyclic": lambda o: torch_schedules.CyclicLR(o, [0.01, 0.02], [0.1, 0.2], step_size_up=5, cycle_momentum=True),
    "sequence": lambda o: torch_schedules.SequentialLR(
        o, [torch_schedules.LinearLR(o, total_iters=10), torch_schedules.CosineAnnealingLR(o, 20)], [10]
    ),
    "sequence of lambdas": lambda o: torch_schedules.SequentialLR(
        o, [torch_schedules.LambdaLR(o, lambda s: (s + 1) / 10), torch_schedules.LambdaLR(o, lambda s: 0.9**s)], [10]
    ),
    "chain": lambda o: torch_schedules.ChainedScheduler(
        [torch_schedules.ConstantLR(o, total_iters=12), torch_schedules.ExponentialLR(o, 0.9)]
    ),
    "thermo": lambda o: ThermoScheduler(o, total_steps=40, warmup_steps=10, eta_min=1e-4, adapt_rate=0),
}  # fmt: skip


def rates(make: Make, *, apply: bool = False, undo_at: int | None = None) -> list[list[float]]:
    """The rates of both groups at each step, after a remedy at step `BEFORE` that may be taken back later."""
    model, optimizer = two_groups()
    schedule = make(optimizer)
    applied, found = None, []
    for step in range(BEFORE + AFTER):
        if step == BEFORE and apply:
            was = max(group["lr"] for group in optimizer.param_groups)
            applied = Remedy("lr", FACTOR * was, was).apply(optimizer, schedule)
        if step == undo_at and applied is not None:
            applied.undo()
        found.append([group["lr"] for group in optimizer.param_groups])
        assert schedule.get_last_lr() == pytest.approx(found[-1])
        train_step(model, optimizer)
        schedule.step()
    return found


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_scaled_rate_keeps_the_shape_of_its_schedule(name: str) -> None:
    usual, scaled = rates(SCHEDULES[name]), rates(SCHEDULES[name], apply=True)
    assert scaled[:BEFORE] == usual[:BEFORE]
    for before, after in zip(usual[BEFORE:], scaled[BEFORE:], strict=True):
        assert after == pytest.approx([FACTOR * rate for rate in before], rel=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_rate_taken_back_later_is_where_the_schedule_has_it_then(name: str) -> None:
    usual, there_and_back = rates(SCHEDULES[name]), rates(SCHEDULES[name], apply=True, undo_at=15)
    for before, after in zip(usual[15:], there_and_back[15:], strict=True):
        assert after == pytest.approx(before, rel=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_taking_a_rate_back_at_once_restores_every_number(name: str) -> None:
    model, optimizer = two_groups()
    schedule = SCHEDULES[name](optimizer)
    train_step(model, optimizer)
    schedule.step()
    before = snapshot(optimizer, schedule, *getattr(schedule, "_schedulers", ()))
    Remedy("lr", 0.03, 0.1).apply(optimizer, schedule, force=True).undo()
    assert snapshot(optimizer, schedule, *getattr(schedule, "_schedulers", ())) == before


def test_a_lambda_undoes_a_rate_that_it_does_not_know_of_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer = two_groups()
    schedule = torch_schedules.LambdaLR(optimizer, lambda step: 1.0)
    with caplog.at_level(logging.WARNING, "thermoclaw"):
        Remedy("lr", 0.01, 0.1).apply(optimizer)
    assert "give it as scheduler=" in caplog.text
    train_step(model, optimizer)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_the_schedules_of_transformers_keep_their_shape() -> None:
    transformers = pytest.importorskip("transformers")
    model, optimizer = two_groups()
    schedule = transformers.get_scheduler("cosine", optimizer, num_warmup_steps=4, num_training_steps=20)
    Remedy("lr", 0.01, 0.1).apply(optimizer, schedule)
    for _ in range(4):
        train_step(model, optimizer)
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.003])


def test_only_the_named_groups_are_scaled() -> None:
    model, optimizer = two_groups()
    schedule = torch_schedules.LambdaLR(optimizer, lambda step: 1.0)
    changed = Remedy("lr", 0.01, 0.03, (1,)).apply(optimizer, schedule)
    assert [dict(c, now=round(c["now"], 9)) for c in changed] == [{"group": 1, "knob": "lr", "was": 0.03, "now": 0.01}]
    train_step(model, optimizer)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.01])


def test_a_floor_of_reduce_on_plateau_follows() -> None:
    _, optimizer = two_groups()
    schedule = torch_schedules.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, min_lr=0.04)
    Remedy("lr", 0.01, 0.1).apply(optimizer, schedule)
    for _ in range(9):
        schedule.step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.004)


@pytest.mark.parametrize("make", [SCHEDULES["one cycle"], SCHEDULES["cyclic"]], ids=["one cycle", "cyclic"])
def test_a_schedule_that_cycles_momentum_stays_below_the_remedy(make: Make) -> None:
    model, optimizer = two_groups()
    schedule = make(optimizer)
    applied = Remedy("momentum", 0.5, optimizer.param_groups[0]["betas"][0]).apply(optimizer, schedule, force=True)
    for _ in range(12):
        train_step(model, optimizer)
        schedule.step()
        assert optimizer.param_groups[0]["betas"][0] <= 0.5
    applied.undo()
    train_step(model, optimizer)
    schedule.step()
    assert optimizer.param_groups[0]["betas"][0] > 0.7


def test_a_schedule_of_another_optimizer_or_of_an_unknown_kind_is_refused() -> None:
    _, optimizer = two_groups()
    _, other = two_groups()
    before = snapshot(optimizer)
    with pytest.raises(RemedyError, match="belongs to another optimizer"):
        Remedy("lr", 0.01, 0.1).apply(optimizer, SCHEDULES["step"](other))

    class Strange:
        rates = (0.1, 0.03)

    with pytest.raises(RemedyError, match="Strange is no scheduler that a remedy can follow"):
        Remedy("lr", 0.01, 0.1).apply(optimizer, Strange())
    assert snapshot(optimizer) == before


# -- knobs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "remedy", "key", "now"),
    [
        ("SGD", {"momentum": 0.999}, Remedy("momentum", 0.9, 0.999), "momentum", 0.9),
        ("AdamW", {"betas": (0.999, 0.98)}, Remedy("momentum", 0.9, 0.999), "betas", (0.9, 0.98)),
        ("AdamW", {"betas": (0.9, 0.9999)}, Remedy("beta2", 0.99, 0.9999), "betas", (0.9, 0.99)),
        ("RMSprop", {"alpha": 0.9999}, Remedy("beta2", 0.99, 0.9999), "alpha", 0.99),
        ("Adam", {"eps": 3.0}, Remedy("eps", 1e-8, 3.0), "eps", 1e-8),
        ("SGD", {"weight_decay": 5.0}, Remedy("weight_decay", 0.01, 5.0), "weight_decay", 0.01),
    ],
    ids=["momentum", "beta1", "beta2", "alpha", "eps", "decay"],
)
def test_a_knob_is_set_and_put_back(kind: str, settings: Any, remedy: Remedy, key: str, now: Any) -> None:
    _, optimizer = two_groups(getattr(torch.optim, kind), **settings)
    before = snapshot(optimizer)
    applied = remedy.apply(optimizer)
    assert [group[key] for group in optimizer.param_groups] == [now, now]
    assert [entry["was"] for entry in applied] == [remedy.was] * 2
    applied.undo()
    assert snapshot(optimizer) == before
    applied.undo()
    assert snapshot(optimizer) == before


def test_what_apply_returned_may_be_put_back_as_a_plain_list() -> None:
    _, optimizer = two_groups(torch.optim.SGD, weight_decay=5.0)
    Remedy.undo(optimizer, list(Remedy("weight_decay", 0.01, 5.0).apply(optimizer)))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5.0, 5.0]


def test_groups_without_decay_or_beyond_the_value_stay() -> None:
    model = make_model()
    groups = [
        {"params": list(part.parameters()), "weight_decay": d} for part, d in zip(model, (5.0, 0.0, 1e-4), strict=True)
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    applied = Remedy("weight_decay", 0.01, 5.0).apply(optimizer)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0, 1e-4]
    assert len(applied) == 1


@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_lower_beta2_leaves_the_size_of_steps(amsgrad: bool) -> None:
    model, optimizer = two_groups(torch.optim.Adam, betas=(0.9, 0.9999), amsgrad=amsgrad)
    for _ in range(30):
        train_step(model, optimizer)

    def second_moments() -> list[torch.Tensor]:
        beta2 = optimizer.param_groups[0]["betas"][1]
        keys = ("exp_avg_sq", "max_exp_avg_sq") if amsgrad else ("exp_avg_sq",)
        states = optimizer.state.values()
        return [state[key] / (1.0 - beta2 ** float(state["step"])) for state in states for key in keys]

    before = second_moments()
    applied = Remedy("beta2", 0.99, 0.9999).apply(optimizer)
    torch.testing.assert_close(second_moments(), before, rtol=1e-5, atol=0.0)
    applied.undo()
    torch.testing.assert_close(second_moments(), before, rtol=1e-5, atol=0.0)


def test_rates_that_are_tensors_are_filled_in_place() -> None:
    model = make_model()
    lr, betas = torch.tensor(0.1), (torch.tensor(0.999), torch.tensor(0.99))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=betas, capturable=True, foreach=True)
    for remedy, held, was, now in (
        (Remedy("lr", 0.01, 0.1), optimizer.param_groups[0]["lr"], 0.1, 0.01),
        (Remedy("momentum", 0.9, 0.999), optimizer.param_groups[0]["betas"][0], 0.999, 0.9),
    ):
        applied = remedy.apply(optimizer)
        assert float(held) == pytest.approx(now)
        applied.undo()
        assert float(held) == pytest.approx(was)
    assert optimizer.param_groups[0]["betas"][0] is betas[0]


def test_a_rate_on_a_device_is_changed_without_being_read() -> None:
    class OnDevice:
        device = torch.device("cuda")
        factor = 1.0

        def fill_(self, value: float) -> None:
            raise AssertionError("a rate is scaled")

        def detach(self) -> OnDevice:
            return self

        clone = detach

        def mul_(self, factor: float) -> OnDevice:
            self.factor *= factor
            return self

        def __float__(self) -> float:
            raise AssertionError("reading waits for the device")

    _, optimizer = two_groups()
    optimizer.param_groups[0]["lr"] = OnDevice()
    applied = Remedy("lr", 0.01, 0.1).apply(optimizer)
    assert optimizer.param_groups[0]["lr"].factor == pytest.approx(0.1)
    assert (applied[0]["was"], applied[0]["now"]) == (None, None)
    json.dumps(applied.to_json(), allow_nan=False)


def test_wrappers_are_seen_through() -> None:
    class Wrapper:
        def __init__(self, inner: Any) -> None:
            self.optimizer = inner

    _, optimizer = two_groups()
    Remedy("lr", 0.01, 0.1).apply(Wrapper(Wrapper(optimizer)))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_optimizer_and_schedule_of_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = two_groups()
    schedule = torch_schedules.LambdaLR(optimizer, lambda step: 1.0)
    model, wrapped, wrapped_schedule = accelerator.prepare(model, optimizer, schedule)
    Remedy("lr", 0.01, 0.1).apply(wrapped, wrapped_schedule)
    train_step(model, wrapped)
    wrapped_schedule.step()
    assert wrapped.param_groups[0]["lr"] == pytest.approx(0.01)


# -- clipping ---------------------------------------------------------------------------------------------------------


def test_clipping_is_there_for_whoever_imported_nothing_else() -> None:
    code = """
import torch
from thermoclaw.diagnosis.remedies import Remedy
p = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.SGD([p], lr=1.0)
Remedy("clip", 0.01, 3.0).apply(optimizer)
p.grad = torch.full((2,), 5.0)
optimizer.step()
print(round(float((1.0 - p.detach()).norm()), 4))
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["0.01"]


def test_clip_is_what_clipping_in_the_loop_is_and_can_be_taken_back() -> None:
    one, two = two_groups(torch.optim.SGD), two_groups(torch.optim.SGD)
    applied = Remedy("clip", 0.01, 3.0).apply(one[1])
    for step in range(6):
        if step == 4:
            applied.undo()
        train_step(*one)
        two[1].zero_grad()
        two[0](torch.ones(3, 4)).square().mean().backward()
        if step < 4:
            nn.utils.clip_grad_norm_(two[0].parameters(), 0.01)
        two[1].step()
    assert all(torch.equal(p, q) for p, q in zip(one[0].parameters(), two[0].parameters(), strict=True))


def test_an_observer_measures_the_clipped_gradient() -> None:
    model, optimizer = two_groups(torch.optim.SGD)
    observer = Observer(model, optimizer, strict=True)
    Remedy("clip", 0.01, 3.0).apply(optimizer)
    for _ in range(4):
        train_step(model, optimizer)
        observer.step()
    norm = math.sqrt(observer.record()["grad_sq"][-1].sum())
    assert norm == pytest.approx(0.01, rel=1e-3)


def test_clip_knows_of_a_loss_scale_that_the_optimizer_takes_off_itself() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
    Remedy("clip", 0.01, 3.0).apply(optimizer)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(64.0), torch.tensor(0.0)
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    train_step(model, optimizer, scale=64.0)
    moved = nn.utils.parameters_to_vector(model.parameters()).detach() - before
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)


# -- parameters of their own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_split_moves_only_the_named_parameters_and_comes_back(name: str) -> None:
    model, optimizer = two_groups(torch.optim.AdamW, weight_decay=5.0)
    schedule = SCHEDULES[name](optimizer)
    for _ in range(3):
        train_step(model, optimizer)
        schedule.step()
    inside = (schedule, *getattr(schedule, "_schedulers", ()))
    before = snapshot(optimizer, *inside)
    state = {id(p): s["exp_avg"].clone() for p, s in optimizer.state.items()}
    remedy = Remedy("weight_decay", 0.01, 5.0, params=("0.weight", "0.bias"))
    applied = remedy.apply(optimizer, schedule, model=model, split=True)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2, 2]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5.0, 5.0, 0.01]
    assert all(torch.equal(s["exp_avg"], state[id(p)]) for p, s in optimizer.state.items())
    applied.undo()
    assert snapshot(optimizer, *inside) == before
    applied = remedy.apply(optimizer, schedule, model=model, split=True)
    assert {len(part._last_lr) for part in inside} == {3}
    for _ in range(3):
        train_step(model, optimizer)
        schedule.step()
    assert optimizer.param_groups[2]["lr"] == optimizer.param_groups[0]["lr"]
    applied.undo()
    train_step(model, optimizer)
    schedule.step()
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 2]


def test_a_split_rate_is_scaled_for_its_parameters_only() -> None:
    model, optimizer = two_groups()
    schedule = torch_schedules.LambdaLR(optimizer, lambda step: 1.0)
    Remedy("lr", 0.01, 0.1, params=("module.1.weight",)).apply(optimizer, schedule, model=model, split=True)
    train_step(model, optimizer)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.03, 0.01])
    assert optimizer.param_groups[2]["params"][0] is model[1].weight


def test_parameters_with_a_group_of_their_own_are_not_moved() -> None:
    model, optimizer = two_groups(weight_decay=5.0)
    applied = Remedy("weight_decay", 0.01, 5.0, params=("2.weight", "2.bias")).apply(optimizer, model=model, split=True)
    assert [entry["group"] for entry in applied] == [1]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5.0, 0.01]


def test_names_that_the_optimizer_keeps_are_split_along() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(list(model.named_parameters()), lr=0.1, weight_decay=5.0)
    remedy = Remedy("weight_decay", 0.01, 5.0, params=("1.weight",))
    applied = remedy.apply(optimizer, model=model, split=True)
    assert optimizer.param_groups[1]["param_names"] == ["1.weight"]
    assert "1.weight" not in optimizer.param_groups[0]["param_names"]
    applied.undo()
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]


def test_an_observer_goes_on_through_a_split() -> None:
    model, optimizer = two_groups(torch.optim.SGD, weight_decay=5.0)
    observer = Observer(model, optimizer, strict=True)
    for step in range(12):
        if step == 6:
            remedy = Remedy("weight_decay", 0.01, 5.0, params=("0.weight", "0.bias"))
            remedy.apply(optimizer, model=model, split=True)
        train_step(model, optimizer)
        observer.step()
    record = observer.record()
    assert record.num_steps == 12
    assert record.layer_names == ["0", "1", "2"]
    assert record["weight_decay"][-1].tolist() == pytest.approx([0.01, 5.0, 5.0])


def test_a_split_that_would_break_is_refused() -> None:
    model, optimizer = two_groups(weight_decay=5.0)
    remedy = Remedy("weight_decay", 0.01, 5.0, params=("0.weight",))
    with pytest.raises(RemedyError, match="needs the model"):
        remedy.apply(optimizer, split=True)
    with pytest.raises(RemedyError, match="no parameter 'elsewhere'"):
        Remedy("weight_decay", 0.01, 5.0, params=("elsewhere",)).apply(optimizer, model=model, split=True)
    with pytest.raises(RemedyError, match="names no parameters"):
        Remedy("weight_decay", 0.01, 5.0).apply(optimizer, model=model, split=True)
    with pytest.raises(RemedyError, match="none of the remedy's parameters"):
        remedy.apply(optimizer, model=make_model(1), split=True)
    schedule = torch_schedules.LambdaLR(optimizer, lambda step: 1.0)
    with pytest.raises(RemedyError, match="give it as scheduler="):
        remedy.apply(optimizer, model=model, split=True)

    class Own(torch_schedules.LambdaLR):
        pass

    own = Own(optimizer, lambda step: 1.0)
    own.peaks = [1.0, 2.0]
    before = snapshot(optimizer, schedule, own)
    with pytest.raises(RemedyError, match=r"Own\.peaks has one entry for each of the 2 parameter groups"):
        remedy.apply(optimizer, [schedule, own], model=model, split=True)
    assert snapshot(optimizer, schedule, own) == before


# -- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "remedy", "message"),
    [
        ("SGD", {}, Remedy("lr", 0.01, 0.1, (2,)), "2 parameter groups, the remedy names group 2"),
        ("Adagrad", {}, Remedy("momentum", 0.9, 0.99), "parameter group 0 has no 'momentum'"),
        ("SGD", {"momentum": 0.9}, Remedy("eps", 1e-8, 1.0), "no 'eps'; it has .*momentum"),
        ("SGD", {"weight_decay": 0.1}, Remedy("weight_decay", 0.01, 5.0), "is 0.1 now and was 5 .*force=True"),
        ("SGD", {"momentum": 0.9}, Remedy("momentum", 0.5, 0.99), "is 0.9 now and was 0.99"),
        ("SGD", {}, Remedy("lr", 1e-4, 1.0), "is 0.1, 0.03 now and was 1"),
        ("SGD", {"weight_decay": 5.0}, Remedy("weight_decay", 6.0, 8.0), "in every group: .* to change"),
        ("SGD", {}, Remedy("lr", 0.0, 0.1), "no positive factor"),
        ("SGD", {}, Remedy("clip", 0.0, 1.0), "give a positive norm"),
        ("Rprop", {}, Remedy("lr", 0.01, 0.1), "'lr' is no remedy for Rprop"),
        ("Adafactor", {}, Remedy("eps", 1e-8, 1.0), "which is no number to change"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_remedy_that_does_not_fit_changes_nothing(kind: str, settings: Any, remedy: Remedy, message: str) -> None:
    _, optimizer = two_groups(getattr(torch.optim, kind), **settings)
    before = snapshot(optimizer)
    with pytest.raises(RemedyError, match=message):
        remedy.apply(optimizer)
    assert snapshot(optimizer) == before


def test_clipping_inside_lbfgs_and_under_signs_is_refused() -> None:
    with pytest.raises(RemedyError, match="computes its gradients inside step"):
        Remedy("clip", 1.0, 5.0).apply(torch.optim.LBFGS(make_model().parameters()))

    class Lion(torch.optim.SGD):
        pass

    with pytest.raises(RemedyError, match="sign of the gradient"):
        Remedy("clip", 1.0, 5.0).apply(two_groups(Lion)[1])
    with pytest.raises(RemedyError, match="it has no param_groups"):
        Remedy("lr", 0.01, 0.1).apply(make_model())


def test_force_goes_on_from_what_is_there() -> None:
    _, optimizer = two_groups(torch.optim.SGD, weight_decay=0.1)
    Remedy("weight_decay", 0.01, 5.0).apply(optimizer, force=True)
    assert optimizer.param_groups[0]["weight_decay"] == 0.01
    Remedy("lr", 0.1, 1.0).apply(optimizer, force=True)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_a_warm_up_is_no_change_by_somebody_but_a_remedy_given_twice_is() -> None:
    model, optimizer = two_groups()
    schedule = torch_schedules.LambdaLR(optimizer, lambda step: min((step + 1) / 10, 1.0))
    for _ in range(9):
        train_step(model, optimizer)
        schedule.step()
    remedy = Remedy("lr", 0.001, 0.01)  # found when the rate was a tenth
    remedy.apply(optimizer, schedule)
    peak = Remedy("lr", 0.01, 0.1)
    with pytest.raises(RemedyError, match="changed since"):
        peak.apply(optimizer, schedule)


def test_a_failure_on_the_way_takes_back_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    from thermoclaw.diagnosis import schedules

    def fail(*_: Any) -> None:
        raise RuntimeError("broken")

    model, optimizer = two_groups()
    schedule = torch_schedules.LambdaLR(optimizer, lambda step: 1.0)
    before = snapshot(optimizer, schedule)
    monkeypatch.setattr(schedules, "scale", fail)
    with pytest.raises(RuntimeError, match="broken"):
        Remedy("lr", 0.01, 0.1, params=("0.weight",)).apply(optimizer, schedule, model=model, split=True)
    assert snapshot(optimizer, schedule) == before


# -- as data and in words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("knob", ["lr", "weight_decay", "momentum", "beta2", "eps", "clip"])
def test_json_round_trip(knob: str) -> None:
    remedy = Remedy(knob, 0.01, 5.0, (0, 2), ("a.weight",))
    assert Remedy.from_json(json.loads(json.dumps(remedy.to_json()))) == remedy


def test_json_of_earlier_versions_loads_and_unknown_knobs_do_not() -> None:
    old = {"knob": "lr", "value": 0.01, "was": 0.1, "groups": []}
    assert Remedy.from_json(old) == Remedy("lr", 0.01, 0.1)
    with pytest.raises(ValueError, match="unknown knob 'dropout'"):
        Remedy.from_json({**old, "knob": "dropout"})


def test_words_have_the_numbers() -> None:
    assert Remedy("lr", 0.001, 0.1).describe() == "multiply lr by 0.01 (from 0.1 to 0.001) in every parameter group"
    assert Remedy("eps", 1e-8, 3.0, (0, 1)).describe() == "set eps from 3 to 1e-08 in parameter groups 0, 1"
    assert (
        Remedy("clip", 1.0, 37.2).describe()
        == "clip the norm of all gradients, which was about 37.2, to 1 before each step"
    )
    _, optimizer = two_groups()
    assert (
        Remedy("lr", 0.01, 0.1).apply(optimizer).describe()
        == "lr × 0.1: 0.1 → 0.01 in group 0; 0.03 → 0.003 in group 1"
    )


def test_one_line_of_the_log_says_what_was_done(caplog: pytest.LogCaptureFixture) -> None:
    _, optimizer = two_groups(torch.optim.SGD, weight_decay=5.0)
    with caplog.at_level(logging.INFO, "thermoclaw"):
        Remedy("weight_decay", 0.01, 5.0).apply(optimizer)
    (line,) = caplog.records
    assert line.levelname == "WARNING"
    assert "weight_decay: 5 → 0.01 in group 0, 1" in line.message
