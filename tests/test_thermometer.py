"""The thermometer on a run whose law is known: SGD in a quadratic bowl with Gaussian noise."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import assert_bitwise, mlp, outcome, seed_everything
from thermoclaw import Observer, Thermometer
from thermoclaw.detectors.sampled import SampledPath

SIZE, RATE, SPREAD = 2000, 0.02, 0.5


class Bowl(nn.Module):
    """½·pull·‖θ‖² + θ·noise: the gradient is pull·θ + noise."""

    def __init__(self, pull: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(SIZE))
        self.pull = pull

    def forward(self) -> Tensor:
        noise = SPREAD * torch.randn(SIZE)
        return 0.5 * self.pull * self.weight.square().sum() + (self.weight * noise).sum()


def wander(pull: float, steps: int, *, run_dir: Path | None = None, **settings: Any) -> Thermometer:
    seed_everything(1)
    model = Bowl(pull)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    thermometer = Thermometer(Observer(model, optimizer, strict=True, run_dir=run_dir), **settings)
    for _ in range(steps):
        optimizer.zero_grad()
        model().backward()
        optimizer.step()
        thermometer.step()
    return thermometer


def test_free_weights_diffuse_at_the_rate_of_their_temperature() -> None:
    thermometer = wander(0.0, 400, batch_size=16)
    motion = thermometer.diffusion()
    want = 0.5 * (RATE * SPREAD) ** 2  # D = ½·η²·variance of the gradient
    assert motion.motion == "diffusive"
    assert motion.exponent.holds(1.0) or motion.exponent.value == pytest.approx(1.0, abs=0.1)
    assert motion.coefficient == pytest.approx(want, rel=0.25)
    assert motion.green_kubo == pytest.approx(want, rel=0.25)
    temperature = thermometer.record()["temperature"][-1, 0]
    assert temperature == pytest.approx(0.5 * RATE * SPREAD**2, rel=0.1)
    assert motion.green_kubo == pytest.approx(RATE * temperature, rel=0.25)  # Einstein: D = η·T
    assert thermometer.noise_scale()["(root)"] is None or thermometer.noise_scale()["(root)"] > 16
    assert "hot" in thermometer.verdict()


def test_a_bowl_brings_weights_to_rest() -> None:
    thermometer = wander(4.0, 900)
    assert thermometer.diffusion().motion in ("stuck", "confined")
    ratio = thermometer.fdt_ratio()["(root)"]
    assert ratio.holds(1.0)
    stationary = RATE * SPREAD**2 / (4.0 * (2 - RATE * 4.0))  # variance of the discrete process
    assert thermometer.record()["param_sq"][-1, 0] / SIZE == pytest.approx(stationary, rel=0.1)
    assert "stationary" in thermometer.verdict()


def test_free_weights_are_not_at_rest() -> None:
    assert not wander(0.0, 400).fdt_ratio()["(root)"].holds(1.0)


def test_what_a_run_did_at_first_does_not_count() -> None:
    seed_everything(1)
    model = Bowl(4.0)
    torch.nn.init.constant_(model.weight, 50.0)  # far up the wall
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    thermometer = Thermometer(Observer(model, optimizer, strict=True))
    for _ in range(400):
        optimizer.zero_grad()
        model().backward()
        optimizer.step()
        thermometer.step()
    assert thermometer.diffusion().motion in ("stuck", "confined")
    assert thermometer.diffusion().msd.max() < 1.0


def test_rows_are_thinned_and_stay_equally_far_apart() -> None:
    thermometer = wander(1.0, 300, rows=16, every=3)
    steps, rows = thermometer._path.read()
    assert len(steps) <= 16
    assert set(np.diff(steps).tolist()) == {thermometer._path.stride}
    assert thermometer._path.stride == 24
    assert rows.shape == (len(steps), 256)


def test_samples_are_the_weights_themselves() -> None:
    seed_everything(2)
    model = mlp(6, 12, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = Observer(model, optimizer)
    path = SampledPath(observer.units(), points=10_000, rows=16, stride=1)
    path.take(1)
    want = torch.cat([p.detach().reshape(-1).sort()[0] for p in model.parameters()]).numpy()
    got = path.read()[1][0]
    at = 0
    for p in model.parameters():
        np.testing.assert_array_equal(np.sort(got[at : at + p.numel()]), want[at : at + p.numel()])
        at += p.numel()


def train(*, watch: bool) -> tuple[Any, Thermometer | None]:
    seed_everything(3)
    model = mlp(6, 12, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    thermometer = Thermometer(Observer(model, optimizer, strict=True)) if watch else None
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 6)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if thermometer is not None:
            thermometer.step()
    return outcome(model, optimizer, losses), thermometer


def test_training_is_bitwise_the_same() -> None:
    assert_bitwise(train(watch=True)[0], train(watch=False)[0])


def test_no_sample_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    thermometer = train(watch=True)[1]
    assert thermometer is not None

    def refuse(*_: Any) -> Any:
        raise AssertionError("a value was read")

    for name in ("item", "tolist", "cpu", "numpy", "__float__", "__bool__"):
        monkeypatch.setattr(Tensor, name, refuse)
    for step in range(61, 400):
        thermometer._path.take(step)


def test_what_it_says_of_a_run_that_has_hardly_begun() -> None:
    thermometer = wander(1.0, 3)
    told = thermometer.summary()
    assert told["layers"]["(root)"]["motion"] == "unknown"
    assert math.isnan(told["diffusion_exponent"])
    assert thermometer.get_recommendations() == []
    assert "too few samples" in thermometer.verdict()
    fresh = Thermometer(nn.Linear(2, 2).requires_grad_(True), **_sgd())
    assert fresh.summary()["sampled_steps"] == 0


def _sgd() -> dict[str, Any]:
    model = nn.Linear(2, 2)
    return {"observer": Observer(model, torch.optim.SGD(model.parameters(), lr=0.1))}


def test_an_unknown_layer_is_named() -> None:
    with pytest.raises(KeyError, match="no layer 'x'"):
        wander(1.0, 3).diffusion("x")


@pytest.mark.parametrize("settings", [{"points": 0}, {"rows": 3}, {"every": 0}, {"batch_size": 0}, {"points": True}])
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=next(iter(settings))):
        Thermometer(model, torch.optim.SGD(model.parameters(), lr=0.1), **settings)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    train(watch=True)[1].plot(tmp_path / "heat.png")  # type: ignore[union-attr]
    wander(1.0, 2).plot(tmp_path / "early.png")
    assert (tmp_path / "heat.png").stat().st_size > 20_000


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    path = Path(__file__).resolve().parent.parent / "examples" / "thermometer.py"
    monkeypatch.setattr("sys.argv", [str(path), "--steps", "120"])
    runpy.run_path(str(path), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    heats = [float(line.split()[1]) for line in lines[1:]]
    assert len(heats) == 3
    assert heats[0] < heats[1]  # a higher rate is a higher temperature


def test_a_thermometer_that_was_stopped_has_the_samples_of_one_that_was_not() -> None:
    def begin() -> tuple[nn.Module, torch.optim.Optimizer, Thermometer]:
        torch.manual_seed(0)
        model = nn.Linear(6, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, optimizer, Thermometer(model, optimizer, rows=16)

    def go_on(model: nn.Module, optimizer: torch.optim.Optimizer, thermometer: Thermometer, steps: range) -> None:
        for step in steps:
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            thermometer.step()

    whole = begin()
    go_on(*whole, range(45))
    model, optimizer, thermometer = begin()
    go_on(model, optimizer, thermometer, range(20))
    saved = [part.state_dict() for part in (model, optimizer, thermometer.observer, thermometer)]
    model, optimizer, thermometer = begin()
    for part, state in zip((model, optimizer, thermometer.observer, thermometer), saved, strict=True):
        part.load_state_dict(state)
    go_on(model, optimizer, thermometer, range(20, 45))
    assert repr(thermometer.summary()) == repr(whole[2].summary())  # NaN is not itself
    assert thermometer._path.steps == whole[2]._path.steps
    assert np.array_equal(thermometer._path.read()[1], whole[2]._path.read()[1])


def test_a_thermometer_refuses_samples_of_another_model() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(3, 3)
    one = Thermometer(first, torch.optim.SGD(first.parameters(), lr=0.1))
    two = Thermometer(second, torch.optim.SGD(second.parameters(), lr=0.1))
    one.step()
    with pytest.raises(ValueError, match="shape"):
        two.load_state_dict(one.state_dict())


def test_a_wide_interval_is_no_rest() -> None:
    """A run that has just begun: X is far from 1 for most layers, and its interval holds everything."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    thermometer = Thermometer(model, optimizer)
    for _ in range(60):
        optimizer.zero_grad()
        (model(torch.randn(8, 8)) - 3.0).square().mean().backward()
        optimizer.step()
        thermometer.step()
    wide = [r for r in thermometer.fdt_ratio().values() if r.holds(1.0) and r.high - r.low > 1.0]
    told = thermometer.verdict()
    assert wide
    assert f"{len(wide)} cannot be told" in told or "too short to tell of rest" in told
