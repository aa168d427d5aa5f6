"""Programs on photographs: a U-Net that removes noise, and a coordinate network that is a picture."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.data import patches, pixels
from benchmarks.zoo.programs.program import Program, squared_error, traits
from benchmarks.zoo.recipe import Batch, OptimizerSpec, Recipe, linear_to_zero


class ConvBlock(nn.Module):
    """Convolution, group norm, SiLU."""

    def __init__(self, before: int, after: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, stride=stride, padding=1)
        self.norm = nn.GroupNorm(4, after)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x)))


class UNet(nn.Module):
    """Two levels down, two levels up, with shortcuts; the noise is what it returns."""

    def __init__(self, *, width: int = 12) -> None:
        super().__init__()
        self.enter = ConvBlock(3, width)
        self.down1, self.down2 = ConvBlock(width, 2 * width, stride=2), ConvBlock(2 * width, 2 * width, stride=2)
        self.up1, self.up2 = ConvBlock(4 * width, 2 * width), ConvBlock(3 * width, width)
        self.leave = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        top = self.enter(x)
        middle = self.down1(top)
        low = F.interpolate(self.down2(middle), scale_factor=2)
        middle = F.interpolate(self.up1(torch.cat([low, middle], 1)), scale_factor=2)
        return x - self.leave(self.up2(torch.cat([middle, top], 1)))


def denoise(model: nn.Module, batch: Batch) -> Tensor:
    """Squared error of the patch rebuilt from a noisy copy."""
    noisy = batch[0] + 0.5 * torch.randn_like(batch[0])
    return F.mse_loss(model(noisy).float(), batch[1].float())


def unet(seed: int) -> Recipe:
    spec = OptimizerSpec("adamw", 2e-3, weight_decay=0.01)
    return Recipe("unet", seed, 200, 16, patches(), UNet, denoise, spec, schedule=linear_to_zero, learns=0.6)


class Waves(nn.Module):
    """Fixed random waves of the coordinates, then a GELU network (Tancik et al. 2020)."""

    frequencies: Tensor

    def __init__(self, *, depth: int = 4, activation: type[nn.Module] = nn.GELU, width: int = 64) -> None:
        super().__init__()
        self.register_buffer("frequencies", 4.0 * torch.randn(2, 32))
        sizes = [64, *[width] * (depth - 1)]
        maps = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.hidden = nn.ModuleList(maps)
        self.act, self.color = activation(), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        angle = math.pi * x @ self.frequencies.to(x.dtype)
        x = torch.cat([angle.sin(), angle.cos()], dim=-1)
        for layer in self.hidden:
            x = self.act(layer(x))
        return self.color(x)


def waves(seed: int) -> Recipe:
    spec = OptimizerSpec("adam", 2e-3)
    return Recipe("waves", seed, 350, 256, pixels(), Waves, squared_error, spec, learns=0.4)


PROGRAMS = (
    Program("unet", "U-Net, photo patches, AdamW", unet, traits("labels features"), 2e-3, 0.05),
    Program("waves", "coordinate net, photo, Adam", waves, traits("labels features depth cheap"), 2e-3, 0.2),
)
