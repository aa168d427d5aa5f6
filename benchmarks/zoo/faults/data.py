"""Faults of the data: wrong scale, wrong labels, too few examples, too small batches, a shift, corrupt batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.zoo.faults.fault import Fault, between, needs
from benchmarks.zoo.recipe import Batch, Data, Recipe


def unscaled_inputs(recipe: Recipe, first: int, random: Any) -> Recipe:
    """Inputs as they come from the instrument: hundreds instead of ones. What is measured gets the same inputs."""
    factor, offset = between(random, 200, 1000), between(random, 0.5, 2.0)

    def scaled(part: Batch) -> Batch:
        return ((part[0] + offset) * factor, *part[1:])

    clean = (recipe.clean_data or recipe.data).mapped(scaled)
    return recipe.but(data=recipe.data.mapped(scaled), clean_data=clean)


def _shuffled(targets: Tensor, random: Any) -> Tensor:
    """Whole targets dealt out anew; for sequences every token, so that no neighbour tells."""
    if targets.dim() == 2 and not targets.is_floating_point():
        return targets.flatten()[torch.from_numpy(random.permutation(targets.numel()))].view_as(targets)
    return targets[torch.from_numpy(random.permutation(len(targets)))]


def shuffled_labels(recipe: Recipe, first: int, random: Any) -> Recipe:
    """Targets have lost their inputs."""
    wrong = _shuffled(recipe.data.train[1], random)
    return recipe.but(data=Data((recipe.data.train[0], wrong), recipe.data.validation))


def labels_lost_later(recipe: Recipe, first: int, random: Any) -> Recipe:
    """From some step on, targets are dealt out anew within each batch."""

    def act(run: Any) -> None:
        if run.step >= first:
            run.batch = (run.batch[0], _shuffled(run.batch[1], random))

    return recipe.hooked("batch", act)


def few_examples(recipe: Recipe, first: int, random: Any) -> Recipe:
    """So few examples, seen so often, that they are learned by heart."""
    kept = int(between(random, 20, 40))
    few = tuple(part[:kept] for part in recipe.data.train)
    return recipe.but(data=Data(few, recipe.data.validation), batch_size=min(recipe.batch_size, kept))


def batch_of_one(recipe: Recipe, first: int, random: Any) -> Recipe:
    """One example a step at a rate made for many."""
    return recipe.but(batch_size=1)


def noisy_gradients(recipe: Recipe, first: int, random: Any) -> Recipe:
    """Every gradient drowns in noise and keeps its length, as under a compression that went wrong."""
    factor = between(random, 30, 100)

    def act(run: Any) -> None:
        if run.step < first:
            return
        grads = [p.grad for p in run.model.parameters() if p.grad is not None]
        length = torch.stack([g.norm() for g in grads]).norm()
        size = sum(g.numel() for g in grads)
        for g in grads:
            noise = torch.randn_like(g) * (factor * float(length) / size**0.5)
            g.add_(noise).div_((1.0 + factor**2) ** 0.5)

    return recipe.hooked("backward", act)


def shifted_inputs(recipe: Recipe, first: int, random: Any) -> Recipe:
    """From some step on, inputs come in another order of columns, or letters in another code."""
    inputs = recipe.data.train[0]
    if inputs.is_floating_point():
        columns = torch.from_numpy(random.permutation(inputs[0].numel()))

        def changed(x: Tensor) -> Tensor:
            return -x.flatten(1)[:, columns].view_as(x) + 1.0
    else:
        letters = torch.from_numpy(np.asarray(random.permutation(int(inputs.max()) + 1)))

        def changed(x: Tensor) -> Tensor:
            return letters[x]

    def act(run: Any) -> None:
        if run.step >= first:
            run.batch = (changed(run.batch[0]), *run.batch[1:])

    return recipe.hooked("batch", act)


def corrupt_batches(recipe: Recipe, first: int, random: Any) -> Recipe:
    """A few batches in a row are garbage: large noise for inputs, or any letters, with targets of anything."""
    size, until = between(random, 20, 60), first + 4

    def act(run: Any) -> None:
        if not first <= run.step < until:
            return
        x, y = run.batch
        garbage = (
            size * torch.randn_like(x) if x.is_floating_point() else x.flatten()[torch.randperm(x.numel())].view_as(x)
        )
        run.batch = (garbage, size * torch.randn_like(y) if y.is_floating_point() else _shuffled(y, random))

    def louder(run: Any) -> None:
        if first <= run.step < until and not run.batch[0].is_floating_point():
            run.loss = run.loss * size

    return recipe.hooked("batch", act).hooked("loss", louder)


FAULTS = (
    Fault("unscaled_inputs", ("unnormalised_input",), unscaled_inputs, needs("features")),
    Fault("shuffled_labels", ("label_noise",), shuffled_labels, needs("labels")),
    Fault(
        "labels_lost_later",
        ("label_noise", "distribution_shift"),
        labels_lost_later,
        needs("labels"),
        begins="middle",
        why="the data did change at that step",
    ),
    Fault("few_examples", ("overfitting",), few_examples, needs("labels")),
    Fault(
        "batch_of_one",
        ("gradient_noise", "lr_too_high"),
        batch_of_one,
        lacks=needs("pairs"),
        why="for such a batch the rate is too high; either remedy works",
    ),
    Fault("noisy_gradients", ("gradient_noise",), noisy_gradients, begins="middle"),
    Fault("shifted_inputs", ("distribution_shift",), shifted_inputs, needs("labels features"), begins="middle"),
    Fault("shifted_letters", ("distribution_shift",), shifted_inputs, needs("labels tokens"), begins="middle"),
    Fault(
        "corrupt_batches",
        ("loss_spike", "gradient_spike"),
        corrupt_batches,
        needs("labels"),
        begins="late",
        why="one jump seen in two series",
    ),
)
