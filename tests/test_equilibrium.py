"""Three meanings of equilibrium, on processes that have one and not another."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import seed_everything
from thermoclaw import Observer, Thermometer
from thermoclaw.detectors.equilibrium import circulation, drifting_share, predicted, rotation
from thermoclaw.diffusion import Array


def process(matrix: Array, rows: int, *, seed: int = 0, drift: float = 0.0) -> Array:
    """x ← x − M·x + drift + noise, begun in its bowl."""
    random, x = np.random.default_rng(seed), np.zeros((rows, len(matrix)))
    for t in range(1, rows):
        x[t] = x[t - 1] - matrix @ x[t - 1] + drift + 0.1 * random.standard_normal(len(matrix))
    return x


def turning(omega: float) -> Array:
    """A bowl that turns its wider plane."""
    matrix = np.diag([0.1, 0.1, 0.4, 0.4])
    matrix[0, 1], matrix[1, 0] = omega, -omega
    return matrix


def test_a_symmetric_bowl_keeps_detailed_balance() -> None:
    held = [circulation(process(0.1 * np.eye(4), 800, seed=seed)).holds(0.0) for seed in range(60)]
    assert np.mean(held) > 0.9


@pytest.mark.parametrize("omega", [0.05, -0.1])
def test_what_circulates_is_found_with_its_speed(omega: float) -> None:
    told = circulation(process(turning(omega), 6000))
    assert not told.holds(0.0)
    assert abs(told.value) == pytest.approx(abs(omega), rel=0.2)


def test_drift_is_told_from_wandering() -> None:
    walk = np.cumsum(np.random.default_rng(0).standard_normal((600, 300)), axis=0)
    assert drifting_share(walk) < 0.04
    assert drifting_share(process(0.1 * np.eye(100), 600)) < 0.04
    assert drifting_share(walk + 0.5 * np.arange(600)[:, None]) > 0.9
    assert math.isnan(drifting_share(walk[:10]))


def test_rotation_of_a_circle() -> None:
    angle = 0.01
    points = np.stack([np.cos(angle * np.arange(50)), np.sin(angle * np.arange(50))], axis=1)
    moves = np.concatenate([[0.0], (np.diff(points, axis=0) ** 2).sum(axis=1)])
    assert rotation((points**2).sum(axis=1), moves) == pytest.approx(angle, rel=1e-4)
    line = np.arange(1.0, 50.0)
    assert rotation(line**2, np.ones(49)) == pytest.approx(0.0, abs=1e-9)  # longer, and no turn


class Turned(nn.Module):
    """A loss that does not feel the weights' length, as before a normalization, with a random gradient."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))

    def forward(self) -> torch.Tensor:
        return (nn.functional.normalize(self.weight, dim=0) * torch.randn_like(self.weight)).sum()


OPTIMIZERS: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 1.0, "betas": (0.9, 0.99)}),
    (torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.05, "momentum": 0.0}),
    (torch.optim.SGD, {"lr": 0.02, "weight_decay": 0.05, "momentum": 0.8}),
]


@pytest.mark.parametrize(("cls", "settings"), OPTIMIZERS, ids=["adamw", "sgd", "momentum"])
def test_norm_and_rotation_come_to_what_is_predicted(cls: Any, settings: dict[str, Any]) -> None:
    seed_everything(0)
    model = Turned(400)
    optimizer = cls(model.parameters(), **settings)
    thermometer = Thermometer(Observer(model, optimizer, mode="exact", strict=True))
    for _ in range(1500):
        optimizer.zero_grad()
        model().backward()
        optimizer.step()
        thermometer.step()
    told = thermometer.equilibrium()["(root)"]
    assert told.norm == pytest.approx(told.predicted_norm, rel=0.12)
    assert told.rotation == pytest.approx(told.predicted_rotation, rel=0.12)
    assert told.norms_stay
    assert told.stands


def test_a_run_that_has_just_begun_is_at_none() -> None:
    seed_everything(0)
    model = Turned(400)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    thermometer = Thermometer(Observer(model, optimizer, mode="exact", strict=True))
    for _ in range(200):
        optimizer.zero_grad()
        model().backward()
        optimizer.step()
        thermometer.step()
    told = thermometer.equilibrium()["(root)"]
    assert not told.norms_stay
    assert abs(told.norm / told.predicted_norm - 1) > 0.5
    assert math.isnan(predicted(optimizer="Lion", lr=1.0, weight_decay=1.0, momentum=0.9, size=1, grad_sq=1.0)[0])
    assert math.isnan(predicted(optimizer="AdamW", lr=1.0, weight_decay=0.0, momentum=0.9, size=1, grad_sq=1.0)[0])
