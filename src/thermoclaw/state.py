"""What a run goes on from: how owners read back the state that they gave, and refuse what does not fit. No torch.

Every owner of something that outlives a step has a `state_dict` and a `load_state_dict`, which name it by field; the
`Observer` puts them together. Nothing else is carried.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

MOST = 1 << 53
"""What anything may count to: whole numbers are exact up to it, in every kind of number that is used."""


class StateError(ValueError):
    """A state is damaged, or not one of this run."""


def take(state: Any, name: str, *kinds: type) -> Any:
    """A field of one of these kinds; a bool counts as nothing else."""
    if not isinstance(state, Mapping) or name not in state:
        raise StateError(f"it lacks {name!r}")
    value = state[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise StateError(f"{name!r} is a {type(value).__name__}, not a {' or '.join(k.__name__ for k in kinds)}")
    return value


def count(state: Any, name: str, *, most: int = MOST) -> int:
    """A field that counts something."""
    value: int = take(state, name, int)
    if not 0 <= value <= most:
        raise StateError(f"{name!r} is {value}, not a number from 0 to {most}")
    return value


def counts(state: Any, name: str) -> list[int]:
    """A field that is a list of numbers of something."""
    values: list[int] = take(state, name, list)
    return [count({name: value}, name) for value in values]


def array(state: Any, name: str, *shape: int | None, dtype: DTypeLike = np.float64) -> NDArray[Any]:
    """A field of this shape (None: any length) as an array of its own."""
    if not isinstance(state, Mapping) or name not in state:
        raise StateError(f"it lacks {name!r}")
    value = state[name]
    value = value.numpy() if hasattr(value, "numpy") else value
    if not isinstance(value, np.ndarray):
        raise StateError(f"{name!r} is a {type(value).__name__}, not a tensor")
    found = tuple(value.shape)
    if len(found) != len(shape) or any(want not in (None, have) for have, want in zip(found, shape, strict=True)):
        want = tuple("any" if length is None else length for length in shape)
        raise StateError(f"{name!r} has the shape {found}, not {want}")
    return np.array(value, dtype=dtype)


def maybe_array(state: Any, name: str, *shape: int | None) -> NDArray[np.float64] | None:
    """`array`, or None where the field is."""
    return None if isinstance(state, Mapping) and name in state and state[name] is None else array(state, name, *shape)


def text(data: Any) -> str:
    """Plain data that a user may have given as JSON, so that a state holds nothing that could execute."""
    return json.dumps(data, default=_plain, allow_nan=True)


def untext(state: Any, name: str, kind: type) -> Any:
    """A field that `text` wrote, of this kind."""
    try:
        value = json.loads(take(state, name, str))
    except ValueError as error:
        raise StateError(f"{name!r} cannot be read: {error}") from error
    return take({name: value}, name, kind)


def _plain(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)
