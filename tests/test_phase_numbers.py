"""What the phase monitor computes, against closed forms, known values and the slow way.

Legend: T steps, n coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from thermoclaw.phase import shapes, spectra
from thermoclaw.phase.describe import Looked, pooled
from thermoclaw.phase.lattice import LEAST_VALUES, find_lattice
from thermoclaw.phase.measure import orders, sample_places
from thermoclaw.phase.rows import Piece

N = 50_000
Make = Callable[[np.random.Generator], np.ndarray]


def ternary(rng: np.random.Generator, n: int = N) -> np.ndarray:
    return 0.07 * rng.integers(-1, 2, n)


# -- lattice order ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "order", "within"),
    [
        (lambda r: r.normal(size=N), 0.01, 0.015),
        (lambda r: r.uniform(-1, 1, N), abs(float(np.sinc(3**0.5))), 0.01),
        (lambda r: r.laplace(size=N), 0.176, 0.02),
        (lambda r: r.choice([-1, 1], N) + 0.5 * r.normal(size=N), 0.36, 0.02),
        (lambda r: ternary(r), 1.0, 1e-4),
        (lambda r: 0.3 * r.choice([-1, 1], N), 1.0, 1e-4),
        (lambda r: 0.3 * r.choice([-1, 1], N, p=[0.1, 0.9]), 1.0, 1e-4),
        (lambda r: 0.5 * r.integers(0, 2, N), 1.0, 1e-4),
        (lambda r: 0.01 * r.integers(-8, 8, N), 1.0, 2e-3),
        (lambda r: 3.0 + ternary(r), 1.0, 1e-4),
        (lambda r: ternary(r) * (r.random(N) < 0.1), 1.0, 1e-4),
    ],
    ids=["normal", "uniform", "laplace", "bimodal", "ternary", "binary", "uneven", "0 or 1", "int4", "moved", "sparse"],
)
def test_lattice_order_of_known_distributions(make: Make, order: float, within: float) -> None:
    assert find_lattice(make(np.random.default_rng(0))).order == pytest.approx(order, abs=within)


@pytest.mark.parametrize("noise", [0.05, 0.1, 0.15])
def test_noise_about_a_lattice_follows_debye_and_waller(noise: float) -> None:
    """order = exp(−2π²ν²), ν in spacings; read back as `noise`."""
    rng = np.random.default_rng(0)
    found = find_lattice(ternary(rng) + 0.07 * noise * rng.normal(size=N))
    assert found.order == pytest.approx(math.exp(-2 * math.pi**2 * noise**2), abs=0.01)
    assert found.noise == pytest.approx(noise, rel=0.03)
    assert found.spacing == pytest.approx(0.07, rel=0.06)


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 1e20])
def test_lattice_order_knows_no_scale(scale: float) -> None:
    rng = np.random.default_rng(0)
    values = ternary(rng) + 0.007 * rng.normal(size=N)
    assert find_lattice(scale * values).order == pytest.approx(find_lattice(values).order, abs=1e-6)


@pytest.mark.parametrize(
    ("values", "spacing"),
    [(ternary(np.random.default_rng(0)), 0.07), (0.3 * np.random.default_rng(0).choice([-1, 1], N), 0.6)],
    ids=["with zeros", "without"],
)
def test_the_spacing_is_the_longest_on_which_the_zeros_lie(values: np.ndarray, spacing: float) -> None:
    assert find_lattice(values).spacing == pytest.approx(spacing, rel=1e-3)


def test_pruned_weights_are_no_lattice() -> None:
    rng = np.random.default_rng(0)
    assert find_lattice(rng.normal(size=N) * (rng.random(N) < 0.1)).order < 0.06


@pytest.mark.parametrize(
    "values",
    [np.zeros(N), np.ones(N), np.ones(0), np.ones(LEAST_VALUES - 1), np.full(N, np.nan), np.array([np.inf] * N)],
    ids=["zeros", "one value", "none", "few", "nan", "inf"],
)
def test_lattice_order_is_not_defined(values: np.ndarray) -> None:
    assert math.isnan(find_lattice(values).order)
    assert math.isnan(find_lattice(values).noise)


def test_chance_stays_below_the_threshold_of_glass() -> None:
    rng = np.random.default_rng(0)
    assert max(find_lattice(rng.normal(size=LEAST_VALUES)).order for _ in range(200)) < 0.3


def test_the_device_finds_what_the_host_finds() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=2048), ternary(rng, 2048), rng.uniform(size=2048), ternary(rng, 300), np.ones(2048)]
    rows += [np.zeros(2048), 0.5 * rng.integers(0, 2, 2048), ternary(rng, 100), np.r_[np.nan, ternary(rng, 2047)]]
    rows += [1e-30 * ternary(rng, 2048), ternary(rng, 2048) + 0.01 * rng.normal(size=2048)]
    rows.append(rng.normal(size=2048) * (rng.random(2048) < 0.3))  # pruned
    sample, valid = torch.zeros(len(rows), 2048), torch.zeros(len(rows), 2048, dtype=torch.bool)
    for i, row in enumerate(rows):
        sample[i, : len(row)], valid[i, : len(row)] = torch.from_numpy(row), True
    found = orders(sample, valid).numpy()
    want = np.array([find_lattice(row).order for row in rows])
    np.testing.assert_allclose(found, want, atol=0.01)
    assert np.isnan(want).sum() == 4


# -- shapes -----------------------------------------------------------------------------------------------------------


def test_the_entropy_of_a_ternary_crystal_is_ln_3() -> None:
    assert shapes.histogram_entropy(ternary(np.random.default_rng(0))) == pytest.approx(math.log(3), abs=1e-3)
    assert shapes.histogram_entropy(np.random.default_rng(0).uniform(size=N)) == pytest.approx(math.log(50), abs=1e-2)


@pytest.mark.parametrize("n", [300, 3000, 300_000])
def test_negentropy_is_nil_for_a_gaussian(n: int) -> None:
    rng = np.random.default_rng(0)
    found = [shapes.negentropy(rng.normal(3, 0.01, n)) for _ in range(20)]
    assert np.mean(found) == pytest.approx(0, abs=0.02 if n == 300 else 0.004)


def test_negentropy_of_a_uniform_and_of_a_crystal() -> None:
    rng = np.random.default_rng(0)
    uniform = 0.5 * math.log(2 * math.pi * math.e) - math.log(math.sqrt(12))
    assert shapes.negentropy(rng.uniform(size=300_000)) == pytest.approx(uniform, abs=0.015)
    assert shapes.negentropy(ternary(rng)) > 2
    assert math.isnan(shapes.negentropy(np.ones(1000)))


def test_independent_levels_have_the_poisson_ratio() -> None:
    found = shapes.spacing_ratio(np.random.default_rng(0).uniform(size=N), least=1e-12)
    assert found == pytest.approx(2 * math.log(2) - 1, abs=0.005)
    assert math.isnan(shapes.spacing_ratio(np.ones(5), least=1e-9))


def test_levels_of_the_gaussian_orthogonal_ensemble_have_theirs() -> None:
    rng = np.random.default_rng(0)
    matrices = [rng.normal(size=(150, 150)) for _ in range(40)]
    found = [shapes.spacing_ratio(np.linalg.eigvalsh(m + m.T), least=1e-9) for m in matrices]
    assert np.mean(found) == pytest.approx(0.5307, abs=0.01)


def with_singular_values(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    n = len(values)
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
    return left * values @ right.T


def test_singular_values_repel_each_other_or_do_not() -> None:
    rng = np.random.default_rng(0)
    random = [shapes.spectral_spacing(rng.normal(size=(200, 120))) for _ in range(20)]
    assert np.mean(random) == pytest.approx(0.5307, abs=0.02)
    alone = [shapes.spectral_spacing(with_singular_values(rng.uniform(size=128), rng)) for _ in range(20)]
    assert np.mean(alone) == pytest.approx(0.3863, abs=0.02)
    assert math.isnan(shapes.spectral_spacing(rng.normal(size=(63, 100))))
    assert math.isnan(shapes.spectral_spacing(np.zeros((100, 100))))
    assert shapes.spectral_spacing(rng.normal(size=(700, 900))) == pytest.approx(0.53, abs=0.04)  # a part of it


def test_interference_of_known_rows_and_against_the_slow_way() -> None:
    rng = np.random.default_rng(0)
    assert shapes.interference(np.eye(8)) == pytest.approx(0, abs=1e-12)
    assert shapes.interference(np.ones((20, 7))) == pytest.approx(7)
    assert shapes.interference(rng.normal(size=(300, 40))) == pytest.approx(1, abs=0.02)
    for shape in ((6, 30), (30, 6)):
        matrix = rng.normal(size=shape)
        rows = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        pairs = [(rows[i] @ rows[j]) ** 2 for i in range(shape[0]) for j in range(shape[0]) if i != j]
        assert shapes.interference(matrix) == pytest.approx(shape[1] * np.mean(pairs))
    assert math.isnan(shapes.interference(np.ones((1, 5))))


def test_shares() -> None:
    rng = np.random.default_rng(0)
    assert shapes.active_share(rng.normal(size=N)) == pytest.approx(0.9203, abs=0.005)
    assert shapes.local_complexity(rng.normal(size=N), epsilon=1e-9) == pytest.approx(0.984, abs=0.002)
    matrix = rng.normal(size=(10, 4))
    matrix[:3] = 0
    assert shapes.empty_rows(matrix) == pytest.approx(0.3)
    assert shapes.empty_rows(np.zeros((3, 3))) == 1


# -- spectra ----------------------------------------------------------------------------------------------------------


def gradients(steps: int = 12, n: int = 40) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(steps, n)) * np.linspace(0.2, 3, n)


def test_the_gram_matrix_has_the_spectrum_of_the_covariance() -> None:
    g = gradients()
    slow = np.linalg.eigvalsh(np.cov(g.T))[::-1]
    np.testing.assert_allclose(spectra.gram_spectrum(spectra.centered(g)), slow[:11])


@pytest.mark.parametrize("scale", [1e-140, 1e140])
def test_spectra_know_no_scale(scale: float) -> None:
    deviations = spectra.centered(gradients())
    found = spectra.gram_spectrum(scale * deviations)
    np.testing.assert_allclose(found / scale**2, spectra.gram_spectrum(deviations))
    np.testing.assert_allclose(
        spectra.correlation_spectrum(scale * deviations), spectra.correlation_spectrum(deviations)
    )


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_spectra_beyond_the_range_of_numbers_are_no_error(scale: float) -> None:
    deviations = scale * spectra.centered(gradients())
    with np.errstate(all="ignore"):
        found = spectra.gram_spectrum(deviations)
        assert not math.isfinite(spectra.condition_number(found))
        assert not math.isfinite(spectra.participation_ratio(found))
        assert len(spectra.correlation_spectrum(deviations)) == 11


def test_the_gram_matrix_has_the_spectrum_of_the_correlations() -> None:
    g = gradients()
    slow = np.linalg.eigvalsh(np.corrcoef(g.T))[::-1]
    np.testing.assert_allclose(spectra.correlation_spectrum(spectra.centered(g)), slow[:11])
    still = np.column_stack([g, np.full((12, 3), 7.0)])  # corrcoef would be NaN
    np.testing.assert_allclose(spectra.correlation_spectrum(spectra.centered(still)), slow[:11])


def test_spectra_of_gradients_that_do_not_vary_are_empty() -> None:
    still = spectra.centered(np.full((9, 5), 0.3))
    for found in (spectra.gram_spectrum(still), spectra.correlation_spectrum(still)):
        assert len(found) == 0
    assert math.isnan(spectra.participation_ratio(np.empty(0)))
    assert math.isnan(spectra.condition_number(np.empty(0)))


def test_participation_ratio_of_known_spectra() -> None:
    assert spectra.participation_ratio(np.ones(9)) == pytest.approx(9)
    assert spectra.participation_ratio(np.array([1.0, 0, 0])) == pytest.approx(1)
    assert spectra.participation_ratio(np.array([3.0, 1.0])) == pytest.approx(1.6)


def test_kappa_of_independent_gradients_is_the_marchenko_pastur_value() -> None:
    rng = np.random.default_rng(0)
    for steps, n in ((100, 1000), (50, 5000), (200, 1000)):
        deviations = spectra.centered(rng.normal(size=(steps, n)))
        found = spectra.condition_number(spectra.gram_spectrum(deviations))
        chance = spectra.marchenko_pastur_kappa(steps, spectra.effective_coordinates(deviations))
        assert found / chance == pytest.approx(1, abs=0.12)
        y = (steps - 1) / n
        assert chance == pytest.approx(((1 + math.sqrt(y)) / (1 - math.sqrt(y))) ** 2, rel=0.02)
    assert math.isnan(spectra.marchenko_pastur_kappa(50, 49))


def test_effective_coordinates_make_unequal_variances_comparable() -> None:
    rng = np.random.default_rng(0)
    scale = np.exp(rng.normal(size=6000))
    deviations = spectra.centered(rng.normal(size=(40, 6000)) * scale)
    effective = spectra.effective_coordinates(deviations)
    assert effective < 2000
    kappa = spectra.condition_number(spectra.gram_spectrum(deviations))
    assert kappa / spectra.marchenko_pastur_kappa(40, effective) == pytest.approx(1, abs=0.35)
    assert kappa / spectra.marchenko_pastur_kappa(40, 6000) > 1.6


def test_noise_does_not_depend_on_the_window() -> None:
    rng = np.random.default_rng(0)
    drift = np.linspace(0, 1, 400)[:, None] * np.ones(50)
    g = drift + 0.3 * rng.normal(size=(400, 50))
    assert spectra.successive_noise(g) == pytest.approx(50 * 0.09, rel=0.05)
    assert spectra.successive_noise(g[:40]) == pytest.approx(50 * 0.09, rel=0.1)


def test_the_uncertainty_product_is_unchanged_by_scale() -> None:
    rng = np.random.default_rng(0)
    weights, slopes = rng.normal(size=(20, 30)), rng.normal(size=(20, 30))
    found = spectra.uncertainty_product(weights, slopes)
    assert found == pytest.approx(spectra.uncertainty_product(5 * weights, slopes / 5))
    assert found == pytest.approx(sum(np.std(weights, axis=0, ddof=1) * np.std(slopes, axis=0, ddof=1)))


def test_missing_gradients_leave_what_is_common() -> None:
    g = gradients(6, 5)
    g[2] = np.nan  # a step without any
    g[4, 1] = np.nan  # one coordinate
    kept, steps, coordinates = spectra.usable(g)
    assert kept.shape == (5, 4)
    assert steps.tolist() == [True, True, False, True, True, True]
    assert coordinates.tolist() == [True, False, True, True, True]
    assert spectra.usable(np.full((3, 2), np.nan))[0].shape == (0, 0)


def test_losses() -> None:
    line = np.linspace(5, 1, 50)
    assert spectra.mean_slope(line) == pytest.approx(4 / 49)
    assert spectra.detrended_variation(line) == pytest.approx(0, abs=1e-12)
    noisy = line + 0.1 * np.random.default_rng(0).normal(size=50)
    assert spectra.detrended_variation(noisy) == pytest.approx(0.1 / 3, rel=0.25)
    assert spectra.variation(np.array([1.0, 3.0])) == pytest.approx(0.5)
    for few in (np.empty(0), np.ones(1)):
        assert all(math.isnan(f(few)) for f in (spectra.mean_slope, spectra.detrended_variation, spectra.variation))


def test_pooled_weights_are_in_proportion_to_the_parameters() -> None:
    """A tenth of a large parameter was looked at, and all of a small one."""
    sizes, seen = (100_000, 3_000), (10_000, 3_000)
    pieces = [Piece(str(n), str(n), n, n, False, True) for n in sizes]
    looked = [Looked(p, np.full(k, float(p.size)), {}) for p, k in zip(pieces, seen, strict=True)]
    assert np.unique(pooled(looked), return_counts=True)[1].tolist() == [300, 10_000]
    whole = [Looked(p, np.arange(float(p.size)), {}) for p in pieces]
    np.testing.assert_array_equal(pooled(whole), np.r_[np.arange(100_000), np.arange(3_000)])


def test_sampled_places_are_different_spread_and_in_pairs() -> None:
    places = sample_places(10_000, 2048, width=1, seed=3)
    assert len(set(places.tolist())) == 2048
    assert np.histogram(places[:256], bins=4, range=(0, 10_000))[0].min() > 40  # the first of them, too
    pairs = sample_places(5000, 2048, width=2, seed=3).reshape(-1, 2)
    assert (pairs[:, 0] % 2 == 0).all()
    assert (pairs[:, 1] == pairs[:, 0] + 1).all()
    assert pairs.max() < 10_000
