"""The sketching backend: exact norms, and every other product from sketches of p numbers a unit.

This is the reference on any device, made of torch operations; on the CPU the compiled kernel of `native` does the same
where it can.

Legend: U units, K raw columns, p sketch size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thermoclaw.layers import Unit
from thermoclaw.measure.columns import RAW
from thermoclaw.measure.native_pass import NativePass
from thermoclaw.measure.sharded import Peers
from thermoclaw.measure.sketch import Sketcher, padded, trimmed
from thermoclaw.measure.sums import Backend, UnitReader, flat_index

NUM_GRADIENTS, NUM_STEPS, NUM_PARAMETERS = 4, 2, 2


class SketchBackend(UnitReader):
    """See the module's docstring."""

    # places in the state [U, slots, p]
    _G, _D, _P = 0, NUM_GRADIENTS, NUM_GRADIENTS + NUM_STEPS
    _ORIGIN = _P + NUM_PARAMETERS
    _SLOTS = _ORIGIN + 1

    def __init__(self, units: list[Unit], *, size: int = 1021) -> None:
        super().__init__(units)
        self._sketcher = Sketcher(self.sizes, size=size, device=self.device, dtype=self.dtype, places=self.places)
        self._state = torch.full((len(units), self._SLOTS, size), float("nan"), device=self.device, dtype=self.dtype)
        self._now = 0
        self._native = NativePass(self._sketcher) if self.device.type == "cpu" else None
        self._params = [p for unit in units for p in unit.params]
        self._is_whole = all(unit.mesh is None for unit in units)
        self._is_plain = False  # parameters were read where they are, not through flat views
        self.peers = Peers(units, device=self.device, dtype=self.dtype, per_unit=2 * (size + 1))
        self._g_g = torch.zeros(len(units), device=self.device, dtype=self.wide)
        self._p_p = self._measure_parameters(self._P)
        self.peers.add_up(self._state[:, self._P], self._p_p)
        self._state[:, self._P + 1] = self._state[:, self._P]
        self._state[:, self._ORIGIN] = self._state[:, self._P]

    def start_norms(self) -> Tensor:
        """See `Backend`."""
        return self._p_p

    def num_bytes(self) -> int:
        """Bytes held between steps."""
        held = self._state.numel() * self._state.element_size() + self._sketcher.num_bytes
        return held + (self._native.num_bytes() if self._native is not None else 0)

    def forget(self) -> None:
        """See `Backend`."""
        self._state[:, : self._ORIGIN].fill_(float("nan"))

    def _measure_gradients(self, slot: int) -> Tensor:
        """Sketch the gradients of all units into a slot of the state and return their squared norms [U]."""
        if self._native is not None and self._is_plain:
            norms = self._native([p.grad for p in self._params], self._state[:, slot])
            if norms is not None:
                return norms
        return self._measure(self.gradients(), slot)

    def _measure_parameters(self, slot: int) -> Tensor:
        """The same for the parameters."""
        self._is_plain = False
        if self._native is not None and self._is_whole:
            norms = self._native(self._params, self._state[:, slot])
            if norms is not None:
                self._is_plain = True
                return norms
        return self._measure(self.parameters(), slot)

    def _measure(self, tensors: list[list[Tensor | None]], slot: int) -> Tensor:
        """The same for flat tensors."""
        if self._native is not None:
            norms = self._native([x for row in tensors for x in row], self._state[:, slot])
            if norms is not None:
                return norms
        for u, row in enumerate(tensors):
            out = self._state[u, slot]
            self._sketcher.sketch(u, [None if x is None or x.is_sparse else x for x in row], out)
            for i, x in enumerate(row):
                if x is not None and x.is_sparse:
                    self._sketcher.add_sparse(u, i, *flat_index(x), out)
        return self._norms(tensors)

    def _slot(self, base: int, count: int, lag: int = 0) -> int:
        return base + (self._now - lag) % count

    def read_gradients(self, *, scale: Tensor | None = None, more: bool = False) -> None:
        """See `Backend`."""
        slot = self._slot(self._G, NUM_GRADIENTS)
        before = (self._state[:, slot].clone(), self._g_g.clone()) if more else None
        self._g_g = self._measure_gradients(slot)
        if scale is not None:
            inverse = scale.reshape(()).to(self.device).reciprocal()
            self._state[:, slot].mul_(inverse.to(self.dtype))
            self._g_g.mul_(inverse.to(self.wide).square())
        if before is not None:
            self._state[:, slot].add_(before[0])
            self._g_g.add_(before[1])

    def read_parameters(self, out: Tensor, *, lrs: dict[int, Tensor], skipped: Tensor | None = None) -> None:
        """See `Backend`."""
        state = self._state
        new, delta = self._slot(self._G, NUM_GRADIENTS), self._slot(self._D, NUM_STEPS)
        now, before = self._slot(self._P, NUM_PARAMETERS), self._slot(self._P, NUM_PARAMETERS, 1)
        # the slot of θ two steps ago takes θ now
        self._p_p = self._measure_parameters(now)
        if self.peers:
            self.peers.exchange(state[:, new], state[:, now], self._g_g, self._p_p)
        slots = (
            *(self._slot(self._G, NUM_GRADIENTS, lag) for lag in range(NUM_GRADIENTS)),
            *(delta, self._slot(self._D, NUM_STEPS, 1), now, before, self._ORIGIN),
        )
        written = self._native is not None and self._native.products(state, slots, self._g_g, self._p_p, out)
        if not written:
            self._write_products(slots, out)
        if not written or lrs or skipped is not None:
            self._write_lrs(out, lrs, skipped)
        if skipped is not None:  # products with a refused gradient are undefined, not wrong
            refused = skipped.reshape(()).to(self.device) > 0
            for slot in (new, delta):
                state[:, slot].masked_fill_(refused, float("nan"))
        self._now += 1

    def _write_products(self, slots: tuple[int, ...], out: Tensor) -> None:
        """Form Δ and write the raw row; `slots` as for `NativePass.products`."""
        state = self._state
        new, new1, new2, new3, delta, delta1, now, before, origin = slots
        torch.sub(state[:, now], state[:, before], out=state[:, delta])
        with_grad = (state * state[:, new : new + 1]).sum(-1).to(self.wide)  # a matmul may be rounded to TF32
        drift = state[:, now] - state[:, origin]
        step, old = state[:, delta], state[:, before]
        out[:, RAW["g_g"]] = self._g_g
        out[:, RAW["p_p"]] = self._p_p
        for name, slot in (
            ("gs_gs", new),
            ("g_g1", new1),
            ("g_g2", new2),
            ("g_g3", new3),
            ("g_d", delta),
            ("g_d1", delta1),
            ("g_p", before),
        ):
            out[:, RAW[name]] = with_grad[:, slot]
        out[:, RAW["d_d"]] = (step * step).sum(1).to(self.wide)
        out[:, RAW["d_p"]] = (step * old).sum(1).to(self.wide)
        out[:, RAW["ps_ps"]] = (old * old).sum(1).to(self.wide)
        out[:, RAW["f_f"]] = (drift * drift).sum(1).to(self.wide)

    def _memory_slots(self) -> list[int]:
        gradients = [self._slot(self._G, NUM_GRADIENTS, lag) for lag in (1, 2, 3)]
        return [*gradients, self._slot(self._D, NUM_STEPS, 1), self._slot(self._P, NUM_PARAMETERS, 1), self._ORIGIN]

    def memory(self) -> list[Tensor]:
        """See `Backend`."""
        return trimmed(self._state[:, self._memory_slots()], self.sizes)

    def remember(self, memory: list[Tensor]) -> None:
        """See `Backend`."""
        self._state[:, self._memory_slots()] = padded(memory, like=self._state)

    def adopt(self, other: Backend) -> None:
        """See `Backend`."""
        if not isinstance(other, SketchBackend) or other._sketcher.size != self._sketcher.size:
            return
        place = {unit.key: u for u, unit in enumerate(other.units)}
        self._now = other._now
        last = self._slot(self._P, NUM_PARAMETERS, 1)
        for u, unit in enumerate(self.units):
            if unit.key in place:
                self._state[u] = other._state[place[unit.key]]
            else:
                self._state[u, last] = self._state[u, self._ORIGIN]
