"""What to change, as data that can describe and apply itself. Works on anything with `param_groups`; no torch."""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, overload

from thermoclaw.diagnosis import knobs, regroup, schedules
from thermoclaw.diagnosis.journal import Journal
from thermoclaw.diagnosis.knobs import KNOBS, RemedyError

__all__ = ["Applied", "Remedy", "RemedyError"]

logger = logging.getLogger("thermoclaw")

# Clipping needs torch: thermoclaw.clipping puts itself here when it is imported, at the latest when it is needed.
install_clip: list[Callable[[Any, Any, float], Callable[[], None]]] = []


@dataclass(frozen=True)
class Remedy:
    """One hyper-parameter to change in some parameter groups.

    Attributes:
        knob: "lr", "weight_decay", "momentum" (betas[0] where the optimizer has betas), "beta2" (betas[1]), "eps", or
            "clip" (clip the norm of all gradients together).
        value: what to set it to. For "lr" it counts relative to `was`: every group's rate, and its schedule, is
            multiplied by value/was, so that groups keep their ratios and schedules their shape.
        was: the value that the finding was made under; for "clip", the norm that was seen.
        groups: indices of the parameter groups; empty means all.
        params: names of the parameters of the finding's layers, for `apply(split=True)`.
    """

    knob: str
    value: float
    was: float
    groups: tuple[int, ...] = ()
    params: tuple[str, ...] = ()

    @property
    def factor(self) -> float:
        """value/was, by which a learning rate is multiplied."""
        return self.value / self.was if self.was else math.nan

    def describe(self) -> str:
        """The change in words.

        >>> Remedy("weight_decay", 0.01, 5.0).describe()
        'set weight_decay from 5 to 0.01 in every parameter group'
        >>> Remedy("lr", 0.001, 0.1, (1,)).describe()
        'multiply lr by 0.01 (from 0.1 to 0.001) in parameter group 1'
        """
        if self.knob == "clip":
            seen = f", which was about {self.was:.4g}," if math.isfinite(self.was) and self.was > 0 else ""
            return f"clip the norm of all gradients{seen} to {self.value:.4g} before each step"
        where = "every parameter group"
        if self.groups:
            where = f"parameter group{'s'[: len(self.groups) - 1]} {', '.join(map(str, self.groups))}"
        change = f"from {self.was:.4g} to {self.value:.4g}"
        if self.knob == "lr":
            return f"multiply lr by {self.factor:.3g} ({change}) in {where}"
        return f"set {self.knob} {change} in {where}"

    def apply(
        self,
        optimizer: Any,
        scheduler: Any = None,
        *,
        model: Any = None,
        split: bool = False,
        force: bool = False,
        reason: str = "",
    ) -> Applied:
        """Carry the change out and say so in one line of the log. Nothing waits for a device.

        Args:
            optimizer: the optimizer, or a wrapper of one.
            scheduler: its learning-rate schedule (or several), whose base rates then follow a change of lr; a
                LambdaLR, and with it each schedule of Transformers, would undo it at its next step otherwise.
            model: the model, for `split`.
            split: change the parameters in `params` only, by moving them into a parameter group of their own. Their
                optimizer state stays; the schedule's lists are extended.
            force: also where the knob no longer is what the finding saw.
            reason: for the line in the log.

        Returns:
            What was done: one entry per changed group with the keys group, knob, was, now. Its `undo()` takes it back.

        Raises:
            RemedyError: the remedy does not fit, the message says why; nothing was changed then.

        Example:
            >>> import torch
            >>> optimizer = torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=0.1, weight_decay=5.0)
            >>> changed = Remedy("weight_decay", 0.01, 5.0).apply(optimizer)
            >>> optimizer.param_groups[0]["weight_decay"], changed[0]["was"]
            (0.01, 5.0)
            >>> changed.undo()
            >>> optimizer.param_groups[0]["weight_decay"]
            5.0
        """
        inner = knobs.innermost(optimizer)
        parts = schedules.parts_of(scheduler)
        knobs.check_kind(inner, self.knob)
        schedules.check(parts, inner)
        journal = Journal()
        try:
            changes = self._clip(journal, optimizer, inner) if self.knob == "clip" else None
            sources: list[int] = []
            if changes is None:
                places = self._places(inner, force=force)
                if split:
                    chosen, sources = self._to_split(inner, places, model=model, scheduled=scheduler is not None)
                    schedules.check_lists(parts, len(inner.param_groups))
                    places = [regroup.split(journal, inner, parts, chosen, place) for place in sources]
                changes = self._turn(journal, inner, parts, places)
        except Exception:
            journal.undo()
            raise
        applied = Applied(self, changes, journal, sources)
        lost = self.knob == "lr" and not parts and any("initial_lr" in group for group in inner.param_groups)
        hint = "; a schedule was attached to this optimizer and may undo it: give it as scheduler=" if lost else ""
        because = f", because of {reason}" if reason else ""
        logger.warning("thermoclaw: remedy applied: %s%s%s", applied.describe(), because, hint)
        return applied

    def again(self, done: dict[str, Any], optimizer: Any, scheduler: Any = None, *, model: Any = None) -> Applied:
        """What `apply` did in an earlier process (its `to_json()`), as something that can be taken back in this one.

        Values are not written: they come with the states of the optimizer and its schedule. What these do not bring is
        made again: the hook that clips, and groups that were split off, for which this comes before those states.

        Raises:
            RemedyError: it does not fit this optimizer.
        """
        inner, parts, journal = knobs.innermost(optimizer), schedules.parts_of(scheduler), Journal()
        changes, sources = [dict(change) for change in done["changes"]], [int(i) for i in done.get("split", ())]
        if self.knob == "clip":
            self._clip(journal, optimizer, inner)
        elif sources:
            if not 0 <= max(sources) < len(inner.param_groups):
                raise RemedyError(f"the optimizer has no parameter group {max(sources)}")
            chosen, _ = self._to_split(inner, sources, model=model, scheduled=True)
            for place in sources:
                regroup.split(journal, inner, parts, chosen, place)
        applied = Applied(self, changes, journal, sources)
        if self.knob != "clip":
            applied.turn_back = partial(self._turn_back, inner, parts, changes)
        return applied

    def _turn_back(self, optimizer: Any, parts: list[Any], changes: list[dict[str, Any]]) -> None:
        groups, aside = optimizer.param_groups, Journal()
        places = [change["group"] for change in changes]
        if self.knob == "lr":
            schedules.tell_scaled(aside, parts, groups, places, 1.0 / self.factor)
            schedules.scale(aside, parts, places, len(groups), 1.0 / self.factor)
        for change in changes:
            group, was, is_there = groups[change["group"]], change["was"], False
            if self.knob == "lr":
                is_there = was is not None and knobs.read(group, "lr", change["group"]) == change["now"]
                knobs.scale_rates(aside, group, 1.0 / self.factor)
            if was is not None and (self.knob != "lr" or is_there):
                knobs.write(aside, optimizer, group, self.knob, was)

    @staticmethod
    def undo(optimizer: Any, changed: Applied | Sequence[dict[str, Any]]) -> None:
        """Put back what `apply` returned; `changed.undo()` does the same."""
        if isinstance(changed, Applied):
            changed.undo()
            return
        inner = knobs.innermost(optimizer)
        for entry in changed:
            knobs.write(Journal(), inner, inner.param_groups[entry["group"]], entry["knob"], entry["was"])

    # -- what fits ----------------------------------------------------------------------------------------------------

    def _places(self, optimizer: Any, *, force: bool) -> list[int]:
        """The groups to change, after every check that does not need the parameters' names."""
        groups = optimizer.param_groups
        if self.knob == "lr" and not (math.isfinite(self.factor) and self.factor > 0):
            raise RemedyError(f"lr was {self.was:g} and should become {self.value:g}: that is no positive factor")
        places = list(self.groups or range(len(groups)))
        for place in places:
            if not 0 <= place < len(groups):
                raise RemedyError(f"the optimizer has {len(groups)} parameter groups, the remedy names group {place}")
        now = {place: knobs.read(groups[place], self.knob, place) for place in places}
        if all(knobs.has_strayed(groups[i], self.knob, value, self.was, self.value) for i, value in now.items()):
            if not force:
                values = ", ".join(f"{value:.4g}" for value in dict.fromkeys(now.values()))
                raise RemedyError(
                    f"{self.knob} is {values} now and was {self.was:.4g} when the finding was made: it was changed "
                    "since. Look again, or apply(..., force=True)"
                )
        elif self.knob != "lr":
            now = {i: v for i, v in now.items() if not knobs.is_there(self.knob, v, self.value, self.was)}
        now = {i: v for i, v in now.items() if self.knob != "weight_decay" or v != 0}  # none stays none
        if not now:
            raise RemedyError(
                f"{self.knob} is at {self.value:.4g} or beyond in every group: there is nothing to change"
            )
        return list(now)

    # -- what is done -------------------------------------------------------------------------------------------------

    def _clip(self, journal: Journal, given: Any, optimizer: Any) -> list[dict[str, Any]]:
        if not self.value > 0:
            raise RemedyError(f"clip to {self.value:g}: give a positive norm")
        if not hasattr(optimizer, "register_step_pre_hook"):
            raise RemedyError(f"{type(optimizer).__name__} has no step hooks: clip its gradients in the loop")
        if not install_clip:
            importlib.import_module("thermoclaw.clipping")  # whoever has an optimizer has torch
        (install,) = install_clip
        journal.later(install(given, optimizer, self.value))
        return [{"group": None, "knob": self.knob, "was": _finite(self.was), "now": self.value}]

    def _to_split(
        self, optimizer: Any, places: list[int], *, model: Any, scheduled: bool
    ) -> tuple[set[int], list[int]]:
        """The parameters to move, by identity, and the groups that hold them."""
        if not self.params:
            raise RemedyError("this remedy names no parameters: apply it without split=True")
        groups = optimizer.param_groups
        if not scheduled and any("initial_lr" in group for group in groups):
            raise RemedyError(
                "a schedule was attached to this optimizer, and it fails when a group is added behind its back: give "
                "it as scheduler="
            )
        chosen = regroup.named(model, self.params)
        return chosen, regroup.places_after_split(groups, chosen, places)

    def _turn(self, journal: Journal, optimizer: Any, parts: list[Any], places: list[int]) -> list[dict[str, Any]]:
        groups, changes = optimizer.param_groups, []
        if self.knob == "lr":
            schedules.tell_scaled(journal, parts, groups, places, self.factor)
        for place in places:
            was = knobs.read(groups[place], self.knob, place)
            now = was * self.factor if self.knob == "lr" else self.value
            if self.knob == "lr":
                knobs.scale_rates(journal, groups[place], self.factor)
            else:
                knobs.write(journal, optimizer, groups[place], self.knob, self.value)
            changes.append({"group": place, "knob": self.knob, "was": _finite(was), "now": _finite(now)})
        if self.knob == "lr":
            schedules.scale(journal, parts, places, len(groups), self.factor)
        elif self.knob == "momentum":
            schedules.lower_momentum(journal, parts, places, self.value)
        return changes

    # -- as data ------------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` reads it back."""
        return {
            "knob": self.knob,
            "value": self.value,
            "was": self.was,
            "groups": list(self.groups),
            "params": list(self.params),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Remedy:
        """Rebuild what `to_json` wrote."""
        knob = str(data["knob"])
        if knob not in KNOBS:
            raise ValueError(f"unknown knob {knob!r}")
        groups = tuple(int(g) for g in data["groups"])
        params = tuple(str(name) for name in data.get("params", ()))
        return cls(knob, float(data["value"]), float(data["was"]), groups, params)


class Applied(Sequence[dict[str, Any]]):
    """What `Remedy.apply` did: a list of changes that can be taken back.

    Attributes:
        remedy: the remedy.
        is_undone: whether it was taken back.
    """

    def __init__(
        self, remedy: Remedy, changes: list[dict[str, Any]], journal: Journal, sources: Sequence[int] = ()
    ) -> None:
        self.remedy = remedy
        self.is_undone = False
        self.turn_back: Callable[[], None] = lambda: None  # what the journal of an earlier process would have done
        self._changes, self._journal, self._sources = changes, journal, list(sources)

    def undo(self) -> None:
        """Take the change back: groups, schedule, hook. A rate that has moved on with its schedule is divided back.

        May wait for a device where a rate is a tensor on one. A second call does nothing.
        """
        if not self.is_undone:
            self.turn_back()
        self.is_undone = True
        self._journal.undo()

    def forget(self) -> None:
        """Take off what `Remedy.again` made, and leave all values as they are."""
        self._journal.undo()

    def describe(self) -> str:
        """What was done, in words and numbers."""
        if self.remedy.knob == "clip":
            return self.remedy.describe()
        verb = f"lr × {self.remedy.factor:.3g}" if self.remedy.knob == "lr" else self.remedy.knob
        told: dict[str, list[str]] = {}
        for change in self._changes:
            told.setdefault(f"{_word(change['was'])} → {_word(change['now'])}", []).append(str(change["group"]))
        return f"{verb}: " + "; ".join(f"{change} in group {', '.join(where)}" for change, where in told.items())

    def to_json(self) -> dict[str, Any]:
        """Plain data: the remedy, the changes, and both in words."""
        found = {**self.remedy.to_json(), "changes": [dict(c) for c in self._changes], "text": self.describe()}
        return {**found, "split": self._sources} if self._sources else found  # the groups that were split

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        """One change, or some."""
        return self._changes[index]

    def __len__(self) -> int:
        return len(self._changes)

    def __repr__(self) -> str:
        return f"Applied({self.describe()}{', undone' if self.is_undone else ''})"


def _finite(value: float) -> float | None:
    """None for what could not be read without waiting, as JSON has no NaN."""
    return value if math.isfinite(value) else None


def _word(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"
