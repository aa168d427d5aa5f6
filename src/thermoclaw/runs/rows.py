"""Rows of a run, and the file that holds a part of them.

Legend: B rows, L layers, Q stored layer quantities, R run quantities.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from thermoclaw.files import atomic_file
from thermoclaw.quantities import LAYER_COLUMNS, RUN_COLUMNS, Array
from thermoclaw.record.columns import RecordError, fit_columns


@dataclass(frozen=True)
class Rows:
    """Consecutive kept rows.

    Attributes:
        order: number of each row as they came, counted from 0, [B].
        steps: their steps, increasing, [B].
        layer_values: [B, L, Q].
        run_values: [B, R].
        stride: distance of rows in the middle of the run when these were written.
    """

    order: NDArray[np.int64]
    steps: NDArray[np.int64]
    layer_values: Array
    run_values: Array
    stride: int = 1

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, which: slice | NDArray[np.bool_] | NDArray[np.int64]) -> Rows:
        return Rows(self.order[which], self.steps[which], self.layer_values[which], self.run_values[which], self.stride)

    @property
    def num_layers(self) -> int:
        """L."""
        return int(self.layer_values.shape[1])

    @property
    def num_bytes(self) -> int:
        """Bytes that they take."""
        return self.order.nbytes + self.steps.nbytes + self.layer_values.nbytes + self.run_values.nbytes

    def widened(self, num_layers: int) -> Array:
        """The layer values with NaN for layers that joined later."""
        missing = num_layers - self.num_layers
        if missing <= 0:
            return self.layer_values
        return np.pad(self.layer_values, ((0, 0), (0, missing), (0, 0)), constant_values=np.nan)


def joined(pieces: Sequence[Rows], *, num_layers: int | None = None) -> Rows:
    """Rows one after another, all with as many layers as the last ones have, or as asked for."""
    width = num_layers if num_layers is not None else max(piece.num_layers for piece in pieces)
    return Rows(
        np.concatenate([piece.order for piece in pieces]),
        np.concatenate([piece.steps for piece in pieces]),
        np.concatenate([piece.widened(width) for piece in pieces]),
        np.concatenate([piece.run_values for piece in pieces]),
        max(piece.stride for piece in pieces),
    )


def row_bytes(num_layers: int, dtype: np.dtype) -> int:
    """Bytes of one row."""
    return 16 + num_layers * len(LAYER_COLUMNS) * dtype.itemsize + 8 * len(RUN_COLUMNS)


def write_part(path: Path, rows: Rows) -> None:
    """Write a part, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    header = {"layer_columns": LAYER_COLUMNS, "run_columns": RUN_COLUMNS, "stride": rows.stride}
    with atomic_file(path, "wb") as handle:
        np.savez(
            handle,
            header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8),
            order=rows.order,
            steps=rows.steps,
            layer_values=rows.layer_values,
            run_values=rows.run_values,
        )


def read_part(path: Path) -> Rows:
    """Read a part, its columns in the order of this version.

    Raises:
        OSError: it is gone, or cannot be read.
        RecordError: it is damaged.
    """
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as held:
            header = json.loads(bytes(held["header"]))
            rows = Rows(
                held["order"],
                held["steps"],
                fit_columns(held["layer_values"], header["layer_columns"], LAYER_COLUMNS),
                fit_columns(held["run_values"], header["run_columns"], RUN_COLUMNS),
                int(header["stride"]),
            )
        _check(rows)
        return rows
    except (OSError, RecordError):
        raise
    except Exception as error:  # damage shows in zipfile, zlib, struct, json or numpy, as it happens
        raise RecordError(f"{path.name} is damaged ({type(error).__name__}: {error})") from error


def _check(rows: Rows) -> None:
    num_rows = len(rows.steps)
    shapes = (rows.order.shape, rows.steps.shape, rows.layer_values.shape[:1], rows.run_values.shape[:1])
    kinds = (rows.order.dtype.kind, rows.steps.dtype.kind, rows.layer_values.dtype.kind, rows.run_values.dtype.kind)
    if set(shapes) != {(num_rows,)} or kinds != ("i", "i", "f", "f") or rows.layer_values.ndim != 3:
        raise RecordError(f"columns of shapes {shapes} and kinds {kinds} are no rows")
    if (np.diff(rows.steps) <= 0).any():
        raise RecordError("step numbers must increase")
