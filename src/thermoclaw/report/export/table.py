"""A record as a long table, a row for each step and layer, in pieces that fit into memory. Numpy only.

Legend: T recorded steps, L layers, N rows of a piece.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermoclaw.quantities import TABLE, Array, canonical
from thermoclaw.record import LayerInfo, Record

KEYS = ("step", "layer", "ltype")
PIECE_ROWS = 100_000


@dataclass(frozen=True)
class Piece:
    """Some rows of the table.

    Attributes:
        steps: [N].
        places: which of the table's layers, [N].
        columns: values of each quantity, [N].
    """

    steps: NDArray[np.int64]
    places: NDArray[np.int64]
    columns: dict[str, Array]

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class LongTable:
    """What is exported of a record.

    Args:
        record: whose steps.
        quantities: names or aliases; all by default.
        patterns: names of layers, in which * stands for anything; all by default.

    Raises:
        ValueError: there is no such quantity or layer; the message names some.
    """

    record: Record
    quantities: Sequence[str] = ()
    patterns: Sequence[str] = ()
    names: tuple[str, ...] = field(init=False)
    places: list[int] = field(init=False)

    def __post_init__(self) -> None:
        names = tuple(dict.fromkeys(map(_quantity, self.quantities))) or tuple(TABLE)
        object.__setattr__(self, "names", tuple(name for name in names if name != "step"))
        object.__setattr__(self, "places", _chosen(self.record, self.patterns))

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the columns."""
        return (*KEYS, *self.names)

    @property
    def layers(self) -> list[LayerInfo]:
        """The layers, as `Piece.places` counts them."""
        return [self.record.layers[i] for i in self.places]

    @property
    def num_rows(self) -> int:
        """Rows of the whole table."""
        return len(self.record) * len(self.places)

    def pieces(self) -> Iterator[Piece]:
        """The table from the first step to the last."""
        of_run = {name: _fresh(self.record)[name] for name in self.names if TABLE[name].scope == "run"}
        num_layers = len(self.places)
        stride = max(PIECE_ROWS // max(len(self.record.layers), 1), 1)
        for first in range(0, len(self.record), stride):
            here = slice(first, min(first + stride, len(self.record)))
            part = _fresh(self.record, here)
            columns = {
                name: np.repeat(of_run[name][here], num_layers)
                if name in of_run
                else part[name][:, self.places].ravel()
                for name in self.names
            }
            steps = np.repeat(part.steps.astype(np.int64), num_layers)
            yield Piece(steps, np.tile(np.arange(num_layers), len(part)), columns)


def _fresh(record: Record, rows: slice = slice(None)) -> Record:
    """The rows as a record that has computed nothing yet, and so holds no columns; nothing is copied."""
    return Record(record.steps[rows], record.layers, record.layer_values[rows], record.run_values[rows])


def _quantity(name: str) -> str:
    try:
        return canonical(name)
    except KeyError:
        raise ValueError(f"no quantity {name!r}; there are {', '.join(TABLE)}") from None


def _chosen(record: Record, patterns: Sequence[str]) -> list[int]:
    if not patterns:
        return list(range(len(record.layers)))
    chosen: set[int] = set()
    for pattern in patterns:
        found = {i for i, name in enumerate(record.layer_names) if fnmatch.fnmatchcase(name, pattern)}
        if not found:
            raise ValueError(f"no layer is called {pattern!r}; there are {_some(record.layer_names)}")
        chosen |= found
    return sorted(chosen)


def _some(names: Sequence[Any], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
