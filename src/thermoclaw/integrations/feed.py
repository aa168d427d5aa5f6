"""Gives a Trainer's reporters (TensorBoard, W&B, …) the run's numbers, each under the step at which it was measured.

The Trainer's own log lines are left alone. Nothing here imports transformers.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

from thermoclaw.integrations.points import Points

logger = logging.getLogger("thermoclaw")

_INTEGRATIONS = "transformers.integrations"
_COUNTS_CALLS = ("DVCLiveCallback",)  # its steps are the calls that it gets, so it must get the Trainer's alone


class Feed:
    """Gives each point of the run to each of the Trainer's reporters.

    Args:
        points: of the run.
        trainer: yields the Trainer, or None.
    """

    def __init__(self, points: Points, trainer: Callable[[], Any]) -> None:
        self._points, self._trainer = points, trainer
        self._muted: set[str] = set()

    def push(self, args: Any, state: Any, control: Any, *, closing: bool = False, **kwargs: Any) -> None:
        """Give the reporters what is due; `closing` adds the last step. Never waits for the device."""
        carriers: list[Any] | None = None
        for step, values in self._points.due(closing=closing):
            carriers = reporters(self._trainer()) if carriers is None else carriers
            for reporter in carriers:
                self._give(reporter, values, step, args, state, control, **kwargs)

    def _give(self, reporter: Any, values: dict[str, float], step: int, *event: Any, **kwargs: Any) -> None:
        name = type(reporter).__name__
        if name in self._muted:
            return
        try:
            report(reporter, values, step, *event, **kwargs)
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
    """Give a reporter numbers under the step at which they were measured, as charts of their own where it has such.

    What is not known here gets them through its `on_log`, which may put "train/" before a name.
    """
    for attribute, give in _GIVERS.items():
        client = getattr(reporter, attribute, None)
        if client is not None:
            give(reporter, client, values, step)
            return
    then = copy.copy(state)
    then.global_step = step
    reporter.on_log(args, then, copy.copy(control), logs=dict(values), **kwargs)


def _tensorboard(_: Any, writer: Any, values: dict[str, float], step: int) -> None:
    for name, value in values.items():
        writer.add_scalar(name, value, step)


def _wandb(_: Any, wandb: Any, values: dict[str, float], step: int) -> None:
    if wandb.run is not None:
        wandb.log({**values, "train/global_step": step})  # the reporter made global_step the axis of every chart


def _trackio(_: Any, trackio: Any, values: dict[str, float], step: int) -> None:
    trackio.log({**values, "train/global_step": step})  # as the Trainer's own lines, which have no other step


def _swanlab(_: Any, swanlab: Any, values: dict[str, float], step: int) -> None:
    """Its `on_log` repeats train/global_step, of which SwanLab takes one a step."""
    swanlab.log(values, step=step)


def _clearml(reporter: Any, task: Any, values: dict[str, float], step: int) -> None:
    """Its `on_log` would draw everything into one plot, over the loss."""
    for name, value in values.items():
        title = f"{name}{getattr(reporter, 'log_suffix', '')}"
        task.get_logger().report_scalar(title=title, series="train", value=value, iteration=step)


# By the attribute in which a reporter keeps what it logs to.
_GIVERS: dict[str, Callable[[Any, Any, dict[str, float], int], None]] = {
    "tb_writer": _tensorboard,
    "_wandb": _wandb,
    "_trackio": _trackio,
    "_swanlab": _swanlab,
    "_clearml_task": _clearml,
}
