"""Programs on words of documentation: a decoder with a mixture of experts, and two towers for retrieval."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.programs.program import Program, traits
from benchmarks.zoo.recipe import Batch, OptimizerSpec, Recipe, linear_to_zero, warm_cosine
from benchmarks.zoo.writing_data import BUCKETS, WORDS, functions, manual

MARGIN = 0.3


class Experts(nn.Module):
    """Two of several maps for each token, weighted by a router (Shazeer et al. 2017)."""

    balance: Tensor

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, number, bias=False)
        self.rise = nn.Parameter(torch.randn(number, width, 2 * width) / width**0.5)
        self.fall = nn.Parameter(torch.randn(number, 2 * width, width) / (2 * width) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).float().softmax(-1)
        best, chosen = shares.topk(2, dim=-1)
        picked = torch.zeros_like(shares).scatter(-1, chosen, 1.0)
        self.balance = shares.shape[-1] * (picked.mean((0, 1)) / 2 * shares.mean((0, 1))).sum()
        weights = torch.zeros_like(shares).scatter(-1, chosen, best / best.sum(-1, keepdim=True))
        hidden = F.gelu(torch.einsum("btw,ewh->bteh", x, self.rise)) * weights[..., None].to(x.dtype)
        return torch.einsum("bteh,ehw->btw", hidden, self.fall)


class Sloped(nn.Module):
    """Causal attention that pays by the distance (Press et al. 2021)."""

    slopes: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.both, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.register_buffer("slopes", 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        time = torch.arange(x.shape[1])
        back = (time[:, None] - time).to(x.dtype)
        bias = (-self.slopes.to(x.dtype)[:, None, None] * back).masked_fill(back < 0, float("-inf"))
        maps = (self.query(x), *self.both(x).chunk(2, dim=-1))
        q, k, v = (y.unflatten(-1, (len(self.slopes), -1)).transpose(1, 2) for y in maps)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.out(seen.transpose(1, 2).flatten(2))


class Sparse(nn.Module):
    """Attention, then experts, each around a shortcut."""

    def __init__(self, width: int, experts: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.attend = nn.LayerNorm(width), Sloped(width, 4)
        self.norm2, self.experts = nn.LayerNorm(width), Experts(width, experts)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attend(self.norm1(x)))
        return x + self.drop(self.experts(self.norm2(x)))


class Mixture(nn.Module):
    """Words in, the next word out."""

    def __init__(self, *, width: int = 48, blocks: int = 2, experts: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.words, self.drop = nn.Embedding(WORDS, width), nn.Dropout(dropout)
        nn.init.normal_(self.words.weight, std=0.5)
        self.blocks = nn.Sequential(*(Sparse(width, experts, dropout) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.drop(self.words(words)))))


def next_word(model: nn.Module, batch: Batch, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the next word, plus what keeps experts equally busy."""
    logits = model(batch[0]).float()
    value = F.cross_entropy(logits.flatten(0, 1), batch[1].flatten(), label_smoothing=smoothing)
    busy = [module.balance for module in model.modules() if isinstance(module, Experts)]
    return value + 0.01 * torch.stack(busy).mean()


def mixture(seed: int) -> Recipe:
    spec = OptimizerSpec("adamw", 3e-3, weight_decay=0.1, beta2=0.95)
    return Recipe(
        "mixture", seed, 250, 12, manual(), Mixture, next_word, spec, schedule=warm_cosine, clip=1.0, learns=0.65
    )


class Towers(nn.Module):
    """Names and lines of text in one space: means of hashed words from one large table, then a map for each."""

    def __init__(
        self, *, width: int = 32, depth: int = 2, activation: type[nn.Module] = nn.ReLU, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(BUCKETS, width, mode="mean", padding_idx=0)
        nn.init.normal_(self.table.weight, std=0.5)
        self.name, self.line = (self._tower([width, *[64] * (depth - 1), width], activation) for _ in range(2))
        self.drop = nn.Dropout(dropout)

    @staticmethod
    def _tower(sizes: list[int], activation: type[nn.Module]) -> nn.Sequential:
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), activation())]
        return nn.Sequential(*layers[:-1])

    def forward(self, names: Tensor, lines: Tensor) -> Tensor:
        places = self.name(self.drop(self.table(names))), self.line(self.drop(self.table(lines)))
        left, right = (F.normalize(place.float(), dim=-1) for place in places)
        return left @ right.T


def ranked(model: nn.Module, batch: Batch) -> Tensor:
    """A name must be nearer to its own line than to others of the batch, by a margin, and the other way round."""
    scores = model(*batch)
    own = scores.diagonal()
    others = ~torch.eye(len(scores), dtype=torch.bool)
    rows, columns = F.relu(MARGIN + scores - own[:, None]), F.relu(MARGIN + scores - own)
    return (rows[others].mean() + columns[others].mean()) / 2


def towers(seed: int) -> Recipe:
    spec = OptimizerSpec("adagrad", 0.05)
    return Recipe("towers", seed, 300, 128, functions(), Towers, ranked, spec, schedule=linear_to_zero, learns=0.4)


PROGRAMS = (
    Program(
        "mixture",
        "mixture of experts, numpy's manual, AdamW, clipped",
        mixture,
        traits("classes labels tokens attention dropout"),
        3e-3,
        0.3,
    ),
    Program(
        "towers",
        "two towers, function names, Adagrad",
        towers,
        traits("pairs labels tokens relu depth dropout"),
        5e-3,
        0.5,
    ),
)
