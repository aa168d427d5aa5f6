"""Accelerate: one line after `prepare`, and a loop of one's own is measured, watched, logged and diagnosed.

Accelerate has no callbacks, so two methods of that one accelerator are wrapped while it trains: `backward`, which sees
every loss and comes before every step, and `end_training`, before which the last numbers must have been logged. The
optimizer is observed by its own step hooks. `save_state` and `load_state` carry the observer's state by their own
hooks, in a file of its own: a checkpoint with it is read without it, and the other way round.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from thermoclaw.arguments import check_at_least, check_pair
from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.report import Report
from thermoclaw.integrations.accelerator import ACCELERATE, Tap, Trackers, bare, check_supported, measures, say_above
from thermoclaw.integrations.checkpoint_file import read_state, write_state
from thermoclaw.integrations.never_stops import never_stops
from thermoclaw.integrations.watch import Watch
from thermoclaw.observer import Observer
from thermoclaw.state import StateError

logger = logging.getLogger("thermoclaw")

_watched: weakref.WeakKeyDictionary[Any, list[weakref.ref[Observed]]] = weakref.WeakKeyDictionary()


def observe(
    accelerator: Any,
    model: nn.Module,
    optimizer: Any,
    *,
    log_every: int = 10,
    name: str = "",
    output_dir: str | Path | None = None,
    enable_entropy_split: bool = True,
    plot_on_end: bool = True,
    mode: str = "sketch",
    every: int = 1,
    run_dir: str | Path | None = None,
    quiet: bool = False,
    strict: bool = False,
) -> Observed:
    """Watch a loop that trains with an `Accelerator`; nothing else has to be called.

    Args:
        accelerator: of the loop.
        model: the model, before or after `accelerator.prepare`.
        optimizer: its optimizer, before or after `accelerator.prepare`.
        log_every: optimizer steps between two points in the trackers and the CSV files. Every step is measured.
        name: for a loop with several optimizers: it is in the names of numbers, files and alarms.
        output_dir: folder for the results; by default the accelerator's `project_dir`, and none where it has none.
        enable_entropy_split: whether to log, tabulate and draw the entropy split.
        plot_on_end: whether to draw the pictures at the end (needs the extra `viz`).
        mode: "sketch" or "exact", as for `Observer`.
        every: keep a row in so many steps, as for `Observer`.
        run_dir: directory that keeps the record on disk while training, as for `Observer`.
        quiet: print neither alarms nor the report.
        strict: raise errors instead of logging them once and switching off.

    Returns:
        What is known of the run, on every process; its `observer` is None on those that do not measure.

    Raises:
        TypeError, ValueError: an argument is not what it should be, or the model is sharded in a way that is not
            measured; the message says which are.

    Example:
        >>> import torch
        >>> from accelerate import Accelerator
        >>> from thermoclaw.integrations.accelerate import observe
        >>> accelerator = Accelerator(cpu=True)
        >>> model = torch.nn.Linear(4, 2)
        >>> model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
        >>> watched = observe(accelerator, model, optimizer, quiet=True)  # the one line
        >>> for _ in range(3):
        ...     loss = model(torch.ones(8, 4, device=accelerator.device)).square().mean()
        ...     accelerator.backward(loss)
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> accelerator.end_training()
        >>> watched.report.healthy, len(watched.observer.record())
        (True, 3)
    """
    check_at_least("log_every", log_every, 1)
    if not isinstance(accelerator, ACCELERATE.Accelerator):
        raise TypeError(
            f"the first argument is the Accelerator, not {type(accelerator).__name__}: "
            "observe(accelerator, model, optimizer)"
        )
    check_pair(model, optimizer)
    check_supported(accelerator)
    folder = output_dir if output_dir is not None else accelerator.project_dir
    observed = Observed(
        accelerator,
        model,
        functools.partial(_make, model, optimizer, mode=mode, every=every, run_dir=run_dir, strict=strict),
        name=name,
        every=log_every,
        split=enable_entropy_split,
        plots=plot_on_end,
        folder=Path(folder) if folder is not None else None,
        quiet=quiet,
        strict=strict,
    )
    if isinstance(optimizer, ACCELERATE.optimizer.AcceleratedOptimizer):
        try:
            observed.attach()
        except Exception:
            observed.detach()
            raise
    return observed


def _make(model: nn.Module, optimizer: Any, **settings: Any) -> Observer:
    return Observer(bare(model), optimizer, **settings)


class Observed:
    """A loop that `observe` watches.

    Attributes:
        report: the `Report`, once `accelerator.end_training` or `finish` was called; None before and elsewhere.
    """

    def __init__(
        self,
        accelerator: Any,
        model: Any,
        make: Callable[[], Observer],
        *,
        name: str,
        every: int,
        split: bool,
        plots: bool,
        folder: Path | None,
        quiet: bool,
        strict: bool,
    ) -> None:
        self.strict, self.off = strict, False
        self.report: Report | None = None
        self._accelerator, self._model, self._make, self._name = accelerator, model, make, name
        self._every, self._split, self._plots, self._folder, self._quiet = every, split, plots, folder, quiet
        self._watch: Watch | None = None
        self._state: Any = None  # of a checkpoint, until it can be loaded
        self._loss: Tensor | None = None  # of the last backward, until the step after it is known
        self._synced = self._is_explicit = self._is_paused = self._is_finished = False
        self._trackers = Trackers(accelerator)
        mine = weakref.ref(self)
        _watched.setdefault(accelerator, []).append(mine)
        self._undo: list[Callable[[], None]] = [
            Tap(accelerator, "backward", before=self._before_backward, after=self._after_backward).remove,
            Tap(accelerator, "end_training", before=self.finish).remove,
            accelerator.register_save_state_pre_hook(self._save).remove,
            accelerator.register_load_state_pre_hook(self._load).remove,
        ]
        rescue = functools.partial(_rescue, mine)
        atexit.register(rescue)
        self._undo.append(functools.partial(atexit.unregister, rescue))

    # -- what a user reads and calls ----------------------------------------------------------------------------------

    @property
    def observer(self) -> Observer | None:
        """The `Observer`; None before the objects are prepared, and on processes that do not measure."""
        return self._watch.observer if self._watch is not None else None

    @property
    def alarms(self) -> list[Finding]:
        """Findings raised while training, the oldest first."""
        return self._watch.observer.alarms if self._watch is not None else []

    @never_stops
    def step(self, loss: float | Tensor | None = None) -> None:
        """Give a loss oneself, after `optimizer.step()`: from then on those of `accelerator.backward` are not taken."""
        self._is_explicit = True
        if self._watch is not None:
            self._watch.observer.step(loss=loss)
            self._log()

    @never_stops
    def epoch_end(self, val_loss: float | None = None, val_acc: float | None = None) -> None:
        """Close an epoch, with its validation figures if there are any: the rule for overfitting reads them."""
        self._settle()
        if self._watch is not None:
            self._watch.close_epoch(val_loss=val_loss, val_acc=val_acc)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Steps made inside are neither measured nor numbered: see `Observer.paused`."""
        self._settle()
        self._is_paused = True
        try:
            with self._watch.observer.paused() if self._watch is not None else contextlib.nullcontext():
                yield
        finally:
            self._is_paused = False

    @never_stops
    def finish(self) -> None:
        """Log the last points, detach, diagnose, print and write. `accelerator.end_training` calls it."""
        if self._is_finished:
            return
        self._is_finished = True
        self._settle()
        if self._watch is not None:
            self._log(closing=True)
            self._close()
            main = self._accelerator.is_main_process
            folder = self._folder if main else None
            written = self._watch.write(self._watch.observer.record(), folder, plots=self._plots)
            self.report = self._watch.report
            self._say(f"\n{self.report}")
            if written:
                self._say(f"\nThermoclaw wrote {', '.join(path.name for path in written)} to {written[0].parent}")
        self._close()

    def detach(self) -> None:
        """Take everything off the accelerator and the optimizer, but an observer that other processes wait for."""
        while self._undo:
            self._undo.pop()()
        if self._watch is not None and not self._watch.observer.has_peers:
            self._watch.observer.close()

    def _close(self) -> None:
        """Take everything off, on every process at the same step; what was recorded stays readable."""
        self.detach()
        if self._watch is not None:
            self._watch.observer.close()

    # -- while it trains ----------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Make the observer, once the objects are prepared."""
        if not measures(self._accelerator, self._model):
            return
        self._watch = Watch(self._make(), name=self._name, every=self._every, split=self._split)
        self._watch.observer.on_alarm(self._hear)

    @never_stops
    def _before_backward(self) -> None:
        if self._is_finished:
            return
        if self._watch is None:
            self.attach()
        self._settle()
        if self._state is not None and self._watch is not None:
            self._go_on(self._watch)

    @never_stops
    def _after_backward(self, loss: Any = None, *_: Any, **__: Any) -> None:
        if not self._is_paused and isinstance(loss, Tensor):
            self._loss = loss.detach().clone()
            self._synced = self._accelerator.sync_gradients

    @never_stops
    def _settle(self) -> None:
        """Give the row of the step made since the last backward its loss. Never waits for the device."""
        if self._watch is None or self._is_explicit or self._is_paused:
            return
        loss, self._loss = self._loss, None
        optimizer = self._watch.observer.optimizer
        stepped = self._watch.has_stepped()
        if not stepped and self._synced and getattr(optimizer, "step_was_skipped", False) is True:
            loss = None  # refused by the loss scaler
        if loss is not None or stepped:
            self._watch.observer.step(loss=loss if self._is_alone() else None)
        self._log()

    def _is_alone(self) -> bool:
        """Of several optimizers nobody says whose loss it was, and those of adversaries mislead."""
        others = [other() for other in _watched[self._accelerator]]
        return not any(other is not None and other is not self and not other._is_finished for other in others)

    def _log(self, *, closing: bool = False) -> None:
        assert self._watch is not None
        if self._accelerator.is_main_process:
            for step, values in self._watch.points(closing=closing):
                self._trackers.give(values, step)

    def _hear(self, finding: Finding) -> None:
        if self._watch is not None:
            self._say(self._watch.say(finding))

    def _say(self, text: str) -> None:
        if not self._quiet and self._accelerator.is_main_process:
            say_above(text)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    @never_stops
    def _save(self, models: Any, weights: Any, output_dir: str) -> None:
        """Put the state beside the accelerator's. Waits for the device."""
        self._settle()
        accelerator = self._accelerator
        if self._watch is not None and (accelerator.is_main_process or accelerator.is_local_main_process):
            try:
                write_state(Path(output_dir), self._name, self._watch.state_dict())
            except OSError as error:
                logger.warning("thermoclaw: the checkpoint was saved without its state: %s", error)

    @never_stops
    def _load(self, models: Any, input_dir: str) -> None:
        """Read the state; it is loaded before the next backward, when weights and optimizer have theirs."""
        self._loss = None
        if measures(self._accelerator, self._model):
            self._state = read_state(Path(input_dir), self._name)

    def _go_on(self, watch: Watch) -> None:
        """Continue from the checkpoint; an observer that has measured already makes room for a new one."""
        state, self._state = self._state, None
        if watch.observer.rows_measured():
            watch.observer.close()
            self.attach()
        assert self._watch is not None
        try:
            self._watch.load_state_dict(state)
        except StateError as error:
            logger.warning("thermoclaw: the record begins anew at the checkpoint: %s", error)

    def rescue(self) -> None:
        """Write what had reached the host, of a run that nobody finished."""
        if self._watch is not None and not self._is_finished and self._accelerator.is_main_process:
            self._is_finished = True
            self._watch.write(self._watch.observer.record_on_host(), self._folder, plots=False)


def _rescue(observed: Callable[[], Observed | None]) -> None:
    """At the interpreter's exit."""
    me = observed()
    if me is not None:
        try:
            me.rescue()
        except Exception:
            logger.exception("thermoclaw: the interrupted run's record was not written")
