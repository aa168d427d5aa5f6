"""A probe's work in torch operations, on any device.

Legend: U units, R rows of all matrices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from thermoclaw.measure.anatomy import Matrix, Sheet

_HALF = (torch.float16, torch.bfloat16)
_AT_ONCE = 1 << 17  # elements in half precision that are looked at together on the CPU


class TorchRows:
    """Counts rows of gradients; see `NativeRows.count`.

    Args:
        matrices: whose gradients are counted.
        device, dtype: where and how.
    """

    def __init__(self, matrices: Sequence[Matrix], *, device: torch.device, dtype: torch.dtype) -> None:
        self._matrices = matrices
        counts = np.array([m.sheet.rows for m in matrices])

        def each(values: Sequence[float], kind: torch.dtype) -> Tensor:
            return torch.from_numpy(np.repeat(np.array(values), counts)).to(dtype=kind).to(device)

        self._nonzero = torch.zeros(int(counts.sum()), device=device, dtype=dtype)
        self._width = each([m.sheet.outer * m.sheet.inner for m in matrices], dtype)
        self._unit = each([m.unit for m in matrices], torch.int64)
        self._is_watched = each([m.sheet.is_watched for m in matrices], torch.bool)

    def num_bytes(self) -> int:
        """Bytes held."""
        held = (self._nonzero, self._width, self._unit, self._is_watched)
        return sum(x.numel() * x.element_size() for x in held)

    def count(self, grads: Sequence[Tensor | None], silence: Tensor, out: Tensor, *, silent: int, dead: int) -> None:
        """See `NativeRows.count`."""
        for m, g in zip(self._matrices, grads, strict=True):
            into = self._nonzero[m.first : m.first + m.sheet.rows]
            if g is None:
                into.fill_(-1.0)
            else:
                _count_nonzero(real(g.detach()), m.sheet, into)
        found = self._nonzero >= 0
        quiet = (self._nonzero == 0) & self._is_watched
        longer = torch.where(quiet, silence.add(1).clamp_(max=dead), 0)
        silence.copy_(torch.where(found, longer, silence))
        counted = found & self._is_watched
        zeros = torch.where(found, self._width - self._nonzero, 0.0)
        each = (zeros, counted & (silence >= silent), counted & (silence >= dead))
        sums = torch.zeros(len(out), len(each), device=out.device, dtype=out.dtype)
        sums.index_add_(0, self._unit, torch.stack([x.to(out.dtype) for x in each], dim=1))
        out.fill_(float("nan"))
        out[:, : len(each)] = sums


def likeness(weights: Sequence[Matrix], *, dtype: torch.dtype) -> Tensor:
    """‖mean row‖² / ‖W‖² of matrices."""
    means = [real(m.p.detach()).mean(m.sheet.axis) for m in weights]
    return _squared_norms(means, dtype=dtype) / squares(weights, dtype=dtype)


def squares(weights: Sequence[Matrix], *, dtype: torch.dtype) -> Tensor:
    """‖W‖² of matrices: norms of rows first, so that nothing of their size is made."""
    tensors = [real(m.p.detach()) for m in weights]
    norms = [torch.linalg.vector_norm(x, dim=_others(x, m.sheet)) for x, m in zip(tensors, weights, strict=True)]
    return _squared_norms(norms, dtype=dtype)


def _squared_norms(tensors: list[Tensor], *, dtype: torch.dtype) -> Tensor:
    norms = torch._foreach_norm([x.float() if x.dtype in _HALF else x for x in tensors])
    return torch.stack([x.to(dtype) for x in norms]).square_()


def real(x: Tensor) -> Tensor:
    """The real numbers that a tensor is made of."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def _others(x: Tensor, sheet: Sheet) -> list[int]:
    """All dimensions of a tensor of real numbers but that of outputs."""
    return [d for d in range(x.dim()) if d != sheet.axis]


def _count_nonzero(x: Tensor, sheet: Sheet, out: Tensor) -> None:
    """How many elements of each row are not zero."""
    dims = _others(x, sheet)
    if x.dtype in _HALF and x.is_cpu and sheet.axis >= 0:
        step = max(_AT_ONCE // (sheet.outer * sheet.inner), 1)
        for part, into in zip(x.split(step, sheet.axis), out.split(step), strict=True):
            into.copy_((part != 0).sum(dims))
    elif not dims or (x.dtype in _HALF and x.is_cpu):
        out.copy_((x != 0).sum())
    else:
        out.copy_(torch.linalg.vector_norm(x, 0, dim=dims, dtype=torch.float32 if x.dtype in _HALF else None))
