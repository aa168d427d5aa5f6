"""The models whose training is watched: GPTs and perceptrons of plain torch modules, and stacks of equal layers.

Every environment runs these very modules, so that a rival sees the same work. A stack has no forward pass: its
gradients are set once, which leaves the cost of optimizer and instrument alone and makes a scaling curve cheap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The shape of a GPT: depth, width, heads, context, vocabulary, and whether the head is the embedding."""

    depth: int
    width: int
    heads: int
    context: int
    vocab: int
    tied: bool = True


GPTS = {
    "gpt-tiny": Shape(2, 32, 2, 32, 64),
    "gpt-1M": Shape(4, 128, 4, 128, 1024),
    "gpt-10M": Shape(6, 352, 8, 128, 2048),
    "gpt-124M": Shape(12, 768, 12, 1024, 50257),
    "gpt-410M": Shape(24, 1024, 16, 2048, 50304, tied=False),
    "gpt-1.3B": Shape(24, 2048, 16, 2048, 50304),
    "gpt-many-small": Shape(64, 48, 4, 64, 256),
}
MLPS = {"mlp-tiny": (2, 32), "mlp-1M": (4, 512), "mlp-10M": (6, 1344)}  # hidden layers and their width
CLASSES = 10


class Block(nn.Module):
    """One layer of a GPT."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn_qkv, self.attn_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp_up, self.mlp_down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.attn_qkv(self.ln_1(x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp_down(nn.functional.gelu(self.mlp_up(self.ln_2(x))))


class GPT(nn.Module):
    """A GPT whose output is one row of logits for each token, all sequences in one list."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(shape.vocab, shape.width), nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.ln_f, self.lm_head = nn.LayerNorm(shape.width), nn.Linear(shape.width, shape.vocab, bias=False)
        for table in (self.wte, self.wpe):
            nn.init.normal_(table.weight, std=0.02)
        if shape.tied:
            self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.ln_f(x)).flatten(0, 1)


def build(name: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model of that name with random weights: a key of GPTS or MLPS, or stack-PARAMETERSxLAYERS."""
    torch.manual_seed(0)
    with torch.device(device):
        if name in GPTS:
            model: nn.Module = GPT(GPTS[name])
        elif name in MLPS:
            depth, width = MLPS[name]
            hidden = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.ReLU())]
            model = nn.Sequential(*hidden, nn.Linear(width, CLASSES))
        else:
            params, layers = (int(text) for text in name.removeprefix("stack-").split("x"))
            side = max(round((params / layers) ** 0.5), 1)
            model = nn.Sequential(*(nn.Linear(side, side, bias=False) for _ in range(layers)))
    return model.to(dtype)


def stack(params: int, layers: int) -> str:
    """The name of a stack: about so many parameters, cut into so many equal layers."""
    return f"stack-{params}x{layers}"


def has_forward(name: str) -> bool:
    """Whether steps of the model have a forward and a backward pass."""
    return not name.startswith("stack-")


def make_batch(name: str, *, batch: int, tokens: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random inputs and targets, on the generator's device."""
    device = generator.device
    if name in GPTS:
        text = torch.randint(0, GPTS[name].vocab, (batch, tokens), generator=generator, device=device)
        return text, text.flatten()
    x = torch.randn(batch, MLPS[name][1], generator=generator, device=device)
    return x, torch.randint(0, CLASSES, (batch,), generator=generator, device=device)


def set_gradients(model: nn.Module, generator: torch.Generator) -> None:
    """Give every parameter a fixed gradient of small random numbers."""
    for p in model.parameters():
        p.grad = (torch.randn(p.shape, generator=generator, device=p.device) * 1e-3).to(p.dtype)


def make_optimizer(name: str, params: list[nn.Parameter]) -> Any:
    """An optimizer by its name in the tables.

    Raises:
        ValueError: this version of torch has no such optimizer.
    """
    if name == "sgd-momentum":
        return torch.optim.SGD(params, lr=1e-4, momentum=0.9)
    if name == "adamw":
        return torch.optim.AdamW(params, lr=1e-4)
    if name == "adamw-foreach":
        return torch.optim.AdamW(params, lr=1e-4, foreach=True)
    if name == "adamw-fused":
        return torch.optim.AdamW(params, lr=1e-4, fused=True)
    kind = {"adafactor": "Adafactor", "muon": "Muon"}.get(name)
    if kind is None or not hasattr(torch.optim, kind):
        raise ValueError(f"torch {torch.__version__} has no optimizer {name}")
    return getattr(torch.optim, kind)(params, lr=1e-4)
