"""What a record tells of motion: norms at rest, drift from the start, and what a thermometer leaves in it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.synthetic import Synthetic
from tests.test_thermometer import wander
from thermoclaw.detectors import thermometer as module
from thermoclaw.diffusion import Diffusion, Estimate, fluctuation_dissipation
from thermoclaw.motion import MOST_LAYERS, Motion, drift, motion_of, norm_balance
from thermoclaw.record import Record
from thermoclaw.report.html import moving, render_html
from thermoclaw.report.html.tables import happenings
from thermoclaw.runs import load

WHOLE = Diffusion(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 4.0]), Estimate(1.0, 0.9, 1.1), 0.5, 0.4, "diffusive")


def moved(record: Record, **changes: Any) -> Record:
    event = {**Motion(7, WHOLE, {0: Estimate(1.0, 0.5, 1.5)}).to_event(), **changes}
    return replace(record, events=(*record.events, event))


# -- norms ------------------------------------------------------------------------------------------------------------


def bowl(steps: int, size: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """‖θ‖² and ‖Δ‖² of noisy descent in a bowl, at rest."""
    random, theta = np.random.default_rng(3), np.random.default_rng(4).standard_normal(size) * 0.16
    norms, moves = np.empty(steps), np.empty(steps)
    for t in range(steps):
        step = -0.05 * (theta + random.standard_normal(size))
        theta = theta + step
        norms[t], moves[t] = theta @ theta, step @ step
    return norms, moves


@pytest.mark.parametrize("every", [1, 3, 10])
def test_rows_that_leave_steps_out_tell_the_same_ratio(every: int) -> None:
    norms, moves = bowl(4000)
    steps = np.arange(1, 4001)[::every]
    found = fluctuation_dissipation(norms[::every], moves[::every], steps=steps)
    exact = fluctuation_dissipation(norms, moves)
    assert found.holds(exact.value)
    assert found.value == pytest.approx(exact.value, abs=0.01)
    assert found.high - found.low < 0.3


def test_a_thinned_run_weighs_its_rows_by_the_steps_they_stand_for() -> None:
    norms, moves = bowl(4000)
    norms, moves = norms + 1.0 * np.arange(4000), moves * np.linspace(1, 3, 4000)
    kept = np.concatenate([np.arange(0, 3000, 10), np.arange(3000, 4000)])
    exact, found = fluctuation_dissipation(norms, moves), fluctuation_dissipation(norms[kept], moves[kept], steps=kept)
    assert exact.value < 0.8
    assert found.value == pytest.approx(exact.value, abs=0.05)


def test_norms_are_judged_over_the_last_half_of_the_steps() -> None:
    run = Synthetic(400, 3)
    run.columns["update_sq"][:] = 0.01
    run.columns["param_sq"][:] = 100.0
    run.columns["param_sq"][:200] += np.linspace(50, 0, 200)[:, None]  # settles in the first half
    run.columns["param_sq"][200:, 1] += 0.02 * np.arange(200)
    run.columns["update_sq"][:, 2] = 0.0
    still, grows, frozen = norm_balance(run.record())
    assert still.value == pytest.approx(1.0)
    assert grows.value == pytest.approx(-1.0, abs=0.02)
    assert math.isnan(frozen.value)
    told = moving.balance(run.record(), [0, 2])
    assert told is not None
    assert [row[0] for row in told["layers"]] == [0]
    assert (told["all"], told["known"], told["rest"], told["grow"], told["shrink"]) == (3, 2, 1, 1, 0)


def test_an_interval_that_tells_nothing_is_not_called_rest() -> None:
    run = Synthetic(400, 1)
    run.columns["update_sq"][:] = 0.01
    run.columns["param_sq"][:, 0] = 100.0 + np.random.default_rng(0).standard_normal(400)
    (wide,) = norm_balance(run.record())
    assert wide.holds(1.0)
    told = moving.balance(run.record(), [0])
    assert told is not None
    assert (told["known"], told["rest"]) == (1, 0)


# -- distance from the start ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_power_of_the_distance_is_found(power: float) -> None:
    run = Synthetic(1000, 6)
    t = np.arange(1.0, 1001.0)[:, None]
    run.columns["distance"] = t**power * np.exp(0.05 * np.random.default_rng(1).standard_normal((1000, 6)))
    since, found = drift(run.record())
    assert since == 250
    assert found.value == pytest.approx(power, abs=0.1)
    assert found.high - found.low < 0.3
    run.columns["distance"][:, :3] = t ** (power + 0.8)
    assert drift(run.record())[1].high - drift(run.record())[1].low > 0.3  # parts of the model do not agree


def test_two_layers_are_too_few_for_an_interval_and_few_rows_for_anything() -> None:
    run = Synthetic(1000, 2)
    run.columns["distance"] = np.arange(1.0, 1001.0)[:, None] * np.ones((1, 2))
    power = drift(run.record())[1]
    assert power.value == pytest.approx(1.0)
    assert math.isnan(power.low)
    assert math.isnan(drift(Synthetic(7, 4).record())[1].value)


# -- what a thermometer leaves ----------------------------------------------------------------------------------------


def test_a_thermometer_leaves_its_displacement_in_the_record(tmp_path: Path) -> None:
    thermometer = wander(0.0, 400)
    want = thermometer.diffusion()
    for record in (thermometer.record(), Record.load(thermometer.observer.save(tmp_path / "run"))):
        found = motion_of(record)
        assert found is not None
        assert found.step == 400
        np.testing.assert_allclose(found.whole.msd, want.msd, rtol=1e-4)
        assert found.whole.lags.tolist() == want.lags.tolist()
        assert found.whole.exponent.value == pytest.approx(want.exponent.value, rel=1e-4)
        assert found.whole.motion == want.motion == "diffusive"
        assert found.layers[0].value == pytest.approx(want.exponent.value, rel=1e-4)
        shown = moving.displacement(record)
        assert shown is not None
        assert shown["power"][0] == pytest.approx(want.exponent.value, rel=1e-4)
        assert happenings(record)[-1][2] == "how sampled weights moved, by Thermometer: drawn above"
    assert motion_of(wander(0.0, 10).record()) is None  # too few samples


def test_a_run_directory_has_it_when_the_run_is_closed(tmp_path: Path) -> None:
    thermometer = wander(0.0, 100, run_dir=tmp_path / "run")
    thermometer.observer.close()
    assert motion_of(load(tmp_path / "run")) is not None


def test_samples_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    thermometer, asked = wander(0.0, 100), []
    real = module.describe
    monkeypatch.setattr(module, "describe", lambda *a, **k: asked.append(1) or real(*a, **k))
    thermometer.record()
    num_asked = len(asked)
    assert num_asked == 2  # the whole, and its one layer
    thermometer.summary()
    assert len(asked) == num_asked
    state = thermometer.state_dict()
    thermometer.load_state_dict(state)
    thermometer.diffusion()
    assert len(asked) == 2 * num_asked


def test_an_event_stays_small_for_any_model() -> None:
    event = Motion(9, WHOLE, {i: Estimate(1 / 3, 1 / 7, 2 / 3) for i in range(10_000)}).to_event()
    assert len(event["layers"]) <= MOST_LAYERS
    assert len(json.dumps(event)) < 32_000
    assert [row[0] for row in event["layers"][:2]] == [0, 25]


@pytest.mark.parametrize(
    "changes",
    [
        {"lags": None},
        {"lags": "words"},
        {"lags": [1, 1, 1]},
        {"lags": [4, 2, 1]},
        {"lags": [1, 2]},
        {"lags": [[1], [2], [4]]},
        {"msd": [1, math.inf, 2]},
        {"msd": [1, {}, 2]},
        {"msd": ["<script>", 1, 2]},
        {"exponent": [1]},
        {"exponent": "abc"},
        {"exponent": [{}, 1, 2]},
        {"layers": 3},
        {"layers": [[0]]},
        {"layers": [["x", 1, 2, 3]]},
        {"coefficient": []},
        {"step": math.nan},
        {"step": None},
    ],
)
def test_an_event_of_strange_content_is_none_and_the_page_is_made(changes: dict[str, Any]) -> None:
    record = moved(Synthetic(60, 3).record(), **changes)
    assert motion_of(record) is None
    assert "Where the weights go" in render_html(record, findings=[])


def test_layers_that_are_not_there_are_left_out() -> None:
    found = motion_of(moved(Synthetic(60, 3).record(), layers=[[2, 1, 0, 2], [3, 1, 0, 2], [-1, 1, 0, 2]]))
    assert found is not None
    assert set(found.layers) == {2}
