"""Verdicts to a document: figures for development and held-out programs apart, and tables for readers. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.zoo.score import by, calibration, confusion, precision, score_case, score_rival, totals
from benchmarks.zoo.vet import verdict as vetted

BARS = (
    ("detected", "failing runs detected (HIGH or MEDIUM)", 0.95, True),
    ("named_first", "right cause first", 0.85, True),
    ("named_in_two", "right cause in the first two", 0.92, True),
    ("accused", "healthy runs accused (HIGH or MEDIUM)", 0.015, False),
    ("accused_high", "healthy runs accused (HIGH)", 0.005, False),
    ("in_time", "detected within 10 % of the run or 25 steps", None, True),
    ("before_non_finite", "divergence found before the loss is non-finite", 0.90, True),
    ("before_non_finite_on_device", "the same with the lag of an accelerator", None, True),
)
DELAYS = (
    ("median_delay_steps", "median delay, in steps", None),
    ("median_delay_of_allowed", "median delay, of what counts as in time", 1.0),
    ("median_delay_of_allowed_on_device", "the same with the lag of an accelerator", None),
)


def document(outcomes: Mapping[str, Mapping[str, Any]], verdicts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """All figures of the runs that were judged.

    Args:
        outcomes: of all runs, judged or not, as controls are needed.
        verdicts: of the judged ones.

    Returns:
        Plain data: `vetting`, and for each part ("dev", "held_out") that was judged its figures.
    """
    known = {name: dict(outcome) for name, outcome in outcomes.items()}
    checks = {name: vetted(name, known) for name in verdicts}
    told: dict[str, Any] = {"vetting": _vetting(known, checks)}
    for part, is_held_out in (("dev", False), ("held_out", True)):
        names = [n for n, (counts, _) in checks.items() if counts and known[n]["held_out"] == is_held_out]
        if names:
            told[part] = _part(names, known, verdicts)
    return told


def _vetting(outcomes: Mapping[str, Any], checks: Mapping[str, tuple[bool, str]]) -> dict[str, Any]:
    counted = [n for n, (counts, _) in checks.items() if counts]
    healthy = sum(not outcomes[n]["fault"] for n in counted)
    return {
        "judged": len(checks),
        "counted": len(counted),
        "healthy_share": round(healthy / max(len(counted), 1), 3),
        "programs": len({outcomes[n]["program"] for n in counted}),
        "programs_by_failure": _programs_by_failure(outcomes, counted),
        "train_s": round(sum(outcomes[n]["wall_s"] for n in checks), 1),
        "left_out": {n: why for n, (counts, why) in sorted(checks.items()) if not counts},
        "losses": {n: {"initial": outcomes[n]["initial"], "final": outcomes[n]["final"]} for n in sorted(counted)},
    }


def _programs_by_failure(outcomes: Mapping[str, Any], names: Sequence[str]) -> dict[str, int]:
    pairs = {(outcomes[n]["codes"][0], outcomes[n]["program"]) for n in names if outcomes[n]["fault"]}
    return dict(sorted(Counter(code for code, _ in pairs).items()))


def _part(names: Sequence[str], outcomes: Mapping[str, Any], verdicts: Mapping[str, Any]) -> dict[str, Any]:
    rows = [score_case(outcomes[n], verdicts[n]) for n in names]
    failing = [r for r in rows if r["truth"] != "healthy"]
    rivals = sorted({rival for n in names for rival in verdicts[n]["rivals"]})
    return {
        "totals": totals(rows),
        "by_failure": by(failing, "truth"),
        "by_fault": by(failing, "fault"),
        "by_program": by(rows, "program"),
        "by_variant": by([r for r in rows if r["truth"] == "healthy"], "variant"),
        "precision": precision(rows),
        "confusion": confusion(rows),
        "calibration": calibration(rows),
        "rivals": {rival: _rival(rival, names, outcomes, verdicts) for rival in rivals},
        "wrong": [
            {key: r[key] for key in ("name", "truth", "said", "low", "early", "delay")}
            for r in rows
            if not r["named"] and (r["truth"] != "healthy" or r["detected"])
        ],
    }


def _rival(rival: str, names: Sequence[str], outcomes: Mapping[str, Any], verdicts: Mapping[str, Any]) -> Any:
    asked = [n for n in names if rival in verdicts[n]["rivals"]]
    return totals([score_rival(outcomes[n], verdicts[n]["rivals"][rival]) for n in asked])


# -- for readers ------------------------------------------------------------------------------------------------------


def percent(figure: Mapping[str, Any]) -> str:
    """A share for a table: "97 % (130 of 134)"."""
    if figure["share"] is None:
        return "–"
    value = 100 * figure["share"]
    return f"{value:.1f} % ({figure['hits']} of {figure['of']})"


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(str(cell) for cell in row) + " |" for row in (heads, ["---"] * len(heads), *rows)]
    return "\n".join(lines)


def as_text(told: Mapping[str, Any]) -> str:
    """The document for readers: held-out figures first, and what went wrong on development programs only."""
    vetting = told["vetting"]
    parts = [
        f"{vetting['counted']} of {vetting['judged']} runs count, {vetting['healthy_share']:.0%} of them healthy, on "
        f"{vetting['programs']} programs. The others do not hurt or do not learn."
    ]
    for part, title in (("held_out", "Held-out programs"), ("dev", "Development programs")):
        if part in told:
            parts += [f"## {title}", _headline(told[part]), _rivals(told[part]), _by_failure(told[part])]
            parts += [_by_program(told[part]), _calibration(told[part])]
    if "dev" in told:
        parts.append(_wrong(told["dev"]))
    return "\n\n".join(parts) + "\n"


def _headline(part: Mapping[str, Any]) -> str:
    figures = part["totals"]
    rows = []
    for key, title, bar, is_floor in BARS:
        figure = figures[key]
        met = (
            "" if bar is None or figure["share"] is None else ("yes" if (figure["share"] >= bar) == is_floor else "no")
        )
        asked = "" if bar is None else f"{'≥' if is_floor else '≤'} {100 * bar:g} %"
        rows.append((title, percent(figure), asked, met))
    for key, title, most in DELAYS:
        met = "" if most is None or figures[key] is None else _yes(figures[key] <= most)
        rows.append((title, figures[key], "" if most is None else f"≤ {most:g}", met))
    return table(("figure", "measured", "asked for", "met"), rows)


def _yes(met: bool) -> str:
    return "yes" if met else "no"


def _rivals(part: Mapping[str, Any]) -> str:
    keys = ("detected", "named_first", "named_in_two", "accused", "before_non_finite")
    everyone = {"this version": part["totals"], **part["rivals"]}
    rows = [
        (name, *(percent(figures[key]) for key in keys), figures["median_delay_steps"])
        for name, figures in everyone.items()
    ]
    return table(("who", "detected", "cause first", "in two", "healthy accused", "before NaN", "delay"), rows)


def _by_failure(part: Mapping[str, Any]) -> str:
    rows = []
    for code, figures in part["by_failure"].items():
        right = part["precision"].get(code, {}).get("right")
        cells = (percent(figures[key]) for key in ("detected", "named_first", "named_in_two"))
        rows.append((code, *cells, percent(right) if right else "–", figures["median_delay_steps"]))
    return table(("failure", "detected", "named first", "in two", "right when named first", "delay"), rows)


def _by_program(part: Mapping[str, Any]) -> str:
    keys = ("detected", "named_first", "accused")
    rows = [(name, *(percent(figures[key]) for key in keys)) for name, figures in part["by_program"].items()]
    return table(("program", "detected", "named first", "healthy accused"), rows)


def _calibration(part: Mapping[str, Any]) -> str:
    keys = ("right_cause", "on_failing_runs")
    rows = [(name, *(percent(figures[key]) for key in keys)) for name, figures in part["calibration"].items()]
    return table(("confidence", "names the cause", "on a failing run"), rows)


def _wrong(part: Mapping[str, Any]) -> str:
    rows = [
        (r["name"], r["truth"], ", ".join(r["said"]) or "–", ", ".join(r["low"]) or "–", ", ".join(r["early"]) or "–")
        for r in part["wrong"]
    ]
    return "## What went wrong in development\n\n" + table(("run", "truth", "said", "said LOW", "said too early"), rows)
