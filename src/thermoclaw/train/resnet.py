"""Residual networks for small images, in plain torch: 3×3 stem of stride 1 and no pooling before the first block.

He et al. 2015 (arXiv 1512.03385); stride on a bottleneck's 3×3 convolution, and the last normalization of a block
begins at 0, as Goyal et al. 2017 (arXiv 1706.02677) do.

Legend: B images, C channels, H × W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Blocks of each stage, width of the first, and whether blocks are bottlenecks."""

    blocks: tuple[int, ...]
    width: int
    bottleneck: bool = False


MODELS = {
    "small": Shape((1, 1, 1), 16),
    "resnet18": Shape((2, 2, 2, 2), 64),
    "resnet50": Shape((3, 4, 6, 3), 64, bottleneck=True),
}


class ScalePixels(nn.Module):
    """(x − mean) / std of each channel, so that every exported file takes pixels from 0 to 1."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, C, H, W] → the same."""
        return (pixels - self.mean) / self.std


def _conv(inside: int, outside: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, size, stride=stride, padding=size // 2, bias=False)


class Block(nn.Module):
    """A residual block: two 3×3 convolutions, or 1×1, 3×3 and 1×1 with four times as many channels at the end."""

    def __init__(self, inside: int, width: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        outside = 4 * width if bottleneck else width
        if bottleneck:
            plan = [(inside, width, 1, 1), (width, width, 3, stride), (width, outside, 1, 1)]
        else:
            plan = [(inside, width, 3, stride), (width, outside, 3, 1)]
        self.convs = nn.ModuleList(_conv(*sizes) for sizes in plan)
        self.norms = nn.ModuleList(nn.BatchNorm2d(sizes[1]) for sizes in plan)
        same = inside == outside and stride == 1
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(_conv(inside, outside, 1, stride), nn.BatchNorm2d(outside))
        )
        self.outside = outside

    def begin_as_identity(self) -> None:
        """Put the last normalization's scale to 0, so that the block begins as its shortcut."""
        nn.init.zeros_(self.norms[-1].get_parameter("weight"))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C', H', W']."""
        y = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(torch.relu(y) if i else y))
        return torch.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network that takes pixels from 0 to 1, [B, C, H, W], and gives a score for each class, [B, K].

    Args:
        shape: one of `MODELS`.
        num_classes: K.
        in_channels: C.
        mean, std: of the training pixels, for each channel; by default pixels are taken as they are.

    Example:
        >>> model = ResNet(MODELS["small"], num_classes=10, in_channels=1)
        >>> tuple(model(torch.zeros(2, 1, 8, 8)).shape)
        (2, 10)
    """

    def __init__(
        self,
        shape: Shape,
        *,
        num_classes: int,
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.scale = ScalePixels(mean or [0.0] * in_channels, std or [1.0] * in_channels)
        self.stem = _conv(in_channels, shape.width, 3)
        self.stem_norm = nn.BatchNorm2d(shape.width)
        blocks, inside = [], shape.width
        for stage, count in enumerate(shape.blocks):
            for i in range(count):
                stride = 2 if stage and i == 0 else 1
                blocks.append(Block(inside, shape.width << stage, stride, bottleneck=shape.bottleneck))
                inside = blocks[-1].outside
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inside, num_classes)
        self.apply(_initialize)
        for block in blocks:
            block.begin_as_identity()

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, C, H, W] → [B, K]."""
        x = torch.relu(self.stem_norm(self.stem(self.scale(pixels))))
        return self.head(self.blocks(x).mean(dim=(2, 3)))


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
