"""A series in one line of characters. Numpy only."""

from __future__ import annotations

import numpy as np

from thermoclaw.quantities import Array
from thermoclaw.report.series import bin_mean, make_bins

BLOCKS, PLAIN = "▁▂▃▄▅▆▇█", "_.-=+*%#"
LOG_SPAN = 30.0  # a positive series that spans more than this is drawn by its logarithm


def sparkline(steps: Array, values: Array, width: int, *, plain: bool = False) -> str:
    """A series over its steps, at most `width` characters: means of equal stretches, from its lowest to its highest.

    What is not defined is a space. A positive series of a wide span is drawn by its logarithm.

    Example:
        >>> import numpy as np
        >>> sparkline(np.arange(8.0), np.arange(8.0), 8)
        '▁▂▃▄▅▆▇█'
        >>> sparkline(np.arange(8.0), np.full(8, 3.0), 4, plain=True)
        '____'
    """
    if not len(values) or width < 1:
        return ""
    means = bin_mean(values, make_bins(steps, width))
    good = np.isfinite(means)
    if not good.any():
        return ""
    if (means[good] > 0).all() and means[good].max() > LOG_SPAN * means[good].min():
        means = np.log(np.where(good, means, 1.0))
    low, high = means[good].min(), means[good].max()
    marks = PLAIN if plain else BLOCKS
    span = high - low
    level = (means - low) / span if span > 1e-9 * max(abs(low), abs(high)) else np.zeros(len(means))
    places = np.clip(np.nan_to_num(level) * len(marks), 0, len(marks) - 1).astype(int)
    return "".join(marks[i] if ok else " " for i, ok in zip(places, good, strict=True))
