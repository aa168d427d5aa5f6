"""MEASURE and BUFFER joined: one meter per optimizer, however many observers and detectors listen.

The meter is driven from the optimizer's step hooks (`before_step`, `after_step`), writes one raw row a measured step
into the device rings, and hands blocks of rows to the intake when they are due. A *call* is one call of the optimizer's
step; which calls are measured is the cadence's to say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thermoclaw.layers import Layout, lay_out, signature
from thermoclaw.measure.anatomy import survey
from thermoclaw.measure.cadence import Cadence, Call
from thermoclaw.measure.hyper import GroupHyper
from thermoclaw.measure.intake import Intake
from thermoclaw.measure.match import check, describe, order_of
from thermoclaw.measure.parts import Part, Parts
from thermoclaw.measure.settings import Settings
from thermoclaw.measure.sharded import meet
from thermoclaw.measure.step import Step
from thermoclaw.measure.timing import UNTIMED, Timing
from thermoclaw.measure.transit import RowNotes, Transit
from thermoclaw.partition import Partition
from thermoclaw.state import StateError, count, take


@contextlib.contextmanager
def quiet_math() -> Iterator[None]:
    """No gradients, and no autocast: a measurement is never rounded to half precision."""
    with torch.no_grad():
        kinds = [k for k in ("cpu", "cuda") if torch.is_autocast_enabled(k)]
        if not kinds:
            yield
            return
        with contextlib.ExitStack() as stack:
            for kind in kinds:
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield


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
        self._met: set[Any] = set()  # meshes whose processes know of one another
        self._is_forgotten = self._is_interrupted = False
        self._call: Call | None = None  # between the hooks: of the step that is being made
        self._captured: tuple[list[GroupHyper], list[float]] | None = None
        layout = lay_out(model, optimizer, partition=partition)
        double = any(p.dtype in (torch.float64, torch.complex128) for u in layout.units for p in u.params)
        self._estimated_above = None if double or settings.mode == "exact" else settings.sketch_size
        self.intake = self._make_intake(layout)
        with quiet_math():
            self._bind(layout)
        self._timing = Timing(self.device) if settings.budget is not None else None

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
        self._step = Step(self._optimizer, self._partition, self._parts, layout.units)
        self.transit = Transit(self._parts, lag=self.settings.lag, call=self.num_calls)
        self.intake.bind(layout, self._parts.start_norms())

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
        self.transit.settle()
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
            self._step.begin(closure=closure, probed=self._call.probed)

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
        if self._call is not None and self._call.measured:
            with quiet_math():
                self._step.go_on()

    def _forget(self) -> None:
        """Once in a row of steps that are left out, as a replayed graph may be what is measured next."""
        if not self._is_forgotten:
            self._is_forgotten = True
            self._parts.forget()

    def after_step(self) -> None:
        """Read the parameters after the step and write the row."""
        if self.is_capturing():
            self._after_capture()
            return
        call, self._call = self._call, None
        if call is None:
            return
        step = self._step
        with quiet_math():
            if not call.measured:
                if step.skipped is not None:
                    self.transit.refuse(step.skipped)
                return
            step.end(probed=call.probed, deep=call.deep)
        self.transit.add(RowNotes(call, step.hyper, step.has_grad, self.epoch, step.seen))

    @property
    def num_calls(self) -> int:
        """Optimizer steps seen, measured or not, those that a loss scaler refused included."""
        return self.cadence.number

    def set_loss(self, loss: float | Tensor) -> None:
        """Attach a loss to the row of the last step, if it has one; a tensor stays on its device."""
        if not self.num_calls or self.transit.last_call != self.num_calls:
            return
        if self.transit.has_rows:
            self.transit.set_loss(loss)
        else:  # the user has read the newest row before giving its loss, and so has waited for the device already
            self.intake.amend_loss(self.num_calls, float(loss))

    def loss_on_host(self) -> float | None:
        """The loss of the step just made, if it was measured, has one, and is on the host anyway."""
        if self.transit.last_call != self.num_calls:
            return None
        return self.transit.loss_on_host() if self.transit.has_rows else self.intake.loss_of(self.num_calls)

    # -- captured graphs --------------------------------------------------------------------------------------------

    def is_capturing(self) -> bool:
        """Whether a CUDA graph is being captured: work is noted down, not done, and nothing may wait or be polled."""
        return self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()

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
            self._step.begin(closure=closure, probed=False)

    def _after_capture(self) -> None:
        with quiet_math():
            self._step.end(probed=False, deep=False, captured=True)
        self._captured = self._step.hyper, self._step.has_grad

    def note_replay(self) -> None:
        """Count a replay of the captured step: the device has written, or will write, its row."""
        assert self._captured is not None
        self.transit.settle()
        with quiet_math():
            self._parts.count_replay()  # first, as copies note how many rows the device had written by then
            self.transit.add(RowNotes(self.cadence.next(always=True), *self._captured, self.epoch))
            self.ingest()

    # -- other processes --------------------------------------------------------------------------------------------

    @property
    def has_peers(self) -> bool:
        """Whether other processes measure the rest of this model and count on this one to take part."""
        return self._parts.has_peers

    @property
    def is_on_host(self) -> bool:
        """Whether reading the last rows waits for nobody: neither for a device nor for another process."""
        return all(unit.device.type == "cpu" for unit in self.layout.units) and not self.has_peers

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
        if self._timing is None or self.is_capturing():
            return UNTIMED
        return self._timing.own_work(self.cadence.sampled, lap=lap)

    def _choose(self) -> None:
        """The warm-up is over: fix the cadence, the same one on every process of a sharded model."""
        assert self._timing is not None
        cost_s, idle_s, step_s = self._parts.mean_of(*self._timing.result())
        self.cadence.choose(cost_s=cost_s, idle_s=idle_s, step_s=step_s)
        self._timing = None

    # -- to the host ------------------------------------------------------------------------------------------------

    def ingest(self, *, everything: bool = False) -> None:
        """Move rows that are due (or, waiting for the device, all of them) into the history."""
        for block in self.transit.blocks(everything=everything):
            self.intake.take(block)

    @property
    def due_step(self) -> int:
        """The last step that the fixed lag has let through: the same whether or not anybody read rows before that."""
        return self.intake.step_of(self.transit.due_call)

    def continue_from(self, step: int, *, epoch: int) -> None:
        """Number the next step `step + 1`; only before the first row."""
        self.intake.start_step = self.intake.last_step = step
        self.epoch = epoch
        if step:
            self._parts.forget_start()

    # -- the state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What the next rows depend on, on the host, when all rows were taken in. Waits."""
        if self._call is None and self.cadence.measures_next and not self.has_peers:
            with quiet_math():
                self._rebind_if_changed()  # as the next step would
        return {
            **describe(self.layout, with_places=self.settings.mode == "exact"),
            **self.transit.state_dict(),
            "epoch": self.epoch,
            "cadence": self.cadence.state_dict(),
            "clocks": self._timing.state_dict() if self._timing is not None else {},
            "call": None if self._call is None else list(astuple(self._call)),
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
        self._bind_as(state)
        self._load_counts(state)
        with quiet_math():
            anew = self._parts.load_state_dict(take(state, "parts", dict), num_rows=self.transit.num_rows)
        if not take(state, "is_bound", bool):  # the next measured step binds anew, as it would have done
            self.layout = replace(self.layout, signature=())
        return list(dict.fromkeys(self.layout.layers[self.layout.units[u].layer].name for u in anew))

    def _bind_as(self, state: Any) -> None:
        """Have the units of a state, in its order, and nothing in the history."""
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
        self.intake.bind(self.layout, np.full(len(self.layout.units), np.nan))

    def _load_counts(self, state: Any) -> None:
        """What is kept on the host."""
        self.intake.load_state_dict(take(state, "intake", dict))
        self.cadence.load_state_dict(take(state, "cadence", dict))
        clocks = take(state, "clocks", dict)
        is_chosen = self.settings.budget is None or self.cadence.decision is not None
        self._timing = None if is_chosen else Timing(self.device)
        if self._timing is not None:
            self._timing.load_state_dict(clocks)
        if self.intake.step_of(self.num_calls) < self.intake.last_step:
            raise StateError(f"it counts {self.num_calls} steps, and its last one is {self.intake.last_step}")
        call = take(state, "call", list, type(None))
        if call is not None and not all(isinstance(value, int) for value in call):
            raise StateError(f"'call' is {call}")
        self._call = None if call is None else Call(*call)
        self.transit.load_state_dict(state)
        self.epoch = count(state, "epoch")
        self._is_forgotten, self._is_interrupted = (take(state, f"is_{x}", bool) for x in ("forgotten", "interrupted"))

    @property
    def device(self) -> torch.device:
        """Where losses are kept."""
        return self._parts.device

    def num_bytes(self) -> dict[str, int]:
        """Bytes held: on the devices and on the host."""
        return {"device": self._parts.num_bytes() + self.transit.num_bytes(), "host": self.intake.history.num_bytes()}
