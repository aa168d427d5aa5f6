"""Losses as users give them: checked, kept until their step, averaged where a step has several. Never waits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

Loss = float | Tensor

MOST = 4096  # losses of one step


def as_scalar(loss: Any) -> Loss | None:
    """A number, or a tensor of one without its graph; None for no loss.

    Raises:
        TypeError: it is something else; the message says what.
    """
    if loss is None:
        return None
    if isinstance(loss, Tensor) and loss.numel() == 1 and not loss.is_complex():
        return loss.detach().reshape(())
    try:
        if not isinstance(loss, Tensor):
            return float(loss)
        problem = f"a {str(loss.dtype).removeprefix('torch.')} tensor of shape {tuple(loss.shape)}"
    except (TypeError, ValueError):
        problem = f"{type(loss).__name__}"
    raise TypeError(
        f"observer.step(loss=...) takes a number or a tensor with one element, not {problem}; give loss.mean() or "
        "leave it out. This loss is not recorded."
    )


class Losses:
    """What was given since the last step of the optimizer."""

    def __init__(self) -> None:
        self.pending: list[Loss] = []
        self.last_step = 0  # the last one that was given a loss: a NaN up to there is one

    def keep(self, loss: Loss) -> None:
        """For later: a copy, as the user may go on adding to the tensor."""
        self.pending.append(loss.clone() if isinstance(loss, Tensor) else loss)
        self.pending = self.pending[-MOST:]

    def of_step(self, last: Loss, step: int) -> Loss:
        """The step's loss, of which `last` is the last part; what was kept is gone."""
        losses, self.pending, self.last_step = [*self.pending, last], [], step
        return mean(losses)

    def load(self, losses: list[Any], last_step: int, device: torch.device) -> None:
        """What `pending` and `last_step` were when a state was saved."""
        self.last_step = last_step
        self.pending = [x.to(device).reshape(()) if isinstance(x, Tensor) else float(x) for x in losses]


def mean(losses: list[Loss]) -> Loss:
    """The mean of losses, on their device and without waiting for it; of the finite ones where there are some.

    No hook tells of a step that a loss scaler refused, and its loss, which may have overflowed, is not the next one's.
    """
    if len(losses) == 1:
        return losses[0]
    tensors = [x for x in losses if isinstance(x, Tensor)]
    finite = [x for x in losses if not isinstance(x, Tensor) and math.isfinite(x)]
    if not tensors:
        return math.fsum(finite) / len(finite) if finite else math.nan
    device = tensors[0].device
    wide = torch.float32 if device.type == "mps" else torch.float64
    values = torch.stack([x.to(device=device, dtype=wide, non_blocking=True) for x in tensors])
    good = torch.isfinite(values)
    return (torch.where(good, values, 0.0).sum() + math.fsum(finite)) / (good.sum() + len(finite))
