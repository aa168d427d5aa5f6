"""How far apart the rows of a batch are, and how its features vary.

Legend: N rows, D features, ẑ = z/‖z‖, C the covariance of the features.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from thermoclaw.quantities import Array
from thermoclaw.representation.arrays import as_pair, finite_rows, some_rows, squared_distances, unit_rows


def spread(features: Any) -> float:
    """√(1 − ‖mean of ẑ‖²): how far the rows' directions are from being one.

    Its square is one minus the mean cosine of two rows drawn with replacement. Unlike `std_ratio` it does not depend on
    how many features take part, so outputs like one-hot rows count as spread.

    Args:
        features: [N, D].

    Returns:
        From 0, all rows point the same way, to 1, their directions cancel; NaN for fewer than two rows that are finite
        and not zero.

    Example:
        >>> spread([[1, 0], [-2, 0]]), spread([[1, 1], [2, 2]])
        (1.0, 0.0)
    """
    return spread_of(unit_rows(finite_rows(features)))


def spread_of(rows: Array) -> float:
    """`spread` of rows of length one."""
    if len(rows) < 2:
        return math.nan
    center = rows.mean(axis=0)
    return float(math.sqrt(np.square(rows - center).sum(axis=1).mean()))  # the same, and exact near 0


def std_ratio(features: Any) -> float:
    """√D · mean over features of the standard deviation of ẑ (Chen and He 2021, arXiv 2011.10566).

    Args:
        features: [N, D].

    Returns:
        1 for rows that are uniform on the sphere, 0 where all point the same way, never above `spread`.

    Example:
        >>> round(std_ratio([[1, 0], [0, 1], [-1, 0], [0, -1]]), 6)
        1.0
    """
    rows = unit_rows(finite_rows(features))
    return float(rows.std(axis=0).mean() * math.sqrt(rows.shape[1])) if len(rows) > 1 else math.nan


def variance_penalty(features: Any, *, gamma: float = 1.0) -> float:
    """VICReg's variance term: mean over features of max(0, γ − √(Var z_d + 1e-4)) (Bardes et al. 2022).

    Args:
        features: [N, D].
        gamma: the standard deviation that each feature should have.

    Returns:
        0 where every feature has it, about γ where none varies.

    Example:
        >>> round(variance_penalty([[0, 0], [0, 0]]), 4)
        0.99
    """
    rows = finite_rows(features)
    if len(rows) < 2:
        return math.nan
    return float(np.maximum(0.0, gamma - np.sqrt(rows.var(axis=0, ddof=1) + 1e-4)).mean())


def covariance_penalty(features: Any) -> float:
    """VICReg's covariance term: (1/D) Σ_{i≠j} C_ij² (Bardes et al. 2022).

    Args:
        features: [N, D].

    Returns:
        0 where features are uncorrelated; in units of the features to the fourth power.

    Example:
        >>> covariance_penalty([[1, 1], [-1, -1]])
        4.0
    """
    rows = finite_rows(features)
    if len(rows) < 2:
        return math.nan
    rows = rows - rows.mean(axis=0)
    n, d = rows.shape
    gram = rows @ rows.T if n < d else rows.T @ rows  # both have the same sum of squares
    off = np.square(gram).sum() / (n - 1) ** 2 - np.square(rows.var(axis=0, ddof=1)).sum()
    return float(max(off, 0.0) / d)


def alignment(features: Any, positives: Any, *, alpha: float = 2.0) -> float:
    """E‖ẑ − ẑ⁺‖^α over pairs of views of one example (Wang and Isola 2020, arXiv 2005.10242).

    Args:
        features: [N, D].
        positives: [N, D], row by row the other view.
        alpha: the power.

    Returns:
        0 where the views agree; 2 for unrelated directions, with α = 2. Pairs with a zero row are left out.

    Example:
        >>> alignment([[1, 0]], [[0, 1]])
        2.0
    """
    a, b = as_pair(features, positives, names=("features", "positives"))
    there = a.any(axis=1) & b.any(axis=1)
    a, b = unit_rows(a[there]), unit_rows(b[there])
    return float((np.square(a - b).sum(axis=1) ** (alpha / 2)).mean()) if len(a) else math.nan


def uniformity(features: Any, *, t: float = 2.0) -> float:
    """ln E exp(−t‖ẑ_i − ẑ_j‖²) over pairs of different rows (Wang and Isola 2020, arXiv 2005.10242).

    Args:
        features: [N, D]; of more than 1024 rows 1024 are looked at.
        t: how fast the potential falls.

    Returns:
        0 where all rows point the same way, near −2t for uniform directions in many dimensions.

    Example:
        >>> uniformity([[1, 0], [-1, 0]])
        -8.0
    """
    rows = unit_rows(some_rows(finite_rows(features)))
    if len(rows) < 2:
        return math.nan
    return float(np.log(np.exp(-t * squared_distances(rows)).mean()))


def dead_share(features: Any) -> float:
    """Share of the features that are exactly zero in every row.

    Args:
        features: [N, D], as they come out of a ReLU.

    Returns:
        From 0 to 1; NaN where no row is finite.

    Example:
        >>> dead_share([[1, 0], [2, 0]])
        0.5
    """
    rows = finite_rows(features)
    return float((~rows.any(axis=0)).mean()) if len(rows) else math.nan


def gaussian_kl(features: Any, *, shrinkage: float = 0.1) -> float:
    """KL(N(μ, Σ) ‖ N(0, 1))/D = (‖μ‖² + tr Σ − ln det Σ − D)/(2D), with Σ drawn towards its mean variance.

    Args:
        features: [N, D].
        shrinkage: s in Σ ← (1 − s)Σ + s·(tr Σ/D)·1.

    Returns:
        Nats a feature; NaN for N ≤ D, where the determinant says how many rows there are and nothing else.

    Example:
        >>> bool(gaussian_kl([[2.0], [-2.0], [2.0], [-2.0]]) > gaussian_kl([[1.0], [-1.0], [1.0], [-1.0]]))
        True
    """
    rows = finite_rows(features)
    n, d = rows.shape
    if n <= d:
        return math.nan
    mean = rows.mean(axis=0)
    values = np.linalg.eigvalsh((rows - mean).T @ (rows - mean) / n)
    values = (1 - shrinkage) * np.maximum(values, 0.0) + shrinkage * max(float(values.mean()), 0.0)
    if not (values > 0).all():
        return math.inf
    return float((mean @ mean + values.sum() - np.log(values).sum() - d) / (2 * d))
