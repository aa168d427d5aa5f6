"""Gradient spikes, clipping and how steady norms are: closed forms, and a run whose spikes are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import assert_bitwise, mlp, outcome, seed_everything
from thermoclaw import Observer, SpikeDetector
from thermoclaw.detectors.norms import (
    clipping,
    find_spikes,
    norm_stability,
    recommended_max_norm,
    robust_z,
)

# -- norms ------------------------------------------------------------------------------------------------------------


def test_z_is_that_of_the_window_before() -> None:
    x = np.random.default_rng(0).standard_normal(400)
    z, over, _ = robust_z(np.exp(x), window=100)
    known = x[200:300]
    width = 1.4826 * np.median(np.abs(known - np.median(known))) + 1e-3
    assert z[300] == pytest.approx((x[300] - np.median(known)) / width)
    assert over[300] == pytest.approx(math.exp(x[300] - np.median(known)))
    assert np.isnan(z[:30]).all()
    assert np.isfinite(z[30:]).all()


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_has_no_spikes(seed: int) -> None:
    random = np.random.default_rng(seed)
    assert find_spikes(np.exp(0.5 * random.standard_normal(3000))) == []
    assert find_spikes(np.exp(np.linspace(0, 5, 3000) + 0.1 * random.standard_normal(3000))) == []


def test_spikes_do_not_hide_one_another() -> None:
    norms = np.exp(0.05 * np.random.default_rng(1).standard_normal(600))
    rows = [100, 101, 102, 140, 300, 599]
    norms[rows] *= 8.0
    assert [spike.step for spike in find_spikes(norms)] == [row + 1 for row in rows]
    assert find_spikes(norms, np.arange(600) * 5)[0].step == 500


def test_what_is_regular_is_no_outlier() -> None:
    norms = np.where(np.random.default_rng(2).random(2000) < 0.2, 7.0, 1.0)
    assert find_spikes(norms) == []
    assert len(find_spikes(np.where(np.arange(2000) % 100 == 99, 7.0, 1.0))) == 20  # once in a hundred is rare


def test_norms_that_are_none_are_passed_over() -> None:
    norms = np.ones(60)
    norms[[35, 36, 37]] = [0.0, np.nan, np.inf]
    norms[50] = 20.0
    assert [spike.step for spike in find_spikes(norms)] == [51]


@pytest.mark.parametrize(
    ("norms", "fraction", "band"),
    [([0.5] * 1000, 0.0, "inactive"), ([0.5] * 99, 0.0, "rare"), ([0.5] * 99 + [2], 0.01, "rare"),
     ([0.5] * 3 + [2], 0.25, "unknown"), ([0.5, 2, 0.5] * 20, 1 / 3, "frequent"), ([4.0] * 40, 1.0, "normalizing")],
)  # fmt: skip
def test_clipping_is_counted(norms: list[float], fraction: float, band: str) -> None:
    told = clipping(norms, 1.0)
    assert told.fraction == pytest.approx(fraction)
    assert told.band == band
    assert told.coefficient == pytest.approx(np.minimum(1.0, 1.0 / np.array(norms)).mean())


def test_the_bound_is_a_quantile_of_ordinary_steps() -> None:
    random = np.random.default_rng(3)
    norms = np.exp(0.2 * random.standard_normal(1000))
    assert recommended_max_norm(norms) is None
    norms[700] = 50.0
    assert recommended_max_norm(norms) == pytest.approx(np.quantile(norms[-200:], 0.95))


def test_norm_stability() -> None:
    steady = np.exp(0.01 * np.arange(100))
    assert norm_stability(steady)[0] == pytest.approx(0.0, abs=1e-12)
    jump = steady.copy()
    jump[50:] *= math.exp(0.2)
    assert norm_stability(jump)[1] == pytest.approx(21.0)
    assert all(math.isnan(x) for x in norm_stability([1.0, 2.0]))


# -- the detector -----------------------------------------------------------------------------------------------------


def run(*, watch: bool, give: bool = True, spikes: tuple[int, ...] = (50, 80), **settings: Any) -> tuple[Any, Any]:
    seed_everything(4)
    model = mlp(6, 12, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    detector = SpikeDetector(Observer(model, optimizer, strict=True), max_norm=1.0, **settings) if watch else None
    losses = []
    for step in range(1, 101):
        optimizer.zero_grad()
        loss = model(torch.randn(64, 6)).square().mean() * (30.0 if step in spikes else 0.3)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
        if detector is not None:
            detector.step(norm if give else None)
    return outcome(model, optimizer, losses), detector


def test_training_is_bitwise_the_same() -> None:
    assert_bitwise(run(watch=True)[0], run(watch=False)[0])


def test_known_spikes_are_found_and_others_are_not() -> None:
    detector = run(watch=True)[1]
    assert [spike.step for spike in detector.spikes] == [50, 80]
    assert detector.clip_fraction == pytest.approx(0.02)
    assert detector.clipping.band == "rare"
    steps, norms = detector.pre_clip_norms()
    assert steps.tolist() == list(range(1, 101))
    plain = np.delete(norms, [49, 79])
    assert detector.recommended_max_norm == pytest.approx(np.quantile(plain, 0.95))
    told = detector.summary()
    assert told["spike_rate"] == pytest.approx(0.02)
    assert run(watch=True, spikes=())[1].spikes == []


def test_a_norm_that_is_changed_later_was_what_it_was() -> None:
    detector = run(watch=True)[1]
    norm = torch.tensor(0.5)
    detector.step(norm)
    norm.fill_(100.0)
    assert detector.pre_clip_norms()[1][-1] == 0.5


def test_without_the_norm_before_clipping_nothing_is_claimed_of_it() -> None:
    detector = run(watch=True, give=False)[1]
    assert detector.clip_fraction is None
    assert detector.clipping is None
    steps, norms = detector.norms()
    assert len(steps) == 100
    assert norms.max() <= 1.0 + 1e-5  # what clipping let through


def test_words_ask_for_a_bound_where_one_would_help() -> None:
    detector = run(watch=True)[1]
    assert "spikes" not in " ".join(detector.get_recommendations()) or detector.max_norm > 0
    detector.max_norm = None
    assert "2 gradient spikes" in detector.get_recommendations()[0]
    detector.max_norm = 1e-3
    assert "cut 100% of 100 steps" in detector.get_recommendations()[0]


def test_no_step_waits_and_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = run(watch=True)[1]

    def refuse(*_: Any) -> Any:
        raise AssertionError("a value was read")

    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "cpu", "numpy", "__float__", "__bool__"):
            patch.setattr(torch.Tensor, name, refuse)
        for _ in range(600):
            detector.step(torch.tensor(0.5))
    assert len(detector._waiting) < 256
    assert detector._stacks.maxlen is not None


def test_a_detector_that_was_stopped_knows_the_norms_from_before() -> None:
    detector = run(watch=True)[1]
    state = detector.state_dict()
    fresh = run(watch=True, give=False)[1]
    fresh.load_state_dict(state)
    for got, want in zip(fresh.pre_clip_norms(), detector.pre_clip_norms(), strict=True):
        assert np.array_equal(got, want)
    assert fresh.spikes == detector.spikes
    with pytest.raises(ValueError, match="this is no state"):
        fresh.load_state_dict({})
    with pytest.raises(ValueError, match="norms"):
        fresh.load_state_dict({**state, "norms": state["norms"][:-1]})
    assert fresh.spikes == detector.spikes  # a state that does not fit changes nothing


@pytest.mark.parametrize("wrong", ["1", True, torch.ones(2), torch.tensor(1j)])
def test_what_is_no_norm_is_refused(wrong: Any) -> None:
    detector = run(watch=True)[1]
    with pytest.raises(TypeError, match="clip_grad_norm_"):
        detector.step(wrong)


@pytest.mark.parametrize("settings", [{"max_norm": 0.0}, {"max_norm": -1.0}, {"window": 3}, {"window": 2.5}])
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=next(iter(settings))):
        SpikeDetector(model, torch.optim.SGD(model.parameters(), lr=0.1), **settings)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run(watch=True)[1].plot(tmp_path / "norms.png")
    assert (tmp_path / "norms.png").stat().st_size > 10_000
