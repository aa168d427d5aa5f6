"""The parts of a run on disk: rows are added, small parts are merged, and the middle is thinned to stay in bounds.

A part that replaces others is written before they are removed, so a reader, or whoever comes after a crash, finds every
row at least once. Names are never used again.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from thermoclaw.record import RecordError
from thermoclaw.runs.claim import Lost
from thermoclaw.runs.names import part_name, parts_in
from thermoclaw.runs.rows import Rows, joined, read_part, row_bytes, write_part
from thermoclaw.thinning import thinned

logger = logging.getLogger("thermoclaw")

LEAST_ROWS, MOST_ROWS = 128, 16384
SHARE = 0.75  # of the bytes that rows may take; the rest is for what a file holds besides, and for a merge under way
RESERVE = 64 << 10  # for names, settings and events
LARGEST_PART = 16  # of so many, one may be a part


def capacity_of(max_bytes: int, *, num_layers: int, dtype: np.dtype) -> int:
    """How many rows of a run fit into a directory of that size."""
    return min(int(SHARE * max_bytes - RESERVE) // row_bytes(num_layers, dtype), MOST_ROWS)


def least_bytes(num_layers: int, dtype: np.dtype) -> int:
    """The smallest directory for a run."""
    return int((LEAST_ROWS * row_bytes(num_layers, dtype) + RESERVE) / SHARE) + 1


@dataclass(frozen=True)
class _Part:
    path: Path
    order: NDArray[np.int64]
    steps: NDArray[np.int64]
    num_bytes: int

    def __len__(self) -> int:
        return len(self.steps)


class Store:
    """Rows in the parts of one directory, which only this process writes.

    Args:
        folder: the directory.
        max_bytes: what it may take.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._parts: list[_Part] = []
        self._number, self._stride = 0, 1
        self._gone: list[Path] = []  # could not be removed so far

    @property
    def num_rows(self) -> int:
        """Rows on disk."""
        return sum(len(part) for part in self._parts)

    def go_on(self, *, last_step: int) -> None:
        """Take over the parts that are there; rows after that step are of a life that is over.

        Raises:
            OSError: the directory cannot be read or written.
        """
        for path in self._folder.glob(".*.part"):  # what a killed process was writing
            self._remove(path)
        seen = np.empty(0, dtype=np.int64)
        found = parts_in(self._folder)
        self._number = max(found, default=0)
        for path in found.values():
            try:
                rows = read_part(path)
            except RecordError as error:
                logger.warning("thermoclaw: %s in %s is removed", error, self._folder)
                self._remove(path)
                continue
            self._stride = max(self._stride, rows.stride)
            keep = (rows.steps <= last_step) & ~np.isin(rows.steps, seen)
            seen = np.append(seen, rows.steps[keep])
            self._parts.append(_part(path, rows))
            if not keep.all():
                self._replace(len(self._parts) - 1, len(self._parts), rows[keep])
        self._parts.sort(key=lambda part: int(part.steps[0]))

    def add(self, rows: Rows) -> None:
        """Put rows after, or in between, those that are there; steps that are there already are left as they are.

        Raises:
            OSError: the disk is full, or does not answer. What was added stays.
        """
        for part in self._parts:
            if len(rows) and part.steps[-1] >= rows.steps[0]:
                rows = rows[~np.isin(rows.steps, part.steps)]
        if not len(rows):
            return
        capacity = max(capacity_of(self._max_bytes, num_layers=rows.num_layers, dtype=rows.layer_values.dtype), 1)
        for first in range(0, len(rows), max(capacity // 8, 1)):
            piece = rows[first : first + max(capacity // 8, 1)]
            if self.num_rows + len(piece) > capacity:
                self._thin(capacity)
            self._write(len(self._parts), len(self._parts), piece)
            self._merge_last()
        self._parts.sort(key=lambda part: int(part.steps[0]))

    def _thin(self, capacity: int) -> None:
        order = np.concatenate([part.order for part in self._parts])
        keep, self._stride = thinned(order, stride=self._stride, capacity=capacity)
        ends = np.cumsum([len(part) for part in self._parts])
        for at in reversed(range(len(self._parts))):
            mine = keep[ends[at] - len(self._parts[at]) : ends[at]]
            if not mine.all():
                rows = self._read(at)
                self._replace(at, at + 1, rows[mine] if rows is not None else None)
        for at in reversed(range(1, len(self._parts))):
            if self._parts[at - 1].num_bytes + self._parts[at].num_bytes <= self._most:
                self._merge(at - 1, at + 1)

    @property
    def _most(self) -> int:
        return self._max_bytes // LARGEST_PART

    def _merge_last(self) -> None:
        """Join the last two parts while they are of about the same size: few parts, and each row is written seldom."""
        while len(self._parts) > 1:
            one, other = self._parts[-2:]
            if one.num_bytes > 2 * other.num_bytes or one.num_bytes + other.num_bytes > self._most:
                return
            self._merge(len(self._parts) - 2, len(self._parts))

    def _merge(self, first: int, last: int) -> None:
        held = [rows for rows in map(self._read, range(first, last)) if rows is not None]
        self._replace(first, last, joined(held) if held else None)

    def _read(self, at: int) -> Rows | None:
        """A part's rows, or None with a message where it is damaged; Lost where the whole directory is gone."""
        try:
            return read_part(self._parts[at].path)
        except (RecordError, FileNotFoundError) as error:
            if not self._folder.exists():
                raise Lost(f"{self._folder} was removed") from None
            logger.warning("thermoclaw: rows in %s are lost: %s", self._folder, error)
            return None

    def _replace(self, first: int, last: int, rows: Rows | None) -> None:
        old = [part.path for part in self._parts[first:last]]
        if rows is not None and len(rows):
            self._write(first, last, rows)
        else:
            del self._parts[first:last]
        for path in old:
            self._remove(path)

    def _write(self, first: int, last: int, rows: Rows) -> None:
        self._number += 1
        path = self._folder / part_name(self._number)
        rows = Rows(rows.order, rows.steps, rows.layer_values, rows.run_values, self._stride)
        write_part(path, rows)
        self._parts[first:last] = [_part(path, rows)]

    def _remove(self, path: Path) -> None:
        """Remove a file, now or, where somebody holds it open (Windows), later."""
        self._gone.append(path)
        for gone in list(self._gone):
            with contextlib.suppress(OSError):
                gone.unlink(missing_ok=True)
                self._gone.remove(gone)


def _part(path: Path, rows: Rows) -> _Part:
    return _Part(path, rows.order, rows.steps, rows.num_bytes)
