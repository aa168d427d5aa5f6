"""One measuring attachment per optimizer, shared by every observer and detector that listens to it.

It guards the hot path (an unexpected error is reported once and turns measuring off; training goes on), gives rows
their losses, keeps the events of the run, and asks the rules for alarms at fixed steps.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import nn

from thermoclaw import checkpoint
from thermoclaw.attach import Hooks, can_hook, only_makes_state
from thermoclaw.diagnosis.engine import live_findings
from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.looks import Looks
from thermoclaw.failsafe import Failsafe, never_stops
from thermoclaw.losses import Loss, Losses, as_scalar
from thermoclaw.measure.meter import Meter
from thermoclaw.measure.settings import Settings
from thermoclaw.measure.sharded import PeerFailed
from thermoclaw.partition import Partition
from thermoclaw.polling import Polling
from thermoclaw.record import Record
from thermoclaw.registry import attached_to, others, register
from thermoclaw.run_meta import describe_run
from thermoclaw.state import StateError, count, take, text, untext
from thermoclaw.surroundings import Surroundings
from thermoclaw.testimony import Witnesses

logger = logging.getLogger("thermoclaw")


def attach(
    model: nn.Module | list[nn.Module],
    optimizer: Any,
    settings: Settings,
    *,
    partition: Partition | None = None,
    strict: bool = False,
) -> Attachment:
    """The attachment with these settings: the one already there, or a new one."""
    for attachment in attached_to(optimizer):
        if attachment.meter.settings == settings and attachment.model_is(model):
            attachment.strict = attachment.strict or strict
            return attachment
    return Attachment(model, optimizer, settings, partition=partition, strict=strict)


class Attachment(Failsafe):
    """See the module's docstring."""

    _count = 0

    def __init__(
        self, model: Any, optimizer: Any, settings: Settings, *, partition: Partition | None = None, strict: bool
    ) -> None:
        super().__init__(strict=strict)
        Attachment._count += 1
        self.number = Attachment._count
        self._has_cadence_event = False
        self._is_salvaged = False
        self._is_limping = False  # failed, and other processes still count on this one
        self.num_pauses = 0  # that have begun and not ended
        self._is_idle = False  # in a step that is none
        self.meter = Meter(model, optimizer, settings, partition)
        self.alarms: list[Finding] = []
        self.events: list[dict[str, Any]] = []
        self.on_alarm: list[Callable[[Finding], None]] = []
        self.on_rows: list[Callable[[bool], None]] = []  # told when rows reached the host, and once at the end
        self.witnesses = Witnesses()
        self.keepers: list[Callable[[bool], None]] = []  # of the run on disk, told after all others
        self.run_id: str | None = None  # of a run that is kept on disk
        self._told_step = 0
        self.model, self._optimizer = model, optimizer
        self._looks = Looks()
        self._is_sudden = False  # the loss of the step just made
        self._losses = Losses()
        self.surroundings = Surroundings(optimizer, self.meter.layout)
        self._polling = Polling(self.meter)
        models = model if isinstance(model, list) else [model]
        self._parameter_order = [name for part in models for name, _ in part.named_parameters()]
        self._calls_at_start = 0
        self.hooks: Hooks | None = Hooks(optimizer, self) if can_hook(optimizer) else None
        if self.hooks is None:
            logger.warning(
                "thermoclaw: %s has no step hooks; gradients are read at observer.step(), so call it after "
                "optimizer.step() and before zero_grad()",
                type(optimizer).__name__,
            )
        register(self, optimizer)

    def model_is(self, model: Any) -> bool:
        """Whether this attachment watches that model."""
        return self.model is model or (isinstance(model, list) and self.model == model)

    # -- the hot path -----------------------------------------------------------------------------------------------

    def fail(self, error: Exception) -> None:
        """See `Failsafe`. The hooks stay until later: torch may be going through them just now."""
        if not self.failed:
            self._is_limping = self.meter.has_peers and not isinstance(error, PeerFailed)
        super().fail(error)

    @never_stops
    def before_step(self, *, closure: bool) -> None:
        """Hook: the optimizer is about to step, or to step its next group."""
        self._is_idle = only_makes_state(self._optimizer)
        if self.num_pauses or self._is_idle:
            return
        begins = self.meter.begins_step()
        if self._is_limping:
            if begins:
                self._limp(self.meter.limp_before)
        elif not self.is_off:
            with self.meter.own_work(lap=begins):
                if begins and not closure:
                    rest = others(self._optimizer)
                    self.surroundings.begin_step(self.meter.layout, [other.surroundings for other in rest])
                self.meter.before_step(closure=closure, begins=begins)

    @never_stops
    def after_step(self) -> None:
        """Hook: the optimizer has stepped, or has stepped one of its groups."""
        if self.num_pauses or self._is_idle or not self.meter.ends_step():
            return
        self.guard(self._after_step)
        if self._is_limping:
            self._limp(self.meter.limp_after)

    def _after_step(self) -> None:
        with self.meter.own_work():
            self.meter.after_step()
            self.surroundings.end_step()
        if self.meter.is_capturing():
            self._polling.capture()

    def _limp(self, work: Callable[[], None]) -> None:
        """Keep other processes from waiting for this one, whose measuring failed; give up when that fails too."""
        try:
            work()
        except Exception:
            self._is_limping = False

    @never_stops
    def poll(self, caller: object) -> None:
        """Measure at a listener's step() where hooks cannot fire."""
        if self.num_pauses or (self.is_off and not self._is_limping) or self.meter.is_capturing():
            return
        if self.hooks is None:
            if self._polling.opens_step(caller):
                self.before_step(closure=False)
                self.after_step()
        elif self.meter.is_captured:
            self._polling.note_replay(caller)
        elif self.has_stepped:
            if self._polling.another_steps():
                self._tell_of_another()
        elif self._polling.hooks_are_silent():
            self.hooks.remove()
            self.hooks = None
            logger.warning(
                "thermoclaw: the step hooks of %s do not fire although its parameters move; gradients are read at "
                "observer.step() from here on, so call it before zero_grad()",
                type(self._optimizer).__name__,
            )
            self.poll(caller)

    def _tell_of_another(self) -> None:
        last = self.meter.intake.start_step + self.meter.num_calls
        self.warn_once(
            "stranger",
            f"the weights move, but the {type(self._optimizer).__name__} that is observed makes no steps since "
            f"step {last}. If the optimizer was made anew, observe the new one: Observer(model, optimizer)",
        )

    @never_stops
    def give_loss(self, loss: Any, *, fresh: bool) -> None:
        """Take a loss for the step just made; between two optimizer steps, losses are averaged."""
        if self.num_pauses or self.is_off:
            return
        checked = self._check_loss(loss)
        if checked is None or self.meter.is_capturing():
            return
        if fresh:
            mean = self._losses.of_step(checked, self.meter.intake.start_step + self.meter.num_calls)
            self.meter.set_loss(mean)
            known = self.meter.loss_on_host()
            self._is_sudden = known is not None and self._looks.is_sudden(known)
        else:
            self._losses.keep(checked)

    def _check_loss(self, loss: Any) -> Loss | None:
        """A scalar without a graph, or None with one message."""
        try:
            return as_scalar(loss)
        except TypeError as error:
            if self.strict:
                raise
            self.warn_once("loss", str(error))
            return None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Neither measure nor count what happens inside."""
        self.num_pauses += 1
        try:
            yield
        finally:
            self.num_pauses -= 1
            if not self.num_pauses:
                self._polling.allow_moves()
                self.guard(self.meter.interrupt)

    # -- rows to findings -------------------------------------------------------------------------------------------

    @never_stops
    def advance(self, *, settled: bool = False) -> None:
        """Hand on rows that are due and let the rules look at fixed steps; `settled`: the newest row has its loss."""
        if settled:
            self.meter.transit.settle()
        if self.is_off:
            if self.hooks is not None and not self._is_limping:
                self.hooks.remove()
        elif not self.meter.is_capturing():
            with self.meter.own_work():
                last = self._take_in()
            if last > self._told_step and (self.on_rows or self.keepers):
                self._told_step = last
                self._tell_rows(closing=False)

    def _take_in(self) -> int:
        """Take in the rows that are due, and what comes of them; returns the step of the last."""
        self.meter.ingest()
        last = self.meter.due_step
        if self.meter.num_calls >= 2:
            self.surroundings.look_outside(self.meter.layout)
        if self.meter.cadence.decision is not None and not self._has_cadence_event:
            self._has_cadence_event = True
            self.events.append({"step": last, **self.meter.cadence.decision})
        sudden, self._is_sudden = self._is_sudden and self.meter.is_on_host, False
        if sudden:
            self.meter.ingest(everything=True)
        if self._looks.is_due(last) or sudden:
            self._look_for_alarms(self.meter.intake.last_step if sudden else last)
        return last

    def _look_for_alarms(self, last: int) -> None:
        for finding in live_findings(self.record(stop=last + 1), known=self.alarms):
            self.alarms.append(finding)
            self.events.append({"kind": "alarm", "step": finding.raised_step, "finding": finding.to_json()})
            for listener in self.on_alarm:
                self.tell(listener, finding, given_to="on_alarm")

    def _tell_rows(self, *, closing: bool) -> None:
        for listener in (*self.on_rows, *self.keepers):
            self.tell(listener, closing, given_to="on_rows")

    def catch_up(self) -> None:
        """Hand on every row, waiting for the device; after a failure, those that were complete."""
        if not self.failed:
            self.guard(lambda: self.meter.ingest(everything=True))
        elif not self._is_salvaged:
            self._is_salvaged = True
            with contextlib.suppress(Exception):  # the failure was reported when it came
                self.meter.ingest(everything=True)

    def resume(self, record: Record | None, *, step: int, epoch: int) -> bool:
        """Continue a run after `step` steps; whether the earlier rows could be put before the new ones."""
        self.meter.continue_from(step, epoch=epoch)
        self._looks = Looks(step)
        mine = [(layer.name, layer.num_params) for layer in self.meter.layout.layers]
        fits = record is not None and mine == [(layer.name, layer.num_params) for layer in record.layers]
        if record is not None and fits:
            earlier = record.rows(stop=step + 1)
            self.meter.intake.history.append(earlier.steps.astype(np.int64), earlier.layer_values, earlier.run_values)
            self.events.extend(earlier.events)
            self.alarms.extend(_alarms_in(earlier.events))
            self.run_id = record.meta.get("run_id", self.run_id)
            self.surroundings.go_on_from(record.meta)
        self.events.append({"kind": "resume", "step": step})
        return fits

    # -- the state that a run is continued from ------------------------------------------------------------------------

    @property
    def has_stepped(self) -> bool:
        """Whether a step was made since this began, or went on from a state."""
        return self.meter.num_calls != self._calls_at_start

    def state_dict(self) -> dict[str, Any]:
        """What later rows, events and alarms depend on. Waits for the device."""
        self.catch_up()
        settings = asdict(self.meter.settings)
        if not self.failed:
            try:
                return {"failed": False, "settings": settings, **self._state()}
            except Exception:
                if self.strict:
                    raise
                logger.exception("thermoclaw: there is no state to go on from, only the record; training goes on")
        return {"failed": True, "settings": settings}

    def _state(self) -> dict[str, Any]:
        return {
            "meter": self.meter.state_dict(),
            "events": text(self.events),
            "looks": self._looks.state_dict(),
            "has_cadence_event": self._has_cadence_event,
            "losses": self._losses.pending,
            "last_loss_step": self._losses.last_step,
            **self.surroundings.state_dict(),
            "is_polled": self.hooks is None,
            "run_id": self.run_id,
        }

    def load_state_dict(self, state: Any) -> None:
        """Go on from `state_dict`, wholly or not at all.

        Raises:
            StateError: it does not fit, or is damaged.
        """
        if take(state, "failed", bool):
            raise StateError(
                "measuring had failed before this state was saved, so there is nothing to go on from: "
                "observer.resume(record, step=...) continues the rows that were recorded"
            )
        self.meter.settings.check(take(state, "settings", dict))
        before = checkpoint.pack("Attachment", self.state_dict())
        try:
            anew = self._load(state)
        except Exception as error:
            self._load(before)
            if isinstance(error, StateError):
                raise StateError(f"the state cannot be loaded: {error}") from error
            raise StateError(f"the state is damaged ({type(error).__name__}: {error}): use another copy") from error
        if anew:
            names = ", ".join(anew[:3]) + (f" and {len(anew) - 3} more" if len(anew) > 3 else "")
            logger.warning("thermoclaw: the state knows nothing of silent rows in %s: their counts begin anew", names)

    def _load(self, state: Any) -> list[str]:
        anew = self.meter.load_state_dict(take(state, "meter", dict))
        self.events = untext(state, "events", list)
        if not all(isinstance(e, dict) and isinstance(e.get("step"), int) for e in self.events):
            raise StateError("its events lack their steps")
        self.alarms = _alarms_in(self.events)
        self._looks.load_state_dict(take(state, "looks", dict))
        self._has_cadence_event = take(state, "has_cadence_event", bool)
        self._losses.load(take(state, "losses", list), count(state, "last_loss_step"), self.meter.device)
        self.surroundings.load_state_dict(state)
        self._calls_at_start = self.meter.num_calls
        self._polling.restart()
        self._told_step = self.meter.due_step
        if take(state, "is_polled", bool) and self.hooks is not None:  # its hooks were found not to fire
            self.hooks.remove()
            self.hooks = None
        self.run_id = take(state, "run_id", str, type(None)) or self.run_id
        return anew

    # -- the record -------------------------------------------------------------------------------------------------

    def step_record(self, step: int) -> Record:
        """One measured step as a Record: of a single row, or of none where that row is gone."""
        return self.meter.intake.step_record(step, meta=self.meta(), events=tuple(self.events))

    def record(self, *, start: int | None = None, stop: int | None = None) -> Record:
        """What was handed on so far with start ≤ step < stop, as a Record."""
        return self.meter.intake.record(meta=self.meta(), events=tuple(self.events), start=start, stop=stop)

    def meta(self) -> dict[str, Any]:
        """What the run is."""
        return {
            **describe_run(self.meter, self._optimizer),
            **self.surroundings.meta(),
            "parameter_order": self._parameter_order,
            "last_loss_step": self._losses.last_step,
            "failed": self.failed,
            **({"run_id": self.run_id} if self.run_id is not None else {}),
        }

    def close(self) -> None:
        """Take the hooks off; what was recorded stays readable."""
        if not self.closed:
            self.catch_up()
            self.closed = True
            if self.hooks is not None:
                self.hooks.remove()
            self._tell_rows(closing=True)


def _alarms_in(events: Iterable[dict[str, Any]]) -> list[Finding]:
    return [Finding.from_json(event["finding"]) for event in events if event.get("kind") == "alarm"]
