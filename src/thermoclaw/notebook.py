"""A live plot in a notebook: in place, rate limited, never waiting for the device."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from typing import Any

from thermoclaw.observer import Observer
from thermoclaw.report.live import live_html

__all__ = ["LivePlot"]

logger = logging.getLogger("thermoclaw")

SHARE = 0.02
"""Part of the run's time that drawing may take, at most."""


class LivePlot:
    """Loss, alarms and the layers that stand out, drawn anew in the cell while the run goes on.

    It shows the rows that reached the host, a few steps behind the run. Outside of a notebook it says so once and does
    nothing; an error in it is logged once and turns it off.

    Args:
        observer: of the run.
        every: steps between two drawings, at least.
        seconds: time between two drawings, at least. They come more rarely where drawing takes long: it gets at most a
            fiftieth of the run's time.
        layers: rows of the strip of layers.

    Raises:
        TypeError: the first argument is no Observer.
        ValueError: a setting is out of range.

    Example:
        >>> import torch, thermoclaw
        >>> from thermoclaw.notebook import LivePlot
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> observer = thermoclaw.Observer(model, optimizer)
        >>> plot = LivePlot(observer)  # in the cell that trains, before the loop
        >>> plot.is_on  # not a notebook
        False
    """

    def __init__(self, observer: Observer, *, every: int = 1, seconds: float = 1.0, layers: int = 8) -> None:
        if not isinstance(observer, Observer):
            raise TypeError(f"LivePlot takes an Observer, not {type(observer).__name__}: LivePlot(observer)")
        for name, value in (("every", every), ("layers", layers)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r}: give a whole number of at least 1")
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds >= 0:
            raise ValueError(f"seconds={seconds!r}: give a number of seconds, such as 1")
        self._observer, self._every, self._seconds, self._layers = observer, every, float(seconds), layers
        self._handle: Any = None
        self._step, self._due_s = 0, 0.0
        self.is_on = in_notebook()
        if not self.is_on:
            logger.warning("thermoclaw: this is no notebook, so LivePlot draws nothing; the run is observed as ever")
            return
        self._guarded(is_over=False)
        observer.on_rows(self._on_rows)

    def update(self) -> bool:
        """Draw now, with what reached the host; whether it was drawn. Never waits for the device."""
        if self.is_on:
            self._guarded(is_over=False)
        return self.is_on

    def close(self) -> None:
        """Draw no more; what was drawn stays."""
        self.is_on = False

    def _on_rows(self, closing: bool) -> None:
        if not self.is_on:
            return
        step = self._observer.rows_on_host()
        is_due = step - self._step >= self._every and time.perf_counter() >= self._due_s
        if closing or is_due:
            self._guarded(is_over=closing)

    def _guarded(self, *, is_over: bool) -> None:
        """Draw; an error goes no further than to the log."""
        try:
            self._draw(is_over=is_over)
        except Exception:
            self.is_on = False
            logger.exception("thermoclaw: the live plot failed and is off from here on; training goes on")

    def _draw(self, *, is_over: bool) -> None:
        from IPython.display import HTML, display

        began = time.perf_counter()
        record = self._observer.record() if is_over else self._observer.record_on_host()
        self._step = record.num_steps
        drawn = HTML(live_html(record, self._observer.alarms, layers=self._layers, is_over=is_over))
        if self._handle is None:
            self._handle = display(drawn, display_id=True)
        else:
            self._handle.update(drawn)
        now = time.perf_counter()
        self._due_s = now + max(self._seconds, (now - began) / SHARE)


def in_notebook() -> bool:
    """Whether a kernel runs this code and a front end shows what it displays."""
    shell: Any = None
    if "IPython" in sys.modules:  # a kernel has loaded it
        with contextlib.suppress(Exception):
            shell = sys.modules["IPython"].get_ipython()
    return getattr(shell, "kernel", None) is not None
