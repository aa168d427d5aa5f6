"""What detectors say, as findings. All of LOW confidence: no threshold here was judged on failing and healthy runs."""

from __future__ import annotations

from collections.abc import Sequence

from thermoclaw.detectors.norms import Array, Clipping, Spike
from thermoclaw.diagnosis.finding import Finding


def steps_of_one_length(told: Clipping, steps: Array) -> Finding:
    """Most steps are clipped, so that a step is as long as the bound says."""
    return Finding(
        code="over_clipping",
        confidence="LOW",
        title="clipping is nearly always on",
        seen=f"Clipping at {told.max_norm:g} cut {told.fraction:.0%} of {told.steps:,} steps, on average to "
        f"{told.coefficient:.2g} of their gradient.",
        meaning=f"A step is lr × {told.max_norm:g} long whatever the gradient: this is normalized gradient descent.",
        advice="If that is not meant, raise max_norm, or lower the learning rate instead.",
        source="Google Research, Deep Learning Tuning Playbook",
        first_step=int(steps[0]),
        raised_step=int(steps[-1]),
        evidence={
            "clip_fraction": told.fraction,
            "clip_coefficient": told.coefficient,
            "max_norm": float(told.max_norm),
        },
    )


def outliers(spikes: Sequence[Spike], bound: float, last_step: int) -> Finding:
    """Gradient norms that stand out, and a bound that would cut them alone."""
    largest = max(spike.over_median for spike in spikes)
    return Finding(
        code="gradient_spike",
        confidence="LOW",
        title="some gradients stand out",
        seen=f"{len(spikes)} gradient spike{'s' if len(spikes) != 1 else ''}, the largest {largest:.0f} times the "
        "median.",
        meaning="Single batches make steps far longer than the others.",
        advice=f"Clip the norm at about {bound:.2g}, which leaves 95 % of the other steps alone.",
        source="Iglewicz and Hoaglin 1993; compare ZClip (arXiv 2504.02507)",
        first_step=spikes[0].step,
        raised_step=last_step,
        evidence={"spikes": float(len(spikes)), "over_median": largest, "recommended_max_norm": bound},
    )


def batch_below_noise_scale(scale: float, batch_size: float, share: float, steps: Array) -> Finding:
    """The noise scale is far above the batch."""
    return Finding(
        code="gradient_noise",
        confidence="LOW",
        title="the batch is small against the noise",
        seen=f"The noise scale of the typical layer is about {scale:,.0f} examples, {scale / batch_size:.0f} times the "
        f"batch of {batch_size:g}; {share:.0%} of the squared gradient is noise.",
        meaning="Steps are mostly noise. That is usual late in training; early it costs examples only, not progress.",
        advice="Where steps are what you wait for, a larger batch (by accumulation, say) makes each worth more; a "
        "lower learning rate averages the noise.",
        source="McCandlish et al. 2018 (arXiv 1812.06162)",
        first_step=int(steps[0]),
        raised_step=int(steps[-1]),
        evidence={"noise_scale": scale, "batch_size": float(batch_size), "noise_share": share},
    )


def come_to_rest(still: int, of: int, motion: str, steps: Array) -> Finding:
    """Norms are stationary and weights wander or stay in a bowl."""
    return Finding(
        code="plateau",
        confidence="LOW",
        title="the run has come to rest at its temperature",
        seen=f"{still} of {of} layers have stationary norms (the fluctuation–dissipation ratio is 1 within its 95 % "
        f"interval), and weights {motion}.",
        meaning="Noise and pull are in balance: at this learning rate little more is learned but by chance.",
        advice="Lower the learning rate: where noise holds the loss up, it falls at once.",
        source="Yaida 2018 (arXiv 1810.00004); docs: thermometer",
        first_step=int(steps[0]),
        raised_step=int(steps[-1]),
        evidence={"stationary_layers": float(still), "layers": float(of)},
    )
