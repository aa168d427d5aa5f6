"""Programs as they are written every day: a table, spoiled pictures, packed numbers to be told apart, an almanac."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.catalog_data import (
    DAMAGE,
    PACKINGS,
    STRETCH,
    almanac,
    categories,
    damaged,
    num_letters,
    packed_numbers,
    signs,
)
from benchmarks.zoo.programs.program import Program, cross_entropy, traits
from benchmarks.zoo.recipe import OptimizerSpec, Recipe, warm_cosine


def make_classifier(
    *, depth: int = 4, activation: type[nn.Module] = nn.ReLU, dropout: float = 0.0, width: int = 128
) -> nn.Module:
    """A multilayer perceptron as PyTorch initializes it, with as many outputs as there are categories."""
    layers: list[nn.Module] = []
    for before, after in pairwise((signs().train[0].shape[1], *[width] * (depth - 1))):
        layers += [nn.Linear(before, after), activation(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, len(categories())))


def sign(seed: int) -> Recipe:
    spec = OptimizerSpec("adam", 1e-3)
    return Recipe("sign", seed, 400, 48, signs(), make_classifier, cross_entropy, spec, learns=0.22)


class Basic(nn.Module):
    """Two convolutions with batch norm, a shortcut that is projected where the shape changes (He et al. 2016)."""

    def __init__(self, before: int, after: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.conv_2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm_1, self.norm_2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.act_1, self.act_2 = activation(), activation()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_2(self.conv_2(self.act_1(self.norm_1(self.conv_1(x)))))
        return self.act_2(y + self.shortcut(x))


def make_resnet(*, activation: type[nn.Module] = nn.ReLU, dropout: float = 0.0, width: int = 12) -> nn.Module:
    """A stem, three blocks at two smaller sizes, the mean over all places, a linear map."""
    stem = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), activation()]
    shapes = ((width, 2 * width, 2), (2 * width, 2 * width, 1), (2 * width, 4 * width, 2))
    body = [Basic(before, after, stride, activation) for before, after, stride in shapes]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(4 * width, len(DAMAGE))]
    model = nn.Sequential(*stem, *body, *head)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return model


def cosine(done: float) -> float:
    """Half a cosine from one to zero, without a warm-up (Loshchilov and Hutter 2017)."""
    return 0.5 * (1.0 + math.cos(math.pi * done))


def damage(seed: int) -> Recipe:
    spec = OptimizerSpec("adamw", 4e-3, weight_decay=0.05)
    return Recipe("damage", seed, 250, 32, damaged(), make_resnet, cross_entropy, spec, schedule=cosine, learns=0.63)


class Sniffer(nn.Module):
    """Bytes through gated recurrent units (Cho et al. 2014), the last state to a class."""

    def __init__(self, *, width: int = 48, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, 32)
        self.gru = nn.GRU(32, width, batch_first=True)
        self.drop, self.out = nn.Dropout(dropout), nn.Linear(width, len(PACKINGS))

    def forward(self, tokens: Tensor) -> Tensor:
        _, last = self.gru(self.embed(tokens))
        return self.out(self.drop(last[-1]))


def numbers(seed: int) -> Recipe:
    spec = OptimizerSpec("rmsprop", 2e-3)
    return Recipe("numbers", seed, 240, 32, packed_numbers(), Sniffer, cross_entropy, spec, learns=0.3)


class Causal(nn.Module):
    """Attention to what came before, then two maps, a norm ahead of each and a shortcut around it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.rise, self.fall = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        b, t, width = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.drop(self.out(mixed.transpose(1, 2).reshape(b, t, width)))
        return x + self.drop(self.fall(F.gelu(self.rise(self.norm_2(x)), approximate="tanh")))


class Almanac(nn.Module):
    """Characters and their places, blocks, a last norm, a map to the next character (Radford et al. 2019)."""

    def __init__(self, *, width: int = 48, blocks: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(num_letters(), width), nn.Embedding(STRETCH, width)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Causal(width, 4, dropout) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_letters(), bias=False)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                is_last = name.endswith(("out.weight", "fall.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * blocks) if is_last else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.letter(tokens) + self.place.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(self.drop(x))))


def days(seed: int) -> Recipe:
    spec = OptimizerSpec("adamw", 3e-3, weight_decay=0.1, beta2=0.95)
    return Recipe(
        "days", seed, 240, 12, almanac(), Almanac, cross_entropy, spec, schedule=warm_cosine, clip=1.0, learns=0.37
    )


PROGRAMS = (
    Program(
        "sign",
        "MLP, facts about signs, Adam",
        sign,
        traits("classes labels features relu depth dropout cheap"),
        1e-3,
        0.05,
    ),
    Program(
        "damage",
        "ResNet, spoiled tiles, AdamW with a cosine",
        damage,
        traits("classes labels features relu batchnorm dropout"),
        4e-3,
        0.1,
    ),
    Program(
        "numbers",
        "GRU, packed numbers, RMSprop",
        numbers,
        traits("classes labels tokens recurrent dropout"),
        6e-3,
        0.1,
    ),
    Program(
        "days",
        "GPT-2, calendar days, AdamW, clipped",
        days,
        traits("classes labels tokens attention dropout"),
        3e-3,
        0.15,
    ),
)
