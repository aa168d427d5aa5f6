"""A progress bar of its own: redrawn on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

_WIDTH = 24
_REDRAW_S = 0.1
_LINE_S = 2.0  # and a tenth of the work, where every line stays


class Progress:
    """Shows how far a piece of work has come.

    Args:
        label: what is being done.
        total: how many steps it takes.
        stream: where to draw, standard error by default.
        enabled: False draws nothing.
        clock: seconds, for tests.

    Example:
        >>> with Progress("training", 3, enabled=False) as bar:
        ...     for step in range(3):
        ...         bar.update(step + 1, note="loss 7.62")
    """

    def __init__(
        self,
        label: str,
        total: int,
        *,
        stream: TextIO | None = None,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label, self.total = label, max(total, 1)
        self._stream = stream if stream is not None else sys.stderr
        self._enabled = enabled
        self._clock = clock
        self._start = self._drawn_at = clock()
        self._terminal = bool(getattr(self._stream, "isatty", lambda: False)())
        self._drawn_done = 0
        self._drawn = 0  # characters on the current line
        self._last = ""

    def update(self, done: int, *, note: str | Callable[[], str] = "") -> None:
        """Say how many steps are done; drawn, and the note asked for, only as often as someone could read it."""
        if not self._enabled:
            return
        now = self._clock()
        finished = done >= self.total
        if not self._is_due(done, now) and not finished:
            return
        self._drawn_at, self._drawn_done = now, done
        self._draw(self._line(min(done, self.total), now - self._start, note if isinstance(note, str) else note()))

    def print(self, text: str) -> None:
        """Write a line to standard output without tearing the bar."""
        self.clear()
        print(text, flush=True)
        if self._terminal and self._last:
            self._draw(self._last)

    def clear(self) -> None:
        """Take the bar off the terminal."""
        if self._drawn:
            self._stream.write("\r" + " " * self._drawn + "\r")
            self._stream.flush()
            self._drawn = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def _is_due(self, done: int, now: float) -> bool:
        if self._terminal:
            return now - self._drawn_at >= _REDRAW_S
        return now - self._drawn_at >= _LINE_S and done - self._drawn_done >= self.total / 10

    def _line(self, done: int, elapsed_s: float, note: str) -> str:
        full = _WIDTH * done // self.total
        left_s = elapsed_s * (self.total - done) / max(done, 1)
        bar = "█" * full + "·" * (_WIDTH - full)
        when = f"{left_s:.0f} s left" if done < self.total else f"{elapsed_s:.0f} s"
        return f"{self.label} {bar} {done}/{self.total}  {when}" + (f"  {note}" if note else "")

    def _draw(self, line: str) -> None:
        self._last = line
        if self._terminal:
            self._stream.write("\r" + line.ljust(self._drawn))
            self._drawn = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()
