"""Programs on relations and tables: a network that recommends, and a deep & cross network for a rare class."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.programs.program import Program, traits
from benchmarks.zoo.recipe import Batch, OptimizerSpec, Recipe
from benchmarks.zoo.relations_data import COUNTED, character_sets, functions


class Matcher(nn.Module):
    """Two vectors and their product to one score (He et al. 2017)."""

    def __init__(self, *, depth: int = 3, activation: type[nn.Module] = nn.ReLU, dropout: float = 0.1) -> None:
        super().__init__()
        _, users, items = character_sets()
        self.user, self.item = nn.Embedding(users, 24), nn.Embedding(items, 24)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.1)
        layers: list[nn.Module] = []
        for before, after in pairwise([72, *[64] * (depth - 1)]):
            layers += [nn.Linear(before, after), activation(), nn.Dropout(dropout)]
        self.hidden, self.score = nn.Sequential(*layers), nn.Linear(64, 1, bias=False)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        user, item = self.user(users), self.item(items)
        return self.score(self.hidden(torch.cat([user, item, user * item], dim=-1))).squeeze(-1)


def personalized_ranking(model: nn.Module, batch: Batch) -> Tensor:
    """What is known to belong together scores above something drawn at random (BPR, Rendle et al. 2009)."""
    users, liked = batch
    others = torch.randint(0, character_sets()[2], liked.shape)
    return -F.logsigmoid(model(users, liked).float() - model(users, others).float()).mean()


def recommender(seed: int) -> Recipe:
    spec = OptimizerSpec("adagrad", 0.03, weight_decay=3e-4)
    data = character_sets()[0]
    return Recipe("recommender", seed, 400, 256, data, Matcher, personalized_ranking, spec, learns=0.5)


class Cross(nn.Module):
    """Products of the columns with maps of them, one degree more a layer (DCN-V2, Wang et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, width)

    def forward(self, x: Tensor, first: Tensor) -> Tensor:
        return first * self.map(x) + x


class DeepCross(nn.Module):
    """Crossed columns, then a stack of maps to one logit."""

    def __init__(
        self, *, width: int = 48, depth: int = 2, activation: type[nn.Module] = nn.ReLU, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.crosses = nn.ModuleList(Cross(len(COUNTED)) for _ in range(2))
        layers: list[nn.Module] = []
        for before, after in pairwise([len(COUNTED), *[width] * (depth - 1)]):
            layers += [nn.Linear(before, after), activation(), nn.Dropout(dropout)]
        self.deep, self.head = nn.Sequential(*layers), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        crossed = x
        for layer in self.crosses:
            crossed = layer(crossed, x)
        return self.head(self.deep(crossed)).squeeze(-1)


def rare_class(model: nn.Module, batch: Batch) -> Tensor:
    """Binary cross-entropy in which the rare class counts threefold."""
    return F.binary_cross_entropy_with_logits(model(batch[0]).float(), batch[1].float(), pos_weight=torch.tensor(3.0))


def geometric(done: float) -> float:
    """The same share at every step, down to a twentieth."""
    return 0.05**done


def crosses(seed: int) -> Recipe:
    spec = OptimizerSpec("adamw", 2e-3, weight_decay=0.05)
    return Recipe("crosses", seed, 400, 128, functions(), DeepCross, rare_class, spec, schedule=geometric, learns=0.75)


PROGRAMS = (
    Program(
        "recommender",
        "neural factorization with BPR, character sets, Adagrad",
        recommender,
        traits("labels tokens relu depth dropout cheap"),
        3e-3,
        0.3,
    ),
    Program(
        "crosses",
        "deep & cross net, functions, AdamW",
        crosses,
        traits("labels features relu depth dropout cheap"),
        2e-3,
        0.01,
    ),
)
