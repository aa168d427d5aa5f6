"""Every measure of a representation against what is known in closed form, on tensors, arrays and lists."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from thermoclaw.representation import (
    CollapseMonitor,
    CollapseThresholds,
    alignment,
    compute_collapse_metrics,
    covariance_penalty,
    dead_share,
    detect_collapse,
    effective_dimension,
    effective_rank,
    expected_rank,
    gaussian_kl,
    neural_collapse,
    participation_ratio,
    rankme,
    record_collapse_metrics,
    spread,
    std_ratio,
    summarize,
    uniformity,
    variance_penalty,
)

Matrix = NDArray[np.float64]
RANKS = (effective_rank, effective_dimension, participation_ratio)


def gaussian(n: int, d: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).standard_normal((n, d))


def simplex(num_classes: int, width: int, seed: int = 0) -> Matrix:
    """Class means of a simplex equiangular tight frame in a random subspace."""
    q, _ = np.linalg.qr(gaussian(width, num_classes, seed))
    return (np.eye(num_classes) - 1 / num_classes) @ q.T


# -- ranks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "expected"), [(64, (58, 49, 42)), (256, (118, 99, 84)), (1024, (126, 120, 114))], ids=["64", "256", "1024"]
)
def test_isotropic_gaussians_have_the_rank_that_is_expected(n: int, expected: tuple[int, int, int]) -> None:
    names = ("effective_rank", "effective_dimension", "participation_ratio")
    for measure, name, known in zip(RANKS, names, expected, strict=True):
        seen = np.mean([measure(gaussian(n, 128, seed)) for seed in range(3)])
        assert expected_rank(n, 128, name) == pytest.approx(known, abs=1.01)
        assert seen == pytest.approx(expected_rank(n, 128, name), rel=0.01)


@pytest.mark.parametrize(("n", "d"), [(40, 200), (200, 40), (100, 100), (32, 12), (1000, 8)])
def test_the_null_holds_for_any_shape(n: int, d: int) -> None:
    for measure, name in ((effective_rank, "effective_rank"), (rankme, "rankme")):
        seen = np.mean([measure(gaussian(n, d, seed)) for seed in range(20)])
        assert seen == pytest.approx(expected_rank(n, d, name), rel=0.015)


def test_the_null_of_rankme_on_the_papers_number_of_rows() -> None:
    assert rankme(gaussian(25_600, 128)) == pytest.approx(expected_rank(25_600, 128, "rankme"), rel=1e-3)
    assert expected_rank(25_600, 128, "rankme") == pytest.approx(128, abs=0.2)


@pytest.mark.parametrize("seed", range(5))
def test_one_direction_is_rank_one_whatever_the_scale(seed: int) -> None:
    line = np.outer(gaussian(50, 1, seed), gaussian(1, 20, seed + 9)) * 10.0 ** (60 * (seed - 2))
    for measure in (*RANKS, rankme):
        assert measure(line) == pytest.approx(1.0, abs=1e-3)  # RankMe adds 1e-7 to each of 20 shares


def test_orthonormal_rows_use_every_direction() -> None:
    q, _ = np.linalg.qr(gaussian(30, 30))
    assert rankme(q) == pytest.approx(30, rel=1e-4)
    both = np.concatenate([q, -q])  # with mean zero
    for measure in RANKS:
        assert measure(both) == pytest.approx(30)


def test_four_tokens_have_three_directions_at_most() -> None:
    for seed in range(5):
        assert effective_dimension(gaussian(4, 16, seed)) <= 3
        assert effective_rank(gaussian(4, 16, seed)) <= 3


@pytest.mark.parametrize("seed", range(8))
def test_ranks_do_not_depend_on_rotation_scale_or_offset_and_keep_their_order(seed: int) -> None:
    random = np.random.default_rng(seed)
    n, d = (int(k) for k in random.integers(8, 60, 2))
    z = random.standard_normal((n, d)) * random.gamma(0.5, 1, d)
    q, _ = np.linalg.qr(random.standard_normal((d, d)))
    for measure in RANKS:
        assert measure(7.0 * z @ q + random.standard_normal(d)) == pytest.approx(measure(z), rel=1e-6)
    assert 1 <= participation_ratio(z) <= effective_dimension(z) <= effective_rank(z) <= min(n - 1, d) + 1e-9


def test_nothing_that_varies_has_no_rank() -> None:
    for measure in RANKS:
        assert math.isnan(measure(np.ones((9, 4))))
    assert math.isnan(rankme(np.zeros((9, 4))))


def test_the_null_refuses_what_it_cannot_tell() -> None:
    with pytest.raises(ValueError, match="choose one of effective_rank"):
        expected_rank(9, 9, "stable_rank")
    with pytest.raises(ValueError, match="at least 2 rows"):
        expected_rank(1, 9)


# -- spread ------------------------------------------------------------------------------------------------------------


def test_uniform_directions_on_the_sphere() -> None:
    z = gaussian(4000, 64)
    assert spread(z) == pytest.approx(1.0, abs=0.01)
    assert std_ratio(z) == pytest.approx(1.0, abs=0.01)
    assert uniformity(z[:1000]) == pytest.approx(-4 + 8 / 64, abs=0.02)  # −2t + 2t²·Var(cos), Var = 1/D
    assert alignment(z, gaussian(4000, 64, 1)) == pytest.approx(2.0, abs=0.02)


@pytest.mark.parametrize("angle", [0.01, 0.3, 1.0])
def test_two_directions_at_an_angle(angle: float) -> None:
    z = np.array([[1.0, 0.0], [math.cos(angle), math.sin(angle)]])
    assert spread(z * [[3.0], [5.0]]) == pytest.approx(math.sin(angle / 2), rel=1e-9)
    assert alignment(z[:1], z[1:]) == pytest.approx(2 - 2 * math.cos(angle))
    assert uniformity(z) == pytest.approx(-2 * (2 - 2 * math.cos(angle)))


def test_a_constant_output_has_collapsed_to_the_last_digit() -> None:
    z = np.full((200, 32), 3.7) + 1e-9 * gaussian(200, 32)
    assert 0 < spread(z) < 1e-9
    assert std_ratio(z) < 1e-9
    assert uniformity(z) == pytest.approx(0, abs=1e-9)


def test_outputs_like_one_hot_rows_are_spread_though_most_features_rest() -> None:
    z = np.eye(1000)[np.arange(256) % 2]
    assert spread(z) == pytest.approx(math.sqrt(0.5))
    assert std_ratio(z) < 0.1  # which is why it is no criterion


def test_variance_and_covariance_terms() -> None:
    z = gaussian(100, 5)
    c = np.cov(z.T)
    assert covariance_penalty(z) == pytest.approx((np.square(c).sum() - np.square(np.diag(c)).sum()) / 5)
    assert covariance_penalty(z.T) == pytest.approx(
        (np.square(np.cov(z)).sum() - np.square(np.diag(np.cov(z))).sum()) / 100
    )
    assert variance_penalty(z) == pytest.approx(np.maximum(0, 1 - np.sqrt(np.diag(c) + 1e-4)).mean())
    assert variance_penalty(10 * z) == 0
    assert dead_share(np.maximum(z, 0) * [1, 0, 1, 0, 1]) == pytest.approx(0.4)


def test_kl_of_a_gaussian() -> None:
    z = gaussian(200_000, 3)
    assert gaussian_kl(z) == pytest.approx(0, abs=1e-3)
    moved = gaussian_kl(z * 2 + 1, shrinkage=0.0)
    assert moved == pytest.approx((1 + 4 - math.log(4) - 1) / 2, rel=0.02)
    assert math.isnan(gaussian_kl(gaussian(8, 8)))
    assert gaussian_kl(np.zeros((9, 2))) == math.inf


# -- neural collapse ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_classes", "width"), [(2, 5), (3, 3), (10, 32)])
def test_a_simplex_has_collapsed_by_all_four_measures(num_classes: int, width: int) -> None:
    means = simplex(num_classes, width)
    labels = np.repeat(np.arange(num_classes), 7)
    found = neural_collapse(5 * means[labels] + 2.0, labels, weight=means, bias=-2.0 * means.sum(axis=1))
    assert found.nc1 == pytest.approx(0, abs=1e-20)
    assert (found.nc2_norms, found.nc2_angles, found.nc3) == pytest.approx((0, 0, 0), abs=1e-6)
    assert found.nc4 == 0


def test_variability_within_classes_is_measured_against_that_between_them() -> None:
    labels = np.repeat(np.arange(4), 5000)
    means = simplex(4, 6)
    z = means[labels] + 0.3 * gaussian(len(labels), 6)
    between = np.cov(means.T, bias=True)
    within = 0.09 * np.eye(6)
    assert neural_collapse(z, labels).nc1 == pytest.approx(np.trace(within @ np.linalg.pinv(between)) / 4, rel=0.05)
    stretched = neural_collapse(np.diag([2.0, 1, 1, 1])[labels], labels)
    assert stretched.nc2_norms > 0.1
    assert stretched.nc2_angles > 0.1


def test_neural_collapse_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="two classes at least"):
        neural_collapse([[1.0], [2.0]], [0, 0])
    with pytest.raises(ValueError, match="one number a row"):
        neural_collapse([[1.0], [2.0]], [0])
    with pytest.raises(ValueError, match=r"give \[K, D\]"):
        neural_collapse([[1.0], [2.0]], [0, 1], weight=[[1.0]])


# -- what is given -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [spread, std_ratio, effective_rank, rankme, uniformity, covariance_penalty])
def test_tensors_arrays_and_lists_are_one(measure: Any) -> None:
    z = gaussian(12, 4).astype(np.float32)
    graph = torch.tensor(z, requires_grad=True)
    assert measure(graph) == measure(z) == measure(z.tolist())
    assert measure(graph.to(torch.bfloat16)) == pytest.approx(measure(z), rel=0.02)
    holed = np.concatenate([z, [[np.nan] * 4, [np.inf] * 4]])
    assert measure(holed) == measure(z)
    assert math.isnan(measure(np.full((3, 4), np.nan)))
    with pytest.raises(ValueError, match="give a matrix"):
        measure([1.0, 2.0])
    with pytest.raises(ValueError, match="rows differ in length"):
        measure([[1.0], [1.0, 2.0]])
    with pytest.raises(TypeError, match="real numbers"):
        measure([["a"]])


def test_a_summary_counts_what_is_not_finite_and_leaves_out_what_is_not_defined() -> None:
    z = gaussian(100, 8)
    z[0, 0], z[1, 1], z[2] = np.nan, np.inf, [np.nan, np.inf, *[0.0] * 6]
    found = summarize(z)
    assert (found["rows"], found["features"], found["nan_rows"], found["inf_rows"]) == (100, 8, 2, 1)
    assert found["rank_share"] == pytest.approx(1, abs=0.05)
    assert found["spread"] == pytest.approx(spread(z), rel=1e-5)
    assert set(summarize(np.full((4, 2), np.nan))) == {"rows", "features", "nan_rows", "inf_rows"}
    zero = summarize(np.zeros((9, 4)))
    assert (zero["scale"], zero["dead_share"]) == (0, 1)
    assert "spread" not in zero


def test_at_most_1024_rows_are_looked_at() -> None:
    assert summarize(np.ones((5000, 2)))["rows"] == 1000
    assert uniformity(np.ones((50_000, 2))) == 0  # all pairs would be 10 GB


# -- GenoLeWM's names --------------------------------------------------------------------------------------------------


def test_metrics_of_a_known_pair() -> None:
    for kind in (list, np.array, torch.tensor):
        found = compute_collapse_metrics(kind([[1.0, 0.0], [0.0, 1.0]]), kind([[1.0, 0.0], [1.0, 1.0]]), kl_reg=3)
        assert found.pred_cos_mean == pytest.approx((1 + 1 / math.sqrt(2)) / 2)
        assert (found.pred_l2_mean, found.target_var_per_dim, found.pred_var_per_dim) == (0.5, 0.125, 0.25)
        assert found.pred_target_corr == pytest.approx(1 / math.sqrt(3))
        assert found.pairwise_pred_dist_mean == pytest.approx(math.sqrt(2))
        assert (found.kl_reg, found.nonfinite_rows) == (3, 0)


def test_rows_that_are_not_finite_are_an_alert_and_no_error() -> None:
    found = compute_collapse_metrics([[1.0, 2.0], [math.nan, 0.0], [3.0, 4.0]], [[1.0, 2.0], [1.0, 1.0], [3.0, 5.0]])
    assert (found.nonfinite_rows, found.pred_l2_mean) == (1, 0.5)
    assert [alert.criterion for alert in detect_collapse(found)] == ["nonfinite_rows"]
    nothing = compute_collapse_metrics([[math.inf]], [[1.0]])
    assert nothing.nonfinite_rows == 1
    assert math.isnan(nothing.pred_cos_mean)
    with pytest.raises(ValueError, match="two of the same"):
        compute_collapse_metrics([[1.0]], [[1.0, 2.0]])


def test_each_criterion_is_strict() -> None:
    p, s = [[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [2.0, 0.0]]
    found = compute_collapse_metrics(p, s, kl_reg=10)
    assert (found.pred_var_per_dim, found.target_var_per_dim) == (0.25, 0.5)
    initial = 2 * found.pairwise_pred_dist_mean
    assert detect_collapse(found, initial_pairwise_pred_dist_mean=initial) == ()
    limits = CollapseThresholds(0.51, 0.51, 9.0)
    alerts = detect_collapse(found, thresholds=limits, initial_pairwise_pred_dist_mean=initial)
    assert [alert.criterion for alert in alerts] == ["pred_var_per_dim", "pairwise_pred_dist_mean", "kl_reg"]
    with pytest.raises(ValueError, match="pairwise_to_initial=0"):
        CollapseThresholds(pairwise_to_initial=0)


def test_the_monitor_has_a_baseline_of_five_healthy_checks() -> None:
    monitor = CollapseMonitor(log_every_steps=10)
    z = gaussian(32, 4)
    assert [step for step in range(41) if monitor.should_log(step)] == [10, 20, 30, 40]
    assert monitor.observe(z, z, step=11) is None
    collapsed = monitor.observe(np.zeros((32, 4)), z, step=10)  # and the first batch at that
    assert collapsed is not None
    assert collapsed.tripped
    assert monitor.baseline is None
    for step, factor in enumerate((1.0, 1.2, 1.1, 1.3, 0.9, 50.0), start=2):
        check = monitor.observe(factor * z, factor * z, step=10 * step)
        assert check is not None
        assert not check.tripped
    assert monitor.baseline == pytest.approx(1.1 * compute_collapse_metrics(z, z).pairwise_pred_dist_mean)


def test_an_alert_is_confirmed_once_by_the_second_check_in_a_row() -> None:
    monitor = CollapseMonitor(log_every_steps=1)
    z = gaussian(32, 4)
    told = []
    for step, factor in enumerate((1, 0.1, 1, 0.1, 0.1, 0.1, 1, 0.1, 0.1), start=1):
        check = monitor.observe(factor * z, factor * z, step=step)
        assert check is not None
        told.append((check.tripped, len(check.confirmed)))
    no, yes, sure = (False, 0), (True, 0), (True, 1)
    assert told == [no, yes, no, yes, sure, yes, no, yes, sure]


def test_metrics_go_to_a_log_and_to_the_record(caplog: pytest.LogCaptureFixture) -> None:
    import thermoclaw

    model = torch.nn.Linear(4, 2)
    observer = thermoclaw.Observer(model, torch.optim.SGD(model.parameters(), lr=0.1))
    monitor = CollapseMonitor(log_every_steps=5, observer=observer)
    with caplog.at_level(logging.INFO, logger="mine"):
        monitor.observe(np.zeros((4, 2)), gaussian(4, 2), step=5, kl_reg=12, logger=logging.getLogger("mine"))
    assert "pred_l2_mean" in caplog.text
    assert "pred_var_per_dim is 0 against" in caplog.text
    (event,) = (e for e in observer.record().events if e["kind"] == "collapse")
    assert event["step"] == 5
    assert {alert["criterion"] for alert in event["alerts"]} == {"pred_var_per_dim", "kl_reg"}
    record_collapse_metrics(compute_collapse_metrics([[1.0]], [[1.0]]))
    with pytest.raises(ValueError, match="log_every_steps=0"):
        CollapseMonitor(log_every_steps=0)
