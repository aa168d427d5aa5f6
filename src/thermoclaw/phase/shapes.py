"""What weights look like: numbers of one array or matrix. No torch.

Legend: n values, m × d a matrix of m rows.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

GAUSSIAN_ENTROPY = 0.5 * math.log(2 * math.pi * math.e)
MOST_ROWS = 512
"""Larger matrices are cut to a random part of this many rows and columns before anything cubic is done."""

LEAST_LEVELS = 64
"""Fewer singular values say nothing about their spacing."""

LEAST_VALUES = 256


# -- as Neurothermo defines them --------------------------------------------------------------------------------------


def local_complexity(w: Array, *, epsilon: float) -> float:
    """`lc`: share of |w| above one per cent of the 95th percentile of |w|."""
    size = np.abs(w)
    return float(np.mean(size > max(0.01 * float(np.quantile(size, 0.95)), epsilon)))


def histogram_entropy(w: Array) -> float:
    """`entropy`: Shannon entropy of a histogram of 50 bins between the least and the largest weight, in nats."""
    scaled = w / max(float(np.abs(w).max()), 1e-300)
    low, high = float(scaled.min()), float(scaled.max())
    if low == high:
        return 0.0
    counts = np.bincount(np.minimum(((scaled - low) / (high - low) * 50).astype(np.int64), 49))
    share = counts[counts > 0] / len(w)
    return float(-(share * np.log(share)).sum()) + 0.0


def spacing_ratio(levels: NDArray[np.floating], *, least: float) -> float:
    """Mean of min/max of neighboring spacings of sorted levels, spacings of at most `least` left out.

    Levels that repel each other give 0.5307 (Gaussian orthogonal ensemble), independent ones 2 ln 2 − 1 = 0.3863
    (Atas et al. 2013, arXiv 1212.5611). NaN with fewer than two spacings.
    """
    spacings = np.diff(np.sort(levels))
    spacings = spacings[spacings > least]
    if len(spacings) < 2:
        return math.nan
    before, after = spacings[:-1], spacings[1:]
    return float(np.mean(np.minimum(before, after) / np.maximum(before, after)))


# -- better founded ---------------------------------------------------------------------------------------------------


def active_share(w: Array) -> float:
    """Share of |w| above a tenth of their root mean square: 0.92 for a Gaussian."""
    rms = math.sqrt(float(np.mean(w**2)))
    return float(np.mean(np.abs(w) > 0.1 * rms))


def negentropy(w: Array) -> float:
    """½ ln 2πe − h of the standardized values, h from 4·n^⅓ bins, at most 256, over ±4 σ.

    0 for a Gaussian, 0.18 for a uniform, for a crystal as large as the bins are narrow.

    The bias of h with few values, (filled bins − 1)/2n, is taken off (Miller and Madow). NaN below 256 values.
    """
    std = float(np.std(w))
    if len(w) < LEAST_VALUES or not std > 0:
        return math.nan
    z = (w - np.mean(w)) / std
    bins = min(round(4 * len(z) ** (1 / 3)), 256)
    counts = np.histogram(np.clip(z, -4, 4), bins=bins, range=(-4, 4))[0]
    share = counts[counts > 0] / len(z)
    h = -float((share * np.log(share)).sum()) + (len(share) - 1) / (2 * len(z)) + math.log(8 / bins)
    return GAUSSIAN_ENTROPY - h


def empty_rows(matrix: Array) -> float:
    """Share of rows whose norm is below 10⁻³ of the root mean square of all."""
    norms = np.sqrt((matrix**2).sum(axis=1))
    rms = math.sqrt(float(np.mean(norms**2)))
    return float(np.mean(norms < 1e-3 * rms)) if rms > 0 else 1.0


def spectral_spacing(matrix: Array, *, seed: int = 0) -> float:
    """Spacing ratio of the singular values; NaN with fewer than 64 of them that differ from zero."""
    values = np.linalg.svd(_part(matrix, seed), compute_uv=False)
    values = values[values > 1e-6 * values[0]] if values[0] > 0 else values[:0]
    return spacing_ratio(values, least=1e-9 * float(values[0])) if len(values) >= LEAST_LEVELS else math.nan


def interference(matrix: Array, *, seed: int = 0) -> float:
    """d · mean of cos² over pairs of rows: 0 orthogonal, 1 random directions, d all alike; NaN with one row.

    Rows of zeros are left out. The sum over all pairs is the squared Frobenius norm of either Gram matrix, of which the
    smaller is made.
    """
    rng = np.random.default_rng(seed)
    norms = np.sqrt((matrix**2).sum(axis=1))
    rows = matrix[norms > 0] / norms[norms > 0, None]
    rows = rows[rng.permutation(len(rows))[:1024]]
    m, d = rows.shape
    if m < 2 or d < 2:
        return math.nan
    gram = rows @ rows.T if m <= d else rows.T @ rows
    return float(d * ((gram**2).sum() - m) / (m * (m - 1)))


def _part(matrix: Array, seed: int) -> Array:
    """At most MOST_ROWS rows and columns, chosen at random: spacing statistics of a random part are the whole's."""
    rng = np.random.default_rng(seed)
    rows, columns = (rng.permutation(n)[:MOST_ROWS] for n in matrix.shape)
    return matrix[np.ix_(rows, columns)] if max(matrix.shape) > MOST_ROWS else matrix
