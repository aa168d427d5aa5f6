"""Programs that choose, count and order: words put in order, how long brackets stay open, moves of a sliding puzzle."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.choices_data import ENDS, FARTHEST, LETTERS, MOVES, NO_MOVE, brackets, hands, sliding
from benchmarks.zoo.programs.program import Program, traits
from benchmarks.zoo.recipe import Batch, OptimizerSpec, Recipe

ALPHABET = 27  # with the blank
BLUR = 0.75  # deviation of the target's bell, in moves


class Asking(nn.Module):
    """One set asks another: attention, then a map with ReLU, each around a shortcut with layer norm behind it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2, self.drop = nn.LayerNorm(width), nn.LayerNorm(width), nn.Dropout(dropout)
        self.map = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, asked: Tensor) -> Tensor:
        q, k, v = (
            layer(part).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, part in ((self.query, x), (self.key, asked), (self.value, asked))
        )
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.drop(self.out(seen)))
        return self.norm2(x + self.drop(self.map(x)))


class Induced(nn.Module):
    """A few points ask the set, and the set asks them (Lee et al. 2019)."""

    def __init__(self, width: int, points: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.empty(points, width))
        self.gather, self.spread = (Asking(width, heads, dropout) for _ in range(2))
        nn.init.xavier_uniform_(self.points)

    def forward(self, x: Tensor) -> Tensor:
        return self.spread(x, self.gather(self.points.to(x.dtype).expand(len(x), -1, -1), x))


class Ranker(nn.Module):
    """A set of words, letter by letter, to a score for each: a set transformer (Lee et al. 2019)."""

    def __init__(
        self, *, width: int = 40, letter: int = 12, points: int = 4, blocks: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.letters = nn.Embedding(ALPHABET, letter)
        self.word = nn.Sequential(nn.Linear(LETTERS * letter, width), nn.ReLU(), nn.Linear(width, width))
        self.blocks = nn.Sequential(*(Induced(width, points, 4, dropout) for _ in range(blocks)))
        self.score = nn.Linear(width, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.blocks(self.word(self.letters(x).flatten(-2)))).squeeze(-1)


def list_likelihood(model: nn.Module, batch: Batch) -> Tensor:
    """Nats a place, where each next word is chosen among those left by its score (Plackett 1975, Xia et al. 2008)."""
    in_order = model(batch[0]).float().gather(1, batch[1].argsort(1))
    return (in_order.flip(1).logcumsumexp(1).flip(1) - in_order).mean()


def warm_line(done: float) -> float:
    """Linear warm-up over an eighth of the run, then a straight line to a twentieth."""
    return max(done / 0.125, 0.01) if done < 0.125 else 1.0 - 0.95 * (done - 0.125) / 0.875


def ranker(seed: int) -> Recipe:
    spec = OptimizerSpec("lion", 3e-3, weight_decay=0.05)
    return Recipe("ranker", seed, 280, 24, hands(), Ranker, list_likelihood, spec, schedule=warm_line, learns=0.36)


class Columns(nn.Module):
    """A token for each column of a table, a line in its number, behind one for the whole (Gorishniy et al. 2021)."""

    def __init__(self, columns: int, width: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.empty(columns, width)) for _ in range(2))
        self.whole = nn.Parameter(torch.empty(width))
        for p in self.parameters():
            nn.init.uniform_(p, -(width**-0.5), width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.unsqueeze(-1) * self.weight + self.bias
        return torch.cat([self.whole.expand(len(x), 1, -1), tokens], dim=1)


class Mixing(nn.Module):
    """Attention among columns and a map gated by a ReLU, norms before (Gorishniy et al. 2021, Shazeer 2020)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, inner = heads, 4 * width // 3
        self.norm1, self.norm2, self.drop = nn.LayerNorm(width), nn.LayerNorm(width), nn.Dropout(dropout)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 2 * inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        value, gate = self.widen(self.norm2(x)).chunk(2, dim=-1)
        return x + self.narrow(self.drop(value * F.relu(gate)))


class Hazards(nn.Module):
    """A row of a table to the logit of each interval's hazard: a transformer over columns."""

    def __init__(self, *, width: int = 32, blocks: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.columns = Columns(brackets().train[0].shape[1], width)
        self.blocks = nn.Sequential(*(Mixing(width, 4, dropout) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(ENDS))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.blocks(self.columns(x))[:, 0])))


def survival(model: nn.Module, batch: Batch) -> Tensor:
    """Nats of what is known of each wait, interval by interval (Gensheimer and Narasimhan 2019)."""
    logits = model(batch[0]).float()
    passed, ended = batch[1].float().chunk(2, dim=-1)
    return ((passed + ended) * F.softplus(logits) - ended * logits).sum(-1).mean()


def warm_half_cosine(done: float) -> float:
    """Linear warm-up over a fifteenth of the run, then a cosine to a fiftieth."""
    if done < 1 / 15:
        return max(15.0 * done, 0.02)
    return 0.02 + 0.49 * (1.0 + math.cos(math.pi * (done - 1 / 15) / (14 / 15)))


def closing(seed: int) -> Recipe:
    spec = OptimizerSpec("adamw", 3e-3, weight_decay=1e-2)
    return Recipe("closing", seed, 240, 40, brackets(), Hazards, survival, spec, schedule=warm_half_cosine, learns=0.31)


class Dueling(nn.Module):
    """A position to logits of how many moves are left after each move: what all share, and what sets each apart.

    After Wang et al. 2016, with distributions as in Hessel et al. 2018.
    """

    def __init__(
        self, *, depth: int = 3, activation: type[nn.Module] = nn.ReLU, width: int = 192, dropout: float = 0.0
    ) -> None:
        super().__init__()
        inputs = sliding().train[0].shape[1]
        layers: list[nn.Module] = []
        for number in range(depth - 1):
            layers += [nn.Linear(width if number else inputs, width), activation()]
        self.torso = nn.Sequential(*layers, nn.Dropout(dropout))
        self.shared = nn.Sequential(nn.Linear(width, width // 2), activation(), nn.Linear(width // 2, FARTHEST + 1))
        self.apart = nn.Sequential(
            nn.Linear(width, width // 2), activation(), nn.Linear(width // 2, MOVES * (FARTHEST + 1))
        )
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                last = layer.out_features > width
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if last else "relu")
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.torso(x)
        apart = self.apart(x).unflatten(-1, (MOVES, -1))
        return self.shared(x).unsqueeze(1) + apart - apart.mean(1, keepdim=True)


def histogram(model: nn.Module, batch: Batch, *, smoothing: float = 0.0) -> Tensor:
    """Nats between a bell around the right number and the histogram, over the moves that one has.

    After Imani and White 2018, Farebrother et al. 2024.
    """
    logs, left = model(batch[0]).float().log_softmax(-1), batch[1]
    bell = (-0.5 * ((torch.arange(FARTHEST + 1) - left.unsqueeze(-1)) / BLUR).square()).softmax(-1)
    target = (1.0 - smoothing) * bell + smoothing / bell.shape[-1]
    apart = (torch.special.xlogy(target, target) - target * logs).sum(-1)
    can = (left != NO_MOVE).float()
    return (apart * can).sum() / can.sum().clamp_min(1.0)


def late_line(done: float) -> float:
    """The full rate for half of the run, then a straight line to a hundredth."""
    return 1.0 if done < 0.5 else 1.0 - 1.98 * (done - 0.5)


def slider(seed: int) -> Recipe:
    spec = OptimizerSpec("nesterov", 0.05, weight_decay=1e-4)
    return Recipe(
        "slider", seed, 450, 64, sliding(), Dueling, histogram, spec, schedule=late_line, clip=10.0, learns=0.3
    )


PROGRAMS = (
    Program(
        "ranker",
        "set transformer, Plackett-Luce, words in order, Lion",
        ranker,
        traits("labels tokens attention relu dropout"),
        5e-3,
        0.1,
    ),
    Program(
        "closing",
        "FT-transformer, hazards, brackets, AdamW",
        closing,
        traits("labels features attention dropout"),
        3e-3,
        0.03,
    ),
    Program(
        "slider",
        "dueling net with histograms, sliding puzzle, Nesterov",
        slider,
        traits("classes labels features relu depth dropout cheap"),
        2e-3,
        0.05,
    ),
)
