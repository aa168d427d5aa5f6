"""One contract for every optimizer: a row holds the gradient it used, the step it took and the settings it had."""

from __future__ import annotations

import copy
import logging
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from tests.conftest import (
    MODELS,
    ONLY_SPARSE,
    OPTIMIZERS,
    PAIRS,
    ModelCase,
    OptimizerCase,
    assert_same_record,
    mlp,
    seed_everything,
    train_step,
)
from tests.reference import flatten
from thermoclaw import EntropySplit, Observer
from thermoclaw.measure.hyper import coupling, read_group
from thermoclaw.quantities import TABLE

# -- the contract -----------------------------------------------------------------------------------------------------


class Witness:
    """Keeps, by its own hooks, the flat gradients and parameters of a model around each optimizer step."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, *, closure: bool) -> None:
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        self.grads: list[np.ndarray] = []
        self.path = [self._now()]
        self.lrs: list[float] = []
        self._closure = closure
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    def _now(self) -> np.ndarray:
        return np.concatenate([flatten(p) for p in self.params])

    def _read(self) -> None:
        zero = [np.zeros(flatten(p).size) if p.grad is None else flatten(p.grad) for p in self.params]
        self.grads.append(np.concatenate(zero))

    def _before(self, optimizer: Optimizer, *_: Any) -> None:
        self.lrs.append(float(optimizer.param_groups[0]["lr"]))
        if not self._closure:
            self._read()

    def _after(self, *_: Any) -> None:
        if self._closure:
            self._read()
        self.path.append(self._now())


@pytest.mark.parametrize(("optimizer_case", "case"), PAIRS, ids=lambda c: c.name)
def test_a_row_is_the_step_that_was_made(optimizer_case: OptimizerCase, case: ModelCase) -> None:
    model = case.make()
    optimizer = optimizer_case.make(model)
    witness = Witness(model, optimizer, closure=optimizer_case.closure)
    observer = Observer(model, optimizer, strict=True, mode="exact")
    sketched = Observer(model, optimizer, strict=True)
    for _ in range(6):
        loss = train_step(model, optimizer, case, closure=optimizer_case.closure)
        observer.step(loss=loss)
    record, rough = observer.record(), sketched.record()
    assert record.steps.tolist() == rough.steps.tolist() == [1, 2, 3, 4, 5, 6]
    path, grads = np.array(witness.path), np.array(witness.grads)
    steps = np.diff(path, axis=0)
    want = {
        "grad_sq": (grads**2).sum(1),
        "update_sq": (steps**2).sum(1),
        "param_sq": (path[1:] ** 2).sum(1),
        "distance": ((path[1:] - path[0]) ** 2).sum(1),
    }
    sign = -1.0 if optimizer.param_groups[0].get("maximize") else 1.0
    work = -sign * (grads * steps).sum(1)
    for name, values in want.items():
        np.testing.assert_allclose(record[name].sum(1), values, rtol=1e-9, atol=1e-30, err_msg=name)
    np.testing.assert_allclose(record["work"].sum(1), work, rtol=1e-9, atol=1e-12 * np.abs(work).max(), err_msg="work")
    np.testing.assert_allclose(record["lr"], np.array(witness.lrs)[:, None] * np.ones_like(record["lr"]), rtol=1e-9)
    for name in ("grad_sq", "param_sq", "sigma"):
        np.testing.assert_allclose(rough[name], record[name], rtol=2e-6, err_msg=name)
    small = np.array([layer.num_params <= 500 for layer in record.layers])
    for name in ("update_sq", "distance", "alignment", "d_iS_wd"):
        got, exact = (r[name][:, small] for r in (rough, record))
        scale = record["sigma"][:, small].max(initial=0.0) if name == "d_iS_wd" else 1.0
        np.testing.assert_allclose(got, exact, rtol=2e-5, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("case", [c for c in OPTIMIZERS if c.decay], ids=lambda c: c.name)
def test_the_way_decay_is_applied_is_known(case: OptimizerCase) -> None:
    """Decoupled decay moves a weight that has no gradient by −ηλθ exactly; decay that passes a scale does not."""
    model = nn.Linear(5, 4, bias=False)
    optimizer = case.make(model)
    group = optimizer.param_groups[0]
    before = model.weight.detach().clone()
    model.weight.grad = torch.zeros_like(before)
    optimizer.step()
    free = -group["weight_decay"] * float(group["lr"]) * before
    moved_freely = torch.allclose(model.weight.detach() - before, free, rtol=1e-4, atol=1e-9)
    assert coupling(optimizer, group) == case.decay
    if case.decay == "decoupled":
        assert moved_freely
    elif case.decay == "adaptive":
        assert not moved_freely


def test_settings_of_a_group_are_read_by_their_names() -> None:
    p = [nn.Parameter(torch.zeros(2, 2))]
    sgd = torch.optim.SGD(p, lr=0.1, momentum=0.8, dampening=0.3, weight_decay=0.2)
    assert read_group(sgd, sgd.param_groups[0])._asdict() == {
        "lr": 0.1,
        "weight_decay": 0.2,
        "momentum": 0.8,
        "dampening": 0.3,
        "sign": 1.0,
        "decoupled": 0.0,
        "adaptive": 0.0,
        "nesterov": 0.0,
    }
    nesterov = torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True, maximize=True)
    assert read_group(nesterov, nesterov.param_groups[0])[-4:] == (-1.0, 0.0, 0.0, 1.0)
    adamw = torch.optim.AdamW(p, lr=torch.tensor(0.5), betas=(0.7, 0.9))
    found = read_group(adamw, adamw.param_groups[0])
    assert (found.lr, found.momentum, found.decoupled) == (0.5, 0.7, 1.0)
    assert np.isnan(read_group(adamw, {"params": p}).lr)
    assert read_group(adamw, {"lr": 1.0, "weight_decay": None, "momentum": None}).weight_decay == 0.0


def test_every_optimizer_of_torch_is_in_the_table() -> None:
    known = {case.cls.__name__ for case in OPTIMIZERS}
    exported = {
        name
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
    }
    assert exported <= known
    assert {c.name for c in OPTIMIZERS if c.cls is torch.optim.SparseAdam} == ONLY_SPARSE


# -- the step against what the optimizer itself knows -----------------------------------------------------------------


def adams_own_step(optimizer: Optimizer, p: Tensor, before: Tensor) -> Tensor:
    """Δ from Adam's state after the step: what the optimizer meant to do."""
    group, state = optimizer.param_groups[0], optimizer.state[p]
    beta1, beta2 = group["betas"]
    t, lr, decay = float(state["step"]), float(group["lr"]), group["weight_decay"]
    second = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    scale = (second.double() / (1 - beta2**t)).sqrt() + group["eps"]
    step = -lr * state["exp_avg"].double() / (1 - beta1**t) / scale
    return (
        step - lr * decay * before.double()
        if group.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW))
        else step
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "settings", [{}, {"amsgrad": True}, {"maximize": True}, {"weight_decay": 0.3}, {"foreach": True}], ids=str
)
@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.AdamW])
def test_the_step_is_the_one_in_adams_state(
    cls: Any, settings: dict[str, Any], fused: bool, dtype: torch.dtype
) -> None:
    if fused:
        settings = {**settings, "foreach": False}
    model = mlp(6, 24, 12, 4, dtype=dtype)
    optimizer = cls(model.parameters(), lr=0.01, fused=fused, **settings)
    observers = [Observer(model, optimizer, strict=True, mode=mode) for mode in ("sketch", "exact")]
    sign = -1.0 if settings.get("maximize") else 1.0
    want: dict[str, list[list[float]]] = {"update_sq": [], "work": []}
    layers = [[part.weight, part.bias] for part in model if isinstance(part, nn.Linear)]
    for _ in range(12):
        before = {p: p.detach().clone() for p in model.parameters()}
        optimizer.zero_grad()
        functional.cross_entropy(model(torch.randn(8, 6, dtype=dtype)), torch.randint(4, (8,))).backward()
        optimizer.step()
        steps = [[adams_own_step(optimizer, p, before[p]) for p in layer] for layer in layers]
        want["update_sq"].append([sum(float(d.square().sum()) for d in layer) for layer in steps])
        along = [
            sum(float((p.grad.double() * d).sum()) for p, d in zip(layer, step, strict=True))
            for layer, step in zip(layers, steps, strict=True)
        ]
        want["work"].append([-sign * x for x in along])
    for observer in observers:
        record = observer.record()
        for name, values in want.items():
            scale = np.abs(values).max()
            rtol = 1e-11 if dtype == torch.float64 else 2e-5  # single precision rounds θ, not Δ
            np.testing.assert_allclose(record[name], values, rtol=rtol, atol=rtol * scale, err_msg=name)


def test_a_step_in_bfloat16_is_what_the_parameters_did_and_not_what_was_meant() -> None:
    """Of small steps bfloat16 keeps a part: Δ is the difference of the parameters, as a snapshot has it."""
    model = mlp(6, 24, 12, 4, dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    observers = [Observer(model, optimizer, strict=True, mode=mode) for mode in ("sketch", "exact")]
    moved, meant = [], []
    for _ in range(10):
        before = [p.detach().clone() for p in model.parameters()]
        x = torch.randn(8, 6, dtype=torch.bfloat16)
        optimizer.zero_grad()
        functional.cross_entropy(model(x), torch.randint(4, (8,))).backward()
        optimizer.step()
        pairs = list(zip(model.parameters(), before, strict=True))
        moved.append(sum(float((p.detach().double() - b.double()).square().sum()) for p, b in pairs))
        meant.append(sum(float(adams_own_step(optimizer, p, b).square().sum()) for p, b in pairs))
    assert abs(np.mean(moved) / np.mean(meant) - 1.0) > 0.1, "bfloat16 keeps these steps whole: nothing is tested"
    for observer in observers:
        np.testing.assert_allclose(observer.record()["update_sq"].sum(1), moved, rtol=1e-5)


def test_a_learning_rate_in_a_tensor_is_that_of_its_step() -> None:
    model = mlp(6, 8, 4)
    lr = torch.tensor(0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)
    observer = Observer(model, optimizer, strict=True)
    used = []
    for _ in range(20):
        used.append(lr.item())
        train_step(model, optimizer, MODELS[0])
        lr.mul_(0.9)  # in place, and long before the row is read
    record = observer.record()
    np.testing.assert_allclose(record["lr"], np.array(used)[:, None] * np.ones((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(record["sigma"], record["lr"] * record["grad_sq"], rtol=1e-6)


def test_accumulated_micro_batches_are_one_row_with_the_gradient_of_the_whole() -> None:
    def run(parts: int) -> Observer:
        seed_everything(0)
        model = mlp(6, 8, 4, dtype=torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        observer = Observer(model, optimizer, strict=True)
        for _ in range(7):
            x, y = torch.randn(24, 6, dtype=torch.float64), torch.randint(4, (24,))
            optimizer.zero_grad()
            for i, (a, b) in enumerate(zip(x.chunk(parts), y.chunk(parts), strict=True), start=1):
                loss = functional.cross_entropy(model(a), b)
                (loss / parts).backward()
                if i == parts:
                    optimizer.step()
                observer.step(loss=loss)
        return observer

    got, want = run(4).record(), run(1).record()
    assert got.steps.tolist() == want.steps.tolist() == [1, 2, 3, 4, 5, 6, 7]
    for name in TABLE:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-9, atol=1e-12, err_msg=name)


# -- optimizers beyond torch's ----------------------------------------------------------------------------------------


class OverwritesGradients(Optimizer):
    """Works in the gradient's memory, as some Muons and Kahan sums do."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.mul_(-group["lr"])
                    p.add_(p.grad)
                    p.grad.fill_(1e6)


def test_an_optimizer_may_overwrite_gradients() -> None:
    model = mlp(6, 8, 4)
    optimizer = OverwritesGradients(model.parameters())
    observer = Observer(model, optimizer, strict=True)
    functional.cross_entropy(model(torch.randn(8, 6)), torch.randint(4, (8,))).backward()
    want = sum(float(p.grad.double().square().sum()) for p in model.parameters())
    optimizer.step()
    observer.step()
    record = observer.record()
    assert record["grad_sq"].sum() == pytest.approx(want, rel=1e-6)
    np.testing.assert_allclose(record["alignment"], 1.0, rtol=1e-6)
    assert record.optimizer == "OverwritesGradients"


class StepsTwice(torch.optim.SGD):
    """A subclass that calls its parent's step: hooks fire once for the step that the user made."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["lr"] *= 0.5
        first = super().step(closure)
        for group in self.param_groups:
            group["lr"] *= 2.0
        return first


def test_a_subclass_that_calls_its_parents_step_is_one_row() -> None:
    model = mlp(6, 4)
    optimizer = StepsTwice(model.parameters(), lr=1.0)
    observer = Observer(model, optimizer, strict=True)
    for _ in range(3):
        train_step(model, optimizer, MODELS[0])
        observer.step()
    record = observer.record()
    assert record.steps.tolist() == [1, 2, 3]
    np.testing.assert_allclose(record["alignment"], 1.0, rtol=1e-5)


class Wrapper:
    """What Accelerate and DeepSpeed put around an optimizer."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def step(self) -> None:
        self.optimizer.step()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()


def test_wrappers_are_unwrapped() -> None:
    model = mlp(6, 4)
    inner = torch.optim.AdamW(model.parameters(), lr=0.01)
    outer = Wrapper(Wrapper(inner))
    observer = Observer(model, outer, strict=True)
    splitter = EntropySplit(model, outer)
    for _ in range(3):
        train_step(model, outer, MODELS[0])
        observer.step()
    assert observer.record().optimizer == "AdamW"
    assert len(observer.record()) == 3
    assert splitter.observer._attachment is observer._attachment
    assert observer.optimizer is outer


class DuckTyped:
    """An optimizer that is none of torch's: no hooks."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        self.param_groups = [{"params": list(params), "lr": lr}]

    def step(self) -> None:
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p -= self.param_groups[0]["lr"] * p.grad

    def zero_grad(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.grad = None


def test_an_optimizer_without_hooks_is_read_at_step_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = mlp(6, 4)
    optimizer = DuckTyped(model.parameters())
    with caplog.at_level(logging.WARNING, logger="thermoclaw"):
        observer = Observer(model, optimizer, strict=True)
    assert "DuckTyped has no step hooks" in caplog.text
    assert "call it after optimizer.step() and before zero_grad()" in caplog.text
    splitter = EntropySplit(observer)
    for _ in range(5):
        loss = train_step(model, optimizer, MODELS[0])
        observer.step(loss=loss)
        splitter.step()
    record = observer.record()
    assert len(record) == 5, "a step is measured once, whoever listens"
    np.testing.assert_allclose(record["alignment"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(record["lr"], 0.1)
    assert np.isfinite(record.loss).all()


def test_a_detector_alone_measures_an_optimizer_without_hooks() -> None:
    model = mlp(6, 4)
    optimizer = DuckTyped(model.parameters())
    splitter = EntropySplit(model, optimizer)
    for _ in range(4):
        train_step(model, optimizer, MODELS[0])
        splitter.step()
    assert len(splitter.record()) == 4


class HooksNeverFire(torch.optim.SGD):
    """A step replaced on the instance, as some trainers do."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.step = self._own_step  # type: ignore[method-assign]

    @torch.no_grad()
    def _own_step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            p.add_(p.grad, alpha=-self.param_groups[0]["lr"])


def test_hooks_that_never_fire_are_noticed(caplog: pytest.LogCaptureFixture) -> None:
    model = mlp(6, 4)
    optimizer = HooksNeverFire(model.parameters(), lr=0.1)
    observer = Observer(model, optimizer, strict=True)
    for _ in range(6):
        observer.step(loss=train_step(model, optimizer, MODELS[0]))
    assert caplog.text.count("do not fire although its parameters move") == 1
    record = observer.record()
    assert len(record) >= 4
    np.testing.assert_allclose(record["alignment"][1:], 1.0, rtol=1e-5)


# -- steps that fail, closures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sketch", "exact"])
def test_a_step_that_raised_leaves_no_trace(mode: str) -> None:
    """The optimizer raises between the hooks; the next step is measured as if nothing had been."""

    class Raises(torch.optim.SGD):
        raising = False

        def step(self, closure: Any = None) -> Any:
            if self.raising:
                raise RuntimeError("out of memory")
            return super().step(closure)

    def run(fail: bool) -> Observer:
        seed_everything(0)
        model = mlp(6, 8, 4)
        optimizer = Raises(model.parameters(), lr=0.1)
        observer = Observer(model, optimizer, strict=True, mode=mode)
        for t in range(8):
            optimizer.zero_grad()
            MODELS[0].loss(model).backward()
            if fail and t == 4:
                optimizer.raising = True
                with pytest.raises(RuntimeError, match="out of memory"):
                    optimizer.step()
                optimizer.raising = False
            optimizer.step()
            observer.step()
        return observer

    got, want = run(True).record(), run(False).record()
    assert got.steps.tolist() == want.steps.tolist()
    for name in ("grad_sq", "coherence", "overshoot", "noise_share", "update_sq"):
        np.testing.assert_array_equal(got[name], want[name])


def test_lbfgs_is_one_row_a_step_with_its_last_gradient() -> None:
    model = mlp(6, 8, 4)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5)
    observer = Observer(model, optimizer, strict=True)
    x, y = torch.randn(32, 6), torch.randint(4, (32,))
    evaluations = 0

    def closure() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(4):
        before = evaluations
        loss = optimizer.step(closure)
        observer.step(loss=loss)
        assert evaluations > before + 1
        want = sum(float(p.grad.double().square().sum()) for p in model.parameters())
        assert observer.record()["grad_sq"][-1].sum() == pytest.approx(want, rel=1e-5)
    assert len(observer.record()) == 4
    assert observer.record().loss[-1] < observer.record().loss[0]


@pytest.mark.parametrize("given", ["in place", "by name"])
@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_with_a_closure_the_gradient_is_the_one_that_it_made(cls: Any, given: str) -> None:
    """Before such a step `.grad` is of another batch, or missing; the row is that of the plain loop."""

    def run(closures: bool) -> Observer:
        seed_everything(0)
        model = mlp(6, 8, 4)
        optimizer = cls(model.parameters(), lr=0.05)
        observer = Observer(model, optimizer, strict=True)
        for t in range(8):

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = MODELS[0].loss(model)
                loss.backward()
                return loss

            if closures:
                for p in model.parameters():
                    p.grad = torch.full_like(p, 1e6) if t % 2 else None
                loss = optimizer.step(closure) if given == "in place" else optimizer.step(closure=closure)
            else:
                loss = closure()
                optimizer.step()
            observer.step(loss=loss)
        return observer

    assert_same_record(run(True).record(), run(False).record())


# -- copies -----------------------------------------------------------------------------------------------------------


def test_copies_and_pickles_of_an_observed_optimizer_are_not_observed() -> None:
    model = mlp(6, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    observer = Observer(model, optimizer, strict=True)
    train_step(model, optimizer, MODELS[0])
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        for p in twin.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        twin.step()
    assert observer.global_step == 1
    optimizer.load_state_dict(optimizer.state_dict())
    train_step(model, optimizer, MODELS[0])
    assert observer.global_step == 2, "loading a state keeps the observer attached"
