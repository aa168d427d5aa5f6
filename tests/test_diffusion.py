"""Diffusion and stationarity against simulations whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from thermoclaw.diffusion import (
    Array,
    batch_means,
    fluctuation_dissipation,
    green_kubo,
    lags_of,
    mean_squared_displacement,
    motion_word,
    power_law,
)


def walk(rows: int = 1024, coordinates: int = 200, *, seed: int = 0) -> Array:
    return np.cumsum(np.random.default_rng(seed).standard_normal((rows, coordinates)), axis=0)


def bowl(rows: int, coordinates: int, *, pull: float, noise: float = 1.0, seed: int = 0) -> Array:
    """x ← (1 − pull)·x + noise·ξ from its stationary law: a linear process in a quadratic bowl."""
    random, x = np.random.default_rng(seed), np.zeros((rows, coordinates))
    x[0] = random.standard_normal(coordinates) * noise / math.sqrt(1 - (1 - pull) ** 2)
    for t in range(1, rows):
        x[t] = (1 - pull) * x[t - 1] + noise * random.standard_normal(coordinates)
    return x


def exponent(positions: Array, *, parts: int = 10):
    lags, msd = mean_squared_displacement(positions)
    blocks = np.array([mean_squared_displacement(part)[1] for part in np.array_split(positions, parts, axis=1)])
    return power_law(lags, msd, blocks=blocks)


@pytest.mark.parametrize("seed", range(5))
def test_a_random_walk_diffuses(seed: int) -> None:
    positions = walk(seed=seed)
    lags, msd = mean_squared_displacement(positions)
    np.testing.assert_allclose(msd, lags, rtol=0.1)
    a, level = exponent(positions)
    assert a.value == pytest.approx(1.0, abs=0.05)
    assert level == pytest.approx(1.0, abs=0.05)
    assert motion_word(a) == "diffusive"
    assert green_kubo(positions) == pytest.approx(0.5, abs=0.03)


def test_a_drift_is_no_diffusion() -> None:
    drifting = walk() + 3.0 * np.arange(1024)[:, None]
    assert green_kubo(drifting) == pytest.approx(0.5, abs=0.03)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    held = [exponent(walk(256, 100, seed=seed))[0].holds(1.0) for seed in range(100)]
    assert np.mean(held) > 0.8
    means = [batch_means(np.random.default_rng(seed).standard_normal(500)).holds(0.0) for seed in range(300)]
    assert 0.9 < np.mean(means) < 0.99


def test_a_straight_line_is_ballistic() -> None:
    positions = np.arange(400.0)[:, None] * np.linspace(1, 2, 20)
    a, _ = exponent(positions)
    assert a.value == pytest.approx(2.0)
    assert motion_word(a) == "ballistic"


def test_a_bowl_confines() -> None:
    a, _ = exponent(bowl(2048, 100, pull=0.5))
    assert motion_word(a) == "stuck"
    lags, msd = mean_squared_displacement(bowl(4096, 200, pull=0.2))
    want = 2 / (1 - 0.8**2) * (1 - 0.8**lags)  # 2·variance·(1 − correlation)
    np.testing.assert_allclose(msd, want, rtol=0.05)


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.8])
def test_green_kubo_of_steps_with_a_memory(memory: float) -> None:
    random, rows = np.random.default_rng(1), 6000
    moves = np.zeros((rows, 100))
    for t in range(1, rows):
        moves[t] = memory * moves[t - 1] + random.standard_normal(100)
    assert green_kubo(np.cumsum(moves, axis=0)) == pytest.approx(0.5 / (1 - memory) ** 2, rel=0.1)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_noisy_descent_in_a_bowl_ends_where_fluctuation_and_dissipation_balance(momentum: float) -> None:
    random, theta, velocity = np.random.default_rng(2), np.full(200, 5.0), np.zeros(200)
    norms, moves, products = [], [], []
    for _ in range(6000):
        gradient = theta + random.standard_normal(200)
        velocity = momentum * velocity + gradient
        products.append(float(theta @ gradient))
        step = -0.05 * velocity
        theta = theta + step
        norms.append(float(theta @ theta))
        moves.append(float(step @ step))
    late = fluctuation_dissipation(norms[-3000:], moves[-3000:])
    assert late.holds(1.0)
    assert late.high - late.low < 0.2
    early = fluctuation_dissipation(norms[:60], moves[:60])
    assert early.value > 1.5  # the norm is still shrinking
    yaida = (1 + momentum) / (2 * 0.05) * np.mean(moves[-3000:])  # ⟨θ·g⟩ of relation 1
    assert np.mean(products[-3000:]) == pytest.approx(yaida, rel=0.05)


def test_batch_means_see_correlation() -> None:
    series = bowl(4000, 1, pull=0.02)[:, 0]
    honest = batch_means(series)
    naive = 1.96 * series.std() / math.sqrt(len(series))
    assert honest.high - honest.value > 3 * naive


def test_too_little_is_unknown() -> None:
    assert math.isnan(batch_means([1.0] * 19).value)
    assert math.isnan(fluctuation_dissipation(np.ones(10), np.ones(10)).value)
    assert math.isnan(fluctuation_dissipation(np.full(100, np.nan), np.ones(100)).value)
    assert math.isnan(green_kubo(np.zeros((5, 2))))
    assert len(lags_of(3)) == 0
    assert motion_word(power_law([1, 2], [1.0, 2.0])[0]) == "unknown"
    assert motion_word(power_law([1, 2, 4], [0.0, 0.0, 0.0])[0]) == "unknown"
