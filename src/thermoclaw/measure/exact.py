"""The exact backend: full copies and double-precision sums, for tests and for research on small models.

Legend: U units.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thermoclaw.layers import Unit
from thermoclaw.measure.columns import RAW, RAW_COLUMNS
from thermoclaw.measure.sharded import Peers
from thermoclaw.measure.sums import Backend, UnitReader

_PRODUCTS = RAW_COLUMNS[: RAW["lr"]]  # sums over elements: those of shards add up


class ExactBackend(UnitReader):
    """Full copies and double-precision sums: the oracle of the tests, and a choice for research on small models.

    Holds nine copies of the model.
    """

    def __init__(self, units: list[Unit]) -> None:
        super().__init__(units)
        self.peers = Peers(units, device=self.device, dtype=self.wide, per_unit=len(_PRODUCTS))
        self._gradient: list[Tensor] = []  # of the step that is about to be made
        self._history: list[list[Tensor]] = []  # gradients, newest first, at most four
        self._steps: list[list[Tensor]] = []  # updates, newest first, at most two
        self._before = self._wide_parameters()
        self._origin = [x.clone() for x in self._before]

    def num_bytes(self) -> int:
        """Bytes held between steps."""
        held = [self._before, self._origin, *self._history, *self._steps]
        return sum(x.numel() * x.element_size() for row in held for x in row)

    def start_norms(self) -> Tensor:
        """See `Backend`."""
        norms = torch.stack([torch.dot(x, x) for x in self._before])
        self.peers.add_up(norms)
        return norms

    def forget(self) -> None:
        """See `Backend`."""
        self._history, self._steps = [], []
        self._before = [torch.full_like(x, float("nan")) for x in self._before]

    def _wide_parameters(self) -> list[Tensor]:
        return [
            torch.cat([self._nothing.to(self.wide)[:0] if p is None else p.to(self.wide) for p in row])
            for row in self.parameters()
        ]

    def read_gradients(self, *, scale: Tensor | None = None, more: bool = False) -> None:
        """See `Backend`."""
        rows = []
        for places, row in zip(self.places, self.gradients(), strict=True):
            parts = []
            for place, g in zip(places, row, strict=True):
                if g is None:
                    parts.append(torch.zeros(place.size, device=self.device, dtype=self.wide))
                else:
                    parts.append((g.to_dense().reshape(-1) if g.is_sparse else g).to(self.wide))
            x = torch.cat(parts)
            rows.append(x if scale is None else x / scale.reshape(()).to(device=x.device, dtype=x.dtype))
        self._gradient = [x + y for x, y in zip(self._gradient, rows, strict=True)] if more else rows

    def read_parameters(self, out: Tensor, *, lrs: dict[int, Tensor], skipped: Tensor | None = None) -> None:
        """See `Backend`."""
        after = self._wide_parameters()
        self._history = [self._gradient, *self._history[:3]]
        self._steps = [[x - y for x, y in zip(after, self._before, strict=True)], *self._steps[:1]]
        out.fill_(float("nan"))
        for u in range(len(self.units)):
            g, step, before = self._history[0][u], self._steps[0][u], self._before[u]
            products = {
                "g_g": (g, g),
                "gs_gs": (g, g),
                "p_p": (after[u], after[u]),
                "g_d": (g, step),
                "g_p": (g, before),
                "d_d": (step, step),
                "d_p": (step, before),
                "ps_ps": (before, before),
                "f_f": (after[u] - self._origin[u],) * 2,
            }
            for lag in (1, 2, 3):
                if len(self._history) > lag:
                    products[f"g_g{lag}"] = (g, self._history[lag][u])
            if len(self._steps) > 1:
                products["g_d1"] = (g, self._steps[1][u])
            for name, (x, y) in products.items():
                out[u, RAW[name]] = torch.dot(x, y)
        if self.peers:
            self.peers.exchange(out[:, : len(_PRODUCTS)])
        self._before = after
        self._write_lrs(out, lrs, skipped)
        if skipped is not None:  # products with a refused gradient are undefined, not wrong
            refused = skipped.reshape(()).to(self.device) > 0
            for x in (*self._history[0], *self._steps[0]):
                x.masked_fill_(refused, float("nan"))

    def memory(self) -> list[Tensor]:
        """See `Backend`; of sharded parameters, what this process holds."""
        nothing = [torch.full_like(x, float("nan")) for x in self._origin]
        gradients = [*self._history, nothing, nothing, nothing][:3]
        steps = [*self._steps, nothing][:1]
        rows = [*gradients, *steps, self._before, self._origin]
        return [torch.stack([row[u] for row in rows]).cpu() for u in range(len(self.units))]

    def remember(self, memory: list[Tensor]) -> None:
        """See `Backend`."""
        # vectors of their own: products of unaligned ones may be rounded otherwise
        rows = [[x[i].to(self._origin[u], copy=True) for u, x in enumerate(memory)] for i in range(6)]
        *self._history, step, self._before, self._origin = rows
        self._steps = [step]

    def adopt(self, other: Backend) -> None:
        """See `Backend`."""
        if not isinstance(other, ExactBackend):
            return
        place = {unit.key: u for u, unit in enumerate(other.units)}

        def taken(old: list[Tensor], fresh: list[Tensor]) -> list[Tensor]:
            return [old[place[unit.key]] if unit.key in place else x for unit, x in zip(self.units, fresh, strict=True)]

        nothing = [torch.full_like(x, float("nan")) for x in self._origin]
        self._history = [taken(row, nothing) for row in other._history]
        self._steps = [taken(row, nothing) for row in other._steps]
        self._before, self._origin = taken(other._before, self._before), taken(other._origin, self._origin)
