"""How strongly an attention's weights alone turn inputs into logits: ‖W_Qᵀ W_K‖, by power iteration.

One step a probe from the vector of the probe before, so the estimate, which is never too large, follows the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from thermoclaw.measure.anatomy import QueryKey

FIRST_STEPS = 8  # before the first probe


class AttentionGain:
    """Estimates the largest singular value of W_Kᵀ S W_Q, where S adds up the queries that share keys.

    Args:
        pair: the two maps.
    """

    def __init__(self, pair: QueryKey) -> None:
        self._pair = pair
        query, _ = self._maps()
        at = torch.arange(query.shape[1], device=query.device, dtype=torch.float32)
        start = torch.cos(0.7 * at + 0.1 * at.square())  # any direction will do, the same one every time
        self._vector = (start / start.norm()).to(query.dtype)
        for _ in range(FIRST_STEPS):
            self.step()

    @property
    def vector(self) -> Tensor:
        """The direction reached."""
        return self._vector

    @vector.setter
    def vector(self, direction: Tensor) -> None:
        self._vector.copy_(direction)

    def _maps(self) -> tuple[Tensor, Tensor]:
        """W_Q and W_K, outputs first, as they are now."""
        query, key = self._pair.query.detach(), self._pair.key.detach()
        if self._pair.is_transposed:
            query, key = query.t(), key.t()
        if self._pair.query is self._pair.key:
            width = query.shape[1]
            return query[:width], key[width : 2 * width]
        return query, key

    def step(self) -> Tensor:
        """Go on from the direction reached; the estimate now, a scalar on the device."""
        query, key = self._maps()
        head, wide, narrow = self._pair.head, query.shape[0], key.shape[0]
        asked = query @ self._vector
        if head:
            asked = asked.view(narrow // head, wide // narrow, head).sum(1).reshape(narrow)
        matched = _unit(key.t() @ asked)
        asked = key @ matched
        if head:
            asked = asked.view(narrow // head, 1, head).expand(-1, wide // narrow, -1).reshape(wide)
        back = query.t() @ asked
        length = torch.linalg.vector_norm(back)
        self._vector = torch.where(length > 0, back / length, self._vector)
        return length


def _unit(x: Tensor) -> Tensor:
    """x at length 1, or zero."""
    length = torch.linalg.vector_norm(x)
    return torch.where(length > 0, x / length, 0.0)
