"""Tier 1: what the observer measured against the float64 reference, and the laws that it must obey."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from thermoclaw.lab import truth
from thermoclaw.lab.truth import DECAY, DEFINITIONS, LR, run_truth
from thermoclaw.observer import Observer
from thermoclaw.quantities import Array
from thermoclaw.record import Record

TOLERANCE = 1e-9
"""Relative; float64 leaves 1e-16, and differences of squares of like size cost up to seven digits."""


@dataclass(frozen=True)
class Check:
    """One line of the validation's table.

    Attributes:
        tier: "T1", "T2A" to "T2D", or "T3".
        name: what was checked.
        measured: what came out, in words.
        wanted: what had to come out.
        passed: whether it did.
    """

    tier: str
    name: str
    measured: str
    wanted: str
    passed: bool


def _compare(name: str, measured: Array, true: Array) -> Check:
    """Largest deviation, relative to the size of the true series."""
    both = np.isfinite(true)
    scale = float(np.abs(true[both]).max())
    with np.errstate(invalid="ignore"):
        worst = (
            float(np.abs(measured[both] - true[both]).max()) / scale if np.isfinite(measured[both]).all() else math.inf
        )
    return Check("T1", name, f"off by {worst:.1e}", f"≤ {TOLERANCE:.0e}", worst <= TOLERANCE)


def _zero(name: str, shares: Array) -> Check:
    worst = float(np.abs(shares).max())
    return Check("T1", name, f"at most {worst:.1e}", f"≤ {TOLERANCE:.0e}", worst <= TOLERANCE)


def _shares(record: Record, name: str) -> Array:
    return np.asarray(record[name] / record["sigma"])


def analytic_checks() -> list[Check]:
    """All checks of tier 1: thirteen quantities per layer, D, the entropy split's balance, and its laws."""
    adamw = partial(torch.optim.AdamW, lr=LR, weight_decay=DECAY)
    run = run_truth(adamw)
    record = run.record
    noisy = run_truth(partial(torch.optim.SGD, lr=LR))  # noise shows where momentum has not paid for it already
    runs = {name: noisy if name == "d_iS_noise" else run for name, _, _ in DEFINITIONS}
    checks = [
        _compare(text, runs[name].record[name], truth.per_layer(runs[name], value)) for name, text, value in DEFINITIONS
    ]
    checks.insert(3, _compare("D = Var(r)", record["D"], truth.dispersion(run)))
    checks += [
        _compare("d_eS + d_iS = σ", record["d_eS"] + record["d_iS"], truth.per_layer(run, truth.sigma)),
        _negative(record),
    ]
    return checks + _laws()


def _negative(record: Record) -> Check:
    least = min(float(record[name].min()) for name in ("d_eS", "d_iS_wd", "d_iS_momentum", "d_iS_noise"))
    return Check("T1", "no term of the split is negative", f"least {least:.1e}", "≥ 0", least >= 0)


def _laws() -> list[Check]:
    """No overhead in plain descent, no meaning in the scale of the loss, decay and momentum each under its name."""
    plain = run_truth(partial(torch.optim.SGD, lr=0.05), full_batch=True).record
    adam = partial(torch.optim.Adam, lr=LR, eps=1e-30)
    once, scaled = (run_truth(adam, loss_scale=scale).record for scale in (1.0, 1024.0))
    change = np.max(
        [np.abs(_shares(scaled, n) - _shares(once, n)).max() for n in ("d_eS", "d_iS_momentum", "d_iS_noise")]
    )
    decayed = [run_truth(partial(torch.optim.SGD, lr=0.05, weight_decay=w), full_batch=True).record for w in (0.1, 1.0)]
    other = np.stack([_shares(decayed[1], name) for name in ("d_iS_momentum", "d_iS_noise")])
    little, much = (float(np.mean(_shares(r, "d_iS_wd"))) for r in decayed)
    floors = [(beta, momentum_floor(beta)) for beta in (0.9, 0.99)]
    far = max(abs(c / math.sqrt(1 - beta**2) - 1) for beta, c in floors)
    return [
        _zero("plain SGD, full batch, no decay: d_iS/σ = 0", _shares(plain, "d_iS")),
        _zero("loss × 1024 under Adam: no share moves", np.array(change)),
        _zero("decay alone: no momentum, no noise", other),
        Check("T1", "decay alone: d_iS_wd/σ grows with λ", f"{little:.3f} → {much:.3f}", "grows", 0 < little < much),
        Check(
            "T1",
            "momentum on pure noise: c = √(1−β²)",
            ", ".join(f"{c:.3f} at {beta}" for beta, c in floors),
            "within 10 %",
            far <= 0.10,
        ),
    ]


def momentum_floor(beta: float, *, num_steps: int = 400, num_params: int = 1000) -> float:
    """Mean alignment of SGD with momentum on gradients that are nothing but noise, once the buffer is full.

    Args:
        beta: the momentum.
        num_steps: how long.
        num_params: size of the only layer, small enough for the sketch to be exact.

    Returns:
        The mean of cos(−g, Δ) over the second half of the run.
    """
    random = torch.Generator().manual_seed(7)
    layer = nn.Linear(num_params, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3, momentum=beta)
    observer = Observer(layer, optimizer, strict=True)
    for _ in range(num_steps):
        layer.weight.grad = torch.randn(1, num_params, generator=random)
        optimizer.step()
        observer.step()
    return float(observer.record()["alignment"][num_steps // 2 :].mean())
