"""Equilibrium in its three meanings: norms that stay, positions that do not drift, and no circulation. No torch.

Legend: N recorded positions, C coordinates, T steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from thermoclaw.diffusion import BATCHES, T_BATCHES, UNKNOWN, Estimate, batch_means

PLANES = 4  # principal directions between which circulation is looked for
T_PLANES = 3.9  # two-sided 95 % point of Student's t with nine degrees, for the largest of six planes


@dataclass(frozen=True)
class Equilibrium:
    """Whether a layer is at equilibrium, in three meanings that do not imply one another.

    Attributes:
        norm_ratio: the fluctuation–dissipation ratio X; its interval holds 1 where ‖θ‖² is stationary.
        norm: ‖θ‖ over the last steps.
        predicted_norm: where random steps and decay balance; NaN without decay, or for an optimizer without a law.
        rotation: angle by which θ turns in a step, in radians.
        predicted_rotation: that angle at the balance.
        drifting: share of the sampled weights whose mean goes on moving, beyond the 5 % that chance gives.
        circulation: the largest angular velocity, in radians a step, in a plane of principal directions; its interval
            holds 0 where nothing circulates, as detailed balance asks.
    """

    norm_ratio: Estimate
    norm: float
    predicted_norm: float
    rotation: float
    predicted_rotation: float
    drifting: float
    circulation: Estimate

    @property
    def norms_stay(self) -> bool:
        """The first meaning."""
        return self.norm_ratio.holds(1.0)

    @property
    def stands(self) -> bool:
        """The second meaning: next to no weight drifts."""
        return self.drifting < 0.05

    @property
    def balanced(self) -> bool:
        """The third meaning: nothing circulates beyond chance."""
        return self.circulation.holds(0.0)


def predicted(
    *, optimizer: str, lr: float, weight_decay: float, momentum: float, size: int, grad_sq: float
) -> tuple[float, float]:
    """‖θ‖ and the rotation a step at which random steps and decay balance.

    AdamW: ‖θ‖ = √(ηN/2λ), rotation √(2ηλ·(1 − β₁)/(1 + β₁)). SGD with momentum: ‖θ‖² = η‖g‖²/(2λ(1 − β)) with ‖g‖ as
    it is there, rotation √(2ηλ/(1 + β)). Gradients are taken as independent from step to step and orthogonal to θ, as
    those of a layer before a normalization are.

    Args:
        optimizer: its class name; what is neither AdamW nor SGD has no law here.
        lr: η.
        weight_decay: λ.
        momentum: β₁ or β.
        size: N.
        grad_sq: ‖g‖² at the balance, for SGD.

    Returns:
        Both NaN where there is no decay or no law.

    Source:
        Kosson et al. 2024 (arXiv 2305.17212), table 1.

    Example:
        >>> norm, turn = predicted(
        ...     optimizer="AdamW", lr=1e-3, weight_decay=0.1, momentum=0.9, size=2000, grad_sq=0.0)
        >>> round(norm, 3), round(turn, 5)
        (3.162, 0.00324)
    """
    if not (lr > 0 and weight_decay > 0) or optimizer not in ("AdamW", "SGD"):
        return float("nan"), float("nan")
    if optimizer == "AdamW":
        norm = np.sqrt(lr * size / (2.0 * weight_decay))
        return float(norm), float(np.sqrt(2.0 * lr * weight_decay * (1.0 - momentum) / (1.0 + momentum)))
    norm = np.sqrt(lr * grad_sq / (2.0 * weight_decay * (1.0 - momentum)))
    return float(norm), float(np.sqrt(2.0 * lr * weight_decay / (1.0 + momentum)))


def rotation(param_sq: ArrayLike, update_sq: ArrayLike) -> float:
    """Root mean square of the angle a step: what of Δ does not lengthen θ, over ‖θ‖.

    Args:
        param_sq: ‖θ‖² after successive steps, [T].
        update_sq: ‖Δ‖² of the same steps, [T].

    Example:
        >>> round(rotation([1.0, 1.0, 1.0], [0.01, 0.01, 0.01]), 3)
        0.1
    """
    norm = np.sqrt(np.asarray(param_sq, dtype=np.float64))
    if len(norm) < 2:
        return float("nan")
    across = np.maximum(np.asarray(update_sq, dtype=np.float64)[1:] - np.diff(norm) ** 2, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        angle = across / norm[1:] ** 2
    good = angle[np.isfinite(angle)]
    return float(np.sqrt(good.mean())) if len(good) else float("nan")


def drifting_share(positions: ArrayLike) -> float:
    """Share of coordinates whose mean increment is not zero, beyond chance: (f − 0.05)/0.95, at least 0.

    Each coordinate's increments are tested by batch means at 5 %.

    Args:
        positions: [N, C].

    Returns:
        0 for weights that wander or stand, 1 for weights that all go somewhere; NaN for too few rows.
    """
    moves = np.diff(np.asarray(positions, dtype=np.float64), axis=0)
    if len(moves) < 2 * BATCHES or not moves.shape[1]:
        return float("nan")
    means = moves[len(moves) % BATCHES :].reshape(BATCHES, -1, moves.shape[1]).mean(axis=1)
    half = T_BATCHES * means.std(axis=0, ddof=1) / np.sqrt(BATCHES)
    found = float((np.abs(means.mean(axis=0)) > half).mean())
    return max((found - 0.05) / 0.95, 0.0)


def circulation(positions: ArrayLike) -> Estimate:
    """The largest angular velocity ⟨x·dy − y·dx⟩/⟨x² + y²⟩ in planes of the first principal directions, a row.

    In a state with detailed balance trajectories look the same backwards, so it is zero in every plane. The interval
    allows for the largest of six planes.

    Args:
        positions: [N, C], equally far apart in time.

    Source:
        Battle et al. 2016 (Science 352, 604) for the currents; Chaudhari and Soatto 2018 (arXiv 1710.11029) for why
        training breaks detailed balance.
    """
    rows = np.asarray(positions, dtype=np.float64)
    if len(rows) < 2 * BATCHES + 1 or rows.shape[1] < 2:
        return UNKNOWN
    rows = rows - rows.mean(axis=0)
    count = min(PLANES, rows.shape[1])
    left, scale, _ = np.linalg.svd(rows, full_matrices=False)
    scores = left[:, :count] * scale[:count]
    middle, moves = 0.5 * (scores[1:] + scores[:-1]), np.diff(scores, axis=0)
    found = UNKNOWN
    for i in range(count):
        for j in range(i + 1, count):
            size = float((middle[:, i] ** 2 + middle[:, j] ** 2).mean())
            if size <= 0:
                continue
            told = batch_means((middle[:, i] * moves[:, j] - middle[:, j] * moves[:, i]) / size)
            half = (told.high - told.value) * T_PLANES / T_BATCHES
            sure, best = abs(told.value) / max(half, 1e-300), abs(found.value) / max(found.high - found.value, 1e-300)
            if not np.isfinite(found.value) or sure > best:
                found = Estimate(told.value, told.value - half, told.value + half)
    return found
