"""Learning-rate schedules under a remedy: base rates that follow it, and lists that follow a split group. No torch.

torch's schedulers keep a list of base rates, one a group (`base_lrs`); LambdaLR, and with it every schedule of
Transformers, writes base × factor at each step and so undoes a plain write. Others go on from the group's own rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from thermoclaw.diagnosis.journal import Journal, is_tensor
from thermoclaw.diagnosis.knobs import RemedyError, innermost

_RATES = ("base_lrs", "min_lrs", "max_lrs", "base_values")
_LAST = "_last_lr"  # what a schedule told last: a list that is made anew at each step, and that several may share
_FLOORS = ("eta_min", "default_min_lr")
_MOMENTA = ("base_momentums", "max_momentums")
_BY_GROUP = (*_RATES, _LAST, *_MOMENTA, "lr_lambdas")
_OTHER_LISTS = ("_schedulers", "_milestones", "milestones", "_schedule_phases")


def parts_of(scheduler: Any) -> list[Any]:
    """A schedule and those inside it: wrappers with `.scheduler`, SequentialLR, ChainedScheduler, lists of them."""
    if scheduler is None:
        return []
    if isinstance(scheduler, (list, tuple)):
        return [part for one in scheduler for part in parts_of(one)]
    if hasattr(scheduler, "scheduler"):
        return parts_of(scheduler.scheduler)
    return [scheduler, *parts_of(getattr(scheduler, "_schedulers", None))]


def check(parts: Sequence[Any], optimizer: Any) -> None:
    """Refuse a schedule of another optimizer, or one that keeps its rates where nobody can tell."""
    for part in parts:
        name, owner = type(part).__name__, getattr(part, "optimizer", None)
        if owner is not None and innermost(owner) is not optimizer:
            raise RemedyError(f"the scheduler {name} belongs to another optimizer than the one given")
        known = vars(part) if hasattr(part, "__dict__") else {}
        if not any(key in known for key in (*_RATES, _LAST, "_schedulers")):
            raise RemedyError(
                f"{name} is no scheduler that a remedy can follow: it keeps none of {', '.join(_RATES)}; change its "
                "rates yourself, and leave scheduler= out"
            )


class _ByGroup:
    """A list of a schedule by its name, as many schedules put a new list in its place at each step."""

    def __init__(self, part: Any, name: str) -> None:
        self._part, self._name = part, name

    @property
    def values(self) -> list[Any]:
        found: list[Any] = vars(self._part)[self._name]
        return found

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, place: int) -> Any:
        return self.values[place]

    def __setitem__(self, place: int, value: Any) -> None:
        self.values[place] = value


def _lists(parts: Sequence[Any], names: Sequence[str]) -> Iterator[_ByGroup]:
    """The named lists of all parts."""
    for part in parts:
        for name in names:
            if isinstance(vars(part).get(name), list):
                yield _ByGroup(part, name)


def scale(journal: Journal, parts: Sequence[Any], places: Sequence[int], num_groups: int, factor: float) -> None:
    """Multiply the rates of some groups; floors too, where it is all of them."""
    for values in _lists(parts, _RATES):
        for place in places:
            if place < len(values):
                journal.scale(values, place, factor)
    if len(places) < num_groups:
        return
    for part in parts:
        for name in _FLOORS:
            if isinstance(vars(part).get(name), (int, float)):
                journal.scale(vars(part), name, factor)


def tell_scaled(
    journal: Journal, parts: Sequence[Any], groups: Sequence[Any], places: Sequence[int], factor: float
) -> None:
    """Multiply the rates that schedules told last. To be called before groups change, so that it is undone after."""
    made: dict[int, list[Any]] = {}
    for part in parts:
        old = vars(part).get(_LAST)
        if isinstance(old, list):
            scaled = [rate * factor if place in places else rate for place, rate in enumerate(old)]
            new = vars(part)[_LAST] = made.setdefault(id(old), scaled)
            journal.later(partial(_tell_again, part, groups, old, new))


def _tell_again(part: Any, groups: Sequence[Any], old: list[Any], new: list[Any]) -> None:
    now = [group["lr"].clone() if is_tensor(group["lr"]) else group["lr"] for group in groups]
    vars(part)[_LAST] = old if vars(part)[_LAST] is new else now


def lower_momentum(journal: Journal, parts: Sequence[Any], places: Sequence[int], value: float) -> None:
    """Keep a schedule that cycles momentum at or below a value."""
    for values in _lists(parts, _MOMENTA):
        for place in places:
            if place < len(values) and values[place] > value:
                journal.put(values, place, value)


def check_lists(parts: Sequence[Any], num_groups: int) -> None:
    """Refuse to add a group where a schedule keeps lists that nobody here knows."""
    for part in parts:
        if type(part).__module__.startswith(("torch.", "thermoclaw.")):
            continue
        for name, values in vars(part).items():
            if name in _BY_GROUP or name in _OTHER_LISTS:
                continue
            if isinstance(values, (list, tuple)) and len(values) == num_groups:
                raise RemedyError(
                    f"{type(part).__name__}.{name} has one entry for each of the {num_groups} parameter groups, and "
                    "what to put there for a new group is not known: apply without split=True"
                )


def add_group(parts: Sequence[Any], source: int, num_groups: int) -> None:
    """Give every list one entry more, a copy of that of the group which is split."""
    for values in _lists(parts, _BY_GROUP):
        if len(values) == num_groups:  # one that several share has its entry already
            one = values[source]
            values.values.append(one.clone() if is_tensor(one) else one)


def drop_group(parts: Sequence[Any], place: int, num_groups: int) -> None:
    """Take an entry out again."""
    for values in _lists(parts, _BY_GROUP):
        if len(values) == num_groups:
            del values.values[place]
