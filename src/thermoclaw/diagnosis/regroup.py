"""Moving parameters into a group of their own and back. Optimizer state is keyed by parameter and stays. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from thermoclaw.diagnosis import schedules
from thermoclaw.diagnosis.journal import Journal, is_tensor
from thermoclaw.diagnosis.knobs import RemedyError

_INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.")
_ALIGNED = ("params", "param_names")


def _bare(name: str) -> str:
    """A parameter's name without what wrappers put into it."""
    for word in _INSIDE:
        name = name.replace(word, "")
    return name.removeprefix("module.")


def named(model: Any, names: Iterable[str]) -> set[int]:
    """Identities of a model's parameters by name.

    Raises:
        RemedyError: there is no model, or it has no such parameter.
    """
    if model is None:
        raise RemedyError("split=True moves parameters by their names and needs the model: apply(..., model=model)")
    models = model if isinstance(model, (list, tuple)) else [model]
    known = {_bare(name): p for one in models for name, p in one.named_parameters(remove_duplicate=False)}
    missing = [name for name in names if _bare(name) not in known]
    if missing:
        raise RemedyError(f"the model has no parameter {missing[0]!r}")
    return {id(known[_bare(name)]) for name in names}


def places_after_split(groups: Sequence[dict[str, Any]], chosen: set[int], places: Sequence[int]) -> list[int]:
    """The groups among `places` that hold a chosen parameter.

    Raises:
        RemedyError: none does.
    """
    found = [place for place in places if any(id(p) in chosen for p in groups[place]["params"])]
    if not found:
        raise RemedyError("the optimizer holds none of the remedy's parameters: it was built from other tensors")
    return found


def _holder(groups: Sequence[dict[str, Any]], param: Any) -> int:
    return next(i for i, group in enumerate(groups) if any(p is param for p in group["params"]))


def split(journal: Journal, optimizer: Any, parts: Sequence[Any], chosen: set[int], place: int) -> int:
    """Put the chosen parameters of a group into a new one like it; the number of the group that holds only them.

    Args:
        journal: notes how to put them back.
        optimizer: the innermost optimizer.
        parts: its schedules, whose lists are extended.
        chosen: identities of parameters.
        place: number of the group.

    Returns:
        The new group's number, or `place` itself where the group holds nothing else.
    """
    groups = optimizer.param_groups
    group = groups[place]
    moves = [id(p) in chosen for p in group["params"]]
    if all(moves):
        return place
    new = {key: value.clone() if is_tensor(value) else value for key, value in group.items() if key not in _ALIGNED}
    before = {key: list(group[key]) for key in _ALIGNED if key in group}
    for key, values in before.items():
        new[key] = [value for value, yes in zip(values, moves, strict=True) if yes]
        group[key][:] = [value for value, yes in zip(values, moves, strict=True) if not yes]
    if "name" in new:
        new["name"] = f"{new['name']} (remedy)"
    schedules.add_group(parts, place, len(groups))
    groups.append(new)

    moved, kept = new["params"][0], group["params"][0]

    def back() -> None:  # by parameters, as load_state_dict() of an optimizer makes its groups anew
        now = optimizer.param_groups
        at, source = _holder(now, moved), now[_holder(now, kept)]
        schedules.drop_group(parts, at, len(now))
        del now[at]
        for key, values in before.items():
            old = {id(value) for value in values}
            source[key][:] = [*values, *(value for value in source[key] if id(value) not in old)]

    journal.later(back)
    return len(groups) - 1
