"""Programs on shapes and counts: segmentation of scenes, large-margin naming of outlines, spread of sizes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.measures_data import GREEK, bytecode, curves, scenes
from benchmarks.zoo.programs.program import Program, traits
from benchmarks.zoo.recipe import Batch, OptimizerSpec, Recipe

SCALE, MARGIN = 12.0, 0.15
LEAST_VARIANCE = 0.01


class Gated(nn.Module):
    """Two convolutions around a shortcut, group norm before each; the whole picture says how much of which channel.

    After He et al. 2016, Wu and He 2018, Hu et al. 2018.
    """

    def __init__(self, width: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(4, width) for _ in range(2))
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.squeeze, self.excite, self.act = nn.Linear(width, width // 4), nn.Linear(width // 4, width), activation()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.act(self.norm1(x)))
        y = self.conv2(self.act(self.norm2(y)))
        gate = torch.sigmoid(self.excite(self.act(self.squeeze(y.mean((2, 3))))))
        return x + gate[:, :, None, None] * y


def make_segmenter(*, depth: int = 3, activation: type[nn.Module] = nn.ReLU, width: int = 16) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, width, 5, stride=2, padding=2),
        *(Gated(width, activation) for _ in range(depth)),
        nn.GroupNorm(4, width),
        activation(),
        nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),
    )
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return model


def overlap(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of each pixel, and what the soft Dice coefficient lacks (Milletari et al. 2016)."""
    logits, mask = model(batch[0]).float(), batch[1].float()
    found = logits.sigmoid()
    dice = (2.0 * (found * mask).sum() + 1.0) / (found.sum() + mask.sum() + 1.0)
    return F.binary_cross_entropy_with_logits(logits, mask) + 1.0 - dice


def polynomial(done: float) -> float:
    """The schedule of segmentation: what is left of the run to the power 0.9."""
    return float(max(1.0 - done, 0.0) ** 0.9)


def segment(seed: int) -> Recipe:
    spec = OptimizerSpec("nesterov", 0.2, weight_decay=1e-4)
    return Recipe("segment", seed, 220, 10, scenes(), make_segmenter, overlap, spec, schedule=polynomial, learns=0.6)


class Around(nn.Module):
    """A wide convolution along the closed curve, then two maps of channels, faded in (ConvNeXt, Liu et al. 2022)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.along = nn.Conv1d(width, width, 7, padding=3, padding_mode="circular", groups=width)
        self.norm, self.widen, self.narrow = (
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )
        self.share = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.along(x.transpose(1, 2)).transpose(1, 2))
        return x + self.share * self.narrow(F.gelu(self.widen(y)))


class Outliner(nn.Module):
    """Points of a closed curve to the cosine between what it is like and each class's direction."""

    def __init__(self, *, width: int = 32, blocks: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.enter = nn.Conv1d(2, width, 4, stride=2, padding=1, padding_mode="circular")
        self.blocks = nn.Sequential(*(Around(width) for _ in range(blocks)))
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(dropout)
        self.embed, self.classes = nn.Linear(width, width), nn.Parameter(torch.empty(len(GREEK), width))
        for name, p in self.named_parameters():
            if p.dim() > 1 and not name.startswith("enter"):
                nn.init.trunc_normal_(p, std=0.18)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.blocks(self.enter(x).transpose(1, 2)).mean(1)
        return F.linear(F.normalize(self.embed(self.drop(self.norm(whole)))), F.normalize(self.classes))


def large_margin(model: nn.Module, batch: Batch, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of scaled cosines, the right one less a margin (CosFace, Wang et al. 2018)."""
    cosines = model(batch[0]).float()
    margin = MARGIN * F.one_hot(batch[1], cosines.shape[-1])
    return F.cross_entropy(SCALE * (cosines - margin), batch[1], label_smoothing=smoothing)


def held(done: float) -> float:
    """Warm-up over a twentieth of the run, the full rate until seven tenths, then half a cosine."""
    if done < 0.05:
        return max(done / 0.05, 0.02)
    return 1.0 if done < 0.7 else 0.5 * (1.0 + math.cos(math.pi * (done - 0.7) / 0.3))


def outline(seed: int) -> Recipe:
    spec = OptimizerSpec("adamw", 4e-3, weight_decay=0.05)
    return Recipe("outline", seed, 250, 32, curves(), Outliner, large_margin, spec, schedule=held, learns=0.4)


class Spread(nn.Module):
    """A trunk that narrows, and two heads: what is expected, and the variance around it (Nix and Weigend 1994)."""

    def __init__(self, *, depth: int = 4, activation: type[nn.Module] = nn.ReLU, dropout: float = 0.0) -> None:
        super().__init__()
        inputs, outputs = (part.shape[1] for part in bytecode().train)
        layers: list[nn.Module] = [nn.Linear(inputs, 192), activation(), nn.Linear(192, 96), activation()]
        for _ in range(depth - 3):
            layers += [nn.Linear(96, 96), activation()]
        self.trunk = nn.Sequential(*layers, nn.Dropout(dropout))
        self.mean, self.spread = nn.Linear(96, outputs), nn.Linear(96, outputs)
        for layer in self.trunk:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(x)
        return self.mean(x), F.softplus(self.spread(x).float()) + LEAST_VARIANCE


def normal_likelihood(model: nn.Module, batch: Batch) -> Tensor:
    """Nats a number, less a constant; below zero where the variance is small and right."""
    mean, variance = model(batch[0])
    return F.gaussian_nll_loss(mean.float(), batch[1].float(), variance)


def sizes(seed: int) -> Recipe:
    spec = OptimizerSpec("adam", 1e-3)
    return Recipe("sizes", seed, 400, 40, bytecode(), Spread, normal_likelihood, spec, clip=2.0, learns=0.3)


PROGRAMS = (
    Program(
        "segment", "SE CNN with group norm, scenes, Nesterov", segment, traits("labels features relu depth"), 4e-3, 0.15
    ),
    Program(
        "outline", "ConvNeXt, CosFace, outlines, AdamW", outline, traits("classes labels features dropout"), 4e-3, 0.4
    ),
    Program(
        "sizes", "Gaussian NLL, bytecode, Adam", sizes, traits("labels features relu depth dropout cheap"), 1e-3, 0.01
    ),
)
