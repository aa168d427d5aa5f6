"""Programming mistakes: calls in the wrong order, parameters that nobody trains, broken arithmetic."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.faults.fault import ADAM, Fault, between
from benchmarks.zoo.recipe import Recipe


def forgotten_zero_grad(recipe: Recipe, first: int, random: Any) -> Recipe:
    """Gradients of all steps pile up."""
    return recipe.but(zero_grad="never")


def zero_grad_before_step(recipe: Recipe, first: int, random: Any) -> Recipe:
    """Gradients are cleared between backward and step."""
    return recipe.but(zero_grad="after")


def detached_loss(recipe: Recipe, first: int, random: Any) -> Recipe:
    """The loss is computed from detached outputs: no parameter hears of it."""

    def act(run: Any) -> None:
        run.loss = run.loss.detach().requires_grad_()

    return recipe.hooked("loss", act)


def turned_sign(recipe: Recipe, first: int, random: Any) -> Recipe:
    """The optimizer climbs: a stray minus before backward, or maximize=True."""

    def act(run: Any) -> None:
        for group in run.groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.neg_()

    return recipe.hooked("backward", act)


def missing_parameters(recipe: Recipe, first: int, random: Any) -> Recipe:
    """The optimizer was given every second weight matrix only, the first one not among the forgotten."""

    def act(run: Any) -> None:
        (group,) = run.groups
        matrices = [p for p in group["params"] if p.dim() > 1]
        forgotten = {id(p) for p in matrices[1::2]}
        run.groups = [{"params": [p for p in group["params"] if id(p) not in forgotten]}]

    return recipe.hooked("parameters", act)


def stale_head(recipe: Recipe, first: int, random: Any) -> Recipe:
    """The last layer is made anew after the optimizer was: it keeps the old one."""

    def act(run: Any) -> None:
        name, layer = [
            (n, m) for n, m in run.model.named_modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d))
        ][-1]
        parent = run.model.get_submodule(name.rpartition(".")[0])
        fresh = copy.deepcopy(layer)
        fresh.reset_parameters()
        setattr(parent, name.rpartition(".")[2], fresh)

    return recipe.hooked("optimizer", act)


def cut_graph(recipe: Recipe, first: int, random: Any) -> Recipe:
    """A stray detach after the first layers: they get no gradient."""

    def act(run: Any) -> None:
        layers = [m for m in run.model.modules() if list(m.parameters(recurse=False)) and not list(m.children())]
        cut = layers[len(layers) // 2]
        cut.register_forward_pre_hook(lambda _, inputs: tuple(x.detach() for x in inputs))

    return recipe.hooked("model", act)


def shifted_update(recipe: Recipe, first: int, random: Any) -> Recipe:
    """A bucket's offset is wrong: each weight gets its neighbour's step."""
    before: dict[int, torch.Tensor] = {}

    def parameters(run: Any) -> list[nn.Parameter]:
        return [p for group in run.optimizer.param_groups for p in group["params"]]

    def keep(run: Any) -> None:
        if run.step >= first:
            before.update({id(p): p.detach().clone() for p in parameters(run)})

    def shift(run: Any) -> None:
        if run.step >= first:
            for p in parameters(run):
                change = p.data - before[id(p)]
                p.data.copy_(before[id(p)] + change.flatten().roll(1).view_as(p))

    def act(run: Any) -> None:
        run.optimizer.register_step_pre_hook(lambda *_: keep(run))
        run.optimizer.register_step_post_hook(lambda *_: shift(run))

    return recipe.hooked("optimizer", act)


def lost_scale(recipe: Recipe, first: int, random: Any) -> Recipe:
    """A loss scaler that halves its scale every few steps: gradients in half precision flush to zero."""
    patience = max(recipe.steps // int(between(random, 60, 120)), 1)

    def act(run: Any) -> None:
        scale = 2.0 ** -((run.step - first) / patience) if run.step >= first else 1.0
        for p in run.model.parameters():
            if p.grad is not None:
                p.grad.copy_((p.grad.double() * scale).half().double() / scale)

    return recipe.hooked("backward", act)


def coarse_weights(recipe: Recipe, first: int, random: Any) -> Recipe:
    """Parameters in bfloat16 without a finer copy, at a small rate."""
    return recipe.but(dtype=torch.bfloat16)


def nan_batch(recipe: Recipe, first: int, random: Any) -> Recipe:
    """One batch holds a NaN."""

    def act(run: Any) -> None:
        if run.step == first:
            run.loss = run.loss * float("nan")

    return recipe.hooked("loss", act)


def flipped_bit(recipe: Recipe, first: int, random: Any) -> Recipe:
    """A few gradients come back thousands of times too large."""
    factor = between(random, 1e3, 1e5)

    def act(run: Any) -> None:
        if first <= run.step < first + 2:
            for p in run.model.parameters():
                if p.grad is not None:
                    p.grad.mul_(factor)

    return recipe.hooked("backward", act)


FAULTS = (
    Fault("forgotten_zero_grad", ("gradient_accumulation_bug",), forgotten_zero_grad),
    Fault("zero_grad_before_step", ("no_gradient",), zero_grad_before_step),
    Fault("detached_loss", ("no_gradient",), detached_loss),
    Fault("turned_sign", ("wrong_sign",), turned_sign),
    Fault("missing_parameters", ("frozen_layers",), missing_parameters),
    Fault("stale_head", ("frozen_layers",), stale_head),
    Fault(
        "cut_graph",
        ("frozen_layers", "no_gradient"),
        cut_graph,
        why="the layers are frozen because no gradient reaches them",
    ),
    Fault("shifted_update", ("incoherent_update",), shifted_update, begins="middle"),
    Fault(
        "lost_scale",
        ("underflow", "no_gradient", "vanishing_gradients"),
        lost_scale,
        begins="early",
        why="in the end every gradient is exactly zero, which those codes also say",
    ),
    Fault(
        "coarse_weights",
        ("lost_updates", "frozen_layers"),
        coarse_weights,
        variant="low_rate",
        optimizers=ADAM,
        why="layers that do not change by one bit are what lost updates look like",
    ),
    Fault("nan_batch", ("non_finite",), nan_batch, begins="middle"),
    Fault(
        "flipped_bit",
        ("gradient_spike", "loss_spike"),
        flipped_bit,
        begins="late",
        why="one jump seen in two series",
    ),
)
