"""What a row of gradient norms says: spikes, how much is clipped, where to clip; and how steady weights are. No torch.

Legend: T steps, N rows, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

WINDOW, LEAST, Z, FACTOR, RARE = 200, 30, 6.0, 3.0, 0.05
MAD_TO_DEVIATION, FLOOR = 1.4826, 1e-3
QUANTILE = 0.95
NORMAL, FREQUENT, INACTIVE_STEPS = 0.05, 0.5, 1000


@dataclass(frozen=True)
class Spike:
    """A gradient norm that stands out.

    Attributes:
        step: its optimizer step.
        norm: ‖g‖.
        z: how many robust deviations log ‖g‖ lies above the median of the window.
        over_median: ‖g‖ over that median.
    """

    step: int
    norm: float
    z: float
    over_median: float


def robust_z(norms: ArrayLike, *, window: int = WINDOW) -> tuple[Array, Array, Array]:
    """How far each log-norm lies above those before it, ‖g‖ over their median, and how usual its size is, [T] each.

    z = (x − median) / (1.4826·MAD + 0.001), x = ln ‖g‖, over the last `window` steps before it. A norm that stands out
    enters the window at the bound of what does not, so that spikes do not hide the next ones. How usual a size is, is
    the share of the window's norms of at least half of it. NaN for the first 30 steps, and for norms that are zero or
    not finite, which enter nothing.

    Source:
        Iglewicz and Hoaglin 1993 (the modified z-score); compare ZClip (arXiv 2504.02507).

    Example:
        >>> import numpy as np
        >>> norms = np.ones(50); norms[40] = 10.0
        >>> z, over, usual = robust_z(norms)
        >>> bool(z[40] > 6), round(over[40]), float(usual[40])
        (True, 10, 0.0)
    """
    values = np.asarray(norms, dtype=np.float64)
    z, over, usual = (np.full(len(values), np.nan) for _ in range(3))
    seen, raw = np.empty(window), np.empty(window)
    count = 0
    for t, value in enumerate(values):
        if not np.isfinite(value) or value <= 0:
            continue
        x = bounded = float(np.log(value))
        if count >= LEAST:
            known = seen[: min(count, window)]
            middle = float(np.median(known))
            width = MAD_TO_DEVIATION * float(np.median(np.abs(known - middle))) + FLOOR
            z[t], over[t] = (x - middle) / width, np.exp(x - middle)
            usual[t] = (raw[: len(known)] > x - np.log(2.0)).mean()
            bounded = min(x, middle + max(Z * width, float(np.log(FACTOR))))
        seen[count % window], raw[count % window] = bounded, x
        count += 1
    return z, over, usual


def find_spikes(norms: ArrayLike, steps: ArrayLike | None = None, *, window: int = WINDOW) -> list[Spike]:
    """Norms with z above 6 that are also more than three times the median, of a size that fewer than 5 % have.

    A run whose norms come in two sizes again and again has no spikes: what is regular is no outlier.

    Example:
        >>> import numpy as np
        >>> norms = np.ones(50); norms[40] = 10.0
        >>> [(spike.step, round(spike.over_median)) for spike in find_spikes(norms)]
        [(41, 10)]
    """
    values = np.asarray(norms, dtype=np.float64)
    at = np.arange(1, len(values) + 1) if steps is None else np.asarray(steps)
    z, over, usual = robust_z(values, window=window)
    with np.errstate(invalid="ignore"):
        rows = np.flatnonzero((z > Z) & (over > FACTOR) & (usual < RARE))
    return [Spike(int(at[t]), float(values[t]), float(z[t]), float(over[t])) for t in rows]


@dataclass(frozen=True)
class Clipping:
    """What a bound on the gradient norm does to a run.

    Attributes:
        max_norm: the bound.
        fraction: share of the steps whose norm was above it.
        coefficient: mean of min(1, max_norm/‖g‖), by which gradients are multiplied.
        steps: steps that were looked at.
        band: "inactive" (no step in at least 1,000), "rare" (up to 5 %), "frequent" (up to half), "normalizing" (more:
            the step length is lr·max_norm whatever the gradient), or "unknown" (fewer than 30 steps).
    """

    max_norm: float
    fraction: float
    coefficient: float
    steps: int
    band: str


def clipping(pre_clip_norms: ArrayLike, max_norm: float) -> Clipping:
    """How often, and by how much, gradients are clipped.

    Args:
        pre_clip_norms: ‖g‖ before clipping, what `clip_grad_norm_` returns, [T].
        max_norm: the bound.

    Raises:
        ValueError: `max_norm` is not above zero.

    Example:
        >>> clipping([0.5, 0.5, 2.0, 4.0] * 10, 1.0)
        Clipping(max_norm=1.0, fraction=0.5, coefficient=0.6875, steps=40, band='frequent')
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm={max_norm!r}: give a number above 0")
    values = np.asarray(pre_clip_norms, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return Clipping(float(max_norm), float("nan"), float("nan"), 0, "unknown")
    fraction = float((values > max_norm).mean())
    coefficient = float(np.minimum(1.0, max_norm / np.maximum(values, 1e-300)).mean())
    return Clipping(float(max_norm), fraction, coefficient, len(values), _band(fraction, len(values)))


def _band(fraction: float, steps: int) -> str:
    if steps < LEAST:
        return "unknown"
    if fraction == 0:
        return "inactive" if steps >= INACTIVE_STEPS else "rare"
    return "rare" if fraction <= NORMAL else "frequent" if fraction <= FREQUENT else "normalizing"


def recommended_max_norm(pre_clip_norms: ArrayLike, *, window: int = WINDOW) -> float | None:
    """A bound that leaves ordinary steps alone: the 95 % quantile of recent norms that are no spikes; None without any.

    Args:
        pre_clip_norms: ‖g‖ before clipping, [T].
        window: steps that a norm is compared with, and the last norms that the quantile is of.

    Returns:
        The bound, or None where no spike was seen: then clipping is not needed.

    Source:
        AutoClip (Seetharaman et al. 2020, arXiv 2007.14469) takes a low quantile; a high one cuts outliers alone.

    Example:
        >>> import numpy as np
        >>> norms = np.ones(60); norms[40] = 10.0
        >>> recommended_max_norm(norms), recommended_max_norm(np.ones(60))
        (1.0, None)
    """
    values = np.asarray(pre_clip_norms, dtype=np.float64)
    spikes = find_spikes(values, np.arange(len(values)), window=window)
    if not spikes:
        return None
    plain = np.delete(values, [spike.step for spike in spikes])
    plain = plain[np.isfinite(plain)][-window:]
    return float(np.quantile(plain, QUANTILE)) if len(plain) else None


def norm_stability(param_norms: ArrayLike) -> tuple[float, float]:
    """Standard deviation of the increments of ln ‖θ‖, and the largest |increment| over their median.

    Args:
        param_norms: ‖θ‖ at successive steps, [T].

    Returns:
        Both NaN for fewer than three norms; the second infinite where the median is zero.

    Example:
        >>> import numpy as np
        >>> spread, jump = norm_stability(np.exp(np.linspace(0, 1, 11)))
        >>> bool(spread < 1e-12), round(jump, 6)
        (True, 1.0)
    """
    values = np.asarray(param_norms, dtype=np.float64)
    values = values[np.isfinite(values) & (values > 0)]
    if len(values) < 3:
        return float("nan"), float("nan")
    increments = np.diff(np.log(values))
    size = np.abs(increments)
    middle, largest = float(np.median(size)), float(size.max())
    return float(increments.std()), largest / middle if middle > 0 else float("inf") if largest else 1.0
