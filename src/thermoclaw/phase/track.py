"""The same parameters from step to step: measured on their devices, remembered within bounds.

Legend: P parameters, C columns, T steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from thermoclaw.buffer import DeviceRing
from thermoclaw.phase.config import PhaseConfig
from thermoclaw.phase.describe import State, Window
from thermoclaw.phase.measure import DevicePart, Entry
from thermoclaw.phase.rows import COLUMN, COLUMNS, Groups, History

Array = NDArray[np.float64]

BLOCK = 8  # rows that go to the host at a time


class Track:
    """Measures entries whose signatures stay the same.

    Args:
        entries: the parameters as they are at the first step.
        config: what is remembered.
    """

    def __init__(self, entries: Sequence[Entry], config: PhaseConfig) -> None:
        self.signature = signature(entries)
        self._seed = config.core.mode == "seed"
        places: dict[object, list[int]] = {}
        for i, entry in enumerate(entries):
            places.setdefault(entry.values.device, []).append(i)
        self._places = list(places.values())
        keep = None if self._seed else config.core.sample_size
        steps, grad_steps = config.core.window_size, config.gradient_window
        self._parts = [
            DevicePart([entries[i] for i in chosen], keep=keep, steps=steps, grad_steps=grad_steps)
            for chosen in self._places
        ]
        self._rings = [
            DeviceRing((len(p.pieces), len(COLUMNS)), block=BLOCK, device=p.device, dtype=p.wide, replayable=False)
            for p in self._parts
        ]
        self.groups = Groups([piece for part in self._parts for piece in part.pieces])
        self.history = History(self.groups, steps=max(steps, grad_steps))
        self.num_steps = 0

    def arrange(self, entries: Sequence[Entry]) -> list[Entry]:
        """The entries in the order of the groups' pieces."""
        return [entries[i] for chosen in self._places for i in chosen]

    def step(self, entries: Sequence[Entry]) -> list[Tensor]:
        """Measure; the rows, by device. Never waits."""
        rows = []
        for chosen, part, ring in zip(self._places, self._parts, self._rings, strict=True):
            row = part.step([entries[i] for i in chosen])
            ring.next_row().copy_(row)
            ring.advance()
            rows.append(row)
        self.num_steps += 1
        for ring in self._rings:
            ring.start_copies(self.num_steps)
        return rows

    def arrived(self, *, everything: bool) -> list[Array]:
        """Rows [P, C] that are new on the host, also put into the history; with `everything` it waits for the last."""
        upto = self.num_steps if everything else min(ring.due(self.num_steps) for ring in self._rings)
        count = upto - self._rings[0].taken()
        if count <= 0:
            return []
        rows = list(np.concatenate([ring.take(count) for ring in self._rings], axis=1))
        for row in rows:
            self.history.append(row)
        return rows

    def state(self, group: int) -> State:
        """The last step of a group."""
        row, members = self.history.rows[-1], self.groups.members[group]
        return State(
            delta=self.history.reduce(row, "delta", group),
            param_sq=self.history.reduce(row, "param_sq", group),
            grad_sq=self.history.reduce(row, "grad_sq", group),
            finite_share=float(np.mean(np.isfinite(row[members, COLUMN["delta"]]))),
            path=self.history.paths[group],
            has_complex=bool(self.groups.is_complex[members].any()),
        )

    def samples(self) -> tuple[Array, Array]:
        """Remembered weights and gradients [T, n], scaled so that sums of squares stand for whole parameters. Waits."""
        scale = np.concatenate([self._scale(part) for part in self._parts])
        rings = ([part.weights for part in self._parts], [part.gradients for part in self._parts])
        weights, gradients = (np.concatenate([ring.read() for ring in chosen], axis=1) * scale for chosen in rings)
        return weights, gradients

    @staticmethod
    def _scale(part: DevicePart) -> Array:
        columns = part.columns()
        scale = np.zeros(part.width)
        for piece, column in zip(part.pieces, columns, strict=True):
            scale[column] = math.sqrt(piece.size / piece.kept)
        return scale

    def window(self, group: int, samples: tuple[Array, Array], losses: Array) -> Window:
        """What is remembered of a group."""
        members = self.groups.members[group]
        columns, start = [], 0
        for part in self._parts:
            columns += [np.arange(c.start, c.stop) + start for c in part.columns()]
            start += part.width
        chosen = np.concatenate([columns[i] for i in members])
        weights, gradients = samples
        grad_sq = self.history.column("grad_sq", group)[-len(gradients) :]
        return Window(
            weights[:, chosen], gradients[:, chosen], np.sqrt(grad_sq), losses, float(self.groups.sizes[members].sum())
        )

    def num_bytes(self) -> int:
        """Bytes held between steps, on devices and on the host."""
        rows = sum(row.nbytes for row in self.history.rows)
        return rows + sum(p.num_bytes() for p in self._parts) + sum(r.num_bytes() for r in self._rings)


def signature(entries: Sequence[Entry]) -> tuple[object, ...]:
    """What must stay the same for a track to go on."""
    return tuple(entry.signature() for entry in entries)
