"""Sharded parameters: the local part of a DTensor, where it lies, and the sum over the processes that share the rest.

A sharded unit is measured as a whole. Each process sketches the elements it holds at their global places; one packed
all-reduce a measured step, inside the optimizer's step where every process comes by, adds the sketches and squared
norms up, and from there on every process has the same numbers. Reading them later needs no communication. Of parameters
that are replicated along a mesh dimension, only the first process along it contributes.

A process whose measuring fails goes on taking part, with a mark, until all of them see the mark and stop together:
nobody is left waiting.

Legend: U units, p sketch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from thermoclaw.buffer import DeviceRing
from thermoclaw.layers import Unit, mesh_of
from thermoclaw.measure.place import Place, box, whole
from thermoclaw.partition import Fragment, Sharers

MEET_S = 120.0
"""Seconds that processes wait for each other when the first observer of a sharded model is made."""

_meetings: dict[tuple[int, ...], int] = {}


class PeerFailed(RuntimeError):
    """Measuring failed on another process of this run."""


def local(x: Tensor) -> Tensor:
    """The elements of a tensor that this process holds (call it without gradients)."""
    if mesh_of(x) is None:
        return x
    held = x.to_local()  # type: ignore[attr-defined]
    return held.wait() if hasattr(held, "wait") else held


def local_gradient(p: Tensor) -> Tensor | None:
    """The part of a parameter's gradient that lies where the parameter's part does."""
    grad = p.grad
    if grad is None:
        return None
    grad = grad.detach()
    if mesh_of(grad) is not None and grad.placements != p.placements:  # type: ignore[attr-defined]
        grad = grad.redistribute(placements=p.placements)  # type: ignore[attr-defined]
    return local(grad)


def place_of(p: Tensor, start: int) -> Place:
    """Where this process's part of a parameter lies, if the parameter starts at flat index `start` of its unit.

    Raises:
        ValueError: the parameter is cut in a way that is not supported.
    """
    width = 2 if p.is_complex() else 1
    if isinstance(p, Fragment):
        return Place(start + p.start, 1, p.count, p.count) if p.count else Place(start, 0, 0, 0)
    mesh = mesh_of(p)
    if mesh is None:
        return whole(start, p.numel() * width)
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    placements = p.placements  # type: ignore[attr-defined]
    coordinate = mesh.get_coordinate()
    replicated = [isinstance(placement, Replicate) for placement in placements]
    if coordinate is None or any(c > 0 for c, same in zip(coordinate, replicated, strict=True) if same):
        return Place(start, 0, 0, 0)
    shape, offset = compute_local_shape_and_global_offset(tuple(p.shape), mesh, placements)
    return box(tuple(p.shape), tuple(shape), tuple(offset), start=start, width=width)


def ranks_of(mesh: Any) -> tuple[int, ...]:
    """The processes of a device mesh, or the sharers of flat tensors, in order."""
    return tuple(sorted(mesh.ranks if isinstance(mesh, Sharers) else (int(r) for r in mesh.mesh.flatten())))


def meet(mesh: Any, *, seconds: float = MEET_S) -> None:
    """Wait until every process of a mesh, or of the sharers of flat tensors, has come by.

    Raises:
        RuntimeError: some did not; they would leave the others waiting in the first step.
    """
    from torch.distributed import distributed_c10d as c10d

    ranks = ranks_of(mesh)
    number = _meetings[ranks] = _meetings.get(ranks, 0) + 1
    store, me = c10d._get_default_store(), c10d.get_rank()
    room = f"thermoclaw/{','.join(map(str, ranks))}/{number}"
    store.set(f"{room}/{me}", "here")
    try:
        store.wait([f"{room}/{rank}" for rank in ranks], timedelta(seconds=seconds))
    except Exception as error:
        raise RuntimeError(
            f"only some of the processes {ranks} that share this sharded model made an Observer within "
            f"{seconds:.0f} s: make it on every process, and close it on every process at the same step"
        ) from error


class Peers:
    """The processes that hold the rest of some units, one bucket of units a mesh.

    Args:
        units: all units of a backend.
        device, dtype: where and how sums are made.
        per_unit: numbers that `exchange` sends for each unit.
    """

    def __init__(self, units: Sequence[Unit], *, device: torch.device, dtype: torch.dtype, per_unit: int) -> None:
        members: dict[Any, list[int]] = {}
        for u, unit in enumerate(units):
            if unit.mesh is not None:
                members.setdefault(unit.mesh, []).append(u)
        self._buckets = [
            _Bucket(
                _groups(mesh),
                None if len(held) == len(units) else torch.tensor(held, device=device),
                len(held) * per_unit + 1,
                len(ranks_of(mesh)),
            )
            for mesh, held in members.items()
        ]
        self._device, self._dtype = device, dtype
        self._marks: DeviceRing | None = None  # by step and bucket, how many processes took part
        self._first_bad: int | None = None
        self.is_owed = False  # the others are, or will be, waiting in the exchange of this step

    def __bool__(self) -> bool:
        return bool(self._buckets)

    def add_up(self, *tensors: Tensor) -> list[Tensor]:
        """Add up tensors [U, …] over the processes, in place; returns how many took part, by bucket."""
        counts = []
        for bucket in self._buckets:
            parts = [x if bucket.units is None else x[bucket.units] for x in tensors]
            mark = torch.ones(1, device=self._device, dtype=self._dtype)
            packed = torch.cat([*(x.reshape(-1).to(self._dtype) for x in parts), mark])
            bucket.all_reduce(packed)
            at = 0
            for x, part in zip(tensors, parts, strict=True):
                total = packed[at : at + part.numel()].view(part.shape).to(x.dtype)
                if bucket.units is None:
                    x.copy_(total)
                else:
                    x[bucket.units] = total
                at += part.numel()
            counts.append(packed[-1])
        return counts

    def exchange(self, *tensors: Tensor) -> None:
        """`add_up` for a step: `per_unit` numbers a unit in all."""
        self.is_owed = False
        self._mark(self.add_up(*tensors))

    def stand_in(self) -> None:
        """Take part in a step's exchange with nothing but the mark of having failed."""
        self.is_owed = False
        packed = [torch.zeros(b.num_numbers, device=self._device, dtype=self._dtype) for b in self._buckets]
        for bucket, numbers in zip(self._buckets, packed, strict=True):
            bucket.all_reduce(numbers)
        self._mark([numbers[-1] for numbers in packed])

    def mean_of(self, *values: float) -> tuple[float, ...]:
        """The same numbers on every process: their means over the first bucket's (this waits; for rare decisions)."""
        if not self._buckets:
            return values
        sums = torch.tensor([*values, 1.0], device=self._device)
        self._buckets[0].all_reduce(sums)
        *totals, count = sums.tolist()
        return tuple(total / count for total in totals)

    def start(self, *, block: int) -> None:
        """Before the first step: look at marks in blocks of so many steps."""
        self._marks = DeviceRing((len(self._buckets),), block=block, device=self._device, dtype=torch.float32)

    def continue_from(self, count: int) -> None:
        """Count marks from so many steps on, in all of which everybody took part."""
        assert self._marks is not None
        self._marks.continue_from(count)

    def _mark(self, counts: list[Tensor]) -> None:
        assert self._marks is not None
        self._marks.next_row().copy_(torch.stack(counts))
        self._marks.advance()

    def num_good(self, *, everything: bool = False) -> int | None:
        """Steps up to the first in which a process failed, None while there is none; `everything` waits."""
        assert self._marks is not None
        pushed = self._marks.taken() + self._marks.pending()
        self._marks.start_copies(pushed)
        before = self._marks.taken()
        count = self._marks.pending() if everything else self._marks.due(pushed) - before
        if count > 0:
            enough = [bucket.num_processes - 0.5 for bucket in self._buckets]
            bad = np.flatnonzero((self._marks.take(count) < enough).any(axis=1))
            if len(bad) and self._first_bad is None:
                self._first_bad = before + int(bad[0])
        return self._first_bad

    def check(self) -> None:
        """Look at the marks that the fixed lag has let through: the same ones on every process, at the same step.

        Raises:
            PeerFailed: one of the processes has failed.
        """
        assert self._marks is not None
        first = self.num_good()
        if first is not None and first < self._marks.due(self._marks.taken() + self._marks.pending()):
            raise PeerFailed(
                "measuring failed on another process of this run, whose log has the traceback; it stops on all of them"
            )


class _Bucket(NamedTuple):
    """Units that are spread over the same processes."""

    groups: list[Any]
    units: Tensor | None  # their places, where they are not all
    num_numbers: int
    num_processes: int

    def all_reduce(self, packed: Tensor) -> None:
        import torch.distributed as dist

        for group in self.groups:
            dist.all_reduce(packed, group=group)


def _groups(mesh: Any) -> list[Any]:
    """The process groups whose all-reduces, one after the other, sum over a mesh: the whole world's where that fits."""
    import torch.distributed as dist

    if isinstance(mesh, Sharers):
        return [mesh.group]
    if mesh.mesh.numel() == dist.get_world_size():
        return [dist.group.WORLD]
    return [mesh.get_group(d) for d in range(mesh.ndim) if mesh.size(d) > 1]
