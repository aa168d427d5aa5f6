"""The learning rate against what the first step and the rehearsal did to the loss."""

from __future__ import annotations

import math

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.remedies import Remedy
from thermoclaw.preflight.result import RateForecast, Rehearsal, make_finding, two_digits
from thermoclaw.preflight.setup import Setup
from thermoclaw.preflight.steps import CALMER, HOTTER, FirstStep

RISES, RISES_WARMED, RISES_HIGH = 1.3, 1.5, 3.0  # multiples of the loss; the second where the rate warms up
WARMED = 0.3  # share of the peak below which the first step is part of a warm-up
SHORT = 0.15  # longest useful step, as a share of the one that will be taken
BETTER, BETTER_HIGH = 0.06, 0.3  # of the loss, by which lower rates gain more
TOUCHED = 0.5  # a first step that must be this much shorter, or a loss that has tripled: then lower rates are tried for
TRIPLED = 3.0
TRAVEL, TRAVEL_HIGH = 5.0, 20.0  # first steps to the best point, over those that the run can make
STAYS, STAYS_HIGH = 0.05, 0.03  # of a layer's norm, that all steps in one direction make
PACE, PACE_HIGH, STAYS_REHEARSED = 0.15, 0.03, 0.1  # of the loss, gained in the whole run at the rehearsal's pace
SOURCE = "Cohen et al. 2022 (arXiv 2207.14484); docs: preflight"


def check_rate(setup: Setup, first: FirstStep, rate: RateForecast, rehearsal: Rehearsal | None) -> list[Finding]:
    """A rate whose first steps harm, or whose steps all together lead nowhere."""
    if rehearsal is not None:
        found = _rehearsed_too_high(setup, rate, rehearsal) or _rehearsed_too_low(setup, first, rate, rehearsal)
        if found:
            return found
    return _too_high(setup, rate) or _too_low(setup, first, rate)


def _too_high(setup: Setup, rate: RateForecast) -> list[Finding]:
    after = rate.losses[rate.scales.index(1.0)]
    is_warmed = setup.schedule is not None and setup.schedule.start < WARMED
    rises = RISES_WARMED if is_warmed else RISES
    harms = not after - rate.loss < (rises - 1.0) * abs(rate.loss)
    if not (harms and 0 < rate.largest <= SHORT):
        return []
    is_sure = not after - rate.loss < (RISES_HIGH - 1.0) * abs(rate.loss)
    return _lower(
        setup,
        rate.largest / 3.0,
        "HIGH" if is_sure else "MEDIUM",
        "the first step is too long",
        f"At a learning rate of {setup.top_lr():.3g} the first step takes the loss from {rate.loss:.4g} to {after:.4g} "
        f"on other batches; the longest step that lowers it is about {rate.largest:.2g} times as long.",
        {"largest": rate.largest, "loss": rate.loss, "loss_after": after},
    )


def _rehearsed_too_high(setup: Setup, rate: RateForecast, told: Rehearsal) -> list[Finding]:
    calmer = [(told.gain_of(loss), factor) for factor, loss in told.others if factor in CALMER]
    gain, factor = max(calmer, default=(-math.inf, 0.1))
    is_touched = rate.largest <= TOUCHED or told.worst > TRIPLED
    is_harmed = told.gain < 1.0 - RISES
    if not (is_harmed or (gain - told.gain > BETTER and is_touched)):
        return []
    is_better = gain > max(told.gain, 0.0)
    after = told.loss * (1.0 - gain)
    return _lower(
        setup,
        factor if is_better else 0.1,
        "HIGH" if told.gain < 1.0 - RISES_HIGH or (is_better and gain - told.gain > BETTER_HIGH) else "MEDIUM",
        "the first steps are too long",
        f"{told.steps} rehearsed steps at a learning rate of {setup.top_lr():.3g} take the loss from {told.loss:.4g} "
        f"to {told.final_loss:.4g}" + (f"; at {factor:g} of it, to {after:.4g}." if is_better else "."),
        {"loss": told.loss, "loss_after": told.final_loss, "loss_after_lower": after, "factor": factor},
    )


def _lower(
    setup: Setup, factor: float, confidence: str, title: str, seen: str, evidence: dict[str, float]
) -> list[Finding]:
    lr = setup.top_lr()
    value = two_digits(lr * factor)
    return [
        make_finding(
            "lr_too_high",
            confidence,
            title,
            seen=seen,
            meaning="The steps are longer than the region in which the gradient is a guide.",
            advice=f"Lower the learning rate to about {value:.2g}, or warm it up.",
            source=SOURCE,
            evidence=evidence,
            remedy=Remedy("lr", value, lr),
        )
    ]


def travel(setup: Setup) -> float:
    """How many first steps long the whole run is, if all its steps went the same way."""
    mean = setup.schedule.mean if setup.schedule is not None else 1.0
    group = max(setup.hypers, key=lambda hyper: hyper.lr)
    gathers = 1.0 / max(1.0 - group.momentum, 1e-3) if "SGD" in setup.kind else 1.0
    return (setup.total_steps or 0) * mean * gathers


def _too_low(setup: Setup, first: FirstStep, rate: RateForecast) -> list[Finding]:
    far = travel(setup)
    reach = far * first.typical
    if not far or rate.best <= TRAVEL * far or reach >= STAYS:
        return []
    is_sure = rate.best > TRAVEL_HIGH * far and reach < STAYS_HIGH
    return _higher(
        setup,
        10.0 * rate.best / far,
        "HIGH" if is_sure else "MEDIUM",
        f"Along the first step the loss falls until it is {rate.best:.2g} times as long; all {setup.total_steps} steps "
        f"in one direction would make {far:.2g}, which is {reach:.1%} of the norm of a typical matrix.",
        {"best": rate.best, "travel": far, "reach": reach},
    )


def _rehearsed_too_low(setup: Setup, first: FirstStep, rate: RateForecast, told: Rehearsal) -> list[Finding]:
    higher = dict(told.others).get(HOTTER)
    pace, reach = told.gain * told.run_over, travel(setup) * first.typical
    if higher is None or told.gain_of(higher) <= told.gain or pace >= PACE or reach >= STAYS_REHEARSED:
        return []
    return _higher(
        setup,
        max(HOTTER, 10.0 * rate.best / max(travel(setup), 1.0)),
        "HIGH" if pace < PACE_HIGH and reach < STAYS_HIGH else "MEDIUM",
        f"{told.steps} rehearsed steps take {told.gain:.2%} of the loss away, which makes {pace:.1%} for the whole run;"
        f" at {HOTTER:g} times the learning rate they take {told.gain_of(higher):.1%}.",
        {"gain": told.gain, "gain_of_run": pace, "gain_at_higher": told.gain_of(higher), "reach": reach},
    )


def _higher(setup: Setup, factor: float, confidence: str, seen: str, evidence: dict[str, float]) -> list[Finding]:
    lr = setup.top_lr()
    value = two_digits(lr * factor)
    return [
        make_finding(
            "lr_too_low",
            confidence,
            "all steps together lead nowhere",
            seen=seen,
            meaning="The run ends before it has crossed the region that the first gradient already shows.",
            advice=f"Raise the learning rate from {lr:.3g} to about {value:.2g}.",
            source=SOURCE,
            evidence=evidence,
            remedy=Remedy("lr", value, lr),
        )
    ]
