"""From a Record to ranked findings, live or afterwards, and `diagnose`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from thermoclaw.diagnosis.finding import CONFIDENCES, Finding
from thermoclaw.diagnosis.rules import RULES
from thermoclaw.record import Record

logger = logging.getLogger("thermoclaw")

# Root cause before symptom: when the left one is found, the right ones are part of its evidence.
_EXPLAINS = {
    "weight_decay_too_high": ("vanishing_gradients", "plateau", "lr_too_high", "frozen_layers"),
    "lr_too_high": ("exploding_gradients", "plateau", "non_finite"),
    "momentum_too_high": ("plateau", "lr_too_high"),
    "no_gradient": ("frozen_layers", "plateau", "vanishing_gradients"),
    "exploding_gradients": ("plateau",),
    "vanishing_gradients": ("frozen_layers", "plateau"),
}


def run_rules(record: Record) -> list[Finding]:
    """What every rule says of a record, unranked. A rule that breaks says nothing and is reported."""
    found = []
    for rule in RULES:
        try:
            finding = rule.check(record)
        except Exception:
            logger.exception("thermoclaw: the rule %s failed on this record and was left out", rule.code)
            continue
        if finding is not None:
            found.append(finding)
    return found


def find(record: Record) -> list[Finding]:
    """Ranked findings: the record's own rules, and alarms that were raised while it was training."""
    found = {finding.code: finding for finding in run_rules(record)}
    for event in record.events:
        if event.get("kind") == "alarm":
            alarm = Finding.from_json(event["finding"])
            now = found.get(alarm.code)
            if now is None or CONFIDENCES.index(alarm.confidence) < CONFIDENCES.index(now.confidence):
                found[alarm.code] = alarm
            elif alarm.raised_step < now.raised_step:
                found[alarm.code] = replace(now, first_step=min(now.first_step, alarm.first_step))
    return rank(list(found.values()))


def rank(findings: Sequence[Finding]) -> list[Finding]:
    """Confident and early first; a symptom of something at least as confident goes behind it, and is capped at LOW."""
    by_code = {finding.code: finding for finding in findings}
    ranked = []
    for finding in findings:
        for cause, symptoms in _EXPLAINS.items():
            root = by_code.get(cause)
            if root is None or root is finding or finding.code not in symptoms:
                continue
            earlier = root.first_step <= finding.raised_step
            if earlier and CONFIDENCES.index(root.confidence) <= CONFIDENCES.index(finding.confidence):
                meaning = f"{finding.meaning} It is explained by the finding {root.code}."
                finding = replace(finding, confidence="LOW", meaning=meaning)
        ranked.append(finding)
    return sorted(ranked, key=lambda f: f.severity)


def live_findings(record: Record, *, known: Sequence[Finding]) -> list[Finding]:
    """Findings of at least MEDIUM confidence that are new, or surer than before, at this point of the run."""
    best = {f.code: min((k for k in known if k.code == f.code), key=lambda k: k.severity) for f in known}
    fresh = []
    for finding in rank(run_rules(record)):
        if finding.confidence == "LOW":
            continue
        before = best.get(finding.code)
        if before is None or CONFIDENCES.index(finding.confidence) < CONFIDENCES.index(before.confidence):
            fresh.append(finding.raised_at(record.num_steps))
    return fresh
