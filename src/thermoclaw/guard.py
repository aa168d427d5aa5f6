"""Carries out remedies while a run goes on, for those who ask for it. Nobody gets a guard who does not make one."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import thermoclaw.clipping  # noqa: F401  the knob "clip"
from thermoclaw import checkpoint
from thermoclaw.attach import can_hook, unwrap
from thermoclaw.diagnosis.finding import CONFIDENCES, Finding
from thermoclaw.diagnosis.journal import Journal
from thermoclaw.diagnosis.remedies import Applied, Remedy, RemedyError
from thermoclaw.observer import Observer
from thermoclaw.rewind import Rewind
from thermoclaw.state import StateError, take, text, untext

logger = logging.getLogger("thermoclaw")

TRIAL_ROWS = 20  # losses before and after an act that decide whether it stays
TRIAL_SIGMAS = 4.0  # standard errors by which it must have become worse


@dataclass
class Act:
    """One thing that a guard did, or in a dry run would have done.

    Attributes:
        step: the last step made before the change.
        finding: why.
        applied: the change; None in a dry run.
        rewound_to: the step whose weights were put back, with `rollback`.
    """

    step: int
    finding: Finding
    applied: Applied | None
    rewound_to: int | None = None

    @property
    def is_undone(self) -> bool:
        """Whether the change was taken back."""
        return self.applied is not None and self.applied.is_undone


class Guard:
    """Applies the remedy of a finding when its alarm comes, says so, and can take it back.

    It acts at most once in `cooldown` steps and `limit` times in all. Each act is a warning in the log, an entry in
    `acts` and an event of the run, so that the report tells of it and the rules judge anew what comes after it. A run
    in which no alarm comes is the same to the bit as one without a guard. An error inside is logged and ends the
    guard, never the training.

    Args:
        observer: watches the run.
        scheduler: the learning-rate schedule, or several: remedies of the rate scale its base rates.
        model: for `split`; by default the observer's.
        at_least: the confidence that a finding must have, "HIGH", "MEDIUM" or "LOW"; there are no alarms of "LOW".
        cooldown: steps after an act in which alarms are passed over.
        limit: the largest number of acts.
        split: change the parameters of the finding's layers only, where the remedy names them.
        dry_run: say what would be done, and change nothing.
        rollback: keep two copies of weights and optimizer state, `cooldown` steps apart, and when acting put back the
            one from before the finding began: a smaller rate does not repair what a larger one has thrown away. The
            data go on where they are. It takes twice the memory of both; only the knob "beta2" does without. By
            default wherever the optimizer has step hooks; False saves the memory, and helps fewer runs.
        trial: take an act back where the losses `cooldown` steps later are worse than before it by more than noise.
        distributed: act although several processes train together. Findings come from the measured rows, which are the
            same in every process, and from the losses given to `observer.step`: give every process the same loss (an
            averaged one), or none, or processes may act differently and drift apart.

    Raises:
        TypeError, ValueError: an argument is not what it should be.
        RuntimeError: several processes train together, and `distributed` was not given.

    Example:
        >>> import torch, thermoclaw
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> guard = thermoclaw.Guard(thermoclaw.Observer(model, optimizer))
        >>> guard.acts
        []
    """

    def __init__(
        self,
        observer: Observer,
        *,
        scheduler: Any = None,
        model: Any = None,
        at_least: str = "HIGH",
        cooldown: int = 100,
        limit: int = 3,
        split: bool = False,
        dry_run: bool = False,
        rollback: bool | None = None,
        trial: bool = False,
        distributed: bool = False,
    ) -> None:
        if not isinstance(observer, Observer):
            raise TypeError(
                f"Guard takes an Observer, not {type(observer).__name__}: Guard(Observer(model, optimizer))"
            )
        if at_least not in CONFIDENCES:
            raise ValueError(f"at_least={at_least!r}: choose one of {', '.join(CONFIDENCES)}")
        for name, value in (("cooldown", cooldown), ("limit", limit)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r}: give a whole number of at least 1")
        if _num_processes() > 1 and not distributed:
            raise RuntimeError(_ALONE)
        inner = unwrap(observer.optimizer)
        rollback = can_hook(inner) if rollback is None else rollback
        if (trial or rollback) and not can_hook(inner):
            raise ValueError("trial and rollback need an optimizer with step hooks, which this one has not")
        self.observer, self.scheduler = observer, scheduler
        self.model = observer.model if model is None else model
        self.at_least, self.cooldown, self.limit = at_least, cooldown, limit
        self.split, self.dry_run, self.distributed = split, dry_run, distributed
        self.rollback, self.trial = rollback, trial
        self.acts: list[Act] = []
        self.refused: list[tuple[Finding, str]] = []  # remedies that did not fit, and why
        self.closed = False
        self._on_trial: Act | None = None
        self._rewind: Rewind | None = None
        if rollback:
            self._rewind = Rewind(self.model, inner, interval=cooldown, now=lambda: observer.global_step)
        self._handle: Any = None
        if trial or rollback:
            self._handle = inner.register_step_post_hook(torch.compiler.disable(self._watch))
        observer.on_alarm(self._hear)
        logger.warning(
            "thermoclaw: Guard is on and %s the optimizer at alarms of %s confidence%s, at most %d times%s",
            "would change" if dry_run else "changes",
            at_least,
            "" if at_least == "HIGH" else " or more",
            limit,
            " (dry run)" if dry_run else "",
        )

    # -- at an alarm --------------------------------------------------------------------------------------------------

    def _hear(self, finding: Finding) -> None:
        """Called by the observer with each new alarm."""
        if self.closed or finding.remedy is None:
            return
        if CONFIDENCES.index(finding.confidence) > CONFIDENCES.index(self.at_least):
            return
        try:
            self._act(finding)
        except RemedyError as error:
            self.refused.append((finding, str(error)))
            logger.warning("thermoclaw: Guard left %s as it is: %s", finding.code, error)
        except Exception:
            self.closed = True
            logger.exception("thermoclaw: Guard failed and is off from here on; training goes on")

    def _act(self, finding: Finding) -> None:
        step = self.observer.global_step
        if len(self.acts) >= self.limit or (self.acts and step < self.acts[-1].step + self.cooldown):
            logger.info("thermoclaw: Guard passes over %s at step %d", finding.code, step)
            return
        if _num_processes() > 1 and not self.distributed:
            raise RemedyError(_ALONE)
        assert finding.remedy is not None
        if self.dry_run:
            what = finding.remedy.describe()
            logger.warning("thermoclaw: Guard would act at step %d: %s, because of %s", step, what, _why(finding))
            self.acts.append(Act(step, finding, None))
            return
        splits = self.split and bool(finding.remedy.params)
        why = f"{_why(finding)} (Guard, step {step})"
        optimizer, scheduler = self.observer.optimizer, self.scheduler
        applied = finding.remedy.apply(optimizer, scheduler, model=self.model, split=splits, reason=why)
        act = Act(step, finding, applied)
        self.acts.append(act)
        if self._rewind is not None and finding.remedy.knob != "beta2":  # that one rescales the state as it is
            act.rewound_to = self._rewind.back(finding.first_step)
            if act.rewound_to is not None:
                logger.warning("thermoclaw: Guard put the weights and optimizer state of step %d back", act.rewound_to)
        self._note(act, undo=False)
        if self.trial:
            self._on_trial = act

    def _note(self, act: Act, *, undo: bool) -> None:
        assert act.applied is not None
        change = act.applied.to_json()
        if act.rewound_to is not None and not undo:
            change["rewound_to"] = act.rewound_to
            change["text"] += f", with the weights of step {act.rewound_to}"
        self.observer.note_event("remedy", finding=act.finding.code, change=change, undo=undo, by="Guard")

    # -- whether it helped --------------------------------------------------------------------------------------------

    def _watch(self, *_: Any) -> None:
        """After each step: copy what is there, judge an act whose cool-down's rows are on the host."""
        if self.closed:
            return
        try:
            if self._rewind is not None:
                self._rewind.keep_if_due()
            act = self._on_trial
            if act is not None and self.observer.rows_on_host() >= act.step + self.cooldown:
                self._on_trial = None
                self._judge(act)
        except Exception:
            self.closed = True
            logger.exception("thermoclaw: Guard failed and is off from here on; training goes on")

    def _judge(self, act: Act) -> None:
        if self._is_worse(act):
            logger.warning("thermoclaw: Guard takes back %s, as the loss is higher since", act.finding.code)
            self._take_back(act)

    def _is_worse(self, act: Act) -> bool:
        """Whether the losses at the end of the cool-down lie above those before the act, beyond noise."""
        record = self.observer.record_on_host(start=max(act.step - TRIAL_ROWS, 0))
        before = record.loss[record.steps <= act.step][-TRIAL_ROWS:]
        after = record.loss[record.steps > act.step][-TRIAL_ROWS:]
        if not np.isfinite(before).all() or len(before) < 2 or len(after) < 2:
            return False
        if not np.isfinite(after).all():
            return True
        error = math.sqrt(before.var(ddof=1) / len(before) + after.var(ddof=1) / len(after))
        return bool(after.mean() - before.mean() > TRIAL_SIGMAS * error)

    # -- in a checkpoint ----------------------------------------------------------------------------------------------

    def state_dict(self, *, copies: bool = True) -> dict[str, Any]:
        """What the guard did, and what it would need to take it back; the observer has a state of its own.

        Args:
            copies: with `rollback`, the copies of weights and optimizer state too, which are twice as large as both.
                Without them, and always for sharded models, copies begin anew with the first step after the stop.
        """
        acts = [
            {
                "step": act.step,
                "finding": act.finding.to_json(),
                "change": None if act.applied is None else act.applied.to_json(),
                "is_undone": act.is_undone,
                "rewound_to": act.rewound_to,
            }
            for act in self.acts
        ]
        on_trial = next((i for i, act in enumerate(self.acts) if act is self._on_trial), None)
        state = {
            "acts": text(acts),
            "refused": text([[finding.to_json(), why] for finding, why in self.refused]),
            "closed": self.closed,
            "on_trial": on_trial,
            "copies": self._rewind.state_dict() if copies and self._rewind is not None else None,
        }
        return checkpoint.pack("Guard", state)

    def load_state_dict(self, state: Any) -> None:
        """Go on from `state_dict`, right after `Guard(...)`.

        Changed values come with the states of the optimizer and the schedule. With `split=True`, load this before
        those, and before the observer's: parameter groups are split again as they were.

        Raises:
            RuntimeError: the guard has acted already.
            StateError: (a ValueError) it is damaged, from a newer version, or does not fit model and optimizer.
        """
        if self.acts:
            raise RuntimeError("load_state_dict() comes before the first act: call it right after Guard(...)")
        whole = checkpoint.unpack("Guard", state)
        acts: list[Act] = []
        try:
            on_trial = take(whole, "on_trial", int, type(None))
            refused = [(Finding.from_json(found), str(why)) for found, why in untext(whole, "refused", list)]
            closed = take(whole, "closed", bool)
            for entry in untext(whole, "acts", list):
                acts.append(self._act_again(entry))
            trial = None if on_trial is None else acts[on_trial]
            if self._rewind is not None:
                self._rewind.load_state_dict(take(whole, "copies", list, type(None)))
        except Exception as error:
            for act in reversed(acts):
                if act.applied is not None:
                    act.applied.forget()
            raise StateError(f"the guard's state cannot be loaded: {error}") from error
        self.acts, self.refused, self._on_trial = acts, refused, trial
        if closed:
            self.close()

    def _act_again(self, entry: Any) -> Act:
        finding, applied = Finding.from_json(entry["finding"]), None
        change = entry["change"]
        if change is not None:
            remedy = Remedy.from_json(change)
            if entry["is_undone"]:
                applied = Applied(remedy, change["changes"], Journal(), change.get("split", ()))
                applied.undo()
            else:
                applied = remedy.again(change, self.observer.optimizer, self.scheduler, model=self.model)
        return Act(int(entry["step"]), finding, applied, entry["rewound_to"])

    # -- back ---------------------------------------------------------------------------------------------------------

    def undo(self) -> None:
        """Turn every knob back, the last one first. Weights stay as they are."""
        for act in reversed(self.acts):
            self._take_back(act)

    def _take_back(self, act: Act) -> None:
        if act.applied is None or act.applied.is_undone:
            return
        act.applied.undo()
        self._note(act, undo=True)

    def close(self) -> None:
        """Act no more, and drop the copies; what was done stays until `undo`."""
        self.closed, self._on_trial, self._rewind = True, None, None
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Guard({len(self.acts)} of {self.limit} acts, {'off' if self.closed else 'on'})"


_ALONE = (
    "several processes train together, and a guard that acts in some of them only would let them drift apart: give "
    "every process the same loss, and Guard(..., distributed=True)"
)


def _why(finding: Finding) -> str:
    return f"{finding.code} [{finding.confidence}], {finding.title}"


def _num_processes() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
