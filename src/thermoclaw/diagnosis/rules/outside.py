"""What the optimizer cannot have done: weights that something else writes."""

from __future__ import annotations

import numpy as np

from thermoclaw.diagnosis.finding import Finding, describe_layers
from thermoclaw.diagnosis.rules.precision import half_ulps
from thermoclaw.diagnosis.selection import chosen, tell
from thermoclaw.diagnosis.signals import Mask, average, held, lagged, median_over, over, step_gaps, trailing_mean
from thermoclaw.diagnosis.view import View, view_of
from thermoclaw.quantities import Array
from thermoclaw.record import Record

BEYOND, STEADY_ROWS, TIMES, NOTHING_GAINED = 1.3, 10, 3, 0.9
SHRINK, SHRINK_RADIAL, SHRINK_ROWS, SHRINK_ASKED = 2e-3, 0.85, 12, 0.15
BLURRED, FIRST_NEAR = 1e-4, 0.1  # shorter steps are blurred by rounding
UNDONE, UNDONE_COHERENCE, UNDONE_FAR, UNDONE_ROWS = 0.4, 0.15, 0.15, 50
JUMP, JUMP_MEMORY = 5.0, 20


def external_update(record: Record) -> Finding | None:
    """Weights change by more than the optimizer can change them, or shrink by themselves without decay."""
    view = view_of(record)
    if len(record) < STEADY_ROWS + 4:
        return None
    excess = _excess(view)
    gains = np.isfinite(view.optional("attention_gain")).any(axis=0)  # whoever sharpens attention is told so
    found = _at_every_step(view, np.where(gains, 0.0, excess)) or _shrinking(view)
    return found or _again_and_again(view, excess) or _undone(view)


def _longest(view: View) -> Array | None:
    """The longest step that Adam or SGD can make of the recorded gradients, [T, L]; None for another optimizer.

    SGD, from the step before: ‖Δ_t‖ ≤ η_t((1 + β)‖g_t‖ + β(‖Δ_{t−1}‖/η_{t−1} + ‖g_{t−1}‖)) with the decay in g.
    """
    record = view.record
    weights = np.maximum(record["param_norm"], lagged(record["param_norm"], 1))  # decay reads them before the step
    lr, beta, pull = record["lr"], record["momentum"], np.abs(record["weight_decay"]) * weights
    if record.optimizer in ("Adam", "AdamW"):
        worst = _worst_history(view)
        return None if worst is None else np.asarray(lr * (np.sqrt(view.sizes) * worst + pull))
    if record.optimizer != "SGD":
        return None
    gradient = np.sqrt(record["grad_sq"]) + pull
    with np.errstate(divide="ignore", invalid="ignore"):
        before = np.sqrt(record["update_sq"]) / lr + gradient
    before = np.concatenate([np.full_like(before[:1], np.nan), before[:-1]])
    before[step_gaps(record) > 1] = np.nan
    return np.asarray(lr * ((1.0 + beta) * gradient + np.where(beta > 0, beta * before, 0.0)))


def _worst_history(view: View) -> Array | None:
    """|m̂|/√v̂ after t steps, for the gradients that make it largest, [T, L]; None where β is not known.

    By Cauchy-Schwarz (1 − β₁)/√(1 − β₂) · √(Σ_{k<t} (β₁²/β₂)^k) · √(1 − β₂^t)/(1 − β₁^t): 1 at the first step.
    """
    second = [float(group.get("beta2") or 0.0) for group in view.groups]
    if not all(0 < beta < 1 for beta in second):
        return None
    beta1, beta2 = np.clip(view.record["momentum"], 0.0, 0.9999), max(second)
    if (beta1 == beta1[:1, :1]).all():
        beta1 = beta1[:, :1]  # one for all layers, as usual
    quotient: Array = beta1**2 / beta2
    if (quotient >= 1).any():
        return None
    t: Array = view.record["step"][:, None] if _state_is_new(view) else np.full((len(view.record), 1), np.inf)
    history = np.sqrt((1.0 - quotient**t) / (1.0 - quotient))
    return np.asarray((1.0 - beta1) / np.sqrt(1.0 - beta2) * history * np.sqrt(1.0 - beta2**t) / (1.0 - beta1**t))


def _state_is_new(view: View) -> bool:
    """Whether Adam's first recorded step is its very first: of the learning rate's size where there is a gradient."""
    zeros = view.optional("grad_zeros")[0]
    if not view.fresh or not np.isfinite(zeros[view.big]).any():
        return False
    with np.errstate(invalid="ignore"):
        size = (view.unit_update[0] / np.sqrt(np.clip(1.0 - zeros, 1e-3, 1.0)))[view.big]
    size = size[np.isfinite(size)]  # none is where a warm-up begins at a rate of zero
    return bool(len(size) and np.abs(np.median(size) - 1.0) < FIRST_NEAR)


def _excess(view: View) -> Array:
    """Steps over the longest that the optimizer can make, [T, L]; 0 where nobody can tell."""
    longest = _longest(view)
    if longest is None:
        return np.zeros(view.record["update_sq"].shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = np.sqrt(view.record["update_sq"]) / longest
    excess[:1] = 0.0  # weights may have been loaded since the observer was made
    sure = np.isfinite(excess) & (view.record["update_ratio"] > BLURRED) & (half_ulps(view) == 0)
    return np.where(sure & view.trained & view.big & _at_one_rate(view), excess, 0.0)


def _at_one_rate(view: View) -> Mask:
    """Layers whose parameters are all in groups of one learning rate, [L]; of others a mean is recorded.

    Groups tell today's rates only: where these are zero, at a schedule's end, several groups may have had several.
    """
    groups = view.record.meta.get("layer_groups") or {}
    rates = [[view.groups[g].get("lr") for g in groups.get(layer.name, ())] for layer in view.record.layers]
    return np.array([len(of) <= 1 or (len(set(of)) == 1 and bool(of[0])) for of in rates], dtype=bool)


def _at_every_step(view: View, excess: Array) -> Finding | None:
    """A layer that is written at every step."""
    spans = [held(excess[:, i] > BEYOND, STEADY_ROWS) for i in np.flatnonzero((excess > BEYOND).any(axis=0))]
    known = sorted((span[1], span[0]) for span in spans if span is not None and not _answers_a_jump(view, span[0]))
    if not known:
        return None
    row, start = known[0]
    mask = np.array((excess[row - STEADY_ROWS + 1 : row + 1] > BEYOND).all(axis=0))
    names, times = _names(view, mask), float(np.median(excess[row][mask]))
    return tell(
        view.record,
        "external_update",
        "HIGH",
        (start, row),
        mask=mask,
        title="something other than the optimizer changes the weights",
        seen=f"{names} changed at every one of {STEADY_ROWS} steps by more than {view.record.optimizer} can change "
        f"them: the last step was {times:.1f} times the longest one that its gradients, learning rate and state allow.",
        meaning="Code outside optimizer.step() writes to these weights.",
        advice="Look for what touches parameters between steps: scaling, clamping, copying, averaging, a second "
        "optimizer on the same parameters.",
        source="the bound on a step, docs: theory",
        evidence={"over_longest_step": times, "layers": float(mask.sum())},
    )


def _answers_a_jump(view: View, row: int) -> bool:
    """Whether the gradient jumped right then: the optimizer answers, with a state that is older than the record."""
    before = view.grad[max(row - JUMP_MEMORY, 0) : row]
    return len(before) > 0 and bool(view.grad[row : row + 2].max() > JUMP * before.max())


def _again_and_again(view: View, excess: Array) -> Finding | None:
    """Most weights jump at some steps, more than twice, in a run that gets nowhere."""
    if view.loss is None:
        return None
    weight = np.where(view.big, view.sizes, 0.0)
    jumps = ((excess > BEYOND) * weight).sum(axis=1) > 0.5 * weight.sum()
    lost = trailing_mean(view.record.loss, 20) > NOTHING_GAINED * average(view.record.loss[:10])
    hit = jumps & lost & (np.cumsum(jumps) >= TIMES) & (np.arange(len(jumps)) >= 20)
    span = held(hit, 1)
    if span is None:
        return None
    row = span[1]
    rows = np.flatnonzero(jumps[: row + 1])
    mask = excess[row] > BEYOND
    steps = ", ".join(str(int(s)) for s in view.record.steps[rows[-3:]])
    times = float(np.median(excess[row][mask]))
    return tell(
        view.record,
        "external_update",
        "MEDIUM",
        (int(rows[0]), row),
        mask=mask,
        title="something other than the optimizer changes the weights",
        seen=f"Most weights jumped {len(rows)} times (at the end at steps {steps}), each time by more than "
        f"{view.record.optimizer} can change them ({times:.1f} times the longest step), and the loss is where it "
        "began.",
        meaning="Code outside optimizer.step() writes to the weights and takes back what was learned.",
        advice="Look for what is called every so many steps: load_state_dict(), a copy from an averaged or a target "
        "model, a reset of layers.",
        source="the bound on a step, docs: theory",
        evidence={"jumps": float(len(rows)), "over_longest_step": times},
    )


def _undone(view: View) -> Finding | None:
    """Steps that agree with one another and lead nowhere: less far than steps in random directions would."""
    record = view.record
    if not view.fresh or view.loss is None:
        return None
    spread = median_over(over(record["distance"], np.cumsum(np.nan_to_num(record["update_sq"]), axis=0)), view.big)
    far = median_over(np.sqrt(over(record["distance"], record["param_sq"])), view.big)
    hit = (spread < UNDONE) & (trailing_mean(view.coherence, 30) > UNDONE_COHERENCE) & (far < UNDONE_FAR)
    hit &= trailing_mean(record.loss, 20) > NOTHING_GAINED * average(record.loss[:10])
    hit &= np.arange(len(record)) >= UNDONE_ROWS
    span = held(hit, STEADY_ROWS)
    if span is None:
        return None
    row = span[1]
    return tell(
        record,
        "external_update",
        "MEDIUM",
        (0, row),
        title="something takes the steps back",
        seen=f"After {row + 1} steps, each of {float(view.update_ratio[row]):.2%} of a typical layer, the weights are "
        f"{float(far[row]):.2%} from where they began: {float(np.sqrt(spread[row])):.2g} of the way that steps in "
        f"random directions go, though successive gradients agree (cosine "
        f"{float(trailing_mean(view.coherence, 30)[row]):.2f}). The loss is where it was.",
        meaning="The optimizer steps, and the weights do not stay where it puts them.",
        advice="Look for what writes older weights back: an average (EMA) that is copied into the model that trains, "
        "load_state_dict() in the loop, a copy from another process.",
        source="a random walk's mean squared displacement, Σ‖Δ‖²",
        evidence={"distance_over_walk": float(spread[row]), "distance_ratio": float(far[row])},
    )


def _shrinking(view: View) -> Finding | None:
    """Norms fall by the same factor at every step, along the weights, where neither decay nor gradient asks for it."""
    record = view.record
    rate, share = view.radial
    mean = trailing_mean(rate, SHRINK_ROWS)
    asked = record["lr"] * record["weight_decay"]
    if not any(group.get("decoupled") for group in view.groups):
        asked = np.where(record["weight_decay"] > 0, np.inf, 0.0)
    with np.errstate(invalid="ignore"):
        hit: Mask = (mean < -SHRINK - 2.0 * asked) & (trailing_mean(share, SHRINK_ROWS) < -SHRINK_RADIAL)
    hit[: SHRINK_ROWS + 1] = False
    hit &= trailing_mean(np.nan_to_num(record["alignment"]), SHRINK_ROWS) < SHRINK_ASKED
    weight = np.where(view.big & view.trained, view.sizes, 0.0)
    span = held((hit * weight).sum(axis=1) > 0.4 * max(weight.sum(), 1.0), 3)
    if span is None:
        return None
    start, row = max(span[0] - SHRINK_ROWS + 1, 0), span[1]
    mask = hit[row] & view.big
    pace = float(-np.median(mean[row][mask]))
    return tell(
        record,
        "external_update",
        "HIGH",
        (start, row),
        mask=mask,
        title="weights shrink and no decay asks for it",
        seen=f"The norm of {_names(view, mask)} falls by {pace:.2%} at every step, along the weights themselves; "
        f"the optimizer's own decay accounts for {float(np.median((record['lr'] * record['weight_decay'])[row])):.2%}.",
        meaning="Something multiplies the weights by less than one; what is learned is forgotten within "
        f"{1 / max(pace, 1e-9):.0f} steps.",
        advice="Look for code that scales weights between steps, a penalty that is applied twice, or a decay of one's "
        "own beside weight_decay.",
        source="balance of norms: Kosson et al. 2024 (arXiv 2305.17212)",
        evidence={"shrinking_per_step": pace, "layers": float(mask.sum())},
    )


def _names(view: View, mask: Mask) -> str:
    return describe_layers(chosen(view.record, mask), len(view.record.layers))
