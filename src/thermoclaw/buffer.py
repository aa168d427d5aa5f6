"""BUFFER: a ring on the device, copies to the host at a fixed lag, and a bounded history on the host.

Rows leave the device in blocks. A block is copied to pinned memory, without waiting, when it is full, and is handed on
when the next one is full: a fixed number of steps later, whatever the device's load. On the CPU there is nothing to
copy and a full block is handed on at once.

Legend: B rows a block, U units, K raw columns, T recorded steps, L layers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoclaw.quantities import LAYER_COLUMNS, RUN_COLUMNS, Array
from thermoclaw.record.columns import fit_columns
from thermoclaw.state import StateError, array, count, take
from thermoclaw.thinning import thinned

LEAST_ROWS, MOST_ROWS = 64, 4096  # of a history


class DeviceRing:
    """Two blocks of rows on a device: fill the row of `next_row`, then `advance`; `take` yields what is due.

    On an accelerator the place of a row is counted on the device, so that a captured graph that fills rows goes on
    filling the right ones when it is replayed.

    Args:
        shape: of one row.
        block: B, rows a block.
        device, dtype: where and how rows are kept.
        replayable: count places on the device; by default where graphs can be captured.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        block: int,
        device: torch.device,
        dtype: torch.dtype,
        replayable: bool | None = None,
    ) -> None:
        self.device = device
        self._block = block
        self._rows = torch.full((2 * block, *shape), float("nan"), device=device, dtype=dtype)
        self._async = device.type == "cuda"
        self._host = torch.empty_like(self._rows, device="cpu", pin_memory=True) if self._async else self._rows
        self._events = [torch.cuda.Event() for _ in range(2)] if self._async else []
        self._copied = self._taken = self._pushed = 0
        self._replayable = self._async if replayable is None else replayable
        if self._replayable:
            self._stage = torch.full(shape, float("nan"), device=device, dtype=dtype)
            self._written = torch.zeros(1, dtype=torch.int64, device=device)
            self._place = torch.zeros(1, dtype=torch.int64, device=device)
            self._written_then = torch.zeros(2, dtype=torch.int64, pin_memory=self._async)  # by block, when it was sent
            self._pushed_then = [0, 0]

    def num_bytes(self) -> int:
        """Bytes on the device."""
        return self._rows.numel() * self._rows.element_size()

    def next_row(self) -> Tensor:
        """The row to write now; call `advance` when it is complete."""
        return self._stage if self._replayable else self._rows[self._pushed % (2 * self._block)]

    def last_row(self) -> Tensor:
        """The row written last."""
        return self._rows[(self._pushed - 1) % (2 * self._block)]

    def last_on_host(self) -> NDArray[Any] | None:
        """The row written last, where it is in the host's memory anyway; None where it would have to come."""
        return self.last_row().numpy() if self.device.type == "cpu" else None

    def advance(self) -> None:
        """Count the row as written."""
        if self._replayable:
            self.write()
        self.count()

    def write(self) -> None:
        """The device's part of `advance`, all that a graph captures."""
        self._rows.index_copy_(0, self._place, self._stage.unsqueeze(0))
        self._written.add_(1)
        torch.remainder(self._written, 2 * self._block, out=self._place)

    def count(self) -> None:
        """The host's part of `advance`, once for each replay."""
        self._pushed += 1

    def start_copies(self, upto: int) -> None:
        """Send every full block of the first `upto` rows that was not sent yet on its way to the host."""
        while upto - self._copied >= self._block:
            at = self._copied % (2 * self._block)
            if self._async:
                self._host[at : at + self._block].copy_(self._rows[at : at + self._block], non_blocking=True)
            if self._replayable:
                half = at // self._block
                self._written_then[half : half + 1].copy_(self._written, non_blocking=True)
                self._pushed_then[half] = self._pushed
            if self._async:
                self._events[at // self._block].record()
            self._copied += self._block

    def due(self, upto: int) -> int:
        """How many of the first `upto` rows the fixed lag has let through, whether or not they were taken before."""
        return max(upto // self._block * self._block - (self._block if self._async else 0), 0)

    def take(self, count: int) -> NDArray[np.float64]:
        """The next `count` rows as a host array. Waits only for copies that were sent a whole block ago.

        Raises:
            RuntimeError: a captured graph was replayed more or less often than the host was told.
        """
        parts = []
        while count > 0:
            at = self._taken % (2 * self._block)
            length = min(count, self._block - at % self._block)
            half = at // self._block
            if self._taken + length <= self._copied:
                if self._async:
                    self._events[half].synchronize()
                if self._replayable:
                    self._check(int(self._written_then[half]), self._pushed_then[half])
            elif self._async:  # the user asked for rows that no scheduled copy has sent yet: this waits
                self._host[at : at + length].copy_(self._rows[at : at + length])
            parts.append(self._host[at : at + length].to(torch.float64).numpy().copy())
            self._taken += length
            self._copied = max(self._copied, self._taken // self._block * self._block)
            count -= length
        return np.concatenate(parts) if parts else np.empty((0, *self._rows.shape[1:]))

    @staticmethod
    def _check(written: int, counted: int) -> None:
        if written != counted:
            raise RuntimeError(
                f"a captured training step was replayed {written} times while observer.step() was called {counted} "
                "times: call observer.step() once after every replay"
            )

    def pending(self) -> int:
        """Rows written and not yet taken."""
        return self._pushed - self._taken

    def taken(self) -> int:
        """Rows taken so far."""
        return self._taken

    def continue_from(self, count: int) -> None:
        """Begin as if so many rows had been written and taken: blocks end, and values are due, where they would."""
        self._pushed = self._taken = count
        self._copied = count // self._block * self._block
        if self._replayable:
            self._written.fill_(count)
            self._place.fill_(count % (2 * self._block))


class History:
    """Rows on the host: the first ones and the recent ones in full, the middle thinned by a stride that doubles.

    What is kept depends on the rows alone, not on the blocks in which they came.

    Args:
        num_layers: L.
        capacity: rows kept at most.
        dtype: of the layer columns; single precision unless the run asks for more.
    """

    def __init__(self, num_layers: int, *, capacity: int, dtype: type = np.float32) -> None:
        self.stride = 1  # distance of rows in the middle, in rows as they came
        self._size = 0
        self._arrived = 0
        self._set_capacity(capacity)
        self._allocate(num_layers, np.dtype(dtype))

    def _set_capacity(self, capacity: int) -> None:
        self._capacity = max(capacity, LEAST_ROWS)

    def _allocate(self, num_layers: int, dtype: np.dtype) -> None:
        self._order = np.zeros(self._capacity, dtype=np.int64)
        self._steps = np.zeros(self._capacity, dtype=np.int64)
        self._layer_values: Array = np.zeros((self._capacity, num_layers, len(LAYER_COLUMNS)), dtype=dtype)
        self._run_values = np.zeros((self._capacity, len(RUN_COLUMNS)), dtype=np.float64)

    def __len__(self) -> int:
        return self._size

    def num_bytes(self) -> int:
        """Bytes held."""
        return self._steps.nbytes + self._order.nbytes + self._layer_values.nbytes + self._run_values.nbytes

    def append(self, steps: NDArray[np.int64], layer_values: Array, run_values: Array) -> None:
        """Add rows [B], [B, L, Q], [B, R]; thins when full."""
        start = 0
        while start < len(steps):
            if self._size == self._capacity:
                self._thin()
            count = min(self._capacity - self._size, len(steps) - start)
            chunk, place = slice(start, start + count), slice(self._size, self._size + count)
            self._steps[place] = steps[chunk]
            self._order[place] = self._arrived + np.arange(count)
            self._arrived += count
            with np.errstate(over="ignore"):
                self._layer_values[place] = layer_values[chunk]
            self._run_values[place] = run_values[chunk]
            self._size += count
            start += count

    def _thin(self) -> None:
        """Thin the middle at its stride, and at a doubled one while that frees less than an eighth of the rows."""
        order = self._order[: self._size]
        keep, self.stride = thinned(order, stride=self.stride, capacity=self._capacity)
        kept = np.flatnonzero(keep)
        self._steps[: len(kept)] = self._steps[kept]
        self._order[: len(kept)] = order[kept]
        self._layer_values[: len(kept)] = self._layer_values[kept]
        self._run_values[: len(kept)] = self._run_values[kept]
        self._size = len(kept)

    def state_dict(self) -> dict[str, Any]:
        """The rows, and how they were thinned."""
        steps, layer_values, run_values = self.arrays()
        return {
            "capacity": self._capacity,
            "stride": self.stride,
            "arrived": self._arrived,
            "order": self._order[: self._size].copy(),
            "steps": steps,
            "layer_columns": list(LAYER_COLUMNS),
            "layer_values": layer_values,
            "run_columns": list(RUN_COLUMNS),
            "run_values": run_values,
        }

    def load_state_dict(self, state: Any) -> None:
        """Go on from `state_dict`."""
        num_layers, dtype = self._layer_values.shape[1], self._layer_values.dtype
        capacity, steps = count(state, "capacity", most=MOST_ROWS), array(state, "steps", None, dtype=np.int64)
        size = len(steps)
        if capacity < LEAST_ROWS or size > capacity or (np.diff(steps) <= 0).any():
            raise StateError(f"its history of {size} rows, of at most {capacity}, is in disorder")
        names = {kind: take(state, f"{kind}_columns", list) for kind in ("layer", "run")}
        layer_values = array(state, "layer_values", size, num_layers, len(names["layer"]), dtype=dtype)
        run_values = array(state, "run_values", size, len(names["run"]))
        self.stride, self._arrived = max(count(state, "stride"), 1), count(state, "arrived")
        order = array(state, "order", size, dtype=np.int64)
        self._set_capacity(capacity)
        self._allocate(num_layers, dtype)
        self._size = size
        self._steps[:size], self._order[:size] = steps, order
        self._layer_values[:size] = fit_columns(layer_values, names["layer"], LAYER_COLUMNS)
        self._run_values[:size] = fit_columns(run_values, names["run"], RUN_COLUMNS)

    def amend(self, step: int, column: str, value: float) -> None:
        """Write one run quantity of the newest row, if that row is this step's."""
        if self._size and self._steps[self._size - 1] == step:
            self._run_values[self._size - 1, RUN_COLUMNS.index(column)] = value

    def widen(self, num_layers: int) -> None:
        """Make room for layers that joined: earlier rows of theirs are NaN."""
        old = self._layer_values
        if num_layers > old.shape[1]:
            extra = np.full((self._capacity, num_layers - old.shape[1], old.shape[2]), np.nan, dtype=old.dtype)
            self._layer_values = np.concatenate([old, extra], axis=1)

    def arrays(self, *, start: int | None = None, stop: int | None = None) -> tuple[NDArray[np.int64], Array, Array]:
        """Copies of what is held with start ≤ step < stop: steps [T], layer values [T, L, Q], run values [T, R]."""
        held = self._span(start, stop)
        return self._steps[held].copy(), self._layer_values[held].copy(), self._run_values[held].copy()

    def orders(self, *, start: int | None = None, stop: int | None = None) -> NDArray[np.int64]:
        """Which rows those of `arrays` were, counted from 0 as they came, [T]."""
        return self._order[self._span(start, stop)].copy()

    def _span(self, start: int | None, stop: int | None) -> slice:
        steps = self._steps[: self._size]
        first = 0 if start is None else int(np.searchsorted(steps, start))
        last = self._size if stop is None else int(np.searchsorted(steps, stop))
        return slice(first, last)
