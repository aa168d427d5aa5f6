"""Rows that were written on the devices and have not come to the host: of which steps they are, and when they are due.

Legend: B rows, U units, K raw columns, C columns of a probe.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thermoclaw.buffer import DeviceRing
from thermoclaw.measure.cadence import Call
from thermoclaw.measure.hyper import GroupHyper
from thermoclaw.measure.parts import Parts, widest
from thermoclaw.quantities import Array
from thermoclaw.state import StateError, count, counts


@dataclass
class RowNotes:
    """What the host knows of a row when it is written."""

    call: Call
    hyper: list[GroupHyper]
    has_grad: list[float]
    epoch: int
    seen: Array | None = None  # what its probe looked at [U, 3]
    loss: float | None = None


@dataclass(frozen=True)
class Block:
    """Rows that have arrived.

    Attributes:
        raw: of the units [B, U, K].
        run: their losses, and how many steps since the row before a loss scaler refused [B, 2].
        probes: [B, U, C].
        notes: [B].
    """

    raw: Array
    run: Array
    probes: Array
    notes: list[RowNotes]


class Transit:
    """The rows of these parts; see the module's docstring.

    Args:
        parts: whose rings hold the rows.
        lag: rows a block of the rings.
        call: number of the last call before the first row.
    """

    def __init__(self, parts: Parts, *, lag: int, call: int) -> None:
        self._parts, self._lag = parts, lag
        wide = widest(parts.device)
        self._run = DeviceRing((2,), block=lag, device=parts.device, dtype=wide, replayable=False)
        self._refused = torch.zeros((), device=parts.device, dtype=wide)  # steps since the last row
        self._rings = [self._run, *(ring for part in parts for ring in (part.ring, part.probe.ring))]
        self.num_rows = 0
        self._num_settled = 0  # of them, rows whose loss can no longer come
        self._calls: deque[int] = deque([call], maxlen=8 * lag + 8)  # of the rows written last, after the one before
        self._notes: deque[RowNotes] = deque()  # of rows that were not taken yet

    # -- while it trains --------------------------------------------------------------------------------------------

    def add(self, notes: RowNotes) -> None:
        """The host's part of a row that the parts have written."""
        row = self._run.next_row()
        row[0] = float("nan")
        row[1] = self._refused
        self._refused.zero_()
        self._run.advance()
        self._parts.count_probe()
        self._notes.append(notes)
        self.num_rows += 1
        self._calls.append(notes.call.number)

    def refuse(self, skipped: Tensor) -> None:
        """Count a step without a row, if a loss scaler refused it: then `skipped` is 1."""
        self._refused.add_(skipped.reshape(()).to(self._refused))

    @property
    def last_call(self) -> int:
        """Of the row written last."""
        return self._calls[-1]

    @property
    def has_rows(self) -> bool:
        """Whether there are rows that were not taken yet."""
        return bool(self._notes)

    def set_loss(self, loss: float | Tensor) -> None:
        """Attach a loss to the row written last; a tensor stays on its device."""
        if isinstance(loss, Tensor) and (loss.device.type != "cpu" or self._run.device.type == "cpu"):
            self._run.last_row()[0].copy_(loss.detach().reshape(()), non_blocking=True)
        else:
            self._notes[-1].loss = float(loss)

    def loss_on_host(self) -> float | None:
        """The loss of the row written last, where rows are on the host; None where it would have to come there."""
        row = self._run.last_on_host()
        if row is None:
            return None
        given = self._notes[-1].loss if self._notes else None
        return float(row[0]) if given is None else given

    def settle(self) -> None:
        """Say that nothing will be added to the row written last."""
        self._num_settled = self.num_rows

    # -- to the host ------------------------------------------------------------------------------------------------

    def blocks(self, *, everything: bool) -> Iterator[Block]:
        """Take the rows that are due, or all of them, which waits for the device."""
        for ring in self._rings:
            ring.start_copies(self._num_settled)
        until = self.num_rows if everything else self._num_due()
        good = self._parts.num_good(everything=everything)  # rows that a process had no part in are not the run's
        if good is not None:
            until = min(until, good)
        while (rows := min(until - self._run.taken(), 2 * self._lag)) > 0:
            raw, run, probes = self._parts.take(rows), self._run.take(rows), self._parts.take_probes(rows)
            yield Block(raw, run, probes, [self._notes.popleft() for _ in range(rows)])

    def _num_due(self) -> int:
        """Rows that the fixed lag has let through."""
        return min(ring.due(self._num_settled) for ring in self._rings)

    @property
    def due_call(self) -> int:
        """Of the last row that the fixed lag has let through, whether or not anybody has taken it."""
        return self._calls[self._num_due() - self.num_rows - 1]

    def num_bytes(self) -> int:
        """Bytes on the device, besides those of the parts."""
        return self._run.num_bytes()

    # -- the state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """How many rows there were, and of which calls, when all were taken. Waits."""
        return {
            "calls": list(self._calls),
            "num_rows": self.num_rows,
            "num_settled": self._num_settled,
            "num_refused": int(self._refused),
        }

    def load_state_dict(self, state: Any) -> None:
        """Go on from `state_dict`."""
        num_rows, calls = count(state, "num_rows"), counts(state, "calls")
        if len(calls) != min(num_rows + 1, self._calls.maxlen or 0):
            raise StateError(f"it has {len(calls)} calls for {num_rows} rows")
        self.num_rows, self._num_settled = num_rows, count(state, "num_settled", most=num_rows)
        self._calls.clear()
        self._calls.extend(calls)
        self._notes.clear()
        with torch.no_grad():
            self._refused.fill_(count(state, "num_refused"))
        self._run.continue_from(num_rows)
