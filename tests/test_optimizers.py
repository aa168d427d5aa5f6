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
    mlp,
    seed_everything,
    train_step,
)
from tests.reference import flatten
from thermoclaw import EntropySplit, Observer
from thermoclaw.measure.hyper import coupling, read_group

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


# -- loss scaling -----------------------------------------------------------------------------------------------------


def scaled_run(
    *,
    fused: bool,
    unscale_first: bool = False,
    overflow_at: tuple[int, ...] = (),
    scale: float = 1024.0,
    **settings: Any,
) -> tuple[Observer, list[float], int]:
    """Seven losses through a gradient scaler; returns the observer, the true squared norms and the steps made."""
    seed_everything(0)
    model = mlp(6, 8, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    observer = Observer(model, optimizer, strict=True, **settings)
    norms, made = [], 0
    for t in range(7):
        optimizer.zero_grad()
        loss = MODELS[0].loss(model)
        grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        scaler.scale(loss).backward()
        if t in overflow_at:
            model[0].weight.grad[0, 0] = float("inf")
        if unscale_first:
            scaler.unscale_(optimizer)
        before = model[0].weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        moved = not torch.equal(before, model[0].weight)
        assert moved is (t not in overflow_at)
        if moved:
            made += 1
            norms.append(sum(float(g.double().square().sum()) for g in grads))
        observer.step(loss=loss)
    return observer, norms, made


@pytest.mark.parametrize("mode", ["sketch", "exact"])
@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_unscaled(fused: bool, unscale_first: bool, mode: str) -> None:
    observer, norms, _ = scaled_run(fused=fused, unscale_first=unscale_first, mode=mode)
    record = observer.record()
    np.testing.assert_allclose(record["grad_sq"].sum(1), norms, rtol=1e-5)
    plain, _, _ = scaled_run(fused=fused, scale=1.0, mode=mode)
    for name in ("coherence", "alignment", "overshoot", "noise", "R_ie_total"):
        np.testing.assert_allclose(record[name], plain.record()[name], rtol=1e-3, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("mode", ["sketch", "exact"])
@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("overflow_at", [(0,), (3,), (2, 3), (6,)])
def test_overflowing_steps_are_not_rows(
    overflow_at: tuple[int, ...], fused: bool, unscale_first: bool, mode: str
) -> None:
    observer, norms, made = scaled_run(fused=fused, unscale_first=unscale_first, overflow_at=overflow_at, mode=mode)
    record = observer.record()
    assert made == 7 - len(overflow_at)
    assert observer.global_step == made
    assert record.steps.tolist() == list(range(1, made + 1))
    np.testing.assert_allclose(record["grad_sq"].sum(1), norms, rtol=1e-5)
    assert np.isfinite(record["grad_sq"]).all()
    assert np.isfinite(record["grad_sq_smooth"]).all()
    assert np.isfinite(record.loss).all()


def test_a_refused_gradient_is_part_of_no_product() -> None:
    """Only one layer overflows; the other's gradient is finite, and still it was not used."""
    record = scaled_run(fused=True, overflow_at=(3,))[0].record()
    coherence = record["coherence"]
    assert np.isnan(coherence[0]).all()
    assert np.isfinite(coherence[1:3]).all()
    assert np.isnan(coherence[3]).all(), "the step after the refused one"
    assert np.isfinite(coherence[4:]).all()
    assert np.isnan(record["overshoot"][3]).all()


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
