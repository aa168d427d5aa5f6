"""Anything that holds numbers as a matrix [N, D] in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np

from thermoclaw.quantities import Array

MOST_ROWS = 1024
"""Rows that pairs and spectra look at: a batch with more is read at a stride."""


def as_array(values: Any, *, what: str) -> Array:
    """Numbers as an array; a tensor is taken off its graph and its device, which waits for it.

    Raises:
        TypeError: they are no real numbers.
        ValueError: nested lists are ragged.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values
        values = values.numpy()
    try:
        found = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{what}: rows differ in length; give a matrix [N, D]") from error
    if found.dtype.kind not in "iuf":
        raise TypeError(f"{what}: {found.dtype} values; give real numbers")
    return found.astype(np.float64)


def as_matrix(values: Any, *, what: str = "features") -> Array:
    """A batch of features [N, D].

    Raises:
        TypeError, ValueError: it is none; the message says what it is.
    """
    matrix = as_array(values, what=what)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"{what} of shape {matrix.shape}: give a matrix [N, D] with a row for each example")
    return matrix


def as_pair(first: Any, second: Any, *, names: tuple[str, str]) -> tuple[Array, Array]:
    """Two batches whose rows belong together, without the rows that are not finite in both."""
    a, b = as_matrix(first, what=names[0]), as_matrix(second, what=names[1])
    if a.shape != b.shape:
        raise ValueError(f"{names[0]} has the shape {a.shape} and {names[1]} {b.shape}: give two of the same")
    good = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    return a[good], b[good]


def finite_rows(values: Any, *, what: str = "features") -> Array:
    """The rows of a batch without NaN or Inf; it may have none."""
    matrix = as_matrix(values, what=what)
    return matrix[np.isfinite(matrix).all(axis=1)]


def some_rows(matrix: Array) -> Array:
    """At most 1024 rows, evenly taken."""
    return matrix[:: -(-len(matrix) // MOST_ROWS)] if len(matrix) > MOST_ROWS else matrix


def unit_rows(matrix: Array) -> Array:
    """Rows scaled to length one; zero rows are left out."""
    size = np.abs(matrix).max(axis=1, keepdims=True, initial=0.0)  # first, so that squares neither over- nor underflow
    matrix = matrix[size[:, 0] > 0] / size[size[:, 0] > 0]
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def squared_distances(matrix: Array) -> Array:
    """Squared Euclidean distances of the N(N−1)/2 pairs of rows; rounding that would make one negative is cut off."""
    centered = matrix - matrix.mean(axis=0)
    gram = centered @ centered.T
    square = np.diag(gram)
    i, j = np.triu_indices(len(matrix), k=1)
    return np.maximum(square[i] + square[j] - 2 * gram[i, j], 0.0)
