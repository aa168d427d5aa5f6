"""Layers in groups as a model is built: the blocks of a stack, and what stands before and after it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from thermoclaw.wording import short_name

_BLOCK = re.compile(r"(?:^|.*?\.)[^.]*?\d+(?=\.)")  # up to the first part with a number that something follows
_LABEL = 40


@dataclass(frozen=True)
class Group:
    """Layers that follow one another.

    Attributes:
        label: for people.
        first: place of the first layer.
        count: how many there are.
    """

    label: str
    first: int
    count: int


def block_of(name: str) -> str:
    """The block that a layer is in; "" outside of all.

    Example:
        >>> [block_of(name) for name in ("model.layers.3.mlp.up", "layer1.0.conv1", "wte", "0")]
        ['model.layers.3', 'layer1', '', '']
    """
    found = _BLOCK.match(name[:1000])
    return found[0] if found else ""


def groups_of(names: Sequence[str]) -> list[Group]:
    """The groups in the order of the layers; none where grouping says nothing.

    Example:
        >>> [g.label for g in groups_of(["wte", "wpe", "h.0.attn", "h.0.mlp", "h.1.attn", "h.1.mlp", "head"])]
        ['wte, wpe', 'h.0', 'h.1', 'head']
    """
    found, at = [], 0
    for block, members in itertools.groupby(names, key=block_of):
        inside = list(members)
        found.append(Group(_label(block, inside), at, len(inside)))
        at += len(inside)
    return found if 1 < len(found) <= 0.75 * len(names) else []


def _label(block: str, inside: Sequence[str]) -> str:
    if block:
        return short_name(block, _LABEL)
    shown = [short_name(name, _LABEL) for name in inside]
    if len(shown) <= 2:
        return ", ".join(shown)
    return f"{shown[0]} … {shown[-1]}"
