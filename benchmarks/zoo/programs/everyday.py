"""Programs as they are written every day: a table, pictures and text to be classified, a number to be predicted."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from benchmarks.zoo.everyday_data import COLORS, FORMATS, KINDS, blocks, charts, named_colors, snippets
from benchmarks.zoo.programs.program import Program, cross_entropy, squared_error, traits
from benchmarks.zoo.recipe import OptimizerSpec, Recipe

LETTERS = 128


def make_namer(*, dropout: float = 0.3, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Two hidden layers, batch norm (Ioffe and Szegedy 2015) and dropout (Srivastava et al. 2014) after each."""
    layers: list[nn.Module] = []
    for before, after in pairwise((12, 128, 64)):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), activation(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(64, len(COLORS)))


def colors(seed: int) -> Recipe:
    spec = OptimizerSpec("adamw", 2e-3, weight_decay=0.01)
    return Recipe("colors", seed, 320, 16, named_colors(), make_namer, cross_entropy, spec, learns=0.18)


def make_vgg(*, depth: int = 6, activation: type[nn.Module] = nn.ReLU, dropout: float = 0.0) -> nn.Module:
    """Three stages of small convolutions, each twice as wide, and max pooling (Simonyan and Zisserman 2015)."""
    layers: list[nn.Module] = []
    channels = 3
    for stage, width in enumerate((12, 24, 48)):
        for _ in range((depth + 2 - stage) // 3):
            layers += [nn.Conv2d(channels, width, 3, padding=1), activation()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    head = [nn.Flatten(), nn.Linear(48 * 4, 64), activation(), nn.Dropout(dropout), nn.Linear(64, len(KINDS))]
    model = nn.Sequential(*layers, *head)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return model


def plots(seed: int) -> Recipe:
    spec = OptimizerSpec("sgd", 0.01, weight_decay=5e-4)
    return Recipe("plots", seed, 260, 16, charts(), make_vgg, cross_entropy, spec, learns=0.28)


class Reader(nn.Module):
    """Letters through an LSTM (Hochreiter and Schmidhuber 1997), the mean of its states to a class."""

    def __init__(self, *, width: int = 64, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(LETTERS, 32)
        self.lstm = nn.LSTM(32, width, batch_first=True)
        self.drop, self.out = nn.Dropout(dropout), nn.Linear(width, len(FORMATS))

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.embed(tokens))
        return self.out(self.drop(states.mean(1)))


def formats(seed: int) -> Recipe:
    spec = OptimizerSpec("adam", 5e-3)
    return Recipe("formats", seed, 280, 32, snippets(), Reader, cross_entropy, spec, clip=1.0, learns=0.4)


def make_regressor(
    *, depth: int = 3, activation: type[nn.Module] = nn.ReLU, dropout: float = 0.0, width: int = 128
) -> nn.Module:
    """A multilayer perceptron with one output."""
    layers: list[nn.Module] = []
    for before, after in pairwise((11, *[width] * (depth - 1))):
        layers += [nn.Linear(before, after), activation(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, 1))


def packed(seed: int) -> Recipe:
    spec = OptimizerSpec("rmsprop", 1e-3)
    return Recipe("packed", seed, 400, 64, blocks(), make_regressor, squared_error, spec, learns=0.05)


PROGRAMS = (
    Program(
        "colors",
        "MLP with batch norm, named colors, AdamW",
        colors,
        traits("pairs classes labels features relu batchnorm dropout"),
        2e-3,
        0.02,
    ),
    Program("plots", "VGG, charts, SGD", plots, traits("classes labels features relu depth dropout"), 1e-3, 0.01),
    Program(
        "formats",
        "LSTM, snippets of files, Adam, clipped",
        formats,
        traits("classes labels tokens recurrent dropout"),
        5e-3,
        0.3,
    ),
    Program(
        "packed",
        "MLP, sizes of compressed blocks, RMSprop",
        packed,
        traits("labels features relu depth dropout cheap"),
        1e-3,
        0.02,
    ),
)
