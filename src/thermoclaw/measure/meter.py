"""MEASURE and BUFFER joined: one meter per optimizer, however many observers and detectors listen.

The meter is driven from the optimizer's step hooks (`before_step`, `after_step`), writes one raw row a step into the
device rings, and turns blocks of rows into host history when they are due.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thermoclaw.buffer import DeviceRing, History
from thermoclaw.derive import Derivation
from thermoclaw.layers import Layout, Unit, lay_out, signature
from thermoclaw.measure.columns import RAW, RAW_COLUMNS
from thermoclaw.measure.exact import ExactBackend
from thermoclaw.measure.hyper import GroupHyper, device_lrs, hyper_rows, read_groups
from thermoclaw.measure.sketched import SketchBackend
from thermoclaw.measure.sums import Backend
from thermoclaw.quantities import LAYER_COLUMNS, RUN_COLUMNS
from thermoclaw.record import Record


@dataclass(frozen=True)
class Settings:
    """How a meter measures. Observers with equal settings on one optimizer share a meter."""

    mode: str = "sketch"
    sketch_size: int = 1021
    every: int = 1
    lag: int = 8
    history_bytes: int = 16 << 20
    baseline_steps: int = 200


@dataclass
class _Part:
    """The units on one device."""

    places: list[int]
    backend: Backend
    ring: DeviceRing


@dataclass
class _RowNotes:
    """What the host knows of a row when it is written."""

    hyper: list[GroupHyper]
    has_grad: list[bool]
    epoch: int
    loss: float | None = None


@contextlib.contextmanager
def quiet_math() -> Iterator[None]:
    """No gradients, and no autocast: a measurement is never rounded to half precision."""
    with torch.no_grad():
        kinds = [k for k in ("cpu", "cuda") if torch.is_autocast_enabled(k)]
        with contextlib.ExitStack() as stack:
            for kind in kinds:
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield


def make_backend(units: list[Unit], *, mode: str, size: int) -> Backend:
    """The backend for a mode: "sketch" or "exact"."""
    if mode == "exact":
        return ExactBackend(units)
    return SketchBackend(units, size=size)


class Meter:
    """Measures an optimizer's steps; see the module's docstring."""

    def __init__(self, model: nn.Module | list[nn.Module], optimizer: Any, settings: Settings) -> None:
        self.settings = settings
        self.epoch = 0
        self.num_rows = 0
        self._settled = 0  # rows whose loss can no longer come
        self._ring_start = 0  # rows written before the rings were made
        self.num_skipped = 0
        self.last_step = 0
        self.start_step = 0
        self._skipped_rows: deque[int] = deque(maxlen=4096)
        self._model, self._optimizer = model, optimizer
        self._notes: deque[_RowNotes] = deque()
        started = bool(getattr(optimizer, "state", None))
        self._derivation = Derivation(RAW, baseline_steps=settings.baseline_steps, started=started)
        self._parts: list[_Part] = []
        self._armed = False
        self._late = False
        with quiet_math():
            self._bind(lay_out(model, optimizer))
        wide = settings.mode == "exact" or any(p.dtype == torch.float64 for u in self.layout.units for p in u.params)
        self._dtype = np.float64 if wide else np.float32
        row_bytes = len(self.layout.layers) * len(LAYER_COLUMNS) * np.dtype(self._dtype).itemsize
        rows = int(np.clip(settings.history_bytes // max(row_bytes, 1), 128, 4096))
        self.history = History(len(self.layout.layers), capacity=rows, every=settings.every, dtype=self._dtype)
        self._latest: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  # the last block, whether kept or not

    # -- binding ----------------------------------------------------------------------------------------------------

    def _bind(self, layout: Layout) -> None:
        """Make backends and rings for a layout, keeping the memory of units that stay."""
        self.layout = layout
        by_device: dict[torch.device, list[int]] = {}
        for place, unit in enumerate(layout.units):
            by_device.setdefault(unit.device, []).append(place)
        old, self._parts = self._parts, []
        for device, places in by_device.items():
            units = [layout.units[i] for i in places]
            backend = make_backend(units, mode=self.settings.mode, size=self.settings.sketch_size)
            for part in old:
                if part.backend.device == device:
                    backend.adopt(part.backend)
            wide = torch.float32 if device.type == "mps" else torch.float64
            ring = DeviceRing((len(units), len(RAW_COLUMNS)), block=self.settings.lag, device=device, dtype=wide)
            self._parts.append(_Part(places, backend, ring))
        first = self._parts[0].backend.device
        wide = torch.float32 if first.type == "mps" else torch.float64
        self._losses = DeviceRing((), block=self.settings.lag, device=first, dtype=wide)
        self._unit_group = np.array([unit.group for unit in layout.units])
        sizes = [sum(p.numel() for p in unit.params) for unit in layout.units]
        self._derivation.bind([unit.layer for unit in layout.units], sizes, len(layout.layers))
        self._derivation.start_from(self._norms_now())
        self._ring_start = self.num_rows

    def _norms_now(self) -> np.ndarray:
        """‖θ‖² of each unit, read when units are bound (this waits for the device)."""
        norms = np.empty(len(self.layout.units))
        for part in self._parts:
            norms[part.places] = part.backend.start_norms().cpu().numpy()
        return norms

    def _rebind_if_changed(self) -> None:
        if signature(self._optimizer) == self.layout.signature:
            return
        self.ingest(everything=True)
        order = tuple(layer.name for layer in self.layout.layers)
        self._bind(lay_out(self._model, self._optimizer, order=order))
        self.history.widen(len(self.layout.layers))

    # -- the step ---------------------------------------------------------------------------------------------------

    def before_step(self, *, closure: bool) -> None:
        """Read the gradients that the optimizer is about to use (with a closure they do not exist yet)."""
        self.settle()
        with quiet_math():
            self._rebind_if_changed()
            self.ingest()
            self._late = closure
            self._hyper = read_groups(self._optimizer)
            self._lrs = device_lrs(self._optimizer)
            if not closure:
                self._read_gradients(getattr(self._optimizer, "grad_scale", None))
            self._armed = True

    def _read_gradients(self, scale: Tensor | None) -> None:
        self._has_grad = [any(p.grad is not None for p in unit.params) for unit in self.layout.units]
        for part in self._parts:
            part.backend.read_gradients(scale=scale)

    def after_step(self) -> None:
        """Read the parameters after the step and write the row."""
        if not self._armed:
            return
        self._armed = False
        with quiet_math():
            if self._late:
                self._read_gradients(None)
            skipped = getattr(self._optimizer, "found_inf", None)
            for part in self._parts:
                part.backend.read_parameters(part.ring.next_row(), lrs=self._lrs, skipped=skipped)
                part.ring.advance()
            self._losses.next_row().fill_(float("nan"))
            self._losses.advance()
        self._notes.append(_RowNotes(self._hyper, self._has_grad, self.epoch))
        self.num_rows += 1

    def set_loss(self, loss: float | Tensor) -> None:
        """Attach a loss to the row written last; a tensor stays on its device."""
        if not self._notes:
            self._amend_loss(loss)
        elif isinstance(loss, Tensor) and (loss.device.type != "cpu" or self._losses.device.type == "cpu"):
            self._losses.last_row().copy_(loss.detach().reshape(()), non_blocking=True)
        else:
            self._notes[-1].loss = float(loss)

    def _amend_loss(self, loss: float | Tensor) -> None:
        """The user has read the newest row before giving its loss, and so has waited for the device already."""
        if not self.num_rows or self.num_rows in self._skipped_rows:
            return
        step, value = self.step_of(self.num_rows), float(loss)
        self.history.amend(step, "loss", value)
        if self._latest is not None and len(self._latest[0]) and self._latest[0][-1] == step:
            self._latest[2][-1, RUN_COLUMNS.index("loss")] = value

    def settle(self) -> None:
        """Say that nothing will be added to the row written last."""
        self._settled = self.num_rows

    # -- to the host ------------------------------------------------------------------------------------------------

    def ingest(self, *, everything: bool = False) -> int:
        """Move rows that are due (or, waiting for the device, all of them) into the history; returns how many."""
        for ring in self._rings():
            ring.start_copies(self._settled - self._ring_start)
        count = self._losses.pending() if everything else self._num_due() - self._losses.taken()
        while count > 0:
            block = min(count, 2 * self.settings.lag)
            self._ingest_rows(block)
            count -= block
        return len(self.history)

    def _rings(self) -> list[DeviceRing]:
        return [self._losses, *(part.ring for part in self._parts)]

    def _num_due(self) -> int:
        """Rows of these rings that the fixed lag has let through."""
        return min(ring.due(self._settled - self._ring_start) for ring in self._rings())

    @property
    def due_step(self) -> int:
        """The last step that the fixed lag has let through: the same whether or not anybody read rows before that."""
        return self.step_of(self._ring_start + self._num_due())

    def _ingest_rows(self, count: int) -> None:
        raw = np.empty((count, len(self.layout.units), len(RAW_COLUMNS)))
        for part in self._parts:
            raw[:, part.places] = part.ring.take(count)
        losses = self._losses.take(count)
        notes = [self._notes.popleft() for _ in range(count)]
        first = self.start_step + self.num_rows - len(self._notes) - count - self.num_skipped
        taken = np.asarray(~(np.nan_to_num(raw[:, :, RAW["skipped"]]) > 0).any(axis=1))
        self.num_skipped += int((~taken).sum())
        done = self.num_rows - len(self._notes) - count
        self._skipped_rows.extend(done + 1 + np.flatnonzero(~taken))
        if not taken.any():
            return
        raw, losses = raw[taken], losses[taken]
        notes = [note for note, ok in zip(notes, taken, strict=True) if ok]
        hyper = hyper_rows([n.hyper for n in notes], [n.has_grad for n in notes], self._unit_group)
        layer_values = self._derivation.rows(raw, hyper)
        run = {
            "loss": np.array([n.loss if n.loss is not None else x for n, x in zip(notes, losses, strict=True)]),
            "epoch": np.array([n.epoch for n in notes], dtype=np.float64),
        }
        run_values = np.stack([run[name] for name in RUN_COLUMNS], axis=-1)
        steps = first + 1 + np.arange(len(notes))
        self.last_step = int(steps[-1])
        keep = (steps - 1) % self.settings.every == 0
        if self.settings.every > 1:
            self._latest = steps, layer_values, run_values
        self.history.append(steps[keep], layer_values[keep], run_values[keep])

    def step_of(self, row: int) -> int:
        """The step number of a measured row; rows that a loss scaler skipped are not steps."""
        return self.start_step + row - sum(skipped <= row for skipped in self._skipped_rows)

    def continue_from(self, step: int, *, epoch: int) -> None:
        """Number the next step `step + 1`; only before the first row."""
        self.start_step = self.last_step = step
        self.epoch = epoch

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
        return Record(steps, self.layout.layers, layer_values, run_values, meta, events)

    def step_record(self, step: int, *, meta: dict[str, Any], events: tuple[dict[str, Any], ...]) -> Record:
        """One step as a Record of at most one row, from the history or (`every` leaves rows out) the last block."""
        found = self.history.arrays(start=step, stop=step + 1)
        if not len(found[0]) and self._latest is not None:
            steps, layer_values, run_values = self._latest
            here = steps == step
            if layer_values.shape[1] == len(self.layout.layers):
                found = steps[here], layer_values[here], run_values[here]
        return Record(found[0], self.layout.layers, found[1], found[2], meta, events)

    def num_bytes(self) -> dict[str, int]:
        """Bytes held: on the devices and on the host."""
        device = sum(part.backend.num_bytes() + part.ring.num_bytes() for part in self._parts)
        return {"device": device + self._losses.num_bytes(), "host": self.history.num_bytes()}
