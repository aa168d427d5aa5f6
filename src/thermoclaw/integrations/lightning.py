"""The callback for Lightning: one line, and a run is measured, watched, logged and diagnosed.

It works with `lightning` and with `pytorch_lightning`, whichever the program has loaded. Lightning hands a callback the
trainer, the module and the outputs of `training_step`, so nothing has to be looked up or wrapped: the optimizers are
observed by their own step hooks, and the callback gives their rows losses, brings their numbers to the loggers under
the place at which Lightning logs the same batch, and writes the results.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from thermoclaw.arguments import MODES, check_at_least, check_choice
from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.report import Report
from thermoclaw.integrations.lightning_trainer import (
    check_strategy,
    first_of,
    measures,
    package,
    results_folder,
    say_above,
)
from thermoclaw.integrations.never_stops import never_stops
from thermoclaw.integrations.watch import Watch, check_early_stop, optimizer_names, stops
from thermoclaw.observer import Observer
from thermoclaw.state import StateError

logger = logging.getLogger("thermoclaw")

VAL_LOSSES = ("val_loss", "val/loss", "valid_loss", "valid/loss", "validation_loss", "validation/loss")
VAL_ACCURACIES = ("val_acc", "val/acc", "val_accuracy", "val/accuracy", "valid_acc", "valid/acc")


if TYPE_CHECKING:
    from lightning import pytorch as pl
else:
    pl = package()


class ThermoclawLightning(pl.Callback):
    """Watches a Lightning `Trainer`'s run: measures its optimizers, raises alarms, logs, and leaves a diagnosis.

    Attributes:
        observers: the `Observer` of each optimizer by its name, once training began, on the processes that measure.
        reports: the `Report` of each, once training ended.

    Args:
        log_every: optimizer steps between two points in the loggers and the CSV files; by default as often as the
            trainer logs. Every step is measured.
        enable_entropy_split: whether to log, tabulate and draw the entropy split.
        plot_on_end: whether to draw the pictures at the end (needs the extra `viz`).
        output_dir: folder for the results; by default the trainer's `log_dir`.
        loss: key of the loss among what `training_step` returns; for several optimizers a list of keys, None where one
            has no loss. By default "loss" for a single optimizer and none for several, as adversaries' losses mislead.
        val_loss: name of the validation loss among the trainer's `callback_metrics`; by default a usual one.
        early_stop: "HIGH" or "MEDIUM" stops training at the first alarm of at least that confidence.
        mode: "sketch" or "exact", as for `Observer`.
        every: measure for a row in so many steps, as for `Observer`.
        run_dir: directory that keeps the record on disk while training, as for `Observer`; of several optimizers each
            has a directory in it.
        quiet: print neither alarms nor the report.
        strict: raise errors instead of logging them once and switching off.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> from thermoclaw.integrations.lightning import ThermoclawLightning
        >>> callback = ThermoclawLightning(early_stop="HIGH")  # Trainer(..., callbacks=[callback])
        >>> callback.report is None, callback.alarms
        (True, [])
    """

    def __init__(
        self,
        log_every: int | None = None,
        enable_entropy_split: bool = True,
        plot_on_end: bool = True,
        output_dir: str | Path | None = None,
        *,
        loss: str | Sequence[str | None] | None = None,
        val_loss: str | None = None,
        early_stop: str | None = None,
        mode: str = "sketch",
        every: int = 1,
        run_dir: str | Path | None = None,
        quiet: bool = False,
        strict: bool = False,
    ) -> None:
        if log_every is not None:
            check_at_least("log_every", log_every, 1)
        check_early_stop(early_stop)
        check_choice("mode", mode, MODES)
        check_at_least("every", every, 1)
        self.log_every, self.enable_entropy_split, self.plot_on_end = log_every, enable_entropy_split, plot_on_end
        self.output_dir, self.loss, self.val_loss, self.early_stop = output_dir, loss, val_loss, early_stop
        self.mode, self.every, self.run_dir, self.quiet, self.strict = mode, every, run_dir, quiet, strict
        self.off = False
        self._watches: list[Watch] = []
        self._restored: dict[str, Any] | None = None
        self._trainer: weakref.ref[Any] | None = None
        self._folder: Path | None = None
        self._begins_anew()

    def _begins_anew(self) -> None:
        """What belongs to one call of `fit`, as it is before it."""
        self.off = False
        self._loss_keys: dict[str, str | None] = {}  # by name of the optimizer
        self._backward: Tensor | None = None  # losses since the last step, where training_step may return none
        self._muted: set[int] = set()  # loggers that failed
        self._is_validated = self._wants_stop = self._is_running = False

    # -- what a user reads --------------------------------------------------------------------------------------------

    @property
    def observers(self) -> dict[str, Observer]:
        """The observer of each optimizer by its name; a single one's is "". Empty before training and elsewhere."""
        return {watch.name: watch.observer for watch in self._watches}

    @property
    def observer(self) -> Observer | None:
        """The first optimizer's observer."""
        return self._watches[0].observer if self._watches else None

    @property
    def reports(self) -> dict[str, Report]:
        """The report of each optimizer by its name, once training ended."""
        return {watch.name: watch.report for watch in self._watches if watch.report is not None}

    @property
    def report(self) -> Report | None:
        """The first optimizer's report."""
        return next(iter(self.reports.values()), None)

    @property
    def alarms(self) -> list[Finding]:
        """Findings raised while training, the oldest first; after a resume, those of the earlier part too."""
        found = [finding for watch in self._watches for finding in watch.observer.alarms]
        return sorted(found, key=lambda finding: finding.raised_step)

    # -- the trainer's hooks ------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget a checkpoint that was loaded for something else than to go on training."""
        self._restored = None

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: what every observer goes on from. Waits for the device."""
        try:
            return {watch.name: watch.state_dict() for watch in self._watches}
        except Exception:
            if self.strict:
                raise
            logger.exception("thermoclaw: the checkpoint is saved without thermoclaw's state")
            return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a checkpoint until training begins and there are optimizers."""
        self._restored = state_dict

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach to the optimizers, which have been restored from a checkpoint by now."""
        folder = trainer.log_dir  # on every process: they agree on it
        self._close()
        self._begins_anew()
        self._begin(trainer, pl_module, folder)

    @never_stops
    def _begin(self, trainer: Any, module: nn.Module, folder: str | None) -> None:
        restored, last_fit = self._restored, self._of_last_fit(trainer)
        earlier = last_fit if restored is None else restored
        self._restored, self._watches = None, []
        if not measures(trainer, module):
            return  # gradients are the same on every process
        self._folder = results_folder(trainer, self.output_dir, folder)
        optimizers = list(trainer.optimizers)
        names = optimizer_names(module, optimizers)
        every = trainer.log_every_n_steps if self.log_every is None else self.log_every
        keys = self._chosen_losses(len(optimizers))
        for number, (name, optimizer) in enumerate(zip(names, optimizers, strict=True)):
            try:
                check_strategy(trainer)
                observer = self._observe(module, optimizer, name)
            except (TypeError, ValueError, OSError) as error:
                if self.strict:
                    raise
                which = f"the optimizer {name}" if name else "this run"
                logger.warning("thermoclaw: %s is not observed: %s", which, error)
                continue
            watch = Watch(observer, name=name, every=every or 0, split=self.enable_entropy_split)
            if trainer.global_step:
                self._continue(watch, earlier.get(name), step=trainer.global_step if len(optimizers) == 1 else 0)
                if restored is None:
                    with observer.paused():
                        pass  # anything may have been done to the weights since
            observer.on_alarm(functools.partial(self._hear, trainer, watch))
            self._watches.append(watch)
            self._loss_keys[name] = keys[number] if number < len(keys) else None
        self._is_running = True
        self._trainer = weakref.ref(trainer)

    def _observe(self, module: nn.Module, optimizer: Any, name: str) -> Observer:
        run_dir = Path(self.run_dir, name.replace("/", "_")) if self.run_dir is not None else None
        return Observer(module, optimizer, mode=self.mode, every=self.every, run_dir=run_dir, strict=self.strict)

    def _chosen_losses(self, num_optimizers: int) -> Sequence[str | None]:
        """By optimizer, the key of its loss."""
        if self.loss is not None and not isinstance(self.loss, str):
            return self.loss
        return [self.loss or "loss"] if num_optimizers == 1 else []

    def _of_last_fit(self, trainer: Any) -> dict[str, Any]:
        """The states to go on from where the same trainer is asked to fit on."""
        if self._trainer is None or self._trainer() is not trainer:
            return {}
        return {watch.name: watch.state_dict() for watch in self._watches}

    def _continue(self, watch: Watch, state: Any, *, step: int) -> None:
        """Go on from a checkpoint, or number the steps from where it was made."""
        try:
            if state is None:
                raise StateError("nothing of thermoclaw was kept from before")
            watch.load_state_dict(state)
        except StateError as error:
            watch.resume(step=step)
            logger.warning("thermoclaw: the record begins after step %d, as %s", step, error)

    @never_stops
    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """In manual optimization: add up what is differentiated, for a `training_step` that returns no loss."""
        if pl_module.automatic_optimization or self.loss is not None or self._loss_keys != {"": "loss"}:
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        loss = _wide(loss.detach())
        if scaler is not None:
            loss = loss / scaler.scale(torch.ones_like(loss))
        self._backward = loss if self._backward is None else self._backward + loss

    @never_stops
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Give the rows just measured their losses, and the loggers what is due. Never waits for the device."""
        place = getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", trainer.global_step)
        outputs = outputs if isinstance(outputs, dict) else {}
        parts = trainer.accumulate_grad_batches if pl_module.automatic_optimization and self.loss is None else 1
        for watch in self._watches:
            loss = outputs.get(self._loss_keys[watch.name])
            if loss is not None and parts > 1:
                loss = _wide(loss) * parts  # Lightning has divided it
            if watch.has_stepped():
                watch.places.note(watch.observer.global_step, place)
                loss, self._backward = self._backward if loss is None else loss, None
                watch.observer.step(loss=loss)
            elif pl_module.automatic_optimization:
                watch.observer.step(loss=loss)
        self._log(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Note that there are new validation figures; of several processes, agree on stopping."""
        if not trainer.sanity_checking:
            self._is_validated = True
            self._agree_on_stopping(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the epoch, with its validation figures."""
        self._close_epoch(trainer)
        self._agree_on_stopping(trainer)

    @never_stops
    def _close_epoch(self, trainer: Any) -> None:
        metrics = trainer.callback_metrics if self._is_validated else {}
        self._is_validated = False
        losses = VAL_LOSSES if self.val_loss is None else (self.val_loss,)
        val_loss, val_acc = first_of(metrics, losses), first_of(metrics, VAL_ACCURACIES)
        for watch in self._watches:
            watch.close_epoch(val_loss=val_loss, val_acc=val_acc)

    @never_stops
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the last points, detach, diagnose, print, and write everything."""
        self._is_running = False
        self._log(trainer, closing=True)
        self._close()
        for watch in self._watches:
            written = watch.write(watch.observer.record(), self._folder, plots=self.plot_on_end)
            title = f"\nOptimizer {watch.name}:" if watch.name else ""
            self._say(trainer, f"{title}\n{watch.report}")
            if written:
                names = ", ".join(path.name for path in written)
                self._say(trainer, f"\nThermoclaw wrote {names} to {written[0].parent}")

    @never_stops
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """After an error or Ctrl-C: write what had reached the host. The device is not asked."""
        if self._is_running:
            self._is_running = False
            for watch in self._watches:
                watch.write(watch.observer.record_on_host(), self._folder, plots=False)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave nothing on the optimizers."""
        self._close()

    def __getstate__(self) -> dict[str, Any]:
        """Settings alone: a copy, as a spawned process gets it, begins with no run."""
        return {**vars(self), "_watches": [], "_restored": None, "_trainer": None, "_backward": None}

    # -- what the hooks need ------------------------------------------------------------------------------------------

    def detach(self) -> None:
        """Take the observers off the optimizers, but those that other processes wait for."""
        for watch in self._watches:
            if not watch.observer.has_peers:
                watch.observer.close()

    def _close(self) -> None:
        """Take the observers off, on every process at the same step; what they recorded stays readable."""
        for watch in self._watches:
            watch.observer.close()

    def _log(self, trainer: Any, *, closing: bool = False) -> None:
        """Give every logger what is due. The rows are on the host already: nothing waits."""
        if not trainer.is_global_zero:
            return
        for watch in self._watches:
            for place, values in watch.points(closing=closing):
                for target in trainer.loggers:
                    self._give(target, values, place)

    def _give(self, target: Any, values: dict[str, float], place: int) -> None:
        if id(target) in self._muted:
            return
        try:
            target.log_metrics(values, step=place)
        except Exception:
            self._muted.add(id(target))
            name = type(target).__name__
            logger.exception("thermoclaw: %s did not take the numbers; it gets none from here on", name)

    def _hear(self, trainer: Any, watch: Watch, finding: Finding) -> None:
        """Called by an observer with each new alarm."""
        self._say(trainer, watch.say(finding))
        if not stops(finding, self.early_stop):
            return
        watch.observer.note_event("early_stop", finding=finding.code)
        self._wants_stop = True
        if trainer.world_size == 1:
            trainer.should_stop = True

    def _agree_on_stopping(self, trainer: Any) -> None:
        """Of several processes, all must stop at the same step; this waits for the device, as a validation does."""
        if self.early_stop is None or trainer.world_size == 1:
            return
        if trainer.strategy.reduce_boolean_decision(self._wants_stop, all=False):
            trainer.should_stop = True

    def _say(self, trainer: Any, text: str) -> None:
        if not self.quiet:
            say_above(trainer, text)


def _wide(loss: Tensor) -> Tensor:
    """In single precision at least."""
    return loss.to(torch.promote_types(loss.dtype, torch.float32))
