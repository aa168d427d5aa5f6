"""Spectra of gradient covariances without the covariance: the T × T Gram matrix has the same non-zero eigenvalues.

For gradients g_1 … g_T of n elements, centered to G (T × n), the covariance GᵀG/(T−1) has n² elements and the Gram
matrix GGᵀ/(T−1) has T²; eigenvalues other than zero are the same. No torch.

Legend: T steps, n coordinates, k eigenvalues that differ from zero.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RELATIVE = 1e-12
"""Eigenvalues below this share of the largest are rounding."""


def usable(samples: Array) -> tuple[Array, NDArray[np.bool_], NDArray[np.bool_]]:
    """Gradients [T, n] without what is missing, and which steps and coordinates were kept.

    Steps without any finite number go first, then coordinates that are missing at any step that is left.
    """
    good = np.isfinite(samples)
    steps = np.asarray(good.any(axis=1))
    coordinates = np.asarray(good[steps].all(axis=0)) if steps.any() else np.zeros(samples.shape[1], dtype=bool)
    return samples[steps][:, coordinates], steps, coordinates


def centered(gradients: Array) -> Array:
    """Each coordinate less its mean over the steps."""
    return gradients - gradients.mean(axis=0) if len(gradients) else gradients


def gram_spectrum(deviations: Array) -> Array:
    """Non-zero eigenvalues of the sample covariance (T − 1 in the denominator), largest first."""
    steps, scale = len(deviations), np.abs(deviations).max(initial=0.0)
    if steps < 2 or not 0 < scale < math.inf:
        return np.empty(0)
    scaled = deviations / scale
    values = np.linalg.eigvalsh(scaled @ scaled.T)[::-1] / (steps - 1)
    return values[values > RELATIVE * values[0]] * scale**2


def correlation_spectrum(deviations: Array) -> Array:
    """Non-zero eigenvalues of the correlation matrix of the coordinates; those that never vary are left out."""
    scale = np.abs(deviations).max(initial=0.0)
    if len(deviations) < 2 or not 0 < scale < math.inf:
        return np.empty(0)
    deviations = deviations / scale
    std = np.sqrt((deviations**2).sum(axis=0) / (len(deviations) - 1))
    varies = std > RELATIVE * std.max()
    return gram_spectrum(deviations[:, varies] / std[varies])


def participation_ratio(spectrum: Array) -> float:
    """(Σ λ)²/Σ λ²: how many eigenvalues share the variance. NaN without any.

    Example:
        >>> participation_ratio(np.ones(7)), participation_ratio(np.array([2.0, 2.0, 0.0]))
        (7.0, 2.0)
    """
    if len(spectrum) == 0:
        return math.nan
    share = spectrum / spectrum[0]
    return float(share.sum() ** 2 / (share**2).sum())


def condition_number(spectrum: Array) -> float:
    """Largest over smallest non-zero eigenvalue; NaN with fewer than two."""
    return float(spectrum[0] / spectrum[-1]) if len(spectrum) >= 2 else math.nan


def effective_coordinates(deviations: Array) -> float:
    """(Σ v)²/Σ v² over the coordinates' variances v: n where they are equal."""
    variances = (deviations**2).sum(axis=0)
    top = float(variances.max(initial=0.0))
    if top == 0:
        return 0.0
    share = variances / top
    return float(share.sum() ** 2 / (share**2).sum())


def marchenko_pastur_kappa(steps: int, coordinates: float) -> float:
    """Condition number that independent gradients have by chance: ((1 + √y)/(1 − √y))², y = (T − 1)/n.

    NaN where there are no more coordinates than steps: the smallest eigenvalue may then be anything.

    Example:
        >>> round(marchenko_pastur_kappa(100, 1000), 2)
        3.68
    """
    if not coordinates > steps - 1 or steps < 2:
        return math.nan
    root = math.sqrt((steps - 1) / coordinates)
    return ((1 + root) / (1 - root)) ** 2


def successive_noise(gradients: Array) -> float:
    """Mean over steps of ½‖g_t − g_{t−1}‖²: the trace of the noise's covariance, whatever the window. NaN for T < 2."""
    if len(gradients) < 2:
        return math.nan
    return float(0.5 * (np.diff(gradients, axis=0) ** 2).sum(axis=1).mean())


def uncertainty_product(weights: Array, gradients: Array) -> float:
    """Sum over coordinates of std_t(θ_i)·std_t(g_i), in units of the loss; unchanged when θ is scaled."""
    if len(weights) < 2 or weights.shape[1] == 0:
        return math.nan
    return float(np.sum(weights.std(axis=0, ddof=1) * gradients.std(axis=0, ddof=1)))


def variation(norms: Array) -> float:
    """Standard deviation over mean of the gradient norms that are finite; NaN without two of them."""
    norms = norms[np.isfinite(norms)]
    if len(norms) < 2 or not norms.mean() > 0:
        return math.nan
    return float(norms.std() / norms.mean())


def mean_slope(losses: Array) -> float:
    """`c_v` as Neurothermo has it: the mean of |dL/dt|."""
    return float(np.mean(np.abs(np.gradient(losses)))) if len(losses) >= 2 else math.nan


def detrended_variation(losses: Array) -> float:
    """Standard deviation of the losses about a straight line, over |their mean|; NaN below three."""
    if len(losses) < 3 or not abs(losses.mean()) > 0:
        return math.nan
    t = np.arange(len(losses)) - (len(losses) - 1) / 2
    rest = losses - losses.mean()
    rest = rest - t * float(t @ rest) / float(t @ t)
    return float(np.sqrt((rest**2).sum() / (len(losses) - 2)) / abs(losses.mean()))
