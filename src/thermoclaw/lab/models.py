"""Plain models, small enough to read: a pre-norm GPT in two dialects, and a multilayer perceptron.

Shape letters: B batch, T positions, H heads, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class GPTShape:
    """What a GPT looks like.

    Attributes:
        vocab_size: number of tokens.
        context: longest sequence.
        width: size of the residual stream.
        num_layers: number of blocks.
        num_heads: attention heads; must divide the width.
        rotary: share of a head's dimensions that carry rotary positions; 0 means learned absolute positions.
        parallel: attention and MLP read the same residual, as in GPT-NeoX and Pythia.
        tied: the output head is the token embedding.
    """

    vocab_size: int
    context: int = 64
    width: int = 128
    num_layers: int = 4
    num_heads: int = 4
    rotary: float = 0.0
    parallel: bool = False
    tied: bool = True

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")


GPT2_124M = GPTShape(vocab_size=50257, context=1024, width=768, num_layers=12, num_heads=12)
"""The shape of GPT-2 small: 124 million parameters."""

PYTHIA_410M = GPTShape(
    vocab_size=50304, context=2048, width=1024, num_layers=24, num_heads=16, rotary=0.25, parallel=True, tied=False
)
"""The shape of Pythia-410M: rotary positions, parallel residual, untied head."""


class Attention(nn.Module):
    """Causal self-attention."""

    angles: Tensor  # of rotary positions, [T, dims/2]

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.num_heads = shape.num_heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.proj = nn.Linear(shape.width, shape.width)
        head = shape.width // shape.num_heads
        self.rotary_dims = int(shape.rotary * head) // 2 * 2
        if self.rotary_dims:
            self.register_buffer("angles", _rotary_angles(shape.context, self.rotary_dims), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, W] → [B, T, W]."""
        batch, time, width = x.shape
        q, k, v = self.qkv(x).view(batch, time, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        if self.rotary_dims:
            q, k = (_rotate(part, self.angles[:time], self.rotary_dims) for part in (q, k))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(mixed.transpose(1, 2).reshape(batch, time, width))


class MLP(nn.Module):
    """Linear maps with a GELU between each two."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """[..., first size] → [..., last size]."""
        for i, layer in enumerate(self.layers):
            x = layer(functional.gelu(x) if i else x)
        return x


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.parallel = shape.parallel
        self.norm1 = nn.LayerNorm(shape.width)
        self.attn = Attention(shape)
        self.norm2 = nn.LayerNorm(shape.width)
        self.mlp = MLP(shape.width, 4 * shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, W] → [B, T, W]."""
        if self.parallel:
            return x + self.attn(self.norm1(x)) + self.mlp(self.norm2(x))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A decoder-only language model.

    Example:
        >>> model = GPT(GPTShape(vocab_size=300, context=16, width=32, num_layers=2, num_heads=2))
        >>> tokens = torch.zeros(1, 8, dtype=torch.long)
        >>> model(tokens).shape
        torch.Size([1, 8, 300])
    """

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.shape = shape
        self.wte = nn.Embedding(shape.vocab_size, shape.width)
        self.wpe = nn.Embedding(shape.context, shape.width) if not shape.rotary else None
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
        self.norm = nn.LayerNorm(shape.width)
        self.lm_head = nn.Linear(shape.width, shape.vocab_size, bias=False)
        if shape.tied:
            self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits [B, T, vocabulary], or with targets the mean cross-entropy in nats per token.

        Args:
            tokens: int64 [B, T].
            targets: int64 [B, T], the next tokens.

        Returns:
            Logits, or a scalar loss in float32.
        """
        x = self.wte(tokens)
        if self.wpe is not None:
            x = x + self.wpe.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.lm_head(self.norm(x))
        if targets is None:
            return logits
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    @property
    def num_params(self) -> int:
        """Number of parameters, a tied head counted once."""
        return sum(p.numel() for p in self.parameters())


def make_gpt(
    shape: GPTShape, *, seed: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> GPT:
    """Create a GPT at its final place and precision, with GPT-2's initialisation drawn from a seed of its own.

    No second copy is made on the way, and the global random state is left as it was.

    Args:
        shape: what it looks like.
        seed: seed of the weights.
        device: where the parameters live.
        dtype: their precision.

    Returns:
        The model, in training mode.
    """
    place = torch.device(device)
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []), place:
        torch.set_default_dtype(dtype)
        try:
            model = GPT(shape)
        finally:
            torch.set_default_dtype(before)
    _initialise(model, torch.Generator(place).manual_seed(seed))
    return model


@torch.no_grad()
def _initialise(model: GPT, random: torch.Generator) -> None:
    """GPT-2: N(0, 0.02), residual projections divided by √(2 · layers), biases 0, norms 1."""
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
            module.bias.zero_()
        elif isinstance(module, nn.Embedding) or (isinstance(module, nn.Linear) and not _is_tied(model, module)):
            last = name.endswith(("attn.proj", "mlp.layers.1"))
            scale = 0.02 / math.sqrt(2 * model.shape.num_layers) if last else 0.02
            module.weight.normal_(0.0, scale, generator=random)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()


def _is_tied(model: GPT, module: nn.Module) -> bool:
    return module is model.lm_head and model.shape.tied


def _rotary_angles(context: int, dims: int) -> Tensor:
    """Angles [T, dims/2] of rotary positions, base 10,000, in float32."""
    rates = 10000.0 ** (-torch.arange(0, dims, 2, dtype=torch.float32) / dims)
    return torch.arange(context, dtype=torch.float32)[:, None] * rates


def _rotate(x: Tensor, angles: Tensor, dims: int) -> Tensor:
    """Turn the first `dims` dimensions of each head by its position, [B, H, T, W/H]."""
    turned, kept = x[..., :dims], x[..., dims:]
    left, right = turned.float().chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    both = torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
    return torch.cat([both.to(x.dtype), kept], dim=-1)
