"""The callback for Lightning: one line, and a run is measured, watched, logged and diagnosed.

It works with `lightning` and with `pytorch_lightning`, whichever the program has loaded. Lightning hands a callback the
trainer, the module and the outputs of `training_step`, so nothing has to be looked up or wrapped: the optimizers are
observed by their own step hooks, and the callback gives their rows losses, brings their numbers to the loggers under
the place at which Lightning logs the same batch, and writes the results.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from thermoclaw.diagnosis.finding import CONFIDENCES, Finding
from thermoclaw.diagnosis.report import Report
from thermoclaw.integrations.never_stops import never_stops
from thermoclaw.integrations.watch import Watch, optimizer_names
from thermoclaw.observer import Observer

logger = logging.getLogger("thermoclaw")

VAL_LOSSES = ("val_loss", "val/loss", "valid_loss", "valid/loss", "validation_loss", "validation/loss")
VAL_ACCURACIES = ("val_acc", "val/acc", "val_accuracy", "val/accuracy", "valid_acc", "valid/acc")


def _lightning() -> Any:
    """The package that the program has loaded, or else the one that is there."""
    names = ("lightning.pytorch", "pytorch_lightning")
    for name in (*(name for name in names if name in sys.modules), *names):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise ImportError("the callback for Lightning needs lightning: pip install 'thermoclaw[lightning]'")


if TYPE_CHECKING:
    from lightning import pytorch as pl
else:
    pl = _lightning()


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
        quiet: bool = False,
        strict: bool = False,
    ) -> None:
        if log_every is not None and (not isinstance(log_every, int) or isinstance(log_every, bool) or log_every < 1):
            raise ValueError(f"log_every={log_every!r}: give a whole number of at least 1")
        if early_stop not in (None, *CONFIDENCES[:2]):
            raise ValueError(f"early_stop={early_stop!r}: choose one of {', '.join(CONFIDENCES[:2])}, or None")
        if mode not in ("sketch", "exact"):
            raise ValueError(f"mode={mode!r}: choose one of sketch, exact")
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"every={every!r}: give a whole number of at least 1")
        self.log_every, self.enable_entropy_split, self.plot_on_end = log_every, enable_entropy_split, plot_on_end
        self.output_dir, self.loss, self.val_loss, self.early_stop = output_dir, loss, val_loss, early_stop
        self.mode, self.every, self.quiet, self.strict = mode, every, quiet, strict
        self.off = False
        self._watches: list[Watch] = []
        self._folder: Path | None = None
        self._begins_anew()

    def _begins_anew(self) -> None:
        """What belongs to one call of `fit`, as it is before it."""
        self.off = False
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

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach to the optimizers, which have been restored from a checkpoint by now."""
        folder = trainer.log_dir  # on every process: they agree on it
        self.detach()
        self._begins_anew()
        self._begin(trainer, pl_module, folder)

    @never_stops
    def _begin(self, trainer: Any, module: nn.Module, folder: str | None) -> None:
        self._watches = []
        if not _measures(trainer, module):
            return  # gradients are the same on every process
        self._folder = self._results_folder(trainer, folder)
        optimizers = list(trainer.optimizers)
        names = optimizer_names(module, optimizers)
        every = trainer.log_every_n_steps if self.log_every is None else self.log_every
        for name, optimizer in zip(names, optimizers, strict=True):
            try:
                _check_strategy(trainer)
                observer = Observer(module, optimizer, mode=self.mode, every=self.every, strict=self.strict)
            except (TypeError, ValueError) as error:
                if self.strict:
                    raise
                which = f"the optimizer {name}" if name else "this run"
                logger.warning("thermoclaw: %s is not observed: %s", which, error)
                continue
            if trainer.global_step and len(optimizers) == 1:
                observer.resume(step=trainer.global_step)
            watch = Watch(observer, name=name, every=every or 0, split=self.enable_entropy_split)
            observer.on_alarm(functools.partial(self._hear, trainer, watch))
            self._watches.append(watch)
        self._is_running = True

    def _results_folder(self, trainer: Any, log_dir: str | None) -> Path | None:
        """Where the results go; None for nowhere."""
        folder = self.output_dir if self.output_dir is not None else log_dir or trainer.default_root_dir
        if trainer.fast_dev_run or not trainer.is_global_zero:
            return None
        if "://" in str(folder):
            logger.warning("thermoclaw: no files are written to %s: give a local folder as output_dir", folder)
            return None
        return Path(folder)

    @never_stops
    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """In manual optimization: add up what is differentiated, for a `training_step` that returns no loss."""
        if len(self._watches) != 1 or pl_module.automatic_optimization or self.loss is not None:
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        loss = loss.detach().float()
        if scaler is not None:
            loss = loss / scaler.scale(torch.ones_like(loss))
        self._backward = loss if self._backward is None else self._backward + loss

    @never_stops
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Give the rows just measured their losses, and the loggers what is due. Never waits for the device."""
        place = getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", trainer.global_step)
        for number, watch in enumerate(self._watches):
            stepped = watch.has_stepped()
            if stepped:
                watch.places.note(watch.observer.global_step, place)
            if stepped or pl_module.automatic_optimization:
                watch.observer.step(loss=self._loss_of(number, trainer, pl_module, outputs, stepped=stepped))
        self._log(trainer)

    def _loss_of(self, number: int, trainer: Any, module: Any, outputs: Any, *, stepped: bool) -> Any:
        """The loss of an optimizer's step, or of a part of it, on its device."""
        outputs = outputs if isinstance(outputs, dict) else {}
        if self.loss is not None and not isinstance(self.loss, str):
            key = self.loss[number] if number < len(self.loss) else None
            return outputs.get(key) if key is not None else None
        if len(self._watches) > 1:
            return None
        loss = outputs.get(self.loss or "loss")
        if module.automatic_optimization:
            parts = trainer.accumulate_grad_batches
            is_divided = loss is not None and parts > 1 and self.loss in (None, "loss")
            return loss.float() * parts if is_divided else loss
        backward, self._backward = self._backward, None if stepped else self._backward
        return loss if loss is not None else backward

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
        val_loss, val_acc = _first(metrics, losses), _first(metrics, VAL_ACCURACIES)
        for watch in self._watches:
            watch.close_epoch(val_loss=val_loss, val_acc=val_acc)

    @never_stops
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the last points, detach, diagnose, print, and write everything."""
        self._is_running = False
        for watch in self._watches:
            watch.observer.record()  # brings the last rows to the host
        self._log(trainer, closing=True)
        self.detach()
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
        self.detach()

    # -- what the hooks need ------------------------------------------------------------------------------------------

    def detach(self) -> None:
        """Take the observers off the optimizers; what they recorded stays readable."""
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
        if self.early_stop is None or CONFIDENCES.index(finding.confidence) > CONFIDENCES.index(self.early_stop):
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
        """Print above the progress bar, or where Lightning prints."""
        if self.quiet or not trainer.is_global_zero:
            return
        bar = trainer.progress_bar_callback
        if bar is not None and getattr(bar, "is_enabled", False):
            try:
                bar.print(text)
            except UnicodeError:
                bar.print(text.encode("ascii", "replace").decode())
        else:
            pl.utilities.rank_zero.rank_zero_info(text)


def _measures(trainer: Any, module: nn.Module) -> bool:
    """Whether this process measures: the main one, and of a sharded model all."""
    return trainer.is_global_zero or any(hasattr(p, "device_mesh") for p in module.parameters())


def _check_strategy(trainer: Any) -> None:
    """Raise ValueError with the reason when a run cannot be observed."""
    if "DeepSpeed" in type(trainer.strategy).__name__:
        raise ValueError(
            "Lightning's DeepSpeed strategy is not supported yet; training goes on as it would without the callback"
        )


def _first(metrics: Any, names: Sequence[str]) -> float | None:
    """The first of these metrics that is there. Waits for the device."""
    return next((float(metrics[name]) for name in names if name in metrics), None)
