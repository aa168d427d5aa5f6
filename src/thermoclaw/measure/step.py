"""The step that the optimizer is making: what it is made with, and what was read before and after it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from thermoclaw.layers import Unit
from thermoclaw.measure.hyper import GroupHyper, device_lrs, read_groups
from thermoclaw.measure.parts import Parts
from thermoclaw.partition import Partition
from thermoclaw.quantities import Array


class Step:
    """Reads gradients before the optimizer uses them, parameters after, and hyper-parameters as they are just then.

    Args:
        optimizer: that steps.
        partition: how it spreads parameters over processes, if it does.
        parts: that measure.
        units: of all parts.

    Attributes:
        hyper: of the groups.
        has_grad: of the units, see `has_gradient`.
        seen: what a probe looked at [U, 3]; None where there was none.
    """

    def __init__(self, optimizer: Any, partition: Partition | None, parts: Parts, units: tuple[Unit, ...]) -> None:
        self._optimizer, self._partition, self._parts, self._units = optimizer, partition, parts, units
        self.hyper: list[GroupHyper] = []
        self.has_grad: list[float] = []
        self.seen: Array | None = None
        self._lrs: dict[int, Tensor] = {}  # by group, where they live on a device
        self._is_late = False  # there is a closure: gradients exist only after the step

    def begin(self, *, closure: bool, probed: bool) -> None:
        """The optimizer is about to step."""
        self._is_late = closure
        self.hyper, self._lrs = read_groups(self._optimizer), device_lrs(self._optimizer)
        if self._partition is not None:
            self.hyper = self.hyper[:1] * self._partition.num_groups
            self._lrs = {}
            self._note_groups(self._partition)
        if not closure:
            self._read_gradients(getattr(self._optimizer, "grad_scale", None))
            self._probe(probed=probed)

    def go_on(self) -> None:
        """The optimizer steps its next groups."""
        assert self._partition is not None
        self._note_groups(self._partition)
        before = self.has_grad
        self._read_gradients(getattr(self._optimizer, "grad_scale", None), more=True)
        self.has_grad = [b if a != 1 else a for a, b in zip(before, self.has_grad, strict=True)]

    def end(self, *, probed: bool, deep: bool, captured: bool = False) -> None:
        """The optimizer has stepped: write the row; in a captured graph, only the device's part of it."""
        if self._is_late:
            self._read_gradients(None)
            self._probe(probed=probed)
        self._parts.write_row(self._lrs, self.skipped, captured=captured)
        if deep:
            self._parts.probe_weights()

    @property
    def skipped(self) -> Tensor | None:
        """1 on the device where a loss scaler refuses the step."""
        return getattr(self._optimizer, "found_inf", None)

    def _note_groups(self, partition: Partition) -> None:
        """What the groups that are stepped now are stepped with."""
        partition.check()
        for i, hyper in zip(partition.stepping, read_groups(self._optimizer), strict=True):
            self.hyper[i] = hyper
        self._lrs.update({partition.stepping[i]: lr for i, lr in device_lrs(self._optimizer).items()})

    def _read_gradients(self, scale: Tensor | None, *, more: bool = False) -> None:
        self.has_grad = [has_gradient(unit) for unit in self._units]
        self._parts.read_gradients(scale, more=more)

    def _probe(self, *, probed: bool) -> None:
        """Take a closer look at the gradients just read, where it is time to."""
        self.seen = self._parts.probe_gradients(skipped=self.skipped) if probed else None


def has_gradient(unit: Unit) -> float:
    """1 if a parameter of the unit has a gradient, 0 if one should and none has, NaN if none is to be trained."""
    if any(p.grad is not None for p in unit.params):
        return 1.0
    return 0.0 if any(getattr(p, "param", p).requires_grad for p in unit.params) else float("nan")
