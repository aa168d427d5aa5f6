"""Small real training programs that the tests of diagnosis run: real data, seconds each, any optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from thermoclaw import Observer
from thermoclaw.lab.corpus import english_text

LossOf = Callable[[], Tensor]
Program = Callable[[int], tuple[nn.Module, LossOf]]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@cache
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    x = torch.tensor(data.data / 16.0, dtype=torch.float32)
    return x - x.mean(0), torch.tensor(data.target)


@cache
def characters() -> tuple[Tensor, int]:
    text = english_text()[:200_000]
    letters = sorted(set(text))
    place = {c: i for i, c in enumerate(letters)}
    return torch.tensor([place[c] for c in text]), len(letters)


def _classifier(model: nn.Module, seed: int, batch: int, *, image: bool = False) -> tuple[nn.Module, LossOf]:
    x, y = digits()
    random = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        pick = torch.randint(0, len(x), (batch,), generator=random)
        inputs = x[pick].view(-1, 1, 8, 8) if image else x[pick]
        return F.cross_entropy(model(inputs), y[pick])

    return model, loss


def mlp(
    seed: int, *, batch: int = 32, depth: int = 3, activation: type[nn.Module] = nn.ReLU
) -> tuple[nn.Module, LossOf]:
    layers: list[nn.Module] = [nn.Linear(64, 128), activation()]
    for _ in range(depth - 2):
        layers += [nn.Linear(128, 128), activation()]
    return _classifier(nn.Sequential(*layers, nn.Linear(128, 10)), seed, batch)


def full_batch_mlp(seed: int) -> tuple[nn.Module, LossOf]:
    model, _ = mlp(seed)
    x, y = digits()
    return model, lambda: F.cross_entropy(model(x), y)


def cnn(seed: int, *, batch: int = 32) -> tuple[nn.Module, LossOf]:
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    return _classifier(model, seed, batch, image=True)


def regression(seed: int, *, batch: int = 32) -> tuple[nn.Module, LossOf]:
    data = load_diabetes()
    x = torch.tensor(data.data * 20, dtype=torch.float32)
    y = torch.tensor((data.target - data.target.mean()) / data.target.std(), dtype=torch.float32)
    model = nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    random = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        pick = torch.randint(0, len(x), (batch,), generator=random)
        return F.mse_loss(model(x[pick])[:, 0], y[pick])

    return model, loss


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn_qkv, self.attn_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp_up, self.mlp_down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, width = x.shape
        q, k, v = self.attn_qkv(self.ln_1(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_out(mixed.transpose(1, 2).reshape(b, t, width))
        return x + self.mlp_down(F.gelu(self.mlp_up(self.ln_2(x))))


class _GPT(nn.Module):
    def __init__(self, vocab: int, *, width: int = 48, depth: int = 2, context: int = 48) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(_Block(width, 4) for _ in range(depth))
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, vocab, bias=False)
        self.lm_head.weight = self.wte.weight
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def gpt(seed: int, *, batch: int = 8, context: int = 48) -> tuple[nn.Module, LossOf]:
    tokens, vocab = characters()
    model = _GPT(vocab, context=context)
    random = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        at = torch.randint(0, len(tokens) - context - 1, (batch,), generator=random)
        x = torch.stack([tokens[i : i + context] for i in at])
        y = torch.stack([tokens[i + 1 : i + context + 1] for i in at])
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten())

    return model, loss


def adamw(lr: float = 1e-3, decay: float = 0.01, beta: float = 0.9) -> MakeOptimizer:
    return lambda params: torch.optim.AdamW(params, lr=lr, weight_decay=decay, betas=(beta, 0.999))


def sgd(lr: float = 0.05, decay: float = 0.0, momentum: float = 0.9) -> MakeOptimizer:
    return lambda params: torch.optim.SGD(params, lr=lr, weight_decay=decay, momentum=momentum)


def train(
    program: Program,
    make_optimizer: MakeOptimizer,
    num_steps: int,
    *,
    seed: int = 0,
    pretrain: int = 0,
    freeze: bool = False,
    schedule: bool = False,
    clip: float | None = None,
    each: Callable[[int, nn.Module, torch.optim.Optimizer], Any] | None = None,
    **settings: Any,
) -> Observer:
    """Train and watch; the observer is strict, so an error of the measurement fails the test."""
    torch.manual_seed(seed)
    model, loss_of = program(seed)
    if pretrain:
        warm = torch.optim.Adam(model.parameters(), 1e-3)
        for _ in range(pretrain):
            warm.zero_grad()
            loss_of().backward()
            warm.step()
    if freeze:
        for p in list(model.parameters())[:-2]:
            p.requires_grad = False
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(params)
    observer = Observer(model, optimizer, strict=True, **settings)
    scheduler = (
        torch.optim.lr_scheduler.OneCycleLR(optimizer, optimizer.defaults["lr"], num_steps) if schedule else None
    )
    for step in range(num_steps):
        if each is not None:
            each(step, model, optimizer)
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(params, clip)
        optimizer.step()
        observer.step(loss=loss)
        if scheduler is not None:
            scheduler.step()
    return observer
