"""What trains one model: a value that variants and faults change by replacing parts of it. No thermoclaw here.

A hook is a function of the running training. It is called at one of the moments in `MOMENTS` and may change what it
finds there; everything that a variant or a fault does during a run is a hook.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Batch = tuple[Tensor, ...]
LossOf = Callable[[nn.Module, Batch], Tensor]
Schedule = Callable[[float], float]

MOMENTS = (
    "model",  # the model was made
    "parameters",  # `run.groups` holds what the optimizer will get
    "optimizer",  # the optimizer was made, nobody watches yet
    "step",  # a step begins
    "batch",  # `run.batch` was drawn
    "loss",  # `run.loss` was computed
    "backward",  # gradients are complete, nothing is clipped yet
    "stepped",  # the optimizer has stepped and the watcher has seen it
)


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer by name, with its hyper-parameters; `momentum` is β₁ where there are betas."""

    kind: str
    lr: float
    weight_decay: float = 0.0
    momentum: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    @property
    def is_adam(self) -> bool:
        """Whether steps are gradients over the root of a second moment, in Adam's way."""
        return self.kind in ("adam", "adamw")

    @property
    def is_sgd(self) -> bool:
        """Whether steps are proportional to gradients."""
        return self.kind in ("sgd", "nesterov")


@dataclass(frozen=True)
class Data:
    """Inputs and targets, examples along the first dimension."""

    train: Batch
    validation: Batch

    def __len__(self) -> int:
        return len(self.train[0])

    def mapped(self, change: Callable[[Batch], Batch]) -> Data:
        """Both parts, changed in the same way."""
        return Data(change(self.train), change(self.validation))


def shuffled_order(seed: int, size: int) -> Callable[[int, int], Any]:
    """Indices of a batch as a pure function of its number and size: each epoch is a shuffle of its own."""
    cache: dict[int, Any] = {}

    def pick(number: int, batch_size: int) -> Any:
        batch_size = min(batch_size, size)
        per_epoch = size // batch_size
        epoch, place = divmod(number, per_epoch)
        if epoch not in cache:
            cache.clear()
            cache[epoch] = np.random.default_rng([seed, epoch]).permutation(size)
        return torch.from_numpy(cache[epoch][place * batch_size : (place + 1) * batch_size])

    return pick


def constant(_: float) -> float:
    """The rate as given."""
    return 1.0


def warm_cosine(done: float) -> float:
    """Linear warm-up over a tenth of the run, then a cosine to zero; `done` goes from 0 to 1."""
    if done < 0.1:
        return max(done / 0.1, 0.01)
    return 0.5 * (1.0 + math.cos(math.pi * (done - 0.1) / 0.9))


def step_decay(done: float) -> float:
    """A tenth after 40 % of the run, a hundredth after 75 %."""
    return 1.0 if done < 0.4 else 0.1 if done < 0.75 else 0.01


def restarts(done: float) -> float:
    """A cosine that starts anew twice, as in SGDR."""
    return 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * ((3.0 * done) % 1.0)))


def linear_to_zero(done: float) -> float:
    """A straight line to zero."""
    return max(1.0 - done, 0.0)


@dataclass(frozen=True)
class Recipe:
    """Everything that trains one model.

    Attributes:
        program: name of the program.
        seed: seed of weights, batches and everything random.
        steps: optimizer steps.
        batch_size: examples in a (micro-)batch.
        data: what it trains on.
        build: settings → model.
        loss: model and batch → scalar, in nats or squares.
        optimizer: how it steps.
        settings: passed to `build`.
        schedule: share of the run done → factor on the rate.
        clip: largest gradient norm.
        accumulation: micro-batches a step.
        autocast: compute in bfloat16.
        dtype: of the parameters.
        zero_grad: "before" backward as it should be, "after" it by mistake, or "never".
        learns: a healthy run ends at or below this share of its first loss.
        clean_data, clean_loss: what both losses are measured on, whatever a fault did to the others.
        hooks: (moment, function) pairs.
    """

    program: str
    seed: int
    steps: int
    batch_size: int
    data: Data
    build: Callable[..., nn.Module]
    loss: LossOf
    optimizer: OptimizerSpec
    settings: dict[str, Any] = field(default_factory=dict)
    schedule: Schedule = constant
    clip: float | None = None
    accumulation: int = 1
    autocast: bool = False
    dtype: torch.dtype = torch.float32
    zero_grad: str = "before"
    learns: float = 0.5
    clean_data: Data | None = None
    clean_loss: LossOf | None = None
    hooks: tuple[tuple[str, Callable[[Any], None]], ...] = ()

    def but(self, **changes: Any) -> Recipe:
        """The same recipe with parts replaced; what the losses are measured on stays."""
        kept = {"clean_data": self.clean_data or self.data, "clean_loss": self.clean_loss or self.loss}
        return replace(self, **{**kept, **changes})

    def tuned(self, **changes: Any) -> Recipe:
        """The same recipe with hyper-parameters of the optimizer replaced."""
        return self.but(optimizer=replace(self.optimizer, **changes))

    def built(self, **settings: Any) -> Recipe:
        """The same recipe with settings of the model replaced."""
        return self.but(settings={**self.settings, **settings})

    def hooked(self, moment: str, act: Callable[[Any], None]) -> Recipe:
        """The same recipe with one more hook."""
        if moment not in MOMENTS:
            raise ValueError(f"no moment {moment!r}; there are {', '.join(MOMENTS)}")
        return self.but(hooks=(*self.hooks, (moment, act)))
