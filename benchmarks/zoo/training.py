"""The training loop: a recipe and a watcher in, what became of the run out. No thermoclaw here."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.zoo.optimizers import make_optimizer
from benchmarks.zoo.recipe import Batch, Data, Recipe, shuffled_order

NUM_VALIDATIONS = 12
MEASURED_ON = 384  # examples of either part that a loss is measured on


class Watcher(Protocol):
    """Whoever looks on: this library, an older one, or nobody."""

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Called once, before the first step."""

    def step(self, loss: Tensor) -> None:
        """Called after each step of the optimizer, with gradients still in place."""

    def validated(self, loss: float) -> None:
        """Called with a validation loss now and then."""


class Nobody:
    """Watches nothing."""

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        pass

    def step(self, loss: Tensor) -> None:
        pass

    def validated(self, loss: float) -> None:
        pass


@dataclass(eq=False)
class Run:
    """A training as it goes on: what hooks see and change."""

    recipe: Recipe
    model: nn.Module = field(default_factory=nn.Identity)
    optimizer: Any = None
    groups: list[dict[str, Any]] = field(default_factory=list)
    step: int = 0
    batch: Batch = ()
    loss: Tensor = field(default_factory=lambda: torch.tensor(math.nan))
    reported: Tensor | None = None  # the loss that is shown, where it is not the one that is differentiated
    memory: dict[str, Any] = field(default_factory=dict)

    def tell(self, moment: str) -> None:
        """Call the hooks of a moment."""
        for when, act in self.recipe.hooks:
            if when == moment:
                act(self)


@dataclass(frozen=True)
class Outcome:
    """What became of a run: losses on clean data before and after, and when the training loss was first not finite."""

    initial: dict[str, float]
    final: dict[str, float]
    validations: list[tuple[int, float]]
    non_finite_step: int | None
    wall_s: float


def train(recipe: Recipe, watcher: Watcher, *, by_layer: bool = False) -> Outcome:
    """Train once.

    Args:
        recipe: what and how.
        watcher: who looks on.
        by_layer: give the optimizer a named group for each module, which changes nothing but what a watcher reads.

    Returns:
        The outcome.
    """
    started = time.perf_counter()
    torch.manual_seed(recipe.seed)
    run = _prepared(recipe, by_layer=by_layer)
    initial = _both_losses(run)
    watcher.attach(run.model, run.optimizer)
    pick = shuffled_order(recipe.seed, len(recipe.data))
    scheduler = torch.optim.lr_scheduler.LambdaLR(run.optimizer, lambda step: recipe.schedule(step / recipe.steps))
    validations: list[tuple[int, float]] = []
    non_finite = None
    for step in range(recipe.steps):
        run.step = step
        run.tell("step")
        loss = _gradients(run, pick)
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_([p for group in run.optimizer.param_groups for p in group["params"]], recipe.clip)
        run.optimizer.step()
        watcher.step(loss)
        scheduler.step()
        run.tell("stepped")
        if non_finite is None and not torch.isfinite(loss):
            non_finite = step + 1
        if (step + 1) % max(recipe.steps // NUM_VALIDATIONS, 1) == 0:
            value = _loss_on(run, (recipe.clean_data or recipe.data).validation)
            validations.append((step + 1, value))
            watcher.validated(value)
    return Outcome(initial, _both_losses(run), validations, non_finite, time.perf_counter() - started)


def _prepared(recipe: Recipe, *, by_layer: bool) -> Run:
    """Model and optimizer, with the hooks that belong to their making."""
    run = Run(recipe)
    run.model = recipe.build(**recipe.settings).to(recipe.dtype)
    run.model.train()
    run.tell("model")
    run.groups = [{"params": [p for p in run.model.parameters() if p.requires_grad]}]
    run.tell("parameters")
    groups = _split_by_layer(run) if by_layer else run.groups
    run.optimizer = make_optimizer(groups, recipe.optimizer)
    run.tell("optimizer")
    return run


def _split_by_layer(run: Run) -> list[dict[str, Any]]:
    """The same groups, cut along modules and named after them."""
    owner = {p: name for name, module in run.model.named_modules() for p in module.parameters(recurse=False)}
    parts: list[dict[str, Any]] = []
    for group in run.groups:
        by_name: dict[str, list[nn.Parameter]] = {}
        for p in group["params"]:
            by_name.setdefault(owner.get(p, "other"), []).append(p)
        parts += [{**group, "params": params, "name": name} for name, params in by_name.items()]
    return parts


def _gradients(run: Run, pick: Any) -> Tensor:
    """Forward and backward over the micro-batches of a step; the loss to show."""
    recipe = run.recipe
    if recipe.zero_grad == "before":
        run.optimizer.zero_grad()
    shown = []
    for micro in range(recipe.accumulation):
        at = pick(run.step * recipe.accumulation + micro, recipe.batch_size)
        run.batch = _cast(tuple(part[at] for part in recipe.data.train), recipe.dtype)
        run.tell("batch")
        with torch.autocast("cpu", dtype=torch.bfloat16) if recipe.autocast else nullcontext():
            run.loss = recipe.loss(run.model, run.batch)
        run.reported = None
        run.tell("loss")
        (run.loss / recipe.accumulation).backward()
        shown.append((run.loss if run.reported is None else run.reported).detach().float())
    run.tell("backward")
    if recipe.zero_grad == "after":
        run.optimizer.zero_grad()
    return torch.stack(shown).mean()


def _cast(batch: Batch, dtype: torch.dtype) -> Batch:
    """Floating inputs in the precision of the parameters."""
    return tuple(part.to(dtype) if part.is_floating_point() else part for part in batch)


def _both_losses(run: Run) -> dict[str, float]:
    data: Data = run.recipe.clean_data or run.recipe.data
    return {"train": _loss_on(run, data.train), "validation": _loss_on(run, data.validation)}


@torch.no_grad()
def _loss_on(run: Run, part: Batch) -> float:
    """Clean loss over evenly spaced examples, with the model as it is used; the random state is left as it was."""
    loss_of = run.recipe.clean_loss or run.recipe.loss
    stride = max(len(part[0]) // MEASURED_ON, 1)
    batch = _cast(tuple(values[::stride][:MEASURED_ON] for values in part), run.recipe.dtype)
    run.model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        value = float(loss_of(run.model, batch))
    run.model.train()
    return value
