"""Programs as they are written every day: a small encoder, an LSTM, a denoising autoencoder, a table."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.programs.program import Program, cross_entropy, squared_error, traits
from benchmarks.zoo.recipe import Batch, OptimizerSpec, Recipe, warm_cosine
from benchmarks.zoo.staples_data import (
    KINDS,
    PLACES,
    SPELLING,
    calls,
    clocks,
    entities,
    num_categories,
    num_changes,
    scatter_plots,
)


class Layer(nn.Module):
    """Attention over what is not padding, then two maps, a norm after each shortcut (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out, self.norm_1 = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.LayerNorm(width)
        self.rise, self.fall = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm_2 = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        b, t, width = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None])
        x = self.norm_1(x + self.drop(self.out(mixed.transpose(1, 2).reshape(b, t, width))))
        return self.norm_2(x + self.drop(self.fall(F.gelu(self.rise(x)))))


class Reader(nn.Module):
    """Letters behind a place for the whole, which is classified in the end (BERT, Devlin et al. 2019)."""

    def __init__(self, *, width: int = 48, blocks: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        letters = int(entities().train[0].max()) + 1
        self.letter, self.place = nn.Embedding(letters, width), nn.Embedding(SPELLING + 1, width)
        self.whole = nn.Parameter(torch.zeros(width))
        for table in (self.letter, self.place):
            nn.init.normal_(table.weight, std=0.02)
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Layer(width, 4, dropout) for _ in range(blocks))
        self.head = nn.Linear(width, len(KINDS) + 1)

    def forward(self, letters: Tensor) -> Tensor:
        whole = self.whole.expand(len(letters), 1, -1)
        x = torch.cat([whole, self.letter(letters)], dim=1) + self.place.weight
        seen = F.pad(letters > 0, (1, 0), value=True)
        x = self.drop(self.norm(x))
        for block in self.blocks:
            x = block(x, seen)
        return self.head(x[:, 0])


def entity(seed: int) -> Recipe:
    spec = OptimizerSpec("adamw", 2e-3, weight_decay=0.01)
    return Recipe("entity", seed, 250, 32, entities(), Reader, cross_entropy, spec, schedule=warm_cosine, learns=0.38)


class Clock(nn.Module):
    """Two layers of an LSTM between an embedding and a linear map (Zaremba et al. 2014)."""

    def __init__(self, *, width: int = 72, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_changes(), width)
        self.rnn = nn.LSTM(width, width, num_layers=2, batch_first=True, dropout=dropout)
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(width, num_changes())

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.drop(self.rnn(self.embed(tokens))[0]))


def clock(seed: int) -> Recipe:
    spec = OptimizerSpec("adamw", 5e-3, weight_decay=0.01)
    return Recipe("clock", seed, 300, 16, clocks(), Clock, cross_entropy, spec, clip=1.0, learns=0.22)


def make_denoiser(*, depth: int = 4, activation: type[nn.Module] = nn.ReLU, width: int = 16) -> nn.Module:
    """Convolutions that halve the picture, some between, transposed ones that double it (Vincent et al. 2008)."""
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, stride=2, padding=1), activation()]
    layers += [nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), activation()]
    for _ in range(depth - 3):
        layers += [nn.Conv2d(2 * width, 2 * width, 3, padding=1), activation()]
    layers += [nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1), activation()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1))


def denoise(seed: int) -> Recipe:
    spec = OptimizerSpec("adam", 1e-3)
    return Recipe("denoise", seed, 300, 24, scatter_plots(), make_denoiser, squared_error, spec, learns=0.15)


class Rows(nn.Module):
    """A vector for each category, side by side through a stack of maps (Guo and Berkhahn 2016)."""

    def __init__(
        self, *, width: int = 128, depth: int = 3, activation: type[nn.Module] = nn.ReLU, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_categories(), 16)
        size = 16 * calls().train[0].shape[1]
        layers: list[nn.Module] = []
        for _ in range(depth - 1):
            layers += [nn.Linear(size, width), activation(), nn.Dropout(dropout)]
            size = width
        self.hidden, self.head = nn.Sequential(*layers), nn.Linear(width, len(PLACES))

    def forward(self, categories: Tensor) -> Tensor:
        return self.head(self.hidden(self.embed(categories).flatten(1)))


def several(model: nn.Module, batch: Batch) -> Tensor:
    """Binary cross-entropy, mean over examples and labels."""
    return F.binary_cross_entropy_with_logits(model(batch[0]).float(), batch[1].float())


def around(seed: int) -> Recipe:
    spec = OptimizerSpec("rmsprop", 2e-3)
    return Recipe("around", seed, 400, 128, calls(), Rows, several, spec, learns=0.36)


PROGRAMS = (
    Program(
        "entity",
        "post-norm transformer, HTML entities, AdamW",
        entity,
        traits("classes labels tokens attention dropout"),
        2e-3,
        0.03,
    ),
    Program(
        "clock",
        "two-layer LSTM, changes of clocks, AdamW, clipped",
        clock,
        traits("classes labels tokens dropout recurrent"),
        5e-3,
        1.0,
    ),
    Program(
        "denoise",
        "denoising autoencoder, scatter plots, Adam",
        denoise,
        traits("labels features relu depth"),
        1e-3,
        0.05,
    ),
    Program(
        "around",
        "multi-label MLP with embeddings, calls, RMSprop",
        around,
        traits("labels tokens relu depth dropout cheap"),
        3e-3,
        0.15,
    ),
)
