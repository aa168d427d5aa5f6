"""Steps that are too long."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.remedies import Remedy
from thermoclaw.diagnosis.rules.first_steps import LR_DECAYED, LR_THROWN_STEPS, is_deep, rewritten, sharpened
from thermoclaw.diagnosis.selection import tell, two_digits
from thermoclaw.diagnosis.signals import (
    LossView,
    Mask,
    decay_pull,
    held,
    lagged,
    largest,
    median_over,
    trailing_max,
    trailing_mean,
    trailing_min,
    weights_of,
)
from thermoclaw.diagnosis.view import view_of
from thermoclaw.quantities import Array
from thermoclaw.record import Record

LR_UPDATE_RATIO = 0.02
LR_COHERENCE = -0.1
LR_OVERSHOOT_SHARE = 0.7
LR_SIGMA_GROWTH = 10.0
LR_THROWN, LR_THROWN_SPIKE = 2.0, 1.2
LR_STALLED_GAIN, LR_STALLED_STEP = 0.1, 100
LR_EXPLODED, LR_BURST_ROWS = 5.0, 20
LR_FALLS, LR_BURST_LASTS = 0.7, 8  # of the highest of late: it may be over, unless it lasts
LR_DESCENDS, LR_AGREES = 0.1, 0.5
LR_GAINED, LR_BACK = 0.3, 0.95
LR_STILL_HIGH, LR_FAR = 0.1, 100.0  # of the rise of the mean; of the first loss
LR_RECOVERS = 0.8
LR_JUMP, LR_JUMP_ROWS = 3.0, 60


def lr_too_high(record: Record) -> Finding | None:
    """The steps are too long: the loss explodes, is thrown away at the start, or is lost later."""
    loss = LossView.of(record)
    if loss is None:  # none was told, or it broke within five steps
        return rewritten(record) if np.isfinite(record.loss[:1]).any() else None
    jump = _after_a_jump(record)
    if jump is not None:
        return jump
    at_once = rewritten(record)
    if at_once is not None:
        return at_once
    burst, lost = _burst(record, loss), loss.lost() & (np.arange(len(record)) >= 10)
    thrown, stalled = _thrown(record, loss), _stalled(record, loss)
    if not (burst | lost | thrown | stalled).any():
        return sharpened(record)
    signs = _StepSigns.of(record)
    burst, lost = burst & ~signs.descends, lost & ~signs.descends & _still_high(record, loss)
    for kind, confidence, condition, rows in (
        ("exploded", "HIGH", burst & (signs.update_ratio > LR_UPDATE_RATIO), 3),
        ("thrown", "HIGH", thrown & (loss.smooth > 0.5 * loss.start), 5),
        ("lost", "HIGH", lost & (signs.count >= 2), 10),
        ("thrown", "MEDIUM", thrown & (loss.smooth > 0.15 * loss.start) & ~_recovers(loss), 10),
        ("thrown", "MEDIUM", stalled, 10),
        ("lost", "MEDIUM", _all_lost(loss) & lost & (trailing_max(signs.update_ratio, 40) > LR_UPDATE_RATIO), 10),
    ):
        span = held(condition, rows)
        if span is not None:
            return _lr_finding(record, loss, signs, kind, confidence, span)
    return sharpened(record)


def _after_a_jump(record: Record) -> Finding | None:
    """The rate left everything it had been behind, and the loss rose above all of the steps before."""
    view = view_of(record)
    top = np.maximum.accumulate(view.lr) if len(record) else view.lr
    jumped = np.flatnonzero(view.lr[1:] > LR_JUMP * top[:-1]) + 1
    for at in jumped[jumped >= 15]:
        worst = largest(record.loss[at - 10 : at])
        above = np.zeros(len(record), dtype=bool)
        above[at:] = ~(trailing_min(record.loss, 4)[at:] <= worst)  # a loss that is not finite is above
        above[: at + 4] = False
        span = held(above, 1)
        if span is None or span[1] > at + LR_JUMP_ROWS:
            continue
        was, now = float(view.lr[at - 1]), float(view.lr[at])
        return tell(
            record,
            "lr_too_high",
            "HIGH",
            (int(at), span[1]),
            title="the learning rate jumped",
            seen=f"At step {int(record.steps[at])} the learning rate went from {was:.3g} to {now:.3g}, {now / was:.0f} "
            f"times as high as before, and within {span[1] - int(at)} steps the loss stood at "
            f"{record.loss[span[1]]:.4g}, where the ten steps before had {worst:.4g} at most.",
            meaning="The steps became longer than the region in which the gradient is a guide.",
            advice=f"Go back to a checkpoint before step {int(record.steps[at])}, set the learning rate back to "
            f"{was:.3g}, and mend the schedule.",
            source="Cohen et al. 2022 (arXiv 2207.14484)",
            evidence={"lr": now, "lr_before": was, "loss": float(record.loss[span[1]]), "loss_before": worst},
            remedy=Remedy("lr", two_digits(was), now),
        )
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
    def descends(self) -> Mask:
        """Where steps still lead down at their far ends, and gradients agree: they did not make the loss rise, [T]."""
        return np.asarray((self.overshoot_share < LR_DESCENDS) & (self.coherence > LR_AGREES))

    @property
    def count(self) -> Array:
        """How many signs are on, [T]."""
        return self.on.sum(axis=0)


def _still_high(record: Record, loss: LossView) -> Mask:
    """Where it is not one batch of some time ago that lifts the mean of the losses, [T]."""
    back = trailing_max(record.loss, 3) < loss.best + LR_STILL_HIGH * (loss.smooth - loss.best)
    return ~np.asarray(back & (loss.smooth < LR_FAR * abs(loss.start)))


def _all_lost(loss: LossView) -> Mask:
    """Whatever had been gained, and that was much, is lost again, [T]."""
    gained = loss.start - loss.best > LR_GAINED * abs(loss.start)
    return np.asarray(gained & (loss.smooth > LR_BACK * loss.start) & (loss.start > 0))


def _burst(record: Record, loss: LossView) -> Mask:
    """The loss stands at a multiple of all it was twenty steps before, and of where it began, and stays there."""
    values = record.loss
    before = lagged(np.fmax.accumulate(np.abs(values)), LR_BURST_ROWS)
    before[:LR_BURST_ROWS] = 0.0
    high = values > LR_EXPLODED * np.fmax(max(loss.start, float(values[0])), before)
    falls = values < LR_FALLS * trailing_max(values, LR_BURST_LASTS // 2)
    return np.asarray(high & ~(falls & (trailing_mean(high.astype(float), LR_BURST_LASTS) < 1.0)))


def _thrown_far(record: Record) -> bool:
    """Whether the first steps of a fresh run moved the weights by a multiple of their own norm."""
    first = record["step"] <= LR_THROWN_STEPS
    if int(record.steps[0]) != 1 or not is_deep(view_of(record)):
        return False
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.sqrt(record["distance"][first] / record["param_sq"][:1])
    if largest(median_over(decay_pull(record)[first], weights_of(record))) > LR_DECAYED:
        return False  # a decay that strong throws weights about by itself
    far = median_over(distance, weights_of(record))
    return bool(np.isfinite(far).any() and largest(far) > LR_THROWN)


def _thrown(record: Record, loss: LossView) -> Mask:
    """The first steps threw the weights far from where they began and the loss up; judged from step 40 on."""
    spike = record.loss[record["step"] <= LR_THROWN_STEPS]
    spiked = np.isfinite(spike).any() and loss.start > 0 and largest(spike) > LR_THROWN_SPIKE * loss.start
    return np.asarray((record["step"] >= 40) & bool(spiked and _thrown_far(record)))


def _recovers(loss: LossView) -> Mask:
    """Where half of the first loss is gone and a fifth of the rest in twenty steps: it makes up for its start, [T]."""
    return np.asarray((loss.smooth < 0.5 * loss.start) & (loss.smooth < LR_RECOVERS * lagged(loss.smooth, 20)))


def _stalled(record: Record, loss: LossView) -> Mask:
    """The first steps threw the weights far away, and since step 40 next to nothing was gained."""
    steps = record["step"]
    settled = np.flatnonzero(steps >= 40)
    if loss.start <= 0 or not len(settled) or not _thrown_far(record):
        return np.zeros(len(record), dtype=bool)
    smooth = trailing_mean(record.loss, 20)
    level = smooth[settled[0]]
    little = level - smooth < LR_STALLED_GAIN * (loss.start - level)
    return np.asarray((steps >= LR_STALLED_STEP) & little & (smooth > 0.3 * loss.start))


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
        ratio = max(ratio, largest(signs.update_ratio[: row + 1]))
        start = 0
    lr = largest(record["lr"][max(start, 0)])
    if kind == "thrown":
        lr = largest(record["lr"][:LR_THROWN_STEPS])  # a warm-up begins at zero
    back = "the start" if start < 10 else f"a checkpoint before step {int(record.steps[start])}"
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
        advice=f"Lower the learning rate from {lr:.3g} to about {two_digits(lr * factor):.2g}, warm it up, and go "
        f"back to {back}: weights that were thrown this far rarely come back.",
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
        remedy=Remedy("lr", two_digits(lr * factor), lr),
    )
