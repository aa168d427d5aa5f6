"""Neural collapse: how far a classifier's last features have come to one point a class. Not a fault.

Legend: N rows, D features, K classes, μ_c class means less their mean, M = [μ_1 … μ_K].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from thermoclaw.quantities import Array
from thermoclaw.representation.arrays import as_array, as_matrix


@dataclass(frozen=True)
class NeuralCollapse:
    """The four measures of Papyan, Han and Donoho 2020 (arXiv 2008.08186); each is 0 at collapse.

    Attributes:
        nc1: tr(Σ_W Σ_B⁺)/K, variability within classes against that between them.
        nc2_norms: coefficient of variation of ‖μ_c‖.
        nc2_angles: root mean square of cos(μ_c, μ_c') + 1/(K − 1) over pairs of classes.
        nc3: ‖W/‖W‖ − Mᵀ/‖M‖‖, the classifier against the class means; NaN without weights.
        nc4: share of the rows where the classifier does not choose the nearest class mean; NaN without weights.
    """

    nc1: float
    nc2_norms: float
    nc2_angles: float
    nc3: float = math.nan
    nc4: float = math.nan


def neural_collapse(features: Any, labels: Any, *, weight: Any = None, bias: Any = None) -> NeuralCollapse:
    """Measure neural collapse of a batch with labels. It comes with long training of classifiers, and is no fault.

    Args:
        features: [N, D], what the last linear layer reads.
        labels: [N], whole numbers.
        weight: [K, D] of that layer, its rows in the order of the sorted labels.
        bias: [K] of that layer.

    Returns:
        The measures; rows that are not finite are left out.

    Raises:
        TypeError, ValueError: shapes do not fit, or there are fewer than two classes.

    Example:
        >>> neural_collapse([[1, 0], [1, 0], [-1, 0], [-1, 0]], [0, 0, 1, 1]).nc1
        0.0
    """
    rows, classes = as_matrix(features), as_array(labels, what="labels")
    if classes.shape != (len(rows),):
        raise ValueError(f"labels of shape {classes.shape} for {len(rows)} rows: give one number a row")
    good = np.isfinite(rows).all(axis=1)
    rows, classes = rows[good], classes[good]
    names, place = np.unique(classes, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"{len(names)} class in the batch: give rows of two classes at least")
    means = np.stack([rows[place == c].mean(axis=0) for c in range(len(names))])
    centered = means - means.mean(axis=0)
    norms = np.linalg.norm(centered, axis=1)
    nc3, nc4 = _classifier(rows, means, centered, weight, bias)
    return NeuralCollapse(
        nc1=_within_over_between(rows - means[place], centered),
        nc2_norms=float(norms.std() / norms.mean()) if norms.mean() > 0 else math.nan,
        nc2_angles=_angles(centered, norms),
        nc3=nc3,
        nc4=nc4,
    )


def _within_over_between(within: Array, centered: Array) -> float:
    """tr(Σ_W Σ_B⁺)/K by the directions of the class means, of which there are at most K − 1."""
    num_classes = len(centered)
    _, sigma, directions = np.linalg.svd(centered / math.sqrt(num_classes), full_matrices=False)
    kept = sigma > sigma[0] * 1e-10
    if not sigma[0] > 0:
        return math.inf if within.any() else math.nan
    along = np.square(within @ directions[kept].T).mean(axis=0)
    return float((along / sigma[kept] ** 2).sum() / num_classes)


def _angles(centered: Array, norms: Array) -> float:
    if not (norms > 0).all():
        return math.nan
    unit = centered / norms[:, None]
    cosines = (unit @ unit.T)[np.triu_indices(len(unit), k=1)]
    return float(np.sqrt(np.square(cosines + 1 / (len(unit) - 1)).mean()))


def _classifier(rows: Array, means: Array, centered: Array, weight: Any, bias: Any) -> tuple[float, float]:
    if weight is None:
        return math.nan, math.nan
    w = as_matrix(weight, what="weight")
    if w.shape != means.shape:
        raise ValueError(f"weight of shape {w.shape}: give [K, D] = {means.shape}, a row for each class of the batch")
    b = np.zeros(len(w)) if bias is None else as_array(bias, what="bias")
    nc3 = float(np.linalg.norm(w / np.linalg.norm(w) - centered / np.linalg.norm(centered)))
    nearest = (np.square(means).sum(axis=1) - 2 * rows @ means.T).argmin(axis=1)
    return nc3, float(((rows @ w.T + b).argmax(axis=1) != nearest).mean())
