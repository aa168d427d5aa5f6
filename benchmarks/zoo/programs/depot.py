"""Programs from tutorials: times of the sun predicted, pages told apart, JPEG written on, printed names compressed."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.depot_data import SYMBOLS, TALL, WIDE, daylight, num_symbols, pages, printed_names, symbols
from benchmarks.zoo.programs.program import Program, cross_entropy, squared_error, traits
from benchmarks.zoo.recipe import Batch, OptimizerSpec, Recipe, warm_cosine


def make_regressor(
    *, depth: int = 4, activation: type[nn.Module] = nn.ReLU, dropout: float = 0.0, width: int = 64
) -> nn.Module:
    """A multilayer perceptron as PyTorch initializes it, an output for each number that is wanted."""
    inputs, outputs = (part.shape[1] for part in daylight().train)
    layers: list[nn.Module] = []
    for before, after in pairwise((inputs, *[width] * (depth - 1))):
        layers += [nn.Linear(before, after), activation(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def sunrise(seed: int) -> Recipe:
    spec = OptimizerSpec("nesterov", 0.02)
    return Recipe("sunrise", seed, 400, 64, daylight(), make_regressor, squared_error, spec, learns=0.06)


class Shortcut(nn.Module):
    """Two convolutions with batch norm, and around them a shortcut that skips places and adds empty channels.

    After He et al. 2016, option A.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.stride, self.more = stride, after - before
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        kept = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return F.relu(y + kept)


def make_reader(*, width: int = 8, dropout: float = 0.0) -> nn.Module:
    """A stem at half the size, a stage of blocks at each of three sizes, the mean over all places, a linear map."""
    stem = [nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    shapes = ((width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2))
    body = [Shortcut(before, after, stride) for before, after, stride in shapes]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(4 * width, 7)]
    return nn.Sequential(*stem, *body, *head)


def cosine(done: float) -> float:
    """Half a cosine from one to zero (Loshchilov and Hutter 2017)."""
    return 0.5 * (1.0 + math.cos(math.pi * done))


def month(seed: int) -> Recipe:
    spec = OptimizerSpec("sgd", 0.05, weight_decay=5e-4)
    return Recipe("month", seed, 200, 32, pages(), make_reader, cross_entropy, spec, schedule=cosine, learns=0.15)


class Layer(nn.Module):
    """Attention to what came before, then two maps, each after a norm and beside a shortcut (Radford et al. 2019)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.mix = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.widen, self.narrow = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        b, t, width = x.shape
        q, k, v = (part.view(b, t, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, width)
        x = x + self.drop(self.mix(seen))
        return x + self.drop(self.narrow(F.gelu(self.widen(self.norm2(x)))))


class Writer(nn.Module):
    """A small GPT without biases; one matrix reads symbols and writes them (Press and Wolf 2017)."""

    def __init__(self, *, width: int = 32, layers: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.symbol, self.place = nn.Embedding(num_symbols(), width), nn.Embedding(SYMBOLS, width)
        self.drop = nn.Dropout(dropout)
        self.layers = nn.Sequential(*(Layer(width, 4, dropout) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width, bias=False), nn.Linear(width, num_symbols(), bias=False)
        self.head.weight = self.symbol.weight
        for name, p in self.named_parameters():
            if p.dim() > 1:
                ends = name.endswith(("mix.weight", "narrow.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * layers) if ends else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.symbol(tokens) + self.place(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.layers(self.drop(x))))


def jpeg(seed: int) -> Recipe:
    spec = OptimizerSpec("adamw", 3e-3, weight_decay=0.1, beta2=0.95)
    return Recipe(
        "jpeg", seed, 240, 8, symbols(), Writer, cross_entropy, spec, schedule=warm_cosine, clip=1.0, learns=0.61
    )


class Compressor(nn.Module):
    """Convolutions down to a few numbers and up again to logits of ink (Masci et al. 2011)."""

    def __init__(self, *, width: int = 8, code: int = 48, dropout: float = 0.0) -> None:
        super().__init__()
        corner = (4 * width, TALL // 8, WIDE // 8)
        self.encoder = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(math.prod(corner), code),
        )
        self.decoder = nn.Sequential(
            nn.Linear(code, math.prod(corner)),
            nn.ReLU(),
            nn.Unflatten(1, corner),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),
        )
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def ink_likelihood(model: nn.Module, batch: Batch) -> Tensor:
    """Binary cross-entropy of each pixel, ink taken as a probability."""
    return F.binary_cross_entropy_with_logits(model(batch[0]).float(), batch[1].float())


def lettering(seed: int) -> Recipe:
    spec = OptimizerSpec("adam", 1e-3)
    return Recipe("lettering", seed, 400, 16, printed_names(), Compressor, ink_likelihood, spec, learns=0.29)


PROGRAMS = (
    Program(
        "sunrise",
        "MLP, sunrise and sunset in cities, Nesterov",
        sunrise,
        traits("labels features relu depth dropout cheap"),
        3e-3,
        0.03,
    ),
    Program(
        "month",
        "ResNet, pages of a calendar, SGD with a cosine",
        month,
        traits("classes labels features relu batchnorm dropout"),
        4e-3,
        0.05,
    ),
    Program(
        "jpeg",
        "nanoGPT, symbols of JPEG, AdamW, clipped",
        jpeg,
        traits("classes labels tokens attention dropout"),
        3e-3,
        0.15,
    ),
    Program(
        "lettering",
        "convolutional autoencoder, printed names, Adam",
        lettering,
        traits("labels features relu dropout"),
        2e-3,
        0.1,
    ),
)
