"""Gives a Trainer's reporters (TensorBoard, W&B, …) the run's numbers, each under the step at which it was measured.

Rows reach the host a few steps late and no step waits for them, so a point is given when its row is there, not when
the Trainer logs; the Trainer's own log lines are left alone. Nothing here imports transformers.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

from thermoclaw.integrations.scalars import PREFIX, rows_needed, scalars
from thermoclaw.observer import Observer

logger = logging.getLogger("thermoclaw")

_INTEGRATIONS = "transformers.integrations"
_COUNTS_CALLS = ("DVCLiveCallback",)  # its steps are the calls that it gets, so it must get the Trainer's alone


class Feed:
    """One point for each multiple of `every` that reached the host, and at the end one for the last step.

    Args:
        observer: of the run.
        trainer: yields the Trainer, or None.
        every: steps between points, and the window of a point.
        split: whether to include the entropy split.
        start: the step before the first one of this run.
    """

    def __init__(
        self, observer: Observer, trainer: Callable[[], Any], *, every: int, split: bool, start: int = 0
    ) -> None:
        self._observer, self._trainer, self._every, self._split = observer, trainer, every, split
        self._last = start
        self._muted: set[str] = set()

    def push(self, args: Any, state: Any, control: Any, *, closing: bool = False, **kwargs: Any) -> None:
        """Give the reporters what is due; `closing` adds the last step. Never waits for the device."""
        on_host = self._observer.rows_on_host()
        due = list(range((self._last // self._every + 1) * self._every, on_host + 1, self._every))
        if closing and on_host > self._last and on_host not in due:
            due.append(on_host)
        carriers = reporters(self._trainer()) if due else []
        for step in due:
            if carriers:
                self._give(carriers, step, args, state, control, **kwargs)
            self._last = step

    def _give(self, carriers: list[Any], step: int, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        record = self._observer.record_on_host(start=step - rows_needed(self._every) + 1).rows(stop=step + 1)
        values = scalars(record, steps=min(self._every, step - self._last), split=self._split)
        values[f"{PREFIX}alarms"] = float(sum(alarm.raised_step <= step for alarm in self._observer.alarms))
        for reporter in carriers:
            name = type(reporter).__name__
            if name in self._muted:
                continue
            try:
                report(reporter, values, step, args, state, control, **kwargs)
            except Exception:
                self._muted.add(name)
                logger.exception("thermoclaw: %s did not take the numbers; it gets none from here on", name)


def reporters(trainer: Any) -> list[Any]:
    """The callbacks that carry numbers elsewhere: those of transformers' integrations, and what inherits from them."""
    if trainer is None:
        return []
    found = []
    for callback in trainer.callback_handler.callbacks:
        bases = [base for base in type(callback).__mro__ if base.__module__.startswith(_INTEGRATIONS)]
        carries = any("on_log" in vars(base) for base in bases)
        if carries and not any(base.__name__ in _COUNTS_CALLS for base in bases):
            found.append(callback)
    return found


def report(
    reporter: Any, values: dict[str, float], step: int, args: Any, state: Any, control: Any, **kwargs: Any
) -> None:
    """Give a reporter numbers under the step at which they were measured.

    TensorBoard and W&B get them under their own names; any other reporter through its `on_log`, which puts "train/"
    before a name.
    """
    writer = getattr(reporter, "tb_writer", None)
    wandb = getattr(reporter, "_wandb", None)
    if writer is not None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
    elif wandb is not None and wandb.run is not None:
        wandb.log({**values, "train/global_step": step})  # the reporter made global_step the axis of every chart
    else:
        then = copy.copy(state)
        then.global_step = step
        reporter.on_log(args, then, copy.copy(control), logs=dict(values), **kwargs)
