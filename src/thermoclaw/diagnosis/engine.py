"""From a Record to ranked findings, live or afterwards, and `diagnose`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from thermoclaw.diagnosis.finding import CONFIDENCES, Finding
from thermoclaw.diagnosis.rules import RULES
from thermoclaw.diagnosis.view import view_of
from thermoclaw.record import Record

logger = logging.getLogger("thermoclaw")
_told_broken: set[str] = set()

# Root cause before symptom. A failure of a lower rank makes those of a higher one: what is wrong with the set-up shows
# as trouble of the dynamics, and that as a loss that is lost or stands still.
_RANK = {
    code: rank
    for rank, codes in enumerate(
        (
            "no_gradient gradient_accumulation_bug bad_init frozen_layers lost_updates epsilon_dominates "
            "lr_schedule_zero layer_lr_mismatch unnormalised_input over_clipping momentum_too_high underflow "
            "optimizer_state_reset unbounded_loss wrong_sign",
            "output_logit_divergence attention_logit_growth dead_units dead_features weight_decay_too_high "
            "weight_blow_up second_moment_lag",
            "gradient_spike external_update",
            "distribution_shift loss_spike gradient_noise incoherent_update lr_too_low",
            "lr_too_high vanishing_gradients exploding_gradients label_noise representation_collapse",
            "overfitting non_finite_features non_finite plateau",
        )
    )
    for code in codes.split()
}
_ENDS = ("overfitting", "non_finite_features", "non_finite", "plateau")  # these explain nothing else
_STANDSTILLS = ("lr_too_low", "over_clipping", "label_noise", "overfitting", "plateau")
_SELDOM = ("attention_logit_growth",)  # looked at every few dozen steps
_FROM_OUTSIDE = ("distribution_shift", "loss_spike", "gradient_spike", "lr_schedule_zero")
_BY_LOSS = (
    *("distribution_shift", "exploding_gradients", "gradient_accumulation_bug", "gradient_noise", "incoherent_update"),
    *("label_noise", "loss_spike", "lr_too_low", "momentum_too_high", "overfitting", "plateau", "unbounded_loss"),
    "wrong_sign",
)
_FAR = 300  # steps after which what comes from outside is a failure of its own
_LARGE_SPIKE = 100.0
_ALL_DECAY = 30.0  # times the gradient
_AT_ONCE = 10  # steps in which a loss explodes by what was set
_SLACK = 8  # steps by which a symptom may seem to begin before its cause


def run_rules(record: Record) -> list[Finding]:
    """What every rule says of a record, unranked. A rule that breaks says nothing and is reported."""
    found = []
    for rule in RULES:
        try:
            with np.errstate(all="ignore"):  # a run that overflows is what rules are for
                finding = rule.check(record)
        except Exception:
            level = logging.DEBUG if rule.code in _told_broken else logging.ERROR  # it is asked every few steps
            _told_broken.add(rule.code)
            logger.log(level, "thermoclaw: the rule %s failed and is left out", rule.code, exc_info=True)
            continue
        if finding is not None:
            found.append(_of_a_game(finding) if view_of(record).is_game else finding)
    return found


def _of_a_game(finding: Finding) -> Finding:
    """In a game of two optimizers what a loss or its slope foretells need not come: for information only."""
    by_loss = finding.code in _BY_LOSS or (finding.code == "lr_too_high" and "loss_at_start" in finding.evidence)
    by_loss |= finding.code == "weight_blow_up" and "loss" in finding.evidence
    if finding.confidence == "LOW" or not by_loss:
        return finding
    meaning = f"{finding.meaning} The loss runs through a model that another optimizer moves: alone it tells little."
    return replace(finding, confidence="LOW", meaning=meaning)


def find(record: Record) -> list[Finding]:
    """Ranked findings: the record's own rules, alarms raised while training, and what detectors beside it say."""
    found = {finding.code: finding for finding in run_rules(record)}
    for event in record.events:
        if event.get("kind") == "testimony":
            told = Finding.from_json(event["finding"])
            known = found.get(told.code, told)
            found[told.code] = replace(known, evidence={**told.evidence, **known.evidence})
        if event.get("kind") == "alarm":
            alarm = Finding.from_json(event["finding"])
            now = found.get(alarm.code)
            if now is None or CONFIDENCES.index(alarm.confidence) < CONFIDENCES.index(now.confidence):
                found[alarm.code] = alarm
            elif alarm.raised_step < now.raised_step:
                found[alarm.code] = replace(now, first_step=min(now.first_step, alarm.first_step))
    return rank(list(found.values()))


def rank(findings: Sequence[Finding]) -> list[Finding]:
    """Root causes first, then confident and early ones; a symptom stands in its cause's evidence and falls to LOW."""
    ordered = sorted(findings, key=_order)
    ranked: list[Finding] = []
    for finding in ordered:
        root = next((r for r in ranked if _explains(r, finding)), None)
        if root is None:
            ranked.append(finding)
            continue
        meaning = f"{finding.meaning} It is explained by the finding {root.code}."
        ranked.append(replace(finding, confidence="LOW", meaning=meaning))
        ranked[ranked.index(root)] = replace(root, explains=(*root.explains, finding.code))
    return sorted(ranked, key=lambda f: f.severity)


def _order(finding: Finding) -> tuple[int, int, int]:
    """Urgent ones by when they began, the root of two that began together first."""
    urgent = 0 if finding.confidence != "LOW" else 1
    return urgent, _began(finding) + _SLACK * _rank_of(finding), CONFIDENCES.index(finding.confidence)


def _began(finding: Finding) -> int:
    """The step from which a finding counts as a cause; that nothing happens is known only when it has not for long."""
    return finding.raised_step if finding.code in (*_STANDSTILLS, *_SELDOM) else finding.first_step


def _rank_of(finding: Finding) -> int:
    """How close to the root a failure stands; a rate too high from the first step, or set so later, is a setting."""
    if finding.code == "lr_too_high" and "lr_before" in finding.evidence:
        return -2  # the step at which it was set is known; of what follows only between which probes it began
    if finding.code == "lr_too_high" and finding.first_step <= _AT_ONCE:
        return 0
    if finding.code == "weight_decay_too_high" and finding.evidence.get("decay_over_gradient", 0.0) > _ALL_DECAY:
        return -1  # steps are the decay's, whatever they do
    if finding.code in ("unnormalised_input", "bad_init"):
        return -2  # they make the gradient steep
    if finding.code == "gradient_noise" and finding.evidence.get("random"):
        return -3  # nothing that is read from such gradients means anything
    if finding.code == "exploding_gradients" and "steepness" in finding.evidence:
        return -1  # measured before the first step
    if finding.code == "gradient_spike" and finding.evidence.get("came_with_the_data"):
        return _RANK["distribution_shift"] + 1  # other data makes other gradients
    if finding.code == "gradient_spike" and finding.evidence.get("over_recent_maximum", 0.0) > _LARGE_SPIKE:
        return 1  # such a step can kill units and throw weights; what follows is its doing
    return _RANK.get(finding.code, 3)


def _explains(root: Finding, symptom: Finding) -> bool:
    """Whether one finding accounts for another."""
    if root.confidence == "LOW" or symptom.confidence == "LOW" or root.code in _ENDS:
        return False
    if symptom.code in _FROM_OUTSIDE and _began(symptom) > _began(root) + _FAR:
        return False
    return _began(root) <= _began(symptom) + _SLACK or _rank_of(root) < _rank_of(symptom)


def live_findings(record: Record, *, known: Sequence[Finding]) -> list[Finding]:
    """Findings of at least MEDIUM confidence that are new, or surer than before, at this point of the run."""
    changed = max((int(e["step"]) for e in record.events if e.get("kind") == "remedy"), default=0)
    if changed:  # what came before the change is no evidence against what is set now
        record, known = record.rows(start=changed + 1), [k for k in known if k.raised_step > changed]
    best = {f.code: min((k for k in known if k.code == f.code), key=lambda k: k.severity) for f in known}
    fresh = []
    for finding in rank(run_rules(record)):
        if finding.confidence == "LOW":
            continue
        before = best.get(finding.code)
        if before is None or CONFIDENCES.index(finding.confidence) < CONFIDENCES.index(before.confidence):
            fresh.append(finding.raised_at(record.num_steps))
    return fresh
