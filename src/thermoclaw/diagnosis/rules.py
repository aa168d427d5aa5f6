"""The rules: one function a failure, `Record` in, `Finding` or None out, and the literal table that lists them.

Each rule says what was seen with numbers, what it means, what to try, how sure it is, and where its thresholds come
from. A rule reads causal signals only. Silence comes first: a rule that cannot be sure says less or nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from thermoclaw.diagnosis.finding import Finding, describe_layers
from thermoclaw.diagnosis.remedies import Remedy
from thermoclaw.diagnosis.signals import (
    LossView,
    Mask,
    decay_pull,
    decay_rate,
    held,
    median_over,
    step_gaps,
    trailing_mean,
    weights_of,
)
from thermoclaw.quantities import Array
from thermoclaw.record import LayerInfo, Record


@dataclass(frozen=True)
class Rule:
    """A row of the table: what the documentation lists."""

    code: str
    check: Callable[[Record], Finding | None]
    detects: str
    signal: str
    threshold: str
    source: str


def _chosen(record: Record, mask: Mask) -> list[LayerInfo]:
    return [layer for layer, yes in zip(record.layers, mask, strict=True) if yes]


def _names(record: Record, mask: Mask) -> tuple[str, ...]:
    return tuple(layer.name for layer in _chosen(record, mask))


def _groups(record: Record, mask: Mask) -> tuple[int, ...]:
    """Parameter groups that hold the chosen layers; empty (all) where the record does not know."""
    known = record.meta.get("layer_groups") or {}
    found = {int(g) for name in _names(record, mask) for g in known.get(name, ())}
    total = len(record.meta.get("param_groups") or ())
    return () if len(found) == total else tuple(sorted(found))


def _round(value: float) -> float:
    """Two significant digits."""
    return float(f"{value:.1e}")


# -- non-finite ---------------------------------------------------------------------------------------------------------


def non_finite(record: Record) -> Finding | None:
    """NaN or Inf in the weights, the gradients or the loss."""
    if not len(record):
        return None
    weights = ~np.isfinite(record["param_sq"])
    grads = ~np.isfinite(record["grad_sq"])
    loss = np.isinf(record.loss) | (np.isnan(record.loss) & (np.fmax.accumulate(record.loss) > -np.inf))
    loss[np.isnan(record.loss) & ~_loss_is_given(record)] = False
    bad = weights.any(axis=1) | grads.any(axis=1) | loss
    if not bad.any():
        return None
    row = int(np.argmax(bad))
    where = grads[row] | weights[row]
    reached = weights.any()
    lasting = int(bad.sum())
    what = [name for name, hit in (("loss", loss[row]), ("gradient", grads[row].any()), ("weights", weights[row].any())) if hit]
    confidence = "HIGH" if reached or grads.any(axis=1).sum() >= 2 else "MEDIUM" if grads.any() else "LOW"
    place = f" in {describe_layers(_chosen(record, where), len(record.layers))}" if where.any() else ""
    step = int(record.steps[row])
    reach = "The weights themselves are lost." if reached else "The weights are still finite."
    return Finding(
        code="non_finite",
        confidence=confidence,
        title=f"NaN or Inf in the {what[0]}",
        seen=f"The {' and the '.join(what)} became NaN or Inf at step {step}{place}; {lasting} of {len(record)} recorded "
        f"steps are affected. {reach}",
        meaning="A value left the range of its number format; every later step through it is undefined.",
        advice="Go back to a checkpoint before that step, and lower the learning rate or clip gradients at their usual "
        "norm; in half precision use bfloat16 or a loss scaler.",
        source="IEEE 754; torchtitan and PyTorch anomaly mode stop at the same sign",
        first_step=step,
        raised_step=step,
        layers=_names(record, where),
        evidence={"non_finite_rows": lasting, "layers": int(where.sum())},
    )


def _loss_is_given(record: Record) -> Mask:
    """Rows up to which losses came: a NaN between given losses is a NaN, after the last or before the first it is none."""
    given = np.isfinite(record.loss)
    before = np.cumsum(given) > 0
    after = np.cumsum(given[::-1])[::-1] > 0
    lost_for_good = before & ~after & (~np.isfinite(record["grad_sq"])).any(axis=1)
    return np.asarray((before & after) | lost_for_good)


# -- weight decay -------------------------------------------------------------------------------------------------------

DECAY_DROP = 0.15
DECAY_RATE_HIGH, DECAY_RATE_MEDIUM = 1e-2, 1e-3
DECAY_UNOPPOSED = 0.5
DECAY_PULL = 0.25
DECAY_UNUSUAL, DECAY_UNUSUAL_COUPLED = 0.3, 5e-3


def _unusual_decay(record: Record) -> float:
    """Decay beyond every usual recipe; below it, fast erosion is the learning rate's doing."""
    groups = record.meta.get("param_groups") or [{}]
    return DECAY_UNUSUAL if any(group.get("decoupled") for group in groups) else DECAY_UNUSUAL_COUPLED


def weight_decay_too_high(record: Record) -> Finding | None:
    """Decay erodes the weights faster than gradients rebuild them."""
    if len(record) < 10:
        return None
    norm = np.sqrt(record["param_sq"])
    rate = decay_rate(record)
    free = np.nancumsum(rate * step_gaps(record)[:, None], axis=0)
    peak = np.maximum.accumulate(np.where(np.isfinite(norm), norm, 0.0), axis=0)
    at_peak = norm >= peak
    free_at_peak = np.maximum.accumulate(np.where(at_peak, free, 0.0), axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        drop = np.where(peak > 0, 1.0 - norm / np.where(peak > 0, peak, 1.0), 0.0)
        shrink = -np.log(np.clip(1.0 - drop, 1e-12, 1.0))
        unopposed = shrink / np.maximum(free - free_at_peak, 1e-12)
    recent_rate, recent_pull = trailing_mean(rate, 10), trailing_mean(decay_pull(record), 10)
    eroding = (drop >= DECAY_DROP) & (unopposed >= DECAY_UNOPPOSED) & (recent_pull >= DECAY_PULL)
    eroding &= record["weight_decay"] >= _unusual_decay(record)
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
    layers = describe_layers(_chosen(record, mask), len(record.layers))
    decay = float(record["weight_decay"][row][mask].max())
    fallen = float(np.median(drop[row][mask]))
    per_step = float(np.median(rate[row][mask]))
    per_decay = per_step / decay
    free_sq = np.maximum(record["update_sq"][row] - (rate[row] * np.sqrt(record["param_sq"][row])) ** 2, 0.0)[mask]
    balance = float(np.median(free_sq / (2.0 * per_decay * np.maximum(record["param_sq"][: row + 1, mask].max(axis=0), 1e-300))))
    value = _round(min(decay / 10.0, max(balance, 1e-4 / per_decay)))
    return Finding(
        code="weight_decay_too_high",
        confidence=confidence,
        title=f"weight decay erodes {layers}",
        seen=f"Weight decay is eroding {layers}: parameter norms dropped {fallen:.0%} from their peak by step "
        f"{int(record.steps[row])}; decay alone would halve them every {np.log(2) / per_step:.0f} steps.",
        meaning="Decay takes more from the weights than the gradient puts back; a layer whose norm goes to zero has no "
        "output left to learn with.",
        advice=f"Lower weight_decay from {decay:.3g} to about {value:.2g}, at which decay needs {1 / (per_decay * value):,.0f} "
        "steps for a factor e.",
        source="Kosson et al. 2024 (arXiv 2305.17212), equilibrium of decay and update; thermoclaw 0.1.6 for the norm drop",
        first_step=int(record.steps[start]),
        raised_step=int(record.steps[row]),
        layers=_names(record, mask),
        evidence={
            "norm_drop": fallen,
            "decay_per_step": per_step,
            "decay_over_update": float(np.median(pull[row][mask])),
            "weight_decay": decay,
            "norm_budget": float(np.nanmedian(record["norm_budget"][row][mask])),
        },
        remedy=Remedy("weight_decay", value, decay, _groups(record, mask)),
    )


# -- learning rate ------------------------------------------------------------------------------------------------------

LR_UPDATE_RATIO = 0.02
LR_COHERENCE = -0.1
LR_OVERSHOOT_SHARE = 0.7
LR_SIGMA_GROWTH = 10.0
LR_THROWN, LR_THROWN_STEPS, LR_THROWN_SPIKE = 2.0, 20, 1.25
LR_EXPLODED = 5.0


def lr_too_high(record: Record) -> Finding | None:
    """The steps are too long: the loss explodes, is thrown away at the start, or is lost later."""
    loss = LossView.of(record)
    if loss is None:
        return None
    signs = _StepSigns.of(record)
    for kind, confidence, condition, rows in (
        ("exploded", "HIGH", _exploded(record, loss, signs), 3),
        ("thrown", "HIGH", _thrown(record, loss) & (loss.smooth > 0.5 * loss.start), 5),
        ("lost", "HIGH", loss.lost() & (signs.count >= 2) & (np.arange(len(record)) >= 10), 10),
        ("thrown", "MEDIUM", _thrown(record, loss) & (loss.smooth > 0.15 * loss.start), 10),
        ("lost", "MEDIUM", loss.lost() & (signs.count >= 1) & (np.arange(len(record)) >= 10), 15),
    ):
        span = held(condition, rows)
        if span is not None:
            return _lr_finding(record, loss, signs, kind, confidence, span)
    return None


@dataclass(frozen=True)
class _StepSigns:
    """Signs that steps are too long, [T] each."""

    update_ratio: Array
    coherence: Array
    overshoot_share: Array
    sigma_growth: Array

    @classmethod
    def of(cls, record: Record) -> _StepSigns:
        big = weights_of(record)
        slope = np.where(np.isfinite(record["overshoot"]), record["overshoot"], 0.0).sum(axis=1)
        sigma = np.where(np.isfinite(record["sigma"]), record["sigma"], 0.0).sum(axis=1)
        return cls(
            update_ratio=trailing_mean(median_over(record["update_ratio"], big), 20),
            coherence=trailing_mean(median_over(record["coherence"], big), 20),
            overshoot_share=trailing_mean((slope > 0).astype(float), 20),
            sigma_growth=trailing_mean(sigma, 5) / max(float(np.median(sigma[:10])), 1e-300),
        )

    @property
    def on(self) -> Mask:
        """Which signs are on, [4, T]."""
        return np.stack(
            [
                self.update_ratio > LR_UPDATE_RATIO,
                self.coherence < LR_COHERENCE,
                self.overshoot_share > LR_OVERSHOOT_SHARE,
                self.sigma_growth > LR_SIGMA_GROWTH,
            ]
        )

    @property
    def count(self) -> Array:
        """How many signs are on, [T]."""
        return self.on.sum(axis=0)


def _exploded(record: Record, loss: LossView, signs: _StepSigns) -> Mask:
    """The loss stands at a multiple of all it was before, while steps rewrite the layers."""
    values = record.loss
    ceiling = np.maximum(loss.start, trailing_mean(values, 50)[0])
    return np.asarray((values > LR_EXPLODED * np.abs(ceiling)) & (signs.update_ratio > LR_UPDATE_RATIO))


def _thrown(record: Record, loss: LossView) -> Mask:
    """The first steps threw the weights far from where they began and the loss up; judged from step 40 on."""
    steps = record["step"]
    nothing = np.zeros(len(record), dtype=bool)
    if int(record.steps[0]) != 1 or loss.start <= 0:
        return nothing
    first = steps <= LR_THROWN_STEPS
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.sqrt(record["distance"] / record["param_sq"][:1])
    far = median_over(distance, weights_of(record))[first]
    spike = record.loss[first]
    reached = np.isfinite(far).any() and np.nanmax(far) > LR_THROWN
    spiked = np.isfinite(spike).any() and np.nanmax(spike) > LR_THROWN_SPIKE * loss.start
    return (steps >= 40) if reached and spiked else nothing


def _lr_finding(
    record: Record, loss: LossView, signs: _StepSigns, kind: str, confidence: str, span: tuple[int, int]
) -> Finding:
    start, row = span
    on = signs.on[:, row]
    ratio = float(signs.update_ratio[row])
    words = [
        f"a step rewrites {ratio:.1%} of a typical layer",
        f"successive gradients oppose each other (coherence {signs.coherence[row]:.2f})",
        f"{signs.overshoot_share[row]:.0%} of the steps went past the minimum along their own direction",
        f"entropy production grew {signs.sigma_growth[row]:.3g}×",
    ]
    reasons = [word for word, yes in zip(words, on, strict=True) if yes]
    if kind == "thrown":
        reasons.insert(0, f"the first {LR_THROWN_STEPS} steps moved the weights by more than {LR_THROWN:g}× their norm")
        ratio = max(ratio, float(np.nanmax(signs.update_ratio[: row + 1])))
        start = 0
    lr = float(np.nanmax(record["lr"][max(start, 0)]))
    factor = float(np.clip(2e-3 / max(ratio, 1e-12), 0.003, 0.3)) if np.isfinite(ratio) else 0.1
    now = record.loss[row] if kind == "exploded" else loss.smooth[row]
    return Finding(
        code="lr_too_high",
        confidence=confidence,
        title="learning rate too high",
        seen=f"The loss stands at {now:.4g}, against {loss.start:.4g} at the start and "
        f"{min(loss.best[row], loss.start):.4g} at best, and {'; '.join(reasons)}.",
        meaning="The steps are longer than the region in which the gradient is a guide; the run diverges or settles at "
        "a level where it has learned little.",
        advice=f"Lower the learning rate from {lr:.3g} to about {_round(lr * factor):.2g}, and warm it up.",
        source="Cohen et al. 2022 (arXiv 2207.14484); an update ratio of about 1e-3 is usual: Karpathy 2019",
        first_step=int(record.steps[start]),
        raised_step=int(record.steps[row]),
        evidence={
            "update_ratio": ratio,
            "coherence": float(signs.coherence[row]),
            "overshoot_share": float(signs.overshoot_share[row]),
            "sigma_growth": float(signs.sigma_growth[row]),
            "loss": float(now),
            "loss_at_start": loss.start,
        },
        remedy=Remedy("lr", _round(lr * factor), lr),
    )


# -- momentum -----------------------------------------------------------------------------------------------------------

MOMENTUM_LEAST = 0.97
MOMENTUM_COHERENCE = 0.05
MOMENTUM_LASTING = 30


def momentum_too_high(record: Record) -> Finding | None:
    """The update follows gradients of long ago although today's gradients agree with each other."""
    beta = float(np.nanmax(record["momentum"])) if len(record) else 0.0
    if not beta >= MOMENTUM_LEAST or len(record) < 30:
        return None
    big = weights_of(record)
    alignment = trailing_mean(median_over(record["alignment"], big), 25)
    coherence = trailing_mean(median_over(record["coherence"], big), 25)
    floor = float(np.sqrt(1.0 - beta**2))
    lagging = (coherence > MOMENTUM_COHERENCE) & (alignment < np.maximum(0.5 * coherence, 0.0)) & (alignment < 0.5 * 0.44)
    lagging &= record["step"] > min(2.0 / (1.0 - beta), 40)
    lasting = held(lagging, MOMENTUM_LASTING)
    span = lasting or held(lagging, 10)
    if span is None:
        return None
    start, row = span
    c, rho = float(alignment[row]), float(coherence[row])
    confidence = "HIGH" if beta >= 0.99 and (lasting or c < 0.3 * rho) else "MEDIUM"
    return Finding(
        code="momentum_too_high",
        confidence=confidence,
        title="momentum over-damped",
        seen=f"Successive gradients agree (coherence {rho:.2f}) but the update hardly follows them (alignment {c:.2f}; "
        f"momentum β₁ = {beta:.4g} gives {floor:.2f} on pure noise, 0.9 gives 0.44).",
        meaning="The update is an average over gradients from so long ago that it points where the loss was, not where "
        "it is.",
        advice=f"Lower β₁ (momentum) from {beta:.4g} to 0.9.",
        source="docs: theory, alignment; the floor √(1 − β₁²) is exact for momentum on white noise",
        first_step=int(record.steps[start]),
        raised_step=int(record.steps[row]),
        evidence={"alignment": c, "coherence": rho, "momentum": beta, "noise_floor": floor},
        remedy=Remedy("momentum", 0.9, beta),
    )


# -- depth profile ------------------------------------------------------------------------------------------------------

VANISH_RATIO, VANISH_UPDATE = 1e-4, 1e-6
EXPLODE_RATIO = 70.0


def _depth_profile(record: Record) -> tuple[Mask, Array] | None:
    """Weight layers in order of depth and the root mean square of their gradients, [T, n]."""
    mask = weights_of(record) & np.array([layer.ltype != "embedding" for layer in record.layers], dtype=bool)
    mask &= record["has_grad"].mean(axis=0) > 0.5
    if mask.sum() < 4 or len(record) < 20:
        return None
    sizes = np.array([layer.num_params for layer in record.layers], dtype=float)[mask]
    return mask, np.sqrt(record["grad_sq"][:, mask] / sizes)


def vanishing_gradients(record: Record) -> Finding | None:
    """Early layers get next to no gradient, and do not move for it."""
    profile = _depth_profile(record)
    if profile is None:
        return None
    mask, rms = profile
    quarter = max(rms.shape[1] // 4, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.median(rms[:, :quarter], axis=1) / np.median(rms[:, -quarter:], axis=1)
    moved = median_over(record["update_ratio"][:, mask], np.arange(rms.shape[1]) < quarter)
    span = held((ratio < VANISH_RATIO) & (moved < VANISH_UPDATE) & (np.nanmax(record["lr"], axis=1) > 0), 20)
    if span is None:
        return None
    start, row = span
    early = np.zeros(len(record.layers), dtype=bool)
    early[np.flatnonzero(mask)[:quarter]] = True
    names = describe_layers(_chosen(record, early), len(record.layers))
    return Finding(
        code="vanishing_gradients",
        confidence="HIGH" if row - start >= 19 and ratio[row] < 0.01 * VANISH_RATIO else "MEDIUM",
        title="vanishing gradients",
        seen=f"The gradient of {names} is {ratio[row]:.1e} of the last layers' per weight, and a step moves them by "
        f"{moved[row]:.1e} of their norm.",
        meaning="The signal dies on its way back; the early layers stay at their initial values.",
        advice="Use residual connections or normalisation, a non-saturating activation, or an initialisation that keeps "
        "the variance from layer to layer.",
        source="AutoTrainer (Zhang et al., ICSE 2021), with the update as a second condition",
        first_step=int(record.steps[start]),
        raised_step=int(record.steps[row]),
        layers=_names(record, early),
        evidence={"gradient_ratio": float(ratio[row]), "update_ratio": float(moved[row])},
    )


def exploding_gradients(record: Record) -> Finding | None:
    """Gradients grow from layer to layer, or from step to step, out of all proportion."""
    profile = _depth_profile(record)
    loss = LossView.of(record)
    if profile is None or loss is None:
        return None
    mask, rms = profile
    quarter = max(rms.shape[1] // 4, 1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.median(rms[:, :quarter], axis=1) / np.median(rms[:, -quarter:], axis=1)
        total = np.sqrt(np.nansum(record["grad_sq"], axis=1))
        growth = trailing_mean(total, 5) / max(float(np.median(total[:10])), 1e-300)
    bad = loss.lost() | loss.stuck()
    span = held(((ratio > EXPLODE_RATIO) | (growth > EXPLODE_RATIO)) & bad, 10)
    if span is None:
        return None
    start, row = span
    by_depth = ratio[row] > EXPLODE_RATIO
    seen = (
        f"The first layers' gradient is {ratio[row]:.0f}× the last layers' per weight"
        if by_depth
        else f"The gradient norm grew {growth[row]:.0f}× over its first steps"
    )
    norm = float(np.median(total[:10])) if not by_depth else 1.0
    return Finding(
        code="exploding_gradients",
        confidence="HIGH" if max(ratio[row], growth[row]) > 10 * EXPLODE_RATIO else "MEDIUM",
        title="exploding gradients",
        seen=f"{seen}, and the loss makes no progress.",
        meaning="Each layer, or each step, multiplies the gradient; a few of them dominate every update.",
        advice=f"Clip the gradient norm (at about {_round(norm):.2g}), lower the learning rate, or normalise between layers.",
        source="AutoTrainer (Zhang et al., ICSE 2021): ratio above 70",
        first_step=int(record.steps[start]),
        raised_step=int(record.steps[row]),
        layers=_names(record, mask) if by_depth else (),
        evidence={"gradient_ratio": float(ratio[row]), "gradient_growth": float(growth[row])},
    )


# -- parameters that do not move ----------------------------------------------------------------------------------------


def no_gradient(record: Record) -> Finding | None:
    """No layer gets a gradient at all."""
    if len(record) < 3:
        return None
    silent = (record["grad_sq"] == 0).all(axis=1)
    never = (record["has_grad"] == 0).all(axis=1)
    span = held(silent, 3)
    if span is None or span[0] > 0:
        return None
    row = span[1]
    what = "missing (None)" if never[row] else "exactly zero"
    return Finding(
        code="no_gradient",
        confidence="HIGH",
        title="no gradient reaches the optimizer",
        seen=f"Every gradient was {what} in the first {row + 1} steps.",
        meaning="The optimizer steps on nothing: the loss does not depend on these parameters, or the gradients were "
        "cleared before the step.",
        advice="Call zero_grad() after optimizer.step() and before backward(), not between backward() and step(); check "
        "that the loss is computed from this model without detach() or no_grad().",
        source="definition",
        first_step=int(record.steps[0]),
        raised_step=int(record.steps[row]),
        evidence={"steps_without_gradient": float(silent.sum())},
    )


def frozen_layers(record: Record) -> Finding | None:
    """Layers that get a gradient and do not move, or parameters that the optimizer was never given."""
    if len(record) < 10:
        return None
    pushed = (record["grad_sq"] > 0) & (record["lr"] > 0)
    still = pushed & (record["update_sq"] == 0)
    stuck = np.zeros(len(record.layers), dtype=bool)
    rows = []
    for i in range(len(record.layers)):
        span = held(still[:, i], 10)
        if span is not None:
            stuck[i] = True
            rows.append(span)
    if stuck.any():
        start, row = min(rows)
        names = describe_layers(_chosen(record, stuck), len(record.layers))
        return Finding(
            code="frozen_layers",
            confidence="HIGH",
            title=f"{names} get gradients and do not move",
            seen=f"{names} got gradients for at least 10 steps at a learning rate above zero and did not change by one bit.",
            meaning="The optimizer's step does not reach these weights, or is smaller than their number format can hold.",
            advice="Check that the optimizer was built after the model was moved or re-created; in bfloat16 or float16 "
            "keep float32 master weights.",
            source="TrainCheck (OSDI 2025); SageMaker Debugger, UnchangedTensor",
            first_step=int(record.steps[start]),
            raised_step=int(record.steps[row]),
            layers=_names(record, stuck),
            evidence={"layers": int(stuck.sum())},
        )
    return _missing_parameters(record)


def _missing_parameters(record: Record) -> Finding | None:
    """Parameters outside the optimizer that get gradients and that nobody moves."""
    missing = [str(name) for name in record.meta.get("unoptimized", ())]
    if not missing:
        return None
    optimized = [name for layer in record.layers for name in layer.param_names]
    order = [str(name) for name in record.meta.get("parameter_order", ())]
    place = {name: i for i, name in enumerate(order)}
    deliberate = bool(order) and max(place.get(n, 0) for n in missing) < min(place.get(n, 0) for n in optimized)
    adapters = any(word in name.lower() for name in optimized for word in ("lora", "adapter", "prompt", "ia3"))
    confidence = "LOW" if deliberate or adapters else "HIGH"
    some = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
    return Finding(
        code="frozen_layers",
        confidence=confidence,
        title="parameters missing from the optimizer",
        seen=f"{len(missing)} trainable parameters get gradients but are in no group of the optimizer and never change: {some}.",
        meaning="They cost a backward pass and learn nothing."
        + (" It looks deliberate: everything before the trained part is left out." if deliberate else ""),
        advice="Add them to the optimizer, or set requires_grad = False on them to save the work.",
        source="TrainCheck (OSDI 2025)",
        first_step=int(record.steps[0]),
        raised_step=int(record.steps[min(9, len(record) - 1)]),
        layers=tuple(missing),
        evidence={"missing_parameters": len(missing)},
    )


# -- plateau ------------------------------------------------------------------------------------------------------------

PLATEAU_STEPS = 1000


def plateau(record: Record) -> Finding | None:
    """The loss and the norms are stationary over the last thousand steps."""
    if record.num_steps < PLATEAU_STEPS + 100:
        return None
    steps = record["step"]
    recent = steps > steps[-1] - PLATEAU_STEPS
    loss = record.loss[recent]
    good = np.isfinite(loss)
    if good.sum() < 100:
        return None
    batches = np.array([b.mean() for b in np.array_split(loss[good], 10)])
    x = np.arange(10) - 4.5
    slope = float((x * batches).sum() / (x * x).sum())
    residual = batches - batches.mean() - slope * x
    error = float(np.sqrt((residual**2).sum() / 8.0 / (x * x).sum()))
    view = LossView.of(record)
    if view is None:
        return None
    gained = view.start - float(batches.mean())
    flat = abs(slope) < 2.3 * error and abs(slope) * 10 < 0.01 * max(abs(gained), abs(view.start) * 0.01)
    lr = record["lr"][recent]
    fading = np.nanmax(lr[-1]) < 0.5 * np.nanmax(lr[0])  # a schedule on its way down is doing what it was told
    if not flat or fading:
        return None
    return Finding(
        code="plateau",
        confidence="LOW",
        title="the loss is stationary",
        seen=f"Over the last {PLATEAU_STEPS} steps the loss stayed at {batches.mean():.4g}: its slope is "
        f"{slope / (PLATEAU_STEPS / 10):.1e} ± {2.3 * error / (PLATEAU_STEPS / 10):.1e} a step (95 %).",
        meaning="The run has converged at this learning rate, or it is stalled; the loss alone cannot tell which.",
        advice="Lower the learning rate (if noise holds the loss up, it falls at once) or stop here.",
        source="batch means with a confidence interval: Pflug 1990; SASA, Lang et al. 2019 (arXiv 1909.09785)",
        first_step=int(steps[recent][0]),
        raised_step=int(steps[-1]),
        evidence={"loss": float(batches.mean()), "slope": slope / (PLATEAU_STEPS / 10)},
    )


RULES: tuple[Rule, ...] = (
    Rule(
        "non_finite",
        non_finite,
        "NaN or Inf in weights, gradients or loss",
        "grad_sq, param_sq and loss are finite",
        "any; HIGH when weights are hit or two steps have it",
        "IEEE 754",
    ),
    Rule(
        "no_gradient",
        no_gradient,
        "No gradient at all from the first step on",
        "grad_sq = 0 in every layer",
        "the first 3 steps",
        "definition",
    ),
    Rule(
        "weight_decay_too_high",
        weight_decay_too_high,
        "Weight decay erodes layers faster than gradients rebuild them",
        "fall of ‖θ‖ from its peak, against what decay alone would do; decay's share of the step",
        f"norm down ≥ {DECAY_DROP:.0%}, ≥ {DECAY_UNOPPOSED:.0%} of free decay realised, decay ≥ {DECAY_PULL} of the step; "
        f"HIGH at κλ ≥ {DECAY_RATE_HIGH:g} a step, MEDIUM at ≥ {DECAY_RATE_MEDIUM:g}",
        "Kosson et al. 2024 (arXiv 2305.17212)",
    ),
    Rule(
        "lr_too_high",
        lr_too_high,
        "Steps too long: divergence, oscillation, or a loss that is lost",
        "the loss explodes, or gives back its gains, with update_ratio, coherence, overshoot or growth of sigma as the "
        "reason; or the first steps throw the weights away",
        f"update_ratio > {LR_UPDATE_RATIO}, coherence < {LR_COHERENCE}, overshoot in > {LR_OVERSHOOT_SHARE:.0%} of steps, "
        f"sigma × {LR_SIGMA_GROWTH:g}: HIGH with two, MEDIUM with one; loss × {LR_EXPLODED:g}; distance > {LR_THROWN:g}‖θ₀‖ "
        f"with a loss spike × {LR_THROWN_SPIKE:g} within {LR_THROWN_STEPS} steps",
        "Cohen et al. 2022 (arXiv 2207.14484); Karpathy 2019",
    ),
    Rule(
        "momentum_too_high",
        momentum_too_high,
        "Over-damped: the update chases old gradients",
        "alignment far below coherence",
        f"β₁ ≥ {MOMENTUM_LEAST}, alignment < half the coherence and < 0.22 for 10 rows; HIGH at β₁ ≥ 0.99 for "
        f"{MOMENTUM_LASTING} rows",
        "docs: theory, alignment",
    ),
    Rule(
        "exploding_gradients",
        exploding_gradients,
        "Gradients grow with depth or with time",
        "root mean square gradient of first against last layers; growth of the norm",
        f"× {EXPLODE_RATIO:g} while the loss makes no progress",
        "AutoTrainer (ICSE 2021)",
    ),
    Rule(
        "vanishing_gradients",
        vanishing_gradients,
        "Early layers get no gradient",
        "root mean square gradient of first against last layers, and their update_ratio",
        f"ratio < {VANISH_RATIO:g} and update_ratio < {VANISH_UPDATE:g} for 20 steps",
        "AutoTrainer (ICSE 2021)",
    ),
    Rule(
        "frozen_layers",
        frozen_layers,
        "Parameters that should move and do not",
        "gradient > 0, learning rate > 0, update exactly 0; or in no group of the optimizer",
        "10 steps",
        "TrainCheck (OSDI 2025)",
    ),
    Rule(
        "plateau",
        plateau,
        "The loss is stationary: converged or stalled",
        "slope of ten batch means over 1000 steps",
        "95 % interval holds 0 and the trend is below 1 % of what was gained; never above LOW",
        "SASA, Lang et al. 2019 (arXiv 1909.09785)",
    ),
)
