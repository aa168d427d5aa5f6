"""Programs on scenes and fields: a PixelCNN of reliefs, recurrent stereo matching, signed distances by sine waves."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.programs.program import Program, traits
from benchmarks.zoo.recipe import Batch, OptimizerSpec, Recipe
from benchmarks.zoo.scenes_data import LEVELS, POINTS, distances, reliefs, views

MIXED = 4
LEAST_LOG_SCALE = -4.2
KEPT = 0.8
HARD = 0.4
WAVES = 6.0


class GatedMasked(nn.Module):
    """One stack sees what is above, the other what is to the left and what the first one says; both are gated.

    After van den Oord et al. 2016; masks are margins, as in Salimans et al. 2017.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.above = nn.Conv2d(width, 2 * width, (2, 3))
        self.beside = nn.Conv2d(width, 2 * width, (1, 2))
        self.across, self.mix = nn.Conv2d(2 * width, 2 * width, 1), nn.Conv2d(width, width, 1)
        self.drop = nn.Dropout(dropout)

    def forward(self, upper: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        y = self.above(F.pad(upper, (1, 1, 1, 0)))
        z = self.beside(F.pad(left, (1, 0, 0, 0))) + self.across(y)
        return self._gated(y), left + self.mix(self.drop(self._gated(z)))

    @staticmethod
    def _gated(x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=1)
        return value.tanh() * gate.sigmoid()


class PixelCNN(nn.Module):
    """Pictures in; for each place a mixture of logistic distributions, given the places read before it."""

    def __init__(self, *, width: int = 16, layers: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.first_above, self.first_beside = nn.Conv2d(2, width, (2, 3)), nn.Conv2d(2, width, (1, 3))
        self.layers = nn.ModuleList(GatedMasked(width, dropout) for _ in range(layers))
        self.wide, self.leave = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, 3 * MIXED, 1)
        bias = torch.cat([torch.zeros(MIXED), torch.linspace(-0.9, 0.5, MIXED), torch.full((MIXED,), -1.5)])
        self.leave.bias = nn.Parameter(bias)
        with torch.no_grad():
            self.leave.weight.mul_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, torch.ones_like(x)], dim=1)  # tells the picture from its margin
        upper = self.first_above(F.pad(x, (1, 1, 2, 0))[:, :, :-1])
        left = upper + self.first_beside(F.pad(x, (3, 0, 0, 0))[:, :, :, :-1])
        for layer in self.layers:
            upper, left = layer(upper, left)
        return self.leave(F.elu(self.wide(F.elu(left))))


def logistic_mixture(model: nn.Module, batch: Batch) -> Tensor:
    """Nats a place: how unlikely its level is under a mixture of discretized logistics (Salimans et al. 2017)."""
    shares, means, scales = model(batch[0]).float().chunk(3, dim=1)
    target, half = batch[1].float(), 1.0 / (LEVELS - 1)
    narrow = (-scales.clamp_min(LEAST_LOG_SCALE)).exp()
    upper, lower = narrow * (target - means + half), narrow * (target - means - half)
    below, over = target < -0.99, target > 0.99
    inner = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log1p(-torch.exp(-2.0 * half * narrow))
    level = torch.where(below, F.logsigmoid(upper), torch.where(over, F.logsigmoid(-lower), inner))
    return -(level + shares.log_softmax(1)).logsumexp(1).mean()


def fading(done: float) -> float:
    """The same share at every step, down to a fifth."""
    return float(0.2**done)


def relief(seed: int) -> Recipe:
    spec = OptimizerSpec("adam", 4e-3)
    return Recipe("relief", seed, 200, 12, reliefs(), PixelCNN, logistic_mixture, spec, schedule=fading, learns=0.29)


class Looks(nn.Module):
    """A picture at half its size, in features; a norm over places and a shortcut."""

    def __init__(self, width: int, after: int, norm: type[nn.Module], **options: bool) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, width, 5, stride=2, padding=2), norm(width, **options)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), norm(width, **options)
        self.leave = nn.Conv2d(width, after, 1)
        for layer in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        return self.leave(F.relu(x + self.norm2(self.conv2(x))))


class Matching(nn.Module):
    """Two views to a few guesses, each better than the one before it, of how far every place has moved.

    All places of a line are compared once; a convolutional GRU looks around its guess and corrects it
    (RAFT-Stereo, Lipson et al. 2021).
    """

    def __init__(self, *, width: int = 16, rounds: int = 3, reach: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.width, self.rounds, self.reach = width, rounds, reach
        self.features = Looks(width, width, nn.InstanceNorm2d, affine=True)
        self.context = Looks(width, 2 * width, nn.BatchNorm2d)
        self.motion, self.drop = nn.Conv2d(2 * reach + 2, width, 3, padding=1), nn.Dropout2d(dropout)
        self.gates = nn.Conv2d(3 * width, 2 * width, (1, 5), padding=(0, 2))
        self.candidate = nn.Conv2d(3 * width, width, (5, 1), padding=(2, 0))
        self.correct1, self.correct2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        one, other = self.features(x[:, :1]), self.features(x[:, 1:])
        alike = torch.einsum("bchx,bchy->bhxy", one, other) / self.width**0.5
        state, about = self.context(x[:, :1]).split(self.width, dim=1)
        state, about = state.tanh(), self.drop(about.relu())
        guess = torch.zeros_like(alike[:, None, :, :, 0])
        guesses = []
        for _ in range(self.rounds):
            guess = guess.detach()
            motion = F.relu(self.motion(torch.cat([self._around(alike, guess), guess], dim=1)))
            update, reset = self.gates(torch.cat([state, motion, about], dim=1)).sigmoid().chunk(2, dim=1)
            candidate = self.candidate(torch.cat([reset * state, motion, about], dim=1)).tanh()
            state = (1.0 - update) * state + update * candidate
            guess = guess + self.correct2(F.relu(self.correct1(state)))
            guesses.append(guess)
        return guesses

    def _around(self, alike: Tensor, guess: Tensor) -> Tensor:
        """How alike a place and those around its guess are, [batch, 2 reach + 1, height, width]."""
        last = alike.shape[-1] - 1
        near = torch.arange(-self.reach, self.reach + 1)
        at = torch.arange(last + 1)[:, None] + guess[:, 0, :, :, None].float() + near
        at = at.nan_to_num(0.0, 0.0, 0.0).clamp(-1.0, last + 1.0)
        whole = at.floor()
        part = (at - whole).to(alike.dtype)
        padded, index = F.pad(alike, (1, 2)), whole.long() + 1
        return torch.lerp(padded.gather(3, index), padded.gather(3, index + 1), part).permute(0, 3, 1, 2)


def all_rounds(model: nn.Module, batch: Batch) -> Tensor:
    """Absolute errors of all guesses, in pixels; the later, the more they count (Teed and Deng 2020)."""
    guesses = model(batch[0])
    weights = [KEPT ** (len(guesses) - 1 - i) for i in range(len(guesses))]
    errors = [w * F.l1_loss(g.float(), batch[1].float()) for w, g in zip(weights, guesses, strict=True)]
    return torch.stack(errors).sum() / sum(weights)


def rise_and_fall(done: float) -> float:
    """A straight line up over the first tenth of the run, and one down to a hundredth."""
    return max(done / 0.1, 0.04) if done < 0.1 else 1.0 - 0.99 * (done - 0.1) / 0.9


def parallax(seed: int) -> Recipe:
    spec = OptimizerSpec("adamw", 4e-3, weight_decay=1e-4)
    data = views()
    return Recipe(
        "parallax", seed, 180, 8, data, Matching, all_rounds, spec, schedule=rise_and_fall, clip=1.0, learns=0.3
    )


class Sine(nn.Module):
    """The sine."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


class Field(nn.Module):
    """A digit and places to a number at each place: sines of maps of the places, which the digit stretches and moves.

    After Sitzmann et al. 2020 and Chan et al. 2021.
    """

    def __init__(self, *, depth: int = 4, activation: type[nn.Module] = Sine, width: int = 64) -> None:
        super().__init__()
        self.look = nn.Sequential(nn.Linear(64, 2 * width), nn.SiLU(), nn.RMSNorm(2 * width))
        maps = [nn.Linear(2 if i == 0 else width, width) for i in range(depth)]
        steers = [nn.Linear(2 * width, 2 * width) for _ in range(depth)]
        for i, (layer, steer) in enumerate(zip(maps, steers, strict=True)):
            bound = WAVES / 2.0 if i == 0 else math.sqrt(6.0 / width)
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.normal_(steer.weight, std=0.25 / math.sqrt(2.0 * width))
            nn.init.zeros_(steer.bias)
        self.hidden, self.steer = nn.ModuleList(maps), nn.ModuleList(steers)
        self.act, self.leave = activation(), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        digit, y = self.look(x[:, :64]), x[:, 64:].unflatten(1, (POINTS, 2))
        for steer, layer in zip(self.steer, self.hidden, strict=True):
            stretch, move = steer(digit).unsqueeze(1).chunk(2, dim=2)
            y = self.act((1.0 + stretch) * layer(y) + move)
        return self.leave(y).squeeze(2)


def hard_first(model: nn.Module, batch: Batch) -> Tensor:
    """Absolute error, in which a place counts more that seems to be nearer or on the other side (Duan et al. 2020)."""
    error = batch[1].float() - model(batch[0]).float()
    return ((1.0 + HARD * (batch[1].float() * error).sign()) * error.abs()).mean()


def half_cosine(done: float) -> float:
    """Warm-up over a twentieth of the run, then half a cosine to a fiftieth."""
    return max(done / 0.05, 0.05) if done < 0.05 else 0.51 + 0.49 * math.cos(math.pi * (done - 0.05) / 0.95)


def distance(seed: int) -> Recipe:
    spec = OptimizerSpec("lion", 4e-4, weight_decay=0.1)
    return Recipe("distance", seed, 300, 24, distances(), Field, hard_first, spec, schedule=half_cosine, learns=0.19)


PROGRAMS = (
    Program("relief", "gated PixelCNN, reliefs of syntax, Adam", relief, traits("labels features dropout"), 4e-3, 5e-3),
    Program(
        "parallax",
        "RAFT-Stereo, views, AdamW, clipped",
        parallax,
        traits("labels features relu batchnorm dropout"),
        4e-3,
        0.05,
    ),
    Program(
        "distance",
        "modulated SIREN, distances to outlines, Lion",
        distance,
        traits("labels features depth"),
        3e-3,
        0.03,
    ),
)
