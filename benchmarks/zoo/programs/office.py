"""Programs of course work and small companies: a picture segmented, a table, bytes tagged, signatures classified."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.office_data import INKS, RESULTS, SECTIONS, compiled, glyphs, num_words, operators, thumbnails
from benchmarks.zoo.programs.program import Program, cross_entropy, traits
from benchmarks.zoo.recipe import Batch, OptimizerSpec, Recipe, linear_to_zero


def twice(before: int, after: int) -> nn.Sequential:
    """Two convolutions, each with batch norm (Ioffe and Szegedy 2015) and a ReLU behind it."""
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


class Marker(nn.Module):
    """Down two stages and up again, what was seen on the way down joined at each stage (Ronneberger et al. 2015)."""

    def __init__(self, *, width: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.enter, self.down, self.bottom = twice(1, width), twice(width, 2 * width), twice(2 * width, 4 * width)
        self.pool, self.drop = nn.MaxPool2d(2), nn.Dropout2d(dropout)
        self.rise_1, self.up_1 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2), twice(4 * width, 2 * width)
        self.rise_2, self.up_2 = nn.ConvTranspose2d(2 * width, width, 2, stride=2), twice(2 * width, width)
        self.out = nn.Conv2d(width, len(INKS), 1)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.enter(x)
        half = self.down(self.pool(whole))
        x = self.drop(self.bottom(self.pool(half)))
        x = self.up_1(torch.cat([half, self.rise_1(x)], dim=1))
        x = self.up_2(torch.cat([whole, self.rise_2(x)], dim=1))
        return self.out(x).movedim(1, -1)


def minimap(seed: int) -> Recipe:
    spec = OptimizerSpec("sgd", 0.1, weight_decay=1e-4)
    return Recipe("minimap", seed, 160, 8, thumbnails(), Marker, cross_entropy, spec, learns=0.41)


def make_estimator(*, width: int = 96, dropout: float = 0.1) -> nn.Module:
    """A multilayer perceptron with layer norm (Ba et al. 2016) and dropout (Srivastava et al. 2014) in each layer."""
    inputs, outputs = (part.shape[1] for part in glyphs().train)
    layers: list[nn.Module] = []
    for before, after in pairwise((inputs, width, width, width)):
        layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def huber(model: nn.Module, batch: Batch) -> Tensor:
    """Squares of small errors, sizes of large ones (Huber 1964)."""
    return F.huber_loss(model(batch[0]).float(), batch[1].float())


def ink(seed: int) -> Recipe:
    spec = OptimizerSpec("adamw", 2e-3, weight_decay=0.01)
    return Recipe("ink", seed, 400, 128, glyphs(), make_estimator, huber, spec, learns=0.25)


class Tagger(nn.Module):
    """Convolutions along a sequence, each but every fourth wider spaced than the one before (Strubell et al. 2017)."""

    def __init__(
        self, *, width: int = 48, depth: int = 5, activation: type[nn.Module] = nn.ReLU, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, width)
        layers: list[nn.Module] = []
        for layer in range(depth):
            space = 2 ** (layer % 4)
            layers += [nn.Conv1d(width, width, 3, padding=space, dilation=space), activation(), nn.Dropout(dropout)]
        self.along, self.out = nn.Sequential(*layers), nn.Linear(width, len(SECTIONS))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.along(self.embed(tokens).transpose(1, 2)).transpose(1, 2))


def sections(seed: int) -> Recipe:
    spec = OptimizerSpec("adam", 2e-3)
    return Recipe("sections", seed, 240, 16, compiled(), Tagger, cross_entropy, spec, learns=0.2)


class Bag(nn.Module):
    """The mean of the vectors of all words to a class (Joulin et al. 2017)."""

    def __init__(self, *, width: int = 64, dropout: float = 0.0) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(num_words(), width, mode="mean", padding_idx=0)
        nn.init.uniform_(self.words.weight, -0.5, 0.5)
        self.drop, self.out = nn.Dropout(dropout), nn.Linear(width, len(RESULTS))

    def forward(self, words: Tensor) -> Tensor:
        return self.out(self.drop(self.words(words)))


def signatures(seed: int) -> Recipe:
    spec = OptimizerSpec("sgd", 3.0, momentum=0.0)
    return Recipe(
        "signatures", seed, 400, 64, operators(), Bag, cross_entropy, spec, schedule=linear_to_zero, learns=0.4
    )


PROGRAMS = (
    Program(
        "minimap",
        "U-Net with batch norm, thumbnails of source, SGD",
        minimap,
        traits("classes labels features relu dropout batchnorm"),
        5e-3,
        0.1,
    ),
    Program(
        "ink",
        "MLP with layer norm and Huber loss, glyphs, AdamW",
        ink,
        traits("labels features relu dropout cheap"),
        2e-3,
        0.05,
    ),
    Program(
        "sections",
        "dilated CNN tagger, compiled modules, Adam",
        sections,
        traits("classes labels tokens relu depth dropout"),
        2e-3,
        0.05,
    ),
    Program(
        "signatures",
        "bag of words, signatures of operators, plain SGD",
        signatures,
        traits("classes labels tokens dropout"),
        1e-2,
        0.5,
    ),
)
