"""What is noticed around an optimizer's steps, beside their numbers: told to the rules in the record's `meta`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from thermoclaw.company import Company, Other
from thermoclaw.idle import Idle
from thermoclaw.layers import Layout
from thermoclaw.registry import is_anothers
from thermoclaw.renewal import Renewal
from thermoclaw.state import counts, take


class Surroundings:
    """Parameters that nobody moves, gradients that are not new, a loss that reaches others' models. Never waits.

    Args:
        optimizer: whose steps.
        layout: of its parameters.
    """

    def __init__(self, optimizer: Any, layout: Layout) -> None:
        self._idle = Idle(layout.unoptimized, lambda p: is_anothers(p, optimizer))
        self._renewal = Renewal()
        self.company = Company()

    def begin_step(self, layout: Layout, others: Iterable[Other]) -> None:
        """At a step that is about to be made, with its gradients in place; `others`: those of other optimizers."""
        some = [unit.params[0] for unit in layout.units[: Renewal.PARAMS]]
        self._renewal.look(some)
        self.company.begin(some, others)

    def end_step(self) -> None:
        """At a step that was made."""
        self.company.end()

    def look_outside(self, layout: Layout) -> None:
        """At parameters outside the optimizer."""
        self._idle.look(layout.unoptimized)

    def meta(self) -> dict[str, Any]:
        """What was noticed so far."""
        return {
            "unoptimized": self._idle.names,
            "outside_edges": self._idle.edges,
            "gradients_are_new": self._renewal.told,
            "is_game": self.company.told,
        }

    def go_on_from(self, meta: dict[str, Any]) -> None:
        """Keep what an earlier record knows of the start of its run."""
        self._idle.edges = dict(meta.get("outside_edges") or {})

    def state_dict(self) -> dict[str, Any]:
        """What later steps are compared with."""
        return {
            "missing": self._idle.told,
            "outside_edges": self._idle.edges,
            "gradients_renewed": self._renewal.state,
            "in_company": [self.company.reached, self.company.steps],
        }

    def load_state_dict(self, state: Any) -> None:
        """Go on from `state_dict`."""
        self._renewal = Renewal(*counts(state, "gradients_renewed"))
        self.company = Company(*counts(state, "in_company"))
        self._idle.load(take(state, "missing", dict), take(state, "outside_edges", dict))
