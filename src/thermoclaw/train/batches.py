"""Batches of a data set on a device: their order, crops and flips follow from the seed, the epoch and the step alone.

So a run that goes on in the middle of an epoch needs no random state to be kept.

Legend: N images, B images of a batch, C channels, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from thermoclaw.train.images import Labeled


class Batches:
    """Images of a data set, in the order of an epoch.

    Args:
        data: the images.
        batch_size: B; a last batch that is smaller is left out, if there is another.
        seed: of order, crops and flips.
        augment: crop and flip at random.
        device: where to; the images are put there once.
    """

    def __init__(self, data: Labeled, *, batch_size: int, seed: int, augment: bool, device: torch.device) -> None:
        self._images = torch.from_numpy(np.ascontiguousarray(data.images)).to(device)
        self._labels = torch.from_numpy(np.ascontiguousarray(data.labels)).to(device)
        self._size, self._seed, self._augment = min(batch_size, len(data)), seed, augment

    def __len__(self) -> int:
        return len(self._images) // self._size

    def epoch(self, number: int, *, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels from 0 to 1, [B, C, H, W], and labels, [B], from batch `start` of an epoch on."""
        order = torch.randperm(len(self._images), generator=self._generator(number, 0)).to(self._images.device)
        for batch in range(start, len(self)):
            chosen = order[batch * self._size : (batch + 1) * self._size]
            images = self._images[chosen]
            if self._augment:
                images = shifted(images, self._generator(number, batch + 1))
            yield pixels(images), self._labels[chosen]

    def _generator(self, epoch: int, batch: int) -> torch.Generator:
        words = np.random.SeedSequence([self._seed, epoch, batch]).generate_state(2)
        return torch.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))


def in_order(data: Labeled, *, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """All images once, as pixels from 0 to 1, with their labels."""
    for start in range(0, len(data), batch_size):
        images = torch.from_numpy(data.images[start : start + batch_size]).to(device)
        yield pixels(images), torch.from_numpy(data.labels[start : start + batch_size]).to(device)


def pixels(images: Tensor) -> Tensor:
    """Bytes as numbers from 0 to 1."""
    return images.to(torch.float32) / 255.0


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to an eighth of its side, black coming in, and half of them mirrored, [B, C, H, W]."""
    count, _, height, width = images.shape
    pad = max(height // 8, 1)
    down, right = torch.randint(2 * pad + 1, (2, count), generator=generator)
    mirror = torch.rand(count, generator=generator) < 0.5
    rows = down[:, None] + torch.arange(height)
    columns = torch.arange(width)
    columns = right[:, None] + torch.where(mirror[:, None], columns.flip(0), columns)
    where = torch.arange(count), rows, columns
    item, row, column = (index.to(images.device) for index in where)
    wide = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    moved = wide[item[:, None, None], :, row[:, :, None], column[:, None, :]]  # [B, H, W, C]
    return moved.permute(0, 3, 1, 2).contiguous()


def statistics(data: Labeled) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel's pixels, from 0 to 1, in double precision."""
    counts = [np.bincount(data.images[:, channel].ravel(), minlength=256) for channel in range(data.images.shape[1])]
    values = np.arange(256) / 255.0
    means = [float((count * values).sum() / count.sum()) for count in counts]
    spreads = [
        float(np.sqrt((count * (values - mean) ** 2).sum() / count.sum()))
        for count, mean in zip(counts, means, strict=True)
    ]
    return means, [max(spread, 1e-3) for spread in spreads]
