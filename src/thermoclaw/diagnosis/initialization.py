"""Whether weight matrices begin at the scales of usual initializations; trained ones are at none of these.

Each matrix is weighed: how much likelier is its scale if it is a usual one, known to the error of a root mean square of
so many normal numbers, than if it is anything within a factor of ten? Or all have one standard deviation, whichever, or
one of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log, prod, sqrt

import numpy as np

from thermoclaw.quantities import Array

OFTEN, SELDOM = 4.0, 12.0  # among how many scales a match is one
EVIDENCE = 20.0  # how much likelier all must be
SHARE, SHARE_OF_TWO = 0.75, 0.9  # of the matrices
SHARE_OF_WEIGHTS = 0.6  # large matrices know their scale best
NEAR = 3.0  # standard errors
EXACT = 1e-4  # the error of what is not drawn
LEAST_SIZE = 32  # numbers; fewer say nothing


def are_usual(matrices: Sequence[tuple[float, Sequence[int], str]]) -> bool:
    """Whether these matrices begin at usual scales; true of none.

    Args:
        matrices: each its gain rms(W)·√fan-in (of a table: rms(W)), its shape, and its layer's type.
    """
    if not matrices:
        return True
    known = np.array([_off_usual(*matrix) for matrix in matrices])
    error = known[:, 1]
    numbers = np.array([prod(shape) for _, shape, _ in matrices])
    is_most = numbers[known[:, 0] < NEAR * error].sum() >= SHARE_OF_WEIGHTS * numbers.sum()
    if is_most and _is_known(known[:, 0], error, known[:, 2]):
        return True
    size = np.log([gain / sqrt(_fan_in(shape, ltype)) for gain, shape, ltype in matrices])
    if len(size) > 3 and _is_known(np.abs(size - np.median(size)), error, 1.0):
        return True
    return len(size) > 7 and _is_known(_off_two(size, error), error, 2.0, share=SHARE_OF_TWO)


def _fan_in(shape: Sequence[int], ltype: str) -> float:
    return 1.0 if ltype == "embedding" else float(prod(shape[1:]))


def _off_usual(gain: float, shape: Sequence[int], ltype: str) -> tuple[float, float, float]:
    """How far a gain is from the nearest usual one, and its error, both relative; and among how many that is one."""
    exact = min(abs(gain / s - 1.0) for s in _orthogonal_gains(shape))
    if exact < NEAR * EXACT and ltype != "embedding":
        return exact, EXACT, OFTEN
    error = 1.0 / sqrt(2.0 * prod(shape))
    often, seldom = (min(abs(gain / s - 1.0) for s in gains) for gains in _usual_gains(shape, ltype))
    return (often, error, OFTEN) if often < NEAR * error or often < seldom else (seldom, error, SELDOM)


def _usual_gains(shape: Sequence[int], ltype: str) -> tuple[list[float], list[float]]:
    """The gains of usual initializations of a matrix, and of less usual ones.

    rms·√fan-in: 1/√3 (PyTorch, linear and convolution), √2 (He), √(2·in/(in + out)) (Glorot), 0.02·√in (GPT), and
    √(g·in/(3·out)) where the g gates of a recurrent cell are one matrix; √(2·in/out) (He, by fan-out). PyTorch takes a
    transposed convolution's outputs for its inputs. Of tables: 1 (PyTorch), 0.02; 0.01, 0.1, those of
    uniform numbers up to 0.05, 0.1 or 0.5, 1/√dim, Glorot's.
    """
    outputs, inputs, kernel = float(shape[0]), float(prod(shape[1:])), float(prod(shape[2:]))
    if ltype == "embedding":
        uniform = [half / sqrt(3.0) for half in (0.05, 0.1, 0.5)]
        return [1.0, 0.02], [0.01, 0.1, *uniform, inputs**-0.5, sqrt(2.0 / (inputs + outputs))]
    ratio = inputs / (outputs * kernel)
    often = [3.0**-0.5, 2.0**0.5, sqrt(2.0 * ratio / (ratio + 1.0)), 0.02 * sqrt(inputs)]
    seldom = [sqrt(2.0 * ratio)]
    if len(shape) == 2:
        return [*often, *(sqrt(gates * ratio / 3.0) for gates in (1.0, 3.0, 4.0))], seldom
    turned = [(3.0 * ratio) ** -0.5, sqrt(2.0 / ratio), sqrt(2.0 / (1.0 + ratio)), 0.02 * sqrt(outputs * kernel)]
    return often, [*seldom, *turned]


def _orthogonal_gains(shape: Sequence[int]) -> list[float]:
    """Those of orthogonal matrices, known exactly: 1 or √(in/out), and what the same is of a transposed convolution."""
    outputs, inputs, kernel = float(shape[0]), float(prod(shape[1:])), float(prod(shape[2:]))
    wide = outputs <= inputs
    return [1.0, sqrt(outputs * kernel / inputs)] if wide else [1.0, sqrt(inputs / outputs), sqrt(kernel)]


def _off_two(size: Array, error: Array) -> Array:
    """How far each is from the nearer of the two sizes that most have, as where residual branches begin smaller."""
    off, rest = np.full(len(size), np.inf), np.ones(len(size), dtype=bool)
    for _ in range(2):
        within = np.abs(size[:, None] - size[rest]) < NEAR * error[:, None]
        if not within.size or within.sum(axis=0).max() < 2:
            break
        distance = np.abs(size - size[rest][within[rest].sum(axis=0).argmax()])
        off, rest = np.minimum(off, distance), rest & (distance >= NEAR * error)
    return off


def _is_known(off: Array, error: Array, scales: float | Array, *, share: float = SHARE) -> bool:
    """Whether that share of them is within their errors of one of so many scales, and by no chance."""
    near = off < NEAR * error
    weight = np.log(np.log(10.0) / scales / (2.5 * error)) - 0.5 * (off / error) ** 2
    return bool(near.mean() >= share and weight[near].sum() > log(EVIDENCE))
