"""When a run's numbers are due, and what they are: one point for each so many steps. No framework.

Rows reach the host a few steps late and no step waits for them, so a point comes when its row is there and carries the
step at which it was measured.
"""

from __future__ import annotations

from collections.abc import Iterator

from thermoclaw.integrations.scalars import PREFIX, rows_needed, scalars
from thermoclaw.observer import Observer


class Points:
    """One point for each multiple of `every` that reached the host, and at the end one for the last step.

    Args:
        observer: of the run.
        every: steps between points, and the window of a point.
        split: whether to include the entropy split.
        start: the step before the first one of this run.
    """

    def __init__(self, observer: Observer, *, every: int, split: bool = True, start: int = 0) -> None:
        self._observer, self._every, self._split, self._last = observer, every, split, start

    def due(self, *, closing: bool = False) -> Iterator[tuple[int, dict[str, float]]]:
        """Step and numbers of each point that is due, each once; `closing` adds the last step. Never waits."""
        on_host = self._observer.rows_on_host()
        steps = list(range((self._last // self._every + 1) * self._every, on_host + 1, self._every))
        if closing and on_host > self._last and on_host not in steps:
            steps.append(on_host)
        for step in steps:
            width, self._last = step - self._last, step
            yield step, self._point(step, width)

    def _point(self, step: int, width: int) -> dict[str, float]:
        record = self._observer.record_on_host(start=step - rows_needed(self._every) + 1).rows(stop=step + 1)
        values = scalars(record, steps=min(self._every, width), split=self._split)
        values[f"{PREFIX}alarms"] = float(sum(alarm.raised_step <= step for alarm in self._observer.alarms))
        return values
