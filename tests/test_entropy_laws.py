"""The laws of the entropy split, one by one.

Legend: σ entropy production, c = cos(−g, Δ), β momentum, λ weight decay, N elements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from tests.conftest import OPTIMIZERS, PAIRS, ModelCase, OptimizerCase, mlp, train_step
from thermoclaw import Observer, Record
from thermoclaw.quantities import R_IE_CAP

PARTS = ("d_iS_wd", "d_iS_momentum", "d_iS_noise")
MODES = ["sketch", "exact"]


def share(record: Record, name: str, *, last: int = 0) -> float:
    """A term's share of σ, over all rows or the last ones: a ratio of sums."""
    rows = slice(-last if last else None, None)
    return float(np.nansum(record[name][rows]) / np.nansum(record["sigma"][rows]))


def assert_laws(record: Record, *, rtol: float) -> None:
    """What holds at every step of every run: σ = d_eS + d_iS, the parts sum, nothing is negative, R_ie is bounded."""
    sigma, known = record["sigma"], np.isfinite(record["alignment"]) | (record["grad_sq"] == 0)
    for name in ("d_eS", "d_iS", *PARTS):
        assert (record[name][known] >= 0).all(), name
    np.testing.assert_allclose((record["d_eS"] + record["d_iS"])[known], sigma[known], rtol=rtol, atol=0)
    np.testing.assert_allclose(sum(record[part] for part in PARTS)[known], record["d_iS"][known], rtol=rtol)
    for name in ("R_ie", "R_ie_total", "R_ie_median", "R_ie_max"):
        values = record[name][np.isfinite(record[name])]
        assert len(values)
        assert (values >= 0).all()
        assert (values <= R_IE_CAP).all()
    assert np.isfinite(record["R_ie"][known]).all()


class Parameter(nn.Module):
    """One parameter, whose gradient the test makes up."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(start.clone())


def drive(
    make: Callable[[list[nn.Parameter]], Optimizer],
    grads: list[Tensor],
    *,
    start: Tensor | None = None,
    **settings: Any,
) -> Record:
    model = Parameter(torch.zeros_like(grads[0]) if start is None else start)
    optimizer = make(list(model.parameters()))
    observer = Observer(model, optimizer, strict=True, **settings)
    for g in grads:
        model.weight.grad = g.clone()
        optimizer.step()
        observer.step()
    return observer.record()


def sgd(**settings: Any) -> Callable[[list[nn.Parameter]], Optimizer]:
    return lambda params: torch.optim.SGD(params, **{"lr": 0.1, **settings})


# -- what holds for everything ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer_case", "case"),
    [pair for pair in PAIRS if pair[1].name in ("mlp", "complex", "double")],
    ids=lambda c: c.name,
)
def test_terms_are_not_negative_and_sum_to_sigma(optimizer_case: OptimizerCase, case: ModelCase) -> None:
    model = case.make()
    optimizer = optimizer_case.make(model)
    observer = Observer(model, optimizer, strict=True)
    for _ in range(12):
        observer.step(loss=train_step(model, optimizer, case, closure=optimizer_case.closure))
    # three parts rounded to float32 each
    assert_laws(observer.record(), rtol=1e-12 if case.name == "double" else 1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_the_laws_hold_where_nothing_is_well(mode: str) -> None:
    """Gradients of zero, of nothing but noise, of 1e±15, a step uphill, a rate of zero, and layers that stand still."""
    big, tiny = torch.full((50,), 1e15), torch.full((50,), 1e-15)
    grads = [torch.zeros(50), torch.randn(50), big, tiny, torch.randn(50), torch.zeros(50), torch.randn(50)]
    assert_laws(drive(sgd(momentum=0.99, weight_decay=5.0), grads, start=torch.randn(50), mode=mode), rtol=1e-6)
    assert_laws(drive(sgd(lr=0.0), grads, mode=mode), rtol=1e-6)
    assert_laws(drive(lambda p: torch.optim.AdamW(p, lr=1.0, weight_decay=0.9), grads, mode=mode), rtol=1e-6)
    uphill = drive(sgd(momentum=0.999), [torch.ones(50)] * 20 + [-torch.ones(50)], mode=mode)
    assert uphill["alignment"][-1, 0] < 0
    assert uphill["R_ie"][-1, 0] == R_IE_CAP
    assert_laws(uphill, rtol=1e-6)


def test_a_gradient_that_is_not_finite_makes_no_number_up() -> None:
    grads = [torch.ones(8), torch.full((8,), float("nan")), torch.full((8,), float("inf")), torch.ones(8)]
    record = drive(sgd(), grads)
    assert record["R_ie"][0, 0] < 1e-6
    assert np.isnan(record["R_ie"][1:, 0]).all()


# -- plain gradient descent is the zero of the scale ------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fraction", [0.01, 0.5, 1.0, 1.9, 1.999])
def test_plain_descent_on_a_full_batch_has_no_overhead(fraction: float, mode: str) -> None:
    """SGD on ½θᵀHθ at a rate of `fraction`/λ_max: stable below 2, whatever the path looks like."""
    eigenvalues = torch.logspace(0, -3, 60, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64)).Q
    hessian = basis @ torch.diag(eigenvalues) @ basis.T
    model = Parameter(torch.randn(60, dtype=torch.float64))
    optimizer = torch.optim.SGD(model.parameters(), lr=fraction)
    observer = Observer(model, optimizer, strict=True, mode=mode)
    for _ in range(100):
        optimizer.zero_grad()
        (0.5 * model.weight @ hessian @ model.weight).backward()
        optimizer.step()
        observer.step()
    record = observer.record()
    assert (record["sigma"] > 0).all()
    assert np.abs(record["d_iS"] / record["sigma"]).max() < 1e-7  # 1 − cos of vectors that differ by rounding
    assert record["R_ie"].max() < 1e-7


def test_plain_descent_on_a_full_batch_of_a_network_has_no_overhead() -> None:
    """Layers beyond the size of a sketch, in single precision: up to what rounding leaves of Δ."""
    model = mlp(20, 100, 100, 5)
    x, y = torch.randn(64, 20), torch.randint(5, (64,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    observer = Observer(model, optimizer, strict=True)
    for _ in range(80):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        observer.step()
    record = observer.record()
    assert share(record, "d_iS") < 1e-5
    assert record["R_ie_total"].max() < 1e-4


# -- decay ------------------------------------------------------------------------------------------------------------

DECAYS = [0.01, 0.1, 1.0, 10.0]


@pytest.mark.parametrize("mode", MODES)
def test_decay_alone_appears_as_decay_and_grows_with_it(mode: str) -> None:
    """One step from the same place: c′ = 1, c = cos(g, g + λθ), so d_iS_wd = σ(1 − c) and nothing else."""
    g, theta = torch.randn(400, dtype=torch.float64), torch.randn(400, dtype=torch.float64)
    shares = []
    for decay in DECAYS:
        record = drive(sgd(weight_decay=decay), [g], start=theta, mode=mode)
        force = g + decay * theta
        c = float(torch.dot(g, force) / (g.norm() * force.norm()))
        assert share(record, "d_iS_wd") == pytest.approx(1 - max(c, 0), abs=1e-9)
        assert share(record, "d_iS_momentum") == pytest.approx(0, abs=1e-9)
        assert share(record, "d_iS_noise") == 0
        shares.append(share(record, "d_iS_wd"))
    assert shares == sorted(shares)
    assert shares[-1] > 0.5


def test_decay_alone_over_a_whole_run() -> None:
    """Full batches, no momentum: over a run, too, decay is the only source."""
    x, y = torch.randn(64, 10, dtype=torch.float64), torch.randn(64, 3, dtype=torch.float64)
    found = []
    for decay in (0.0, 0.003, 0.03, 0.3):
        torch.manual_seed(0)
        model = mlp(10, 20, 3, dtype=torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, weight_decay=decay)
        observer = Observer(model, optimizer, strict=True)
        for _ in range(60):
            optimizer.zero_grad()
            functional.mse_loss(model(x), y).backward()
            optimizer.step()
            observer.step()
        record = observer.record()
        assert share(record, "d_iS_momentum") < 1e-9
        assert share(record, "d_iS_noise") < 1e-9
        found.append(share(record, "d_iS_wd"))
    assert found[0] < 1e-9
    assert found == sorted(found)
    assert found[-1] > 0.01


def test_decoupled_decay_appears_as_decay_too() -> None:
    """For AdamW, d_iS_wd grows with λ and the rest, c′, hardly moves at the same state."""
    g, theta = torch.randn(400, dtype=torch.float64), torch.randn(400, dtype=torch.float64)
    wd, momentum = [], []
    for decay in (0.0, *DECAYS):
        record = drive(lambda p, decay=decay: torch.optim.AdamW(p, lr=0.01, weight_decay=decay), [g], start=theta)
        wd.append(share(record, "d_iS_wd"))
        momentum.append(share(record, "d_iS_momentum"))
    assert wd[0] == 0
    assert wd == sorted(wd)
    assert wd[-1] > 0.4
    # the sign of g instead of g: c′ = ‖g‖₁ / (√N ‖g‖); a little less where decay happens to turn Δ towards −g
    want = 1 - float(g.abs().sum() / (np.sqrt(400) * g.norm()))
    np.testing.assert_allclose(momentum, want, atol=1e-4)


def test_the_estimate_for_decay_through_momentum_is_close() -> None:
    """λθ reaches SGD's step through the momentum buffer; the estimate takes θ as constant over that time.

    The truth is SGD's own recursion run on λθ alone.
    """
    beta, decay, lr = 0.9, 0.5, 0.02
    torch.manual_seed(0)
    theta = torch.randn(500, dtype=torch.float64)
    model = Parameter(theta)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=beta, weight_decay=decay)
    observer = Observer(model, optimizer, strict=True)
    pull, truth = torch.zeros(500, dtype=torch.float64), []
    for _ in range(80):
        g = torch.randn(500, dtype=torch.float64) + theta
        before = model.weight.detach().clone()
        model.weight.grad = g.clone()
        optimizer.step()
        observer.step()
        pull = beta * pull + decay * before
        step = model.weight.detach() - before

        def along(d: Tensor, g: Tensor = g) -> float:
            return max(float(-torch.dot(g, d) / (g.norm() * d.norm())), 0.0)

        truth.append(max(along(step + lr * pull) - along(step), 0.0))
    record = observer.record()
    got = record["d_iS_wd"][:, 0] / record["sigma"][:, 0]
    assert np.mean(truth) > 0.02
    assert np.abs(got - truth).max() < 0.25 * max(truth)
    assert np.mean(got) == pytest.approx(np.mean(truth), rel=0.15)


def test_an_observer_that_comes_late_knows_momentum_is_built_up() -> None:
    """Attached after 200 steps, it sees in the next step what an observer that was there from the start sees.

    Momentum carries twenty steps of decay by then: taken for one, the decay part would be a twentieth.
    """
    model = Parameter(torch.randn(300, dtype=torch.float64))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.95, weight_decay=1.0)
    early, late = Observer(model, optimizer, strict=True), None
    for t in range(201):
        if t == 200:
            late = Observer(model, optimizer, strict=True, lag=4)
        model.weight.grad = torch.randn(300, dtype=torch.float64)
        optimizer.step()
    assert late is not None
    got, want = (share(observer.record(), "d_iS_wd", last=1) for observer in (late, early))
    assert want > 0.1
    assert got == pytest.approx(want, rel=0.05)
    assert share(late.record(), "d_iS", last=1) == pytest.approx(share(early.record(), "d_iS", last=1), rel=0.05)


# -- momentum ---------------------------------------------------------------------------------------------------------


def pure_noise(num_steps: int, *, n: int = 20_000) -> list[Tensor]:
    return [torch.randn(n) for _ in range(num_steps)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.99])
def test_momentum_on_pure_noise_costs_what_theory_says(beta: float, mode: str) -> None:
    """c → √(1 − β²), so d_iS_momentum = σ(1 − √(1 − β²)); a cosine of N = 20,000 numbers is good to 1/√N = 0.7 %."""
    warm = 300 if beta == 0.99 else 60
    record = drive(sgd(momentum=beta), pure_noise(warm + 30), mode=mode)
    want = 1 - np.sqrt(1 - beta**2)
    # the sketch's own deviation, averaged over 30 independent steps
    tolerance = 0.005 if mode == "exact" else 0.02
    assert share(record, "d_iS_momentum", last=30) == pytest.approx(want, abs=tolerance)
    assert share(record, "d_iS_wd") == 0


def test_overhead_of_momentum_grows_with_it() -> None:
    noise = pure_noise(80, n=2000)
    shares = [
        share(drive(sgd(momentum=beta), noise, mode="exact"), "d_iS_momentum") for beta in (0.0, 0.3, 0.6, 0.9, 0.97)
    ]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(0, abs=1e-6)


def test_momentum_along_a_steady_gradient_costs_nothing() -> None:
    record = drive(sgd(momentum=0.9), [torch.ones(300)] * 30)
    assert share(record, "d_iS_momentum") == pytest.approx(0, abs=1e-6)


def test_adam_on_pure_noise_has_the_floor_of_its_first_moment() -> None:
    """Adam's average has the same cosine as momentum's; its scale by element turns it little where all are alike."""
    record = drive(lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.9, 0.999)), pure_noise(200, n=5000), mode="exact")
    assert record["alignment"][-50:].mean() == pytest.approx(np.sqrt(1 - 0.9**2), abs=0.02)


# -- noise ------------------------------------------------------------------------------------------------------------


def regression(batch: int, *, steps: int = 400) -> Record:
    """Linear regression at a rate so low that the mean gradient stands still."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(256, 40, generator=random, dtype=torch.float64)
    y = x @ torch.randn(40, 1, generator=random, dtype=torch.float64) + torch.randn(256, 1, generator=random).double()
    torch.manual_seed(0)
    model = nn.Linear(40, 1, bias=False, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    observer = Observer(model, optimizer, strict=True)
    for _ in range(steps):
        rows = torch.randperm(256, generator=random)[:batch]
        optimizer.zero_grad()
        functional.mse_loss(model(x[rows]), y[rows]).backward()
        optimizer.step()
        observer.step()
    return observer.record()


def test_batch_noise_appears_as_noise_and_grows_as_batches_shrink() -> None:
    records = {batch: regression(batch) for batch in (1, 4, 16, 64, 256)}
    shares = [float(np.mean((r["d_iS_noise"] / r["sigma"])[40:])) for r in records.values()]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 0, "a full batch has no noise"
    assert shares[0] > 0.1
    for record in records.values():
        assert share(record, "d_iS_wd") == 0
        assert share(record, "d_iS_momentum") < 1e-9


def test_the_noise_share_is_the_true_one() -> None:
    """ν against tr Σ / E‖g‖² over all batches of one example, at the same parameters."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(256, 40, generator=random, dtype=torch.float64)
    y = x @ torch.randn(40, 1, generator=random, dtype=torch.float64) + 3.0
    torch.manual_seed(3)
    model = nn.Linear(40, 1, bias=False, dtype=torch.float64)
    each = 2 * (model(x).detach() - y) * x  # gradients of the squared error, one a row
    mean = each.mean(0)
    want = 1 - float(mean.square().sum() / each.square().sum(1).mean())
    choices = torch.randint(256, (4000,), generator=random)
    record = drive(sgd(lr=1e-9), [each[i] for i in choices])
    got = record["noise_share"][100:].mean()
    assert 0.3 < want < 0.98
    assert got == pytest.approx(want, abs=0.05)
    noise = float((each - mean).square().sum(1).mean())
    assert record["noise"][100:].mean() == pytest.approx(noise, rel=0.1)


def test_pure_noise_under_usual_momentum_stays_below_the_band_of_dominance() -> None:
    record = drive(sgd(momentum=0.9), pure_noise(200, n=1000))
    assert 1.0 < record["R_ie_total"][-50:].mean() < 2.0


# -- scale ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.01, 100.0, 2.0**-7, 2.0**7])
@pytest.mark.parametrize("name", ["adamw", "adam", "nadam", "adamax", "rmsprop_centered", "muon"])
def test_a_constant_on_the_loss_changes_no_share(name: str, factor: float) -> None:
    """With ε negligible these optimizers ignore the scale of the loss, and so must every share (σ itself scales)."""
    if name == "muon" and not np.log2(factor).is_integer():
        pytest.skip("Muon orthogonalizes in bfloat16, which is invariant under powers of two alone")
    case = next((c for c in OPTIMIZERS if c.name == name), None)
    if case is None:
        pytest.skip(f"this torch has no {name}")
    free = {"weight_decay": 0.0} if case.decay == "adaptive" else {}  # λθ added to g does not scale with it

    def run(scale: float) -> Record:
        torch.manual_seed(0)
        model = mlp(8, 16, 4, dtype=torch.float64)
        optimizer = case.make(model, eps=1e-30, **free)
        observer = Observer(model, optimizer, strict=True)
        for _ in range(40):
            optimizer.zero_grad()
            x, y = torch.randn(8, 8, dtype=torch.float64), torch.randint(4, (8,))
            (scale * functional.cross_entropy(model(x), y)).backward()
            optimizer.step()
            observer.step()
        return observer.record()

    plain, scaled = run(1.0), run(factor)
    np.testing.assert_allclose(scaled["sigma"], factor**2 * plain["sigma"], rtol=1e-6)
    for part in (*PARTS, "d_eS"):
        np.testing.assert_allclose(
            scaled[part] / scaled["sigma"], plain[part] / plain["sigma"], atol=1e-6, err_msg=part
        )
    for other in ("alignment", "coherence", "noise_share", "r", "norm_budget", "update_ratio", "R_ie_total"):
        np.testing.assert_allclose(scaled[other], plain[other], rtol=1e-5, atol=1e-6, err_msg=other)


# -- healthy training -------------------------------------------------------------------------------------------------

RECIPES = {
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-3, weight_decay=0.01),
    "adamw_warm": lambda params: torch.optim.AdamW(params, lr=3e-3, weight_decay=0.05, betas=(0.9, 0.95)),
    "sgdm": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=5e-4),
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1),
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("batch", [32, 128])
def test_healthy_training_lies_below_the_band_of_dominance(
    recipe: str, batch: int, digits: tuple[Tensor, Tensor]
) -> None:
    """The usual recipes on handwritten digits: the run's median of the network's R_ie is below 2, and it learns."""
    x, y = digits
    model = mlp(64, 96, 96, 10)
    optimizer = RECIPES[recipe](model.parameters())
    observer = Observer(model, optimizer, strict=True)
    for _ in range(250):
        rows = torch.randint(len(x), (batch,))
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        observer.step(loss=loss)
    record = observer.record()
    assert record.loss[-20:].mean() < 0.5 * record.loss[0]
    assert np.median(record["R_ie_total"]) < 2.0
    assert np.median(record["R_ie_median"]) < 2.0
    assert_laws(record, rtol=1e-6)
