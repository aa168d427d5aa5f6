"""One measuring attachment per optimizer, shared by every observer and detector that listens to it.

It guards the hot path (an unexpected error is reported once and turns measuring off; training goes on), gives rows
their losses, keeps the events of the run, and asks the rules for alarms at fixed steps.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor, nn

from thermoclaw import checkpoint
from thermoclaw.attach import Hooks, can_hook
from thermoclaw.company import Company
from thermoclaw.diagnosis.engine import check_interval, live_findings
from thermoclaw.diagnosis.finding import Finding
from thermoclaw.idle import Idle
from thermoclaw.losses import Loss, Losses, as_scalar
from thermoclaw.measure.meter import Meter
from thermoclaw.measure.settings import Settings
from thermoclaw.measure.sharded import PeerFailed
from thermoclaw.partition import Partition
from thermoclaw.record import Record
from thermoclaw.renewal import Renewal
from thermoclaw.run_meta import describe_run
from thermoclaw.state import StateError, count, counts, take, text, untext
from thermoclaw.testimony import Witnesses

logger = logging.getLogger("thermoclaw")

STRANGE_MOVES = 3  # of the weights, one after the other, between two steps of the optimizer

_attached: weakref.WeakKeyDictionary[Any, weakref.WeakSet[Attachment]] = weakref.WeakKeyDictionary()


def attached_to(optimizer: Any) -> list[Attachment]:
    """The live attachments of an optimizer, the first made first."""
    found = [a for a in _attached.get(optimizer, ()) if not a.closed]
    return sorted(found, key=lambda a: a.number)


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


def _never_stops(door: Callable[..., None]) -> Callable[..., None]:
    """For what hooks and users call: an error of ours goes no further than to the log, unless `strict` asks for it."""

    @functools.wraps(door)
    def guarded(self: Attachment, *args: Any, **kwargs: Any) -> None:
        try:
            door(self, *args, **kwargs)
        except Exception as error:
            if self.strict:
                raise
            self.fail(error)

    return guarded


def _others(mine: Any) -> list[Attachment]:
    """One live attachment of every other optimizer that is observed."""
    found = (attached_to(optimizer) for optimizer in list(_attached) if optimizer is not mine)
    return [attachments[0] for attachments in found if attachments]


def _is_anothers(p: Tensor, mine: Any) -> bool:
    """Whether a parameter belongs to another optimizer that is observed: of a critic, say, that steps more rarely."""
    others = [optimizer for optimizer in _attached if optimizer is not mine]
    return any(p is held for optimizer in others for group in optimizer.param_groups for held in group["params"])


class Attachment:
    """See the module's docstring."""

    _count = 0

    def __init__(
        self, model: Any, optimizer: Any, settings: Settings, *, partition: Partition | None = None, strict: bool
    ) -> None:
        Attachment._count += 1
        self.number = Attachment._count
        self.strict, self.closed, self.failed = strict, False, False
        self._has_cadence_event = False
        self._is_salvaged = False
        self._is_limping = False  # failed, and other processes still count on this one
        self._num_pauses = 0  # that have begun and not ended
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
        self._next_check = check_interval(0)
        self._losses = Losses()
        self._renewal = Renewal()
        self.company = Company()
        self._warned: set[str] = set()
        self._idle = Idle(self.meter.layout.unoptimized, lambda p: _is_anothers(p, optimizer))
        models = model if isinstance(model, list) else [model]
        self._parameter_order = [name for part in models for name, _ in part.named_parameters()]
        self._start_versions = 0  # looked up at the first poll
        self._polls = 0
        self._polled: set[int] = set()
        self._calls_seen = self._calls_at_start = 0
        self._idle_since, self._idle_versions, self._strange_moves = 0, -1, 0
        self.hooks: Hooks | None = Hooks(optimizer, self) if can_hook(optimizer) else None
        if self.hooks is None:
            logger.warning(
                "thermoclaw: %s has no step hooks; gradients are read at observer.step(), so call it after "
                "optimizer.step() and before zero_grad()",
                type(optimizer).__name__,
            )
        _attached.setdefault(optimizer, weakref.WeakSet()).add(self)

    def model_is(self, model: Any) -> bool:
        """Whether this attachment watches that model."""
        return self.model is model or (isinstance(model, list) and self.model == model)

    # -- the hot path -----------------------------------------------------------------------------------------------

    def _guard(self, work: Callable[[], None]) -> None:
        if self.closed or self.failed:
            return
        try:
            work()
        except Exception as error:
            if self.strict:
                raise
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Measuring is off from here on; said once. Called where the error is being handled."""
        if self.failed:
            return
        self.failed = True  # the hooks stay until later: torch is going through them just now
        self._is_limping = self.meter.has_peers and not isinstance(error, PeerFailed)
        logger.exception(
            "thermoclaw: measuring failed and is off from here on; training goes on. What was recorded up to "
            "now can still be diagnosed. Please report this traceback."
        )

    @_never_stops
    def before_step(self, *, closure: bool) -> None:
        """Hook: the optimizer is about to step, or to step its next group."""
        if self._num_pauses:
            return
        begins = self.meter.begins_step()
        if not self._is_limping:
            self._guard(lambda: self._timed_before(closure=closure, begins=begins))
        elif begins:
            self._limp(self.meter.limp_before)

    def _timed_before(self, *, closure: bool, begins: bool) -> None:
        with self.meter.own_work(lap=begins):
            if begins and not closure:
                some = [unit.params[0] for unit in self.meter.layout.units[: Renewal.PARAMS]]
                self._renewal.look(some)
                self.company.begin(some, _others(self._optimizer) if len(_attached) > 1 else ())
            self.meter.before_step(closure=closure, begins=begins)

    @_never_stops
    def after_step(self) -> None:
        """Hook: the optimizer has stepped, or has stepped one of its groups."""
        if self._num_pauses or not self.meter.ends_step():
            return
        self._guard(self._timed_after)
        if self._is_limping:
            self._limp(self.meter.limp_after)

    def _timed_after(self) -> None:
        with self.meter.own_work():
            self.meter.after_step()
            self.company.end()
        if self.meter.is_capturing():  # from here on the hooks may be silent
            self._polled, self._calls_seen = set(), self.meter.num_calls

    def _limp(self, work: Callable[[], None]) -> None:
        """Keep other processes from waiting for this one, whose measuring failed; give up when that fails too."""
        try:
            work()
        except Exception:
            self._is_limping = False

    @_never_stops
    def poll(self, caller: object) -> None:
        """Measure at a listener's step() where hooks cannot fire; the first to come round again opens a new step."""
        if self._num_pauses or self.meter.is_capturing():
            return
        if self.hooks is None:
            if self._polled and id(caller) not in self._polled:
                self._polled.add(id(caller))
                return
            self._polled = {id(caller)}
            self.before_step(closure=False)
            self.after_step()
        elif self.meter.is_captured:
            self._poll_replay(caller)
        elif not self.has_stepped:
            self._polls += 1
            if self._polls == 1:  # and not before: weights may be loaded after the observer was made
                self._start_versions = self._version_sum()
            elif self._version_sum() != self._start_versions:
                self.hooks.remove()
                self.hooks = None
                logger.warning(
                    "thermoclaw: the step hooks of %s do not fire although its parameters move; gradients are read at "
                    "observer.step() from here on, so call it before zero_grad()",
                    type(self._optimizer).__name__,
                )
                self.poll(caller)
        else:
            self._notice_strangers()

    def _notice_strangers(self) -> None:
        """Say once that the weights move although the observed optimizer does not step: another one was made."""
        if self.meter.num_calls != self._idle_since:
            self._idle_since, self._idle_versions, self._strange_moves = self.meter.num_calls, -1, 0
            return
        versions = self._version_sum()
        self._strange_moves += self._idle_versions not in (-1, versions)
        self._idle_versions = versions
        if self._strange_moves >= STRANGE_MOVES:
            last = self.meter.intake.start_step + self.meter.num_calls
            self.warn_once(
                "stranger",
                f"the weights move, but the {type(self._optimizer).__name__} that is observed makes no steps since "
                f"step {last}. If the optimizer was made anew, observe the new one: Observer(model, optimizer)",
            )

    def _poll_replay(self, caller: object) -> None:
        """After a capture, hooks are silent: the first listener to come round again tells of a new replay."""
        if self.meter.num_calls != self._calls_seen:  # hooks did fire: a step outside the graph
            self._polled = {id(caller)}
        elif not self._polled or id(caller) in self._polled:
            self._polled = {id(caller)}
            self._guard(self.meter.note_replay)
        else:
            self._polled.add(id(caller))
        self._calls_seen = self.meter.num_calls

    def _version_sum(self) -> int:
        return sum(p._version for unit in self.meter.layout.units for p in unit.params)

    @_never_stops
    def give_loss(self, loss: Any, *, fresh: bool) -> None:
        """Take a loss for the step just made; between two optimizer steps, losses are averaged."""
        if self._num_pauses:
            return
        checked = self._check_loss(loss)
        if checked is None or self.meter.is_capturing():
            return
        if fresh:
            self._guard(lambda: self.meter.set_loss(self._losses.of_step(checked)))
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

    def warn_once(self, key: str, message: str) -> None:
        """Log a warning the first time it comes up."""
        if key not in self._warned:
            self._warned.add(key)
            logger.warning("thermoclaw: %s", message)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Neither measure nor count what happens inside."""
        self._num_pauses += 1
        try:
            yield
        finally:
            self._num_pauses -= 1
            if not self._num_pauses:
                self._polls = 0
                self._guard(self.meter.interrupt)

    # -- rows to findings -------------------------------------------------------------------------------------------

    @_never_stops
    def advance(self, *, settled: bool = False) -> None:
        """Hand on rows that are due and let the rules look at fixed steps; `settled`: the newest row has its loss."""
        if self.failed and self.hooks is not None and not self._is_limping:
            self.hooks.remove()
        if settled:
            self.meter.transit.settle()
        with self.meter.own_work():
            self._guard(self._advance)
        if (self.on_rows or self.keepers) and not self.failed and not self.meter.is_capturing():
            last = self.meter.due_step
            if last > self._told_step:
                self._told_step = last
                self._tell_rows(closing=False)

    def _tell_rows(self, *, closing: bool) -> None:
        for tell in (*self.on_rows, *self.keepers):
            self._tell(tell, closing, given_to="on_rows")

    def _advance(self) -> None:
        if self.meter.is_capturing():
            return
        self.meter.ingest()
        if self.meter.num_calls >= 2:
            self._idle.look(self.meter.layout.unoptimized)
        if self.meter.cadence.decision is not None and not self._has_cadence_event:
            self._has_cadence_event = True
            self.events.append({"step": self.meter.due_step, **self.meter.cadence.decision})
        last = self.meter.due_step
        if last < self._next_check:
            return
        self._next_check = last + check_interval(last)
        for finding in live_findings(self.record(stop=last + 1), known=self.alarms):
            self.alarms.append(finding)
            self.events.append({"kind": "alarm", "step": finding.raised_step, "finding": finding.to_json()})
            for tell in self.on_alarm:
                self._tell(tell, finding)

    def _tell(self, tell: Callable[[Any], None], what: Any, *, given_to: str = "on_alarm") -> None:
        """Call a user's callback; its errors are its own, and measuring goes on."""
        try:
            tell(what)
        except Exception:
            if self.strict:
                raise
            logger.exception("thermoclaw: a callback given to %s failed; measuring goes on", given_to)

    def catch_up(self) -> None:
        """Hand on every row, waiting for the device; after a failure, those that were complete."""
        if not self.failed:
            self._guard(lambda: self.meter.ingest(everything=True))
        elif not self._is_salvaged:
            self._is_salvaged = True
            with contextlib.suppress(Exception):  # the failure was reported when it came
                self.meter.ingest(everything=True)

    def resume(self, record: Record | None, *, step: int, epoch: int) -> bool:
        """Continue a run after `step` steps; whether the earlier rows could be put before the new ones."""
        self.meter.continue_from(step, epoch=epoch)
        self._next_check = step + check_interval(0)
        mine = [(layer.name, layer.num_params) for layer in self.meter.layout.layers]
        fits = record is not None and mine == [(layer.name, layer.num_params) for layer in record.layers]
        if record is not None and fits:
            earlier = record.rows(stop=step + 1)
            self.meter.intake.history.append(earlier.steps.astype(np.int64), earlier.layer_values, earlier.run_values)
            self.events.extend(earlier.events)
            raised = [event["finding"] for event in earlier.events if event.get("kind") == "alarm"]
            self.alarms.extend(Finding.from_json(finding) for finding in raised)
            self.run_id = record.meta.get("run_id", self.run_id)
            self._idle.edges = dict(record.meta.get("outside_edges") or {})
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
            "next_check": self._next_check,
            "has_cadence_event": self._has_cadence_event,
            "losses": self._losses.pending,
            "missing": self._idle.told,
            "outside_edges": self._idle.edges,
            "gradients_renewed": self._renewal.state,
            "in_company": [self.company.reached, self.company.steps],
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
        raised = [event["finding"] for event in self.events if event.get("kind") == "alarm"]
        self.alarms = [Finding.from_json(finding) for finding in raised]
        self._next_check, self._has_cadence_event = count(state, "next_check"), take(state, "has_cadence_event", bool)
        self._renewal = Renewal(*counts(state, "gradients_renewed"))
        self.company = Company(*counts(state, "in_company"))
        self._losses.load(take(state, "losses", list), self.meter.device)
        self._idle.load(take(state, "missing", dict), take(state, "outside_edges", dict))
        self._calls_at_start, self._polls, self._polled = self.meter.num_calls, 0, set()
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
            "unoptimized": self._idle.names,
            "outside_edges": self._idle.edges,
            "gradients_are_new": self._renewal.told,
            "is_game": self.company.told,
            "parameter_order": self._parameter_order,
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
