"""Where a few hundred weights of each layer were, at equal distances in time, in bounded memory and without waiting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoclaw.layers import Unit
from thermoclaw.state import StateError, array, count, counts


class SampledPath:
    """A ring of sampled coordinates; when it is full, every other row goes and the distance doubles.

    Args:
        units: whose parameters are sampled.
        points: coordinates a layer, at most.
        rows: rows that are kept, at most.
        stride: steps between two rows at first.

    Raises:
        ValueError: a parameter is spread over processes, or complex, or none can be sampled.
    """

    def __init__(self, units: Sequence[Unit], *, points: int, rows: int, stride: int) -> None:
        if any(unit.mesh is not None for unit in units):
            raise ValueError("parameters that are spread over processes cannot be sampled: observe an unsharded model")
        self.stride, self._limit = stride, rows
        self.steps: list[int] = []
        self._places: list[tuple[Tensor, Tensor]] = []
        self.layers: list[int] = []  # of each coordinate
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for layer in sorted({unit.layer for unit in units}):
                chosen = [p for unit in units if unit.layer == layer for p in unit.params]
                chosen = [p for p in chosen if p.is_floating_point() and p.numel()]
                total = sum(p.numel() for p in chosen)
                for p in chosen:
                    count = min(p.numel(), max(round(points * p.numel() / total), 1))
                    index = torch.randperm(p.numel(), generator=generator)[:count].to(p.device)
                    self._places.append((p, index))
                    self.layers += [layer] * count
        if not self._places:
            raise ValueError("there is no floating-point parameter to sample")
        self._home = self._places[0][0].device
        self._rows = torch.empty(rows, len(self.layers), device=self._home)

    @property
    def due(self) -> int:
        """The next step at which a row is wanted."""
        return self.steps[-1] + self.stride if self.steps else 0

    @torch.no_grad()
    def take(self, step: int) -> None:
        """Copy the coordinates as they are now."""
        if len(self.steps) == self._limit:
            kept = (self._limit + 1) // 2
            self._rows[:kept] = self._rows[::2].clone()
            self.steps = self.steps[::2]
            self.stride *= 2
            if step < self.due:
                return
        parts = [p.detach().reshape(-1)[index].to(self._home, torch.float32) for p, index in self._places]
        torch.cat(parts, out=self._rows[len(self.steps)])
        self.steps.append(step)

    def read(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Steps and coordinates of the rows, [N] and [N, C]. Waits for the device."""
        return np.array(self.steps, dtype=np.int64), self._rows[: len(self.steps)].double().cpu().numpy()

    def state_dict(self) -> dict[str, Any]:
        """The rows and how far apart they are. Waits for the device."""
        return {"stride": self.stride, "steps": list(self.steps), "rows": self._rows[: len(self.steps)].clone()}

    def load_state_dict(self, state: Any) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            StateError: it is damaged, or has rows of another model or other settings.
        """
        steps, stride = counts(state, "steps"), count(state, "stride")
        rows = array(state, "rows", len(steps), len(self.layers), dtype=np.float32)
        if len(steps) > self._limit or stride < 1:
            raise StateError(
                f"it has {len(steps)} samples at a stride of {stride}, and there is room for {self._limit}"
            )
        self.steps, self.stride = steps, stride
        self._rows[: len(steps)] = torch.from_numpy(rows).to(self._home)
