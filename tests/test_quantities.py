"""Every stored and derived quantity against the slow reference, and a few against numbers known by heart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from tests.conftest import mlp, seed_everything
from tests.reference import Trace, quantities
from thermoclaw import Observer, Record
from thermoclaw.measure import native
from thermoclaw.measure.probed import PROBED
from thermoclaw.quantities import ALIASES, TABLE, canonical

Loop = Callable[["Setting"], None]


@dataclass
class Setting:
    """One run under observation, by the library and by the reference."""

    model: nn.Sequential
    optimizer: Optimizer
    trace: Trace
    observer: Observer

    def loss(self, size: int = 8) -> Tensor:
        width = self.model[0].in_features
        dtype = next(self.model.parameters()).dtype
        return functional.cross_entropy(self.model(torch.randn(size, width).to(dtype)), torch.randint(4, (size,)))

    def step(self, loss: Tensor) -> None:
        self.trace.before()
        self.optimizer.step()
        self.trace.after(loss)
        self.observer.step(loss=loss)


def plain(run: Setting) -> None:
    run.optimizer.zero_grad()
    loss = run.loss()
    loss.backward()
    run.step(loss)


def accumulated(run: Setting) -> None:
    """Three batches to a step; the recorded loss is their mean."""
    run.optimizer.zero_grad()
    losses = []
    for part in range(3):
        loss = run.loss()
        (loss / 3).backward()
        losses.append(loss.detach())
        if part < 2:
            run.observer.step(loss=loss)
    run.trace.before()
    run.optimizer.step()
    run.trace.after(torch.stack(losses).double().mean())
    run.observer.step(loss=loss)


def clipped(run: Setting) -> None:
    run.optimizer.zero_grad()
    loss = run.loss()
    loss.backward()
    before = [p.grad.clone() for p in run.model.parameters()]
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), 0.1)
    assert norm > 0.1, "the clip must bite"
    for p, g in zip(run.model.parameters(), before, strict=True):
        torch.testing.assert_close(p.grad, g * (0.1 / (norm + 1e-6)))
    run.step(loss)


def with_closure(run: Setting) -> None:
    loss = run.loss()

    def closure() -> Tensor:
        run.optimizer.zero_grad()
        loss.backward()
        return loss

    run.trace.before(grads=False)
    run.optimizer.step(closure)
    run.trace.after(loss)
    run.observer.step(loss=loss)


def scheduled(run: Setting) -> None:
    """A rate and a decay that change at every step."""
    for group in run.optimizer.param_groups:
        group["lr"] *= 0.97
        group["weight_decay"] = 1.02 * group["weight_decay"] + 0.001
    plain(run)


def without_a_layer_now_and_then(run: Setting) -> None:
    """The first layer has no gradient at every third step."""
    run.optimizer.zero_grad()
    loss = run.loss()
    loss.backward()
    if len(run.trace.steps) % 3 == 2:
        run.model[0].weight.grad = run.model[0].bias.grad = None
    run.step(loss)


def two_groups(cls: type[Optimizer], first: dict[str, Any], second: dict[str, Any]) -> Callable[[nn.Module], Optimizer]:
    """Weights in one group, biases in another: every layer is in both."""

    def make(model: nn.Module) -> Optimizer:
        weights = [p for p in model.parameters() if p.dim() > 1]
        biases = [p for p in model.parameters() if p.dim() == 1]
        return cls([{"params": weights, **first}, {"params": biases, **second}], lr=1.0)

    return make


def one_group(cls: type[Optimizer], **settings: Any) -> Callable[[nn.Module], Optimizer]:
    return lambda model: cls(model.parameters(), **settings)


@dataclass(frozen=True)
class Recipe:
    name: str
    make: Callable[[nn.Module], Optimizer]
    decay: str = "decoupled"
    loop: Loop = plain
    num_steps: int = 30
    dtype: torch.dtype = field(default=torch.float64)


_o = torch.optim
MIXED = two_groups(
    _o.SGD,
    {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1},
    {"lr": 0.01, "momentum": 0.5, "weight_decay": 0.0, "nesterov": True},
)
RECIPES = (
    Recipe("sgd", one_group(_o.SGD, lr=0.1), num_steps=230),  # longer than the window of the running median
    Recipe("sgdm_decay", one_group(_o.SGD, lr=0.05, momentum=0.9, weight_decay=0.1), decay="sgd", num_steps=60),
    Recipe("sgd_dampening", one_group(_o.SGD, lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.3), decay="sgd"),
    Recipe("sgd_nesterov", one_group(_o.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.3), decay="sgd"),
    Recipe("sgd_maximize", one_group(_o.SGD, lr=0.01, maximize=True, weight_decay=0.1), decay="sgd"),
    Recipe("adamw", one_group(_o.AdamW, lr=0.01, weight_decay=0.3)),
    Recipe("adamw_maximize", one_group(_o.AdamW, lr=0.01, weight_decay=0.3, maximize=True)),
    Recipe("adam_coupled", one_group(_o.Adam, lr=0.01, weight_decay=0.1), decay="adaptive"),
    Recipe("groups_in_one_layer", MIXED, decay="sgd"),
    Recipe(
        "adam_groups_in_one_layer",
        two_groups(_o.Adam, {"lr": 0.01, "weight_decay": 0.5}, {"lr": 0.003, "betas": (0.5, 0.9)}),
        decay="adaptive",
    ),
    Recipe("schedule", one_group(_o.SGD, lr=0.1, weight_decay=0.1), decay="sgd", loop=scheduled),
    Recipe("accumulation", one_group(_o.AdamW, lr=0.01), loop=accumulated, num_steps=12),
    Recipe("clipping", one_group(_o.SGD, lr=0.1, momentum=0.9), loop=clipped),
    Recipe("closure", one_group(_o.SGD, lr=0.1, momentum=0.9), loop=with_closure),
    Recipe("missing_gradients", one_group(_o.AdamW, lr=0.01), loop=without_a_layer_now_and_then),
    Recipe(
        "missing_gradients_sgdm",
        one_group(_o.SGD, lr=0.05, momentum=0.9, weight_decay=0.3),
        decay="sgd",
        loop=without_a_layer_now_and_then,
    ),
)


def observe(recipe: Recipe, *widths: int, dtype: torch.dtype = torch.float64, **settings: Any) -> tuple[Record, Any]:
    """The library's record and the reference's columns of one run."""
    seed_everything(3)
    model = mlp(*(widths or (6, 12, 9, 4)), dtype=dtype)
    optimizer = recipe.make(model)
    layers = {str(i): [part.weight, part.bias] for i, part in enumerate(model) if isinstance(part, nn.Linear)}
    trace = Trace(layers, optimizer, recipe.decay)
    run = Setting(model, optimizer, trace, Observer(model, optimizer, strict=True, **settings))
    for _ in range(recipe.num_steps):
        recipe.loop(run)
    return run.observer.record(), quantities(trace)


def assert_columns(record: Record, want: dict[str, Any], *, rtol: float) -> None:
    """Each quantity within rtol of its own size; shares of σ within rtol of σ, as they are small differences of it."""
    for name, expected in want.items():
        got = record[name]
        assert got.shape == expected.shape, name
        size = np.abs(expected)
        if name.startswith("d_"):
            size = np.maximum(size, want["sigma"])
        elif name.startswith("total_d"):
            size = np.maximum(size, want["total_d_eS"] + want["total_d_iS"])
        elif name.startswith("R_ie"):
            size = 1.0 + size**2  # d_eS may be small
        elif name in ("coherence", "alignment", "noise_share", "rho_mean"):
            size = np.ones_like(size)
        elif name in ("work", "overshoot"):
            size = np.broadcast_to(np.nanmax(want["grad_norm"] * want["update_norm"]), expected.shape)
        elif name in ("noise", "temperature", "D"):
            size = np.broadcast_to(np.nanmax(size), expected.shape)
        elif name == "norm_budget":
            size = 1.0 + size**2
        np.testing.assert_array_equal(np.isnan(got), np.isnan(expected), err_msg=name)
        worst = np.nanmax(
            np.where(size > 0, np.abs(got - expected) / np.where(size > 0, size, 1.0), np.abs(got - expected))
        )
        assert worst <= rtol, f"{name}: off by {worst:.2e}"


def test_the_reference_covers_the_whole_table() -> None:
    _, want = observe(Recipe("sgd", RECIPES[0].make, num_steps=4))
    assert set(TABLE) - set(want) == {"epoch", *PROBED}, "what probes measure is tested in test_probe.py"
    assert set(want) <= set(TABLE)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.name)
def test_exact_mode_is_the_truth(recipe: Recipe) -> None:
    record, want = observe(recipe, mode="exact")
    assert len(record) == recipe.num_steps
    assert_columns(record, want, rtol=1e-9)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.name)
def test_sketches_of_small_layers_are_exact(recipe: Recipe) -> None:
    """At most 1021 elements a layer: every element has a bucket of its own."""
    record, want = observe(recipe)
    assert_columns(record, want, rtol=1e-9)


@pytest.fixture(params=["kernel", "torch"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Float32 on the CPU is measured by a compiled kernel where there is a compiler, by torch operations elsewhere."""
    if request.param == "torch":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("no C compiler on this machine")
    return str(request.param)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.name)
def test_single_precision_costs_single_precision(recipe: Recipe, backend: str) -> None:
    """float32 parameters and a float32 history: 1e-5, which is what ~100 additions of 6e-8 leave."""
    record, want = observe(recipe, dtype=torch.float32)
    assert record.layer_values.dtype == np.float32
    assert_columns(record, want, rtol=1e-5)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.name)
def test_exact_mode_in_single_precision_keeps_double_sums(recipe: Recipe) -> None:
    record, want = observe(recipe, dtype=torch.float32, mode="exact")
    assert_columns(record, want, rtol=1e-9)


@pytest.mark.parametrize("name", ["sgdm_decay", "adamw", "groups_in_one_layer"])
def test_large_layers_stay_within_the_bounds_of_the_sketch(name: str, backend: str) -> None:
    """Layers of 4,000 to 12,000 elements. Norms are exact; a cosine has sd ≤ √((1 + c²)/p), a sketched norm √(2/p)."""
    recipe = next(r for r in RECIPES if r.name == name)
    record, want = observe(recipe, 30, 130, 90, 4, dtype=torch.float32)
    big = np.array([layer.num_params > 1021 for layer in record.layers])
    assert big.tolist() == [True, True, False]
    for exact in ("grad_sq", "param_sq", "sigma", "grad_sq_smooth", "grad_sq_baseline", "r", "sigma_ema", "lr"):
        np.testing.assert_allclose(record[exact], want[exact], rtol=1e-5, err_msg=exact)
    sd = 1.0 / np.sqrt(1021)
    for cosine in ("coherence", "alignment"):
        worst = np.nanmax(np.abs(record[cosine] - want[cosine]))
        assert worst < 5.0 * sd, cosine
        assert np.nanmean(np.abs(record[cosine] - want[cosine])[:, big]) > 1e-5, "nothing was sketched here"
    for square in ("update_sq", "distance"):
        np.testing.assert_allclose(record[square], want[square], rtol=5.0 * np.sqrt(2.0) * sd, err_msg=square)
    for part in ("d_iS_wd", "d_iS_momentum", "d_iS_noise", "d_eS"):
        worst = np.nanmax(np.abs(record[part] - want[part]) / want["sigma"])
        assert worst < 8.0 * sd, part  # a difference of two cosines, or a cosine and ν
    for product in ("work", "overshoot"):
        scale = want["grad_norm"] * np.nanmax(want["update_norm"], axis=0)
        assert np.nanmax(np.abs(record[product] - want[product]) / scale) < 6.0 * sd, product
    np.testing.assert_allclose(record["noise"], want["noise"], rtol=6.0 * sd)


def test_a_sketch_of_more_numbers_is_more_exact() -> None:
    recipe = next(r for r in RECIPES if r.name == "adamw")
    error = {}
    for size in (251, 4093):
        record, want = observe(recipe, 30, 130, 90, 4, dtype=torch.float32, sketch_size=size)
        error[size] = float(np.sqrt(np.nanmean((record["coherence"] - want["coherence"])[:, :2] ** 2)))
    assert error[4093] < 0.5 * error[251]


# -- numbers known by heart -------------------------------------------------------------------------------------------


def drive(grads: list[Tensor], cls: type[Optimizer] = torch.optim.SGD, **settings: Any) -> tuple[nn.Parameter, Record]:
    """A parameter that starts at `settings["start"]` and is given these gradients, one a step."""
    start = settings.pop("start", torch.zeros_like(grads[0]))
    model = nn.Module()
    model.weight = nn.Parameter(start.clone())
    optimizer = cls([model.weight], **settings)
    observer = Observer(model, optimizer, strict=True)
    for g in grads:
        model.weight.grad = g.clone()
        optimizer.step()
        observer.step()
    return model.weight, observer.record()


def test_one_step_by_hand() -> None:
    """θ = (3, 4), g = (1, 0), η = 0.5: σ = 0.5, Δ = (−0.5, 0), E = 0.25, c = 1, work = 0.5, R_ie = 0."""
    _, record = drive([torch.tensor([1.0, 0.0])], lr=0.5, start=torch.tensor([3.0, 4.0]))
    want = {
        "sigma": 0.5,
        "grad_norm": 1.0,
        "param_sq": 2.5**2 + 16.0,
        "update_norm": 0.5,
        "distance": 0.25,
        "alignment": 1.0,
        "work": 0.5,
        "r": 1.0,
        "R_ie": 0.0,
        "d_eS": 0.5,
        "norm_budget": 0.125 / 1.5,  # ½·0.25 / −⟨(3, 4), (−0.5, 0)⟩
    }
    for name, value in want.items():
        assert record[name][0, 0] == pytest.approx(value, rel=1e-6), name
    for name in ("coherence", "overshoot", "noise"):
        assert np.isnan(record[name][0, 0]), f"{name} needs two steps"


def test_two_steps_by_hand() -> None:
    """g₁ = (1, 0), g₂ = (0, 2), η = 1: ρ = 0, overshoot = ⟨g₂, Δ₁⟩ = 0, tr Σ = ½‖(−1, 2)‖² = 2.5, T = ½·2.5/2."""
    _, record = drive([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])], lr=1.0)
    for name, value in {"coherence": 0.0, "overshoot": 0.0, "noise": 2.5, "temperature": 0.625}.items():
        assert record[name][1, 0] == pytest.approx(value, abs=1e-6), name


def test_a_step_past_the_minimum_overshoots() -> None:
    """On ½‖θ‖² with η = 1.5, g₂ = −½g₁ and Δ₁ = −1.5 g₁: ⟨g₂, Δ₁⟩ = ¾‖g₁‖² > 0; with η = 0.5 it is negative."""
    theta = torch.tensor([2.0, 0.0])
    for lr, want in ((1.5, 0.75 * 4.0), (0.5, -0.25 * 4.0)):
        _, record = drive([theta, theta * (1 - lr)], lr=lr, start=theta)
        assert record["overshoot"][1, 0] == pytest.approx(want, rel=1e-6)


def test_a_schedule_alone_does_not_move_r() -> None:
    g = torch.randn(50)
    for factor in (0.5, 1.0):
        model = nn.Module()
        model.weight = nn.Parameter(torch.zeros(50))
        optimizer = torch.optim.SGD([model.weight], lr=0.1)
        observer = Observer(model, optimizer)
        for _ in range(30):
            model.weight.grad = g.clone()
            optimizer.step()
            observer.step()
            optimizer.param_groups[0]["lr"] *= factor
        np.testing.assert_allclose(observer.record()["r"], 1.0, rtol=1e-6)
        assert observer.record()["eq_frac"][-1] == 1.0


def test_a_jump_of_the_gradient_moves_r() -> None:
    g = torch.ones(20)
    _, record = drive([g] * 40 + [10 * g] * 3, lr=0.01)
    assert record["r"][39, 0] == pytest.approx(1.0)
    assert record["r"][-1, 0] > 10.0


def test_norm_budget_is_one_where_the_norm_stands_still() -> None:
    """A rotation: the gradient is tangent, and decay takes back exactly what the step adds."""
    theta = torch.tensor([1.0, 0.0], dtype=torch.float64)
    lr, values = 0.1, []
    decay = (1 - np.sqrt(1 - lr**2)) / lr  # (1 − ηλ)² + η² = 1 for a unit tangent gradient
    for _ in range(60):
        values.append(torch.tensor([-theta[1], theta[0]]))
        theta = (1 - lr * decay) * theta - lr * values[-1]
    _, record = drive(values, lr=lr, weight_decay=decay, start=torch.tensor([1.0, 0.0], dtype=torch.float64))
    np.testing.assert_allclose(record["param_norm"], 1.0, rtol=1e-9)
    np.testing.assert_allclose(record["norm_budget"], 1.0, rtol=1e-9)


def test_the_noise_share_sees_noise_and_not_drift() -> None:
    """ν is 0 for a constant, a drifting and an alternating gradient, 1 for pure noise, and E ν is the share between."""
    mean = torch.randn(1000, dtype=torch.float64)
    mean /= mean.norm()

    def share(grads: list[Tensor]) -> float:
        return float(drive(grads, lr=1e-6)[1]["noise_share"][-1, 0])

    assert share([mean] * 60) == pytest.approx(0.0, abs=1e-12)
    assert share([mean * (1 - t / 100) for t in range(60)]) == 0.0
    assert share([mean * (-1) ** t for t in range(60)]) == 0.0
    noise = [torch.randn(1000, dtype=torch.float64) / np.sqrt(1000) for _ in range(200)]
    assert share(noise) == pytest.approx(1.0, abs=0.02)
    assert share([mean + x for x in noise]) == pytest.approx(0.5, abs=0.03)


def test_aliases_are_the_same_columns() -> None:
    record, _ = observe(Recipe("sgd", RECIPES[0].make, num_steps=5))
    for alias, name in ALIASES.items():
        assert canonical(alias) == name
        np.testing.assert_array_equal(record[alias], record[name])
    assert ALIASES.keys().isdisjoint(TABLE)
    with pytest.raises(KeyError, match=r"unknown quantity 'sgima'; known ones: .*sigma"):
        record["sgima"]


def test_columns_are_frozen() -> None:
    record, _ = observe(Recipe("sgd", RECIPES[0].make, num_steps=5))
    for name in ("sigma", "R_ie", "loss", "D", "step"):
        with pytest.raises(ValueError, match="read-only"):
            record[name][0] = 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_are_read_as_they_are(dtype: torch.dtype, backend: str) -> None:
    """The sums are those of the rounded numbers, without rounding of their own."""
    recipe = Recipe("sgd", one_group(torch.optim.SGD, lr=0.05), num_steps=8)
    record, want = observe(recipe, dtype=dtype)
    for name in ("grad_sq", "param_sq", "update_sq", "distance", "sigma"):
        np.testing.assert_allclose(record[name], want[name], rtol=1e-5, err_msg=name)


def test_complex_parameters_count_as_pairs_of_reals() -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.tensor([3 + 4j, 0j]))
    optimizer = torch.optim.SGD([model.weight], lr=0.5)
    observer = Observer(model, optimizer, strict=True)
    model.weight.grad = torch.tensor([1j, 2 + 0j])
    optimizer.step()
    observer.step()
    record = observer.record()
    assert record["grad_sq"][0, 0] == pytest.approx(5.0)
    assert record["sigma"][0, 0] == pytest.approx(2.5)
    assert record["distance"][0, 0] == pytest.approx(1.25)
    assert record["alignment"][0, 0] == pytest.approx(1.0)


def test_autocast_does_not_round_the_measurement() -> None:
    recipe = Recipe("sgd", one_group(torch.optim.SGD, lr=0.05), num_steps=6)

    def under_autocast(run: Setting) -> None:
        run.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = run.loss()
            loss.backward()
            run.step(loss)

    record, want = observe(
        Recipe("autocast", recipe.make, loop=under_autocast, num_steps=6), 30, 130, 90, 4, dtype=torch.float32
    )
    np.testing.assert_allclose(record["grad_sq"], want["grad_sq"], rtol=1e-5)
    assert np.nanmax(np.abs(record["alignment"] - 1.0)) < 1e-3


def test_a_split_of_what_has_overflowed_is_undefined_without_a_word() -> None:
    rest = TABLE["d_eS"].derive
    assert rest is not None
    columns = {"sigma": np.array([np.inf, 2.0, 1.0]), "d_iS": np.array([np.inf, 0.5, 3.0])}
    with np.errstate(all="raise"):
        told = rest(columns)
    assert np.isnan(told[0])
    assert told[1:].tolist() == [1.5, 0.0]
