"""The phase monitor: parity with the seed, every phase, whatever weights and gradients are, bounds, silence.

Legend: T steps, n weights.
"""

from __future__ import annotations

import gc
import itertools
import logging
import math
import runpy
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import MODELS, OPTIMIZERS, assert_bitwise, mlp, outcome, seed_everything, train_step
from tests.test_buffer import trapped
from thermoclaw import Observer, PhaseConfig, PhaseMonitor, create_monitor
from thermoclaw.phase import Core, Phase, extract_gradients, extract_weights, get_phase_description, monitor
from thermoclaw.phase.metrics import NAMES, SEED_NAMES
from thermoclaw.phase.phases import structural_phase, wrapped

ROOT = Path(__file__).resolve().parent.parent
T, N = 100, 1000
RNG = np.random.default_rng


def fed(monitor: PhaseMonitor, steps: int, rng: np.random.Generator, n: int = N) -> PhaseMonitor:
    for _ in range(steps):
        monitor.step_manual(rng.normal(size=n), rng.normal(size=n), loss=float(rng.normal()))
    return monitor


# -- parity -----------------------------------------------------------------------------------------------------------


def naive(weights: list[np.ndarray], slopes: list[np.ndarray], losses: list[float]) -> dict[str, float]:
    """Neurothermo's numbers from their definitions, with n × n matrices."""
    w, g = weights[-1], np.array(slopes)
    delta = np.abs(w - np.round(w)).max()
    alpha = -math.log(delta + 1e-9)
    eigenvalues = np.linalg.eigvalsh(np.cov(g.T))
    eigenvalues = eigenvalues[eigenvalues > 1e-9]
    modes = np.linalg.eigvalsh(np.corrcoef(g.T))
    modes = modes[modes > 1e-9]
    size, norms = np.sort(np.abs(w)), np.linalg.norm(g, axis=1)
    gaps = np.diff(size)
    gaps = gaps[gaps > 1e-9]
    share = np.histogram(w, bins=50)[0] / len(w)
    share = share[share > 0]
    return {
        "delta": delta,
        "alpha": alpha,
        "lc": np.mean(np.abs(w) > max(0.01 * np.percentile(np.abs(w), 95), 1e-9)),
        "vacuum": np.mean(np.abs(w) < 1e-6),
        "health": 0.5 / (1 + delta) + 0.5 * min(1, alpha / 7),
        "kappa": eigenvalues.max() / eigenvalues.min(),
        "t_eff": eigenvalues.mean(),
        "ricci": len(eigenvalues) * (1 / eigenvalues).sum(),
        "pr": modes.sum() ** 2 / (modes**2).sum(),
        "hbar": norms.std() / norms.mean(),
        "berry_phase_total": math.pi * sum(a @ b < 0 for a, b in itertools.pairwise(weights)),
        "r": np.mean(np.minimum(gaps[:-1], gaps[1:]) / np.maximum(gaps[:-1], gaps[1:])),
        "g_alg": norms[-1] / (delta**2 + 1e-9),
        "hbar_eff": 0.0,
        "entropy": -(share * np.log(share)).sum(),
        "c_v": np.abs(np.gradient(losses)).mean(),
        "psi": 1.0,
    }


def test_the_seed_mode_computes_the_literal_numbers() -> None:
    rng = RNG(0)
    weights, slopes = [rng.normal(size=200) for _ in range(30)], [rng.normal(size=200) for _ in range(30)]
    losses = rng.normal(size=30).tolist()
    seed = PhaseMonitor(mode="seed", window_size=30, strict=True)
    for step in zip(weights, slopes, losses, strict=True):
        result = seed.step_manual(*step)
    found, want = seed.compute_all_metrics(), naive(weights, slopes, losses)
    assert tuple(found) == SEED_NAMES
    for name in want:
        assert found[name] == pytest.approx(want[name], rel=1e-6), name
    assert result.to_dict() == pytest.approx({name: want[name] for name in ("delta", "alpha", "health")})


def test_the_published_example_is_independent_numbers() -> None:
    """Its summary, reproduced with weights and gradients that are drawn anew at every step."""
    found = fed(PhaseMonitor(mode="seed", window_size=T, strict=True), T, RNG(0)).compute_all_metrics()
    assert found["alpha"] == pytest.approx(0.697, abs=0.01)
    assert found["lc"] == pytest.approx(0.984, abs=0.006)
    assert found["kappa"] == pytest.approx(3.5, abs=0.3)
    assert found["t_eff"] == pytest.approx(10.10, abs=0.1)
    assert found["ricci"] == pytest.approx(1078, rel=0.01)
    assert found["pr"] == pytest.approx(90, abs=1)
    assert found["r"] == pytest.approx(0.386, abs=0.03)
    assert found["entropy"] == pytest.approx(3.38, abs=0.08)
    assert found["berry_phase_total"] / math.pi == pytest.approx(50, abs=16)


def test_the_structure_mode_keeps_the_literal_definitions_where_it_sees_everything() -> None:
    """With no more weights than are sampled, what has not been defined anew is the same in both modes."""
    both = [PhaseMonitor(mode=mode, window_size=20, strict=True) for mode in ("seed", "structure")]
    rng = RNG(0)
    for _ in range(20):
        step = (rng.normal(size=256), rng.normal(size=256), float(rng.normal()))
        for one in both:
            one.step_manual(*step)
    literal, found = (one.compute_all_metrics() for one in both)
    assert set(NAMES) == set(found)
    for name in set(SEED_NAMES) - {"berry_phase_total", "hbar_eff", "psi"}:
        assert found[name] == pytest.approx(literal[name], rel=1e-5), name


def test_small_gradients_have_no_spectrum_in_the_seed_mode_only() -> None:
    """Neurothermo counts eigenvalues above 1e-9, whatever the gradients' size."""
    for mode, defined in (("seed", False), ("structure", True)):
        one = PhaseMonitor(mode=mode, window_size=8, strict=True)
        for _ in range(8):
            one.step_manual(RNG(0).normal(size=100), 1e-6 * RNG(one.step_count).normal(size=100))
        found = one.compute_all_metrics()
        assert [math.isfinite(found[name]) for name in ("kappa", "t_eff", "ricci")] == [defined] * 3


# -- phases -----------------------------------------------------------------------------------------------------------


def spread_matrix(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    left, right = (np.linalg.qr(rng.normal(size=(len(values), len(values))))[0] for _ in range(2))
    return left * values @ right.T


def ternary(rng: np.random.Generator, noise: float = 0.0) -> np.ndarray:
    return 0.07 * (rng.integers(-1, 2, (100, 100)) + noise * rng.normal(size=(100, 100)))


def test_every_phase_is_reached_by_its_rule() -> None:
    rng = RNG(1)
    phases = {}
    for name, weights in {
        "CRYSTAL": ternary(rng),
        "TRANSITION": ternary(rng, 0.17),
        "GLASS": rng.normal(size=(100, 100)),
        "LIQUID": spread_matrix(rng.uniform(size=128), rng),
        "UNKNOWN": np.full((100, 100), np.nan),
    }.items():
        one = PhaseMonitor(strict=True)
        one.step_manual({"layer": weights})
        phases[name] = one.read().phase.name
        assert f"Final phase: {name}" in one.summary()
    assert list(phases) == list(phases.values())
    assert PhaseMonitor().read().phase is Phase.UNKNOWN


def spinor_loop(polar: float, steps: int) -> list[np.ndarray]:
    turns = np.linspace(0, 2 * math.pi, steps + 1)
    return [np.array([math.cos(polar / 2), np.exp(1j * t) * math.sin(polar / 2)]) for t in turns]


@pytest.mark.parametrize("polar", [0.6, 1.2, 2.0])
def test_complex_weights_on_a_loop_have_the_berry_phase_of_its_solid_angle(polar: float) -> None:
    """Half the solid angle, π(1 − cos θ), whatever phases the weights are multiplied by on the way."""
    one = PhaseMonitor(strict=True)
    for t, spinor in enumerate(spinor_loop(polar, 200)):
        one.step_manual(np.tile(spinor, 300) * np.exp(2j * t**2))
    found = one.compute_all_metrics()["berry_phase_total"]
    assert abs(wrapped(found)) == pytest.approx(abs(wrapped(math.pi * (1 - math.cos(polar)))), abs=0.01)
    assert one.read().phase is Phase.TOPOLOGICAL_INSULATOR


def test_complex_weights_that_go_back_on_their_way_or_stay_open_are_no_insulator() -> None:
    way = spinor_loop(1.2, 100)
    for path in (way[:60] + way[:60][::-1], way[:60]):
        one = PhaseMonitor(strict=True)
        for spinor in path:
            one.step_manual(np.tile(spinor, 300))
        assert one.read().phase is not Phase.TOPOLOGICAL_INSULATOR


def test_real_weights_have_no_berry_phase() -> None:
    one = fed(PhaseMonitor(strict=True), 20, RNG(0))
    assert one.compute_all_metrics()["berry_phase_total"] == 0


def test_rules_come_in_their_order() -> None:
    limits = PhaseConfig().thresholds
    loop = {"berry_phase": 1.0, "overlap": 1.0}
    assert structural_phase(1.0, limits, finite=False, **loop) is Phase.UNKNOWN
    assert structural_phase(1.0, limits, spectral_r=0.3, **loop) is Phase.TOPOLOGICAL_INSULATOR
    assert structural_phase(1.0, limits, spectral_r=0.3, berry_phase=2 * math.pi, overlap=1.0) is Phase.CRYSTAL
    assert structural_phase(0.69, limits, spectral_r=0.41) is Phase.LIQUID
    assert structural_phase(0.41, limits, spectral_r=0.42) is Phase.TRANSITION
    assert structural_phase(0.4, limits) is Phase.GLASS
    assert structural_phase(math.nan, limits) is Phase.UNKNOWN
    assert all(get_phase_description(phase) for phase in Phase)


def test_fresh_weights_are_a_crystal_to_the_seed_only() -> None:
    model = nn.Linear(512, 512)
    for mode, phase in (("seed", Phase.CRYSTAL), ("structure", Phase.GLASS)):
        one = PhaseMonitor(model, mode=mode, window_size=2, strict=True)
        assert one.step().phase is phase
        assert one.read().phase is phase


def test_a_layer_has_a_phase_of_its_own() -> None:
    rng = RNG(0)
    one = PhaseMonitor(strict=True)
    step = one.step_manual({"quantized": ternary(rng), "float": rng.normal(size=(50, 50))})
    for result in (step, one.read()):
        assert {name: phase.name for name, phase in result.layer_phases.items()} == {
            "quantized": "CRYSTAL",
            "float": "GLASS",
        }
    assert one.compute_layer_metrics()["quantized"]["entropy"] == pytest.approx(math.log(3), abs=1e-3)
    assert "quantized" in one.summary()


# -- whatever is given ------------------------------------------------------------------------------------------------


def test_weights_that_are_not_finite_have_no_health() -> None:
    weights = RNG(0).normal(size=(40, 40))
    weights[3, 3] = np.nan
    for mode in ("structure", "seed"):
        one = PhaseMonitor(mode=mode, strict=True)
        for _ in range(3):
            result = one.step_manual(weights, weights)
        assert result.phase is Phase.UNKNOWN
        assert result.get("health") == 0
        assert result.get("delta", -1.0) == -1
        assert one.compute_all_metrics()["health"] == 0
        assert "UNKNOWN: 3 (100.0%)" in one.summary()


def test_weights_that_break_after_the_last_step_are_seen() -> None:
    model = mlp(20, 30, 4)
    one = PhaseMonitor(model, strict=True)
    one.step()
    with torch.no_grad():
        next(model.parameters())[0, 0] = math.inf
    assert one.read().phase is Phase.UNKNOWN
    assert one.compute_all_metrics()["health"] == 0


def test_gradients_that_are_missing_constant_or_of_another_size() -> None:
    rng = RNG(0)
    weights = rng.normal(size=(30, 30))
    series: list[Any] = [None, np.ones((30, 30)), rng.normal(size=500), rng.normal(size=(30, 30)), None]
    for mode in ("structure", "seed"):
        one = PhaseMonitor(mode=mode, window_size=6, strict=True)
        for slope in series:
            one.step_manual(weights, slope, loss=1.0)
        assert set(one.compute_all_metrics()) == set(SEED_NAMES if mode == "seed" else NAMES)
        for _ in range(6):
            one.step_manual(weights, np.ones((30, 30)))
        still = one.compute_all_metrics()
        assert math.isnan(still["kappa"])
        assert math.isnan(still["pr"])
        assert still["hbar"] == pytest.approx(0)


def test_gradients_of_some_parameters_come_and_go() -> None:
    model = mlp(20, 30, 30, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    one = PhaseMonitor(model, strict=True, window_size=12)
    for t in range(12):
        model[2].requires_grad_(t % 2 == 0)
        optimizer.zero_grad()
        model(torch.randn(8, 20)).square().mean().backward()
        one.step()
    layers = one.compute_layer_metrics()
    assert layers["0"]["kappa"] > 1
    assert layers["2"]["kappa"] > 1  # of the steps that have one
    assert one.compute_all_metrics()["kappa"] > 1  # of the parameters that always have one


def test_parameters_that_change_begin_a_new_window(caplog: pytest.LogCaptureFixture) -> None:
    model = mlp(20, 30, 4)
    one = PhaseMonitor(model, strict=True)
    for _ in range(3):
        one.step()
    model.append(nn.Linear(4, 400))
    with caplog.at_level(logging.INFO, logger="thermoclaw"):
        for _ in range(3):
            one.step()
    assert "parameters changed at step 4" in caplog.text
    assert set(one.compute_layer_metrics()) == {"0", "2", "3"}
    assert one.summary().count("(100.0%)") == 1
    assert "GLASS: 6 (100.0%)" in one.summary()


@pytest.mark.parametrize("name", [case.name for case in MODELS])
def test_every_kind_of_model(name: str) -> None:
    case = next(c for c in MODELS if c.name == name)
    model = case.make()
    cls = torch.optim.SparseAdam if "sparse" in case.traits else torch.optim.Adam
    optimizer = cls(list(model.parameters()), lr=1e-2)
    for mode in ("structure", "seed"):
        one = PhaseMonitor(model, mode=mode, strict=True, window_size=5)
        for _ in range(8):
            loss = train_step(model, optimizer, case)
            one.step(loss=loss)
        found = one.compute_all_metrics()
        assert found["finite_share"] == 1 if mode == "structure" else found["health"] > 0
        assert (
            found["delta"] == pytest.approx(float(np.abs(w - np.round(w)).max()), abs=1e-6)
            if (w := extract_weights(model)).dtype.kind == "f"
            else True
        )
        assert one.summary()


def test_nothing_to_measure_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="use step_manual"):
        PhaseMonitor().step()
    with pytest.raises(ValueError, match="no parameters with elements"):
        PhaseMonitor(nn.ReLU())
    with pytest.raises(TypeError, match="the model"):
        PhaseMonitor(np.ones(3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"from_toml"):
        PhaseMonitor(None, {"window_size": 5})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no elements"):
        PhaseMonitor().step_manual(np.empty(0))
    with pytest.raises(ValueError, match="not of numbers"):
        PhaseMonitor().step_manual(np.array(["a"]))
    with pytest.raises(TypeError, match="both be mappings"):
        PhaseMonitor().step_manual({"a": np.ones(3)}, np.ones(3))


def test_arrays_of_every_kind_are_taken() -> None:
    rng = RNG(0)
    base = rng.normal(size=(40, 40))
    kinds = (np.float16, np.float32, np.float64, np.longdouble, np.complex64, ">f4")
    arrays = [base.astype(kind) for kind in kinds] + [
        base[::-1, ::2],
        np.asfortranarray(base),
        (base > 0),
        base.tolist(),
    ]
    frozen = base.copy()
    frozen.flags.writeable = False
    for array in [*arrays, frozen]:
        one = PhaseMonitor(strict=True)
        delta = one.step_manual(array, array).get("delta")
        x = np.asarray(array)
        parts = np.concatenate([x.real.ravel(), x.imag.ravel()]).astype(float)
        assert delta == pytest.approx(np.abs(parts - np.round(parts)).max(), abs=2e-3)
        assert one.summary()


EXTREMES = {
    "huge": lambda r: 1e300 * r.normal(size=(30, 30)),
    "tiny": lambda r: 1e-300 * r.normal(size=(30, 30)),
    "huge, single": lambda r: (1e37 * r.normal(size=(30, 30))).astype(np.float32),
    "tiny, single": lambda r: (1e-38 * r.normal(size=(30, 30))).astype(np.float32),
    "far apart": lambda r: np.r_[1e300, -1e-300, r.normal(size=400)],
    "one": lambda r: np.ones(1),
    "scalar": lambda r: np.array(0.3),
    "column": lambda r: r.normal(size=(500, 1)),
    "row": lambda r: r.normal(size=(1, 500)),
    "zeros": lambda r: np.zeros((30, 30)),
    "complex zeros": lambda r: np.zeros(300, dtype=complex),
    "infinite": lambda r: np.full((30, 30), np.inf),
    "not a number": lambda r: np.full((30, 30), np.nan),
}


@pytest.mark.parametrize("mode", ["structure", "seed"])
@pytest.mark.parametrize("name", EXTREMES)
def test_no_weights_or_gradients_are_an_error_or_a_warning(name: str, mode: str) -> None:
    weights = EXTREMES[name](RNG(0))
    infinite = np.full(weights.shape, np.inf)
    losses = [1.0, math.nan, math.inf, 0.0, -1.0, 2.0]
    for slope in (None, weights, np.zeros_like(weights), infinite, 1e200 * RNG(1).normal(size=weights.shape)):
        one = PhaseMonitor(mode=mode, window_size=4, strict=True)
        for loss in losses:
            result = one.step_manual(weights, slope, loss=loss)
        assert 0 <= result.get("health") <= 1
        assert math.isfinite(one.compute_all_metrics()["c_v"])  # of the losses that are finite
        assert len(one.compute_all_metrics()) == len(SEED_NAMES if mode == "seed" else NAMES)
        assert one.summary()


def test_gradients_are_not_kept() -> None:
    """One that is, is a copy of the model that training cannot use."""
    model = mlp(20, 30, 4)
    model(torch.randn(8, 20)).sum().backward()
    one = PhaseMonitor(model, strict=True)
    one.step()
    kept = weakref.ref(model[0].weight.grad)
    model.zero_grad()
    assert kept() is None
    assert one.summary()


def test_parameters_that_are_not_there_yet_are_left_out_until_they_are() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 200))
    one = PhaseMonitor(model, strict=True)
    one.step()
    assert set(one.compute_layer_metrics()) == {"1"}
    model(torch.randn(2, 5))
    one.step()
    assert set(one.compute_layer_metrics()) == {"0", "1"}


def test_an_error_is_told_once_and_turns_it_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = PhaseMonitor(mlp(20, 30, 4))

    def fail(_: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(monitor, "signature", fail)
    results = [one.step() for _ in range(3)]
    assert caplog.text.count("and is off from now on") == 1
    assert [result.phase for result in results] == [Phase.UNKNOWN] * 3
    strict = PhaseMonitor(mlp(20, 30, 4), strict=True)
    with pytest.raises(RuntimeError, match="broken"):
        strict.step()


# -- the interface ----------------------------------------------------------------------------------------------------


def test_counts_results_and_reset() -> None:
    model = mlp(20, 30, 4)
    one = create_monitor(model, window_size=7)
    assert one.config.core.window_size == 7
    assert one.compute_all_metrics() == {}
    assert one.last_result is None
    assert "Steps: 0, Epochs: 0" in one.summary()
    assert "Final phase: UNKNOWN" in one.summary()
    results = [one.step(loss=torch.tensor(float(t))) for t in range(20)]
    one.epoch_end()
    assert one.step_count == 20
    assert one.last_result is results[-1]
    assert "Steps: 20, Epochs: 1" in one.summary()
    assert results[0].get("delta") > 0
    assert results[0].get("nonsense", 3.0) == 3
    assert math.isnan(results[0].get("nonsense"))
    assert one.compute_all_metrics()["c_v"] == pytest.approx(1)
    assert one.get_phase_description(results[0].phase).endswith("memorizing.")
    one.reset()
    assert one.step_count == one.epoch_count == 0
    assert one.compute_all_metrics() == {}


def test_an_observer_stands_for_its_model_or_models() -> None:
    model, other = mlp(20, 30, 4), mlp(6, 5, 4)
    one = PhaseMonitor(Observer(model, torch.optim.SGD(model.parameters(), lr=0.1)), strict=True)
    one.step()
    assert set(one.compute_layer_metrics()) == {"0", "2"}
    both = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1)
    one = PhaseMonitor(Observer([model, other], both), strict=True)
    one.step()
    assert set(one.compute_layer_metrics()) == {"0.0", "0.2", "1.0", "1.2"}


def test_a_result_is_of_its_own_step_whenever_it_is_read() -> None:
    one = PhaseMonitor(strict=True, window_size=3)
    results = [one.step_manual(np.full((20, 20), t / 100)) for t in range(40)]
    assert [result.get("delta") for result in results] == pytest.approx([t / 100 for t in range(40)])


def test_statistics_of_delta_are_of_the_whole_run() -> None:
    one = PhaseMonitor(strict=True, window_size=3)
    deltas = [0.001 * t for t in range(101)]
    for delta in deltas:
        one.step_manual(np.full((20, 20), delta))
    assert f"mean: {np.mean(deltas):.4f}, std: {np.std(deltas):.4f}" in one.summary()
    assert "range: [0.0000, 0.1000]" in one.summary()


def test_paths_of_real_weights() -> None:
    """A quarter of a circle and half of it back."""
    angles = [*np.linspace(0, math.pi / 2, 20), *np.linspace(math.pi / 2, math.pi / 4, 10)[1:]]
    one = PhaseMonitor(strict=True)
    for a in angles:
        one.step_manual(np.tile([math.cos(a), math.sin(a)], 200))
    found = one.compute_all_metrics()
    assert found["angular_path"] == pytest.approx(0.75 * math.pi, rel=1e-5)
    assert found["angular_net"] == pytest.approx(0.25 * math.pi, rel=1e-5)
    assert found["tortuosity"] == pytest.approx(3, rel=1e-5)


def test_sampled_gradients_stand_for_whole_ones() -> None:
    """One layer larger than the sample, one smaller: spectra estimate those of all elements."""
    rng = RNG(0)
    shapes = {"large": (300, 300), "small": (10, 10)}
    one = PhaseMonitor(strict=True, window_size=20)
    for _ in range(20):
        step = {name: rng.normal(size=shape) for name, shape in shapes.items()}
        one.step_manual(step, step)
    found = one.compute_all_metrics()
    assert found["grad_noise"] == pytest.approx(1, rel=0.1)
    assert found["t_eff"] == pytest.approx(90_100 / 19, rel=0.1)
    assert found["hbar_eff"] == pytest.approx(1, rel=0.1)
    assert found["kappa_excess"] == pytest.approx(1, abs=0.3)
    assert found["grad_param_ratio"] == pytest.approx(1)
    assert found["pr_share"] == pytest.approx(1, abs=0.15)


def test_extracted_arrays_are_the_parameters() -> None:
    model = mlp(6, 5, 4)
    flat = torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    np.testing.assert_array_equal(extract_weights(model), flat)
    assert extract_gradients(model) is None
    model[0](torch.ones(1, 6)).sum().backward()
    assert len(extract_gradients(model)) == 35


# -- settings ---------------------------------------------------------------------------------------------------------

SEED_FILE = """
[core]
window_size = 12
enable_logging = false

[thresholds]
delta_crystal_threshold = 0.2
delta_glass_threshold = 0.3
purity_high_threshold = 7.0
zero_epsilon = 1.0e-6
numerical_stability_epsilon = 1.0e-9

[computation]
gradient_buffer_window = 30
"""


def toml(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_of_the_seed_is_read_and_its_thresholds_count(tmp_path: Path) -> None:
    config = PhaseConfig.from_toml(toml(tmp_path, SEED_FILE))
    assert (config.core.window_size, config.gradient_window) == (12, 30)
    one = PhaseMonitor(None, config, mode="seed", strict=True)
    phases = [one.step_manual(np.full((20, 20), delta)).phase.name for delta in (0.15, 0.25, 0.35)]
    assert phases == ["CRYSTAL", "TRANSITION", "GLASS"]
    assert PhaseMonitor(mode="seed").step_manual(np.full((20, 20), 0.15)).phase.name == "TRANSITION"


def test_the_other_thresholds_count(tmp_path: Path) -> None:
    weights = ternary(RNG(1), 0.17)
    text = "[thresholds]\norder_crystal_threshold = 0.5\n[core]\nmode = 'structure'"
    one = PhaseMonitor(None, PhaseConfig.from_toml(toml(tmp_path, text)), strict=True)
    assert one.step_manual(weights).phase is Phase.CRYSTAL
    assert PhaseMonitor().step_manual(weights).phase is Phase.TRANSITION
    text = "[thresholds]\nspectral_r_threshold = 0.6"
    one = PhaseMonitor(None, PhaseConfig.from_toml(toml(tmp_path, text)), strict=True)
    one.step_manual(RNG(0).normal(size=(90, 90)))
    assert one.read().phase is Phase.LIQUID
    seed = PhaseMonitor(None, PhaseConfig.from_toml(toml(tmp_path, "[thresholds]\nzero_epsilon = 0.5")), mode="seed")
    seed.step_manual(np.array([0.1] * 30 + [0.9] * 70))
    assert seed.compute_all_metrics()["vacuum"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[core]\nwindow = 3", r"\[core\] has no key 'window': there are window_size"),
        ("[colours]\na = 1", "'colours' is no table"),
        ("window_size = 3", "'window_size' is no table"),
        ("[core]\nwindow_size = 1", r"core.window_size=1: give a whole number of at least 2"),
        ("[core]\nwindow_size = 'x'", "core.window_size='x'"),
        ("[core]\nmode = 'old'", "choose one of structure, seed"),
        ("[core]\nsample_size = 5000", "at most 2048"),
        ("[core]\nenable_logging = 1", "true or false"),
        ("[thresholds]\nzero_epsilon = -1", "thresholds.zero_epsilon=-1"),
        ("[thresholds]\ndelta_crystal_threshold = 0.5", "there would be no transition"),
        ("[thresholds]\norder_glass_threshold = 0.8", "there would be no transition"),
        ("[computation]\ngradient_buffer_window = 0", "gradient_buffer_window=0"),
        ("[core", "is no TOML"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PhaseConfig.from_toml(toml(tmp_path, text))


def test_a_missing_file_and_a_missing_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        PhaseConfig.from_toml(tmp_path / "nothing.toml")
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    monkeypatch.setitem(sys.modules, "tomli", None)
    with pytest.raises(ImportError, match="pip install tomli"):
        PhaseConfig.from_toml(toml(tmp_path, SEED_FILE))


def test_a_change_of_phase_is_logged_where_it_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    one = PhaseMonitor(None, PhaseConfig(core=Core(enable_logging=True)))
    with caplog.at_level(logging.INFO, logger="thermoclaw"):
        for weights in (RNG(0).normal(size=(50, 50)), RNG(1).normal(size=(50, 50)), ternary(RNG(0))[:50, :50]):
            one.step_manual(weights)
            one.summary()
    assert [record.getMessage() for record in caplog.records] == [
        "phase monitor, step 1: GLASS",
        "phase monitor, step 3: CRYSTAL",
    ]


# -- laws -------------------------------------------------------------------------------------------------------------


def trained(monitored: bool, name: str) -> Any:
    seed_everything(7)
    case = next(c for c in MODELS if c.name == name)
    model = case.make()
    optimizer = next(c for c in OPTIMIZERS if c.name == "sgd_momentum_decay").make(model)
    one = PhaseMonitor(model, strict=True) if monitored else None
    losses = []
    for t in range(6):
        losses.append(train_step(model, optimizer, case))
        if one is not None:
            one.step(loss=losses[-1])
            if t % 2:
                one.summary()
    return outcome(model, optimizer, losses)


@pytest.mark.parametrize("name", ["mlp", "conv_bn_channels_last", "bfloat16", "complex"])
def test_training_is_bitwise_the_same(name: str) -> None:
    assert_bitwise(trained(True, name), trained(False, name))


@pytest.mark.parametrize("mode", ["structure", "seed"])
@pytest.mark.parametrize("name", [case.name for case in MODELS])
def test_a_step_reads_nothing(name: str, mode: str) -> None:
    case = next(c for c in MODELS if c.name == name)
    model = case.make()
    loss = case.loss(model)
    loss.backward()
    one = PhaseMonitor(model, mode=mode, strict=True)
    found: list[str] = []
    for _ in range(20):
        with trapped(found):
            one.step(loss=loss)
    assert not found, found[0]
    with trapped(found):
        one.summary()
    assert found


def test_nothing_grows() -> None:
    one = PhaseMonitor(window_size=10, strict=True)
    weights, loss = RNG(0).normal(size=(20, 20)), torch.tensor(1.0)
    sizes = []
    for t in range(10_000):
        one.step_manual(weights, weights, loss=loss)
        if t in (500, 9_999):
            gc.collect()
            sizes.append((sys.getallocatedblocks(), one.num_bytes()))
    assert sizes[0][1] == sizes[1][1]
    assert sizes[1][0] - sizes[0][0] < 2000  # blocks of the whole process; one a step would be 9,499
    assert one.step_count == 10_000


def test_the_example_shows_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "argv", ["phase_of_weights.py", "--folder", str(tmp_path)])
    shown = runpy.run_path(str(ROOT / "examples" / "phase_of_weights.py"), run_name="__main__")["RESULTS"]
    assert (tmp_path / "phase_of_weights.png").stat().st_size > 20_000
    assert shown["pulled"]["phase"] == "CRYSTAL"
    assert shown["plain"]["phase"] == shown["memorizing"]["phase"] == "GLASS"
