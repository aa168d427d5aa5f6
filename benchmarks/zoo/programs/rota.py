"""Programs as they are written every day: a table of style, set formulas, traces of sorting, paths of modules."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.programs.program import Program, cross_entropy, traits
from benchmarks.zoo.recipe import OptimizerSpec, Recipe
from benchmarks.zoo.rota_data import (
    HEIGHT,
    LETTERS,
    LOOKS,
    NUM_WORDS,
    OWNERS,
    PATH,
    SORTS,
    WIDTH,
    WRITERS,
    comparisons,
    formulas,
    habits,
    paths,
)


def make_stylist(
    *, depth: int = 3, activation: type[nn.Module] = nn.ReLU, dropout: float = 0.0, width: int = 128
) -> nn.Module:
    """A multilayer perceptron (Rumelhart et al. 1986) with rectified units (Nair and Hinton 2010)."""
    layers: list[nn.Module] = []
    for before, after in pairwise((habits().train[0].shape[1], *[width] * (depth - 1))):
        layers += [nn.Linear(before, after), activation(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, len(WRITERS)))


def style(seed: int) -> Recipe:
    spec = OptimizerSpec("sgd", 0.1, momentum=0.0)
    return Recipe("style", seed, 400, 32, habits(), make_stylist, cross_entropy, spec, learns=0.5)


def make_viewer(*, activation: type[nn.Module] = nn.ReLU, dropout: float = 0.0, width: int = 8) -> nn.Module:
    """Three convolutions with batch norm (Ioffe and Szegedy 2015), each before pooling, then two maps."""
    layers: list[nn.Module] = []
    for before, after in pairwise((1, width, 2 * width, 4 * width)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), activation(), nn.MaxPool2d(2)]
    features = 4 * width * (HEIGHT // 8) * (WIDTH // 8)
    head = [nn.Flatten(), nn.Linear(features, 64), activation(), nn.Dropout(dropout), nn.Linear(64, len(LOOKS))]
    return nn.Sequential(*layers, *head)


def cosine(done: float) -> float:
    """Half a cosine to zero (Loshchilov and Hutter 2017)."""
    return 0.5 * (1.0 + math.cos(math.pi * done))


def formula(seed: int) -> Recipe:
    spec = OptimizerSpec("sgd", 0.02, weight_decay=5e-4)
    return Recipe("formula", seed, 230, 32, formulas(), make_viewer, cross_entropy, spec, schedule=cosine, learns=0.52)


class Follower(nn.Module):
    """Places through an LSTM (Hochreiter and Schmidhuber 1997), its last state to a class."""

    def __init__(self, *, width: int = 64, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(NUM_WORDS, 32)
        self.lstm = nn.LSTM(32, width, batch_first=True)
        self.drop, self.out = nn.Dropout(dropout), nn.Linear(width, len(SORTS))

    def forward(self, places: Tensor) -> Tensor:
        _, (last, _) = self.lstm(self.embed(places))
        return self.out(self.drop(last[0]))


def sorting(seed: int) -> Recipe:
    spec = OptimizerSpec("adam", 5e-3)
    return Recipe("sorting", seed, 250, 64, comparisons(), Follower, cross_entropy, spec, learns=0.25)


class Layer(nn.Module):
    """Attention over what is not padding, then two maps, a norm before each (Xiong et al. 2020)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.rise, self.fall = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        b, t, width = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None])
        x = x + self.drop(self.out(mixed.transpose(1, 2).reshape(b, t, width)))
        return x + self.drop(self.fall(F.relu(self.rise(self.norm_2(x)))))


class Librarian(nn.Module):
    """Letters and fixed waves for their places, two layers, the mean of what is not padding (Vaswani et al. 2017)."""

    waves: Tensor

    def __init__(self, *, width: int = 48, blocks: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.width = width
        self.letter = nn.Embedding(len(LETTERS) + 2, width, padding_idx=0)
        angles = torch.arange(PATH)[:, None] * torch.exp(-math.log(1e4) * torch.arange(0, width, 2) / width)
        self.register_buffer("waves", torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1))
        self.blocks = nn.ModuleList(Layer(width, 4, dropout) for _ in range(blocks))
        self.norm, self.drop, self.head = nn.LayerNorm(width), nn.Dropout(dropout), nn.Linear(width, len(OWNERS))

    def forward(self, letters: Tensor) -> Tensor:
        seen = letters > 0
        x = self.drop(self.letter(letters) + self.waves)
        for block in self.blocks:
            x = block(x, seen)
        share = seen / seen.sum(1, keepdim=True)
        return self.head((self.norm(x) * share[..., None]).sum(1))


def warm_line(done: float) -> float:
    """Linear warm-up over a tenth of the run, then a straight line to zero."""
    return max(done / 0.1, 0.02) if done < 0.1 else (1.0 - done) / 0.9


def shelf(seed: int) -> Recipe:
    spec = OptimizerSpec("adamw", 4e-3, weight_decay=0.01)
    return Recipe("shelf", seed, 350, 32, paths(), Librarian, cross_entropy, spec, schedule=warm_line, learns=0.48)


PROGRAMS = (
    Program(
        "style",
        "MLP, style of source, plain SGD",
        style,
        traits("classes labels features relu depth dropout cheap"),
        2e-3,
        0.03,
    ),
    Program(
        "formula",
        "CNN with batch norm, formulas, SGD with a cosine",
        formula,
        traits("pairs classes labels features relu batchnorm dropout"),
        2e-3,
        0.02,
    ),
    Program(
        "sorting",
        "LSTM, comparisons of sorting, Adam",
        sorting,
        traits("classes labels tokens recurrent dropout"),
        4e-3,
        0.1,
    ),
    Program(
        "shelf",
        "transformer encoder, paths of modules, AdamW",
        shelf,
        traits("classes labels tokens attention relu dropout"),
        4e-3,
        0.1,
    ),
)
