"""Held-out programs on moves and measures: a player taught by a solved game, many outputs at once, discrete codes."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.plays_data import SIDE, four_in_a_row, nuclei, rows
from benchmarks.zoo.programs.program import Program, traits
from benchmarks.zoo.recipe import Batch, OptimizerSpec, Recipe, linear_to_zero, warm_cosine

WORTH = 2.0  # weight of the worth beside the moves
COMMITMENT = 0.25


class Thought(nn.Module):
    """Two maps with layer norm behind each, the second before the shortcut joins (He et al. 2016, Ba et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.norm1, self.norm2 = (nn.LayerNorm(width) for _ in range(2))
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.norm1(self.first(x)))
        return self.relu2(x + self.norm2(self.second(y)))


class Player(nn.Module):
    """A position to logits of moves, and what it is worth from −1 to 1 (Silver et al. 2017)."""

    def __init__(self, *, width: int = 128, blocks: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Linear(2 * SIDE * SIDE, width), nn.LayerNorm(width), nn.ReLU())
        self.blocks, self.drop = nn.Sequential(*(Thought(width) for _ in range(blocks))), nn.Dropout(dropout)
        self.moves = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, SIDE))
        self.worth = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 1), nn.Tanh())
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for head in (self.moves, self.worth):
            nn.init.xavier_uniform_(head.get_parameter("2.weight"), gain=0.1)  # every move alike at first

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.drop(self.blocks(self.enter(x)))
        return self.moves(x), self.worth(x).squeeze(-1)


def moves_and_worth(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy with the shares of the best moves, and Huber's loss of the worth."""
    logits, worth = model(batch[0])
    wanted = batch[1].float()
    of_moves = -(wanted[:, :SIDE] * logits.float().log_softmax(-1)).sum(-1).mean()
    return of_moves + WORTH * F.huber_loss(worth.float(), wanted[:, SIDE], delta=0.5)


def one_cycle(done: float) -> float:
    """From a 25th up for three tenths of the run, then down to nothing, both half cosines (Smith and Topin 2019)."""
    if done < 0.3:
        return 0.04 + 0.96 * 0.5 * (1.0 - math.cos(math.pi * done / 0.3))
    return 0.5 * (1.0 + math.cos(math.pi * (done - 0.3) / 0.7))


def player(seed: int) -> Recipe:
    spec = OptimizerSpec("adam", 3e-3)
    return Recipe(
        "player", seed, 450, 64, four_in_a_row(), Player, moves_and_worth, spec, schedule=one_cycle, learns=0.34
    )


def make_selfnorm(*, depth: int = 5, activation: type[nn.Module] = nn.SELU, dropout: float = 0.0) -> nn.Module:
    """A self-normalizing network: SELU, LeCun's initialization, dropout that keeps the mean (Klambauer et al. 2017)."""
    inputs, outputs = (part.shape[1] for part in nuclei().train)
    sizes = [inputs, *[128] * (depth - 1)]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), activation(), nn.AlphaDropout(dropout / 4)]  # they advise 0.05 to 0.1
    model = nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            nn.init.zeros_(layer.bias)
    return model


def huber(model: nn.Module, batch: Batch) -> Tensor:
    """Squares near the target, distances beyond one deviation (Huber 1964)."""
    return F.huber_loss(model(batch[0]).float(), batch[1].float())


def selfnorm(seed: int) -> Recipe:
    spec = OptimizerSpec("rmsprop", 1e-3, weight_decay=1e-4)
    return Recipe("selfnorm", seed, 500, 16, nuclei(), make_selfnorm, huber, spec, schedule=linear_to_zero, learns=0.12)


class Codes(nn.Module):
    """The nearest code of a book for each vector, all of length one (van den Oord et al. 2017, Yu et al. 2022)."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.book = nn.Parameter(torch.randn(size, width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes with the gradient of what they stand for, and how far both are apart."""
        x, book = F.normalize(x.float(), dim=-1), F.normalize(self.book.float(), dim=-1)
        codes = book[(x @ book.T).argmax(-1)]
        apart = (codes - x.detach()).square().sum(-1) + COMMITMENT * (codes.detach() - x).square().sum(-1)
        return x + (codes - x).detach(), apart.mean()


class Quantized(nn.Module):
    """Runs of rows to runs of codes and back, convolutions along the run."""

    def __init__(self, *, width: int = 64, codes: int = 128, code_width: int = 8) -> None:
        super().__init__()
        side = rows().train[0].shape[2]
        self.encoder = nn.Sequential(
            nn.Conv1d(side, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv1d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv1d(width, code_width, 1),
        )
        self.codes = Codes(codes, code_width)
        self.decoder = nn.Sequential(
            nn.Conv1d(code_width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv1d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv1d(width, side, 1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found, apart = self.codes(self.encoder(x.transpose(1, 2)).transpose(1, 2))
        return self.decoder(found.to(x.dtype).transpose(1, 2)).transpose(1, 2), apart


def rebuilding(model: nn.Module, batch: Batch) -> Tensor:
    """Squared error of what is rebuilt, and what keeps codes and vectors together."""
    rebuilt, apart = model(batch[0])
    return F.mse_loss(rebuilt.float(), batch[1].float()) + 0.25 * apart


def codebook(seed: int) -> Recipe:
    spec = OptimizerSpec("adamw", 4e-3, weight_decay=0.01, beta2=0.99)
    return Recipe(
        "codebook", seed, 350, 32, rows(), Quantized, rebuilding, spec, schedule=warm_cosine, clip=1.0, learns=0.29
    )


PROGRAMS = (
    Program(
        "player",
        "residual MLP with two heads, four in a row, Adam",
        player,
        traits("labels features relu dropout"),
        3e-3,
        0.03,
    ),
    Program("selfnorm", "SELU net, nuclei, RMSprop", selfnorm, traits("labels features depth"), 2e-3, 0.03),
    Program("codebook", "VQ autoencoder, rows of digits, AdamW", codebook, traits("labels features"), 4e-3, 0.3),
)
