"""The call itself: what is checked, in which order, and what of it can be checked here."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from thermoclaw.arguments import check_pair
from thermoclaw.attach import unwrap
from thermoclaw.diagnosis.finding import Finding
from thermoclaw.layers import lay_out
from thermoclaw.measure.hyper import read_groups
from thermoclaw.partition import find_partition
from thermoclaw.preflight.decay import forecast_norms
from thermoclaw.preflight.guard import Guard
from thermoclaw.preflight.hypers import (
    BITS,
    LOST,
    check_momentum,
    check_precision,
    check_rates,
    keeps_finer,
    lost_updates,
)
from thermoclaw.preflight.members import check_members
from thermoclaw.preflight.order import ranked
from thermoclaw.preflight.probe import Probe, loss_function, moved, probe, take
from thermoclaw.preflight.rates import check_rate
from thermoclaw.preflight.reach import check_depth, check_reach
from thermoclaw.preflight.result import LayerForecast, Preflight, RateForecast, Rehearsal
from thermoclaw.preflight.scales import (
    check_clipping,
    check_coupled_decay,
    check_epsilon,
    check_inputs,
    check_loss,
    check_noise,
)
from thermoclaw.preflight.schedule import check_schedule, play
from thermoclaw.preflight.setup import Setup, list_weights
from thermoclaw.preflight.steps import FirstStep, Trials, first_step, line, make_rehearsal
from thermoclaw.preflight.twin import can_copy
from thermoclaw.preflight.weights import Start, check_weights, starts_of


def preflight(
    model: nn.Module | Sequence[nn.Module],
    optimizer: Any,
    *,
    total_steps: int | None = None,
    loss_fn: Any = None,
    batches: Any = None,
    scheduler: Any = None,
    max_grad_norm: float | None = None,
    rehearse: int = 0,
    other_optimizers: Sequence[Any] = (),
) -> Preflight:
    """Foretell what hyper-parameters, initial weights and, if given, a few batches will do to a run.

    With `batches` the loss and its gradient are computed on up to eight of them and trial steps are made and taken
    back. Afterwards model, buffers, gradients, optimizer and random states (torch, Python, NumPy) are bitwise what they
    were. Beside activations that takes, at its peak, what a training step takes (gradients and the state of the
    optimizer) and two copies of the trained parameters; `memory_bytes` tells. Waits for the device.

    Args:
        model: the model in the mode it will train in, or a list of models; unsharded if `batches` are given.
        optimizer: its optimizer, with the hyper-parameters the run will start with (peak rates, or their scheduler).
        total_steps: length of the run, if known; erosion that takes longer than the run is not reported, and steps
            that lead nowhere are reported only with it.
        loss_fn: `loss_fn(model, batch)` → scalar, as the training loop computes it; or a criterion (a module, or a
            function of torch.nn.functional) called as `loss_fn(model(batch[0]), batch[1])`. Without, a batch is a
            mapping and `model(**batch).loss` is the loss.
        batches: a list of batches of the size of a step, or a loader; four to eight are best. An iterator is advanced.
        scheduler: steps once an optimizer step; it is played through, on a copy, for `total_steps`.
        max_grad_norm: what gradients are clipped to.
        rehearse: this many real steps are made and taken back, 20 for example; where they do harm, again at
            lower rates, to find one that works.
        other_optimizers: whatever else trains parameters of this model.

    Returns:
        A `Preflight` with findings and forecasts.

    Raises:
        TypeError, ValueError: as `Observer`, or a setting that is out of range.

    Example:
        >>> import torch, thermoclaw
        >>> model = torch.nn.Linear(64, 64)
        >>> bad = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=5.0)
        >>> thermoclaw.preflight(model, bad).findings[0].code
        'weight_decay_too_high'
        >>> good = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.01)
        >>> thermoclaw.preflight(model, good).healthy
        True
        >>> batches = [(torch.randn(32, 64), torch.randint(64, (32,))) for _ in range(4)]
        >>> thermoclaw.preflight(model, good, loss_fn=torch.nn.CrossEntropyLoss(), batches=batches).healthy
        True
    """
    if total_steps is not None and total_steps < 1:
        raise ValueError(f"total_steps={total_steps!r}: give the number of optimizer steps of the run, or leave it out")
    if rehearse < 0 or (rehearse and batches is None):
        raise ValueError(f"rehearse={rehearse!r}: give a number of steps, and batches to make them on")
    setup = _set_up(model, optimizer, total_steps, scheduler, max_grad_norm, other_optimizers)
    forecasts, findings = forecast_norms(setup)
    starts = starts_of(setup)
    findings += check_weights(setup, starts) + check_members(setup)
    findings += check_rates(setup) + check_momentum(setup) + check_precision(setup) + check_schedule(setup)
    result = Preflight(ranked(findings), _with_gains(forecasts, starts), setup.schedule)
    if batches is None or any(f.code == "non_finite" for f in findings):
        return result
    refusal = _refusal(setup)
    if refusal:
        return replace(result, skipped=(refusal,))
    return _with_batches(result, setup, model, loss_function(loss_fn), batches, rehearse)


def _set_up(
    model: Any, optimizer: Any, total_steps: int | None, scheduler: Any, max_grad_norm: float | None, others: Any
) -> Setup:
    inner = check_pair(model, optimizer)
    layout = lay_out(model, inner, partition=find_partition(optimizer))
    models = [model] if isinstance(model, nn.Module) else list(model)
    group_of: dict[int, int] = {}
    for unit in layout.units:
        group_of.update({id(getattr(p, "param", p)): unit.group for p in unit.params})
    group_of.update({id(p): i for i, group in enumerate(inner.param_groups) for p in group["params"]})
    rates = [float(group.get("lr", math.nan)) for group in inner.param_groups]
    hypers = [hyper._replace(lr=lr) for hyper, lr in zip(read_groups(inner), rates, strict=True)]
    schedule = play(scheduler, inner, total_steps) if scheduler is not None and total_steps else None
    if schedule is not None:
        hypers = [hyper._replace(lr=peak) for hyper, peak in zip(hypers, schedule.peak_lrs, strict=True)]
    held = frozenset(id(p) for other in others for group in unwrap(other).param_groups for p in group["params"])
    weights = list_weights(models, lambda p: group_of.get(id(p)))
    return Setup(models, inner, layout, hypers, weights, total_steps, schedule, max_grad_norm, held)


def _refusal(setup: Setup) -> str:
    """Why batches cannot be tried here; empty where they can."""
    if any(unit.mesh is not None for unit in setup.layout.units):
        return "batches, because the parameters are sharded over processes; run preflight before sharding"
    if any(w.param.device.type == "meta" for w in setup.weights):
        return "batches, because parameters have no values yet (device 'meta')"
    return ""


def _with_batches(static: Preflight, setup: Setup, model: Any, loss_fn: Any, batches: Any, rehearse: int) -> Preflight:
    """Everything that needs a loss."""
    params = [w.param for w in setup.weights if w.param.requires_grad or getattr(w.module, "max_norm", None)]
    run = _bare(model)
    tell = _teller()
    with Guard(setup.models, setup.optimizer, params, batches) as guard:
        device = setup.weights[0].param.device
        given = [moved(batch, device) for batch in take(batches)]
        seen = probe(setup, run, loss_fn, given, guard, tell)
        trials = Trials(setup, run, loss_fn, given, seen, guard, params, tell)
        findings = [*static.findings, *_checks_of(setup, seen)]
        first, rate, rehearsal, skipped = _try_steps(trials, rehearse)
        if first is not None:
            findings += _stuck(setup, seen, first)
        if first is not None and rate is not None:
            findings += check_rate(setup, first, rate, rehearsal)
        peak = guard.num_bytes() + max(seen.peak_bytes, trials.peak_bytes)
    tell("")
    return replace(
        static,
        findings=ranked(findings),
        forecasts=_with_gradients(static.forecasts, seen, first),
        loss=seen.loss,
        noise=seen.noise,
        rate=rate,
        rehearsal=rehearsal,
        memory_bytes=peak,
        skipped=skipped,
    )


def _checks_of(setup: Setup, seen: Probe) -> list[Finding]:
    found = check_loss(seen) + check_inputs(setup, seen)
    if all(math.isfinite(loss) for loss in seen.losses):
        found += check_reach(setup, seen) + check_depth(setup, seen) + check_epsilon(setup, seen)
        found += check_coupled_decay(setup, seen) + check_clipping(setup, seen) + check_noise(seen)
    return found


def _try_steps(
    trials: Trials, rehearse: int
) -> tuple[FirstStep | None, RateForecast | None, Rehearsal | None, tuple[str, ...]]:
    """The first step, the loss along it, and the rehearsal; or why there is none."""
    setup, seen = trials.setup, trials.probe
    if not can_copy(setup.optimizer):
        return None, None, None, (f"trial steps, because {setup.kind} cannot be stepped on a gradient alone",)
    if not all(math.isfinite(loss) for loss in seen.losses) or all(g is None for g in seen.grads):
        return None, None, None, ()
    first, steps = first_step(trials)
    trials.peak_bytes = max(trials.peak_bytes, sum(t.numel() * t.element_size() for t in steps))
    rate = line(trials, steps)
    del steps
    return first, rate, make_rehearsal(trials, rehearse) if rehearse else None, ()


def _stuck(setup: Setup, seen: Probe, first: FirstStep) -> list[Finding]:
    """What the trial step left unmoved, where the rate alone does not tell the size of a step."""
    if setup.fixes_step_size or keeps_finer(setup):
        return []
    pairs = [
        (w, s)
        for w, s in zip(seen.weights, first.stuck, strict=True)
        if w.param.dtype in BITS and w.param.dim() > 1 and not math.isnan(s)
    ]
    total = sum(w.param.numel() for w, _ in pairs)
    share = sum(s * w.param.numel() for w, s in pairs) / max(total, 1)
    return [lost_updates([w for w, _ in pairs], share, setup.top_lr(), measured=True)] if share > LOST else []


def _with_gains(forecasts: list[LayerForecast], starts: list[Start]) -> list[LayerForecast]:
    largest: dict[str, Start] = {}
    for start in starts:
        known = largest.get(start.weight.layer)
        if known is None or start.weight.param.numel() > known.weight.param.numel():
            largest[start.weight.layer] = start
    return [replace(f, gain=largest[f.name].gain) if f.name in largest else f for f in forecasts]


def _with_gradients(forecasts: list[LayerForecast], seen: Probe, first: FirstStep | None) -> list[LayerForecast]:
    squares: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for place, w in enumerate(seen.weights):
        norm = seen.norms[0][place]
        if not math.isnan(norm):
            squares[w.layer] = squares.get(w.layer, 0.0) + norm * norm
        if first is not None and w.param.dim() > 1 and not math.isnan(first.update_ratios[place]):
            ratios[w.layer] = max(ratios.get(w.layer, 0.0), first.update_ratios[place])
    return [
        replace(
            f,
            grad_norm=math.sqrt(squares[f.name]) if f.name in squares else math.nan,
            update_ratio=ratios.get(f.name, math.nan),
        )
        for f in forecasts
    ]


def _bare(model: Any) -> Any:
    """The model without what compiles it or reduces its gradients."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return _bare(model.module)
    inner = getattr(model, "_orig_mod", None)
    return _bare(inner) if isinstance(inner, nn.Module) else model


def _teller() -> Any:
    """Redraws one line on a terminal; silent anywhere else."""
    if not sys.stderr.isatty():
        return lambda _: None

    def tell(text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{'preflight: ' + text if text else ''}")
        sys.stderr.flush()

    return tell
