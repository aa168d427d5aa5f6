"""What measuring costs, timed in the warm-up of a cadence that is chosen for a budget."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

from thermoclaw.state import count, take

UNTIMED: AbstractContextManager[None] = contextlib.nullcontext()


class Clock:
    """Times what the instrument does, and the steps around it.

    Args:
        tick: marks a moment.
        between: seconds from one marked moment to another; asked long after both.
    """

    def __init__(
        self, tick: Callable[[], Any] = time.perf_counter, between: Callable[[Any, Any], float] = lambda a, b: b - a
    ) -> None:
        self._tick, self._between = tick, between
        self._stretches: list[tuple[int, Any, Any]] = []  # of own work, by step
        self._laps: list[Any] = []
        self._earlier = (0, 0.0, 0.0)  # steps timed before the run was stopped, their own work and time in all

    @contextlib.contextmanager
    def own_work(self, *, lap: bool = False) -> Iterator[None]:
        """Time a stretch of own work; `lap`: a step begins with it."""
        started = self._tick()
        if lap:
            self._laps.append(started)
        try:
            yield
        finally:
            self._stretches.append((len(self._laps), started, self._tick()))

    def result(self) -> tuple[float, float]:
        """Mean cost of a step, and mean time of a step without it, in seconds."""
        steps, own, total = self._sums()
        return (own / steps, max(total - own, 0.0) / steps) if steps else (0.0, math.inf)

    def _sums(self) -> tuple[int, float, float]:
        """Steps timed, seconds of own work in them, and seconds in all."""
        before, own, total = self._earlier
        steps = len(self._laps) - 1
        if steps < 1:
            return self._earlier
        own += sum(self._between(a, b) for lap, a, b in self._stretches if 0 < lap <= steps)
        return before + steps, own, total + self._between(self._laps[0], self._laps[-1])

    def state_dict(self) -> dict[str, Any]:
        """What was timed so far."""
        return dict(zip(("steps", "own_s", "total_s"), self._sums(), strict=True))

    def load_state_dict(self, state: Any) -> None:
        """Add to `state_dict`; the time between the two is nobody's."""
        self._earlier = count(state, "steps"), take(state, "own_s", float), take(state, "total_s", float)
        self._stretches, self._laps = [], []


def clock_of(device: torch.device) -> Clock:
    """A clock for work on a device, which on CUDA is marked there and read when it has long happened."""
    if device.type != "cuda":
        return Clock()

    def tick() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(first: torch.cuda.Event, second: torch.cuda.Event) -> float:
        second.synchronize()  # it was marked at least eight steps ago
        return 1e-3 * first.elapsed_time(second)

    return Clock(tick, between)


class Timing:
    """Until the cadence is chosen: a clock for steps that are measured, and one for those that are left out.

    Args:
        device: on which is measured.
    """

    def __init__(self, device: torch.device) -> None:
        self._clocks = {kind: clock_of(device) for kind in ("busy", "idle")}

    def own_work(self, kind: str | None, *, lap: bool) -> AbstractContextManager[None]:
        """Time what is done inside as `kind`, if it is one; `lap`: a step begins with it."""
        return UNTIMED if kind is None else self._clocks[kind].own_work(lap=lap)

    def result(self) -> tuple[float, float, float]:
        """Mean cost of a measured step, of one that is left out, and time of a step without either, in seconds."""
        cost_s, step_s = self._clocks["busy"].result()
        return cost_s, self._clocks["idle"].result()[0], step_s

    def state_dict(self) -> dict[str, Any]:
        """What was timed so far, by kind."""
        return {kind: clock.state_dict() for kind, clock in self._clocks.items()}

    def load_state_dict(self, state: Any) -> None:
        """Add to `state_dict`."""
        for kind, clock in self._clocks.items():
            clock.load_state_dict(take(state, kind, dict))
