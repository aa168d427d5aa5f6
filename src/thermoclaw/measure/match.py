"""Whether a state is one of these units: their layers, their parameters, and how those lie in memory."""

from __future__ import annotations

from typing import Any

import torch

from thermoclaw.layers import Layout, Unit
from thermoclaw.measure.sharded import place_of
from thermoclaw.state import StateError, count, take

_PROBLEMS = {
    "layer": "which has another place",
    "params": "whose parameters the optimizer's groups, or devices, divide otherwise",
    "shapes": "whose parameters have other shapes",
    "order": "whose parameters lie otherwise in memory (channels_last or not)",
    "places": "of which each process keeps its own part in mode='exact' (load what this very process saved, with as "
    "many processes, or use mode='sketch')",
}


def describe(layout: Layout, *, with_places: bool) -> dict[str, Any]:
    """What a state says of its layers and units.

    Args:
        layout: of the model.
        with_places: also which elements this process holds, where its memory is of these alone.
    """
    return {
        "layers": [[layer.name, layer.num_params] for layer in layout.layers],
        "units": [_describe(unit, with_places=with_places) for unit in layout.units],
    }


def _describe(unit: Unit, *, with_places: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "layer": unit.layer,
        "params": list(unit.names),
        "shapes": [[*p.shape, *([2] if p.is_complex() else [])] for p in unit.params],
        "order": [_order(p, is_spread=unit.mesh is not None) for p in unit.params],
    }
    if with_places and unit.mesh is not None:
        found["places"] = [[int(n) for n in place_of(p, 0)] for p in unit.params]
    return found


def _order(p: torch.Tensor, *, is_spread: bool) -> list[int]:
    """Dimensions in the order in which a backend reads them, the slowest first."""
    if is_spread or p.is_contiguous():
        return list(range(len(p.shape)))
    strides = p.stride()
    return sorted(range(len(p.shape)), key=lambda d: (-strides[d], d))


def order_of(state: Any, layout: Layout) -> tuple[str, ...]:
    """The names of a state's layers, after checking that they are this model's (a layer that left is gone in both).

    Raises:
        StateError: they are not; the message names them.
    """
    theirs: dict[str, int] = {}
    for entry in take(state, "layers", list):
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise StateError("'layers' are not names and sizes")
        theirs[entry[0]] = count({"layers": entry[1]}, "layers")
    mine = {layer.name: layer.num_params for layer in layout.layers}
    lacking = [name for name, size in theirs.items() if size and not mine.get(name)]
    strange = [name for name, size in mine.items() if size and not theirs.get(name)]
    if lacking or strange:
        told = [f"this one lacks {_some(lacking)}"] * bool(lacking) + [f"the state lacks {_some(strange)}"] * bool(
            strange
        )
        raise StateError(f"it is of another model, by its layers: {' and '.join(told)}")
    other = [
        f"{name} has {theirs[name]} parameters there and {size} here"
        for name, size in mine.items()
        if size != theirs.get(name, 0)
    ]
    if other:
        raise StateError(f"it is of another model: {_some(other)}")
    return tuple(theirs)


def check(state: Any, layout: Layout, *, with_places: bool) -> None:
    """Compare units, after layers.

    Raises:
        StateError: they differ; the message says in which layer, and how.
    """
    theirs, mine = take(state, "units", list), describe(layout, with_places=with_places)["units"]
    if len(theirs) != len(mine) or not all(isinstance(there, dict) for there in theirs):
        raise StateError(
            f"the optimizer's groups, or devices, make {len(theirs)} parts of its layers, and {len(mine)} here"
        )
    for there, here in zip(theirs, mine, strict=True):
        for field, problem in _PROBLEMS.items():
            if there.get(field) != here.get(field):
                name = layout.layers[here["layer"]].name
                raise StateError(
                    f"it does not fit the layer {name!r}, {problem}: {there.get(field)} there, {here.get(field)} here"
                )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
