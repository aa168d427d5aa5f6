"""Weight decay against what the gradient rebuilds."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding, describe_layers
from thermoclaw.diagnosis.remedies import Remedy
from thermoclaw.diagnosis.selection import chosen, groups_of, names_of, tell, two_digits
from thermoclaw.diagnosis.signals import Mask, decay_pull, decay_rate, free_decay, held, middle, trailing_mean
from thermoclaw.diagnosis.view import view_of
from thermoclaw.quantities import Array
from thermoclaw.record import Record

DECAY_DROP = 0.15
DECAY_RATE_HIGH, DECAY_RATE_MEDIUM = 1e-2, 1e-3
DECAY_UNOPPOSED = 0.5
DECAY_PULL = 0.25
DECAY_SLOW = 1e4  # steps for a factor e: what the usual recipes have
DECAY_UNUSUAL, DECAY_UNUSUAL_COUPLED = 0.3, 5e-3
DECAY_STEP = 0.1  # longer steps are the learning rate's doing
DECAY_FAST, DECAY_FAST_HIGH, DECAY_FAST_ROWS = 6e-3, 1e-2, 15
DECAY_RADIAL, DECAY_SHRINK, DECAY_SHRINK_ROWS = -0.4, 1.5e-3, 10


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
        if confidence == "MEDIUM":  # the rows of a table that few batches ask for shrink in a sound run, too
            hit &= ~view_of(record).tables
        decayed = np.nanmax(np.where(np.isfinite(rate), rate, 0.0), axis=0) > 0
        share = (hit * sizes).sum(axis=1) / max(sizes[decayed].sum(), 1.0)
        span = held(share >= 0.1, 5)
        if span is not None:
            return _decay_finding(record, confidence, span, hit, drop, recent_rate, recent_pull)
    return _shrinking(record) or _too_fast(record, rate)


def _shrinking(record: Record) -> Finding | None:
    """Decay inside an adaptive gradient has taken the step over: weights shrink along themselves at every step."""
    view = view_of(record)
    if not any(group.get("adaptive") for group in view.groups):
        return None
    rate, share = view.radial
    shrink = -trailing_mean(rate, DECAY_SHRINK_ROWS)
    hit = (shrink > DECAY_SHRINK) & (trailing_mean(share, DECAY_SHRINK_ROWS) < DECAY_RADIAL)
    hit &= (record["weight_decay"] > 0) & view.big
    hit[:DECAY_SHRINK_ROWS] = False
    sizes = np.where(view.big & view.trained, view.sizes, 0.0)
    span = held((hit * sizes).sum(axis=1) > 0.3 * max(sizes.sum(), 1.0), 3)
    if span is None:
        return None
    row = span[1]
    mask, start = hit[row], max(span[0] - DECAY_SHRINK_ROWS + 1, 0)
    decay = float(record["weight_decay"][row][mask].max())
    pull = decay * record["param_norm"][row] / np.maximum(record["grad_norm"][row], 1e-300)
    ratio, pace = float(np.median(pull[mask])), float(np.median(shrink[row][mask]))
    value = two_digits(decay * min(0.1, 0.05 / max(ratio, 1e-12)))
    names = describe_layers(chosen(record, mask), len(record.layers))
    return tell(
        record,
        "weight_decay_too_high",
        "HIGH",
        (start, row),
        mask=mask,
        title=f"weight decay erodes {names}",
        seen=f"The norm of {names} shrinks by {pace:.2%} at every step, {-np.median(share[row][mask]):.0%} of the step "
        f"along the weights; λ‖θ‖ is {ratio:.1f} times the gradient's norm.",
        meaning=f"{record.optimizer} adds λθ to the gradient before it rescales it: where that term is the larger one, "
        "the optimizer spends its steps on shrinking the weights.",
        advice=f"Lower weight_decay from {decay:.3g} to about {value:.2g} (λ‖θ‖ at a twentieth of ‖g‖), "
        "or use AdamW, whose decay is not rescaled.",
        source="Loshchilov and Hutter 2019 (arXiv 1711.05101); Kosson et al. 2024 (arXiv 2305.17212)",
        evidence={"shrink_per_step": pace, "decay_over_gradient": ratio, "weight_decay": decay},
        remedy=Remedy("weight_decay", value, decay, groups_of(record, mask)),
    )


def _too_fast(record: Record, rate: Array) -> Finding | None:
    """Decay forgets within a hundred steps what the gradient taught, even where gradients still rebuild the norm."""
    view = view_of(record)
    smooth = np.nan_to_num(trailing_mean(rate, DECAY_FAST_ROWS))
    strong = (record["weight_decay"] >= _unusual_decay(record)) & (view.update_ratio < DECAY_STEP)[:, None]
    sizes = np.where(view.big & view.trained, view.sizes, 0.0)
    for confidence, least in (("HIGH", DECAY_FAST_HIGH), ("MEDIUM", DECAY_FAST)):
        hit = (smooth > least) & strong & view.big
        span = held((hit * sizes).sum(axis=1) > 0.5 * max(sizes.sum(), 1.0), DECAY_FAST_ROWS)
        if span is None:
            continue
        row = span[1]
        mask = hit[row]
        decay, pace = float(record["weight_decay"][row][mask].max()), float(np.median(smooth[row][mask]))
        value = two_digits(decay / (DECAY_SLOW * pace))
        names = describe_layers(chosen(record, mask), len(record.layers))
        return tell(
            record,
            "weight_decay_too_high",
            confidence,
            (max(span[0] - DECAY_FAST_ROWS + 1, 0), row),
            mask=mask,
            title=f"weight decay outruns {names}",
            seen=f"Learning rate times weight_decay {decay:.3g} takes a factor e off {names} every "
            f"{1 / pace:.0f} steps.",
            meaning="The weights are an average over that few steps: what earlier batches taught is forgotten as fast "
            "as it is learned. Usual recipes have 5,000 steps and more.",
            advice=f"Lower weight_decay from {decay:.3g} to about {value:.2g} (a factor e in 10,000 steps).",
            source="Kosson et al. 2024 (arXiv 2305.17212): the time scale 1/(ηλ); Wang and Aitchison 2024 "
            "(arXiv 2405.13698)",
            evidence={"decay_per_step": pace, "weight_decay": decay},
            remedy=Remedy("weight_decay", value, decay, groups_of(record, mask)),
        )
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
            "norm_budget": middle(record["norm_budget"][row][mask]),
        },
        remedy=Remedy("weight_decay", value, decay, groups_of(record, mask)),
    )
