"""Programs on tables: a graph network over neighbours, and a residual network with layer norm."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.data import cancer, wine
from benchmarks.zoo.programs.program import Program, cross_entropy, traits
from benchmarks.zoo.recipe import OptimizerSpec, Recipe

NEIGHBOURS = 8


@cache
def neighbours() -> Tensor:
    """Who is near whom among the tumours, rows summing to one, [nodes, nodes]."""
    features, _ = cancer()
    near = torch.cdist(features, features).topk(NEIGHBOURS + 1, largest=False).indices
    links = torch.zeros(len(features), len(features)).scatter_(1, near, 1.0)
    links = ((links + links.T) > 0).float()
    return links / links.sum(1, keepdim=True)


class GraphNet(nn.Module):
    """Each layer mixes a node with the mean of its neighbours (GraphSAGE)."""

    features: Tensor
    links: Tensor

    def __init__(self, *, depth: int = 3, activation: type[nn.Module] = nn.ReLU, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("features", cancer()[0], persistent=False)
        self.register_buffer("links", neighbours(), persistent=False)
        sizes = [30, *[48] * (depth - 1)]
        pairs = list(pairwise(sizes))
        self.own, self.near = (nn.ModuleList(nn.Linear(a, b) for a, b in pairs) for _ in range(2))
        self.act, self.drop, self.out = activation(), nn.Dropout(dropout), nn.Linear(48, 2)

    def forward(self, nodes: Tensor) -> Tensor:
        x = self.features
        for own, near in zip(self.own, self.near, strict=True):
            x = self.drop(self.act(own(x) + near(self.links @ x)))
        return self.out(x[nodes])


def graph(seed: int) -> Recipe:
    spec = OptimizerSpec("adam", 1e-3, weight_decay=1e-4)
    return Recipe("graph", seed, 250, 32, cancer()[1], GraphNet, cross_entropy, spec, learns=0.3)


class TableBlock(nn.Module):
    """Layer norm, two maps, a shortcut."""

    def __init__(self, width: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.rise, self.fall, self.act = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), activation()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fall(self.act(self.rise(self.norm(x))))


class TableNet(nn.Module):
    """A residual network for columns of numbers."""

    def __init__(self, *, width: int = 32, blocks: int = 3, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.enter = nn.Linear(13, width)
        self.blocks = nn.Sequential(*(TableBlock(width, activation) for _ in range(blocks)))
        self.norm, self.leave = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(F.relu(self.norm(self.blocks(self.enter(x)))))


def table(seed: int) -> Recipe:
    spec = OptimizerSpec("sgd", 0.02, weight_decay=1e-3)
    return Recipe("table", seed, 250, 16, wine(), TableNet, cross_entropy, spec, learns=0.3)


PROGRAMS = (
    Program("graph", "graph net, tumours, Adam", graph, traits("classes labels relu depth dropout cheap"), 1e-3, 0.05),
    Program("table", "residual net, wine, SGD", table, traits("classes labels features relu"), 1e-3, 0.02),
)
