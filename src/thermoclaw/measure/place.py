"""Where the elements that this process holds lie within the flat index of their unit.

A whole tensor is one run. A shard along the first dimension is one run that starts further on. A shard along a later
dimension (tensor parallel) is a run for each row, a row's length apart. Every sketch is made with the flat index of the
whole unit, so that the sketches of shards add up to the sketch of the whole.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Place(NamedTuple):
    """Runs of elements: run r holds the flat indices start + r·stride … start + r·stride + run − 1 of a unit."""

    start: int
    rows: int
    run: int
    stride: int

    @property
    def size(self) -> int:
        """Elements held."""
        return self.rows * self.run

    @property
    def span(self) -> int:
        """Distance from the first element to behind the last."""
        return (self.rows - 1) * self.stride + self.run if self.size else 0


def whole(start: int, count: int) -> Place:
    """All of a tensor whose first element has flat index `start`."""
    return Place(start, 1, count, count)


def box(shape: tuple[int, ...], local: tuple[int, ...], offset: tuple[int, ...], *, start: int, width: int) -> Place:
    """The place of a box of a row-major tensor.

    Args:
        shape: of the whole tensor.
        local: of the box.
        offset: where the box begins, by dimension.
        start: flat index in the unit of the tensor's first element.
        width: numbers an element is made of (2 for complex ones).

    Raises:
        ValueError: the box is cut in more ways than rows and one run of each row can describe.
    """
    count = width
    for length in local:
        count *= length
    if count == 0:
        return Place(start, 0, 0, 0)
    first, step, run, is_whole = 0, width, width, True
    rows, stride = 1, 0
    for total, held, at in reversed(list(zip(shape, local, offset, strict=True))):
        first += at * step
        if is_whole:  # as long as everything further in is whole, the run grows
            run, is_whole = held * step, held == total
        elif held > 1:
            if rows == 1:
                stride = step
            elif rows * stride != step:
                raise ValueError(
                    f"a shard of shape {local} at {offset} of a parameter of shape {shape} is not measured"
                )
            rows *= held
        step *= total
    return Place(start + first, rows, run, stride if rows > 1 else run)


def spread(x: Tensor, place: Place) -> Tensor:
    """A flat local tensor laid out over the span of its place, with zeros between the runs."""
    if place.rows <= 1 or place.run == place.stride:
        return x
    wide = torch.zeros(place.rows, place.stride, device=x.device, dtype=x.dtype)
    wide[:, : place.run] = x.view(place.rows, place.run)
    return wide.view(-1)[: place.span]
