"""Healthy ways to train a program, with legitimate oddities on purpose. No thermoclaw here.

The rates of other optimizers follow from the program's Adam rate by rules of thumb; a variant that does not learn is
dropped by the vetting, not tuned until it fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.zoo.programs.program import Program
from benchmarks.zoo.recipe import OptimizerSpec, Recipe, constant, restarts, step_decay, warm_cosine


@dataclass(frozen=True)
class Variant:
    """A healthy recipe.

    Attributes:
        name: what tables call it.
        change: program and its plain recipe → this recipe.
        needs: traits that the program must have.
    """

    name: str
    change: Callable[[Program, Recipe], Recipe]
    needs: frozenset[str] = frozenset()


def _with(kind: str, factor: float, **rest: Any) -> Callable[[Program, Recipe], Recipe]:
    """Another optimizer, at a multiple of the Adam rate."""

    def change(program: Program, recipe: Recipe) -> Recipe:
        return recipe.but(optimizer=OptimizerSpec(kind, program.adam_lr * factor, **rest))

    return change


def _sgd(program: Program, recipe: Recipe) -> Recipe:
    spec = OptimizerSpec("sgd", program.sgd_lr)
    return recipe.but(optimizer=spec, clip=None, steps=recipe.steps * 3 // 2, learns=max(recipe.learns, 0.75))


def _plain_sgd(program: Program, recipe: Recipe) -> Recipe:
    spec = OptimizerSpec("sgd", 4.0 * program.sgd_lr, momentum=0.0)
    return recipe.but(optimizer=spec, clip=1.0, steps=recipe.steps * 3 // 2, learns=max(recipe.learns, 0.75))


def _small_batches(program: Program, recipe: Recipe) -> Recipe:
    lr = recipe.optimizer.lr * (0.2 if recipe.optimizer.is_sgd else 0.4)
    return recipe.tuned(lr=lr).but(batch_size=4, steps=recipe.steps * 2)


def _large_batches(program: Program, recipe: Recipe) -> Recipe:
    steps = max(recipe.steps // 2, 100)
    return recipe.tuned(lr=recipe.optimizer.lr * 1.5).but(batch_size=recipe.batch_size * 6, steps=steps)


def _accumulated(program: Program, recipe: Recipe) -> Recipe:
    return recipe.but(batch_size=max(recipe.batch_size // 4, 2), accumulation=4)


def _low_rate(program: Program, recipe: Recipe) -> Recipe:
    """A tenth of the rate and more steps: slow, and it learns."""
    lr = recipe.optimizer.lr * 0.1
    return recipe.tuned(lr=lr).but(steps=recipe.steps * 3 // 2, schedule=constant, learns=max(recipe.learns, 0.9))


def _tiny_rate(program: Program, recipe: Recipe) -> Recipe:
    """Fine-tuning as it is done on large models: the rate hardly moves the trained weights."""
    return recipe.tuned(lr=recipe.optimizer.lr * 0.05).but(learns=0.95)


def _frozen(program: Program, recipe: Recipe) -> Recipe:
    """Everything but the last module is frozen on purpose."""

    def act(run: Any) -> None:
        layers = [m for m in run.model.modules() if list(m.parameters(recurse=False))]
        for p in run.model.parameters():
            p.requires_grad_(False)
        for p in layers[-1].parameters():
            p.requires_grad_(True)

    return recipe.hooked("model", act).but(learns=max(recipe.learns, 0.8))


def _thawed(program: Program, recipe: Recipe) -> Recipe:
    """The trunk joins after a third of the run (gradual unfreezing, Howard and Ruder 2018)."""
    first = recipe.steps // 3

    def begin(run: Any) -> None:
        trained = [p for p in run.model.parameters() if p.requires_grad]
        run.memory["trunk"] = trained[:-2]

    def act(run: Any) -> None:
        for p in run.memory["trunk"]:
            p.requires_grad_(run.step >= first)

    return recipe.hooked("parameters", begin).hooked("step", act)


def _layer_rates(program: Program, recipe: Recipe) -> Recipe:
    """Rates that fall by a fifth from each layer to the one before it, no decay on vectors."""

    def act(run: Any) -> None:
        params = run.groups[0]["params"]
        spec = recipe.optimizer
        run.groups = [
            {
                "params": [p],
                "lr": spec.lr * 0.93 ** (len(params) - 1 - i),
                "weight_decay": spec.weight_decay if p.dim() > 1 else 0.0,
            }
            for i, p in enumerate(params)
        ]

    return recipe.hooked("parameters", act)


def _averaged(program: Program, recipe: Recipe) -> Recipe:
    """An exponential mean of the weights is kept beside them."""

    def act(run: Any) -> None:
        if "mean" not in run.memory:
            run.memory["mean"] = [p.detach().clone() for p in run.model.parameters()]
        for mean, p in zip(run.memory["mean"], run.model.parameters(), strict=True):
            mean.lerp_(p.detach(), 0.01)

    return recipe.hooked("stepped", act)


def _easy_first(program: Program, recipe: Recipe) -> Recipe:
    """A curriculum: inputs near the mean first, everything from half of the run on."""
    x = recipe.data.train[0].float().flatten(1)
    order = (x - x.mean(0)).square().sum(1).argsort()

    def act(run: Any) -> None:
        share = min(0.3 + 1.4 * run.step / recipe.steps, 1.0)
        random = torch.Generator().manual_seed(recipe.seed * 100_003 + run.step)
        at = order[torch.randint(0, max(int(share * len(order)), 8), (recipe.batch_size,), generator=random)]
        run.batch = tuple(part[at] for part in recipe.data.train)

    return recipe.hooked("batch", act)


def _annealed_noise(program: Program, recipe: Recipe) -> Recipe:
    """Noise on the gradient that fades (Neelakantan et al. 2015)."""

    def act(run: Any) -> None:
        for p in run.model.parameters():
            if p.grad is not None:
                rms = p.grad.square().mean().sqrt()
                p.grad.add_(torch.randn_like(p), alpha=float(rms) / (1.0 + run.step) ** 0.55)

    return recipe.hooked("backward", act)


def _edge(program: Program, recipe: Recipe) -> Recipe:
    """A rate three times as high, with a warm-up that it needs."""
    return recipe.tuned(lr=3.0 * recipe.optimizer.lr).but(schedule=warm_cosine)


def _long(program: Program, recipe: Recipe) -> Recipe:
    """More than a thousand steps of fixed length, in the manner of Lion, at a high rate that falls in steps."""
    spec = OptimizerSpec("lion", 1.2 * program.adam_lr)
    return recipe.but(optimizer=spec, schedule=step_decay, steps=1300, batch_size=max(recipe.batch_size // 8, 4))


def _to_zero(program: Program, recipe: Recipe) -> Recipe:
    """Long enough that the training loss all but vanishes."""
    return recipe.but(steps=recipe.steps * 3, batch_size=recipe.batch_size * 2, schedule=warm_cosine)


def _smoothed(program: Program, recipe: Recipe) -> Recipe:
    return recipe.but(loss=partial(recipe.loss, smoothing=0.1))


def _short(program: Program, recipe: Recipe) -> Recipe:
    return recipe.but(steps=80, learns=max(recipe.learns, 0.85))


VARIANTS: dict[str, Variant] = {
    v.name: v
    for v in (
        Variant("plain", lambda program, recipe: recipe),
        Variant("adamw_0.1", _with("adamw", 1.0, weight_decay=0.1)),
        Variant("no_decay", lambda program, recipe: recipe.tuned(weight_decay=0.0)),
        Variant("sgd", _sgd),
        Variant("plain_sgd", _plain_sgd),
        Variant("rmsprop", _with("rmsprop", 0.5)),
        Variant("adagrad", _with("adagrad", 6.0)),
        Variant("adafactor", _with("adafactor", 10.0)),
        Variant("lion", _with("lion", 0.2, weight_decay=0.1)),
        Variant("muon", _with("muon", 2.0, weight_decay=0.01)),
        Variant("beta2_0.95", _with("adamw", 1.0, beta2=0.95)),
        Variant("warm_cosine", lambda program, recipe: recipe.but(schedule=warm_cosine)),
        Variant("restarts", lambda program, recipe: recipe.but(schedule=restarts)),
        Variant("clipped", lambda program, recipe: recipe.but(clip=0.5)),
        Variant("small_batches", _small_batches),
        Variant("large_batches", _large_batches),
        Variant("accumulated", _accumulated),
        Variant("autocast", lambda program, recipe: recipe.but(autocast=True)),
        Variant("averaged", _averaged),
        Variant("layer_rates", _layer_rates),
        Variant("easy_first", _easy_first, frozenset({"features"})),
        Variant("annealed_noise", _annealed_noise),
        Variant("edge", _edge),
        Variant("low_rate", _low_rate),
        Variant("short", _short),
        Variant("long_step_decay", _long, frozenset({"cheap"})),
        Variant("to_zero", _to_zero),
        Variant("smoothed", _smoothed, frozenset({"classes"})),
        Variant("dropout", lambda program, recipe: recipe.built(dropout=0.2), frozenset({"dropout"})),
        Variant("frozen_trunk", _frozen, frozenset({"pretrained"})),
        Variant("thawed_later", _thawed, frozenset({"pretrained"})),
        Variant("tiny_rate", _tiny_rate, frozenset({"pretrained"})),
    )
}
