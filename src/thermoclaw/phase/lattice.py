"""Lattice order: how nearly the values lie on evenly spaced points, whatever the spacing. No torch.

The structure factor of values w at the spacing s is S(s) = |mean e^{2πi w/s}|: 1 where all w − w₀ are multiples of s,
and about 1/√n for values that know nothing of s. Order is its largest value over spacings from 0.2 to 2 standard
deviations, as a Bragg peak shows a crystal of any scale. Values that are zero (|w| < 10⁻³ rms) are left out: pruned
weights would make any distribution look like a lattice.

Legend: n values, B bins, F frequencies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_VALUES = 256
"""Fewer values have no lattice order: chance alone would reach 0.2. Half of them must differ from zero."""

ZERO = 1e-3
"""Values below this share of the root mean square are zeros."""

NUM_BINS = 4096  # B
REACH = 8.0  # standard deviations on either side of the mean that are binned
PADDED = 2 * NUM_BINS
SHORTEST, LONGEST = 0.2, 2.0  # spacings, in standard deviations
FIRST = math.ceil(2 * REACH * PADDED / NUM_BINS / LONGEST)
LAST = math.floor(2 * REACH * PADDED / NUM_BINS / SHORTEST)
"""Places of the longest and the shortest spacing in the transform: place k stands for the spacing 2·REACH·2/k."""

FEWEST_ZEROS = 0.01
"""A single value is a lattice only beside zeros: at least this share of them."""


@dataclass(frozen=True)
class Lattice:
    """What was found.

    Args:
        order: largest structure factor, in [0, 1]; NaN where it is not defined.
        spacing: the distance of lattice points where it is reached, in the unit of the weights.
    """

    order: float = math.nan
    spacing: float = math.nan

    @property
    def noise(self) -> float:
        """Standard deviation of the distance to the lattice, in spacings: √(−2 ln order)/2π (Debye and Waller)."""
        if not self.order > 0:
            return math.nan
        return math.sqrt(-2 * math.log(min(self.order, 1.0))) / (2 * math.pi)


def find_lattice(values: NDArray[np.floating]) -> Lattice:
    """Lattice order and spacing of values of any scale.

    Args:
        values: n numbers; where one is not finite nothing is defined.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> round(find_lattice(0.05 * rng.integers(-1, 2, 4096)).order, 3)
        1.0
        >>> find_lattice(rng.normal(size=100_000)).order < 0.03
        True
    """
    w = np.asarray(values, dtype=np.float64).ravel()
    scale = float(np.abs(w).max(initial=0.0))
    if len(w) < LEAST_VALUES or not 0 < scale < math.inf:
        return Lattice()
    w = w / scale
    kept = w[np.abs(w) >= ZERO * math.sqrt(float(np.mean(w**2)))]
    if len(kept) < LEAST_VALUES // 2:
        return Lattice()
    mean, std = float(kept.mean()), float(kept.std())
    if std <= ZERO * math.sqrt(float(np.mean(kept**2))):
        alone = 1 - len(kept) / len(w) < FEWEST_ZEROS
        return Lattice() if alone else Lattice(1.0, scale * abs(mean))
    zeros = 1 - len(kept) / len(w)
    order, spacing = _bragg_peak((kept - mean) / std, zero=-mean / std if zeros >= FEWEST_ZEROS else None)
    return Lattice(order, spacing * std * scale)


def _bragg_peak(z: NDArray[np.float64], *, zero: float | None) -> tuple[float, float]:
    """Largest structure factor of standardized values, and the longest spacing that reaches it (nearly).

    `zero` is a place that must be on the lattice: without it, −1 and 1 beside many zeros would be 2 apart.
    """
    places = np.floor((z + REACH) * (NUM_BINS / (2 * REACH)))
    inside = places[(places >= 0) & (places < NUM_BINS)].astype(np.int64)
    counts = np.bincount(inside, minlength=NUM_BINS) / len(z)
    centers = (np.arange(NUM_BINS) + 0.5) * (2 * REACH / NUM_BINS) - REACH
    peaks = np.abs(np.fft.rfft(counts, n=PADDED))[FIRST : LAST + 1]
    used = counts > 0
    counts, centers = counts[used], centers[used]
    order, spacing = 0.0, math.nan
    around = np.concatenate([[0.0], peaks, [0.0]])
    hills = (peaks >= 0.95 * peaks.max()) & (peaks >= around[:-2]) & (peaks >= around[2:])
    for k in FIRST + np.flatnonzero(hills):
        near = np.linspace(max(k - 0.5, FIRST), k + 0.5, 33) / (2 * REACH * PADDED / NUM_BINS)
        factors = np.exp(2j * np.pi * near[:, None] * centers) @ counts
        at = int(np.argmax(np.abs(factors)))
        found = float(np.abs(factors[at]))
        fits = zero is None or (factors[at] * np.exp(-2j * np.pi * near[at] * zero)).real >= 0.9 * found
        if fits and found > order + 0.02:  # of equal peaks the first: a lattice of spacing s has one at s/2, too
            order, spacing = found, 1 / float(near[at])
    return min(float(max(order, peaks.max())), 1.0), spacing
