"""Which optimizer steps are measured, and which of them are kept in the record. No torch.

Cosines between gradients at one, two and three steps' distance, and the steps themselves, need consecutive
measurements. With `every = N` a row is kept at steps 1, N + 1, 2N + 1, …, and the three steps before each are measured
too: 4 of N steps. Up to N = 4 that is every step, and only the record gets shorter.

Some of the kept steps are also *probed*: every row of the gradient is looked at, and now and then the weights (see
`probe`). Counted in kept rows, probes lie a power of two apart, as do the rows that a long history keeps.

With a budget the first steps are a warm-up: most are measured, a few are left out, and both kinds are timed. Then N is
the smallest that keeps the mean cost, with some headroom, under the budget, and stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from thermoclaw.state import count, text, untext

LEAD = 3
BUSY_FROM, BUSY_UNTIL = 16, 48  # steps of the warm-up, counted from 0, whose measuring is timed
IDLE_UNTIL = 56  # from BUSY_UNTIL to here nothing is measured, and what that costs is timed
WARMUP = 64  # what was timed on a device has long happened by then
HEADROOM = 0.8  # of a budget is spent, as costs vary
LARGEST = 1024

PROBE_EARLY, PROBE_LATER, PROBE_SOON = 4, 8, 64  # steps between probes up to the third number, and after it
DEEP = 4  # of so many probes, one looks at the weights too


@dataclass(frozen=True)
class Call:
    """What happens at one optimizer step."""

    number: int
    measured: bool
    kept: bool
    fresh: bool  # the step before was not measured
    probed: bool = False
    deep: bool = False  # probed, the weights included


class Cadence:
    """Counts optimizer steps and says what happens at each.

    Args:
        every: N, or what to begin with where there is a budget.
        budget: share of a step's time that measuring may take; None for a fixed N.
    """

    def __init__(self, *, every: int = 1, budget: float | None = None) -> None:
        self.every = 1 if budget is not None else every
        self.budget = budget
        self.decision: dict[str, Any] | None = None
        self._origin = 1  # a step that is kept; others follow at multiples of N
        self._number = 0
        self._last_measured = 0
        self._num_kept = 0

    @property
    def sampled(self) -> str | None:
        """As what the cost of the coming step counts towards the choice: "busy", "idle" or not at all."""
        if self.budget is None:
            return None
        if BUSY_FROM <= self._number < BUSY_UNTIL:
            return "busy"
        return "idle" if BUSY_UNTIL < self._number < IDLE_UNTIL else None  # the first is not like the others

    @property
    def must_choose(self) -> bool:
        """Whether the warm-up is over and N not chosen yet."""
        return self.budget is not None and self.decision is None and self._number >= WARMUP

    @property
    def number(self) -> int:
        """Steps counted so far."""
        return self._number

    def next(self, *, always: bool = False) -> Call:
        """The coming step; `always`: it is measured whatever N is, and only kept or not."""
        self._number += 1
        measured = always or self._is_measured(self._number)
        kept = (self._number - self._origin) % self.every == 0 and not self._is_idle(self._number, lead=LEAD)
        place, gap = self._num_kept, self._probe_gap()
        call = Call(
            self._number,
            measured,
            kept,
            fresh=measured and self._last_measured != self._number - 1,
            probed=kept and place % gap == 0,
            deep=kept and place % (DEEP * gap) == 0,
        )
        if measured:
            self._last_measured = self._number
        self._num_kept += kept
        return call

    @property
    def measures_next(self) -> bool:
        """Whether the coming step is measured."""
        return self._is_measured(self._number + 1)

    def _is_measured(self, number: int) -> bool:
        phase = (number - self._origin) % self.every
        return (phase == 0 or phase >= self.every - LEAD) and not self._is_idle(number, lead=0)

    def _probe_gap(self) -> int:
        """Kept rows from one probe to the next: a power of two."""
        steps = PROBE_EARLY if self._number <= PROBE_SOON else PROBE_LATER
        return 1 << (-(-steps // self.every) - 1).bit_length()

    def _is_idle(self, number: int, *, lead: int) -> bool:
        """Whether a step is left out of the warm-up, or comes fewer than `lead` steps after those."""
        return self.budget is not None and BUSY_UNTIL < number <= IDLE_UNTIL + lead

    def readable(self, number: int) -> int:
        """The last complete row up to a step: itself where every step is measured."""
        if self._is_idle(number, lead=LEAD):
            return BUSY_UNTIL
        if self.every <= LEAD + 1 or number <= self._origin:
            return number
        return number - (number - self._origin) % self.every

    def choose(self, *, cost_s: float, idle_s: float, step_s: float) -> None:
        """Fix N.

        Args:
            cost_s: mean cost of a measured step, in seconds.
            idle_s: mean cost of a step that is left out.
            step_s: mean time of a step without either.
        """
        assert self.budget is not None
        allowed = HEADROOM * self.budget * step_s
        if cost_s <= allowed:
            self.every = 1
        elif allowed <= idle_s:
            self.every = LARGEST
        else:
            self.every = min(math.ceil((LEAD + 1) * (cost_s - idle_s) / (allowed - idle_s)), LARGEST)
        measured = min(LEAD + 1, self.every)
        mean_s = (measured * cost_s + (self.every - measured) * idle_s) / self.every
        self._origin = self._number
        self.decision = {
            "kind": "cadence",
            "every": self.every,
            "budget": self.budget,
            "cost_s": cost_s,
            "idle_s": idle_s,
            "step_s": step_s,
            "expected_share": mean_s / max(step_s, 1e-9),
        }

    def state_dict(self) -> dict[str, Any]:
        """How far it has counted, and what it chose."""
        return {
            "every": self.every,
            "origin": self._origin,
            "number": self._number,
            "last_measured": self._last_measured,
            "num_kept": self._num_kept,
            "decision": text(self.decision or {}),
        }

    def load_state_dict(self, state: Any) -> None:
        """Go on from `state_dict`."""
        self.every = max(count(state, "every", most=self.every if self.budget is None else LARGEST), 1)
        self._origin, self._number = count(state, "origin"), count(state, "number")
        self._last_measured, self._num_kept = count(state, "last_measured"), count(state, "num_kept")
        self.decision = untext(state, "decision", dict) or None
