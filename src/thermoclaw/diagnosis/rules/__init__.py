"""The rules: one function a failure, `Record` in, `Finding` or None out, and the literal table that lists them.

Each rule says what was seen with numbers, what it means, what to try, how sure it is, and where its thresholds come
from. A rule reads causal signals only. Silence comes first: a rule that cannot be sure says less or nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.rules import decay, depth, learning_rate, momentum, motion, stationarity, values
from thermoclaw.record import Record


@dataclass(frozen=True)
class Rule:
    """A row of the table: what the documentation lists."""

    code: str
    check: Callable[[Record], Finding | None]
    detects: str
    signal: str
    threshold: str
    source: str


RULES: tuple[Rule, ...] = (
    Rule(
        "non_finite",
        values.non_finite,
        "NaN or Inf in weights, gradients or loss",
        "grad_sq, param_sq and loss are finite",
        "any; HIGH when weights are hit or two steps have it",
        "IEEE 754",
    ),
    Rule(
        "no_gradient",
        motion.no_gradient,
        "No gradient at all from the first step on",
        "grad_sq = 0 in every layer",
        "the first 3 steps",
        "definition",
    ),
    Rule(
        "weight_decay_too_high",
        decay.weight_decay_too_high,
        "Weight decay erodes layers faster than gradients rebuild them",
        "fall of ‖θ‖ from its peak, against what decay alone would do; decay's share of the step",
        f"norm down ≥ {decay.DECAY_DROP:.0%}, ≥ {decay.DECAY_UNOPPOSED:.0%} of free decay realised, decay ≥ "
        f"{decay.DECAY_PULL} of the step; HIGH at κλ ≥ {decay.DECAY_RATE_HIGH:g} a step, MEDIUM at ≥ "
        f"{decay.DECAY_RATE_MEDIUM:g}",
        "Kosson et al. 2024 (arXiv 2305.17212)",
    ),
    Rule(
        "lr_too_high",
        learning_rate.lr_too_high,
        "Steps too long: divergence, oscillation, or a loss that is lost",
        "the loss explodes, or gives back its gains, with update_ratio, coherence, overshoot or growth of sigma as the "
        "reason; or the first steps throw the weights away",
        f"update_ratio > {learning_rate.LR_UPDATE_RATIO}, coherence < {learning_rate.LR_COHERENCE}, overshoot in > "
        f"{learning_rate.LR_OVERSHOOT_SHARE:.0%} of steps, sigma × {learning_rate.LR_SIGMA_GROWTH:g}: HIGH with two, "
        f"MEDIUM with one; loss × {learning_rate.LR_EXPLODED:g}; distance > {learning_rate.LR_THROWN:g}‖θ₀‖ with a "
        f"loss spike × {learning_rate.LR_THROWN_SPIKE:g} within {learning_rate.LR_THROWN_STEPS} steps, or with no gain "
        f"after step 40",
        "Cohen et al. 2022 (arXiv 2207.14484); Karpathy 2019",
    ),
    Rule(
        "momentum_too_high",
        momentum.momentum_too_high,
        "Over-damped: the update chases old gradients",
        "alignment far below coherence",
        f"β₁ ≥ {momentum.MOMENTUM_LEAST}, alignment < half the coherence and < 0.22 for 10 rows; HIGH at β₁ ≥ 0.99 for "
        f"{momentum.MOMENTUM_LASTING} rows",
        "docs: theory, alignment",
    ),
    Rule(
        "exploding_gradients",
        depth.exploding_gradients,
        "Gradients grow with depth or with time",
        "root mean square gradient of first against last layers; growth of the norm",
        f"× {depth.EXPLODE_RATIO:g} while the loss makes no progress",
        "AutoTrainer (ICSE 2021)",
    ),
    Rule(
        "vanishing_gradients",
        depth.vanishing_gradients,
        "Early layers get no gradient",
        "root mean square gradient of first against last layers, and their update_ratio",
        f"ratio < {depth.VANISH_RATIO:g} and update_ratio < {depth.VANISH_UPDATE:g} for 20 steps",
        "AutoTrainer (ICSE 2021)",
    ),
    Rule(
        "frozen_layers",
        motion.frozen_layers,
        "Parameters that should move and do not",
        "gradient > 0, learning rate > 0, update exactly 0; or in no group of the optimizer",
        "10 steps",
        "TrainCheck (OSDI 2025)",
    ),
    Rule(
        "plateau",
        stationarity.plateau,
        "The loss is stationary: converged or stalled",
        "slope of ten batch means over 1000 steps",
        "95 % interval holds 0 and the trend is below 5 % of what was gained; never above LOW",
        "SASA, Lang et al. 2019 (arXiv 1909.09785)",
    ),
)
