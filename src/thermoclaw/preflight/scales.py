"""Sizes that do not fit: the first loss, the inputs, ε, decay or clipping against the gradient, batch against noise."""

from __future__ import annotations

import math
from statistics import median

import torch

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.remedies import Remedy
from thermoclaw.preflight.decay import SOURCE as DECAY_SOURCE
from thermoclaw.preflight.probe import Probe
from thermoclaw.preflight.result import make_finding, two_digits
from thermoclaw.preflight.setup import Setup, layers_of

LOSS_OVER_CHANCE, LOSS_OVER_CHANCE_HIGH = 4.0, 10.0
INPUT_RMS, INPUT_RMS_HIGH = 30.0, 100.0
HIDDEN, HIDDEN_HIGH = 0.5, 0.9
DECAY_OVER_GRADIENT, DECAY_OVER_GRADIENT_HIGH, DECAY_LEAST = 2.0, 10.0, 5e-3
CLIPPED = 100.0
NOISE = 1000.0


def check_loss(probe: Probe) -> list[Finding]:
    """A first loss that is not finite, or far above that of a guess."""
    broken = [loss for loss in probe.losses if not math.isfinite(loss)]
    if broken:
        return [_broken(probe, len(broken))]
    if probe.num_classes < 2:
        return []
    chance = math.log(probe.num_classes)
    over = probe.loss / chance
    if over < LOSS_OVER_CHANCE:
        return []
    return [
        make_finding(
            "bad_init",
            "HIGH" if over > LOSS_OVER_CHANCE_HIGH else "MEDIUM",
            "the first loss is far above chance",
            seen=f"The first loss is {probe.loss:.4g}; guessing among {probe.num_classes} classes costs ln "
            f"{probe.num_classes} = {chance:.3g}.",
            meaning="The model is certain of wrong answers before it has seen any; the first steps only unlearn that.",
            advice="Make the last layer's initial weights smaller, or look at the scale of weights and inputs.",
            source="Karpathy 2019, A recipe for training neural networks",
            evidence={"loss": probe.loss, "chance": chance},
        )
    ]


def _broken(probe: Probe, count: int) -> Finding:
    return make_finding(
        "non_finite",
        "HIGH",
        "the first loss is not finite",
        seen=f"The loss is NaN or infinite on {count} of {len(probe.losses)} batches before the first step.",
        meaning="Its gradient will make every weight NaN.",
        advice="Look at the batch, at logarithms and divisions in the loss, and at the scale of weights and inputs.",
        source="torchtitan; PyTorch anomaly mode",
        evidence={"batches": float(count)},
    )


def check_inputs(setup: Setup, probe: Probe) -> list[Finding]:
    """Inputs as they come from the instrument."""
    rms, layer = probe.seen.input_rms, probe.seen.first_layer
    if not rms > INPUT_RMS:
        return []
    return [
        make_finding(
            "unnormalised_input",
            "HIGH" if rms > INPUT_RMS_HIGH else "MEDIUM",
            "inputs at the wrong scale",
            seen=f"The first layer ({layer}) is given inputs with a root mean square of {rms:.3g}.",
            meaning="Its gradient is as many times larger than with inputs of size one, and no learning rate suits it "
            "and the other layers.",
            advice="Subtract the mean of each feature and divide by its standard deviation, or begin with a norm.",
            source="LeCun et al. 1998, Efficient backprop; UMLAUT (CHI 2021)",
            layers=(layer,),
            evidence={"input_rms": rms},
        )
    ]


@torch.no_grad()
def check_epsilon(setup: Setup, probe: Probe) -> list[Finding]:
    """Adam's ε against the gradients of the first batch."""
    hidden = total = 0.0
    worst = 0.0
    for w, g in zip(probe.weights, probe.grads, strict=True):
        if g is None or w.group is None or g.is_sparse:
            continue
        eps = setup.optimizer.param_groups[w.group].get("eps")
        if not isinstance(eps, (int, float)) or not eps > 0:
            continue
        size = g.abs()
        hidden += float(((size > 0) & (size < eps)).sum())
        total += float((size > 0).sum())
        worst = max(worst, float(eps))
    if not total or hidden / total < HIDDEN:
        return []
    share = hidden / total
    return [
        make_finding(
            "epsilon_dominates",
            "HIGH" if share > HIDDEN_HIGH else "MEDIUM",
            "ε is larger than the gradient",
            seen=f"With eps {worst:.3g}, {share:.0%} of the gradient's elements are smaller than ε on the first batch.",
            meaning="Steps are gradients over ε: no longer of a size that the learning rate fixes, and far shorter.",
            advice="Set eps to 1e-8, or to 1e-15 if the gradients are that small.",
            source="Wortsman et al. 2023 (arXiv 2309.14322)",
            evidence={"hidden_share": share, "eps": worst},
            remedy=Remedy("eps", min(1e-8, 0.01 * worst), worst),
        )
    ]


def check_coupled_decay(setup: Setup, probe: Probe) -> list[Finding]:
    """L2 decay inside an adaptive optimizer against the gradient, both of which share one normalization."""
    ratios, weights = [], []
    for place, w in enumerate(probe.weights):
        hyper = setup.hypers[w.group] if w.group is not None else None
        norm = median(row[place] for row in probe.norms)
        if hyper is not None and hyper.adaptive and hyper.weight_decay >= DECAY_LEAST and w.is_matrix and norm > 0:
            ratios.append(hyper.weight_decay * float(w.param.detach().norm()) / norm)
            weights.append(w)
    if not ratios or median(ratios) < DECAY_OVER_GRADIENT:
        return []
    ratio = median(ratios)
    decay = max(setup.hypers[w.group].weight_decay for w in weights if w.group is not None)
    value = two_digits(min(1e-4, 0.01 * decay / ratio))
    return [
        make_finding(
            "weight_decay_too_high",
            "HIGH" if ratio > DECAY_OVER_GRADIENT_HIGH else "MEDIUM",
            "the penalty outweighs the gradient",
            seen=f"With weight_decay {decay:.3g}, which {setup.kind} adds to the gradient, the penalty is {ratio:.2g} "
            "times as large as the gradient in a typical matrix.",
            meaning="After the normalization a step follows the penalty and takes every weight towards zero.",
            advice=f"Lower weight_decay to about {value:.2g}, or use AdamW, which keeps decay out of it.",
            source="Loshchilov and Hutter 2019 (arXiv 1711.05101); " + DECAY_SOURCE,
            layers=layers_of(weights),
            evidence={"decay_over_gradient": ratio, "weight_decay": decay},
            remedy=Remedy("weight_decay", value, decay),
        )
    ]


def check_clipping(setup: Setup, probe: Probe) -> list[Finding]:
    """Clipping that cuts the first gradients to next to nothing, where the length of a gradient matters."""
    limit = setup.max_grad_norm
    if limit is None or "SGD" not in setup.kind:
        return []
    norms = [math.sqrt(sum(n * n for n in row if not math.isnan(n))) for row in probe.norms]
    if not limit > 0 or median(norms) < CLIPPED * limit:
        return []
    return [
        make_finding(
            "over_clipping",
            "MEDIUM",
            "clipping cuts nearly everything off",
            seen=f"The first gradients have a norm of about {median(norms):.3g} and are clipped to {limit:.3g}.",
            meaning="Steps have one fixed length, learning rate times max_norm, whatever the gradient.",
            advice=f"Clip at about {two_digits(median(norms)):.2g}.",
            source="Google Research, Deep learning tuning playbook",
            evidence={"grad_norm": median(norms), "max_grad_norm": limit},
        )
    ]


def check_noise(probe: Probe) -> list[Finding]:
    """A gradient that is noise and nothing else."""
    noise = probe.noise
    if noise is None or not NOISE <= noise.low < math.inf:
        return []
    return [
        make_finding(
            "gradient_noise",
            "LOW",
            "the gradient drowns in noise",
            seen=f"{noise.num_batches} batches put the noise scale above {noise.low:.3g} batches of this size.",
            meaning="At the initial weights a step is noise for the most part.",
            advice="Use larger batches or accumulate gradients; near a minimum this is normal.",
            source="McCandlish et al. 2018 (arXiv 1812.06162)",
            evidence={"noise_scale_low": noise.low},
        )
    ]
