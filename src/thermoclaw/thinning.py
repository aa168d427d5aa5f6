"""Which rows of a long run are kept: the first and the recent ones, and of the middle one in so many. No torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def thinned(order: NDArray[np.int64], *, stride: int, capacity: int) -> tuple[NDArray[np.bool_], int]:
    """Rows to keep, so that at most 7/8 of a capacity are; and the stride of the middle, doubled where need be.

    The first eighth of the capacity and the last half of it stay whole. It depends on the rows alone, not on the
    blocks in which they came, and what a larger capacity keeps holds what a capacity of half its size keeps.

    Args:
        order: number of each row as they came, increasing, [N].
        stride: distance of rows in the middle, so far; a power of two.
        capacity: rows that there is room for.
    """
    place = np.arange(len(order))
    protected = (place < capacity // 8) | (place >= len(order) - capacity // 2)
    keep = protected | (order % stride == 0)
    while keep.sum() > capacity - capacity // 8:
        stride *= 2
        keep = protected | (order % stride == 0)
    return keep, stride
