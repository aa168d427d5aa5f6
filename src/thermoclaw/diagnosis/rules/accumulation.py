"""Gradients that nobody clears."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.rules.pace import CLIP_ROWS
from thermoclaw.diagnosis.selection import tell
from thermoclaw.diagnosis.signals import Mask, held, lagged, middle, trailing_mean
from thermoclaw.diagnosis.view import View, view_of
from thermoclaw.quantities import Array
from thermoclaw.record import Record

PILED_COHERENCE, PILED_GROWTH, PILED_ROWS, PILED_WITHIN = 0.8, 0.8, 8, 16
SUM_ROWS, SUM_NOISE, SUM_COHERENCE, SUM_BATCHES, SUM_MOVES, SUM_KEEPS, SUM_LASTS, SUM_UNTIL = (
    15,
    0.02,
    0.85,
    0.008,
    1e-3,
    0.8,
    20,
    80,
)
SUM_PAYS, SUM_GROWS, SUM_EARLY = 0.4, 1.5, slice(2, 12)
KEPT_GROWS, KEPT_COHERENCE, KEPT_NOISE = 0.6, 0.65, 0.06  # where each gradient was added to the one before


def gradient_accumulation_bug(record: Record) -> Finding | None:
    """Gradients of earlier steps are still in the sum: it grows step by step and hardly turns."""
    view = view_of(record)
    if not view.fresh or len(record) < 12 or record.meta.get("gradients_are_new"):
        return None
    first = middle(view.grad[:2]) if np.isfinite(view.grad[:2]).any() else 0.0
    if not first > 0:
        return None
    growth = view.grad / first
    step = record["step"]
    piling = (view.coherence > PILED_COHERENCE) & (growth > PILED_GROWTH * np.sqrt(step)) & (step <= PILED_WITHIN)
    span = held(piling, PILED_ROWS) or _steady_sum(record, growth)
    if span is None:
        return None
    row = span[1]
    grown = (
        f"grew to {growth[row]:.1f} times the first one's norm"
        if growth[row] > 1.5
        else "is clipped at one norm"
        if view.is_clipped(CLIP_ROWS)[row]
        else "was never a new one"
    )
    return tell(
        record,
        "gradient_accumulation_bug",
        "HIGH",
        (0, row),
        title="gradients pile up over steps",
        seen=f"By step {int(record.steps[row])} the gradient {grown} and has a cosine of "
        f"{view.coherence[row]:.3f} with the step before: it is a running sum.",
        meaning="Each step repeats all earlier gradients: the steps overshoot, and the loss swings or stands.",
        advice="Call optimizer.zero_grad() once an optimizer step, before backward(); with accumulation, after the "
        "optimizer has stepped.",
        source="the cosine of successive partial sums tends to 1 as 1 − O(1/t²); PyTorch adds gradients up by design",
        evidence={"coherence": float(view.coherence[row]), "gradient_growth": float(growth[row])},
    )


def _steady_sum(record: Record, growth: Array) -> tuple[int, int] | None:
    """Gradients that hardly turn and show no batch noise although the losses of the batches differ."""
    view = view_of(record)
    if view.loss is None:
        return None
    noise = trailing_mean(view.noise_share, SUM_ROWS)
    turning = trailing_mean(view.coherence, SUM_ROWS)
    bend = np.abs(np.diff(record.loss, 2, prepend=[np.nan, np.nan]))  # a trend has none, batches that differ have
    with np.errstate(divide="ignore", invalid="ignore"):
        batches_differ = (
            0.5 * trailing_mean(bend, SUM_ROWS) / np.maximum(np.abs(view.loss.smooth), 0.1 * abs(view.loss.start))
            > SUM_BATCHES
        )
    moving = trailing_mean(view.update_ratio, SUM_ROWS) > SUM_MOVES
    kept = record.meta.get("gradients_are_new") is False  # then less proof will do
    hit = noise < (KEPT_NOISE if kept else SUM_NOISE)
    hit &= (turning > (KEPT_COHERENCE if kept else SUM_COHERENCE)) & batches_differ & moving
    grows = (growth > SUM_GROWS) & (middle(growth[SUM_EARLY]) > 1.0)  # a sum is longer than what it began with
    hit &= grows | ((growth > SUM_KEEPS) & view.is_clipped(CLIP_ROWS)) | ((growth > KEPT_GROWS) & kept)
    hit &= ~_pays(view)
    hit[:SUM_ROWS] = False
    hit &= record["step"] < SUM_UNTIL  # a sum that was never cleared shows early
    return held(hit, SUM_LASTS)


def _pays(view: View) -> Mask:
    """Whether the loss fell by about as much as steps and gradients promised; a sum of them promises many times it.

    A step takes −½⟨g_t + g_{t+1}, Δ_t⟩ off the loss, to second order.
    """
    assert view.loss is not None
    promised = 0.5 * (np.concatenate([[0.0], np.nan_to_num(view.work[:-1])]) - np.nan_to_num(view.overshoot))
    over_rows = trailing_mean(promised, SUM_ROWS) * SUM_ROWS
    short = trailing_mean(view.record.loss, 4)
    return np.asarray(lagged(short, SUM_ROWS) - short > SUM_PAYS * over_rows)
