"""The numbers that a check of a representation keeps. No torch.

Legend: N rows, D features.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from thermoclaw.quantities import Array
from thermoclaw.representation.arrays import as_matrix, some_rows, squared_distances, unit_rows
from thermoclaw.representation.measures import covariance_penalty, spread_of, variance_penalty
from thermoclaw.representation.spectrum import expected_rank, ranks

LEAST_ROWS = 2


def summarize(features: Any) -> dict[str, float]:
    """Everything about one sample of features, by name.

    Args:
        features: [N, D]; of more than 1024 rows 1024 are looked at.

    Returns:
        `rows`, `features`, `nan_rows` and `inf_rows` always; `scale` (root mean square standard deviation of a
        feature), `dead_share`, `spread`, `std_ratio`, `uniformity`, `variance_penalty`, `covariance_penalty`,
        `effective_rank`, `participation_ratio` and `rank_share` (`effective_rank` over `expected_rank`) where defined.

    Raises:
        TypeError, ValueError: it is no matrix of real numbers.

    Example:
        >>> found = summarize([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, float("nan")]])
        >>> found["rows"], found["nan_rows"], round(found["spread"], 3)
        (4.0, 1.0, 0.943)
    """
    matrix = some_rows(as_matrix(features))
    nan = np.isnan(matrix).any(axis=1)
    inf = np.isinf(matrix).any(axis=1) & ~nan
    told = {"rows": float(len(matrix)), "features": float(matrix.shape[1])}
    told |= {"nan_rows": float(nan.sum()), "inf_rows": float(inf.sum())}
    rows = matrix[~nan & ~inf]
    if len(rows) >= LEAST_ROWS:
        told |= _of_finite(rows)
    return {name: float(f"{value:.6g}") for name, value in told.items() if math.isfinite(value)}


def _of_finite(rows: Array) -> dict[str, float]:
    unit = unit_rows(rows)
    centered = rows - rows.mean(axis=0)
    found = ranks(centered)
    expected = expected_rank(len(rows), rows.shape[1])
    told = {
        "scale": float(np.sqrt(np.square(centered).mean())),
        "dead_share": float((~rows.any(axis=0)).mean()),
        "spread": spread_of(unit),
        "variance_penalty": variance_penalty(rows),
        "covariance_penalty": covariance_penalty(rows),
        "effective_rank": found["effective_rank"],
        "participation_ratio": found["participation_ratio"],
        "rank_share": found["effective_rank"] / expected,
    }
    if len(unit) >= LEAST_ROWS:
        told["std_ratio"] = float(unit.std(axis=0).mean() * math.sqrt(unit.shape[1]))
        told["uniformity"] = float(np.log(np.exp(-2.0 * squared_distances(unit)).mean()))
    return told
