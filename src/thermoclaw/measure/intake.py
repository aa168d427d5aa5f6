"""The host's end of the meter: raw rows that have arrived become quantities, steps get their numbers, history is kept.

Legend: B rows, U units, K raw columns.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermoclaw.buffer import MOST_ROWS, History
from thermoclaw.derive.derivation import Derivation
from thermoclaw.layers import Layout
from thermoclaw.measure.columns import RAW
from thermoclaw.measure.hyper import hyper_rows
from thermoclaw.measure.probed import ProbedLayers
from thermoclaw.measure.transit import Block
from thermoclaw.quantities import LAYER_COLUMNS, RUN_COLUMNS, Array
from thermoclaw.record import Record
from thermoclaw.state import StateError, count, counts, take

_BYTES_PER_PARAM, _LEAST_BYTES, _MOST_BYTES = 0.03, 4 << 20, 16 << 20


def history_budget(num_params: int) -> int:
    """Bytes that the history may take by default: 0.03 a parameter, within 4 and 16 MiB."""
    return int(np.clip(_BYTES_PER_PARAM * num_params, _LEAST_BYTES, _MOST_BYTES))


class Intake:
    """Takes rows in order; see the module's docstring.

    Args:
        layout: the layers and units to begin with.
        history_bytes: size of the history; None for `history_budget`.
        baseline_steps: window of the running median behind `r`.
        started: the optimizer made steps before the first row.
        estimated_above: elements from which on a unit is measured by sketches in single precision; None where
            everything is measured in double precision, which is then kept.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        history_bytes: int | None,
        baseline_steps: int,
        started: bool,
        estimated_above: int | None,
    ) -> None:
        self._estimated_above = estimated_above
        self.last_step = 0
        self.start_step = 0
        self.num_skipped = 0
        self._skipped: deque[int] = deque(maxlen=4096)  # calls that a loss scaler refused
        self._derivation = Derivation(RAW, baseline_steps=baseline_steps, started=started)
        self._probed = ProbedLayers()
        self._latest: tuple[NDArray[np.int64], Array, Array] | None = None  # the last block, whether kept or not
        dtype = np.float64 if estimated_above is None else np.float32
        if history_bytes is None:
            history_bytes = history_budget(sum(layer.num_params for layer in layout.layers))
        row_bytes = len(layout.layers) * len(LAYER_COLUMNS) * np.dtype(dtype).itemsize
        capacity = int(np.clip(history_bytes // max(row_bytes, 1), 128, MOST_ROWS))
        self.history = History(len(layout.layers), capacity=capacity, dtype=dtype)

    def bind(self, layout: Layout, norms: Array) -> None:
        """Set the units that the next rows are made of, and their ‖θ‖² [U] now."""
        self._layout = layout
        self._unit_group = np.array([unit.group for unit in layout.units])
        sizes = [sum(p.numel() for p in unit.params) for unit in layout.units]
        owners = [unit.layer for unit in layout.units]
        estimated = [self._estimated_above is not None and size > self._estimated_above for size in sizes]
        self._derivation.bind(owners, sizes, len(layout.layers), is_estimated=estimated)
        self._derivation.start_from(norms)
        self._probed.bind(owners, len(layout.layers))
        self.history.widen(len(layout.layers))

    def state_dict(self) -> dict[str, Any]:
        """The history, what is remembered of earlier rows, and how steps are numbered; of rows that were taken in."""
        return {
            "last_step": self.last_step,
            "start_step": self.start_step,
            "num_skipped": self.num_skipped,
            "skipped": [int(call) for call in self._skipped],
            "derivation": self._derivation.state_dict(),
            "probed": self._probed.state_dict(),
            "history": self.history.state_dict(),
        }

    def load_state_dict(self, state: Any) -> None:
        """Go on from `state_dict`, with the layers that are bound."""
        self.history.load_state_dict(take(state, "history", dict))
        self._derivation.load_state_dict(take(state, "derivation", dict))
        self._probed.load_state_dict(take(state, "probed", dict))
        self._skipped = deque(counts(state, "skipped"), maxlen=self._skipped.maxlen)
        self.last_step, self.start_step = count(state, "last_step"), count(state, "start_step")
        self.num_skipped = count(state, "num_skipped")
        self._latest = None
        steps, _, _ = self.history.arrays()
        if len(steps) and steps[-1] > self.last_step:
            raise StateError(f"its history goes to step {steps[-1]}, past its last step, {self.last_step}")

    def take(self, block: Block) -> None:
        """Take in rows, in order."""
        notes = block.notes
        steps, refused = self._number(block)
        probed = self._probed.columns(block.probes, [note.seen for note in notes], refused)
        places = [int(i) for i in np.flatnonzero(~refused)]
        if not places:
            return
        layer_values = self._derive(block, places, probed)
        columns = {
            "loss": np.array([block.run[i, 0] if (loss := notes[i].loss) is None else loss for i in places]),
            "epoch": np.array([notes[i].epoch for i in places], dtype=np.float64),
        }
        run_values = np.stack([columns[name] for name in RUN_COLUMNS], axis=-1)
        steps = steps[places]
        self.last_step = int(steps[-1])
        keep = np.array([notes[i].call.kept for i in places])
        if not keep.all():
            self._latest = steps, layer_values, run_values
        self.history.append(steps[keep], layer_values[keep], run_values[keep])

    def _number(self, block: Block) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The step of each row [B], and whether a loss scaler refused it: then it is none."""
        calls = np.array([note.call.number for note in block.notes])
        refused = np.asarray((np.nan_to_num(block.raw[:, :, RAW["skipped"]]) > 0).any(axis=1))
        gone = np.nan_to_num(block.run[:, 1]).astype(np.int64)  # refused steps without a row
        for call, before, now in zip(calls, gone, refused, strict=True):
            self._skipped.extend(range(int(call) - int(before), int(call)))
            if now:
                self._skipped.append(int(call))
        steps = self.start_step + calls - self.num_skipped - np.cumsum(gone + refused)
        self.num_skipped += int((gone + refused).sum())
        return steps, refused

    def _derive(self, block: Block, places: list[int], probed: Mapping[str, Array]) -> Array:
        """Layer values of the rows at these places: consecutive steps together; after a gap it begins anew."""
        notes, pieces = block.notes, []
        cuts = [i for i, place in enumerate(places) if i and notes[place].call.fresh]
        if notes[places[0]].call.fresh:
            self._derivation.gap()
        for start, stop in itertools.pairwise([0, *cuts, len(places)]):
            if start:
                self._derivation.gap()
            here = places[start:stop]
            hyper = hyper_rows([notes[i].hyper for i in here], [notes[i].has_grad for i in here], self._unit_group)
            extra = {name: column[here] for name, column in probed.items()}
            pieces.append(self._derivation.rows(block.raw[here], hyper, extra))
        return np.concatenate(pieces)

    def amend_loss(self, call: int, value: float) -> None:
        """Give the newest row, read by the user before its loss was given, that loss."""
        if call in self._skipped:
            return
        step = self.step_of(call)
        self.history.amend(step, "loss", value)
        if self._latest is not None and len(self._latest[0]) and self._latest[0][-1] == step:
            self._latest[2][-1, RUN_COLUMNS.index("loss")] = value

    def loss_of(self, call: int) -> float | None:
        """The loss of a row that was taken in and kept."""
        step = self.step_of(call)
        _, _, run_values = self.history.arrays(start=step, stop=step + 1)
        return float(run_values[0, RUN_COLUMNS.index("loss")]) if len(run_values) else None

    def step_of(self, call: int) -> int:
        """The number of the step made at a call of the optimizer; calls that a loss scaler refused are not steps."""
        later = sum(skipped > call for skipped in self._skipped)
        return self.start_step + call - (self.num_skipped - later)

    def record(
        self,
        *,
        meta: dict[str, Any],
        events: tuple[dict[str, Any], ...],
        start: int | None = None,
        stop: int | None = None,
    ) -> Record:
        """What the history holds now with start ≤ step < stop, as a Record."""
        steps, layer_values, run_values = self.history.arrays(start=start, stop=stop)
        return Record(steps, self._layout.layers, layer_values, run_values, meta, events)

    def step_record(self, step: int, *, meta: dict[str, Any], events: tuple[dict[str, Any], ...]) -> Record:
        """One step as a Record of at most one row, from the history or (`every` leaves rows out) the last block."""
        found = self.history.arrays(start=step, stop=step + 1)
        if not len(found[0]) and self._latest is not None:
            steps, layer_values, run_values = self._latest
            here = steps == step
            if layer_values.shape[1] == len(self._layout.layers):
                found = steps[here], layer_values[here], run_values[here]
        return Record(found[0], self._layout.layers, found[1], found[2], meta, events)
