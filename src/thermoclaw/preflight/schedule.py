"""What a learning-rate schedule will do, played through on a stand-in for the optimizer."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import torch

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.measure.hyper import number
from thermoclaw.preflight.result import ScheduleForecast, make_finding
from thermoclaw.preflight.setup import Setup

LONGEST = 200_000  # steps that are played; a longer schedule is not simulated
IDLE = 1e-3
IDLE_SHARE_HIGH, IDLE_SHARE = 0.5, 0.25
FIRST = 256


def play(scheduler: Any, optimizer: Any, total_steps: int) -> ScheduleForecast | None:
    """The rates of a whole run, from a copy of the scheduler that drives a stand-in.

    Args:
        scheduler: stepped once an optimizer step, without arguments; neither it nor the optimizer is touched.
        optimizer: whose groups it drives.
        total_steps: steps of the run.

    Returns:
        None where the copy cannot be made or stepped (a scheduler that waits for a metric, say).
    """
    if total_steps > LONGEST:
        return None
    stand_in = _stand_in(optimizer)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            twin = copy.deepcopy(scheduler, {id(driven): stand_in for driven in _driven_by(scheduler, optimizer)})
            rates = np.empty((total_steps, len(stand_in.param_groups)))
            for step in range(total_steps):
                rates[step] = [number(group["lr"]) for group in stand_in.param_groups]
                twin.step()
    except Exception:  # any scheduler may come, and none may break the check
        return None
    return _summary(rates)


def _driven_by(scheduler: Any, optimizer: Any) -> list[Any]:
    """The optimizer under all names by which a scheduler may hold it."""
    held = [optimizer]
    for owner in (scheduler, *(getattr(scheduler, "_schedulers", None) or ())):
        held += [getattr(owner, "optimizer", optimizer)]
    return held


def _stand_in(optimizer: Any) -> Any:
    """An optimizer with the same settings and one number in each group."""
    stand_in = torch.optim.SGD([{"params": [torch.zeros(1)]} for _ in optimizer.param_groups], lr=0.0)
    for mine, theirs in zip(stand_in.param_groups, optimizer.param_groups, strict=True):
        mine.update({key: copy.deepcopy(value) for key, value in theirs.items() if key != "params"})
    return stand_in


def _summary(rates: np.ndarray) -> ScheduleForecast | None:
    peaks = rates.max(axis=0)
    if not (np.isfinite(rates).all() and (peaks > 0).any()):
        return None
    factors = (rates[:, peaks > 0] / peaks[peaks > 0]).mean(axis=1)
    peak = int(factors.argmax())
    after = factors[peak + 1 :]
    return ScheduleForecast(
        start=float(factors[0]),
        peak_step=peak + 1,
        mean=float(factors.mean()),
        idle_share=float((after < IDLE * factors[peak]).sum() / len(factors)),
        first=tuple(float(f) for f in factors[:FIRST]),
        peak_lrs=tuple(float(v) for v in peaks),
    )


def check_schedule(setup: Setup) -> list[Finding]:
    """A schedule that is over long before the run is."""
    told = setup.schedule
    if told is None or told.idle_share < IDLE_SHARE:
        return []
    total = setup.total_steps or 0
    over = round(total * (1.0 - told.idle_share))
    return [
        make_finding(
            "lr_schedule_zero",
            "HIGH" if told.idle_share >= IDLE_SHARE_HIGH else "MEDIUM",
            "the schedule ends before the run does",
            seen=f"Played through, the scheduler keeps the learning rate below {IDLE:g} of its peak for "
            f"{told.idle_share:.0%} of the {total} steps.",
            meaning="Nothing more is learned in those steps.",
            advice=f"Make the schedule for {total} steps (it looks made for about {over}), and step it as often as it "
            "counts: by batch or by epoch.",
            source="docs: preflight",
            evidence={"idle_share": told.idle_share, "total_steps": float(total)},
        )
    ]
