"""Weight decay against what the gradient rebuilds."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding, describe_layers
from thermoclaw.diagnosis.remedies import Remedy
from thermoclaw.diagnosis.selection import chosen, groups_of, names_of, two_digits
from thermoclaw.diagnosis.signals import Mask, decay_pull, decay_rate, free_decay, held, trailing_mean
from thermoclaw.quantities import Array
from thermoclaw.record import Record

DECAY_DROP = 0.15
DECAY_RATE_HIGH, DECAY_RATE_MEDIUM = 1e-2, 1e-3
DECAY_UNOPPOSED = 0.5
DECAY_PULL = 0.25
DECAY_SLOW = 1e4  # steps for a factor e: what the usual recipes have
DECAY_UNUSUAL, DECAY_UNUSUAL_COUPLED = 0.3, 5e-3


def _unusual_decay(record: Record) -> float:
    """Decay beyond every usual recipe; below it, fast erosion is the learning rate's doing."""
    groups = record.meta.get("param_groups") or [{}]
    return DECAY_UNUSUAL if any(group.get("decoupled") for group in groups) else DECAY_UNUSUAL_COUPLED


def weight_decay_too_high(record: Record) -> Finding | None:
    """Decay erodes the weights faster than gradients rebuild them."""
    if len(record) < 10:
        return None
    strong = record["weight_decay"] >= _unusual_decay(record)
    if not strong.any():
        return None
    norm = np.sqrt(record["param_sq"])
    rate = decay_rate(record)
    free = free_decay(record)
    peak = np.maximum.accumulate(np.where(np.isfinite(norm), norm, 0.0), axis=0)
    at_peak = norm >= peak
    free_at_peak = np.maximum.accumulate(np.where(at_peak, free, 0.0), axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        drop = np.where(peak > 0, 1.0 - norm / np.where(peak > 0, peak, 1.0), 0.0)
        shrink = -np.log(np.clip(1.0 - drop, 1e-12, 1.0))
        unopposed = shrink / np.maximum(free - free_at_peak, 1e-12)
    recent_rate, recent_pull = trailing_mean(rate, 10), trailing_mean(decay_pull(record), 10)
    eroding = (drop >= DECAY_DROP) & (unopposed >= DECAY_UNOPPOSED) & (recent_pull >= DECAY_PULL)
    eroding &= strong
    sizes = np.array([layer.num_params for layer in record.layers], dtype=float)
    for confidence, least in (("HIGH", DECAY_RATE_HIGH), ("MEDIUM", DECAY_RATE_MEDIUM)):
        hit = eroding & (recent_rate >= least)
        decayed = np.nanmax(np.where(np.isfinite(rate), rate, 0.0), axis=0) > 0
        share = (hit * sizes).sum(axis=1) / max(sizes[decayed].sum(), 1.0)
        span = held(share >= 0.1, 5)
        if span is not None:
            return _decay_finding(record, confidence, span, hit, drop, recent_rate, recent_pull)
    return None


def _decay_finding(
    record: Record, confidence: str, span: tuple[int, int], hit: Mask, drop: Array, rate: Array, pull: Array
) -> Finding:
    start, row = span
    mask = hit[row]
    layers = describe_layers(chosen(record, mask), len(record.layers))
    decay = float(record["weight_decay"][row][mask].max())
    fallen = float(np.median(drop[row][mask]))
    per_step = float(np.median(rate[row][mask]))
    share = float(np.median(decay_pull(record)[row][mask] * (record["update_norm"] / record["param_norm"])[row][mask]))
    value = two_digits(decay * min(0.1, 1.0 / (DECAY_SLOW * max(share, 1e-300))))
    return Finding(
        code="weight_decay_too_high",
        confidence=confidence,
        title=f"weight decay erodes {layers}",
        seen=f"Weight decay is eroding {layers}: parameter norms dropped {fallen:.0%} from their peak by step "
        f"{int(record.steps[row])}; in the long run decay alone halves them every {np.log(2) / per_step:.0f} steps.",
        meaning="Decay takes more from the weights than the gradient puts back; a layer whose norm goes to zero has no "
        "output left to learn with.",
        advice=f"Lower weight_decay from {decay:.3g} to about {value:.2g}, at which decay needs "
        f"{decay / (share * value):,.0f} steps for a factor e.",
        source="Kosson et al. 2024 (arXiv 2305.17212), balance of decay and update; thermoclaw 0.1.6, the norm drop",
        first_step=int(record.steps[start]),
        raised_step=int(record.steps[row]),
        layers=names_of(record, mask),
        evidence={
            "norm_drop": fallen,
            "decay_per_step": per_step,
            "decay_over_update": float(np.median(pull[row][mask])),
            "weight_decay": decay,
            "norm_budget": float(np.nanmedian(record["norm_budget"][row][mask])),
        },
        remedy=Remedy("weight_decay", value, decay, groups_of(record, mask)),
    )
