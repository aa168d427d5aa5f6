"""The callback for the Hugging Face `Trainer`: one line, and a run is measured, watched, logged and diagnosed.

The Trainer hands its callbacks neither itself nor the loss of a step, and it asks the reporters (TensorBoard, W&B, …)
before the user's callbacks. So the callback looks up the Trainer once, when training begins; it notes what
`training_step` returns, and it gives the reporters its numbers itself, under the step at which they were measured.
The Trainer's own log lines are left alone.
"""

from __future__ import annotations

import atexit
import functools
import logging
import math
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from thermoclaw.arguments import MODES, check_at_least, check_choice
from thermoclaw.detectors.entropy_split import EntropySplit
from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.report import Report, diagnose
from thermoclaw.integrations.checkpoint_file import load_state, state_file, write_state
from thermoclaw.integrations.feed import Feed
from thermoclaw.integrations.never_stops import never_stops
from thermoclaw.integrations.outputs import RECORD_FILE, write_outputs
from thermoclaw.integrations.points import Points
from thermoclaw.integrations.say import say
from thermoclaw.integrations.trainer_access import (
    agree,
    calling,
    check_supported,
    checkpoint_folder,
    earlier_record,
    is_sharded,
    tap_loss,
)
from thermoclaw.integrations.watch import check_early_stop, stops
from thermoclaw.observer import Observer
from thermoclaw.record import Record
from thermoclaw.state import StateError, count, take
from thermoclaw.wording import one_line

try:
    from tqdm.auto import tqdm  # type: ignore[import-untyped]
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise ImportError(
        "the callback for the Hugging Face Trainer needs transformers and accelerate: pip install 'thermoclaw[hf]'"
    ) from error

logger = logging.getLogger("thermoclaw")


class ThermoclawCallback(TrainerCallback):
    """Watches a `Trainer`'s run: measures its real optimizer, raises alarms, logs, and leaves a diagnosis.

    Attributes:
        observer: the run's `Observer` once training began, on the main process (on all where the model is sharded);
            None before and elsewhere.
        report: the `Report` once training ended (it is printed too), or of the last `save`; None before.

    Args:
        log_every: optimizer steps between two points in TensorBoard, W&B and the CSV files. Every step is measured.
        enable_entropy_split: whether to log, tabulate and draw the entropy split.
        plot_on_end: whether to draw the pictures at the end (needs the extra `viz`).
        output_dir: folder for the results; the Trainer's own by default.
        early_stop: "HIGH" or "MEDIUM" stops training at the first alarm of at least that confidence.
        mode: "sketch" or "exact", as for `Observer`.
        run_dir: directory that keeps the record on disk while training, as for `Observer`.
        quiet: print neither alarms nor the report.
        strict: raise errors instead of logging them once and switching off.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> from thermoclaw.integrations.huggingface import ThermoclawCallback
        >>> callback = ThermoclawCallback(log_every=20)  # Trainer(..., callbacks=[callback])
        >>> callback.report is None, callback.alarms
        (True, [])
    """

    def __init__(
        self,
        log_every: int = 10,
        enable_entropy_split: bool = True,
        plot_on_end: bool = True,
        output_dir: str | None = None,
        *,
        early_stop: str | None = None,
        mode: str = "sketch",
        run_dir: str | Path | None = None,
        quiet: bool = False,
        strict: bool = False,
    ) -> None:
        check_at_least("log_every", log_every, 1)
        check_early_stop(early_stop)
        check_choice("mode", mode, MODES)
        self.log_every, self.enable_entropy_split, self.plot_on_end = log_every, enable_entropy_split, plot_on_end
        self.output_dir, self.early_stop, self.mode = output_dir, early_stop, mode
        self.run_dir, self.quiet, self.strict = run_dir, quiet, strict
        self.observer: Observer | None = None
        self.report: Report | None = None
        self._forget()

    def _forget(self) -> None:
        """What belongs to one run, as it is before a run."""
        self.off = self._given_loss = self._wants_stop = self._is_main = self._is_sharded = False
        self._is_in_epoch = False  # the run goes on in the middle of an epoch, which begins a second time
        self._feed: Feed | None = None
        self._undo: list[Callable[[], None]] = []
        self._loss: Any = None
        self._val_loss: float | None = None
        self._folder: Path | None = None
        self._first_step = self._epoch_step = 0

    @property
    def alarms(self) -> list[Finding]:
        """Findings raised while training, the oldest first; after a resume, those of the earlier part too."""
        return self.observer.alarms if self.observer is not None else []

    @property
    def splitter(self) -> EntropySplit | None:
        """The entropy split of the run, as in thermoclaw 0.1.6."""
        return EntropySplit(self.observer) if self.observer is not None and self.enable_entropy_split else None

    # -- the Trainer's events ---------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach to the optimizer, and continue the record of the checkpoint that the run resumes from."""
        self._close()
        self.observer = self.report = None
        self._forget()
        self._begin(args, state, control, **kwargs)

    @never_stops
    def _begin(
        self, args: Any, state: Any, control: Any, *, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        trainer, checkpoint = calling(Trainer)
        self._is_main, self._is_sharded = state.is_world_process_zero, is_sharded(trainer, model)
        if not (self._is_main or self._is_sharded):
            return  # gradients are the same on every process
        try:
            check_supported(trainer, model)
            observer = Observer(model, optimizer, mode=self.mode, run_dir=self.run_dir, strict=self.strict)
        except (TypeError, ValueError, OSError) as error:
            if self.strict:
                raise
            if self._is_main:
                logger.warning("thermoclaw: this run is not observed: %s", error)
            return
        self.observer = observer
        self._folder = Path(self.output_dir if self.output_dir is not None else args.output_dir)
        self._first_step = self._epoch_step = told = state.global_step
        if state.global_step and self._resume(observer, state, checkpoint or checkpoint_folder(args, state)):
            told = observer.rows_on_host() // self.log_every * self.log_every
        observer.on_alarm(self._hear)
        if trainer is None:
            logger.warning("thermoclaw: no Trainer calls this callback, so there is no loss and nothing is logged")
        else:
            self._undo.append(tap_loss(trainer, self._add_loss))
        if not self._is_main:
            return
        if trainer is not None:
            points = Points(observer, every=self.log_every, split=self.enable_entropy_split, start=told)
            self._feed = Feed(points, weakref.ref(trainer))
        rescue = functools.partial(_rescue, weakref.ref(self), time.time())
        atexit.register(rescue)
        self._undo.append(functools.partial(atexit.unregister, rescue))

    def _resume(self, observer: Observer, state: Any, checkpoint: Path) -> bool:
        """Go on from the checkpoint: with everything (True), with what its record has, or with step numbers alone."""
        try:
            self._go_on(observer, state, load_state(checkpoint))
            return True
        except FileNotFoundError:  # an earlier version kept the record alone
            logger.info("thermoclaw: %s has no state", checkpoint)
        except Exception as error:  # whatever reading a damaged file may raise
            logger.warning("thermoclaw: %s: its %s is not used, as %s", checkpoint, state_file(checkpoint).name, error)
        step = int(state.global_step)
        record, missing = earlier_record(checkpoint / RECORD_FILE)
        if not observer.resume(record, step=step, epoch=int(state.epoch or 0)):
            logger.warning("thermoclaw: %s %s; this one begins at step %d", checkpoint, missing, step + 1)
        return False

    def _go_on(self, observer: Observer, state: Any, saved: Any) -> None:
        if count(saved, "global_step") != state.global_step:
            raise StateError(f"it was saved at step {saved['global_step']}, and the checkpoint at {state.global_step}")
        epoch_step, val_loss = count(saved, "epoch_step"), take(saved, "val_loss", float, type(None))
        observer.load_state_dict(take(saved, "observer", dict))
        self._first_step, self._epoch_step, self._val_loss = observer.global_step, epoch_step, val_loss
        self._is_in_epoch = not math.isclose(state.epoch, round(state.epoch), abs_tol=1e-6)

    @never_stops
    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the epoch before; only now is its evaluation known."""
        if not self._is_in_epoch:
            self._close_epoch(state)
        self._is_in_epoch = False

    def _close_epoch(self, state: Any) -> None:
        if self.observer is not None and state.global_step > self._epoch_step:
            self._epoch_step = state.global_step
            self.observer.epoch_end(val_loss=self._val_loss)
            self._val_loss = None

    @never_stops
    def on_evaluate(self, args: Any, state: Any, control: Any, *, metrics: Any = None, **_: Any) -> None:
        """Note the validation loss of the epoch."""
        loss = (metrics or {}).get("eval_loss")
        if loss is not None and state.global_step > self._epoch_step:
            self._val_loss = float(loss)

    @never_stops
    def on_optimizer_step(self, args: Any, state: Any, control: Any, *, optimizer: Any = None, **_: Any) -> None:
        """Give the observer the loss of the step just made; its hooks have measured the step already."""
        if self.observer is None:
            return
        loss, self._loss = self._loss, None
        self._given_loss = True
        overflow = getattr(optimizer, "step_was_skipped", False) is True  # the loss scaler refused this step
        self.observer.step(loss=None if overflow else loss)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give the reporters what is due, and stop where an alarm asks for it."""
        self._after_step(args, state, control, **kwargs)
        self._stop(args, control, all_wait=self.early_stop is not None and control.should_log)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop where an alarm asks for it."""
        self._stop(args, control, all_wait=True)

    def _stop(self, args: Any, control: Any, *, all_wait: bool) -> None:
        """Of several processes all must stop at one step: they agree where the Trainer makes all wait anyway."""
        if self.early_stop is None:
            return
        wish = self._wants_stop
        if args.world_size > 1:
            wish = all_wait and agree(wish, args.device)
        if wish:
            control.should_training_stop = True

    @never_stops
    def _after_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The rows are on the host already: nothing waits."""
        if self.observer is None:
            return
        if not self._given_loss:  # a loop of its own that has no on_optimizer_step
            self.observer.step()
        self._given_loss = False
        if self._feed is not None:
            self._feed.push(args, state, control, **kwargs)

    @never_stops
    def on_log(self, args: Any, state: Any, control: Any, *, logs: Any = None, **kwargs: Any) -> None:
        """Give the reporters the last rows with the Trainer's closing line: at `on_train_end` they are closed."""
        if self.observer is not None and self._feed is not None and "train_runtime" in (logs or {}):
            self.observer.record()  # brings the last rows to the host
            self._feed.push(args, state, control, closing=True, **kwargs)

    @never_stops
    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put the record, and what the run goes on from, beside the checkpoint."""
        if self.observer is None or not (self._is_main or state.is_local_process_zero):
            return
        folder = checkpoint_folder(args, state)
        if folder.is_dir() and not state.is_hyper_param_search:
            try:
                self.observer.save(folder / RECORD_FILE)
                write_state(folder, "", self._state(state))
            except OSError as error:
                logger.warning("thermoclaw: the checkpoint was saved without its record: %s", error)

    def _state(self, state: Any) -> dict[str, Any]:
        assert self.observer is not None
        mine = {"global_step": int(state.global_step), "epoch_step": self._epoch_step, "val_loss": self._val_loss}
        return {**mine, "observer": self.observer.state_dict()}

    @never_stops
    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Detach, diagnose, print, and write everything."""
        if self.observer is None:
            return
        self._close_epoch(state)
        self._close()
        if not self._is_main:
            return
        written = self.save()
        self._say(f"\n{self.report}")
        if written:
            self._say(f"\nThermoclaw wrote {', '.join(path.name for path in written)} to {self._folder}")

    # -- what the events need ---------------------------------------------------------------------------------------

    def save(self, folder: str | Path | None = None) -> list[Path]:
        """Write record, CSV files, report and pictures of the run so far; waits for the device.

        Training's end calls it; after an interruption in a notebook, call it yourself.

        Args:
            folder: where to; the folder of the run by default.

        Returns:
            The files written. A run that has made no step of its own writes nothing.
        """
        target = Path(folder) if folder is not None else self._folder
        if self.observer is None or target is None:
            return []
        return self._write(self.observer.record(), target, plots=self.plot_on_end)

    def _write(self, record: Record, folder: Path, *, plots: bool) -> list[Path]:
        self.report = diagnose(record)
        if record.num_steps <= self._first_step:
            return []
        every, split = self.log_every, self.enable_entropy_split
        return write_outputs(record, self.report, folder, csv_every=every, split=split, plots=plots)

    def _hear(self, finding: Finding) -> None:
        """Called by the observer with each new alarm."""
        self._say(one_line(f"Thermoclaw, {finding.message}"))
        if stops(finding, self.early_stop) and not self._wants_stop:
            self._wants_stop = True
            assert self.observer is not None
            self.observer.note_event("early_stop", finding=finding.code)
            self._say(f'Thermoclaw stops training, as early_stop="{self.early_stop}" asks')

    def _say(self, text: str) -> None:
        """Print above the progress bar."""
        if not self.quiet and self._is_main:
            say(text, tqdm.write)

    def _add_loss(self, loss: Any) -> None:
        """Add up the micro-batches of a step, on their device."""
        loss = loss.detach() if isinstance(loss, torch.Tensor) else loss
        self._loss = loss if self._loss is None else self._loss + loss

    def detach(self) -> None:
        """Take everything off that can be. Processes that measure shards count on each other's observers."""
        while self._undo:
            self._undo.pop()()
        if self.observer is not None and not self._is_sharded:
            self.observer.close()

    def _close(self) -> None:
        """Take everything off, on every process at the same step."""
        self.detach()
        if self.observer is not None:
            self.observer.close()


def _rescue(callback: Callable[[], ThermoclawCallback | None], began_s: float) -> None:
    """At the interpreter's exit after a run that an exception ended: write what had reached the host."""
    me = callback()
    if me is None or me.observer is None or me._folder is None:
        return
    earlier = me._folder / RECORD_FILE
    if earlier.exists() and earlier.stat().st_mtime > began_s:
        return  # a later run has written there
    try:
        me._write(me.observer.record_on_host(), me._folder, plots=False)
    except Exception:
        logger.exception("thermoclaw: the interrupted run's record was not written")
