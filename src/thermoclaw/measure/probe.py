"""Probes: a look at every row of the gradient, or at the weights, which need not be taken at every step.

A probe reads gradients before the optimizer's step and weights after it, as the backend does, and writes one row of
`PROBE_COLUMNS` a unit into a ring of its own; what is known without the device (how many elements and rows were looked
at) goes with the row's notes. On the CPU the compiled kernel does the work where it can, elsewhere torch operations.
Nothing waits.

Units that are spread over processes, and gradients that are sparse, are not probed: their columns are NaN.

Legend: U units, C probe columns, R rows of all matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thermoclaw.buffer import DeviceRing
from thermoclaw.layers import Unit
from thermoclaw.measure.anatomy import Anatomy, Matrix
from thermoclaw.measure.attention import AttentionGain
from thermoclaw.measure.columns import PROBE, PROBE_COLUMNS
from thermoclaw.measure.ends import Ends
from thermoclaw.measure.native_rows import NativeRows
from thermoclaw.measure.rows import TorchRows, likeness, squares
from thermoclaw.state import StateError

SILENT, DEAD = 3, 12  # probes in a row without any gradient

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.complex128)


class UnitCounts(NamedTuple):
    """What probes remember of a unit."""

    silence: Tensor  # by row, probes in a row without any gradient
    observed: NDArray[np.int64]  # by matrix, probes with a gradient
    gains: list[Tensor]  # by pair of query and key, the direction reached
    start: float  # √(mean W² · fan-in) of the layer's matrix at the start; NaN once it was told


class Probe:
    """Probes the units on one device; see the module's docstring.

    Args:
        units: of this device.
        anatomy: of the model.
        device, block, dtype: of the ring.
        main: by unit, the parameter that stands for its layer's weights, if it is in that unit.
        earlier: what probed before units changed; parameters that stay keep their counts.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        anatomy: Anatomy,
        *,
        device: torch.device,
        block: int,
        dtype: torch.dtype,
        main: Sequence[Tensor | None],
        earlier: Sequence[Probe] = (),
    ) -> None:
        shape = (len(units), len(PROBE_COLUMNS))
        # places are counted on the host: no probe is ever in a captured graph
        self.ring = DeviceRing(shape, block=block, device=device, dtype=dtype, replayable=False)
        self._device, self._dtype = device, dtype
        self._can_read = np.array(
            [unit.mesh is None and all(map(can_probe, unit.params)) for unit in units], dtype=bool
        )
        self._matrices: list[Matrix] = []
        self._num_rows = 0
        for u, unit in enumerate(units):
            for p in unit.params if self._can_read[u] else ():
                self._matrices.append(Matrix(p, anatomy.sheet(p), u, self._num_rows))
                self._num_rows += self._matrices[-1].sheet.rows
        stand = {id(p) for p in main if p is not None}
        self._weights = [m for m in self._matrices if id(m.p) in stand]
        self._weight_units = _on(device, [m.unit for m in self._weights], torch.int64)
        self._weight_rows = _on(device, [m.sheet.rows for m in self._weights], dtype)
        self._silence = torch.zeros(self._num_rows, device=device, dtype=torch.uint8)  # probes in a row without any
        self._observed = np.zeros(len(self._matrices), dtype=np.int64)  # probes with a gradient
        self._look_up()
        held = {id(m.p): m for m in self._matrices}
        found = [(m.unit, anatomy.queries[key]) for key, m in held.items() if key in anatomy.queries]
        pairs = [(u, pair) for u, pair in found if id(pair.key) in held and _is_alike(pair.query, pair.key)]
        self._gains = [AttentionGain(pair) for _, pair in pairs]
        self._gain_at = [u for u, _ in pairs]
        self._gain_units = _on(device, self._gain_at, torch.int64)
        self._ends = Ends(self._matrices, anatomy)
        self._native = NativeRows(self._matrices, self._weights) if device.type == "cpu" else None
        self._torch: TorchRows | None = None
        self._start = self._start_gains({key for other in earlier for key in other._hand_on(self)})

    def _look_up(self) -> None:
        """What `_seen` adds up, by matrix."""
        self._unit = np.array([m.unit for m in self._matrices], dtype=np.int64)
        self._numbers = np.array([m.sheet.size for m in self._matrices], dtype=np.float64)
        self._watched = np.array([m.sheet.rows * m.sheet.is_watched for m in self._matrices], dtype=np.float64)

    def _hand_on(self, new: Probe) -> set[int]:
        """Give counts to a successor; the identities of parameters known here."""
        mine = {id(m.p): (i, m) for i, m in enumerate(self._matrices)}
        for i, m in enumerate(new._matrices):
            j, old = mine.get(id(m.p), (-1, None))
            if old is not None and old.sheet == m.sheet and self._device == new._device:
                rows = m.sheet.rows
                new._silence[m.first : m.first + rows] = self._silence[old.first : old.first + rows]
                new._observed[i] = self._observed[j]
        return set(mine)

    def num_bytes(self) -> int:
        """Bytes on the device."""
        held = [self._silence, *(gain.vector for gain in self._gains)]
        rows = self._torch.num_bytes() if self._torch is not None else 0
        return rows + self.ring.num_bytes() + sum(x.numel() * x.element_size() for x in held)

    def forget_start(self) -> None:
        """The run began before this process: how it began is not known."""
        self._start = None

    def counts(self) -> list[UnitCounts]:
        """What is remembered of earlier probes, by unit, on the host. Waits."""
        start = np.full(len(self._can_read), np.nan)
        if self._start is not None:
            start[[m.unit for m in self._weights]] = self._start.cpu().numpy()
        silence = self._silence.cpu().split(self._per_unit([m.sheet.rows for m in self._matrices]))
        observed = np.split(self._observed, np.cumsum(self._per_unit())[:-1])
        gains: list[list[Tensor]] = [[] for _ in start]
        for u, gain in zip(self._gain_at, self._gains, strict=True):
            gains[u].append(gain.vector.cpu())
        return [UnitCounts(*held) for held in zip(silence, observed, gains, start.tolist(), strict=True)]

    def continue_from(self, counts: Sequence[UnitCounts]) -> list[int]:
        """Go on from `counts`; returns the units that begin anew, as nobody probed them before.

        Raises:
            StateError: the counts are of other units.
        """
        mine = self.counts()
        joined = [x if len(x.observed) else y for x, y in zip(counts, mine, strict=True)]
        for u, (x, y) in enumerate(zip(joined, mine, strict=True)):
            if len(y.observed) and [g.shape for g in x.gains] + [x.silence.shape, x.observed.shape] != [
                *(g.shape for g in y.gains), y.silence.shape, y.observed.shape,
            ]:  # fmt: skip
                raise StateError(f"the counts of probes of unit {u} are those of other matrices")
        known = [x for x, y in zip(joined, mine, strict=True) if len(y.observed)]
        if known:
            self._silence.copy_(torch.cat([x.silence for x in known]))
            self._observed = np.concatenate([x.observed for x in known])
        for gain, vector in zip(self._gains, [g for x in known for g in x.gains], strict=True):
            gain.vector = vector
        if self._weights:
            self._start = _on(self._device, [counts[m.unit].start for m in self._weights], self._dtype)
        return [u for u, (x, y) in enumerate(zip(counts, mine, strict=True)) if len(y.observed) > len(x.observed)]

    def _per_unit(self, numbers: Sequence[int] | None = None) -> list[int]:
        """Sums over the matrices of each unit, which lie next to one another; their count by default."""
        return [int(n) for n in np.bincount(self._unit, weights=numbers, minlength=len(self._can_read))]

    def _start_gains(self, known: set[int]) -> Tensor | None:
        """√(mean W² · fan-in) of the layers' matrices, NaN for those that were known before."""
        if not self._weights:
            return None
        nan = float("nan")
        scale = [nan if id(m.p) in known else m.sheet.fan_in / m.p.numel() for m in self._weights]
        return (squares(self._weights, dtype=self._dtype) * _on(self._device, scale, self._dtype)).sqrt_()

    def read_gradients(self, *, skipped: Tensor | None) -> NDArray[np.float64]:
        """Begin the ring's row; returns what was looked at [U, 3], as `SEEN_COLUMNS`.

        `skipped` is above zero where a loss scaler refuses this step; its gradient then counts for nothing.
        """
        out = self.ring.next_row()
        grads = [m.p.grad for m in self._matrices]
        readable = [g if g is not None and _can_count(g) else None for g in grads]
        before = None if skipped is None else self._silence.clone()
        self._count(readable, out)
        if before is not None and skipped is not None:
            refused = skipped.reshape(()).to(self._device) > 0
            self._silence.copy_(torch.where(refused, before, self._silence))
        self._ends.read(readable, out)
        if self._start is not None:
            out[:, PROBE["start_gain"]].index_copy_(0, self._weight_units, self._start)
            self._start = None
        return self._seen(grads, readable)

    def read_weights(self) -> None:
        """Go on with the row, after the step."""
        out = self.ring.next_row()
        if self._weights:
            out[:, PROBE["row_likeness"]].index_copy_(0, self._weight_units, self._likeness())
        if self._gains:
            gains = torch.stack([gain.step().to(self._dtype) for gain in self._gains])
            out[:, PROBE["attention_gain"]].index_copy_(0, self._gain_units, gains)

    def _count(self, grads: list[Tensor | None], out: Tensor) -> None:
        if not self._matrices:
            out.fill_(float("nan"))
            return
        if self._native is not None and self._native.count(grads, self._silence, out, silent=SILENT, dead=DEAD):
            return
        if self._torch is None:
            self._torch = TorchRows(self._matrices, device=self._device, dtype=self._dtype)
        self._torch.count(grads, self._silence, out, silent=SILENT, dead=DEAD)

    def _likeness(self) -> Tensor:
        found = self._native.likeness() if self._native is not None else None
        return found if found is not None else likeness(self._weights, dtype=self._dtype) * self._weight_rows

    def _seen(self, grads: list[Tensor | None], readable: list[Tensor | None]) -> NDArray[np.float64]:
        here = np.array([g is not None for g in readable], dtype=bool)
        self._observed += here
        watched = self._watched * here
        each = (self._numbers * here, watched * (self._observed >= SILENT), watched * (self._observed >= DEAD))
        seen = np.zeros((len(self._can_read), len(each)))
        for column, x in enumerate(each):
            seen[:, column] = np.bincount(self._unit, x, minlength=len(seen))
        seen[~self._can_read] = np.nan
        odd = [g is not r for g, r in zip(grads, readable, strict=True)]
        seen[self._unit[odd]] = np.nan
        return seen


def _on(device: torch.device, values: Sequence[float], dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype).to(device)


def can_probe(p: Tensor) -> bool:
    """Whether a parameter is a plain tensor of numbers that lie on its device."""
    return isinstance(p, Tensor) and type(p.detach()) is Tensor and p.layout == torch.strided and p.dtype in _DTYPES


def _can_count(grad: Tensor) -> bool:
    return type(grad) is Tensor and grad.layout == torch.strided


def _is_alike(query: Tensor, key: Tensor) -> bool:
    return query.dtype == key.dtype and not query.is_complex()
