"""Faults of the hyper-parameters: rate, momentum, decay, clipping, epsilon, schedule."""

from __future__ import annotations

from typing import Any

from benchmarks.zoo.faults.fault import ADAM, SGD, Fault, between, needs
from benchmarks.zoo.recipe import Recipe, constant


def _rate_factor(recipe: Recipe, random: Any) -> float:
    return between(random, 10, 60) if recipe.optimizer.is_sgd else between(random, 60, 300)


def rate_too_high(recipe: Recipe, first: int, random: Any) -> Recipe:
    """Too long steps from the start."""
    return recipe.tuned(lr=recipe.optimizer.lr * _rate_factor(recipe, random))


def rate_jumps(recipe: Recipe, first: int, random: Any) -> Recipe:
    """The rate is multiplied on the way, by a broken schedule."""
    usual, factor = recipe.schedule, _rate_factor(recipe, random)
    return recipe.but(schedule=lambda done: usual(done) * (factor if done >= first / recipe.steps else 1.0))


def rate_too_low(recipe: Recipe, first: int, random: Any) -> Recipe:
    """Steps so short that nothing is learned."""
    return recipe.tuned(lr=recipe.optimizer.lr / between(random, 300, 3000))


def rate_reaches_zero(recipe: Recipe, first: int, random: Any) -> Recipe:
    """The schedule was made for a much shorter run: a straight line that ends at the first faulty step."""
    usual, end = recipe.schedule, first / recipe.steps
    return recipe.but(schedule=lambda done: usual(done) * max(1.0 - done / end, 0.0))


def rate_never_falls(recipe: Recipe, first: int, random: Any) -> Recipe:
    """The step decay that the recipe counts on is lost, and noise holds the loss up."""
    return recipe.but(schedule=constant)


def decay_too_high(recipe: Recipe, first: int, random: Any) -> Recipe:
    """Weight decay beyond every recipe."""
    return recipe.tuned(weight_decay=_decay(recipe, random))


def decay_jumps(recipe: Recipe, first: int, random: Any) -> Recipe:
    """Weight decay is multiplied on the way."""
    decay = _decay(recipe, random)

    def act(run: Any) -> None:
        if run.step == first:
            for group in run.optimizer.param_groups:
                group["weight_decay"] = decay

    return recipe.hooked("step", act)


def _decay(recipe: Recipe, random: Any) -> float:
    """Decay that halves the weights in some twenty to sixty steps, or overwhelms the gradient (Adam with L2)."""
    if recipe.optimizer.kind == "adam":
        return between(random, 0.3, 3.0)
    share = between(random, 0.012, 0.04)
    if recipe.optimizer.kind == "adamw":
        return share / recipe.optimizer.lr
    return share * (1.0 - recipe.optimizer.momentum) / recipe.optimizer.lr


def momentum_too_high(recipe: Recipe, first: int, random: Any) -> Recipe:
    """Steps average over a thousand gradients and more."""
    return recipe.tuned(momentum=1.0 - 1.0 / between(random, 700, 2000))


def epsilon_too_large(recipe: Recipe, first: int, random: Any) -> Recipe:
    """Adam's epsilon hides the second moment."""
    return recipe.tuned(eps=between(random, 1.0, 10.0))


def clip_too_tight(recipe: Recipe, first: int, random: Any) -> Recipe:
    """Every gradient is cut to a thousandth of its length."""
    return recipe.but(clip=between(random, 5e-4, 3e-3))


def slow_second_moment(recipe: Recipe, first: int, random: Any) -> Recipe:
    """Adam carries on the state of a long run at β₂ = 0.9999, and later the loss is summed instead of averaged."""
    factor, beta2, settled = between(random, 100, 1000), 0.9999, 20

    def resume(run: Any) -> None:
        if run.step == settled:
            for state in run.optimizer.state.values():
                square = state["exp_avg_sq"] / (1.0 - beta2**settled)
                state["exp_avg_sq"].copy_(square.clamp_min(float(square.mean())))
                state["step"].fill_(1e5)

    def rise(run: Any) -> None:
        if run.step >= first:
            run.reported, run.loss = run.loss, run.loss * factor

    return recipe.tuned(beta2=beta2).hooked("step", resume).hooked("loss", rise)


def hot_layer(recipe: Recipe, first: int, random: Any) -> Recipe:
    """The last matrix steps hundreds of times as far as the others."""
    return _rates_apart(recipe, slice(-1, None), between(random, 300, 1000))


def cold_layers(recipe: Recipe, first: int, random: Any) -> Recipe:
    """Every second matrix has a rate thousands of times lower than the others."""
    return _rates_apart(recipe, slice(0, None, 2), between(random, 1e-5, 1e-4))


def _rates_apart(recipe: Recipe, where: slice, factor: float) -> Recipe:
    def act(run: Any) -> None:
        (group,) = run.groups
        chosen = [p for p in group["params"] if p.dim() > 1][where]
        others = [p for p in group["params"] if all(p is not q for q in chosen)]
        run.groups = [{"params": others}, {"params": chosen, "lr": recipe.optimizer.lr * factor}]

    return recipe.hooked("parameters", act)


def inverted_decay(recipe: Recipe, first: int, random: Any) -> Recipe:
    """The penalty on the weights has the wrong sign: they grow without bound."""
    share = between(random, 0.01, 0.03)

    def act(run: Any) -> None:
        if run.step >= first:
            for group in run.optimizer.param_groups:
                for p in group["params"]:
                    if p.dim() > 1:
                        p.data.mul_(1.0 + share)

    return recipe.hooked("optimizer", lambda run: run.optimizer.register_step_post_hook(lambda *_: act(run)))


FAULTS = (
    Fault("rate_too_high", ("lr_too_high",), rate_too_high),
    Fault("rate_jumps", ("lr_too_high",), rate_jumps, begins="middle"),
    Fault("rate_too_low", ("lr_too_low",), rate_too_low),
    Fault("rate_reaches_zero", ("lr_schedule_zero",), rate_reaches_zero, begins="early"),
    Fault(
        "rate_never_falls",
        ("plateau", "lr_too_high"),
        rate_never_falls,
        needs("cheap"),
        begins="at decay",
        variant="long_step_decay",
        why="a rate too high for what is left to learn is the cause, and lowering it the remedy, by either name",
    ),
    Fault("decay_too_high", ("weight_decay_too_high",), decay_too_high),
    Fault("decay_jumps", ("weight_decay_too_high",), decay_jumps, begins="middle"),
    Fault("inverted_decay", ("weight_blow_up",), inverted_decay, begins="middle"),
    Fault("momentum_too_high", ("momentum_too_high",), momentum_too_high, optimizers=(*ADAM, *SGD)),
    Fault("epsilon_too_large", ("epsilon_dominates",), epsilon_too_large, optimizers=ADAM),
    Fault("clip_too_tight", ("over_clipping",), clip_too_tight, optimizers=SGD),
    Fault("clip_too_tight_sgd", ("over_clipping",), clip_too_tight, variant="sgd"),
    Fault(
        "slow_second_moment",
        ("second_moment_lag", "gradient_spike"),
        slow_second_moment,
        begins="late",
        optimizers=ADAM,
        why="the lag is the answer to a gradient that jumped, which is just as true",
    ),
    Fault("hot_layer", ("layer_lr_mismatch",), hot_layer),
    Fault("cold_layers", ("layer_lr_mismatch",), cold_layers),
)
