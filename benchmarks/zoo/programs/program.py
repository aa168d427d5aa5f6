"""What a program is, and losses that programs share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.recipe import Batch, Recipe


@dataclass(frozen=True)
class Program:
    """Data, model and loss with a recipe that works.

    Attributes:
        name: what tables call it.
        title: what it is, for readers.
        recipe: seed → the plain recipe.
        traits: what variants and faults ask for: "classes", "labels" (targets to get wrong), "features" (real inputs),
            "tokens", "relu", "depth" (settings depth and activation), "dropout" (a setting), "attention",
            "batchnorm", "recurrent", "pretrained", "pairs" (examples are compared with
            each other), "cheap" (a thousand steps take seconds and end in noise).
        adam_lr, sgd_lr: rates that work with AdamW and with SGD and momentum; rates of other optimizers follow.
    """

    name: str
    title: str
    recipe: Callable[[int], Recipe]
    traits: frozenset[str]
    adam_lr: float
    sgd_lr: float


def traits(names: str) -> frozenset[str]:
    """Words as a set."""
    return frozenset(names.split())


def cross_entropy(model: nn.Module, batch: Batch, *, smoothing: float = 0.0) -> Tensor:
    """Mean over examples, or over all tokens."""
    logits = model(batch[0]).float()
    return F.cross_entropy(logits.flatten(0, -2), batch[1].flatten(), label_smoothing=smoothing)


def squared_error(model: nn.Module, batch: Batch) -> Tensor:
    """Mean over examples and outputs."""
    return F.mse_loss(model(batch[0]).float().view_as(batch[1]), batch[1].float())
