"""How many directions a batch uses, by four measures, and what each would be if all directions were alike.

Legend: N rows, D features, m = min(N, D), σ_k singular values, λ_k = σ_k² eigenvalues.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from thermoclaw.quantities import Array
from thermoclaw.representation.arrays import finite_rows, some_rows

MEASURES = ("effective_rank", "effective_dimension", "participation_ratio", "rankme")


def eigenvalues(matrix: Array) -> Array:
    """Eigenvalues λ of ZᵀZ (or ZZᵀ, whichever is smaller) up to a common factor, [m], none negative."""
    scale = np.abs(matrix).max(initial=0.0)
    if not scale:
        return np.zeros(min(matrix.shape))
    matrix = matrix / scale
    gram = matrix @ matrix.T if len(matrix) < matrix.shape[1] else matrix.T @ matrix
    found = np.linalg.eigvalsh(gram)
    rounding = found[-1] * len(gram) * np.finfo(np.float64).eps
    return np.where(found > rounding, found, 0.0)


def _centered(features: Any) -> Array:
    rows = some_rows(finite_rows(features))
    return rows - rows.mean(axis=0) if len(rows) else rows


def _exp_entropy(weights: Array) -> float:
    total = weights.sum()
    if not total > 0:
        return math.nan
    p = weights[weights > 0] / total
    return float(np.exp(-(p * np.log(p)).sum()))


def ranks(matrix: Array) -> dict[str, float]:
    """`effective_rank`, `effective_dimension` and `participation_ratio` of centered rows, from one decomposition."""
    values = eigenvalues(matrix) if len(matrix) else np.zeros(1)
    square = float((values**2).sum())
    return {
        "effective_rank": _exp_entropy(np.sqrt(values)),
        "effective_dimension": _exp_entropy(values),
        "participation_ratio": float(values.sum()) ** 2 / square if square > 0 else math.nan,
    }


def effective_rank(features: Any) -> float:
    """exp H(p), p_k = σ_k/Σσ, of the centered batch (Roy and Vetterli 2007).

    Args:
        features: [N, D]; of more than 1024 rows 1024 are looked at.

    Returns:
        Between 1 and min(N − 1, D); NaN where all rows are the same.

    Raises:
        TypeError, ValueError: it is no matrix of real numbers.

    Example:
        >>> round(effective_rank([[1, 0], [-1, 0], [0, 1], [0, -1]]), 6)
        2.0
    """
    return ranks(_centered(features))["effective_rank"]


def effective_dimension(features: Any) -> float:
    """exp H(p), p_k = λ_k/Σλ, of the centered batch: directions by their share of the variance.

    Args:
        features: [N, D]; of more than 1024 rows 1024 are looked at.

    Returns:
        Between 1 and min(N − 1, D), never above `effective_rank`; NaN where all rows are the same.

    Example:
        >>> round(effective_dimension([[3, 0], [-3, 0], [0, 1], [0, -1]]), 4)
        1.3841
    """
    return ranks(_centered(features))["effective_dimension"]


def participation_ratio(features: Any) -> float:
    """(Σλ)²/Σλ² of the centered batch.

    Args:
        features: [N, D]; of more than 1024 rows 1024 are looked at.

    Returns:
        Between 1 and min(N − 1, D), never above `effective_dimension`; NaN where all rows are the same.

    Example:
        >>> round(participation_ratio([[3, 0], [-3, 0], [0, 1], [0, -1]]), 4)
        1.2195
    """
    return ranks(_centered(features))["participation_ratio"]


def rankme(features: Any) -> float:
    """RankMe: exp H(p), p_k = σ_k/Σσ + 1e-7, of the batch as it is, not centered (Garrido et al. 2023).

    It grows with N: compare values of the same N only, or with `expected_rank`. The paper takes 25,600 rows; here all
    given rows count, so the cost is that of one product [min(N, D), min(N, D)] and its eigenvalues.

    Args:
        features: [N, D].

    Returns:
        Between 1 and min(N, D); NaN where nothing is finite or all is zero.

    Example:
        >>> round(rankme([[1, 0], [0, 1]]), 4)
        2.0
    """
    rows = finite_rows(features)
    sigma = np.sqrt(eigenvalues(rows)) if len(rows) else np.zeros(1)
    if not sigma.sum() > 0:
        return math.nan
    p = sigma / sigma.sum() + 1e-7
    return float(np.exp(-(p * np.log(p)).sum()))


@functools.lru_cache(maxsize=256)
def expected_rank(num_rows: int, num_features: int, measure: str = "effective_rank") -> float:
    """What a measure comes to for N rows of isotropic Gaussian features: the most that so few rows can show.

    From the Marchenko–Pastur law with aspect ratio y = m/M, where m and M are the smaller and larger of D and the rows
    (N − 1 where the batch is centered): m·exp(−E[w ln w]), with w = √x/E√x for singular values and w = x for
    eigenvalues; for the participation ratio N'D/(N' + D). Accurate to about 1 % from m = 10 on.

    Args:
        num_rows: N, at least 2.
        num_features: D.
        measure: "effective_rank", "effective_dimension", "participation_ratio" or "rankme".

    Returns:
        The expected value.

    Raises:
        ValueError: there is no such measure, or nothing to measure.

    Source: Marchenko and Pastur 1967.

    Example:
        >>> round(expected_rank(64, 128)), round(expected_rank(25_600, 128, "rankme"))
        (58, 128)
    """
    if measure not in MEASURES:
        raise ValueError(f"measure={measure!r}: choose one of {', '.join(MEASURES)}")
    if num_rows < 2 or num_features < 1:
        raise ValueError(f"{num_rows} rows of {num_features} features: give at least 2 rows of 1 feature")
    rows = num_rows if measure == "rankme" else num_rows - 1
    small, large = sorted((rows, num_features))
    if measure == "participation_ratio":
        return rows * num_features / (rows + num_features + 1)
    x, weight = _marchenko_pastur(small / large)
    w = x if measure == "effective_dimension" else np.sqrt(x)
    w = w / (w * weight).sum()
    return float(small * np.exp(-(weight * w * np.log(w)).sum()))


def _marchenko_pastur(y: float) -> tuple[Array, Array]:
    """Points and weights of the law of ratio y ≤ 1, density √((b−x)(x−a))/(2πyx), by x = 1 + y + 2√y cos t."""
    t = (np.arange(2000) + 0.5) * np.pi / 2000
    x = 1 + y + 2 * math.sqrt(y) * np.cos(t)
    weight = np.sin(t) ** 2 / x
    return x, weight / weight.sum()
