"""A solved game, and tables seen anew: four in a row on a small board, sizes of cells, images as runs of rows."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from benchmarks.zoo.data import _split
from benchmarks.zoo.recipe import Data

SIDE, POSITIONS = 4, 9000  # columns, rows and stones in a row
DELAY = 0.9  # what a win is worth a ply later
COLUMN = SIDE + 1  # bits of a column, the highest always empty
FULL = sum(((1 << SIDE) - 1) << (column * COLUMN) for column in range(SIDE))
Solved = dict[tuple[int, int], tuple[float | None, ...]]


def _has_won(stones: int) -> bool:
    """Whether as many stones as a side is long are in a row: upward, across, or along either diagonal."""
    for step in (1, COLUMN, COLUMN - 1, COLUMN + 1):
        line = stones
        for place in range(1, SIDE):
            line &= stones >> (place * step)
        if line:
            return True
    return False


def _solve(own: int, other: int, solved: Solved) -> float:
    """Worth of a position to the player who moves, by negamax; what each column is worth goes into `solved`."""
    if own | other == FULL:
        return 0.0
    if (own, other) not in solved:
        worths: list[float | None] = []
        for column in range(SIDE):
            inside = ((1 << SIDE) - 1) << (column * COLUMN)
            stone = ((own | other) + (1 << (column * COLUMN))) & ~(own | other) & inside
            if not stone:
                worths.append(None)
            elif _has_won(own | stone):
                worths.append(DELAY)
            else:
                worths.append(-DELAY * _solve(other, own | stone, solved))
        solved[own, other] = tuple(worths)
    return max(worth for worth in solved[own, other] if worth is not None)


def _board(stones: int) -> Tensor:
    """One where a stone lies, column by column from below."""
    places = (column * COLUMN + row for column in range(SIDE) for row in range(SIDE))
    return torch.tensor([float(stones >> place & 1) for place in places])


def _mirrored(stones: int) -> int:
    """The columns in the other order."""
    columns = [stones >> (column * COLUMN) & ((1 << COLUMN) - 1) for column in range(SIDE)]
    return sum(stones << (place * COLUMN) for place, stones in enumerate(reversed(columns)))


@cache
def four_in_a_row() -> Data:
    """9,000 positions where it matters what is played: the stones of both, then shares of best moves and the worth."""
    solved: Solved = {}
    _solve(0, 0, solved)
    positions, targets = [], []
    for (own, other), worths in sorted(solved.items()):
        best = max(worth for worth in worths if worth is not None)
        moves = torch.tensor([worth is not None and best - worth < 1e-9 for worth in worths])
        matters = sum(worth is not None for worth in worths) > int(moves.sum())
        if matters and (own, other) <= (_mirrored(own), _mirrored(other)):  # of a pair of mirror images only one
            positions.append((own, other))
            targets.append([*(moves / moves.sum()).tolist(), best])
    kept = np.random.default_rng(0).permutation(len(positions))[:POSITIONS]
    x = torch.stack([torch.cat([_board(stones) for stones in positions[i]]) for i in kept])
    y = torch.tensor([targets[i] for i in kept])
    return _split((x - x.mean()) / x.std(), y)


@cache
def nuclei() -> Data:
    """569 samples of cells: ten measures of their nuclei on average, and the same ten of the three largest nuclei."""
    from sklearn.datasets import load_breast_cancer

    table = torch.tensor(load_breast_cancer().data, dtype=torch.float32)
    logs = (table + 0.01 * table.mean(0)).log()  # some are zero
    logs = (logs - logs.mean(0)) / logs.std(0)
    return _split(logs[:, :10], logs[:, 20:])


@cache
def rows() -> Data:
    """1,797 digits as runs of eight rows, each row the change from the one above it; the target is the run itself."""
    from sklearn.datasets import load_digits

    images = torch.tensor(load_digits().images, dtype=torch.float32)
    changes = torch.diff(images, dim=1, prepend=torch.zeros(len(images), 1, images.shape[2]))
    changes = changes / changes.std()
    return _split(changes, changes)
