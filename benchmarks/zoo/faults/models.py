"""Faults of the model: initialisation, dead units, depth without a path for gradients, runaway logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.faults.fault import Fault, between, needs
from benchmarks.zoo.recipe import Batch, Recipe


def _matrices(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.dim() > 1 and p.requires_grad]


def _on_weights(recipe: Recipe, change: Callable[[nn.Parameter], None]) -> Recipe:
    def act(run: Any) -> None:
        with torch.no_grad():
            for p in _matrices(run.model):
                change(p)

    return recipe.hooked("model", act)


def all_zero(recipe: Recipe, first: int, random: Any) -> Recipe:
    """Every weight matrix starts at zero."""
    return _on_weights(recipe, lambda p: void(p.zero_()))


def far_too_large(recipe: Recipe, first: int, random: Any) -> Recipe:
    """Every weight matrix starts ten times too large and more."""
    factor = between(random, 10, 30)
    return _on_weights(recipe, lambda p: void(p.mul_(factor)))


def far_too_small(recipe: Recipe, first: int, random: Any) -> Recipe:
    """Every weight matrix starts a thousand times too small."""
    factor = between(random, 1e-4, 1e-3)
    return _on_weights(recipe, lambda p: void(p.mul_(factor)))


def deep_sigmoid(recipe: Recipe, first: int, random: Any) -> Recipe:
    """A dozen layers of sigmoids and no shortcut."""
    return recipe.built(depth=int(between(random, 9, 14)), activation=nn.Sigmoid)


class Amplified(nn.Module):
    """A ReLU that multiplies what it lets through."""

    factor = 4.0

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * torch.relu(x)


def amplifying_layers(recipe: Recipe, first: int, random: Any) -> Recipe:
    """Ten layers that each multiply signal and gradient, without normalisation."""
    return recipe.built(depth=int(between(random, 8, 12)), activation=Amplified)


def amplifying_recurrence(recipe: Recipe, first: int, random: Any) -> Recipe:
    """Recurrent weights far above one, nothing clipped, a rate that was made for clipped steps."""
    factor = between(random, 15, 30)

    def act(run: Any) -> None:
        with torch.no_grad():
            for name, p in run.model.named_parameters():
                if "weight_hh" in name:
                    p.mul_(factor)

    return recipe.hooked("model", act).but(clip=None)


def dead_relus(recipe: Recipe, first: int, random: Any) -> Recipe:
    """Biases so negative, from some step on, that most units never fire again."""
    depth = between(random, 20, 60)

    def act(run: Any) -> None:
        if run.step != first:
            return
        with torch.no_grad():
            biases = [p for name, p in run.model.named_parameters() if name.endswith("bias") and p.dim() == 1]
            for p in biases[:-1]:
                p[: len(p) * 7 // 8].sub_(depth)

    return recipe.hooked("step", act)


def dead_from_the_start(recipe: Recipe, first: int, random: Any) -> Recipe:
    """The same, before the first step."""
    return dead_relus(recipe, 0, random)


def sharpening_attention(recipe: Recipe, first: int, random: Any) -> Recipe:
    """Query weights, and with them attention logits, grow by a few percent a step from some step on."""
    growth = 1.0 + between(random, 8.0, 14.0) / (recipe.steps - first)

    def act(run: Any) -> None:
        if run.step >= first:
            with torch.no_grad():
                for name, p in run.model.named_parameters():
                    if "qkv" in name:
                        p[: len(p) // 3].mul_(growth)
                    elif "query" in name:
                        p.mul_(growth)

    return recipe.hooked("step", act)


def inverted_z_loss(recipe: Recipe, first: int, random: Any) -> Recipe:
    """The penalty on the log-normalizer has the wrong sign: output logits run away together."""
    weight, usual = between(random, 0.03, 0.1), recipe.loss
    active = {"now": False}

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        kept: list[Tensor] = []
        handle = model.register_forward_hook(lambda _, __, out: void(kept.append(out)))
        value = usual(model, batch)
        handle.remove()
        active["plain"] = value
        return value - weight * kept[0].float().logsumexp(-1).square().mean() if active["now"] else value

    def turn(run: Any) -> None:
        active["now"] = run.step >= first

    def report(run: Any) -> None:
        run.reported = active["plain"]

    return recipe.but(loss=loss).hooked("step", turn).hooked("loss", report)


def void(_: Any) -> None:
    """Nothing, whatever was returned."""


_SCALE_OF_WEIGHTS = "the first gradients are what wrong weights look like from outside"
FAULTS = (
    Fault("all_zero", ("bad_init", "no_gradient"), all_zero, why="zero weights pass no gradient on"),
    Fault("far_too_large", ("bad_init", "exploding_gradients"), far_too_large, why=_SCALE_OF_WEIGHTS),
    Fault("far_too_small", ("bad_init", "vanishing_gradients"), far_too_small, why=_SCALE_OF_WEIGHTS),
    Fault("deep_sigmoid", ("vanishing_gradients",), deep_sigmoid, needs("depth")),
    Fault(
        "amplifying_layers",
        ("exploding_gradients", "bad_init"),
        amplifying_layers,
        needs("depth"),
        why="a gain of the layers and a gain of the weights are one number",
    ),
    Fault(
        "amplifying_recurrence",
        ("exploding_gradients", "bad_init"),
        amplifying_recurrence,
        needs("recurrent"),
        why="the gain sits in the initial weights",
    ),
    Fault("dead_relus", ("dead_units",), dead_relus, needs("relu"), begins="middle"),
    Fault(
        "dead_from_the_start",
        ("dead_units", "bad_init"),
        dead_from_the_start,
        needs("relu"),
        why="it is an initialisation that kills them",
    ),
    Fault(
        "sharpening_attention", ("attention_logit_growth",), sharpening_attention, needs("attention"), begins="early"
    ),
    Fault(
        "inverted_z_loss",
        ("output_logit_divergence",),
        inverted_z_loss,
        needs("classes"),
        begins="middle",
        variant="autocast",
    ),
)
