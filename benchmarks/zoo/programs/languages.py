"""Programs on what programmers write: a text CNN, fine-tuning, a state-space regression."""

from __future__ import annotations

import copy
import math
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo import languages_data as written
from benchmarks.zoo.programs.program import Program, cross_entropy, traits
from benchmarks.zoo.recipe import Batch, OptimizerSpec, Recipe, linear_to_zero, shuffled_order, warm_cosine

PRETRAINING_STEPS = 250
WIDTH = 40


class Phrases(nn.Module):
    """Convolutions of several widths over letters, the largest answer of each (Kim 2014)."""

    def __init__(self, *, maps: int = 24, sizes: tuple[int, ...] = (3, 5, 7), dropout: float = 0.3) -> None:
        super().__init__()
        self.letters = nn.Embedding(written.LETTERS, 16)
        convs = [nn.Conv1d(16, maps, size) for size in sizes]
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            conv.bias = nn.Parameter(torch.zeros(maps))
        self.convs, self.relu, self.drop = nn.ModuleList(convs), nn.ReLU(), nn.Dropout(dropout)
        self.head = nn.Linear(len(sizes) * maps, len(written.PACKAGES))
        nn.init.normal_(self.letters.weight, std=0.25)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, letters: Tensor) -> Tensor:
        x = self.letters(letters).transpose(1, 2)
        return self.head(self.drop(torch.cat([self.relu(conv(x)).amax(-1) for conv in self.convs], dim=1)))


def half_at_a_time(done: float) -> float:
    """Half the rate after each quarter of the run."""
    return 0.5 ** int(4.0 * done)


def phrases(seed: int) -> Recipe:
    data, spec = written.documentation(), OptimizerSpec("nesterov", 0.08, weight_decay=1e-4)
    schedule = half_at_a_time
    return Recipe("phrases", seed, 400, 32, data, Phrases, cross_entropy, spec, schedule=schedule, learns=0.78)


class Again(nn.Module):
    """One layer of a transformer, with its norms after the sums."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value, self.mixed = (nn.Linear(width, width) for _ in range(4))
        self.rise, self.fall = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.norm1, self.norm2, self.drop = nn.LayerNorm(width), nn.LayerNorm(width), nn.Dropout(dropout)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        fits = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~seen[:, None, None], -1e4)
        x = self.norm1(x + self.drop(self.mixed((fits.softmax(-1) @ v).transpose(1, 2).flatten(2))))
        return self.norm2(x + self.drop(self.fall(F.gelu(self.rise(x)))))


class Reader(nn.Module):
    """The same layer over and over, on a narrow table of words (ALBERT, Lan et al. 2020)."""

    def __init__(self, *, width: int = WIDTH, times: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(written.VOCABULARY, 24), nn.Embedding(written.MESSAGE, 24)
        self.widen, self.layer, self.times = nn.Linear(24, width), Again(width, dropout), times
        self.pool, self.head = nn.Linear(width, width), nn.Linear(width, len(written.ERRORS))
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=p.shape[1] ** -0.5)

    def read(self, words: Tensor) -> Tensor:
        """A vector a word."""
        x = self.widen(self.words(words) + self.places.weight)
        for _ in range(self.times):
            x = self.layer(x, words != written.PAD)
        return x

    def forward(self, words: Tensor) -> Tensor:
        return self.head(torch.tanh(self.pool(self.read(words)[:, 0])))


@cache
def _read_before() -> Reader:
    """A reader that has learned to fill gaps in remarks, with a random state of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model, back = Reader(), nn.Linear(WIDTH, 24)
        optimizer = torch.optim.Adam([*model.parameters(), *back.parameters()], lr=3e-3)
        text, pick = written.prose(), shuffled_order(11, len(written.prose()))
        for step in range(PRETRAINING_STEPS):
            words = text[pick(step, 32)]
            gaps = (torch.rand(words.shape) < 0.15) & (words >= written.UNKNOWN)
            hidden = model.read(words.masked_fill(gaps, written.MASK))[gaps]
            optimizer.zero_grad()
            F.cross_entropy(back(hidden) @ model.words.weight.T, words[gaps]).backward()
            optimizer.step()
    model.zero_grad()
    return model


def make_tuned(*, dropout: float = 0.1) -> nn.Module:
    """The reader as it was trained, with a new head."""
    model = copy.deepcopy(_read_before())
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    for layer in (model.pool, model.head):
        layer.reset_parameters()
    return model


def focal(model: nn.Module, batch: Batch, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy that counts little where the answer is sure and right (Lin et al. 2017)."""
    logits = model(batch[0]).float()
    values = F.cross_entropy(logits, batch[1], reduction="none", label_smoothing=smoothing)
    sure = logits.softmax(-1).gather(1, batch[1][:, None]).squeeze(1)
    return ((1.0 - sure) ** 2 * values).mean()


def messages(seed: int) -> Recipe:
    data, spec = written.errors(), OptimizerSpec("adafactor", 0.02)
    return Recipe("messages", seed, 200, 24, data, make_tuned, focal, spec, schedule=linear_to_zero, learns=0.7)


class Decaying(nn.Module):
    """A diagonal state-space layer as a convolution, gated (Gu et al. 2022), around a shortcut."""

    def __init__(self, width: int, states: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.enter, self.leave = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.slow = nn.Parameter(torch.linspace(math.log(0.01), 0.0, states).repeat(width, 1))
        self.out = nn.Parameter(torch.randn(width, states) / states**0.5)
        self.past, self.drop = nn.Parameter(torch.ones(width)), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        time = torch.arange(x.shape[1])
        rate = self.slow.float().exp()
        fading = torch.exp(-rate[..., None] * time) * (1.0 - torch.exp(-rate))[..., None]
        kernel = torch.einsum("ws,wst->wt", self.out.float(), fading)
        u, gate = self.enter(self.norm(x)).chunk(2, dim=-1)
        ahead = 2 * len(time)
        seen = torch.fft.rfft(u.float().transpose(1, 2), ahead) * torch.fft.rfft(kernel, ahead)
        y = torch.fft.irfft(seen, ahead)[..., : len(time)].transpose(1, 2).to(u.dtype) + self.past * u
        return x + self.drop(self.leave(F.silu(gate) * y))


class Machine(nn.Module):
    """Operations in, one number out: an average over them, weighted by how well each fits a question."""

    def __init__(self, *, width: int = 24, layers: int = 2, states: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.operations = nn.Embedding(int(written.bytecode().train[0].max()) + 1, width, padding_idx=0)
        self.layers = nn.Sequential(*(Decaying(width, states, dropout) for _ in range(layers)))
        self.norm, self.key, self.value = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.query, self.head = nn.Parameter(torch.randn(4, width // 4)), nn.Linear(width, 1)

    def forward(self, operations: Tensor) -> Tensor:
        x = self.norm(self.layers(self.operations(operations)))
        fits = torch.einsum("bthd,hd->bth", self.key(x).unflatten(-1, (4, -1)), self.query.to(x.dtype))
        weights = (fits / self.query.shape[1] ** 0.5).masked_fill((operations == 0)[..., None], -1e4).softmax(1)
        pooled = (weights[..., None] * self.value(x).unflatten(-1, (4, -1))).sum(1)
        return self.head(pooled.flatten(1)).squeeze(1)


def huber(model: nn.Module, batch: Batch) -> Tensor:
    """Squares near zero, lines beyond half a standard deviation."""
    return F.huber_loss(model(batch[0]).float(), batch[1].float(), delta=0.5)


def machine(seed: int) -> Recipe:
    spec = OptimizerSpec("adamw", 4e-3, weight_decay=0.05)
    return Recipe("machine", seed, 300, 16, written.bytecode(), Machine, huber, spec, schedule=warm_cosine, clip=1.0)


PROGRAMS = (
    Program(
        "phrases", "text CNN, manuals, Nesterov", phrases, traits("classes labels tokens relu dropout"), 7e-3, 0.08
    ),
    Program(
        "messages",
        "ALBERT fine-tuned, errors, Adafactor",
        messages,
        traits("classes labels tokens attention dropout pretrained"),
        2e-3,
        0.05,
    ),
    Program("machine", "state space, bytecode, AdamW", machine, traits("labels tokens attention dropout"), 4e-3, 0.05),
)
