"""MEASURE and BUFFER joined: one meter per optimizer, however many observers and detectors listen.

The meter is driven from the optimizer's step hooks (`before_step`, `after_step`), writes one raw row a measured step
into the device rings, and hands blocks of rows to the intake when they are due. A *call* is one call of the optimizer's
step; which calls are measured is the cadence's to say.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from thermoclaw.buffer import DeviceRing
from thermoclaw.layers import Layout, Unit, lay_out, signature
from thermoclaw.measure.anatomy import survey
from thermoclaw.measure.cadence import Cadence, Call, Clock
from thermoclaw.measure.hyper import GroupHyper, device_lrs, read_groups
from thermoclaw.measure.intake import Intake, RowNotes
from thermoclaw.measure.match import check, describe, order_of
from thermoclaw.measure.parts import Part, Parts, widest
from thermoclaw.measure.sharded import meet
from thermoclaw.partition import Partition
from thermoclaw.state import StateError, count, counts, take


@dataclass(frozen=True)
class Settings:
    """How a meter measures. Observers with equal settings on one optimizer share a meter."""

    mode: str = "sketch"
    sketch_size: int = 1021
    every: int = 1
    budget: float | None = None
    lag: int = 8
    history_bytes: int | None = None
    baseline_steps: int = 200


@contextlib.contextmanager
def quiet_math() -> Iterator[None]:
    """No gradients, and no autocast: a measurement is never rounded to half precision."""
    with torch.no_grad():
        kinds = [k for k in ("cpu", "cuda") if torch.is_autocast_enabled(k)]
        with contextlib.ExitStack() as stack:
            for kind in kinds:
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield


def has_gradient(unit: Unit) -> float:
    """1 if a parameter of the unit has a gradient, 0 if one should and none has, NaN if none is to be trained."""
    if any(p.grad is not None for p in unit.params):
        return 1.0
    return 0.0 if any(getattr(p, "param", p).requires_grad for p in unit.params) else float("nan")


def _groups_of(layout: Layout) -> NDArray[Any]:
    return np.array([unit.group for unit in layout.units])


class Meter:
    """Measures an optimizer's steps; see the module's docstring."""

    def __init__(
        self,
        model: nn.Module | list[nn.Module],
        optimizer: Any,
        settings: Settings,
        partition: Partition | None = None,
    ) -> None:
        self.settings = settings
        self.epoch = 0
        self.cadence = Cadence(every=settings.every, budget=settings.budget)
        self._model, self._optimizer, self._partition = model, optimizer, partition
        self._pushed = 0  # rows written since the rings were made
        self._settled = 0  # of them, rows whose loss can no longer come
        self._calls: deque[int] = deque([0], maxlen=8 * settings.lag + 8)  # of the rows written last, after a first 0
        self._notes: deque[RowNotes] = deque()  # of rows that were not taken in yet
        self._met: set[Any] = set()
        self._is_forgotten = self._is_interrupted = False
        self._call: Call | None = None  # between the hooks: the step that is being made
        self._has_grad: list[float] = []  # of its units
        self._seen: NDArray[np.float64] | None = None  # what was looked at, if it is probed
        self._captured: tuple[list[GroupHyper], list[float]] | None = None
        layout = lay_out(model, optimizer, partition=partition)
        double = any(p.dtype in (torch.float64, torch.complex128) for u in layout.units for p in u.params)
        self._estimated_above = None if double or settings.mode == "exact" else settings.sketch_size
        self.intake = self._make_intake(layout)
        with quiet_math():
            self._bind(layout)
        self._clocks = {kind: self._make_clock() for kind in ("busy", "idle")} if settings.budget is not None else {}

    def _make_intake(self, layout: Layout) -> Intake:
        return Intake(
            layout,
            history_bytes=self.settings.history_bytes,
            baseline_steps=self.settings.baseline_steps,
            started=bool(getattr(self._optimizer, "state", None)),
            estimated_above=self._estimated_above,
        )

    # -- binding ----------------------------------------------------------------------------------------------------

    def _bind(self, layout: Layout, *, earlier: Sequence[Part] = ()) -> None:
        """Make backends and rings for a layout, keeping the memory of units that stay."""
        self.layout = layout
        for mesh in dict.fromkeys(unit.mesh for unit in layout.units if unit.mesh is not None):
            if mesh not in self._met:
                meet(mesh)
                self._met.add(mesh)
        self._parts = Parts(
            layout.units,
            survey(self._model),
            mode=self.settings.mode,
            size=self.settings.sketch_size,
            lag=self.settings.lag,
            earlier=earlier,
        )
        first, wide = self._parts.device, widest(self._parts.device)
        # by row: its loss, and how many steps since the row before a loss scaler refused
        self._run = DeviceRing((2,), block=self.settings.lag, device=first, dtype=wide, replayable=False)
        self._refused = torch.zeros((), device=first, dtype=wide)
        self._pushed = self._settled = 0
        self._calls.clear()
        self._calls.append(self.cadence.number)
        self.intake.bind(layout, self._parts.start_norms(), unit_group=_groups_of(layout))

    @property
    def _is_bound(self) -> bool:
        """Whether the optimizer's groups are those of the layout."""
        return self._partition is not None or signature(self._optimizer) == self.layout.signature

    def _rebind_if_changed(self) -> None:
        if self._is_bound:
            return
        self.ingest(everything=True)
        order = tuple(layer.name for layer in self.layout.layers)
        self._bind(lay_out(self._model, self._optimizer, order=order), earlier=list(self._parts))

    # -- the step ---------------------------------------------------------------------------------------------------

    def begins_step(self) -> bool:
        """The optimizer is about to step what is in its groups; whether that is the beginning of a whole step."""
        return self._partition is None or self._partition.begin(self._optimizer)

    def ends_step(self) -> bool:
        """The optimizer has stepped what is in its groups; whether the whole step is done."""
        return self._partition is None or self._partition.end()

    def before_step(self, *, closure: bool, begins: bool = True) -> None:
        """Read the gradients that the optimizer is about to use (with a closure they do not exist yet)."""
        if self.is_capturing():
            self._before_capture(closure=closure)
            return
        if not begins:
            self._read_next_groups()
            return
        self.settle()
        with quiet_math():
            if self._call is None:  # or else a step inside a step, or again after one that was broken off
                if self.cadence.must_choose:
                    self._choose()
                self._call = self._next_call()
            if not self._call.measured:
                self._forget()
                return
            self._is_forgotten = False
            self._parts.keep_company()
            self._rebind_if_changed()
            self.ingest()
            self._late = closure
            self._hyper = read_groups(self._optimizer)
            self._lrs = device_lrs(self._optimizer)
            if self._partition is not None:
                self._hyper = self._hyper[:1] * self._partition.num_groups
                self._lrs = {}
                self._note_groups(self._partition)
            if not closure:
                self._read_gradients(getattr(self._optimizer, "grad_scale", None))
                self._probe(self._call)

    def _next_call(self) -> Call:
        call = self.cadence.next()
        if call.measured and self._is_interrupted:
            self._is_interrupted = False
            call = replace(call, fresh=True)
        return call

    def interrupt(self) -> None:
        """Steps were made that nobody told of: the next row is not compared with the one before it."""
        self._call, self._is_interrupted = None, True
        with quiet_math():
            self._forget()

    def _read_next_groups(self) -> None:
        """In the middle of a step that a partitioned optimizer makes group by group."""
        assert self._partition is not None
        if self._call is None or not self._call.measured:
            return
        with quiet_math():
            self._note_groups(self._partition)
            before = self._has_grad
            self._read_gradients(getattr(self._optimizer, "grad_scale", None), more=True)
            self._has_grad = [b if a != 1 else a for a, b in zip(before, self._has_grad, strict=True)]

    def _note_groups(self, partition: Partition) -> None:
        """What the groups that are stepped now are stepped with."""
        partition.check()
        for i, hyper in zip(partition.stepping, read_groups(self._optimizer), strict=True):
            self._hyper[i] = hyper
        self._lrs.update({partition.stepping[i]: lr for i, lr in device_lrs(self._optimizer).items()})

    def _forget(self) -> None:
        """Once in a row of steps that are left out, as a replayed graph may be what is measured next."""
        if not self._is_forgotten:
            self._is_forgotten = True
            self._parts.forget()

    def _read_gradients(self, scale: Tensor | None, *, more: bool = False) -> None:
        self._has_grad = [has_gradient(unit) for unit in self.layout.units]
        self._parts.read_gradients(scale, more=more)

    def _probe(self, call: Call) -> None:
        """Take a closer look at the gradients just read, where it is time to."""
        skipped = getattr(self._optimizer, "found_inf", None)
        self._seen = self._parts.probe_gradients(skipped=skipped) if call.probed else None

    def after_step(self) -> None:
        """Read the parameters after the step and write the row."""
        if self.is_capturing():
            self._after_capture()
            return
        call, self._call = self._call, None
        if call is None:
            return
        skipped = getattr(self._optimizer, "found_inf", None)
        with quiet_math():
            if not call.measured:
                if skipped is not None:
                    self._refused.add_(skipped.reshape(()).to(self._refused))
                return
            if self._late:
                self._read_gradients(None)
                self._probe(call)
            self._parts.write_row(self._lrs, skipped)
            if call.deep:
                self._parts.probe_weights()
        self._count(RowNotes(call, self._hyper, self._has_grad, self.epoch, self._seen))

    def _count(self, notes: RowNotes) -> None:
        """The host's part of a row."""
        row = self._run.next_row()
        row[0] = float("nan")
        row[1] = self._refused
        self._refused.zero_()
        self._run.advance()
        self._parts.count_probe()
        self._notes.append(notes)
        self._pushed += 1
        self._calls.append(notes.call.number)

    @property
    def num_calls(self) -> int:
        """Optimizer steps seen, measured or not, those that a loss scaler refused included."""
        return self.cadence.number

    @property
    def _last_is_measured(self) -> bool:
        return bool(self._notes) and self._notes[-1].call.number == self.num_calls

    def set_loss(self, loss: float | Tensor) -> None:
        """Attach a loss to the row written last; a tensor stays on its device."""
        if self._last_is_measured:
            if isinstance(loss, Tensor) and (loss.device.type != "cpu" or self._run.device.type == "cpu"):
                self._run.last_row()[0].copy_(loss.detach().reshape(()), non_blocking=True)
            else:
                self._notes[-1].loss = float(loss)
        elif not self._notes and self._calls[-1] == self.num_calls > 0:
            # the user has read the newest row before giving its loss, and so has waited for the device already
            self.intake.amend_loss(self.num_calls, float(loss))

    def settle(self) -> None:
        """Say that nothing will be added to the row written last."""
        self._settled = self._pushed

    # -- captured graphs --------------------------------------------------------------------------------------------

    def is_capturing(self) -> bool:
        """Whether a CUDA graph is being captured: work is noted down, not done, and nothing may wait or be polled."""
        return self._run.device.type == "cuda" and torch.cuda.is_current_stream_capturing()

    @property
    def is_captured(self) -> bool:
        """Whether a graph with this meter's work in it was captured: its replays call no hooks."""
        return self._captured is not None

    def _before_capture(self, *, closure: bool) -> None:
        if not self._parts.is_replayable:
            raise RuntimeError(
                "a step inside a captured CUDA graph can be measured by the fused kernels only, which are not in use "
                "here (Triton is missing, or mode='exact', or there are float64 parameters)"
            )
        with quiet_math():
            self._late = closure
            self._hyper, self._lrs = read_groups(self._optimizer), device_lrs(self._optimizer)
            if not closure:
                self._read_gradients(getattr(self._optimizer, "grad_scale", None))

    def _after_capture(self) -> None:
        skipped = getattr(self._optimizer, "found_inf", None)
        with quiet_math():
            if self._late:
                self._read_gradients(None)
            self._parts.write_row(self._lrs, skipped, captured=True)
        self._captured = self._hyper, self._has_grad

    def note_replay(self) -> None:
        """Count a replay of the captured step: the device has written, or will write, its row."""
        assert self._captured is not None
        self.settle()
        with quiet_math():
            self._parts.count_replay()  # first, as copies note how many rows the device had written by then
            self._count(RowNotes(self.cadence.next(always=True), *self._captured, self.epoch))
            self.ingest()

    # -- other processes --------------------------------------------------------------------------------------------

    @property
    def has_peers(self) -> bool:
        """Whether other processes measure the rest of this model and count on this one to take part."""
        return self._parts.has_peers

    def limp_before(self) -> None:
        """After a failure here, before a step: do no more than the other processes count on."""
        with quiet_math():
            if self.cadence.must_choose:
                self._choose()
            if self.cadence.next().measured:
                self._parts.keep_company()

    def limp_after(self) -> None:
        """After a failure here: take part in the exchange of this step, so that nobody waits in vain."""
        with quiet_math():
            self._parts.stand_in()

    # -- cadence ----------------------------------------------------------------------------------------------------

    def own_work(self, *, lap: bool = False) -> AbstractContextManager[None]:
        """Time what is done inside, while a budget is to be chosen for."""
        clock = self._clocks.get(self.cadence.sampled or "") if self._clocks else None
        if clock is None or self.is_capturing():
            return contextlib.nullcontext()
        return clock.own_work(lap=lap)

    def _make_clock(self) -> Clock:
        if self._parts.device.type != "cuda":
            return Clock()

        def tick() -> torch.cuda.Event:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event

        def between(first: torch.cuda.Event, second: torch.cuda.Event) -> float:
            second.synchronize()  # it was marked at least eight steps ago
            return 1e-3 * first.elapsed_time(second)

        return Clock(tick, between)

    def _choose(self) -> None:
        """The warm-up is over: fix the cadence, the same one on every process of a sharded model."""
        cost_s, idle_s, step_s = self._parts.mean_of(*self._times())
        self.cadence.choose(cost_s=cost_s, idle_s=idle_s, step_s=step_s)
        self._clocks = {}

    def _times(self) -> tuple[float, float, float]:
        """Mean cost of a measured step, of one that is left out, and time of a step without either, in seconds."""
        cost_s, step_s = self._clocks["busy"].result()
        return cost_s, self._clocks["idle"].result()[0], step_s

    # -- to the host ------------------------------------------------------------------------------------------------

    def ingest(self, *, everything: bool = False) -> int:
        """Move rows that are due (or, waiting for the device, all of them) into the history; returns how many."""
        for ring in self._rings():
            ring.start_copies(self._settled)
        count = self._run.pending() if everything else self._num_due() - self._run.taken()
        good = self._parts.num_good(everything=everything)  # rows that a process had no part in are not the run's
        if good is not None:
            count = min(count, good - self._run.taken())
        while count > 0:
            block = min(count, 2 * self.settings.lag)
            self.intake.take(
                self._parts.take(block),
                self._run.take(block),
                self._parts.take_probes(block),
                [self._notes.popleft() for _ in range(block)],
            )
            count -= block
        return len(self.intake.history)

    def _rings(self) -> list[DeviceRing]:
        return [self._run, *(ring for part in self._parts for ring in (part.ring, part.probe.ring))]

    def _num_due(self) -> int:
        """Rows of these rings that the fixed lag has let through."""
        return min(ring.due(self._settled) for ring in self._rings())

    @property
    def due_step(self) -> int:
        """The last step that the fixed lag has let through: the same whether or not anybody read rows before that."""
        behind = self._pushed - self._num_due()
        return self.intake.step_of(self._calls[-1 - behind])

    def continue_from(self, step: int, *, epoch: int) -> None:
        """Number the next step `step + 1`; only before the first row."""
        self.intake.start_step = self.intake.last_step = step
        self.epoch = epoch
        if step:
            self._parts.forget_start()

    def state_dict(self) -> dict[str, Any]:
        """What the next rows depend on, on the host, when all rows were taken in. Waits."""
        if self._call is None and self.cadence.measures_next and not self.has_peers:
            with quiet_math():
                self._rebind_if_changed()  # as the next step would
        return {
            **describe(self.layout, with_places=self.settings.mode == "exact"),
            "epoch": self.epoch,
            "cadence": self.cadence.state_dict(),
            "clocks": {kind: clock.state_dict() for kind, clock in self._clocks.items()},
            "call": None if self._call is None else list(astuple(self._call)),
            "calls": list(self._calls),
            "num_rows": self._pushed,
            "num_settled": self._settled,
            "num_refused": int(self._refused),
            "is_forgotten": self._is_forgotten,
            "is_interrupted": self._is_interrupted,
            "is_bound": self._is_bound,
            "parts": self._parts.state_dict(),
            "intake": self.intake.state_dict(),
        }

    def load_state_dict(self, state: Any) -> list[str]:
        """Go on from `state_dict`, before the first step; returns the layers whose probes begin anew.

        Raises:
            StateError: the state is not one of these units, or damaged; then it is loaded in part.
        """
        order = order_of(state, self.layout)
        mine = tuple(layer.name for layer in self.layout.layers)
        # layers that joined late come last; a guard may have split groups
        if order != mine or not self._is_bound:
            layout = lay_out(self._model, self._optimizer, order=order, partition=self._partition)
            self.intake = self._make_intake(layout)
            with quiet_math():
                self._bind(layout)
        check(state, self.layout, with_places=self.settings.mode == "exact")
        self.intake = self._make_intake(self.layout)
        unknown = np.full(len(self.layout.units), np.nan)
        self.intake.bind(self.layout, unknown, unit_group=_groups_of(self.layout))
        self.intake.load_state_dict(take(state, "intake", dict))
        self.cadence.load_state_dict(take(state, "cadence", dict))
        self._load_clocks(take(state, "clocks", dict))
        if self.intake.step_of(self.cadence.number) < self.intake.last_step:
            raise StateError(f"it counts {self.cadence.number} steps, and its last one is {self.intake.last_step}")
        self._load_rows(state)
        self.epoch = count(state, "epoch")
        self._is_forgotten, self._is_interrupted = (take(state, f"is_{x}", bool) for x in ("forgotten", "interrupted"))
        with quiet_math():
            self._refused.fill_(count(state, "num_refused"))
            anew = self._parts.load_state_dict(take(state, "parts", dict), num_rows=self._pushed)
        self._run.continue_from(self._pushed)
        if not take(state, "is_bound", bool):  # the next measured step binds anew, as it would have done
            self.layout = replace(self.layout, signature=())
        return list(dict.fromkeys(self.layout.layers[self.layout.units[u].layer].name for u in anew))

    def _load_rows(self, state: Any) -> None:
        """How many rows there were, and of which calls."""
        pushed, calls = count(state, "num_rows"), counts(state, "calls")
        if len(calls) != min(pushed + 1, self._calls.maxlen or 0):
            raise StateError(f"it has {len(calls)} calls for {pushed} rows")
        call = take(state, "call", list, type(None))
        if call is not None and not all(isinstance(value, int) for value in call):
            raise StateError(f"'call' is {call}")
        self._call = None if call is None else Call(*call)
        self._pushed, self._settled = pushed, count(state, "num_settled", most=pushed)
        self._calls.clear()
        self._calls.extend(calls)
        self._notes.clear()

    def _load_clocks(self, state: Any) -> None:
        """Go on timing, unless the cadence was chosen already."""
        self._clocks = {}
        if self.settings.budget is not None and self.cadence.decision is None:
            self._clocks = {kind: self._make_clock() for kind in ("busy", "idle")}
            for kind, clock in self._clocks.items():
                clock.load_state_dict(take(state, kind, dict))

    @property
    def device(self) -> torch.device:
        """Where losses are kept."""
        return self._run.device

    def num_bytes(self) -> dict[str, int]:
        """Bytes held: on the devices and on the host."""
        return {"device": self._parts.num_bytes() + self._run.num_bytes(), "host": self.intake.history.num_bytes()}
