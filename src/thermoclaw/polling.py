"""What the calls of step() tell where the optimizer's hooks do not: steps, replays, and that somebody else steps."""

from __future__ import annotations

from thermoclaw.measure.meter import Meter

STRANGE_MOVES = 3  # of the weights, one after the other, between two steps of the optimizer


class Polling:
    """Looks at the weights' version counters and at who calls, whenever a listener's step() is called. Never waits.

    Args:
        meter: of the optimizer.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._callers: set[int] = set()  # since the last step that was told of
        self._calls_seen = 0  # of hooks, at the last replay
        self._start_versions: int | None = None
        self._idle_since, self._idle_versions, self._strange_moves = 0, -1, 0

    def restart(self) -> None:
        """Weights and steps are those of a state: go on as if nobody had called yet."""
        self._callers, self._start_versions = set(), None

    def allow_moves(self) -> None:
        """Weights may have moved up to here, and no hook needs to tell."""
        self._start_versions = None

    def opens_step(self, caller: object) -> bool:
        """Whether this call tells of a new step: that of the first caller, and of the first to come round again."""
        if self._callers and id(caller) not in self._callers:
            self._callers.add(id(caller))
            return False
        self._callers = {id(caller)}
        return True

    def capture(self) -> None:
        """A step was captured: from here on the hooks may be silent."""
        self._callers, self._calls_seen = set(), self._meter.num_calls

    def note_replay(self, caller: object) -> None:
        """Tell the meter of a replay, where this call does and no hook has fired: that was a step outside the graph."""
        if self._meter.num_calls != self._calls_seen:
            self._callers = {id(caller)}
        elif self.opens_step(caller):
            self._meter.note_replay()
        self._calls_seen = self._meter.num_calls

    def hooks_are_silent(self) -> bool:
        """Whether parameters have moved, asked while no hook has ever fired."""
        versions = self._version_sum()
        if self._start_versions is None:  # and not before: weights may be loaded after the observer was made
            self._start_versions = versions
        return versions != self._start_versions

    def another_steps(self) -> bool:
        """Whether the weights move again and again although the optimizer does not step: another one was made."""
        if self._meter.num_calls != self._idle_since:
            self._idle_since, self._idle_versions, self._strange_moves = self._meter.num_calls, -1, 0
            return False
        versions = self._version_sum()
        self._strange_moves += self._idle_versions not in (-1, versions)
        self._idle_versions = versions
        return self._strange_moves >= STRANGE_MOVES

    def _version_sum(self) -> int:
        return sum(p._version for unit in self._meter.layout.units for p in unit.params)
