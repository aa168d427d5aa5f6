"""`thermoclaw train`: a run with its folder, from the first step or from a checkpoint, until it ends or is stopped."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.report import Report, diagnose
from thermoclaw.integrations.points import Points
from thermoclaw.integrations.scalars import PREFIX
from thermoclaw.lab.console import quiet_log
from thermoclaw.record import Record
from thermoclaw.train import results, status
from thermoclaw.train.checkpoints import newest_checkpoint, save_checkpoint
from thermoclaw.train.data import fingerprint, load_data, sweep
from thermoclaw.train.errors import RunError
from thermoclaw.train.images import Split
from thermoclaw.train.log import Log, read_log
from thermoclaw.train.loop import Trainer, find_device
from thermoclaw.train.settings import FILE, Settings, continued, load_settings, save_settings, settings_of
from thermoclaw.train.stopping import Stopper
from thermoclaw.train.telling import Silent, Teller

logger = logging.getLogger("thermoclaw")

MOST_POINTS = 2000


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        state: "finished" or "stopped".
        folder: where everything is.
        steps: optimizer steps made.
        loss, accuracy: on the test images, at the end of the last pass; None where no pass was completed.
        report: the diagnosis.
        written: files besides checkpoints and the record.
        missing: why a file was not written.
    """

    state: str
    folder: Path
    steps: int
    loss: float | None
    accuracy: float | None
    report: Report
    written: tuple[str, ...]
    missing: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for programs."""
        return {
            "state": self.state,
            "folder": str(self.folder),
            "steps": self.steps,
            "val_loss": self.loss if self.loss is not None and math.isfinite(self.loss) else None,
            "val_accuracy": self.accuracy,
            "written": list(self.written),
            "missing": list(self.missing),
            "report": self.report.to_json(),
        }


def train(
    settings: Settings | dict[str, Any] | None = None,
    out: str | Path = "runs/train",
    *,
    resume: bool = False,
    teller: Teller | None = None,
    stop: Callable[[int], bool] | None = None,
) -> Outcome:
    """Train a model, watched, into a folder.

    Args:
        settings: what to do; of a run that goes on, those that are given must be its own (`FREE` ones may change).
        out: the run's folder: settings, status, log, checkpoints, the record, report, the exported model.
        resume: go on from the newest checkpoint there.
        teller: where progress and findings are told; by default nowhere.
        stop: asked after every step, with the number of steps; True ends the run with a checkpoint.

    Raises:
        DataError, RunError, StateError: (ValueErrors) what is wrong and what to do.
        ImportError: an extra is missing.
        OSError: the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     outcome = train({"data": "digits", "steps": 3, "export": ["state"]}, folder)
        >>> outcome.state, outcome.steps
        ('finished', 3)
    """
    folder = Path(out)
    given = settings.to_json() if isinstance(settings, Settings) else dict(settings or {})
    if resume:
        chosen = continued(load_settings(folder), given)
    else:
        chosen = settings_of(given, source="the settings")
        if (folder / FILE).exists():
            raise RunError(f"{folder} has a run already: go on with it with --resume, or choose another --out")
    device = find_device(chosen.device)
    told = status.Status(folder)
    if not told.lock():
        raise RunError(f"a run is going on in {folder}; stop it first, or choose another --out")
    try:
        return _locked(chosen, folder, told, device=device, resume=resume, teller=teller or Silent(), stop=stop)
    except BaseException as error:
        words = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
        told.update(now=True, state=status.FAILED, phase="", error=words)
        raise
    finally:
        told.unlock()


def _locked(
    settings: Settings,
    folder: Path,
    told: status.Status,
    *,
    device: torch.device,
    resume: bool,
    teller: Teller,
    stop: Callable[[int], bool] | None,
) -> Outcome:
    told.answer_stop()
    told.update(now=True, phase="loading")
    sweep(folder)
    data = load_data(settings.data, seed=settings.seed, image_size=settings.image_size, scratch=folder)
    with quiet_log(), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        trainer = Trainer(settings, data, device=device, observe={"run_dir": folder})
        if resume:
            _go_on(trainer, folder, data)
        if trainer.observer.run_dir != folder:
            raise RunError(f"{folder} holds the record of another run: choose another --out")
        save_settings(settings, folder)
        results.write_data(data, folder)
        with Stopper() as stopper:
            return _Run(trainer, folder, told, teller).train(
                lambda step: stopper.asked or told.asked_to_stop() or bool(stop and stop(step))
            )


def _go_on(trainer: Trainer, folder: Path, data: Split) -> None:
    state = newest_checkpoint(folder)
    if state.get("data") != fingerprint(data):
        raise RunError(f"the data set {trainer.settings.data} is another one than {folder} was trained on")
    trainer.load_state_dict(state)


class _Run:
    """A trainer with its folder."""

    def __init__(self, trainer: Trainer, folder: Path, told: status.Status, teller: Teller) -> None:
        self.trainer, self.folder, self.told, self.teller = trainer, folder, told, teller
        self._first = trainer.step
        self._data = fingerprint(trainer.data)
        self._every = max(1, min(trainer.total // 100, 50), math.ceil(trainer.total / MOST_POINTS))
        self._log = Log(folder, step=trainer.step)
        logged = read_log(folder)
        start = max((int(row["step"]) for row in logged if "lr" in row), default=0)
        self._points = Points(trainer.observer, every=self._every, start=start)
        self._loss: float | None = None
        tested = [row for row in logged if "val_accuracy" in row] or [{}]
        self._val = tested[-1].get("val_loss"), tested[-1].get("val_accuracy")
        trainer.observer.on_alarm(self._alarm)

    def train(self, wants_to_stop: Callable[[int], bool]) -> Outcome:
        """Make the steps that are left."""
        trainer = self.trainer
        self._tell(phase="training", now=True)
        stopped = False
        self.teller.begin(trainer.total, self._first)
        while trainer.step < trainer.total and not stopped:
            for _ in trainer.steps():
                self._after_step()
                if wants_to_stop(trainer.step):
                    stopped = trainer.step < trainer.total
                    break
            if trainer.step % trainer.steps_per_epoch == 0 or trainer.step >= trainer.total:
                self._close_pass()
        return self._end(status.STOPPED if stopped else status.FINISHED)

    def _after_step(self) -> None:
        trainer, every = self.trainer, self.trainer.settings.checkpoint_every
        for step, values in self._points.due():
            self._note(step, values)
        self._tell()
        self.teller.step(trainer.step, self._loss)
        at_end = trainer.step % trainer.steps_per_epoch == 0 or trainer.step >= trainer.total
        if every is not None and trainer.step % every == 0 and not at_end:
            self._save()

    def _note(self, step: int, values: dict[str, float], whole: Record | None = None) -> None:
        trainer, start = self.trainer, max(step - self._every + 1, 1)
        rows = trainer.observer.record_on_host(start=start) if whole is None else whole
        rows = rows.rows(start=start, stop=step + 1)
        losses = rows.loss[np.isfinite(rows.loss)]
        self._loss = float(losses.mean()) if len(losses) else float("nan")
        epoch = (step - 1) // trainer.steps_per_epoch + 1
        self._log.add(step=step, epoch=epoch, lr=trainer.rate(step - 1), loss=self._loss, **values)
        heat, lost = (values.get(f"{PREFIX}{name}") for name in ("temperature_median", "sigma"))
        self.told.values.update(temperature=heat, sigma=lost)

    def _close_pass(self) -> None:
        """The end of a pass: test, take stock, keep."""
        trainer = self.trainer
        self._tell(phase="testing", now=True)
        loss, accuracy = self._val = trainer.evaluate()
        epoch = trainer.observer.epoch_end(val_acc=accuracy, val_loss=loss)["epoch"]
        self._log.add(step=trainer.step, epoch=epoch, val_loss=loss, val_accuracy=accuracy)
        best = accuracy > trainer.best_accuracy
        trainer.best_accuracy = max(accuracy, trainer.best_accuracy)
        self._save(best=best)
        heat = results.write_thermodynamics(trainer.thermometer, self.folder)
        self.teller.passed(epoch, self._loss, loss, accuracy, heat)
        self._tell(phase="training", now=True)

    def _save(self, *, best: bool = False) -> None:
        state = {**self.trainer.state_dict(), "data": self._data}
        save_checkpoint(self.folder, self.trainer.step, state, keep=self.trainer.settings.keep, best=best)

    def _end(self, state: str) -> Outcome:
        trainer = self.trainer
        if state == status.STOPPED:
            self._save()
            results.write_thermodynamics(trainer.thermometer, self.folder)
        record = trainer.observer.record()
        for step, values in self._points.due(closing=True):
            self._note(step, values, record)
        self._tell(phase="reporting", now=True)
        report = diagnose(trainer.observer)
        written, missing = results.write_results(trainer, report, self.folder, stopped=state == status.STOPPED)
        trainer.observer.close()
        self._tell(state=state, phase="", healthy=report.healthy, now=True)
        self.told.answer_stop()
        outcome = Outcome(state, self.folder, trainer.step, *self._val, report, tuple(written), tuple(missing))
        self.teller.end(outcome)
        return outcome

    def _alarm(self, finding: Finding) -> None:
        self.told.values["alarms"] = int(self.told.values.get("alarms", 0)) + 1
        self.teller.alarm(finding)

    def _tell(self, *, now: bool = False, **values: Any) -> None:
        trainer = self.trainer
        best = trainer.best_accuracy if trainer.best_accuracy >= 0 else None
        self.told.update(
            now=now,
            step=trainer.step,
            steps=trainer.total,
            epoch=min(trainer.epoch + 1, math.ceil(trainer.total / trainer.steps_per_epoch)),
            epochs=math.ceil(trainer.total / trainer.steps_per_epoch),
            loss=self._loss,
            val_loss=self._val[0],
            val_accuracy=self._val[1],
            best_accuracy=best,
            eta_s=self.told.left_s(trainer.step, trainer.total, first=self._first),
            **values,
        )
