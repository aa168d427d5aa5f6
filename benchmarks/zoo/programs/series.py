"""Programs on time: when a function ends, where a walk through a tree leads, and what expressions compile to."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.programs.program import Program, traits
from benchmarks.zoo.recipe import Batch, OptimizerSpec, Recipe
from benchmarks.zoo.series_data import AHEAD, HORIZON, LINES, LONGEST, PAST, START, compiled, execution, walks


class Scaled(nn.Module):
    """Division by the root mean square, with a gain (Zhang and Sennrich 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=1e-5).to(x.dtype) * self.gain


class Selective(nn.Module):
    """A state-space layer that chooses what to keep, in its dual form (Mamba-2, Dao and Gu 2024)."""

    def __init__(self, width: int, *, heads: int = 4, states: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        inner = 2 * width
        self.sizes = [inner, inner + 2 * states, heads]
        self.parts = [inner, states, states]
        self.norm, self.enter = Scaled(width), nn.Linear(width, sum(self.sizes), bias=False)
        self.near = nn.Conv1d(inner + 2 * states, inner + 2 * states, 4, groups=inner + 2 * states)
        steps = torch.exp(torch.linspace(math.log(0.01), math.log(0.3), heads))
        self.pace = nn.Parameter(steps.expm1().log())  # what the softplus turns into these steps
        self.rate = nn.Parameter(torch.linspace(1.0, 4.0, heads).log())
        self.past, self.norm_inner = nn.Parameter(torch.ones(heads)), Scaled(inner)
        self.leave, self.drop = nn.Linear(inner, width, bias=False), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        gate, mixed, step = torch.split(self.enter(self.norm(x)), self.sizes, dim=-1)
        mixed = F.silu(self.near(F.pad(mixed.transpose(1, 2), (3, 0)))).transpose(1, 2)
        u, written, read = torch.split(mixed, self.parts, dim=-1)
        u = u.reshape(*u.shape[:2], len(self.rate), -1)
        step = F.softplus(step.float() + self.pace.float())
        faded = (-step * self.rate.float().exp()).cumsum(1).transpose(1, 2)  # logarithms, [batch, heads, time]
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        kept = (faded[..., None] - faded[..., None, :]).masked_fill(later, float("-inf")).exp()
        weights = (read @ written.transpose(1, 2))[:, None] * kept.to(u.dtype)
        y = torch.einsum("bhts,bshw->bthw", weights, u * step[..., None].to(u.dtype)) + self.past[:, None] * u
        return x + self.drop(self.leave(self.norm_inner(y.flatten(2) * F.silu(gate))))


class Returns(nn.Module):
    """Lines as they are run in; of each, a logit for every number of lines that may still follow."""

    def __init__(self, *, width: int = 28, layers: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.lines = nn.Embedding(LINES, width)
        nn.init.normal_(self.lines.weight, std=0.5)
        self.layers = nn.Sequential(*(Selective(width, dropout=dropout) for _ in range(layers)))
        self.norm, self.head = Scaled(width), nn.Linear(width, HORIZON)

    def forward(self, lines: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.lines(lines))))


def survival(model: nn.Module, batch: Batch) -> Tensor:
    """Nats an observed line: it ends now or lasts, until it ends or is lost sight of (Gensheimer, Narasimhan 2019)."""
    logits, ends = model(batch[0]).float(), batch[1][..., None]
    moment = torch.arange(HORIZON)
    nats = F.binary_cross_entropy_with_logits(logits, (moment == ends).float(), reduction="none")
    return (nats * (moment <= ends)).sum(-1).mean()


def warm_half_cosine(done: float) -> float:
    """Linear warm-up over eight hundredths of the run, then half a cosine to a twentieth."""
    if done < 0.08:
        return (done + 0.002) / 0.082
    return 0.05 + 0.475 * (1.0 + math.cos(math.pi * (done - 0.08) / 0.92))


def returns(seed: int) -> Recipe:
    spec = OptimizerSpec("adamw", 5e-3, weight_decay=0.1, beta2=0.95)
    return Recipe(
        "returns", seed, 200, 12, execution(), Returns, survival, spec, schedule=warm_half_cosine, clip=1.0, learns=0.1
    )


class Part(nn.Module):
    """Fully connected layers, and from the last a share of the past and one of what comes (Oreshkin et al. 2020)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before in (PAST, width, width):
            layers += [nn.Linear(before, width), nn.ReLU()]
        self.body, self.drop = nn.Sequential(*layers), nn.Dropout(dropout)
        self.past, self.ahead = nn.Linear(width, PAST), nn.Linear(width, AHEAD)
        for layer in self.body:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.drop(self.body(x))
        return self.past(hidden), self.ahead(hidden)


class Residues(nn.Module):
    """Each part explains some of the past, leaves the rest to the next, and adds to the forecast (N-BEATS)."""

    def __init__(self, *, width: int = 80, parts: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Part(width, dropout) for _ in range(parts))

    def forward(self, past: Tensor) -> Tensor:
        forecast = torch.zeros(len(past), AHEAD, dtype=past.dtype)
        for part in self.parts:
            explained, ahead = part(past)
            past, forecast = past - explained, forecast + ahead
        return forecast


def relative(model: nn.Module, batch: Batch) -> Tensor:
    """Mean absolute error as a share of what was to be forecast (MAPE), its denominators not below a tenth."""
    wanted = batch[1].float()
    return ((model(batch[0]).float() - wanted).abs() / wanted.abs().clamp_min(0.1)).mean()


def half_in_thirds(done: float) -> float:
    """Half the rate after each third of the run."""
    return 0.5 ** int(3.0 * done)


def walk(seed: int) -> Recipe:
    spec = OptimizerSpec("lion", 6e-4, weight_decay=0.1)
    return Recipe("walk", seed, 400, 48, walks(), Residues, relative, spec, schedule=half_in_thirds, learns=0.27)


class Compiler(nn.Module):
    """A GRU reads both ways, another writes, and looks back by multiplicative attention (Luong et al. 2015)."""

    repeated: Tensor

    def __init__(self, *, width: int = 48, dropout: float = 0.0) -> None:
        super().__init__()
        _, tokens, steps = compiled()
        self.tokens, self.steps = nn.Embedding(tokens, 24, padding_idx=0), nn.Embedding(steps, 24, padding_idx=0)
        self.reads = nn.GRU(24, width // 2, batch_first=True, bidirectional=True)
        self.writes, self.begin = nn.GRU(24, width, batch_first=True), nn.Linear(width, width)
        self.query, self.join = nn.Linear(width, width, bias=False), nn.Linear(2 * width, width)
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(width, steps)
        for name, p in self.named_parameters():
            if "weight_hh" in name:
                for gate in p.data.chunk(3):
                    nn.init.orthogonal_(gate)
            elif p.dim() > 1 and "tokens" not in name and "steps" not in name:
                nn.init.xavier_uniform_(p)

    def forward(self, tokens: Tensor, steps: Tensor) -> Tensor:
        read, last = self.reads(self.drop(self.tokens(tokens)))
        first = torch.tanh(self.begin(last.transpose(0, 1).flatten(1)))
        written, _ = self.writes(self.drop(self.steps(steps)), first[None].to(read.dtype))
        fits = self.query(written) @ read.transpose(1, 2)
        looks = fits.float().masked_fill((tokens == 0)[:, None], -1e4).softmax(-1)
        self.repeated = torch.minimum(looks, looks.cumsum(1) - looks).sum(-1)
        seen = torch.tanh(self.join(torch.cat([looks.to(read.dtype) @ read, written], dim=-1)))
        return self.head(self.drop(seen))


def covering(model: nn.Module, batch: Batch, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of instructions given those before, and a fine for looking twice at one place (See et al. 2017)."""
    before = F.pad(batch[1][:, : LONGEST - 1], (1, 0), value=START)
    logits, real = model(batch[0], before).float(), batch[1] > 0
    nats = F.cross_entropy(logits.transpose(1, 2), batch[1], reduction="none", label_smoothing=smoothing)
    (repeated,) = (module.repeated for module in model.modules() if isinstance(module, Compiler))
    return ((nats + 0.1 * repeated) * real).sum() / real.sum().clamp_min(1)


def held_then_halved(done: float) -> float:
    """The full rate for half of the run, then half of it after each further eighth (Sutskever et al. 2014)."""
    return 0.5 ** max(int(8.0 * done) - 3, 0)


def compiler(seed: int) -> Recipe:
    data, spec = compiled()[0], OptimizerSpec("sgd", 0.25)
    schedule = held_then_halved
    return Recipe("compiler", seed, 220, 24, data, Compiler, covering, spec, schedule=schedule, clip=1.0, learns=0.14)


PROGRAMS = (
    Program(
        "returns", "Mamba-2 with hazards, a run of Python, AdamW", returns, traits("labels tokens dropout"), 5e-3, 0.1
    ),
    Program(
        "walk",
        "N-BEATS, depths of trees, Lion",
        walk,
        traits("labels features relu dropout cheap"),
        3e-3,
        0.03,
    ),
    Program(
        "compiler",
        "GRU with attention and coverage, expressions, SGD",
        compiler,
        traits("classes labels tokens recurrent attention dropout"),
        1e-2,
        0.2,
    ),
)
