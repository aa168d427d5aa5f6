"""Verdicts to figures: what was found, what was named, how soon, and how often a healthy run was accused. No torch.

A failing run is *detected* when a finding of HIGH or MEDIUM confidence is certain at or after its first faulty step.
Its cause is *named* when the first such finding has one of the fault's codes. A healthy run is *accused* by any such
finding.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

URGENT = ("HIGH", "MEDIUM")
SHARE, STEPS = 0.10, 25  # in time: within a tenth of the run, or 25 steps, whichever is sooner
Row = dict[str, Any]


def score_case(outcome: Mapping[str, Any], verdict: Mapping[str, Any]) -> Row:
    """One run: what was said of it and whether that was right."""
    first = outcome["first_faulty_step"] or 0
    codes = outcome["codes"]
    urgent = [f for f in verdict["findings"] if f["confidence"] in URGENT and f["raised_step"] >= first]
    told, on_device = (
        [a for a in verdict[alarms] if a["confidence"] in URGENT and a["raised_step"] >= first]
        for alarms in ("alarms", "alarms_on_device")
    )
    said = list(dict.fromkeys(f["code"] for f in urgent))
    end = outcome["steps"]
    when = min((a["told_step"] for a in told), default=end if urgent else None)
    then = min((a["told_step"] for a in on_device), default=end if urgent else None)
    right = min((a["told_step"] for a in told if a["code"] in codes), default=None)
    return {
        "name": outcome["name"],
        "program": outcome["program"],
        "variant": outcome["variant"],
        "fault": outcome["fault"],
        "truth": codes[0] if codes else "healthy",
        "codes": codes,
        "said": said,
        "low": [f["code"] for f in verdict["findings"] if f["confidence"] == "LOW"],
        "is_high": any(f["confidence"] == "HIGH" for f in urgent),
        "early": [a["code"] for a in verdict["alarms"] if a["confidence"] in URGENT and a["raised_step"] < first],
        "detected": bool(urgent),
        "named": bool(said) and said[0] in codes,
        "named_in_two": any(code in codes for code in said[:2]),
        **_when(outcome, when),
        "delay_of_cause": None if right is None else max(min(right, end) - first, 0),
        "on_device": _when(outcome, then),
        "findings": verdict["findings"],
    }


def _when(outcome: Mapping[str, Any], told: int | None) -> Row:
    """How long after the fault something was told of, as a share of what is allowed, and whether before the end."""
    first, end, broke = outcome["first_faulty_step"] or 0, outcome["steps"], outcome["non_finite_step"]
    delay = None if told is None else max(min(told, end) - first, 0)
    return {
        "delay": delay,
        "delay_share": None if delay is None else delay / min(SHARE * end, STEPS),
        "before_broken": None if broke is None or _breaks_at_once(outcome) else told is not None and told < broke,
    }


def _breaks_at_once(outcome: Mapping[str, Any]) -> bool:
    """Whether the loss is lost in the faulty step itself, before which nothing can be said."""
    return outcome["non_finite_step"] - (outcome["first_faulty_step"] or 0) <= 2


def score_rival(outcome: Mapping[str, Any], sayings: Sequence[Mapping[str, Any]]) -> Row:
    """A rival's sayings in the shape of `score_case`; any code that a saying may mean counts."""
    first = outcome["first_faulty_step"] or 0
    late = [s for s in sayings if s["step"] >= first]
    right = [bool(set(s["codes"]) & set(outcome["codes"])) for s in late]
    when = min((s["step"] for s in late), default=None)
    return {
        "name": outcome["name"],
        "program": outcome["program"],
        "truth": outcome["codes"][0] if outcome["codes"] else "healthy",
        "said": [s["said"] for s in late],
        "is_high": bool(late),
        "detected": bool(late),
        "named": bool(right) and right[0],
        "named_in_two": any(right[:2]),
        **_when(outcome, when),
    }


def share(hits: int, total: int) -> Row:
    """A share with its 95 % interval (Wilson)."""
    if total == 0:
        return {"hits": 0, "of": 0, "share": None, "low": None, "high": None}
    z, p = 1.96, hits / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    low, high = max(middle - half, 0.0), min(middle + half, 1.0)
    return {"hits": hits, "of": total, "share": round(p, 4), "low": round(low, 4), "high": round(high, 4)}


def totals(rows: Sequence[Row]) -> Row:
    """The headline figures of some runs."""
    failing, healthy = [r for r in rows if r["truth"] != "healthy"], [r for r in rows if r["truth"] == "healthy"]
    found = [r for r in failing if r["detected"]]
    broken = [r for r in failing if r["before_broken"] is not None]
    delays = [r["delay"] for r in found]
    shares = [r["delay_share"] for r in found]
    later = [r.get("on_device", r) for r in found]  # rivals are asked at once wherever a run is
    return {
        "failing": len(failing),
        "healthy": len(healthy),
        "detected": share(len(found), len(failing)),
        "named_first": share(sum(r["named"] for r in failing), len(failing)),
        "named_in_two": share(sum(r["named_in_two"] for r in failing), len(failing)),
        "named_first_of_detected": share(sum(r["named"] for r in found), len(found)),
        "accused": share(sum(r["detected"] for r in healthy), len(healthy)),
        "accused_high": share(sum(r["is_high"] and r["detected"] for r in healthy), len(healthy)),
        "median_delay_steps": median(delays) if delays else None,
        "median_delay_of_allowed": round(median(shares), 3) if shares else None,
        "in_time": share(sum(s <= 1.0 for s in shares), len(failing)),
        "median_delay_of_allowed_on_device": round(median(r["delay_share"] for r in later), 3) if later else None,
        "before_non_finite": share(sum(bool(r["before_broken"]) for r in broken), len(broken)),
        "before_non_finite_on_device": share(
            sum(bool(r.get("on_device", r)["before_broken"]) for r in broken), len(broken)
        ),
        "accused_before_the_fault": sum(bool(r.get("early")) for r in failing),
    }


def by(rows: Sequence[Row], key: str) -> dict[str, Row]:
    """Totals for each value of a column."""
    values = sorted({str(r[key]) for r in rows if r[key] is not None})
    return {value: totals([r for r in rows if str(r[key]) == value]) for value in values}


def precision(rows: Sequence[Row]) -> dict[str, Row]:
    """For each code, how often it was right where it came first, and what it was said of instead."""
    said: dict[str, list[Row]] = {}
    for row in rows:
        if row["said"]:
            said.setdefault(row["said"][0], []).append(row)
    return {
        code: {
            "right": share(sum(r["named"] for r in of), len(of)),
            "instead_of": dict(Counter(r["truth"] for r in of if not r["named"]).most_common()),
        }
        for code, of in sorted(said.items())
    }


def confusion(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Truth → what was said first ("silent" where nothing was) → how often."""
    table: dict[str, Counter[str]] = {}
    for row in rows:
        answer = row["said"][0] if row["said"] else "silent"
        if row["truth"] != "healthy" and row["named"]:
            answer = row["truth"]  # an accepted synonym stands on the diagonal
        table.setdefault(row["truth"], Counter())[answer] += 1
    return {truth: dict(answers.most_common()) for truth, answers in sorted(table.items())}


def calibration(rows: Sequence[Row]) -> dict[str, Row]:
    """For each confidence: how many findings there were, how many named the cause, how many accused a healthy run."""
    told: dict[str, Row] = {}
    for confidence in ("HIGH", "MEDIUM", "LOW"):
        found = [(r, f) for r in rows for f in r["findings"] if f["confidence"] == confidence]
        told[confidence] = {
            "right_cause": share(sum(f["code"] in r["codes"] for r, f in found), len(found)),
            "on_failing_runs": share(sum(r["truth"] != "healthy" for r, _ in found), len(found)),
        }
    return told
