"""What captured CUDA graphs read and write: kept where it is for good, and sent again by each replay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_memory: list[Any] = []


def keep_for_graphs(*held: Any) -> None:
    """Keep what a captured graph reads and writes where it is: nobody can tell which of its replays is the last."""
    known = {id(x) for x in _memory}
    _memory.extend([x for x in held if id(x) not in known])


def is_capturing(device: torch.device) -> bool:
    """Whether work for a device is being captured, not done."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class SentTable:
    """A table of numbers on the device that the host sends again when they change.

    While a graph is captured the table is sent from pinned memory that nobody writes again, so that each replay sends
    it too; from then on it is sent at every step, as replays may have changed it.
    """

    _SPARE = 8  # captures that may follow one another without a step between them

    def __init__(self, count: int, *, device: torch.device) -> None:
        self.values = torch.zeros(count, dtype=torch.int64, device=device)
        self._sent: list[int] | None = [0] * count
        self._in_a_graph = False
        self._spare: list[Tensor] = []
        self._pinned = device.type == "cuda"
        self._restock()

    def _restock(self) -> None:
        """Pinned memory cannot be had during a capture."""
        if len(self._spare) < self._SPARE // 2:
            count = self._SPARE - len(self._spare)
            block = torch.empty(count, len(self.values), dtype=torch.int64, pin_memory=self._pinned)
            self._spare.extend(block.unbind())

    def send(self, codes: list[int]) -> None:
        """Make the table hold these numbers when the work enqueued next reads it."""
        if is_capturing(self.values.device):
            if not self._spare:
                raise RuntimeError("too many CUDA graphs were captured without a training step outside of them")
            page = self._spare.pop().copy_(torch.tensor(codes, dtype=torch.int64))
            keep_for_graphs(page)
            self._in_a_graph, self._sent = True, None
            self.values.copy_(page, non_blocking=True)
        elif codes != self._sent:
            self._restock()
            page = torch.tensor(codes, dtype=torch.int64, pin_memory=self._pinned)
            self.values.copy_(page, non_blocking=True)
            self._sent = None if self._in_a_graph else codes
