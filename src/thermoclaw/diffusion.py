"""How parameters wander: displacement over lags, its power law, correlation of steps, and stationarity. No torch.

Legend: N recorded positions, C coordinates, K lags, T steps.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

BATCHES, T_BATCHES = 10, 2.26  # batch means and Student's two-sided 95 % point for them
BLOCKS, LEAST_ROWS = 8, 16
LEAST_LAGS, LONGEST_SHARE = 3, 0.25
STUCK, CONFINED, BALLISTIC = 0.2, 0.8, 1.5


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval.

    Attributes:
        value: the estimate; NaN where there is too little to go by.
        low, high: the interval.
    """

    value: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether the interval holds a value."""
        return self.low <= value <= self.high


UNKNOWN = Estimate(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True)
class Diffusion:
    """How weights moved over the sampled part of a run.

    Attributes:
        lags: in optimizer steps, [K].
        msd: mean-squared displacement a weight at them, [K].
        exponent: of MSD ∝ τ^a, with its interval.
        coefficient: D = MSD/(2τ) at the longest lag, a weight and step.
        green_kubo: D from the correlation of increments, a weight and step.
        motion: "ballistic", "superdiffusive", "diffusive", "confined", "stuck" or "unknown".
    """

    lags: Array
    msd: Array
    exponent: Estimate
    coefficient: float
    green_kubo: float
    motion: str


def batch_means(values: ArrayLike) -> Estimate:
    """Mean of a correlated series, with an interval from the means of ten batches of it.

    Source:
        Schmeiser 1982; used on training by Lang, Xiao and Zhang 2019 (SASA, arXiv 1909.09785).

    Example:
        >>> batch_means(range(1000)).value
        499.5
    """
    series = np.asarray(values, dtype=np.float64)
    series = series[np.isfinite(series)]
    if len(series) < 2 * BATCHES:
        return UNKNOWN
    used = series[len(series) % BATCHES :]
    means = used.reshape(BATCHES, -1).mean(axis=1)
    half = T_BATCHES * float(means.std(ddof=1)) / np.sqrt(BATCHES)
    mean = float(used.mean())
    return Estimate(mean, mean - half, mean + half)


def lags_of(count: int) -> NDArray[np.int64]:
    """1, 2, 4, 8 … rows, up to a quarter of them: beyond that too few pairs are independent."""
    longest = int(count * LONGEST_SHARE)
    return 2 ** np.arange(int(np.log2(longest)) + 1) if longest >= 1 else np.zeros(0, dtype=np.int64)


def mean_squared_displacement(positions: ArrayLike) -> tuple[NDArray[np.int64], Array]:
    """⟨(θ(t + τ) − θ(t))²⟩ a coordinate, over all starts t, for lags τ of 1, 2, 4 … rows.

    Args:
        positions: [N, C], equally far apart in time.

    Returns:
        Lags in rows and the displacement, [K] each; both empty for fewer than four rows.

    Example:
        >>> import numpy as np
        >>> lags, msd = mean_squared_displacement(np.arange(32.0)[:, None])  # one step of 1 a row
        >>> lags.tolist(), msd.tolist()
        ([1, 2, 4, 8], [1.0, 4.0, 16.0, 64.0])
    """
    lags, moved = displacement_by_coordinate(positions)
    return lags, moved.mean(axis=1)


def displacement_by_coordinate(positions: ArrayLike) -> tuple[NDArray[np.int64], Array]:
    """Lags in rows, [K], and the mean-squared displacement of each coordinate at them, [K, C]."""
    rows = np.asarray(positions, dtype=np.float64)
    lags = lags_of(len(rows))
    moved = [((rows[lag:] - rows[:-lag]) ** 2).mean(axis=0) for lag in lags]
    return lags, np.array(moved).reshape(len(lags), rows.shape[1])


def describe(positions: Array, lags: NDArray[np.int64], moved: Array, *, stride: float) -> Diffusion:
    """What a displacement says.

    Args:
        positions: [N, C], equally far apart in time.
        lags: in rows, [K].
        moved: the displacement of each coordinate at them, [K, C].
        stride: steps from one row to the next.
    """
    msd = moved.mean(axis=1)
    parts = np.array_split(np.arange(moved.shape[1]), min(BLOCKS, moved.shape[1]))
    blocks = np.array([moved[:, part].mean(axis=1) for part in parts])
    is_known = len(lags) > 0 and len(positions) >= LEAST_ROWS // 2
    exponent, _ = power_law(lags, msd, blocks=blocks) if len(positions) >= LEAST_ROWS else (UNKNOWN, 0.0)
    return Diffusion(
        np.asarray(lags * stride, dtype=np.float64),
        msd,
        exponent,
        float(msd[-1] / (2.0 * lags[-1] * stride)) if is_known else float("nan"),
        green_kubo(positions) / stride if is_known else float("nan"),
        motion_word(exponent),
    )


def power_law(lags: ArrayLike, msd: ArrayLike, *, blocks: Array | None = None) -> tuple[Estimate, float]:
    """Exponent a and prefactor of MSD = A·τ^a, by least squares of the logarithms.

    Args:
        lags: τ > 0, [K].
        msd: the displacement, [K].
        blocks: the displacement in independent parts of the coordinates or of the run, [B, K]; the interval of a is
            that of their exponents. Without it the interval is that of the residuals.

    Returns:
        a (2 ballistic, 1 diffusive, below 1 confined) with its interval, and A.

    Source:
        Chen et al. 2020 (arXiv 2009.10588); Kunin et al. 2021 (arXiv 2107.09133).
    """
    x, y = np.log(np.asarray(lags, dtype=np.float64)), np.asarray(msd, dtype=np.float64)
    if len(x) < LEAST_LAGS or not (np.isfinite(y) & (y > 0)).all():
        return UNKNOWN, float("nan")
    slope, level = (float(v) for v in np.polyfit(x, np.log(y), 1))
    spread = ((x - x.mean()) ** 2).sum()
    if blocks is not None and len(blocks) > 2 and (blocks > 0).all():
        slopes = ((x - x.mean()) * np.log(blocks)).sum(axis=1) / spread
        half = 2.0 * float(slopes.std(ddof=1)) / np.sqrt(len(slopes))
    else:
        left = np.log(y) - (slope * x + level)
        half = 2.0 * float(np.sqrt((left**2).sum() / max(len(x) - 2, 1) / spread))
    return Estimate(slope, slope - half, slope + half), float(np.exp(level))


def green_kubo(positions: ArrayLike) -> float:
    """Diffusion coefficient from the correlation of increments: D = ½·(C₀ + 2·Σ_k C_k), a row and coordinate.

    The sum ends where the correlation first falls to zero, or at a tenth of the rows.

    Args:
        positions: [N, C], equally far apart in time.

    Source:
        Kubo 1957, where D is the integral of the velocity's autocorrelation.

    Example:
        >>> import numpy as np
        >>> steps = np.random.default_rng(0).standard_normal((4000, 50))
        >>> round(green_kubo(np.cumsum(steps, axis=0)), 1)  # independent steps of variance 1
        0.5
    """
    moves = np.diff(np.asarray(positions, dtype=np.float64), axis=0)
    if len(moves) < 20:
        return float("nan")
    moves = moves - moves.mean(axis=0)
    total = float((moves**2).mean())
    for lag in range(1, len(moves) // 10 + 1):
        correlation = float((moves[lag:] * moves[:-lag]).mean())
        if correlation <= 0:
            break
        total += 2.0 * correlation
    return 0.5 * total


def fluctuation_dissipation(param_sq: ArrayLike, update_sq: ArrayLike, *, steps: ArrayLike | None = None) -> Estimate:
    """X = −2⟨θ·Δ⟩/⟨‖Δ‖²⟩ for any optimizer: 1 exactly where ‖θ‖² is stationary, above while it shrinks.

    −2θ_{t−1}·Δ_t = ‖Δ_t‖² − (‖θ_t‖² − ‖θ_{t−1}‖²), so norms alone tell it, summed over each of ten batches of steps.
    Of rows that leave steps out, ‖Δ‖² stands for the steps since the row before; the interval has what that costs.

    Args:
        param_sq: ‖θ‖² after each row's step, [T].
        update_sq: ‖Δ‖² of the same steps, [T].
        steps: their numbers, increasing, [T]; by default they follow one another.

    Returns:
        X with its interval.

    Source:
        Yaida 2018 (arXiv 1810.00004), relation 1, here without the learning rate.

    Example:
        >>> import numpy as np
        >>> fluctuation_dissipation(np.ones(101), np.full(101, 0.1)).value
        1.0
    """
    norms, moves = np.asarray(param_sq, dtype=np.float64), np.asarray(update_sq, dtype=np.float64)
    times = np.arange(len(norms)) if steps is None else np.asarray(steps, dtype=np.int64)
    if len(times) <= 2 * BATCHES or not (np.isfinite(norms).all() and np.isfinite(moves).all()):
        return UNKNOWN
    span = int(times[-1] - times[0])
    ends = np.searchsorted(times, times[0] + np.linspace(span % BATCHES, span, BATCHES + 1).astype(np.int64))
    moves = moves * np.diff(times, prepend=times[0])  # of the first row, whose step comes before all batches, none
    lengths = np.array([moves[a + 1 : b + 1].sum() for a, b in itertools.pairwise(ends)])
    if not (lengths > 0).all():
        return UNKNOWN
    ratios = 1.0 - np.diff(norms[ends]) / lengths
    value = float(1.0 - (norms[ends[-1]] - norms[ends[0]]) / lengths.sum())
    half = T_BATCHES * float(ratios.std(ddof=1)) / np.sqrt(BATCHES)
    return Estimate(value, value - half, value + half)


def motion_word(exponent: Estimate) -> str:
    """What an exponent means: "ballistic", "superdiffusive", "diffusive", "confined", "stuck" or "unknown"."""
    a = exponent.value
    if not np.isfinite(a):
        return "unknown"
    if exponent.high < STUCK:
        return "stuck"
    if exponent.high < CONFINED:
        return "confined"
    if exponent.low > BALLISTIC:
        return "ballistic"
    return "superdiffusive" if exponent.low > 2.0 - CONFINED else "diffusive"
