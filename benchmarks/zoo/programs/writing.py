"""Programs on Unicode: recurrent transliteration without alignment, and a translator that names characters."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.programs.program import Program, traits
from benchmarks.zoo.recipe import Batch, OptimizerSpec, Recipe
from benchmarks.zoo.writing_data import JAMO, START, character_names, hangul


class Speller(nn.Module):
    """A bidirectional GRU over Latin letters; each says two jamo or nothing, at first mostly nothing."""

    def __init__(self, *, width: int = 48, dropout: float = 0.0) -> None:
        super().__init__()
        self.letters = nn.Embedding(27, 24, padding_idx=0)
        self.gru = nn.GRU(24, width, batch_first=True, bidirectional=True)
        self.drop, self.says = nn.Dropout(dropout), nn.Linear(2 * width, 2 * (JAMO + 1))
        for name, p in self.gru.named_parameters():
            if "weight_hh" in name:
                for gate in p.data.chunk(3):
                    nn.init.orthogonal_(gate)
        self.says.bias.data.view(2, -1)[:, 0] += 5.0

    def forward(self, letters: Tensor) -> Tensor:
        return self.says(self.drop(self.gru(self.letters(letters))[0])).unflatten(-1, (2, -1)).flatten(1, 2)


def unaligned(model: nn.Module, batch: Batch, *, smoothing: float = 0.0) -> Tensor:
    """Connectionist temporal classification, a number a jamo; smoothing is towards all of them alike."""
    logs = model(batch[0]).float().log_softmax(-1)
    frames = torch.full((len(logs),), logs.shape[1])
    spelled = batch[1] > 0
    lengths = spelled.sum(1)
    value = F.ctc_loss(logs.transpose(0, 1), batch[1][spelled], frames, lengths, zero_infinity=True)
    return (1.0 - smoothing) * value - smoothing * logs.mean()


def annealed(done: float) -> float:
    """The same share at every step, down to a tenth."""
    return 0.1**done


def speller(seed: int) -> Recipe:
    spec = OptimizerSpec("nesterov", 0.3)
    return Recipe("speller", seed, 300, 32, hangul(), Speller, unaligned, spec, schedule=annealed, clip=5.0, learns=0.2)


class Attention(nn.Module):
    """Attention from one sequence to another, or to itself; the norm comes after the sum."""

    def __init__(self, width: int, dropout: float, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.drop, self.norm = nn.Dropout(dropout), nn.LayerNorm(width)

    def forward(self, x: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, y in ((self.query, x), (self.key, seen), (self.value, seen))
        )
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~mask, -1e4).softmax(-1)
        return self.norm(x + self.drop(self.out((weights @ v).transpose(1, 2).flatten(2))))


class Wide(nn.Module):
    """Two maps with a ReLU between; the norm comes after the sum."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.rise, self.relu, self.fall = nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        self.drop, self.norm = nn.Dropout(dropout), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.drop(self.fall(self.relu(self.rise(x)))))


class Reader(nn.Module):
    """A layer of the encoder."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.own, self.wide = Attention(width, dropout), Wide(width, dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.wide(self.own(x, x, mask))


class Writer(nn.Module):
    """A layer of the decoder."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.own, self.other, self.wide = Attention(width, dropout), Attention(width, dropout), Wide(width, dropout)

    def forward(self, x: Tensor, past: Tensor, read: Tensor, mask: Tensor) -> Tensor:
        return self.wide(self.other(self.own(x, x, past), read, mask))


def places(length: int, width: int) -> Tensor:
    """Sines and cosines of positions, [length, width]."""
    angle = torch.arange(length)[:, None] * 10_000.0 ** (-torch.arange(0, width, 2) / width)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class Translator(nn.Module):
    """An encoder and a decoder (Vaswani et al. 2017), with the decoder's table as its head."""

    def __init__(self, *, width: int = 48, depth: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        _, parts, words = character_names()
        self.parts, self.words = nn.Embedding(parts, width), nn.Embedding(words, width)
        self.readers = nn.ModuleList(Reader(width, dropout) for _ in range(depth))
        self.writers = nn.ModuleList(Writer(width, dropout) for _ in range(depth))
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(width, words, bias=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)
        for table in (self.parts, self.words):
            nn.init.normal_(table.weight, std=width**-0.5)
        self.head.weight = self.words.weight

    def _embedded(self, table: nn.Module, tokens: Tensor) -> Tensor:
        x = table(tokens)
        return self.drop(x * math.sqrt(x.shape[-1]) + places(*x.shape[1:]).to(x.dtype))

    def forward(self, parts: Tensor, words: Tensor) -> Tensor:
        mask = (parts > 0)[:, None, None, :]
        read, x = self._embedded(self.parts, parts), self._embedded(self.words, words)
        for layer in self.readers:
            read = layer(read, mask)
        past = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        for layer in self.writers:
            x = layer(x, past, read, mask)
        return self.head(x)


def name(model: nn.Module, batch: Batch, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy a word of the name, given the words before it."""
    before = F.pad(batch[1][:, :-1], (1, 0), value=START)
    logits = model(batch[0], before).float()
    return F.cross_entropy(logits.flatten(0, 1), batch[1].flatten(), ignore_index=0, label_smoothing=smoothing)


def noam(done: float) -> float:
    """A straight rise over an eighth of the run, then the inverse root."""
    return min((done + 1e-3) / 0.125, (0.125 / max(done, 0.125)) ** 0.5)


def translator(seed: int) -> Recipe:
    spec = OptimizerSpec("adam", 3e-3, beta2=0.98, eps=1e-9)
    return Recipe("translator", seed, 240, 32, character_names()[0], Translator, name, spec, schedule=noam, learns=0.4)


PROGRAMS = (
    Program(
        "speller",
        "BiGRU with CTC, Hangul, Nesterov",
        speller,
        traits("classes labels tokens recurrent dropout"),
        5e-3,
        0.3,
    ),
    Program(
        "translator",
        "encoder-decoder, character names, Adam",
        translator,
        traits("classes labels tokens attention dropout relu"),
        3e-3,
        0.1,
    ),
)
