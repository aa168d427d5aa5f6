"""Steps that go down the gradient they are given, while the loss that is shown goes up by what they should gain."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.selection import tell
from thermoclaw.diagnosis.signals import Mask, average, held, lagged, over, trailing_max, trailing_mean, trailing_min
from thermoclaw.diagnosis.view import View, view_of
from thermoclaw.quantities import Array
from thermoclaw.record import Record

LEAST, MOST = 0.6, 1.7  # of what the slopes along the steps foretell, with the wrong sign
UPHILL, NOISE, ABOVE, FELL = 0.1, 3.0, 0.02, 0.1
FAST_ROSE, CLIPPED_ROSE, CLIPPED_FAR, SURE_ROSE = 0.3, 0.2, 5.0, 1.0  # of the first loss
WINDOWS = ((4, 1), (20, 5), (60, 20))  # rows from one level to the next, and rows that make a level
CLIPPED_WINDOW, CLIPPED_ROWS, ROWS, LINE, LINE_FAR = 20, 100, 3, 0.9, 0.8
NEGATED_NEAR, NEGATED_ROWS, TIED_LEAST = 0.3, 3, 16
AWAY, AWAY_GROWS, AWAY_ROWS = 20.0, 1.5, 20  # times the first loss, and in how many rows it grows by which factor
AWAY_FELL = 0.3  # of the first loss, before
BURST, BURST_GROWS, BURST_ROWS, BURST_FALLS, BURST_FIRST = 5.0, 1.4, 3, 10, 5


def wrong_sign(record: Record) -> Finding | None:
    """Since the start the loss has risen by what −Σ⟨g_t, Δ_{t−1}⟩, the slopes met by the steps, say it should fall."""
    view = view_of(record)
    if view.loss is None:
        return None
    negated = _negated(view)
    if negated is not None:
        return negated
    if not record.loss[0] > 0:
        return None
    spans = [(span, window) for window in WINDOWS if (span := held(_rises_as_foretold(record, view, *window), ROWS))]
    away = held(_runs_away(record, view), ROWS)
    spans += [(away, WINDOWS[1])] if away else []
    burst = held(_bursts(record, view), 1)
    spans += [(burst, WINDOWS[0])] if burst else []
    if not spans:
        return None
    (_, row), (back, mean) = min(spans, key=lambda found: found[0][1])
    level, foretold = _levels(record, view, back, mean)
    rose, slopes = level[row] - level[mean - 1], foretold[row] - foretold[mean - 1]
    why = ""
    if rose > -MOST * slopes:
        cause = "gradients were clipped" if view.is_clipped(back)[row] else "slopes are of another size than the loss"
        why = f" ({cause}, so only the sign counts)"
    maximizes = any(group.get("maximize") for group in view.groups)
    return tell(
        record,
        "wrong_sign",
        "HIGH" if rose > SURE_ROSE * record.loss[0] else "MEDIUM",
        (0, row),
        title="the steps raise the loss that they should lower",
        seen=f"The loss rose from {level[mean - 1]:.4g} to {level[row]:.4g}, by {rose:.3g}, while the gradients met "
        f"along the steps say that it should have changed by {slopes:.3g}: {rose / slopes:.2f} times as much, where 1 "
        f"is a loss that is being minimized{why}.",
        meaning="The optimizer does what it is told, and it is told the opposite: somewhere a sign is turned between "
        "the loss that is shown and the gradient that is used.",
        advice=(
            "Remove maximize=True from the optimizer"
            if maximizes
            else "Look for a minus too many or too few before backward(), in the loss itself, and for maximize=True"
        )
        + ". If this number is meant to grow, as a reward is, give observer.step its negative.",
        source="first-order expansion of the loss; docs: diagnosis",
        evidence={
            "rise_over_slopes": float(rose / slopes),
            "loss": float(level[row]),
            "loss_at_start": float(level[mean - 1]),
        },
    )


def _negated(view: View) -> Finding | None:
    """A fresh run's loss begins at −ln C, where a cross-entropy over C classes begins at ln C, and falls."""
    first = average(view.record.loss[:NEGATED_ROWS])
    if not (view.fresh and np.isfinite(view.chance) and abs(first + view.chance) < NEGATED_NEAR * view.chance):
        return None
    falls = trailing_mean(view.record.loss, NEGATED_ROWS) < first
    span = held(falls & (np.arange(len(falls)) >= NEGATED_ROWS), ROWS)
    if span is None:
        return None
    return tell(
        view.record,
        "wrong_sign",
        "HIGH",
        (0, span[1]),
        title="the loss is the negative of a cross-entropy",
        seen=f"The loss began at {first:.4g}, where a cross-entropy over {np.exp(view.chance):.0f} classes begins at "
        f"ln {np.exp(view.chance):.0f} = {view.chance:.4g}, and falls from there. No cross-entropy is below zero.",
        meaning="What is minimized is the negative of the loss: the model learns to be wrong, without bound.",
        advice="Remove the minus before the loss; where log-likelihoods are summed by hand, add one.",
        source="definition of the cross-entropy",
        evidence={"loss_at_start": first, "chance": view.chance},
    )


def _levels(record: Record, view: View, back: int, mean: int) -> tuple[Array, Array]:
    """The loss, averaged over some rows, and what the slopes along the steps foretell of it, [T] each."""
    slope = view.overshoot
    if back < 10:  # at few steps their bending counts: the mean of both ends
        slope = (slope - np.concatenate([[np.nan], view.work[:-1]])) / 2
    return trailing_mean(record.loss, mean), trailing_mean(np.nancumsum(slope), mean)


def _rises_as_foretold(record: Record, view: View, back: int, mean: int) -> Mask:
    """Where the loss has risen so in each of the last windows, and as a whole, [T]."""
    loss, (level, foretold) = record.loss, _levels(record, view, back, mean)
    row = np.arange(len(loss))
    if len(row) < mean:
        return np.zeros(len(row), dtype=bool)
    first, since = level[row >= mean - 1][:1], foretold - foretold[row >= mean - 1][:1]
    noise = np.sqrt(trailing_mean(np.diff(loss, prepend=loss[0]) ** 2, back) / mean) * (mean > 1)
    rise, gain = level - lagged(level, back), foretold - lagged(foretold, back)
    least = np.where(row >= back, noise, np.inf)
    stays = np.fmin.accumulate(np.where(row >= mean - 1, level, np.inf)) + NOISE * np.fmin.accumulate(least)
    up = (gain < 0) & (rise > -LEAST * gain) & (rise > NOISE * noise) & (stays > (1 - FELL) * first)
    up &= trailing_mean((view.overshoot > 0).astype(float), back) < UPHILL
    rose, since = (np.where(row >= mean - 1, values, 0.0) for values in (level - first, since))
    exact = (rise < -MOST * gain) & (level > (1 + ABOVE) * first) & _is_line(rose, since, LEAST, MOST, LINE)
    if mean == 1:
        exact &= rise > FAST_ROSE * first
    clipped = view.is_clipped(back) & (level > (1 + CLIPPED_ROSE) * first) & (back == CLIPPED_WINDOW)
    # targets that move can make a loss rise so, too, but not as far in one line
    far = (level > CLIPPED_FAR * first) & (row < CLIPPED_ROWS) & _is_line(rose, since, LEAST, np.inf, LINE_FAR)
    clipped &= _is_chance(view, first) | far
    now = up & (exact | clipped) & (row >= back + mean - 1)
    return now & np.concatenate([np.zeros(back, dtype=bool), now])[: len(now)]


def _runs_away(record: Record, view: View) -> Mask:
    """Where the loss has grown many times over though every batch so far falls along the step that the last took, [T].

    Whatever it should have changed by: behind a straight-through estimator slopes have other sizes than the loss. With
    steps that are too long, batches rise along them; and what turned later had learned before.
    """
    rows, level = np.arange(len(record)), trailing_min(record.loss, WINDOWS[1][1])  # an odd batch is one row
    falls = np.nancumsum(view.overshoot < 0) > (1.0 - UPHILL) * rows
    grows = level > AWAY_GROWS * lagged(level, AWAY_ROWS)
    first = np.abs(record.loss[: WINDOWS[1][1]])
    least = (1.0 - AWAY_FELL) * min(float(np.median(first)), float(first[0]))  # it may explode within them
    never_fell = np.fmin.accumulate(trailing_mean(record.loss, WINDOWS[1][1])) > least
    away = grows & (level > AWAY * first.max()) & (rows >= AWAY_ROWS)
    return np.asarray(falls & never_fell & away)


def _bursts(record: Record, view: View) -> Mask:
    """Where a loss that never fell explodes within a few steps, and batches fell along the ten steps before, [T].

    Long steps make batches rise along them before the loss is lost.
    """
    loss = record.loss
    first = average(loss[:BURST_FIRST])
    rises = trailing_min(np.where(loss > BURST_GROWS * lagged(loss, 1), 1.0, 0.0), BURST_ROWS) > 0
    falls = trailing_max(np.where(view.overshoot < 0, 0.0, 1.0), BURST_FALLS) == 0
    never_fell = np.fmin.accumulate(loss) > (1.0 - AWAY_FELL) * first
    rows = np.arange(len(loss)) >= BURST_FALLS + BURST_FIRST
    return np.asarray(rises & falls & never_fell & rows & (loss > BURST * first))


def _is_chance(view: View, first: Array) -> bool:
    """Whether a loss begins at ln C of a cross-entropy, known as such or by an embedding whose weights are tied."""
    shapes = view.record.meta.get("layer_shapes") or {}
    rows = [
        shapes[layer.name][0] for layer in view.record.layers if layer.ltype == "embedding" and layer.name in shapes
    ]
    chances = [view.chance] if np.isfinite(view.chance) else [float(np.log(n)) for n in rows if n > TIED_LEAST]
    return any(bool((np.abs(first - chance) < NEGATED_NEAR * chance).any()) for chance in chances)


def _is_line(rose: Array, foretold: Array, least: float, most: float, straight: float) -> Mask:
    """Where all rows so far lie on a line through the start, of a slope between −least and −most, [T]."""
    xx, yy, xy = np.cumsum(foretold**2), np.cumsum(rose**2), np.cumsum(foretold * rose)
    slope = over(xy, xx)
    return np.asarray((slope < -least) & (slope > -most) & (xy**2 > straight * xx * yy))
