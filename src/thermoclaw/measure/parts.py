"""The backends of all devices, and the rings that their rows go to, driven as one.

Legend: U units, K raw columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoclaw.buffer import DeviceRing
from thermoclaw.layers import Unit
from thermoclaw.measure.anatomy import Anatomy
from thermoclaw.measure.choice import sketching_backend
from thermoclaw.measure.columns import PROBE_COLUMNS, RAW_COLUMNS, SEEN_COLUMNS
from thermoclaw.measure.exact import ExactBackend
from thermoclaw.measure.graphs import keep_for_graphs
from thermoclaw.measure.probe import Probe, UnitCounts
from thermoclaw.measure.sums import Backend
from thermoclaw.state import StateError, array, counts, take


def make_backend(units: list[Unit], *, mode: str, size: int) -> Backend:
    """The backend for a mode: "sketch" or "exact"."""
    if mode == "exact":
        return ExactBackend(units)
    return sketching_backend(units, size=size)


def main_matrices(units: Sequence[Unit]) -> list[Tensor | None]:
    """By unit, the largest matrix of its layer, if it is in that unit (the first of several)."""
    best: dict[int, tuple[int, int, Tensor]] = {}
    for u, unit in enumerate(units):
        for p in unit.params:
            if len(p.shape) > 1 and p.numel() > best.get(unit.layer, (0, 0, p))[0]:
                best[unit.layer] = p.numel(), u, p
    found: list[Tensor | None] = [None] * len(units)
    for _, u, p in best.values():
        found[u] = p
    return found


def widest(device: torch.device) -> torch.dtype:
    """The most precise numbers that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass
class Part:
    """The units on one device."""

    places: list[int]
    backend: Backend
    ring: DeviceRing
    probe: Probe


class Parts:
    """One part a device; see the module's docstring.

    Args:
        units: all units.
        anatomy: of their model.
        mode, size: of the backends.
        lag: rows a block of the rings.
        earlier: what measured before units changed; units that stay keep their memory.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        anatomy: Anatomy,
        *,
        mode: str,
        size: int,
        lag: int,
        earlier: Sequence[Part] = (),
    ) -> None:
        main = main_matrices(units)
        by_device: dict[torch.device, list[int]] = {}
        for place, unit in enumerate(units):
            by_device.setdefault(unit.device, []).append(place)
        self._num_units = len(units)
        self._parts: list[Part] = []
        for device, places in by_device.items():
            backend = make_backend([units[i] for i in places], mode=mode, size=size)
            for part in earlier:
                if part.backend.device == device:
                    backend.adopt(part.backend)
            backend.peers.start(block=lag)
            ring = DeviceRing((len(places), len(RAW_COLUMNS)), block=lag, device=device, dtype=widest(device))
            probe = Probe(
                [units[i] for i in places],
                anatomy,
                device=device,
                block=lag,
                dtype=widest(device),
                main=[main[i] for i in places],
                earlier=[part.probe for part in earlier],
            )
            self._parts.append(Part(places, backend, ring, probe))
        self.device = self._parts[0].backend.device

    def __iter__(self) -> Iterator[Part]:
        return iter(self._parts)

    @property
    def is_replayable(self) -> bool:
        """Whether the work of a step may be captured in a graph."""
        return all(part.backend.is_replayable for part in self._parts)

    def start_norms(self) -> NDArray[np.float64]:
        """‖θ‖² of each unit [U] when the parts were made. Waits for the device."""
        norms = np.empty(self._num_units)
        for part in self._parts:
            norms[part.places] = part.backend.start_norms().cpu().numpy()
        return norms

    def forget(self) -> None:
        """See `Backend`."""
        for part in self._parts:
            part.backend.forget()

    def read_gradients(self, scale: Tensor | None, *, more: bool = False) -> None:
        """See `Backend`."""
        for part in self._parts:
            part.backend.read_gradients(scale=scale, more=more)

    def probe_gradients(self, *, skipped: Tensor | None) -> NDArray[np.float64]:
        """`Probe.read_gradients` of all units [U, 3]; `count_probe` follows, as at every row."""
        seen = np.empty((self._num_units, len(SEEN_COLUMNS)))
        for part in self._parts:
            seen[part.places] = part.probe.read_gradients(skipped=skipped)
        return seen

    def probe_weights(self) -> None:
        """See `Probe`."""
        for part in self._parts:
            part.probe.read_weights()

    def count_probe(self) -> None:
        """Count a row of the probes' rings, whether or not it was probed."""
        for part in self._parts:
            part.probe.ring.advance()

    def forget_start(self) -> None:
        """See `Probe`."""
        for part in self._parts:
            part.probe.forget_start()

    def write_row(self, lrs: dict[int, Tensor], skipped: Tensor | None, *, captured: bool = False) -> None:
        """Read the parameters after the step and write the row; in a captured graph, only the device's part of it."""
        for part in self._parts:
            part.backend.read_parameters(part.ring.next_row(), lrs=lrs, skipped=skipped)
            if captured:
                part.ring.write()
                keep_for_graphs(part.ring)
            else:
                part.ring.advance()

    def count_replay(self) -> None:
        """The host's part of a row that a graph writes."""
        for part in self._parts:
            part.ring.count()

    def take(self, count: int) -> NDArray[np.float64]:
        """The next rows [count, U, K] on the host."""
        raw = np.empty((count, self._num_units, len(RAW_COLUMNS)))
        for part in self._parts:
            raw[:, part.places] = part.ring.take(count)
        return raw

    def take_probes(self, count: int) -> NDArray[np.float64]:
        """The next rows of the probes [count, U, C] on the host."""
        probes = np.empty((count, self._num_units, len(PROBE_COLUMNS)))
        for part in self._parts:
            probes[:, part.places] = part.probe.ring.take(count)
        return probes

    def state_dict(self) -> dict[str, Any]:
        """What backends and probes remember of each unit, on the host, side by side. Waits."""
        nothing = torch.zeros(0)
        memory, counts = (
            [nothing] * self._num_units,
            [UnitCounts(nothing, np.zeros(0, np.int64), [], 0.0)] * self._num_units,
        )
        for part in self._parts:
            for place, held, counted in zip(part.places, part.backend.memory(), part.probe.counts(), strict=True):
                memory[place], counts[place] = held, counted
        return {
            "memory": torch.cat([held.reshape(-1) for held in memory]),
            "silence": torch.cat([x.silence for x in counts]),
            "silence_rows": [len(x.silence) for x in counts],
            "observed": np.concatenate([x.observed for x in counts]),
            "matrices": [len(x.observed) for x in counts],
            "gains": [vector for x in counts for vector in x.gains],
            "num_gains": [len(x.gains) for x in counts],
            "start": np.array([x.start for x in counts]),
        }

    def load_state_dict(self, state: Any, *, num_rows: int) -> list[int]:
        """Go on from `state_dict`, after so many rows; returns the units whose probes begin anew."""
        counts = self._counts_in(state)
        shapes = {
            place: x.shape for part in self._parts for place, x in zip(part.places, part.backend.memory(), strict=True)
        }
        lengths = [shapes[place].numel() for place in range(self._num_units)]
        memory = torch.as_tensor(array(state, "memory", sum(lengths))).split(lengths)
        anew: list[int] = []
        for part in self._parts:
            part.backend.remember([memory[place].view(shapes[place]) for place in part.places])
            found = part.probe.continue_from([counts[place] for place in part.places])
            anew += [part.places[u] for u in found]
            for ring in (part.ring, part.probe.ring, part.backend.peers):
                ring.continue_from(num_rows)
        return anew

    def _counts_in(self, state: Any) -> list[UnitCounts]:
        per_unit = {name: counts(state, name) for name in ("silence_rows", "matrices", "num_gains")}
        if any(len(values) != self._num_units for values in per_unit.values()):
            raise StateError(f"it has no counts of probes for {self._num_units} units")
        rows, matrices, num_gains = per_unit.values()
        silence = torch.as_tensor(array(state, "silence", sum(rows), dtype=np.uint8)).split(rows)
        observed = np.split(array(state, "observed", sum(matrices), dtype=np.int64), np.cumsum(matrices)[:-1])
        gains = take(state, "gains", list)
        if len(gains) != sum(num_gains) or not all(isinstance(x, Tensor) for x in gains):
            raise StateError(f"'gains' are not {sum(num_gains)} tensors")
        each, start = iter(gains), array(state, "start", self._num_units)
        return [
            UnitCounts(silence[u], observed[u], [next(each) for _ in range(num_gains[u])], float(start[u]))
            for u in range(self._num_units)
        ]

    def num_bytes(self) -> int:
        """Bytes held on the devices."""
        return sum(part.backend.num_bytes() + part.ring.num_bytes() + part.probe.num_bytes() for part in self._parts)

    # -- other processes --------------------------------------------------------------------------------------------

    @property
    def has_peers(self) -> bool:
        """Whether other processes measure the rest of this model and count on this one to take part."""
        return any(part.backend.peers for part in self._parts)

    def keep_company(self) -> None:
        """Before a measured step: see that all processes are well, and note that they count on this one."""
        for part in self._parts:
            if part.backend.peers:
                part.backend.peers.check()
                part.backend.peers.is_owed = True

    def stand_in(self) -> None:
        """After a failure here: take part in the exchange of this step, so that nobody waits in vain."""
        for part in self._parts:
            if part.backend.peers and part.backend.peers.is_owed:
                part.backend.peers.stand_in()

    def num_good(self, *, everything: bool) -> int | None:
        """Rows in which all processes took part, None for all; `everything` waits."""
        found = [part.backend.peers.num_good(everything=everything) for part in self._parts if part.backend.peers]
        return min((count for count in found if count is not None), default=None)

    def mean_of(self, *values: float) -> tuple[float, ...]:
        """The same numbers on every process."""
        for part in self._parts:
            values = part.backend.peers.mean_of(*values)
        return values
