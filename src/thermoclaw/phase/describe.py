"""Every metric of a group of parameters, from arrays. No torch.

Legend: T steps, n coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thermoclaw.phase import shapes, spectra
from thermoclaw.phase.config import Thresholds
from thermoclaw.phase.lattice import find_lattice
from thermoclaw.phase.phases import wrapped
from thermoclaw.phase.rows import Path, Piece, weighted_mean

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Values:
    """The weights of one parameter, or a sample of them.

    Args:
        piece: which parameter.
        flat: its real numbers, or an even sample.
        matrix: it as a matrix, rows and columns perhaps a random part; None where it has no shape.
    """

    piece: Piece
    flat: Array
    matrix: Array | None


@dataclass(frozen=True)
class Looked:
    """A parameter that was looked at.

    Args:
        piece: which parameter.
        flat: its real numbers, or an even sample.
        shape: what they tell.
    """

    piece: Piece
    flat: Array
    shape: Mapping[str, float]


@dataclass(frozen=True)
class Window:
    """What is remembered of the last steps, for one group.

    Args:
        weights, gradients: [T, n], scaled so that sums of squares stand for the whole parameter; NaN where missing.
        grad_norms: [T].
        losses: those that were given.
        size: parameters in the group.
    """

    weights: Array
    gradients: Array
    grad_norms: Array
    losses: Array
    size: float


@dataclass(frozen=True)
class State:
    """The last step of a group: its largest distance from an integer, its norms, its path."""

    delta: float
    param_sq: float
    grad_sq: float
    finite_share: float
    path: Path
    has_complex: bool


def alpha_of(delta: float, thresholds: Thresholds) -> float:
    """−ln(δ + ε)."""
    return -math.log(delta + thresholds.numerical_stability_epsilon) if math.isfinite(delta) else math.nan


def health_of(delta: float, thresholds: Thresholds) -> float:
    """Neurothermo's score, a function of δ alone; 0 where weights are not finite."""
    if not math.isfinite(delta):
        return 0.0
    return 0.5 / (1 + delta) + 0.5 * min(1.0, alpha_of(delta, thresholds) / thresholds.purity_high_threshold)


def state_metrics(state: State, thresholds: Thresholds, *, literal: bool) -> dict[str, float]:
    """What follows from the last step and the path."""
    path, grad_norm = state.path, math.sqrt(state.grad_sq)
    berry = path.reversals * math.pi if literal else wrapped(path.berry_phase) if state.has_complex else 0.0
    return {
        "delta": state.delta,
        "alpha": alpha_of(state.delta, thresholds),
        "health": health_of(state.delta, thresholds),
        "finite_share": state.finite_share,
        "berry_phase_total": berry,
        "angular_path": path.angle,
        "angular_net": path.net,
        "tortuosity": path.angle / path.net if path.net > 0 else math.nan,
        "g_alg": grad_norm / (state.delta**2 + thresholds.numerical_stability_epsilon),
        "grad_param_ratio": grad_norm / math.sqrt(state.param_sq) if state.param_sq > 0 else math.nan,
    }


_SHAPES = ("lattice_order", "active_share", "negentropy", "empty_rows", "psi", "spectral_r")


def look_at(values: Values) -> dict[str, float]:
    """What one parameter's values and matrix tell; nothing where it is no matrix, or not finite."""
    flat, matrix = values.flat, values.matrix
    if not values.piece.is_weight or not np.isfinite(flat).all():
        return {}
    found = {
        "lattice_order": find_lattice(flat).order,
        "active_share": shapes.active_share(flat),
        "negentropy": shapes.negentropy(flat),
    }
    if matrix is None:
        return found
    return found | {
        "empty_rows": shapes.empty_rows(matrix),
        "psi": shapes.interference(matrix),
        "spectral_r": shapes.spectral_spacing(matrix),
    }


def weight_metrics(values: Sequence[Looked], thresholds: Thresholds, *, literal: bool) -> dict[str, float]:
    """What follows from the weights as they are; NaN where they are not finite."""
    whole = pooled(values)
    if not np.isfinite(whole).all() or not len(whole):
        return {}
    found = {
        "lc": shapes.local_complexity(whole, epsilon=thresholds.numerical_stability_epsilon),
        "vacuum": float(np.mean(np.abs(whole) < thresholds.zero_epsilon)),
        "r": shapes.spacing_ratio(np.abs(whole), least=thresholds.numerical_stability_epsilon),
        "entropy": shapes.histogram_entropy(whole),
        "psi": 1.0,
        "hbar_eff": 0.0,
    }
    if literal:
        return found
    sizes = np.array([v.piece.size for v in values], dtype=float)
    shapes_of = {name: np.array([v.shape.get(name, math.nan) for v in values]) for name in _SHAPES}
    levels = shapes_of["spectral_r"][np.isfinite(shapes_of["spectral_r"])]
    found |= {name: weighted_mean(column, sizes) for name, column in shapes_of.items()}
    order = found["lattice_order"]
    found["lattice_noise"] = math.sqrt(-2 * math.log(order)) / (2 * math.pi) if order > 0 else math.nan
    found["spectral_r"] = float(np.median(levels)) if len(levels) else math.nan
    return found


def pooled(values: Sequence[Looked]) -> Array:
    """All weights in one array, each parameter in proportion to its size."""
    if not values:
        return np.empty(0)
    share = min(len(v.flat) / v.piece.size for v in values)
    counts = [min(max(round(share * v.piece.size), 1), len(v.flat)) for v in values]
    places = [np.linspace(0, len(v.flat) - 1, n).round().astype(np.int64) for v, n in zip(values, counts, strict=True)]
    return np.concatenate([v.flat[chosen] for v, chosen in zip(values, places, strict=True)])


def window_metrics(window: Window, thresholds: Thresholds, *, literal: bool) -> dict[str, float]:
    """What follows from the steps that are remembered; NaN where they are too few or gradients are missing."""
    gradients, steps, coordinates = spectra.usable(window.gradients)
    deviations = spectra.centered(gradients)
    spectrum = spectra.gram_spectrum(deviations)
    correlations = spectra.correlation_spectrum(deviations)
    if literal:
        least = thresholds.numerical_stability_epsilon
        spectrum, correlations = spectrum[spectrum > least], correlations[correlations > least]
    cv = spectra.variation(window.grad_norms)
    some = len(spectrum) > 0
    found = {
        "kappa": spectra.condition_number(spectrum),
        "t_eff": float(spectrum.mean()) if some else math.nan,
        "ricci": len(spectrum) * float((1 / spectrum).sum()) if some else math.nan,
        "pr": spectra.participation_ratio(correlations),
        "hbar": cv,
        "c_v": spectra.mean_slope(window.losses),
    }
    if literal:
        return found
    chance = spectra.marchenko_pastur_kappa(len(gradients), spectra.effective_coordinates(deviations))
    weights = window.weights[-len(window.gradients) :]
    moved = weights[np.ix_(steps, coordinates)] if len(weights) == len(steps) else np.full((1, 1), math.nan)
    finite = np.isfinite(moved).all()
    return found | {
        "kappa_excess": found["kappa"] / chance,
        "top_share": float(spectrum[0] / spectrum.sum()) if some else math.nan,
        "pr_share": spectra.participation_ratio(spectrum) / max(len(gradients) - 1, 1),
        "grad_cv": cv,
        "grad_noise": spectra.successive_noise(gradients) / window.size,
        "hbar_eff": spectra.uncertainty_product(moved, gradients) / window.size if finite else math.nan,
        "loss_cv": spectra.detrended_variation(window.losses),
    }
