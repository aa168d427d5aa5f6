"""Held-out programs: a student of a larger network, voices of modules told by triplets, and a recurrent tagger."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.programs.program import Program, cross_entropy, traits
from benchmarks.zoo.recipe import Batch, Data, OptimizerSpec, Recipe, linear_to_zero, shuffled_order, warm_cosine
from benchmarks.zoo.trees_data import AHEAD, CHARACTERS, NODE_TYPES, PAD, SUMS, TAGS, digit_sums, run_together, syntax

TEACHER_STEPS, TEMPERATURE = 150, 4.0
MARGIN, GROUP = 0.5, 64


class Teacher(nn.Module):
    """Convolutions that both digits share, then a wide map of the two together."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Flatten(), nn.Linear(384, 64), nn.ReLU(),
        )  # fmt: skip
        self.add = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, SUMS))

    def forward(self, pairs: Tensor) -> Tensor:
        return self.add(self.look(pairs.flatten(0, 1)).unflatten(0, (-1, 2)).flatten(1))


@cache
def taught() -> Data:
    """Pairs of digits, and what a trained teacher answers before its softmax."""
    data = digit_sums()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, pick = Teacher(), shuffled_order(3, len(data))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for step in range(TEACHER_STEPS):
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * (1.0 - step / TEACHER_STEPS)
            at = pick(step, 64)
            optimizer.zero_grad()
            cross_entropy(model, tuple(part[at] for part in data.train)).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            return data.mapped(lambda part: (part[0], model(part[0])))


class Student(nn.Module):
    """A narrow stack of maps for either digit, the same for both, and one for what they are together."""

    def __init__(
        self, *, depth: int = 3, activation: type[nn.Module] = nn.ReLU, dropout: float = 0.0, width: int = 40
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise([64, *[width] * (depth - 1)]):
            layers += [nn.Linear(before, after), activation()]
        self.digit, self.drop = nn.Sequential(*layers), nn.Dropout(dropout)
        self.both, self.act, self.head = nn.Linear(2 * width, 64), activation(), nn.Linear(64, SUMS)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu" if layer is not self.head else "linear")
                nn.init.zeros_(layer.bias)

    def forward(self, pairs: Tensor) -> Tensor:
        return self.head(self.act(self.both(self.drop(self.digit(pairs).flatten(1)))))


def distilled(model: nn.Module, batch: Batch, *, smoothing: float = 0.0) -> Tensor:
    """Divergence from the teacher's softened answers, scaled back (Hinton et al. 2015)."""
    told = (batch[1].float() / TEMPERATURE).softmax(-1)
    told = (1.0 - smoothing) * told + smoothing / SUMS
    said = (model(batch[0]).float() / TEMPERATURE).log_softmax(-1)
    return TEMPERATURE**2 * F.kl_div(said, told, reduction="batchmean")


def student(seed: int) -> Recipe:
    spec = OptimizerSpec("adam", 5e-3)
    return Recipe("student", seed, 450, 48, taught(), Student, distilled, spec, schedule=linear_to_zero, learns=0.1)


class Voice(nn.Module):
    """Nodes in the order of the tree to a point on a sphere, by dilated convolutions and statistics over all nodes.

    After Snyder et al. 2018 (x-vectors), where functions of a module stand for what one speaker says.
    """

    def __init__(self, *, width: int = 40, size: int = 32, dropout: float = 0.0) -> None:
        super().__init__()
        self.kinds, self.drop = nn.Embedding(NODE_TYPES, 24, padding_idx=PAD), nn.Dropout(dropout)
        layers: list[nn.Module] = []
        for before, after, reach, gap in ((24, width, 3, 1), (width, width, 3, 2), (width, 2 * width, 1, 1)):
            conv = nn.Conv1d(before, after, reach, dilation=gap, padding=gap * (reach // 2), bias=False)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            layers += [conv, nn.BatchNorm1d(after), nn.ReLU()]
        self.hear, self.place = nn.Sequential(*layers), nn.Linear(4 * width, size, bias=False)
        self.center = nn.BatchNorm1d(size)  # else all points begin on one side of the sphere

    def forward(self, nodes: Tensor) -> Tensor:
        heard = self.hear(self.drop(self.kinds(nodes)).transpose(1, 2)).float()
        seen = (nodes != PAD).float()[:, None]
        count = seen.sum(-1).clamp_min(1.0)
        mean = (heard * seen).sum(-1) / count
        spread = (((heard - mean[..., None]).square() * seen).sum(-1) / count + 1e-4).sqrt()
        pooled = torch.cat([mean, spread], dim=-1).to(self.place.weight.dtype)
        return F.normalize(self.center(self.place(pooled)).float(), dim=-1)


def triplets(model: nn.Module, batch: Batch) -> Tensor:
    """Two of a module are nearer than two of different ones, by a margin (Schroff et al. 2015).

    Over all triplets, within groups of at most `GROUP` examples, as their number grows with the cube.
    """
    lacking, valid = torch.zeros(()), torch.zeros(())
    for points, labels in zip(model(batch[0]).split(GROUP), batch[1].split(GROUP), strict=True):
        distance, same = 2.0 - 2.0 * points @ points.T, labels[:, None] == labels
        other = ~torch.eye(len(same), dtype=torch.bool)
        counted = ((same & other)[:, :, None] & ~same[:, None, :]).float()
        lacking = lacking + (counted * F.relu(distance[:, :, None] - distance[:, None, :] + MARGIN)).sum()
        valid = valid + counted.sum()
    return lacking / valid.clamp_min(1.0)


def cosine(done: float) -> float:
    """Half a cosine, from the full rate to zero (Loshchilov and Hutter 2017)."""
    return 0.5 * (1.0 + math.cos(math.pi * done))


def voices(seed: int) -> Recipe:
    spec = OptimizerSpec("nesterov", 0.1, weight_decay=1e-3)
    return Recipe("voices", seed, 240, 40, syntax(), Voice, triplets, spec, schedule=cosine, learns=0.55)


class Tagger(nn.Module):
    """Two recurrent layers with a layer norm after each, the second around a shortcut; it answers some letters late."""

    def __init__(self, *, width: int = 56, dropout: float = 0.1) -> None:
        super().__init__()
        self.letters = nn.Embedding(CHARACTERS, 32)
        self.first, self.second = nn.LSTM(32, width, batch_first=True), nn.LSTM(width, width, batch_first=True)
        self.norm1, self.norm2, self.drop = nn.LayerNorm(width), nn.LayerNorm(width), nn.Dropout(dropout)
        self.head = nn.Linear(width, TAGS)
        for name, p in [*self.first.named_parameters(), *self.second.named_parameters()]:
            if "weight_hh" in name:
                for gate in p.data.chunk(4):
                    nn.init.orthogonal_(gate)
            elif "weight_ih" in name:
                nn.init.xavier_uniform_(p)
            else:
                nn.init.zeros_(p)
                if "ih" in name:
                    p.data[width : 2 * width] = 1.0  # it remembers at first (Jozefowicz et al. 2015)

    def forward(self, letters: Tensor) -> Tensor:
        x = self.norm1(self.first(self.letters(letters))[0])
        x = x + self.norm2(self.second(self.drop(x))[0])
        return self.head(self.drop(x[:, AHEAD:]))


def restore(seed: int) -> Recipe:
    data, spec = run_together(), OptimizerSpec("adamw", 1e-2, weight_decay=0.01)
    return Recipe(
        "restore", seed, 260, 20, data, Tagger, cross_entropy, spec, schedule=warm_cosine, clip=1.0, learns=0.4
    )


PROGRAMS = (
    Program(
        "student",
        "distilled siamese MLP, sums of digits, Adam",
        student,
        traits("classes labels features relu depth dropout cheap"),
        3e-3,
        0.02,
    ),
    Program(
        "voices",
        "x-vectors with triplets, syntax trees, Nesterov",
        voices,
        traits("pairs labels tokens relu dropout batchnorm"),
        5e-3,
        0.1,
    ),
    Program(
        "restore",
        "LSTM tagger with layer norm, docstrings, AdamW, clipped",
        restore,
        traits("classes labels tokens recurrent dropout"),
        1e-2,
        0.1,
    ),
)
