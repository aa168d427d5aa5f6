"""Writes into groups and schedules that can be taken back. Works on numbers and tensors alike; no torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def is_tensor(value: Any) -> bool:
    """Whether a value is changed in place, as a captured or compiled step holds on to it."""
    return hasattr(value, "fill_")


def plain(value: Any) -> float:
    """A float without waiting for a device; NaN for what lives on one.

    Raises:
        TypeError, ValueError: it is no number.
    """
    if is_tensor(value) and (value.device.type != "cpu" or value.numel() != 1):
        return math.nan
    return float(value)


class Journal:
    """Notes how to take back each write; `undo` does so, the last first."""

    def __init__(self) -> None:
        self._back: list[Callable[[], None]] = []

    def later(self, back: Callable[[], None]) -> None:
        """Note how to take back something that was done elsewhere."""
        self._back.append(back)

    def put(self, place: Any, key: Any, value: Any) -> None:
        """`place[key] = value`; a tensor keeps its identity."""
        old = place[key]
        if is_tensor(old) and not is_tensor(value):
            kept = old.detach().clone()
            old.detach().fill_(value)
            self.later(lambda: void(old.detach().copy_(kept)))
        else:
            place[key] = value
            self.later(lambda: place.__setitem__(key, old))

    def scale(self, place: Any, key: Any, factor: float) -> None:
        """`place[key] *= factor`. Where somebody has moved it since, taking back divides what it is then."""
        old = place[key]
        if is_tensor(old):
            kept = old.detach().clone()
            new = old.detach().mul_(factor).clone()
            self.later(lambda: _scale_tensor_back(old.detach(), kept, new, factor))
        else:
            place[key] = old * factor
            self.later(lambda: _scale_back(place, key, old, old * factor, factor))

    def undo(self) -> None:
        """Take everything back; a second time there is nothing left to do."""
        while self._back:
            self._back.pop()()


def _scale_back(place: Any, key: Any, old: Any, new: Any, factor: float) -> None:
    now = place[key]
    place[key] = old if now == new else now / factor


def _scale_tensor_back(now: Any, kept: Any, new: Any, factor: float) -> None:
    if bool((now == new).all()):
        now.copy_(kept)
    else:
        now.mul_(1.0 / factor)


def void(_: object) -> None:
    """Turn a value into none, for a callable that must return nothing."""
