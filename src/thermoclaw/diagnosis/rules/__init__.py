"""The rules: one function a failure, `Record` in, `Finding` or None out, and the literal table that lists them.

Each rule says what was seen with numbers, what it means, what to try, how sure it is, and where its thresholds come
from. A rule reads causal signals only. Silence comes first: a rule that cannot be sure says less or nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.rules import (
    accumulation,
    batch,
    decay,
    direction,
    exploding,
    first_steps,
    generalization,
    growth,
    initial,
    jumps,
    learning_rate,
    momentum,
    motion,
    noise,
    optimizer_state,
    outputs,
    outside,
    pace,
    precision,
    representation,
    schedule,
    sign,
    stationarity,
    unbounded,
    underflow,
    units,
    values,
    vanishing,
)
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
        f"any; HIGH in weights or at two steps; of the loss alone LOW, MEDIUM for {values.LOSS_ROWS} steps",
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
        "bad_init",
        initial.bad_init,
        "Weights that start at zero, far too large, far too small, or alike",
        "gain rms·√fan-in of each matrix before the first step; row_likeness",
        f"gain 0, > {initial.GAIN_LARGE:g}, < {initial.GAIN_SMALL:g}, or rows alike, in most matrices; a table's rms > "
        f"{initial.TABLE_LARGE:g} with a first loss > {initial.TABLE_LOSS:g} × what follows",
        "He et al. 2015 (arXiv 1502.01852)",
    ),
    Rule(
        "unnormalised_input",
        initial.unnormalised_input,
        "Inputs at a wrong scale",
        "input_scale of the first layer",
        f"> {initial.INPUT_LARGE:g}; before a normalization if probes agree within {initial.INPUT_SPREAD_NORMED:.0%}",
        "LeCun et al. 1998; UMLAUT (CHI 2021)",
    ),
    Rule(
        "gradient_accumulation_bug",
        accumulation.gradient_accumulation_bug,
        "Gradients of earlier steps are never cleared",
        "coherence and growth of the gradient norm over the first steps",
        f"coherence > {accumulation.PILED_COHERENCE}, norm > {accumulation.PILED_GROWTH}√t of the first for "
        f"{accumulation.PILED_ROWS} of the first {accumulation.PILED_WITHIN} steps",
        "docs: diagnosis",
    ),
    Rule(
        "lr_schedule_zero",
        schedule.lr_schedule_zero,
        "The schedule has reached zero and the run goes on",
        "learning rate against its peak",
        f"≤ {schedule.ZERO_SHARE:g} of the peak for {schedule.ZERO_ROWS} steps and {schedule.ZERO_OF_RUN:.0%} of all",
        "definition",
    ),
    Rule(
        "layer_lr_mismatch",
        schedule.layer_lr_mismatch,
        "Parameter groups orders of magnitude apart",
        "rates of the groups and update_ratio of their layers",
        f"hot: × {schedule.APART_HOT:g} and update_ratio > {schedule.HOT_UPDATE}; cold: × {schedule.APART_COLD:g}",
        "Karpathy 2019; LARS",
    ),
    Rule(
        "lost_updates",
        precision.lost_updates,
        "Steps too small for the weights' number format",
        "half a unit in the last place of a typical weight against the learning rate",
        f"in {precision.LOST_SHARE:.0%} of the parameters, HIGH at {precision.LOST_SHARE_HIGH:.0%}",
        "IEEE 754",
    ),
    Rule(
        "underflow",
        underflow.underflow,
        "Gradients flush to zero",
        "grad_zeros against its lowest value",
        f"+ {underflow.ZEROS_MORE:.0%}, and not always the same ones",
        "Micikevicius et al. 2018",
    ),
    Rule(
        "epsilon_dominates",
        precision.epsilon_dominates,
        "Adam's ε hides the gradient",
        "root mean square gradient against ε, step over learning rate",
        f"rms < ε and step < {precision.EPSILON_STEP:g} lr in half of the parameters; or from the start rms < "
        f"{precision.BELOW_LITTLE:g} ε and step < {precision.BELOW_STEP:g} lr in {precision.BELOW_SHARE:.0%}",
        "Wortsman et al. 2023 (arXiv 2309.14322)",
    ),
    Rule(
        "dead_units",
        units.dead_units,
        "Units that never get a gradient",
        "silent_rows, dead_rows",
        f"> {units.SILENT:.0%} of a layer's rows, or of a norm's elements and always the same ones; for information in "
        f"one layer of less than {units.FEW:.0%} of the parameters while the loss falls",
        "SageMaker Debugger, DeadRelu; ReDo",
    ),
    Rule(
        "attention_logit_growth",
        outputs.attention_logit_growth,
        "Attention logits grow",
        "attention_gain, the largest singular value of W_Qᵀ·W_K",
        f"× {outputs.ATTENTION_GROWTH:g} within {outputs.ATTENTION_PROBES} probes of the weights, to more than "
        f"{outputs.ATTENTION_GAIN:g}; where the loss is at its best, × {outputs.ATTENTION_FAST:g} or to more than "
        f"{outputs.ATTENTION_HIGH:g}",
        "Wortsman et al. 2023 (arXiv 2309.14322)",
    ),
    Rule(
        "output_logit_divergence",
        outputs.output_logit_divergence,
        "Output logits run away together",
        "output_drift of a gradient that had none",
        f"> {outputs.DRIFT:g} at {outputs.DRIFT_PROBES} probes, or > {outputs.DRIFT_MOST:g} at one, after < "
        f"{outputs.DRIFT_NONE:g}",
        "Wortsman et al. 2023 (arXiv 2309.14322)",
    ),
    Rule(
        "external_update",
        outside.external_update,
        "Something other than the optimizer changes the weights",
        "update_norm against the longest step that Adam or SGD can make; norms that shrink along themselves",
        f"> {outside.BEYOND:g} × for {outside.STEADY_ROWS} steps, or {outside.TIMES} times in a run that gets nowhere; "
        f"or −{outside.SHRINK:.1%} a step beyond the decay; or distance² < {outside.UNDONE:g} Σ‖Δ‖²",
        "docs: theory, the longest step; a random walk's displacement",
    ),
    Rule(
        "optimizer_state_reset",
        optimizer_state.optimizer_state_reset,
        "Adam's state begins anew at every step, or every few",
        "rms(Δ)/lr where gradients are not zero, or against the first step's; coherence",
        f"1 ± {optimizer_state.FRESH_NEAR:g} at {optimizer_state.FRESH_PROBES} probes, or at "
        f"{optimizer_state.AGAIN_TIMES} steps no more than {optimizer_state.AGAIN_EVERY} apart; coherence < "
        f"{optimizer_state.FRESH_COHERENCE:g}",
        "Kingma and Ba 2015 (arXiv 1412.6980)",
    ),
    Rule(
        "unbounded_loss",
        unbounded.unbounded_loss,
        "A loss that falls for ever, as with a wrong sign",
        "loss, gradient norm and coherence",
        f"loss < −{unbounded.BELOW:g} × its first size and falling {unbounded.FALLING - 1:.0%} in {unbounded.BACK} "
        f"steps, gradients × {unbounded.STEEPER:g}, coherence > {unbounded.AGREE:g}; or straight on, > "
        f"{unbounded.STRAIGHT:g}",
        "docs: diagnosis",
    ),
    Rule(
        "wrong_sign",
        sign.wrong_sign,
        "Steps that raise the loss they should lower",
        "change of the loss since the start against −Σ⟨g_t, Δ_{t−1}⟩, which the steps' slopes foretell",
        f"−{sign.LEAST:g} to −{sign.MOST:g} times in two windows of 4, 20 or 60 steps and as a whole (or any, to "
        f"{sign.AWAY:g} × the first loss along steps that batches fall along, {sign.BURST:g} × where it explodes; "
        "clipped: any, "
        f"from ln C or to {sign.CLIPPED_FAR:g} × the first loss); HIGH at {sign.SURE_ROSE:.0%} of the first loss",
        "docs: diagnosis",
    ),
    Rule(
        "weight_blow_up",
        growth.weight_blow_up,
        "Weights grow along themselves",
        "growth of ln ‖θ‖ a step and its share of the step",
        f"> {growth.GROWTH:g} a step, > {growth.RADIAL:g} of the step, {growth.GROWTH_ROWS} steps (Lion: "
        f"{growth.MOST_SIGNS:.0%} of the parameters); > "
        f"{growth.RADIAL_ALIKE:g} where all layers grow alike and the loss gains nothing; with a loss far below zero > "
        f"{growth.PAID_RADIAL:g}, {growth.PAID_ROWS} steps",
        "Yaida 2018; Kosson et al. 2024",
    ),
    Rule(
        "second_moment_lag",
        direction.second_moment_lag,
        "Adam's second moment lags behind a rising gradient",
        "root mean square of Δ/η",
        f"> {direction.LAG} after the gradient norm rose {direction.LAG_JUMP:g}×",
        "Wortsman et al. 2023 (arXiv 2304.13013)",
    ),
    Rule(
        "incoherent_update",
        direction.incoherent_update,
        "Steps that do not follow the gradient",
        "cos(−g, Δ) against its own past, of all weights together or in a typical layer",
        f"below {direction.LOST_SHARE:g} of it for {direction.LOST_ROWS} steps",
        "Molybog et al. 2023 (arXiv 2304.09871)",
    ),
    Rule(
        "distribution_shift",
        jumps.distribution_shift,
        "The data changed",
        "six losses above all but one of the twenty before, after an ordinary step",
        f"> {jumps.SHIFT:g} spreads, HIGH > {jumps.SHIFT_HIGH:g}",
        "docs: diagnosis",
    ),
    Rule(
        "gradient_spike",
        jumps.gradient_spike,
        "One gradient out of all proportion",
        f"norm against the largest of the last {jumps.SPIKE_MEMORY} steps, after an ordinary step (for × "
        f"{jumps.SPIKE_FAR:g}, up to {jumps.FAR_STEP:g} times as long)",
        f"× {jumps.SPIKE_OVER:g}, HIGH × {jumps.SPIKE_OVER_HIGH:g}; × {jumps.SPIKE_OVER_LONE:g} where the batch's loss "
        "stands out as well and the next gradient does not",
        "ZClip; OLMo-core",
    ),
    Rule(
        "loss_spike",
        jumps.loss_spike,
        "A loss that jumps and comes back",
        f"loss against the largest of the last {jumps.SPIKE_MEMORY} steps",
        f"{jumps.LOSS_SPIKE:.0%} of what was gained, back within {jumps.LOSS_SPIKE_BACK} steps",
        "PaLM (2204.02311)",
    ),
    Rule(
        "over_clipping",
        pace.over_clipping,
        "Clipping holds every step back",
        "constant gradient norm with the signs of lr_too_low",
        f"{pace.CLIP_ROWS} steps; or below {pace.STRAIGHT_BOUND:g} with reach < {pace.SHORT_REACH} for "
        f"{pace.SHORT_ROWS} steps of a new model",
        "Tuning Playbook",
    ),
    Rule(
        "lr_too_low",
        pace.lr_too_low,
        "Steady descent that gets nowhere",
        "slope of the next batch along the step, update_ratio, steps that a tenth of the loss takes",
        f"reach < {pace.LOW_REACH}, update_ratio < {pace.LOW_UPDATE:g}, pace > {pace.LOW_PACE:g} × the steps made; of "
        f"a new model reach < {pace.SHORT_REACH}, update_ratio < {pace.SHORT_UPDATE:g} for {pace.SHORT_ROWS} steps, or "
        f"reach < {pace.STRAIGHT_REACH} for {pace.STRAIGHT_LONG} ({pace.SHORT_ROWS} where gradients "
        f"agree), and a tenth of the loss takes > {pace.SHORT_NEEDED:g} steps; of a trained one update_ratio < "
        f"{pace.LOW_UPDATE_TRAINED:g}",
        "Karpathy 2019",
    ),
    Rule(
        "gradient_noise",
        noise.gradient_noise,
        "The gradient is mostly noise",
        "coherence and its size, noise_share, loss without progress, stable_rank of the last layer's gradient",
        f"coherence size < {noise.ISOTROPIC} where it was > {noise.ISOTROPIC_BEFORE}, or × √n < {noise.RANDOM_COSINE}; "
        f"or no progress at noise_share > {noise.FLAT_SHARE}; or a loss that scatters by {noise.SCATTER:g} × all that "
        f"was gained at noise_share > {noise.SCATTER_SHARE}; at {noise.STEPS_STILL:.0%} of the highest rate or more; "
        f"or stable_rank = 1 at every probe and a loss that scatters by {batch.RESTLESS:.0%} and is still above "
        f"{batch.LEARNED:.0%} of the first one",
        "McCandlish et al. 2018",
    ),
    Rule(
        "label_noise",
        noise.label_noise,
        "Targets carry no information",
        f"the loss stays near its first level, calmly, at noise_share > {noise.FLAT_SHARE}",
        f"level > {noise.FLAT_LEVEL:.0%} of the first loss; of a new model > {noise.STILL_LEVEL:.0%}, and no fall of "
        f"{noise.STILL_FALL:.1%} of it in the later half of the run, {noise.STILL_ROWS} steps or more; above "
        f"{noise.STILL_NEAR:.0%} none beyond its noise",
        "docs: diagnosis",
    ),
    Rule(
        "overfitting",
        generalization.overfitting,
        "Validation and training loss part",
        "gap between validation and training loss over the first loss",
        f"> {generalization.GAP:.0%} at {generalization.PATIENCE} validations, HIGH > {generalization.GAP_HIGH:.0%} or "
        f"when validation rises; none where it is at its best and gained {generalization.BENIGN_SHARE:.0%} of what "
        "training did",
        "SageMaker Debugger, Overfit",
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
        f"{learning_rate.LR_OVERSHOOT_SHARE:.0%} of steps, sigma × {learning_rate.LR_SIGMA_GROWTH:g}: two of them; "
        f"loss × {learning_rate.LR_EXPLODED:g}; distance > {learning_rate.LR_THROWN:g}‖θ₀‖ with a "
        f"loss spike × {learning_rate.LR_THROWN_SPIKE:g} within {first_steps.LR_THROWN_STEPS} steps, or with no gain "
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
        exploding.exploding_gradients,
        "Gradients grow with depth or with time",
        "root mean square gradient of first against last layers; growth of the norm; ‖g‖‖θ‖ over the loss at the start",
        f"× {exploding.EXPLODE_RATIO:g} while the loss makes no progress; ‖g‖‖θ‖ > {exploding.STEEP:g} L and the loss "
        f"jumps, or > {exploding.STEEP_CALM:g} L in a new model, or > {exploding.OFF_STEEP:g} L where "
        f"{exploding.OFF_ROWS} steps leave 1/{exploding.OFF_SOLVED:g} to 1/{exploding.OFF_FALL:g} of a loss "
        f"> {exploding.OFF_FROM:g}; or a first loss > {exploding.GUESS_FIRST:g} ln C, of which {exploding.OFF_ROWS} "
        f"steps leave less than {exploding.GUESS_LEFT:g} ln C",
        "AutoTrainer (ICSE 2021)",
    ),
    Rule(
        "vanishing_gradients",
        vanishing.vanishing_gradients,
        "Early layers get no gradient; or all have lost it, and the loss is as high as ever",
        "root mean square gradient of first against last layers; gradient norm against its largest",
        f"ratio < {vanishing.VANISH_RATIO:g} for {vanishing.VANISH_ROWS} steps, HIGH < {vanishing.VANISH_HIGH:g}; norm "
        f"< {vanishing.GONE:g} for {vanishing.GONE_ROWS} steps, HIGH < {vanishing.GONE_HIGH:g}; under SGD rms < "
        f"{vanishing.NEVER_SIZE:g} since the first step; of a new model that learns nothing < "
        f"{vanishing.BRANCH_RATIO:g} of the loudest layer's in {vanishing.BRANCH_SHARE:.0%} of the layers",
        "AutoTrainer (ICSE 2021)",
    ),
    Rule(
        "representation_collapse",
        representation.representation_collapse,
        "Outputs of a watched module become alike whatever goes in",
        "spread and effective rank of the outputs against the first healthy checks, scale",
        f"spread and scale < {representation.COLLAPSED:g} of the first, or scale < {representation.GONE:g}; of joint "
        f"embeddings spread < {representation.ALIKE:g}, HIGH < {representation.ALIKE_HIGH:g}, or rank share < "
        f"{representation.FEW:g}; at checks in a row, {representation.APART} steps apart",
        "Chen and He 2021 (arXiv 2011.10566); RankMe (arXiv 2210.02885)",
    ),
    Rule(
        "dead_features",
        representation.dead_features,
        "Features of a watched module are zero for every input",
        "dead_share of the outputs",
        f"> {representation.DEAD:.0%} at {representation.DEAD_CHECKS} checks, after < "
        f"{representation.DEAD_BEFORE:.0%}; never above LOW",
        "Sokar et al. 2023 (arXiv 2302.12902)",
    ),
    Rule(
        "non_finite_features",
        representation.non_finite_features,
        "NaN or Inf in what a watched module puts out",
        "nan_rows and inf_rows of the outputs",
        f"at two checks, or in more than {representation.NON_FINITE:.0%} of the rows of one; infinities that were "
        "there from the first check on are left alone",
        "IEEE 754",
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
