"""Held-out programs on what is stored: a small language model of tokens, a masked autoencoder, kinds of files."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.lore_data import TILE, byte_plots, num_tokens, spoken, views
from benchmarks.zoo.programs.program import Program, cross_entropy, traits
from benchmarks.zoo.recipe import Batch, OptimizerSpec, Recipe

PATCH, HIDDEN = 4, 0.75
KINDS = 10


class RMSNorm(nn.Module):
    """What is left after division by the root mean square, with a gain (Zhang and Sennrich 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt()).to(x.dtype) * self.weight


def turned(x: Tensor) -> Tensor:
    """Neighboring pairs of features turned by their position, [batch, heads, time, width] (Su et al. 2021)."""
    time, width = x.shape[-2:]
    angle = torch.outer(torch.arange(time), 10_000.0 ** (-torch.arange(0, width, 2) / width))
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class Grouped(nn.Module):
    """Causal attention in which several queries share a key and a value (Ainslie et al. 2023)."""

    def __init__(self, width: int, *, heads: int = 4, shared: int = 2) -> None:
        super().__init__()
        self.size, self.group = width // heads, heads // shared
        self.query = nn.Linear(width, heads * self.size, bias=False)
        self.key, self.value = (nn.Linear(width, shared * self.size, bias=False) for _ in range(2))
        self.out = nn.Linear(heads * self.size, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for f in (self.query, self.key, self.value))
        q, k = turned(q), turned(k)
        k, v = k.repeat_interleave(self.group, dim=1), v.repeat_interleave(self.group, dim=1)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(seen.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """A map up, gated by another, and a map down (Shazeer 2020)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class DecoderLayer(nn.Module):
    """Attention and a gated map, each around a shortcut with its norm before it."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.attention = RMSNorm(width), Grouped(width)
        self.norm2, self.mlp = RMSNorm(width), SwiGLU(width, 8 * width // 3)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attention(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))


class Decoder(nn.Module):
    """A language model in the manner of Llama with one table for both ends (Touvron et al. 2023)."""

    def __init__(self, *, width: int = 48, depth: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_tokens(), width)
        self.layers = nn.Sequential(*(DecoderLayer(width, dropout) for _ in range(depth)))
        self.norm, self.head = RMSNorm(width), nn.Linear(width, num_tokens(), bias=False)
        self.head.weight = self.embed.weight
        for name, p in self.named_parameters():
            if p.dim() > 1:
                closing = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=0.05 / math.sqrt(2 * depth) if closing else 0.05)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.embed(tokens))))


def warm_to_tenth(done: float) -> float:
    """Linear warm-up over a twentieth of the run, then a cosine to a tenth."""
    if done < 0.05:
        return max(done / 0.05, 0.02)
    return 0.1 + 0.45 * (1.0 + math.cos(math.pi * (done - 0.05) / 0.95))


def decoder(seed: int) -> Recipe:
    spec = OptimizerSpec("adamw", 5e-3, weight_decay=0.1, beta2=0.95)
    return Recipe(
        "decoder", seed, 220, 8, spoken(), Decoder, cross_entropy, spec, schedule=warm_to_tenth, clip=1.0, learns=0.4
    )


class Sight(nn.Module):
    """A layer of a vision transformer, norms before (Dosovitskiy et al. 2021)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.rise, self.fall = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fall(F.gelu(self.rise(self.norm2(x))))


def grid_places(side: int, width: int) -> Tensor:
    """Sines and cosines of both coordinates of a square grid, [side², width]."""
    angle = torch.outer(torch.arange(side), 10_000.0 ** (-torch.arange(0, width, 4) / width))
    along = torch.cat([angle.sin(), angle.cos()], dim=1)
    return torch.cat([along.repeat_interleave(side, 0), along.repeat(side, 1)], dim=1)


class MaskedAutoencoder(nn.Module):
    """A quarter of the patches through an encoder, then all places through a slim decoder (He et al. 2022)."""

    place: Tensor
    slim_place: Tensor

    def __init__(self, *, width: int = 48, depth: int = 3, slim: int = 32) -> None:
        super().__init__()
        pixels, side = 3 * PATCH**2, TILE // PATCH
        self.register_buffer("place", grid_places(side, width))
        self.register_buffer("slim_place", grid_places(side, slim))
        self.enter, self.layers = nn.Linear(pixels, width), nn.Sequential(*(Sight(width, 4) for _ in range(depth)))
        self.norm, self.narrow = nn.LayerNorm(width), nn.Linear(width, slim)
        self.mask = nn.Parameter(torch.zeros(slim))
        self.decoder, self.last_norm = Sight(slim, 2), nn.LayerNorm(slim)
        self.leave = nn.Linear(slim, pixels)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.mask, std=0.02)

    def forward(self, patches: Tensor, order: Tensor) -> Tensor:
        """All patches as they are thought to be; the first of `order` are seen, the rest are not."""
        num_seen = round(order.shape[1] * (1.0 - HIDDEN))
        x = self.enter(patches) + self.place
        seen = x.gather(1, order[:, :num_seen, None].expand(-1, -1, x.shape[-1]))
        known = self.narrow(self.norm(self.layers(seen)))
        unknown = self.mask.to(known.dtype).expand(len(known), order.shape[1] - num_seen, -1)
        back = order.argsort(1)[:, :, None].expand(-1, -1, known.shape[-1])
        whole = torch.cat([known, unknown], dim=1).gather(1, back) + self.slim_place
        return self.leave(self.last_norm(self.decoder(whole)))


def in_patches(tiles: Tensor) -> Tensor:
    """Pictures cut into squares, [batch, patches, numbers]."""
    return F.unfold(tiles, PATCH, stride=PATCH).transpose(1, 2)


def hidden_error(model: nn.Module, batch: Batch) -> Tensor:
    """Squared error on the patches that were not seen, drawn anew for every picture."""
    patches, wanted = (in_patches(part) for part in batch)
    order = torch.rand(patches.shape[:2]).argsort(1)
    hidden = order.argsort(1) >= round(order.shape[1] * (1.0 - HIDDEN))
    return F.mse_loss(model(patches, order).float()[hidden], wanted.float()[hidden])


def warm_then_cosine(done: float) -> float:
    """Linear warm-up over an eighth of the run, then a cosine to nothing."""
    return max(done / 0.125, 0.01) if done < 0.125 else 0.5 * (1.0 + math.cos(math.pi * (done - 0.125) / 0.875))


def autoencoder(seed: int) -> Recipe:
    spec = OptimizerSpec("adamw", 3e-3, weight_decay=0.05, beta2=0.95)
    return Recipe(
        "mae", seed, 260, 24, views(), MaskedAutoencoder, hidden_error, spec, schedule=warm_then_cosine, learns=0.17
    )


class Residual(nn.Module):
    """Two convolutions with batch norm around a shortcut, which is a convolution itself where the shape changes.

    After He et al. 2016.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm1, self.norm2, self.relu = nn.BatchNorm2d(after), nn.BatchNorm2d(after), nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.shortcut(x) + self.norm2(self.conv2(y)))


def make_classifier(*, width: int = 12) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Residual(width, width, 1),
        Residual(width, 2 * width, 2),
        Residual(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, KINDS),
    )
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return model


def stairs(done: float) -> float:
    """A tenth after half of the run, a hundredth after three quarters."""
    return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01


def fragments(seed: int) -> Recipe:
    spec = OptimizerSpec("sgd", 0.05, weight_decay=5e-4)
    return Recipe(
        "fragments", seed, 200, 32, byte_plots(), make_classifier, cross_entropy, spec, schedule=stairs, learns=0.14
    )


PROGRAMS = (
    Program(
        "decoder",
        "small Llama with grouped queries, tokens, AdamW, clipped",
        decoder,
        traits("classes labels tokens attention dropout"),
        5e-3,
        0.2,
    ),
    Program("mae", "masked autoencoder, views, AdamW", autoencoder, traits("labels features attention"), 3e-3, 0.1),
    Program(
        "fragments",
        "ResNet, byte plots, SGD with steps",
        fragments,
        traits("classes labels features relu batchnorm"),
        5e-3,
        0.05,
    ),
)
