"""A probe's work on the CPU, by the compiled kernel of `native`: one call for all gradients, one for all weights."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor

from thermoclaw.measure import native
from thermoclaw.measure.anatomy import Matrix, Sheet

_dtype, _on_cpu = attrgetter("dtype"), attrgetter("is_cpu")


class NativeRows:
    """Counts and compares rows of matrices where the kernel can read them.

    Args:
        matrices: whose gradients are counted.
        weights: which are compared.
    """

    def __init__(self, matrices: Sequence[Matrix], weights: Sequence[Matrix]) -> None:
        self._matrices, self._weights = matrices, weights
        self._counted, self._compared = _table(matrices), _table(weights)
        self._found = np.zeros(max((m.sheet.rows for m in matrices), default=0), dtype=np.int64)
        self._sum = np.zeros(max((m.sheet.inner for m in weights), default=0), dtype=np.float64)

    def count(self, grads: Sequence[Tensor | None], silence: Tensor, out: Tensor, *, silent: int, dead: int) -> bool:
        """Zeros and silent rows of the gradients into the row `out` [U, C]; False where it cannot, and did nothing.

        `grads` are those of the matrices, None for one to leave alone. `silence` [R], for how many probes each row has
        been zero, is brought up to date; `silent` and `dead` so many make a row silent, and dead.
        """
        kernel = native.library()
        if kernel is None or out.dtype != torch.float64 or not _can_read(grads, self._matrices):
            return False
        data, kinds = _addresses(grads)
        kernel.thermoclaw_rows(
            *(self._counted.ctypes.data, len(grads), data.buffer_info()[0], kinds.buffer_info()[0]),
            *(silence.data_ptr(), self._found.ctypes.data, silent, dead, out.data_ptr(), *out.shape),
        )
        return True

    def likeness(self) -> Tensor | None:
        """R·‖mean row‖² / ‖W‖² of the weights; None where it cannot."""
        weights = [m.p for m in self._weights]
        kernel = native.library()
        if kernel is None or not _can_read(weights, self._weights):
            return None
        data, kinds = _addresses(weights)
        like = torch.empty(len(weights), dtype=torch.float64, device="cpu")
        kernel.thermoclaw_likeness(
            *(self._compared.ctypes.data, len(weights), data.buffer_info()[0], kinds.buffer_info()[0]),
            *(self._sum.ctypes.data, like.data_ptr()),
        )
        return like


def _table(matrices: Sequence[Matrix]) -> np.ndarray:
    rows = [(*m.sheet[:3], m.unit, int(m.sheet.is_watched), m.first) for m in matrices]
    return np.array(rows, dtype=np.int64).reshape(-1, 6)


def _can_read(tensors: Sequence[Tensor | None], matrices: Sequence[Matrix]) -> bool:
    present = [x for x in tensors if x is not None]
    if not set(map(_dtype, present)) <= native.KINDS.keys() or not all(map(_on_cpu, present)):
        return False
    if all(map(Tensor.is_contiguous, present)):
        return True
    return all(x is None or _is_dense(x, m.sheet) for x, m in zip(tensors, matrices, strict=True))


def _is_dense(x: Tensor, sheet: Sheet) -> bool:
    """Whether each row lies where the kernel takes it to, its elements in any order."""
    if x.is_contiguous():
        return True
    if sheet.axis != 0 or x.dim() not in (4, 5):
        return False
    return x.is_contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


def _addresses(tensors: Sequence[Tensor | None]) -> tuple[array[int], array[int]]:
    """Where tensors lie, 0 for a missing one, and what they are made of."""
    data = array("q", [0 if x is None else x.data_ptr() for x in tensors])
    return data, array("q", [0 if x is None else native.KINDS[x.dtype] for x in tensors])
