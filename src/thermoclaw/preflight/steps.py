"""Trial steps: the loss along the optimizer's first step, and a rehearsal of the first few, all taken back.

Legend: B batches, P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from thermoclaw.preflight.guard import Guard
from thermoclaw.preflight.probe import LossFn, Probe, Tell, gradients_of
from thermoclaw.preflight.result import RateForecast, Rehearsal
from thermoclaw.preflight.setup import Setup
from thermoclaw.preflight.twin import make_twin, set_rates, state_bytes, take_step

NUM_HELD = 3
STRETCH = 10.0**0.5
LONGEST, SHORTEST = 1e6, 1e-5
CALMER, HOTTER = (0.3, 0.1, 0.01), 100.0
SLOW = 0.15  # of the loss gained in the rehearsal, below which lower rates are tried
SHORT = 0.3  # of the loss gained in the whole run at the pace of the rehearsal, below which a higher one is


@dataclass(eq=False)
class Trials:
    """Everything that trial steps need.

    Attributes:
        setup: the training to be.
        model: what the loss function is called with.
        loss_fn: model and batch → scalar.
        batches: on the model's device, [B].
        probe: what they told at the initial weights.
        guard: holds the initial values.
        params: what the guard keeps copies of, in its order.
        tell: shows progress.
        peak_bytes: held at most, beside the guard's copies.
    """

    setup: Setup
    model: Any
    loss_fn: LossFn
    batches: Sequence[Any]
    probe: Probe
    guard: Guard
    params: list[Tensor]
    tell: Tell
    peak_bytes: int = 0

    def loss_at(self, number: int) -> float:
        """Loss of a batch at the parameters of this moment, with the randomness that its gradient had."""
        self.guard.rewind_modules()
        self.guard.random.put(self.probe.states[number])
        with torch.no_grad():
            return float(self.loss_fn(self.model, self.batches[number]))

    def held(self) -> list[int]:
        """Batches that did not shape the first step, or the only one."""
        return list(range(1, min(len(self.batches), NUM_HELD + 1))) or [0]


@dataclass(frozen=True)
class FirstStep:
    """The optimizer's first step at the rate tested.

    Attributes:
        update_ratios: ‖Δ‖/‖θ‖ by parameter, [P]; NaN for a parameter of zeros or without gradient.
        typical: their median over everything but vectors; infinite where there is none.
        stuck: share of the weights with a gradient that did not change by one bit, [P]; NaN without gradient.
    """

    update_ratios: list[float]
    typical: float
    stuck: list[float]


@torch.no_grad()
def first_step(trials: Trials) -> tuple[FirstStep, list[Tensor]]:
    """Make the first step, measure it, take it back; and the step itself, one tensor a kept parameter."""
    twin = make_twin(trials.setup)
    weights, grads = trials.probe.weights, trials.probe.grads
    copies = [None if g is None else g.clone() for g in grads]  # some optimizers and clipping write to gradients
    take_step(trials.setup, twin, weights, copies)
    held = sum(g.numel() * g.element_size() for g in grads if g is not None)
    trials.peak_bytes = max(trials.peak_bytes, 2 * held + state_bytes(twin))
    del copies, twin
    steps = [p.detach() - was for p, was in zip(trials.params, trials.guard.kept, strict=True)]
    place = {id(p): i for i, p in enumerate(trials.params)}
    ratios: list[float] = []
    stuck: list[float] = []
    for w, g in zip(weights, grads, strict=True):
        step, was = steps[place[id(w.param)]], trials.guard.kept[place[id(w.param)]]
        norm = float(was.norm())
        moves = None if g is None or g.is_sparse or w.group is None else g != 0
        if moves is None or norm == 0 or not bool(moves.any()):
            ratios.append(math.nan)
            stuck.append(math.nan)
            continue
        ratios.append(float(step.norm()) / norm)
        stuck.append(float((moves & (step == 0)).sum() / moves.sum()))
    trials.guard.rewind_params()
    of_matrices = [r for r, w in zip(ratios, weights, strict=True) if w.param.dim() > 1 and r > 0]
    return FirstStep(ratios, median(of_matrices) if of_matrices else math.inf, stuck), steps


def line(trials: Trials, steps: list[Tensor]) -> RateForecast:
    """The loss at multiples of a step: longer ones while they lower the loss, shorter ones until one does."""
    held = trials.held()
    own_start, starts = trials.probe.losses[0], [trials.probe.losses[i] for i in held]
    start = sum(starts) / len(starts)
    found: dict[float, tuple[float, float]] = {}

    def look(scale: float) -> float:
        trials.tell(f"step × {scale:.3g}")
        for p, was, step in zip(trials.params, trials.guard.kept, steps, strict=True):
            p.data.copy_(was).add_(step, alpha=scale)
        values = [trials.loss_at(i) for i in held]
        mean = sum(values) / len(values)
        found[scale] = mean, mean if held == [0] else trials.loss_at(0)
        return mean

    scale = 1.0
    if look(scale) < start:
        while scale < LONGEST and look(scale * STRETCH) < start:
            scale *= STRETCH
    else:
        while scale > SHORTEST and not look(scale / STRETCH) < start:
            scale /= STRETCH
    trials.guard.rewind_params()
    scales = tuple(sorted(found))
    losses = tuple(found[s][0] for s in scales)
    good = [s for s in scales if found[s][0] < start]
    finite = [s for s in scales if math.isfinite(found[s][0])]
    best = min(finite, key=lambda s: found[s][0], default=0.0)
    own = tuple(found[s][1] for s in scales)
    return RateForecast(scales, losses, own, start, own_start, max(good, default=0.0), best if good else 0.0)


def make_rehearsal(trials: Trials, steps: int) -> Rehearsal:
    """A few real steps at the rates that the run begins with; and again at other rates where they gain little."""
    start = trials.probe.loss
    final, worst = _run(trials, steps, 1.0)
    pace = run_over(trials.setup, steps)
    told = Rehearsal(steps, start, final, worst, pace)
    factors = CALMER if not told.gain > SLOW else ()
    factors = (*factors, HOTTER) if trials.setup.total_steps and told.gain * pace < SHORT else factors
    return replace(told, others=tuple((factor, _run(trials, steps, factor)[0]) for factor in factors))


def run_over(setup: Setup, steps: int) -> float:
    """How many rehearsals long the run is, each step counted by its rate; 1 without a known length."""
    if not setup.total_steps:
        return 1.0
    if setup.schedule is None:
        return setup.total_steps / steps
    early = setup.schedule.first[:steps]
    return setup.schedule.mean * setup.total_steps / max(sum(early), 1e-9)


def _run(trials: Trials, steps: int, factor: float) -> tuple[float, float]:
    """Mean loss afterwards, and the worst of a batch on the way as a multiple of what it was before."""
    setup, num = trials.setup, len(trials.batches)
    twin = make_twin(setup)
    worst = 0.0
    for step in range(steps):
        trials.tell(f"rehearsal {step + 1}/{steps}")
        planned = setup.schedule.first if setup.schedule is not None else ()
        set_rates(setup, twin, factor * (planned[step] if step < len(planned) else 1.0))
        trials.guard.random.put(trials.probe.states[step % num])
        loss = trials.loss_fn(trials.model, trials.batches[step % num])
        worst = _worse(worst, float(loss.detach()), trials.probe.losses[step % num])
        grads = gradients_of(loss, trials.probe.weights)
        held = sum(g.numel() * g.element_size() for g in grads if g is not None)
        del loss
        with torch.no_grad():
            take_step(setup, twin, trials.probe.weights, grads)
        trials.peak_bytes = max(trials.peak_bytes, held + state_bytes(twin))
        if not math.isfinite(worst):
            break
    final = sum(trials.loss_at(i) for i in range(num)) / num
    trials.guard.rewind_params()
    trials.guard.rewind_modules()
    return final, worst


def _worse(worst: float, loss: float, before: float) -> float:
    """The larger multiple; infinite as soon as a loss is not finite."""
    if not math.isfinite(loss):
        return math.inf
    return max(worst, 1.0 + (loss - before) / max(abs(before), 1e-30))
