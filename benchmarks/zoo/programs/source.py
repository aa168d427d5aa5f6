"""Programs on Python source: a masked encoder with rotary positions, and dilated causal convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.data import source
from benchmarks.zoo.programs.program import Program, cross_entropy, traits
from benchmarks.zoo.recipe import Batch, OptimizerSpec, Recipe, warm_cosine

BYTES, MASK = 129, 128


class RootNorm(nn.Module):
    """Division by the root mean square, with a gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def rotated(x: Tensor) -> Tensor:
    """Rotary positions on [batch, heads, time, width]."""
    half = x.shape[-1] // 2
    rates = 1000.0 ** (-torch.arange(half) / half)
    angle = (torch.arange(x.shape[-2])[:, None] * rates).to(x.dtype)
    left, right = x[..., :half], x[..., half:]
    return torch.cat([left * angle.cos() - right * angle.sin(), left * angle.sin() + right * angle.cos()], dim=-1)


class Mixer(nn.Module):
    """Attention over everything, then a gated map; no biases."""

    def __init__(self, width: int, *, heads: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = RootNorm(width), RootNorm(width)
        self.query, self.key, self.value, self.mix = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.rise = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.fall, self.drop = nn.Linear(2 * width, width, bias=False), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        b, t, width = x.shape
        y = self.norm1(x)
        q, k, v = (f(y).view(b, t, self.heads, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        seen = F.scaled_dot_product_attention(rotated(q), rotated(k), v)
        x = x + self.drop(self.mix(seen.transpose(1, 2).reshape(b, t, width)))
        y = self.norm2(x)
        return x + self.drop(self.fall(F.silu(self.gate(y)) * self.rise(y)))


class Encoder(nn.Module):
    """Bytes with some masked; the head says what every byte is."""

    def __init__(self, *, width: int = 48, depth: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.token = nn.Embedding(BYTES, width)
        nn.init.normal_(self.token.weight, std=0.3)
        self.layers = nn.Sequential(*(Mixer(width, dropout=dropout) for _ in range(depth)))
        self.norm, self.head = RootNorm(width), nn.Linear(width, BYTES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.token(tokens))))


def fill_in(model: nn.Module, batch: Batch, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy on the bytes that were masked, a fifth of all."""
    hidden = torch.rand(batch[0].shape) < 0.2
    logits = model(batch[0].masked_fill(hidden, MASK)).float()
    return F.cross_entropy(logits[hidden], batch[1][hidden], label_smoothing=smoothing)


def encoder(seed: int) -> Recipe:
    data = source().mapped(lambda part: (part[0], part[0]))
    spec = OptimizerSpec("adamw", 3e-3, weight_decay=0.1, beta2=0.98)
    return Recipe("encoder", seed, 260, 12, data, Encoder, fill_in, spec, schedule=warm_cosine, learns=0.75)


class Dilated(nn.Module):
    """A gated causal convolution around a shortcut, as in WaveNet."""

    def __init__(self, width: int, gap: int) -> None:
        super().__init__()
        self.gap = gap
        self.conv, self.join = nn.Conv1d(width, 2 * width, 2, dilation=gap), nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.conv(F.pad(x, (self.gap, 0))).chunk(2, dim=1)
        return x + self.join(left.tanh() * right.sigmoid())


class WaveNet(nn.Module):
    """Bytes in, the next byte out."""

    def __init__(self, *, width: int = 40, dropout: float = 0.0) -> None:
        super().__init__()
        self.token = nn.Embedding(BYTES, width)
        self.body = nn.Sequential(*(Dilated(width, 2**i) for i in range(5)))
        self.drop, self.head = nn.Dropout(dropout), nn.Conv1d(width, BYTES, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.drop(F.relu(self.body(self.token(tokens).transpose(1, 2))))).transpose(1, 2)


def wavenet(seed: int) -> Recipe:
    spec = OptimizerSpec("adam", 3e-3)
    return Recipe("wavenet", seed, 260, 8, source(), WaveNet, cross_entropy, spec, learns=0.7)


PROGRAMS = (
    Program(
        "encoder",
        "masked encoder, source, AdamW",
        encoder,
        traits("classes labels tokens attention dropout"),
        3e-3,
        0.3,
    ),
    Program("wavenet", "WaveNet, source, Adam", wavenet, traits("classes labels tokens dropout"), 3e-3, 0.2),
)
