"""Carries out remedies while a run goes on, for those who ask for it. Nobody gets a guard who does not make one."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import thermoclaw.clipping  # noqa: F401  the knob "clip"
from thermoclaw.attach import can_hook, unwrap
from thermoclaw.diagnosis.finding import CONFIDENCES, Finding
from thermoclaw.diagnosis.remedies import Applied, RemedyError
from thermoclaw.observer import Observer

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
    """

    step: int
    finding: Finding
    applied: Applied | None

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
        if trial and not can_hook(unwrap(observer.optimizer)):
            raise ValueError("trial=True needs an optimizer with step hooks, which this one has not")
        self.observer, self.scheduler = observer, scheduler
        self.model = observer.model if model is None else model
        self.at_least, self.cooldown, self.limit = at_least, cooldown, limit
        self.split, self.dry_run, self.trial, self.distributed = split, dry_run, trial, distributed
        self.acts: list[Act] = []
        self.refused: list[tuple[Finding, str]] = []  # remedies that did not fit, and why
        self.closed = False
        self._on_trial: Act | None = None
        self._handle: Any = None
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
        self._note(act, undo=False)
        if self.trial:
            self._begin_trial(act)

    def _note(self, act: Act, *, undo: bool) -> None:
        assert act.applied is not None
        change = act.applied.to_json()
        self.observer.note_event("remedy", finding=act.finding.code, change=change, undo=undo, by="Guard")

    # -- whether it helped --------------------------------------------------------------------------------------------

    def _begin_trial(self, act: Act) -> None:
        self._on_trial = act
        if self._handle is None:
            hook = torch.compiler.disable(self._watch)
            self._handle = unwrap(self.observer.optimizer).register_step_post_hook(hook)

    def _watch(self, *_: Any) -> None:
        """After each step while an act is on trial: look once, when the cool-down's rows are on the host."""
        act = self._on_trial
        if act is None or self.closed or self.observer.rows_on_host() < act.step + self.cooldown:
            return
        self._on_trial = None
        try:
            if self._is_worse(act):
                logger.warning("thermoclaw: Guard takes back %s, as the loss is higher since", act.finding.code)
                self._take_back(act)
        except Exception:
            self.closed = True
            logger.exception("thermoclaw: Guard failed and is off from here on; training goes on")

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

    # -- back ---------------------------------------------------------------------------------------------------------

    def undo(self) -> None:
        """Take back everything that was done, the last act first."""
        for act in reversed(self.acts):
            self._take_back(act)

    def _take_back(self, act: Act) -> None:
        if act.applied is None or act.applied.is_undone:
            return
        act.applied.undo()
        self._note(act, undo=True)

    def close(self) -> None:
        """Act no more; what was done stays until `undo`."""
        self.closed, self._on_trial = True, None
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
