"""Development programs on English text, and the regression: LSTM, GPT, table."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.zoo.data import WINDOW, diabetes, english, vocabulary
from benchmarks.zoo.programs.layers import Block, stack
from benchmarks.zoo.programs.program import Program, cross_entropy, squared_error, traits
from benchmarks.zoo.recipe import OptimizerSpec, Recipe, warm_cosine


class LSTM(nn.Module):
    """Characters in, the next character out."""

    def __init__(self, *, width: int = 96, dropout: float = 0.0) -> None:
        super().__init__()
        letters = vocabulary("english")
        self.embed, self.rnn = nn.Embedding(letters, 32), nn.LSTM(32, width, batch_first=True)
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(width, letters)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.drop(self.rnn(self.embed(tokens))[0]))


def lstm(seed: int) -> Recipe:
    spec = OptimizerSpec("adam", 4e-3)
    return Recipe("lstm", seed, 240, 16, english(), LSTM, cross_entropy, spec, clip=1.0, learns=0.65)


class GPT(nn.Module):
    """A decoder with a tied head."""

    def __init__(self, *, width: int = 48, depth: int = 3, dropout: float = 0.0, tied: bool = True) -> None:
        super().__init__()
        letters = vocabulary("english")
        self.wte, self.wpe = nn.Embedding(letters, width), nn.Embedding(WINDOW, width)
        self.blocks = nn.Sequential(*(Block(width, 4, causal=True, dropout=dropout) for _ in range(depth)))
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, letters, bias=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.04)
        if tied:
            self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        return self.lm_head(self.ln_f(self.blocks(x)))


def gpt(seed: int) -> Recipe:
    spec = OptimizerSpec("adamw", 3e-3, weight_decay=0.1, beta2=0.95)
    return Recipe(
        "gpt", seed, 260, 12, english(), GPT, cross_entropy, spec, schedule=warm_cosine, clip=1.0, learns=0.65
    )


def make_regressor(*, depth: int = 3, activation: type[nn.Module] = nn.Tanh, dropout: float = 0.0) -> nn.Module:
    return stack([10, *[64] * (depth - 1), 1], activation, dropout=dropout)


def regression(seed: int) -> Recipe:
    spec = OptimizerSpec("sgd", 0.01, weight_decay=5e-3)
    return Recipe("regression", seed, 300, 16, diabetes(), make_regressor, squared_error, spec, learns=0.7)


PROGRAMS = (
    Program("lstm", "LSTM, English, Adam, clipped", lstm, traits("classes labels tokens dropout recurrent"), 4e-3, 1.0),
    Program("gpt", "GPT, English, AdamW, clipped", gpt, traits("classes labels tokens attention dropout"), 3e-3, 0.3),
    Program("regression", "MLP, diabetes, SGD", regression, traits("labels features depth dropout"), 1e-3, 0.01),
)
