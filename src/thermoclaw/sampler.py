"""Rows of what a module puts out, kept on its device until a check has enough of them, and looked at on the host.

Nothing here waits for the device, draws a random number or keeps a graph. A sample is sent to pinned memory when it is
complete and read a fixed number of steps later; on the CPU there is nothing to send.

Legend: N rows, D features, T positions of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thermoclaw.representation.arrays import MOST_ROWS
from thermoclaw.representation.summary import summarize

FIRST_CHECKS, EARLY, EARLY_EVERY = 5, 64, 16
LEAST_ROWS, SPAN = 64, 64  # a check gathers over as many steps as it takes to have so many rows, up to so many steps
MOST_FEATURES, INPUT_FEATURES = 4096, 64
LAG = 8  # steps
INPUT = "input"


def is_due(step: int, every: int) -> bool:
    """Whether a check begins at this step: the first five, every 16 up to 64, then at multiples of `every`."""
    return step <= FIRST_CHECKS or (step <= EARLY and step % EARLY_EVERY == 0) or step % every == 0


def first_tensor(value: Any) -> Tensor:
    """The first floating-point tensor in what a module puts out.

    Raises:
        TypeError: there is none.
    """
    for found in _tensors(value):
        if found.is_floating_point():
            return found
    raise TypeError(f"no floating-point tensor in a {type(value).__name__}: say which with features=lambda out: ...")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict) or hasattr(value, "values"):
        for held in value.values():
            yield from _tensors(held)
    elif isinstance(value, (list, tuple)):
        for held in value:
            yield from _tensors(held)


def pooled(value: Tensor) -> Tensor:
    """[N, D] as it is; of [N, T, D] the mean over positions, of [N, D, H, W] and more that over space."""
    if value.ndim == 2:
        return value
    if value.ndim < 2:
        return value.reshape(-1, 1)
    return value.float().mean(dim=1 if value.ndim == 3 else tuple(range(2, value.ndim)))


class Sample:
    """Rows of one check on their way to the host."""

    def __init__(self, step: int, parts: dict[str, Tensor]) -> None:
        self.step = step
        self._parts, self._event = parts, None
        if any(part.device.type == "cuda" for part in parts.values()):
            self._parts = {
                name: torch.empty(part.shape, dtype=part.dtype, pin_memory=True).copy_(part, non_blocking=True)
                for name, part in parts.items()
            }
            self._event = torch.cuda.Event()
            self._event.record()

    def is_due(self, step: int) -> bool:
        """Whether the lag has passed: at once on the CPU."""
        return self._event is None or step >= self.step + LAG

    def read(self) -> dict[str, dict[str, float]]:
        """What the parts are like, by name. Waits for a copy that was sent long ago."""
        if self._event is not None:
            self._event.synchronize()
        return {name: summarize(part.cpu().numpy().astype(np.float64)) for name, part in self._parts.items()}


class Sampler:
    """Gathers rows when a check is due; of the device's memory it holds the rows of one check.

    Args:
        every: steps between checks, after the first.
        rows: N of a check.
    """

    def __init__(self, *, every: int, rows: int) -> None:
        self.every, self.rows = every, rows
        self.num_checks = 0
        self._buffers: dict[str, Tensor] = {}
        self._filled = 0
        self._began = 0  # the step at which gathering began; 0 while none is under way
        self._checked = 0  # the step of the last check that began
        self._sent: list[Sample] = []

    def wants(self, step: int) -> bool:
        """Whether rows at this step are of use; completes a check whose time is over."""
        if self._began and step > self._began and (self._filled >= LEAST_ROWS or step >= self._began + SPAN):
            self._send()
        if not self._began and step > self._checked and is_due(step, self.every):
            self._began = self._checked = step
            self._filled = 0
        return bool(self._began)

    def take(self, parts: dict[str, Tensor]) -> None:
        """Copy rows of tensors [N, …] whose rows belong together; "input" as it is, all others pooled to [N, D]."""
        num_rows = min(len(part) for part in parts.values())
        room = self.rows - self._filled
        stride = max(num_rows // room, 1)
        count = min(-(-num_rows // stride), room)
        shaped = {
            name: (some_columns if name == INPUT else pooled)(part.detach()[:num_rows:stride][:count])
            for name, part in parts.items()
        }
        if self._fit(shaped):
            self.take(parts)  # anew, with room for more
            return
        for name, rows in shaped.items():
            self._buffers[name][self._filled : self._filled + count].copy_(_narrow(rows))
        self._filled += count
        if self._filled >= self.rows:
            self._send()

    def _fit(self, parts: dict[str, Tensor]) -> bool:
        """Buffers of the right shape and place; whether that dropped rows that were gathered in others."""
        want = {name: (_narrow(part).shape[1], part.device) for name, part in parts.items()}
        if want == {name: (held.shape[1], held.device) for name, held in self._buffers.items()}:
            return False
        self._buffers = {
            name: torch.empty(self.rows, width, dtype=torch.float32, device=device)
            for name, (width, device) in want.items()
        }
        dropped, self._filled = self._filled > 0, 0
        return dropped

    def finish(self) -> None:
        """Complete a check that has rows enough: nothing comes after."""
        if self._filled >= LEAST_ROWS:
            self._send()

    def _send(self) -> None:
        if self._filled:
            parts = {name: held[: self._filled].clone() for name, held in self._buffers.items()}
            self._sent.append(Sample(self._began, parts))
        self._began = self._filled = 0

    def due(self, step: int, *, everything: bool = False) -> Iterator[tuple[int, dict[str, dict[str, float]]]]:
        """Step and contents of the checks that the lag has let through, or of all that are complete."""
        while self._sent and (everything or self._sent[0].is_due(step)):
            sample = self._sent.pop(0)
            self.num_checks += 1
            yield sample.step, sample.read()


def _narrow(part: Tensor) -> Tensor:
    """At most 4096 of its columns."""
    return part[:, :: max(-(-part.shape[1] // MOST_FEATURES), 1)]


def some_columns(part: Tensor) -> Tensor:
    """Up to 64 numbers of each row of an input of any shape."""
    flat = part.reshape(len(part), -1)
    return flat[:, :: max(-(-flat.shape[1] // INPUT_FEATURES), 1)]


def input_of(args: tuple[Any, ...], num_rows: int) -> Tensor | None:
    """What a module was given, where its rows can be told."""
    for value in _tensors(list(args)):
        if value.ndim and len(value) == num_rows and value.numel() and not value.is_complex():
            return value
    return None


def check_settings(every: Any, rows: Any, features: Callable[[Any], Tensor] | None) -> None:
    """Refuse what cannot work.

    Raises:
        TypeError, ValueError: a setting is not what it should be.
    """
    for name, value, most in (("every", every, None), ("rows", rows, MOST_ROWS)):
        least = 1 if most is None else LEAST_ROWS
        if not isinstance(value, int) or isinstance(value, bool) or value < least or (most and value > most):
            at_most = f" and at most {most}" if most else ""
            raise ValueError(f"{name}={value!r}: give a whole number of at least {least}{at_most}")
    if features is not None and not callable(features):
        raise TypeError(f"features={features!r}: give a function from what the module puts out to a tensor [N, D]")
