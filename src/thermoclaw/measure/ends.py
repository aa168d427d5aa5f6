"""What the gradients of a model's first and last layer tell of its inputs and outputs, without a look at either.

Legend: C outputs, x inputs, δ errors of the layer's outputs, s fixed numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thermoclaw.measure.anatomy import Anatomy, Matrix
from thermoclaw.measure.columns import PROBE
from thermoclaw.measure.rows import real


class Ends:
    """Reads them, where the parameters are among those that are probed.

    Args:
        matrices: what is probed.
        anatomy: of the model.
    """

    def __init__(self, matrices: Sequence[Matrix], anatomy: Anatomy) -> None:
        place = {id(m.p): i for i, m in enumerate(matrices)}
        self._matrices = matrices
        self._entry, self._exit = (
            tuple(place[key] for key in end) if end is not None and all(key in place for key in end) else ()
            for end in (anatomy.entry, anatomy.exit)
        )
        self._ranked = place.get(anatomy.ranked) if anatomy.ranked is not None else None

    def read(self, grads: Sequence[Tensor | None], out: Tensor) -> None:
        """Write all columns into the ring's row."""
        if self._entry:
            weight, bias = (grads[i] for i in self._entry)
            if weight is not None and bias is not None:
                m = self._matrices[self._entry[0]]
                out[m.unit, PROBE["input_scale"]] = _input_scale(weight, bias, m.sheet.fan_in).to(out.dtype)
        if self._exit:
            grad = grads[self._exit[-1]]  # of the bias where there is one, which is the shorter
            if grad is not None:
                m = self._matrices[self._exit[-1]]
                out[m.unit, PROBE["output_drift"]] = _drift(grad, max(m.sheet.axis, 0)).to(out.dtype)
        if self._ranked is not None:
            grad = grads[self._ranked]
            if grad is not None:
                unit = self._matrices[self._ranked].unit
                out[unit, PROBE["stable_rank"]] = _stable_rank(grad).to(out.dtype)


def _input_scale(weight: Tensor, bias: Tensor, fan_in: int) -> Tensor:
    """‖g_W‖ / (‖g_b‖ √fan-in): g_W = Σ δxᵀ and g_b = Σ δ, so this is the size of x."""
    norms = [torch.linalg.vector_norm(real(g.detach())) for g in (weight, bias)]
    return norms[0] / (norms[1] * fan_in**0.5)


def _stable_rank(grad: Tensor) -> Tensor:
    """‖g‖²/‖g ŷ‖², ŷ the direction of gᵀs: ‖g‖²/σ₁² from above, by one step of power iteration; 1 for δxᵀ alone."""
    g = grad.detach().flatten(1)
    g = g if g.dtype == torch.float64 else g.float()
    s = torch.arange(1, len(g) + 1, device=g.device, dtype=g.dtype).mul_(12.9898).sin_()  # no row is left out
    y = s @ g
    z = g @ (y / torch.linalg.vector_norm(y))
    return (torch.linalg.vector_norm(g) / torch.linalg.vector_norm(z)).square()


def _drift(grad: Tensor, axis: int) -> Tensor:
    """C·‖mean over outputs‖² / ‖g‖²: a cross-entropy of softmax takes from one output what it gives to others."""
    g = real(grad.detach()).float() if grad.dtype in (torch.float16, torch.bfloat16) else real(grad.detach())
    return g.shape[axis] * (torch.linalg.vector_norm(g.mean(axis)) / torch.linalg.vector_norm(g)).square()
