"""Programs on points: a normalizing flow over a seafloor, and a fine-tuned PointNet on outlines of letters."""

from __future__ import annotations

import copy
import math
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.programs.program import Program, cross_entropy, traits
from benchmarks.zoo.recipe import Batch, OptimizerSpec, Recipe, linear_to_zero, shuffled_order, warm_cosine
from benchmarks.zoo.relations_data import CYRILLIC, LATIN, outlines, seafloor


class Coupling(nn.Module):
    """One half is scaled and moved as the other one says, then they change places."""

    def __init__(self, half: int, *, width: int, depth: int, activation: type[nn.Module]) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(half, width), activation()]
        for _ in range(depth - 2):
            layers += [nn.Linear(width, width), activation()]
        self.hidden, self.last = nn.Sequential(*layers), nn.Linear(width, 2 * half)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = x.chunk(2, dim=-1)
        shift, scale = self.last(self.hidden(kept)).chunk(2, dim=-1)
        scale = 2.0 * torch.tanh(scale / 2.0)
        return torch.cat([moved * scale.exp() + shift, kept], dim=-1), scale.float().sum(-1)


class RealNVP(nn.Module):
    """Eight numbers to eight that are independent and normal, and the logarithm of the volume gained."""

    def __init__(self, *, layers: int = 6, depth: int = 3, activation: type[nn.Module] = nn.SiLU) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(4, width=48, depth=depth, activation=activation) for _ in range(layers))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        volume = torch.zeros(len(x))
        for coupling in self.couplings:
            x, gained = coupling(x)
            volume = volume + gained
        return x, volume


def likelihood(model: nn.Module, batch: Batch) -> Tensor:
    """Nats an example: the negative log-likelihood, which is negative where the density is above one."""
    latent, volume = model(batch[0])
    normal = 0.5 * (latent.float().square() + math.log(2.0 * math.pi)).sum(-1)
    return (normal - volume).mean()


def flow(seed: int) -> Recipe:
    spec = OptimizerSpec("adam", 4e-3)
    return Recipe("flow", seed, 400, 128, seafloor(), RealNVP, likelihood, spec, schedule=warm_cosine, learns=0.3)


class PointNet(nn.Module):
    """The same map for each point, the largest of each feature, and a head (Qi et al. 2017)."""

    def __init__(self, classes: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.lift1, self.norm1 = nn.Linear(2, 32), nn.BatchNorm1d(32)
        self.lift2, self.norm2 = nn.Linear(32, 64), nn.BatchNorm1d(64)
        self.lift3, self.norm3 = nn.Linear(64, 128), nn.BatchNorm1d(128)
        self.hidden, self.drop, self.head = nn.Linear(128, 64), nn.Dropout(dropout), nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        each = x.flatten(0, 1)
        for lift, norm in ((self.lift1, self.norm1), (self.lift2, self.norm2), (self.lift3, self.norm3)):
            each = F.relu(norm(lift(each)))
        whole = each.view(*x.shape[:2], -1).amax(1)
        return self.head(self.drop(F.relu(self.hidden(whole))))


@cache
def _knows_latin() -> PointNet:
    """Trained on Latin letters, with a random state of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model, data = PointNet(len(LATIN)), outlines(LATIN)
        optimizer, pick = torch.optim.Adam(model.parameters(), lr=3e-3), shuffled_order(11, len(data))
        for step in range(300):
            at = pick(step, 32)
            optimizer.zero_grad()
            cross_entropy(model, tuple(part[at] for part in data.train)).backward()
            optimizer.step()
    return model


def make_pointnet(*, dropout: float = 0.1) -> nn.Module:
    model = copy.deepcopy(_knows_latin())
    model.zero_grad()
    model.drop.p, model.head = dropout, nn.Linear(64, len(CYRILLIC))
    return model


def name_letter(model: nn.Module, batch: Batch, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy, with points that tremble."""
    trembling = batch[0] + 0.02 * torch.randn_like(batch[0])
    return cross_entropy(model, (trembling, batch[1]), smoothing=smoothing)


def pointnet(seed: int) -> Recipe:
    spec = OptimizerSpec("sgd", 5e-3, weight_decay=1e-4)
    data = outlines(CYRILLIC)
    return Recipe(
        "pointnet", seed, 400, 32, data, make_pointnet, name_letter, spec, schedule=linear_to_zero, learns=0.4
    )


PROGRAMS = (
    Program("flow", "RealNVP, seafloor, Adam", flow, traits("features depth"), 4e-3, 2e-3),
    Program(
        "pointnet",
        "PointNet fine-tuned, letters, SGD",
        pointnet,
        traits("classes labels features relu batchnorm dropout pretrained"),
        1e-3,
        5e-3,
    ),
)
