"""Joins an observer to loggers: points, findings and a picture go out by themselves. No framework is imported here."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.integrations.loggers.protocol import Logger
from thermoclaw.integrations.points import Points
from thermoclaw.observer import Observer

logger = logging.getLogger("thermoclaw")

PICTURE = "thermoclaw/r_map"

# What a user may hand over, and who takes it: suffixes of files, packages of objects.
_BY_SUFFIX = {".jsonl": ("jsonl", "JSONLines"), ".prom": ("prometheus", "Prometheus")}
_BY_PACKAGE = {
    "torch.utils.tensorboard": ("tensorboard", "TensorBoard"),
    "tensorboardX": ("tensorboard", "TensorBoard"),
    "wandb": ("wandb", "WandB"),
    "mlflow": ("mlflow", "MLflow"),
    "trackio": ("trackio", "Trackio"),
}


def log_to(observer: Observer, *targets: Any, every: int = 10, split: bool = True, picture: bool = True) -> Log:
    """Send a run's numbers, findings and closing picture to loggers, without a call in the loop.

    A point goes out for every so many steps when its row has reached the host, and a finding when it is raised. When
    the observer or the log is closed, the last point and a map of all layers over all steps follow. A logger that fails
    is reported once and gets nothing more; training goes on.

    Args:
        observer: of the run. To continue a run, call its `load_state_dict` or `resume` first.
        *targets: a TensorBoard `SummaryWriter`, a W&B, MLflow or Trackio run, a path that ends in ".jsonl" or ".prom",
            or any object with the calls of `thermoclaw.integrations.loggers.Logger`.
        every: steps between points; a point is the mean over them where its meaning says nothing else.
        split: whether to include the entropy split.
        picture: whether to draw the map at the end (needs the extra `viz`).

    Returns:
        What `close()` ends, or a `with` block.

    Raises:
        TypeError, ValueError: an argument is not what it should be.
        ImportError: a logger's package is missing; the message names the extra.

    Never waits for the device in a step.

    Example:
        >>> import tempfile, torch, thermoclaw
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> observer = thermoclaw.Observer(model, optimizer)
        >>> path = tempfile.mkdtemp() + "/run.jsonl"
        >>> with thermoclaw.log_to(observer, path, every=8, picture=False):
        ...     for _ in range(20):
        ...         loss = model(torch.ones(8, 4)).square().mean()
        ...         loss.backward()
        ...         optimizer.step()
        ...         snapshot = observer.step(loss=loss)
        ...         optimizer.zero_grad()
        >>> import json, pathlib
        >>> [json.loads(line)["step"] for line in pathlib.Path(path).read_text().splitlines()]
        [8, 16, 20]
    """
    if not isinstance(observer, Observer):
        raise TypeError(f"log_to takes an Observer first, not {type(observer).__name__}: log_to(observer, writer)")
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ValueError(f"every={every!r}: give a whole number of at least 1")
    if not targets:
        raise TypeError("log_to needs something to log to: log_to(observer, writer)")
    return Log(observer, [as_logger(target) for target in targets], every=every, split=split, picture=picture)


def as_logger(target: Any) -> Logger:
    """The logger for what a user handed over; a logger is its own.

    Raises:
        TypeError, ValueError: there is none.
    """
    found = None
    if isinstance(target, (str, os.PathLike)):
        found = _BY_SUFFIX.get(Path(target).suffix)
        if found is None:
            raise ValueError(f"{str(target)!r}: choose a path that ends in one of {', '.join(_BY_SUFFIX)}")
    elif isinstance(target, Logger) and not isinstance(target, type):
        return target
    for kind in type(target).__mro__:
        for package, known in _BY_PACKAGE.items():
            if f"{kind.__module__}.".startswith(f"{package}."):
                found = found or known
    if found is None:
        raise TypeError(
            f"cannot log to {type(target).__name__}: give a TensorBoard SummaryWriter, a W&B, MLflow or Trackio run, "
            "a path, or an object with scalars(), finding(), picture() and close()"
        )
    module, name = found
    return getattr(importlib.import_module(f"thermoclaw.integrations.loggers.{module}"), name)(target)


class Log:
    """An observer joined to loggers; made by `log_to`.

    Attributes:
        observer: whose run it is.
        loggers: who gets it.
        closed: whether it has ended.
    """

    def __init__(self, observer: Observer, loggers: list[Logger], *, every: int, split: bool, picture: bool) -> None:
        self.observer, self.loggers, self.closed = observer, loggers, False
        begun = observer.rows_on_host() // every * every  # rows in flight when a run stopped give their points now
        self._points = Points(observer, every=every, split=split, start=begun)
        self._start, self._picture = observer.global_step, picture
        self._muted: set[int] = set()
        observer.on_alarm(self._hear)
        observer.on_rows(self._advance)

    def close(self) -> None:
        """Send the last point and the picture, and end the loggers; waits for the device. A second call does nothing.

        What was handed over, such as a writer or a run, stays open.
        """
        if not self.closed:
            self._advance(True)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        names = ", ".join(type(one).__name__ for one in self.loggers)
        return f"Log({names}, {'closed' if self.closed else 'open'})"

    # -- called by the observer ---------------------------------------------------------------------------------------

    def _hear(self, finding: Finding) -> None:
        if not self.closed:
            self._give("finding", finding)

    def _advance(self, closing: bool) -> None:
        if self.closed:
            return
        self.closed = closing
        try:
            for step, values in self._points.due(closing=closing):
                self._give("scalars", step, values)
            if closing and self._picture:
                self._send_picture()
        except Exception:
            self.closed = True
            logger.exception("thermoclaw: logging failed and is off from here on; training goes on")
        if self.closed:
            self._end()

    def _send_picture(self) -> None:
        record = self.observer.record()
        if record.num_steps <= self._start:
            return
        try:
            from thermoclaw.report.layer_map import plot_layer_map
        except ImportError as error:
            logger.warning("thermoclaw: no picture: %s", error)
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "map.png"
            newest = {alarm.code: alarm for alarm in self.observer.alarms}  # a surer alarm replaces an earlier one
            plot_layer_map(record, findings=newest.values(), save_path=path)
            self._give("picture", PICTURE, record.num_steps, path.read_bytes())

    def _end(self) -> None:
        for one in self.loggers:
            if id(one) in self._muted:  # it was reported when it failed
                with contextlib.suppress(Exception):
                    one.close()
        self._give("close")

    def _give(self, call: str, *arguments: Any) -> None:
        for one in self.loggers:
            if id(one) in self._muted:
                continue
            try:
                getattr(one, call)(*arguments)
            except Exception:
                self._muted.add(id(one))
                name = type(one).__name__
                logger.exception("thermoclaw: %s failed in %s(); it gets nothing from here on", name, call)
