"""Programs on letters and a spiking cell: a separable CNN with batch norm, a GRU that forecasts quantiles."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.zoo.programs.program import Program, cross_entropy, traits
from benchmarks.zoo.recipe import Batch, OptimizerSpec, Recipe
from benchmarks.zoo.signals_data import AHEAD, LETTERS, letters, voltage

QUANTILES = (0.1, 0.5, 0.9)


def separable(before: int, after: int, activation: type[nn.Module], *, stride: int = 1) -> list[nn.Module]:
    """A convolution in each channel, then one across channels, each normalized (MobileNet, Howard et al. 2017)."""
    within = nn.Conv2d(before, before, 3, stride=stride, padding=1, groups=before, bias=False)
    across = nn.Conv2d(before, after, 1, bias=False)
    return [within, nn.BatchNorm2d(before), activation(), across, nn.BatchNorm2d(after), activation()]


def make_mobile(
    *, depth: int = 4, activation: type[nn.Module] = nn.ReLU, dropout: float = 0.0, width: int = 24
) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width)]
    layers += [activation(), *separable(width, 2 * width, activation, stride=2)]
    for _ in range(depth - 2):
        layers += separable(2 * width, 2 * width, activation)
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(2 * width, len(LETTERS))]
    model = nn.Sequential(*layers)
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out" if layer.groups == 1 else "fan_in")
    return model


def falling(done: float) -> float:
    """Full rate, a fifth of it after half of the run, a twenty-fifth in the last quarter."""
    return 1.0 if done < 0.5 else 0.2 if done < 0.75 else 0.04


def mobile(seed: int) -> Recipe:
    spec = OptimizerSpec("sgd", 0.2, weight_decay=5e-4)
    return Recipe("mobile", seed, 450, 48, letters(), make_mobile, cross_entropy, spec, schedule=falling, learns=0.3)


class Forecaster(nn.Module):
    """A GRU reads the past; a linear map says quantiles of each moment to come."""

    def __init__(self, *, width: int = 32, dropout: float = 0.0) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, width, num_layers=2, batch_first=True)
        for name, p in self.rnn.named_parameters():
            if "weight_hh" in name:
                for gate in p.data.chunk(3):
                    nn.init.orthogonal_(gate)
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(width, AHEAD * len(QUANTILES))

    def forward(self, past: Tensor) -> Tensor:
        read, _ = self.rnn(past.unsqueeze(-1))
        return self.head(self.drop(read[:, -1])).view(len(past), AHEAD, len(QUANTILES))


def pinball(model: nn.Module, batch: Batch) -> Tensor:
    """Quantile loss: what lies above costs the quantile, what lies below the rest."""
    above = batch[1].float().unsqueeze(-1) - model(batch[0]).float()
    levels = torch.tensor(QUANTILES)
    return torch.maximum(levels * above, (levels - 1.0) * above).mean()


def forecast(seed: int) -> Recipe:
    spec = OptimizerSpec("rmsprop", 2e-3)
    return Recipe("forecast", seed, 250, 24, voltage(), Forecaster, pinball, spec, clip=1.0, learns=0.5)


PROGRAMS = (
    Program(
        "mobile",
        "separable CNN, letters, SGD",
        mobile,
        traits("classes labels features relu depth dropout batchnorm"),
        1e-2,
        0.1,
    ),
    Program(
        "forecast", "GRU, membrane potential, RMSprop", forecast, traits("labels features recurrent dropout"), 4e-3, 0.5
    ),
)
