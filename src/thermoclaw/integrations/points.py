"""When a run's numbers are due, and what they are: one point for each so many steps. No framework.

Rows reach the host a few steps late and no step waits for them, so a point comes when its row is there and carries the
step at which it was measured.
"""

from __future__ import annotations

from collections.abc import Iterator

from thermoclaw.integrations.scalars import ALARMS, rows_needed, scalars
from thermoclaw.observer import Observer
from thermoclaw.record import Record


class Points:
    """One point for each multiple of `every` that reached the host, and at the end one for the last step.

    Where no row was kept since the point before (`Observer(every=)`), there is no point.

    Args:
        observer: of the run.
        every: steps between points, and the window of a point.
        split: whether to include the entropy split.
        start: the step before the first one of this run.
    """

    def __init__(self, observer: Observer, *, every: int, split: bool = True, start: int = 0) -> None:
        self._observer, self._every, self._split, self._last = observer, every, split, start
        self._shown = start  # the newest row that a point has looked at

    def due(self, *, closing: bool = False) -> Iterator[tuple[int, dict[str, float]]]:
        """Step and numbers of each point that is due, each once. Never waits, except for `closing`.

        Args:
            closing: bring the last rows to the host, and add a point for the last step.
        """
        whole = self._observer.record() if closing else None
        on_host = whole.num_steps if whole is not None else self._observer.rows_on_host()
        steps = list(range((self._last // self._every + 1) * self._every, on_host + 1, self._every))
        if closing and on_host > self._last and on_host not in steps:
            steps.append(on_host)
        for step in steps:
            width, self._last = step - self._last, step
            record = self._record(whole, step)
            if len(record) and record.num_steps > self._shown:
                self._shown = record.num_steps
                yield step, self._point(record, step, width)

    def _record(self, whole: Record | None, step: int) -> Record:
        start = step - rows_needed(self._every) + 1
        record = self._observer.record_on_host(start=start) if whole is None else whole
        return record.rows(start=start, stop=step + 1)

    def _point(self, record: Record, step: int, width: int) -> dict[str, float]:
        values = scalars(record, steps=min(self._every, width), split=self._split)
        values[ALARMS] = float(sum(alarm.raised_step <= step for alarm in self._observer.alarms))
        return values
