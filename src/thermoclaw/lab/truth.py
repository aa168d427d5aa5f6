"""A slow float64 reference: a short run of which everything is kept, and the definitions transcribed one by one.

Gradients come from `torch.autograd.grad`, not from `.grad`, and nothing is shared with the measurement, not even the
constants of its smoothing.

Legend: T steps, N elements of a layer, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer

from thermoclaw.lab.models import MLP
from thermoclaw.observer import Observer
from thermoclaw.quantities import Array
from thermoclaw.record import Record

SMOOTHING = 0.95  # weight of the past in an exponential mean
HORIZON = 39  # its effective number of steps, (1 + 0.95) / (1 − 0.95)
BASELINE_EVERY = 4  # steps between the values whose running median is the baseline
LR = 3e-3
DECAY = 0.1
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
Definition = Callable[[Array, Array, Array], Array]


@dataclass(frozen=True)
class Truth:
    """A run as the reference saw it, and as the observer did."""

    record: Record
    grads: list[Array]
    params: list[Array]
    losses: Array

    @property
    def steps(self) -> list[Array]:
        """Δ = θ − θ⁻ per layer, [T, N]."""
        return [np.diff(p, axis=0) for p in self.params]


def run_truth(
    make_optimizer: MakeOptimizer,
    *,
    full_batch: bool = False,
    loss_scale: float = 1.0,
    seed: int = 0,
    num_steps: int = 60,
) -> Truth:
    """Train a small float64 network and keep everything.

    Args:
        make_optimizer: parameters → optimizer.
        full_batch: every step sees all the data.
        loss_scale: the loss is multiplied by it.
        seed: of weights and data.
        num_steps: how long.

    Returns:
        The reference's copy of the run and the observer's record of it.
    """
    random = torch.Generator().manual_seed(seed)
    model = MLP(6, 12, 9, 4).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.4, generator=random)
    data = torch.randn(64, 6, generator=random, dtype=torch.float64)
    labels = torch.randint(4, (64,), generator=random)
    optimizer = make_optimizer(model.parameters())
    observer = Observer(model, optimizer, strict=True)
    owned = [list(layer.parameters()) for layer in model.layers]
    kept: list[list[list[Array]]] = [[], [[_flat(ps)] for ps in owned]]
    losses = []
    for _ in range(num_steps):
        rows = torch.arange(64) if full_batch else torch.randint(64, (8,), generator=random)
        loss = loss_scale * functional.cross_entropy(model(data[rows]), labels[rows])
        kept[0].append([_flat(torch.autograd.grad(loss, ps, retain_graph=True)) for ps in owned])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        observer.step(loss=loss)
        for history, ps in zip(kept[1], owned, strict=True):
            history.append(_flat(ps))
        losses.append(loss.item())
    grads = [np.array([row[layer] for row in kept[0]]) for layer in range(len(owned))]
    return Truth(observer.record(), grads, [np.array(history) for history in kept[1]], np.array(losses))


def _flat(tensors: Iterable[torch.Tensor]) -> Array:
    return torch.cat([t.detach().reshape(-1) for t in tensors]).numpy().copy()


# -- the definitions, transcribed -------------------------------------------------------------------------------------


def per_layer(truth: Truth, value: Definition) -> Array:
    """A definition value(g [T, N], θ [T + 1, N], Δ [T, N]) of each layer, as [T, L]."""
    rows = [value(g, p, d) for g, p, d in zip(truth.grads, truth.params, truth.steps, strict=True)]
    return np.stack(rows, axis=-1)


def _cos(a: Array, b: Array) -> Array:
    return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def _before(values: Array) -> Array:
    """The values one step earlier; NaN before the first."""
    return np.concatenate([np.full_like(values[:1], np.nan), values[:-1]])


def _smooth(values: Array) -> Array:
    """Bias-corrected exponential mean over the rows, NaN rows skipped."""
    out, total, weight = np.full_like(values, np.nan), np.zeros(values.shape[1:]), np.zeros(values.shape[1:])
    for t, row in enumerate(values):
        good = np.isfinite(row)
        total = np.where(good, SMOOTHING * total + (1 - SMOOTHING) * np.where(good, row, 0.0), total)
        weight = np.where(good, SMOOTHING * weight + (1 - SMOOTHING), weight)
        out[t] = np.where(weight > 0, total / np.where(weight > 0, weight, 1.0), np.nan)
    return out


def sigma(g: Array, p: Array, d: Array) -> Array:
    """Entropy production, by its definition."""
    return LR * (g**2).sum(-1)


def _coherence(g: Array, p: Array, d: Array) -> Array:
    return _cos(g, _before(g))


def _distance(g: Array, p: Array, d: Array) -> Array:
    return ((p[1:] - p[0]) ** 2).sum(-1)


def _alignment(g: Array, p: Array, d: Array) -> Array:
    return _cos(-g, d)


def _overshoot(g: Array, p: Array, d: Array) -> Array:
    return (g * _before(d)).sum(-1)


def _work(g: Array, p: Array, d: Array) -> Array:
    return -(g * d).sum(-1)


def _update_ratio(g: Array, p: Array, d: Array) -> Array:
    return np.sqrt((d**2).sum(-1) / (p[1:] ** 2).sum(-1))


def _decay_overhead(g: Array, p: Array, d: Array) -> Array:
    """σ · (c′₊ − c₊)₊ for decoupled decay, whose part of the step is −ηλθ⁻."""
    free = d + LR * DECAY * p[:-1]
    lost = np.maximum(_cos(-g, free), 0.0) - np.maximum(_cos(-g, d), 0.0)
    return sigma(g, p, d) * np.maximum(lost, 0.0)


def _momentum_overhead(g: Array, p: Array, d: Array) -> Array:
    """σ · (1 − max(c₊, c′₊))."""
    free = d + LR * DECAY * p[:-1]
    return sigma(g, p, d) * (1.0 - np.maximum(np.maximum(_cos(-g, free), _cos(-g, d)), 0.0))


def _noise_overhead(g: Array, p: Array, d: Array) -> Array:
    """σ · (c₊ − (1 − h(ν)))₊, ν = ⟨g_t − g_t−1, g_t−3 − g_t−1⟩₊ / ‖g‖², both smoothed."""
    one = _before(g)
    three = _before(_before(one))
    share = _smooth(((g - one) * (three - one)).sum(-1)) / _smooth((g**2).sum(-1))
    signal = np.maximum(1.0 - np.clip(np.nan_to_num(share), 0.0, 1.0), 2.0 / HORIZON)
    kept = np.sqrt(HORIZON * signal / (HORIZON * signal + 1.0 - signal))
    return sigma(g, p, d) * np.maximum(np.maximum(_cos(-g, d), 0.0) - kept, 0.0)


def _internal(g: Array, p: Array, d: Array) -> Array:
    return _decay_overhead(g, p, d) + _momentum_overhead(g, p, d) + _noise_overhead(g, p, d)


def _norm_budget(g: Array, p: Array, d: Array) -> Array:
    pull = -(p[:-1] * d).sum(-1)
    return 0.5 * _smooth((d**2).sum(-1)) / _smooth(pull)


def _noise(g: Array, p: Array, d: Array) -> Array:
    return _smooth(0.5 * ((g - _before(g)) ** 2).sum(-1))


def dispersion(truth: Truth) -> Array:
    """D = Var over layers of r, [T], by its definition."""
    smooth = _smooth(per_layer(truth, lambda g, p, d: (g**2).sum(-1)))
    last = [t - t % BASELINE_EVERY for t in range(len(smooth))]
    baseline = np.array([np.median(smooth[: t + 1 : BASELINE_EVERY], axis=0) for t in last])
    return np.var(smooth / baseline, axis=-1)


DEFINITIONS: tuple[tuple[str, str, Definition], ...] = (
    ("sigma", "σ = η‖g‖²", sigma),
    ("coherence", "ρ = cos(g_t, g_t−1)", _coherence),
    ("distance", "E = ‖θ − θ₀‖²", _distance),
    ("alignment", "c = cos(−g, Δ)", _alignment),
    ("overshoot", "⟨g_t, Δ_t−1⟩", _overshoot),
    ("work", "−⟨g, Δ⟩", _work),
    ("update_ratio", "‖Δ‖/‖θ‖", _update_ratio),
    ("d_iS_wd", "d_iS_wd = σ(c′₊ − c₊)₊", _decay_overhead),
    ("d_iS_momentum", "d_iS_momentum = σ(1 − max(c₊, c′₊))", _momentum_overhead),
    ("d_iS_noise", "d_iS_noise = σ (c₊ − (1 − h(ν)))₊", _noise_overhead),
    ("d_iS", "d_iS is the sum of its parts", _internal),
    ("norm_budget", "½‖Δ‖² / −⟨θ⁻,Δ⟩", _norm_budget),
    ("noise", "tr Σ = ½‖g_t − g_t−1‖²", _noise),
)
