"""Development programs that go on from a trained model: fine-tuning a CNN, and a low-rank adapter on a ViT."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor, nn

from benchmarks.zoo.data import digits, some_digits
from benchmarks.zoo.programs.layers import ViT
from benchmarks.zoo.programs.program import Program, cross_entropy, traits
from benchmarks.zoo.recipe import Batch, Data, OptimizerSpec, Recipe, shuffled_order

PRETRAINING_STEPS = 250


def _pretrain(model: nn.Module, data: Data) -> nn.Module:
    """A few epochs of Adam, with a random state of their own."""
    pick = shuffled_order(7, len(data))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(PRETRAINING_STEPS):
        at = pick(step, 32)
        optimizer.zero_grad()
        cross_entropy(model, tuple(part[at] for part in data.train)).backward()
        optimizer.step()
    return model


class SmallCNN(nn.Module):
    """A trunk of convolutions and a head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(24 * 16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


@cache
def _trained_cnn() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return _pretrain(SmallCNN(5), some_digits((0, 1, 2, 3, 4)))


def make_finetuned(*, frozen: bool = False) -> nn.Module:
    model = copy.deepcopy(_trained_cnn())
    model.zero_grad()
    model.trunk.requires_grad_(not frozen)
    model.head = nn.Linear(24 * 16, 5)
    return model


def finetune(seed: int) -> Recipe:
    data, spec = some_digits((5, 6, 7, 8, 9)), OptimizerSpec("adamw", 3e-4, weight_decay=0.01)
    return Recipe("finetune", seed, 200, 16, data, make_finetuned, cross_entropy, spec, learns=0.3)


class LowRank(nn.Module):
    """A frozen linear map plus a trained product of two thin matrices (Hu et al. 2021)."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * (x @ self.lora_a.T) @ self.lora_b.T


@cache
def _trained_vit() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return _pretrain(ViT(), digits())


def make_adapted(*, rank: int = 4) -> nn.Module:
    model = copy.deepcopy(_trained_vit()).requires_grad_(False)
    model.zero_grad()
    for block in model.blocks:
        block.attn.qkv = LowRank(block.attn.qkv, rank)
        block.mlp[0] = LowRank(block.mlp[0], rank)
    model.head.requires_grad_(True)
    return model


def _turned(part: Batch) -> Batch:
    return part[0].view(-1, 8, 8).transpose(1, 2).flatten(1), part[1]


def lora(seed: int) -> Recipe:
    data, spec = digits().mapped(_turned), OptimizerSpec("adamw", 3e-3)
    return Recipe("lora", seed, 200, 32, data, make_adapted, cross_entropy, spec, learns=0.3)


PROGRAMS = (
    Program(
        "finetune", "CNN fine-tuned, AdamW", finetune, traits("classes labels features relu pretrained"), 3e-4, 5e-3
    ),
    Program("lora", "ViT with LoRA, AdamW", lora, traits("classes labels features attention pretrained"), 3e-3, 0.03),
)
