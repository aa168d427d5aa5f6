"""Programs that make pictures: super-resolution of terrain, and color by flow matching with an MLP-Mixer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.programs.program import Program, traits
from benchmarks.zoo.recipe import Batch, OptimizerSpec, Recipe, warm_cosine
from benchmarks.zoo.signals_data import portrait, terrain


class Refinement(nn.Module):
    """Two convolutions around a shortcut, no norm (EDSR, Lim et al. 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.act(self.conv1(x)))


class Upscaler(nn.Module):
    """A picture three times as wide: features at low resolution, then pixels dealt out of channels."""

    def __init__(self, *, width: int = 24, blocks: int = 3) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, width, 3, padding=1)
        self.body = nn.Sequential(*(Refinement(width) for _ in range(blocks)))
        self.tail = nn.Sequential(nn.Conv2d(width, 9, 3, padding=1), nn.PixelShuffle(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        return self.tail(x + self.body(x))


def charbonnier(model: nn.Module, batch: Batch) -> Tensor:
    """A smooth absolute error."""
    return ((model(batch[0]).float() - batch[1].float()).square() + 1e-6).sqrt().mean()


def halved(done: float) -> float:
    """Half of the rate in each fifth of the run."""
    return 0.5 ** math.floor(5.0 * min(done, 0.99))


def upscale(seed: int) -> Recipe:
    spec = OptimizerSpec("adam", 2e-3)
    return Recipe("upscale", seed, 400, 16, terrain(), Upscaler, charbonnier, spec, schedule=halved, learns=0.15)


class MixerBlock(nn.Module):
    """Maps across places, then across channels; time scales, moves and gates both (Tolstikhin 2021, Peebles 2022)."""

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.across = nn.Sequential(nn.Linear(places, 2 * places), nn.GELU(), nn.Linear(2 * places, places))
        self.within = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.steer = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.steer.weight)
        nn.init.zeros_(self.steer.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale1, move1, gate1, scale2, move2, gate2 = self.steer(time).unsqueeze(1).chunk(6, dim=-1)
        y = self.norm1(x) * (1.0 + scale1) + move1
        x = x + gate1 * self.across(y.transpose(1, 2)).transpose(1, 2)
        y = self.norm2(x) * (1.0 + scale2) + move2
        return x + gate2 * self.within(y)


class Painter(nn.Module):
    """Brightness, colors on their way out of noise, and the time: where the colors go from here."""

    def __init__(self, *, width: int = 48, blocks: int = 3, side: int = 4) -> None:
        super().__init__()
        self.side = side
        self.enter = nn.Conv2d(3, width, side, stride=side)
        self.place = nn.Parameter(0.02 * torch.randn(1, (16 // side) ** 2, width))
        self.clock = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.blocks = nn.ModuleList(MixerBlock((16 // side) ** 2, width) for _ in range(blocks))
        self.norm, self.leave = nn.LayerNorm(width), nn.Linear(width, 2 * side**2)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, brightness: Tensor, colors: Tensor, time: Tensor) -> Tensor:
        angle = time[:, None] * math.pi * 2.0 ** torch.arange(8, dtype=time.dtype)
        clock = self.clock(torch.cat([angle.sin(), angle.cos()], dim=1))
        x = self.enter(torch.cat([brightness, colors], dim=1)).flatten(2).transpose(1, 2) + self.place
        for block in self.blocks:
            x = block(x, clock)
        grid = self.leave(self.norm(x)).transpose(1, 2).unflatten(2, (16 // self.side, 16 // self.side))
        return F.pixel_shuffle(grid, self.side)


def flow(model: nn.Module, batch: Batch) -> Tensor:
    """Squared error of the velocity along a straight line from noise to the colors (Lipman et al. 2023)."""
    brightness, colors = batch
    noise, time = torch.randn_like(colors), torch.rand(len(colors), dtype=colors.dtype)
    between = torch.lerp(noise, colors, time.view(-1, 1, 1, 1))
    return F.mse_loss(model(brightness, between, time).float(), (colors - noise).float())


def colorize(seed: int) -> Recipe:
    data, spec = portrait(), OptimizerSpec("adamw", 4e-3, weight_decay=0.01)
    return Recipe("colorize", seed, 350, 48, data, Painter, flow, spec, schedule=warm_cosine, clip=1.0, learns=0.4)


PROGRAMS = (
    Program("upscale", "EDSR, terrain, Adam", upscale, traits("labels features relu"), 2e-3, 0.1),
    Program("colorize", "flow-matching mixer, portrait, AdamW", colorize, traits("labels features"), 4e-3, 0.1),
)
