"""When the rules look at a run: at fixed steps, and at once at a loss that rises as none of the last did. No torch."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from thermoclaw.state import StateError, count, take

CHECK_EARLY, EARLY, CHECK_LATER, CHECK_SELDOM = 8, 256, 32, 256  # steps
RECENT = 8  # losses that a new one is compared with
RISE = 1.0  # times the size of the largest of them, or their range, by which a sudden one is above them
MOST_SUDDEN = 4  # looks between two regular ones


def check_interval(step: int) -> int:
    """Steps from one look of the rules to the next: 8 early on, then 32, then a thirty-second of the run, 256 at most.

    A look costs about as much as the record is long; so a step's share of it does not grow with the run.
    """
    return CHECK_EARLY if step < EARLY else max(CHECK_LATER, min(step // 32 // 8 * 8, CHECK_SELDOM))


class Looks:
    """Decides at which steps the rules look, from steps and losses alone: a replay finds the same ones.

    A regular look is due every `check_interval` steps. A loss that explodes can be gone before the next: where losses
    are known at once, one of about twice the largest of the last eight is looked at in its own step, four times at
    most between two regular looks, so that noise costs little. One that is lost is looked at when eight in a row were
    not finite: a loss may be lost for a step, and what happened then is best told from a few more.

    Args:
        step: the last one before the first look.

    Example:
        >>> looks = Looks()
        >>> [step for step in range(1, 25) if looks.is_due(step)]
        [8, 16, 24]
        >>> [looks.is_sudden(loss) for loss in (2.0, 2.1, 1.9, 5.0, 4.0, 11.0)]
        [False, False, False, True, False, True]
    """

    def __init__(self, step: int = 0) -> None:
        self._next_step = step + check_interval(0)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._num_sudden = self._num_lost = 0

    def is_due(self, step: int) -> bool:
        """Whether a regular look is due at the last step that the fixed lag has let through; then it counts as made."""
        if step < self._next_step:
            return False
        self._next_step = step + check_interval(step)
        self._num_sudden = 0
        return True

    def is_sudden(self, loss: float) -> bool:
        """Note a step's loss; whether it calls for a look now, which then counts as made."""
        self._num_lost = 0 if math.isfinite(loss) else self._num_lost + 1
        sudden = self._num_lost == RECENT or (self._num_sudden < MOST_SUDDEN and self._rises(loss))
        self._recent.append(loss)
        self._num_sudden += sudden
        return sudden

    def _rises(self, loss: float) -> bool:
        finite = [known for known in self._recent if math.isfinite(known)]
        return (
            bool(finite)
            and math.isfinite(loss)
            and loss > max(finite) + RISE * max(abs(max(finite)), max(finite) - min(finite))
        )

    def state_dict(self) -> dict[str, Any]:
        """What later decisions depend on."""
        return {
            "next_step": self._next_step,
            "recent": list(self._recent),
            "num_sudden": self._num_sudden,
            "num_lost": self._num_lost,
        }

    def load_state_dict(self, state: Any) -> None:
        """Go on from `state_dict`.

        Raises:
            StateError: it is damaged.
        """
        next_step = count(state, "next_step")
        num_sudden, num_lost = count(state, "num_sudden"), count(state, "num_lost")
        recent = take(state, "recent", list)
        if not all(isinstance(loss, float) for loss in recent):
            raise StateError("'recent' are not numbers")
        self._next_step, self._num_sudden, self._num_lost = next_step, num_sudden, num_lost
        self._recent = deque(recent, maxlen=RECENT)
