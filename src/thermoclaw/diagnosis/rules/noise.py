"""Gradients that carry next to no signal: noise of the batch, or labels that say nothing."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.rules.batch import one_example
from thermoclaw.diagnosis.rules.pace import CLIP_ROWS
from thermoclaw.diagnosis.selection import tell
from thermoclaw.diagnosis.signals import (
    Mask,
    average,
    held,
    lagged,
    median_over,
    over,
    trailing_max,
    trailing_mean,
    trailing_median,
)
from thermoclaw.diagnosis.view import View, view_of
from thermoclaw.quantities import Array
from thermoclaw.record import Record

WINDOW, SETTLED = 40, 90
ISOTROPIC, ISOTROPIC_BEFORE, ISOTROPIC_ROWS = 0.03, 0.06, 15
FLAT_LEVEL, FLAT_COHERENCE, FLAT_SHARE = 0.8, 0.1, 0.85
FLAT_MOVES, CHANCE = 1.2e-3, 0.97
BLIND_LEVEL, BLIND_COHERENCE, BLIND_SHARE = 0.9, 0.05, 0.97
RESTLESS, CALM = 0.07, 0.06
BETTER_DAYS, NEAR_CHANCE = 0.8, 1.5
STILL_LEVEL, STILL_FALL, STILL_ROWS = 0.65, 0.02, 70
STILL_FIRST, STILL_ERROR = 0.8, 0.05
STILL_NEAR, STILL_ERROR_BELOW = 0.93, 0.02
STEPS_STILL = 0.15  # of the highest rate
AGREES, AGREE_ROWS = 0.3, 60  # on average, successive gradients
AGREE_ERRORS, AGREE_LEAST, AGREE_SHARE = 2.5, 0.025, 0.9  # a little, in much noise
SCATTER, SCATTER_LEAST, SCATTER_SHARE, SCATTER_MEAN, SCATTER_ROWS = 1.25, 0.25, 0.93, 0.1, 60
SCATTER_TYPICAL = 0.6  # of the first loss
THROWN = 3.0  # of the first loss
UNRELATED, PROMISED = 0.05, 8.0  # of what steps promise on their own batch: what they keep on the next; over the gain
RANDOM_SIZE, RANDOM_COSINE, RANDOM_MEAN, RANDOM_SHARE, RANDOM_ROWS = 200, 2.2, 0.02, 0.9, 10
RANDOM_PATH = 0.02  # of the weights, all steps together


def _flat(view: View) -> tuple[Mask, Array] | None:
    """Where a run that has barely begun to learn makes no progress though it moves; and the loss's relative noise."""
    record, loss = view.record, view.loss
    first = average(record.loss[:10]) if loss is not None else 0.0
    if loss is None or first <= 0:
        return None
    late = trailing_mean(record.loss, WINDOW)
    early = lagged(late, WINDOW)
    error = loss.noise * np.sqrt(2.0 / WINDOW)
    flat = np.abs(early - late) < 2.5 * error + 0.01 * first
    at_chance = np.abs(late / view.chance - 1) < 1 - CHANCE
    flat &= (late > FLAT_LEVEL * first) | at_chance
    pace = trailing_mean(view.update_ratio, 20)
    path = np.nancumsum(view.update_ratio)  # small steps tell the same, later
    moving = (pace > FLAT_MOVES) | ((pace > 0.4 * FLAT_MOVES) & (path > FLAT_MOVES * SETTLED))
    moving &= view.lr > 0.3 * np.maximum.accumulate(view.lr)
    moving |= at_chance & (path > FLAT_MOVES * SETTLED) & (view.lr > 0)
    agreement = np.abs(trailing_mean(view.coherence, WINDOW))
    share = trailing_mean(view.noise_share, WINDOW)
    blind = (agreement < FLAT_COHERENCE) & ((share > FLAT_SHARE) | at_chance)
    level = view.chance if np.isfinite(view.chance) or not view.newly_initialised else first
    near = late > CHANCE * level
    if not np.isfinite(view.chance):  # what outputs vary by at the start is gained even where there is nothing to learn
        near |= (late > BLIND_LEVEL * level) & (agreement < BLIND_COHERENCE) & (share > BLIND_SHARE)
    where = flat & moving & blind & near & (np.arange(len(record)) >= SETTLED)
    if not view.is_unit_size:
        where &= ~view.is_clipped(CLIP_ROWS)  # then it is the bound that says how far it goes
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(where), loss.noise / np.abs(late)


def rests_high(view: View) -> Mask:
    """Where the loss of a new model, still high, has not moved for half of the run at full steps, [T].

    Thirds of that half are compared: means of many steps tell a fall of one percent of the first loss from none. A
    noisy loss will do near its first level.
    """
    record, loss, rows = view.record, view.loss, np.arange(len(view.record))
    first = average(record.loss[:10]) if loss is not None else 0.0
    if loss is None or first <= 0 or not view.newly_initialised:
        return np.zeros(len(rows), dtype=bool)
    rows = rows[SETTLED:]
    back = np.maximum(STILL_ROWS, (rows + 1) // 2)
    third, start = back // 3, rows + 1 - back
    total = np.concatenate([[0.0], np.cumsum(record.loss)])  # what is not finite stays so
    early, late = (total[start + third] - total[start]) / third, (total[rows + 1] - total[rows + 1 - third]) / third
    noise = loss.noise[SETTLED:]
    error, moved = noise * np.sqrt(2.0 / third), np.abs(early - late)
    rests = (moved + 2.0 * error < STILL_FALL * first) & (late > STILL_LEVEL * first)
    near = late > STILL_NEAR * first  # what lies far below was gained once, and may be again
    calm = (error < np.where(near, STILL_ERROR, STILL_ERROR_BELOW) * first) & (noise < SCATTER_LEAST * late)
    rests |= (moved < 2.0 * error) & calm & (late > STILL_FIRST * first)
    low = np.cumsum((view.lr <= 0.3 * np.maximum.accumulate(view.lr)) | view.rate_rises)  # in a warm-up many rest
    rests &= (low[rows] == low[start]) & (np.nancumsum(view.update_ratio)[SETTLED:] > FLAT_MOVES * SETTLED)
    return np.concatenate([np.zeros(SETTLED, dtype=bool), rests])[: len(record)]


def gradient_noise(record: Record) -> Finding | None:
    """The batch is too small, or the gradient too noisy, for the signal in it."""
    noisy, alone = _noisy(record), one_example(view_of(record))
    return min((f for f in (noisy, alone) if f is not None), key=lambda f: (f.severity, f.raised_step), default=None)


def _noisy(record: Record) -> Finding | None:
    view = view_of(record)
    found = _flat(view)
    # A restless loss may chase targets that move with the model, as in Q-learning, or be a sum that passes ln C.
    known = np.isfinite(view.chance) and average(view.record.loss[:10]) < NEAR_CHANCE * view.chance
    span = held(found[0] & (found[1] > RESTLESS) & ~_agree(view), 8) if found is not None and known else None
    random = _random(view)
    drowned = random or _drowned(view)
    if drowned is not None:
        return _noise(view, drowned, sudden=True, random=random is not None)
    scattered = _scattered(view)
    if scattered is not None and (span is None or scattered[1] < span[1]):
        return _noise(view, scattered, sudden=False, scattered=True)
    return _noise(view, span, sudden=False) if span is not None else None


def _scattered(view: View) -> tuple[int, int] | None:
    """The loss of one batch scatters by more than was ever gained, and no step does anything for the next batch.

    ⟨g_t, Δ_{t−1}⟩ over −⟨g_t, Δ_t⟩ is next to 0 where batches have nothing in common that steps follow, far below 0
    where momentum carries what they share, and as far above where steps are too long for the curvature. A trained
    model gains little, however its batches scatter.
    """
    record, loss = view.record, view.loss
    first = average(record.loss[:10]) if loss is not None else 0.0
    if loss is None or first <= 0 or not view.matrices_are_new:
        return None
    late = trailing_mean(record.loss, WINDOW)
    gain = first - late
    kept = over(trailing_mean(view.overshoot, SCATTER_ROWS), trailing_mean(view.work, SCATTER_ROWS))
    hit = (loss.noise > SCATTER * gain) & (gain > -loss.noise) & (loss.noise > SCATTER_LEAST * np.abs(late))
    hit &= ~(trailing_median(record.loss, WINDOW) < SCATTER_TYPICAL * first)  # a few hard batches make the mean
    hit &= (trailing_mean(view.noise_share, SCATTER_ROWS) > SCATTER_SHARE) & (np.abs(kept) < UNRELATED)
    hit &= (np.abs(trailing_mean(view.coherence, SCATTER_ROWS)) < SCATTER_MEAN) & ~_agree(view)
    hit &= (np.nancumsum(view.work) > PROMISED * gain) & _steps_still(view) & (np.arange(len(hit)) >= SETTLED)
    return held(hit, 10)


def _drowned(view: View) -> tuple[int, int] | None:
    """Successive gradients that had something in common and suddenly have nothing at all, in no layer."""
    size = np.sqrt(trailing_mean(view.coherence**2, ISOTROPIC_ROWS))
    before = lagged(trailing_mean(size, 20), ISOTROPIC_ROWS + 5)
    hit = (size < ISOTROPIC) & (before > ISOTROPIC_BEFORE) & (size < 0.3 * before) & _steps_still(view)
    hit &= np.arange(len(size)) > ISOTROPIC_ROWS + 25
    share = trailing_mean(view.noise_share, ISOTROPIC_ROWS)
    if view.loss is not None:  # weights that were thrown far have gradients that share nothing
        hit &= ~(trailing_mean(view.record.loss, ISOTROPIC_ROWS) > THROWN * abs(view.loss.start))
    span = held(hit & (share > 0.6), 2)
    return None if span is None else (max(span[0] - ISOTROPIC_ROWS, 0), span[1])


def _random(view: View) -> tuple[int, int] | None:
    """Successive gradients have the cosines of independent random directions: their mean square is 1/n.

    Those of a loss lie in few directions, whatever the batches, and their cosines are several times as large; not so
    in deep networks as they were drawn, whose gradients are as good as white noise (Balduzzi et al. 2017).
    """
    record = view.record
    dense = ~view.tables & view.big & view.trained & (view.sizes >= RANDOM_SIZE)
    if dense.sum() < 2 or view.loss is None:
        return None
    hit = _steps_still(view) & (np.abs(view.loss.smooth) > 0.05 * abs(view.loss.start))
    hit &= trailing_mean(view.noise_share, WINDOW) > RANDOM_SHARE
    hit &= (np.abs(trailing_mean(view.coherence, WINDOW)) < RANDOM_MEAN) & (np.arange(len(hit)) > WINDOW)
    hit &= np.nancumsum(view.update_ratio) > RANDOM_PATH
    if not hit.any():
        return None
    whole = (record["grad_sq"] > 0) & np.isfinite(record["coherence"])
    square = np.where(whole, record["coherence"] ** 2 * view.sizes, np.inf)  # a gradient that is zero has no direction
    size = np.sqrt(median_over(_window_mean(square, WINDOW), dense))
    span = held(hit & (size < RANDOM_COSINE), RANDOM_ROWS)
    return None if span is None else (max(span[0] - WINDOW, 0), span[1])


def _agree(view: View) -> Mask:
    """Where successive gradients agree on average, by more than chance or by much: noise hides something, [T].

    Where they are not noisy, small batches agree on what all examples share, a bias that swings, and that says nothing.
    """
    mean = trailing_mean(view.coherence, AGREE_ROWS)
    error = np.sqrt(np.maximum(trailing_mean(view.coherence**2, AGREE_ROWS) - mean**2, 0.0) / AGREE_ROWS)
    little = (mean > np.maximum(AGREE_ERRORS * error, AGREE_LEAST)) & (
        trailing_mean(view.noise_share, AGREE_ROWS) > AGREE_SHARE
    )
    return np.asarray((mean > AGREES) | (trailing_max(little.astype(float), AGREE_ROWS) > 0))


def _steps_still(view: View) -> Mask:
    """Where the rate is not far below its highest: at the end of a schedule nothing but noise may be left, [T]."""
    return np.asarray((view.update > 0) & (view.lr > STEPS_STILL * np.maximum.accumulate(view.lr)))


def _window_mean(values: Array, window: int) -> Array:
    """Mean over the last `window` rows, infinite where one of them is, [T, L]."""
    good = np.isfinite(values)
    return np.where(trailing_mean(good.astype(float), window) == 1.0, trailing_mean(values, window), np.inf)


def _noise(
    view: View, span: tuple[int, int], *, sudden: bool, random: bool = False, scattered: bool = False
) -> Finding:
    record, row = view.record, span[1]
    share = float(trailing_mean(view.noise_share, ISOTROPIC_ROWS)[row])
    coherence = float(trailing_mean(view.coherence, ISOTROPIC_ROWS)[row])
    size = float(np.sqrt(trailing_mean(view.coherence**2, ISOTROPIC_ROWS)[row]))
    since = (
        f"Since step {int(record.steps[span[0]])} successive gradients share nothing in any layer (cosine "
        f"{coherence:.3f}, and never beyond ± {2 * size:.2f})"
        if sudden
        else f"Over {WINDOW} steps the loss made no progress beyond its own noise, and successive gradients share "
        f"next to nothing (cosine {coherence:.3f})"
    )
    if scattered and view.loss is not None:
        since = (
            f"After {int(record.steps[row])} steps the loss of a batch scatters by {view.loss.noise[row]:.3g} around "
            f"{trailing_mean(record.loss, WINDOW)[row]:.4g}, more than all that was gained, and what a step does for "
            f"its own batch it does not for the next (gradients' cosine {coherence:.3f})"
        )
    return tell(
        record,
        "gradient_noise",
        "HIGH" if sudden else "LOW",  # batches as small as they should be look the same for long
        span,
        title="the gradient is mostly noise",
        seen=f"{since}; {share:.0%} of the squared gradient is noise.",
        meaning="Steps diffuse instead of descending."
        + (
            " Noise was added to the gradient, or what it is computed from is no longer related to the loss."
            if sudden
            else ""
        ),
        advice="Look at what touches gradients since that step: compression, an all-reduce, injected noise, sampling."
        if sudden
        else "Use a batch at least four times as large (or accumulate gradients), or lower the learning rate in "
        "proportion.",
        source="McCandlish et al. 2018 (arXiv 1812.06162); docs: theory, the drift-free noise estimate",
        evidence={"noise_share": share, "coherence": coherence, "coherence_size": size, "random": float(random)},
    )


def label_noise(record: Record) -> Finding | None:
    """The loss stays near its first level, or soon reaches another and stays there: inputs do not tell the targets."""
    view = view_of(record)
    if view.loss is None:
        return None
    found, late = _flat(view), trailing_mean(record.loss, WINDOW)
    learned = view.loss.best < BETTER_DAYS * late  # once: then it was there to be learned
    nothing = ~learned & ~_agree(view)
    flat = held(found[0] & (found[1] < CALM) & nothing, 8) if found is not None else None
    rests = held(rests_high(view) & nothing, 8)
    span = min((s for s in (flat, rests) if s is not None), key=lambda s: s[1], default=None)
    if span is None:
        return None
    row = span[1]
    level, share = float(late[row]), float(trailing_mean(view.noise_share, WINDOW)[row])
    seen = (
        f"After {int(record.steps[row])} steps of ordinary size the loss stands at {level:.4g}, "
        f"{level / view.loss.start:.0%} of the first one, and does not fall"
    )
    seen += (
        f"; {share:.0%} of the squared gradient is noise and successive gradients do not agree (cosine "
        f"{trailing_mean(view.coherence, WINDOW)[row]:.3f})."
        if span is flat
        else f": over the last {max(STILL_ROWS, (row + 1) // 2)} steps by less than {STILL_FALL:.1%} of the first loss."
    )
    return tell(
        record,
        "label_noise",
        "MEDIUM",
        (0, row),
        title="nothing is learned but the mean of the targets",
        seen=seen,
        meaning="Either the inputs tell nothing more about the targets, or the model has not begun to use them: one "
        "that fills in masked tokens can rest at their frequencies for thousands of steps.",
        advice="Check that inputs and targets still belong together (shuffled apart, off by one, wrong column, wrong "
        "mapping); train on ten examples: a sound set-up learns them by heart. If it does, go on, or try another rate.",
        source="docs: diagnosis, label noise; Zhang et al. 2017 (arXiv 1611.03530) for training on random labels",
        evidence={"loss_share": level / view.loss.start, "noise_share": share},
    )
