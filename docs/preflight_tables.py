"""The tables of the preflight page, from the file that `benchmarks/preflight_check.py` wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markdown_tables import table

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "preflight.json"
PARTS_OF = {"dev": "development", "held_out": "held out"}
LEVELS = {"settings": "settings and weights", "batches": "and batches", "rehearsal": "and a rehearsal"}

Row = dict[str, Any]


def read() -> Row:
    """The measured file."""
    return dict(json.loads(RESULTS.read_text()))


def parts(measured: Row) -> list[tuple[str, Row]]:
    """The programs that were looked at, with what tables call them."""
    return [(title, measured[part]) for part, title in PARTS_OF.items() if part in measured]


def share(told: Row) -> str:
    """A share with its counts and its 95 % interval."""
    if not told["of"]:
        return "–"
    return f"{told['hits']}/{told['of']} = {told['share']:.1%} ({told['low']:.1%} – {told['high']:.1%})"


def short(told: Row) -> str:
    """A share by its counts alone."""
    return f"{told['hits']}/{told['of']}" if told["of"] else "–"


def summary() -> str:
    """Accusations and findings at each level."""
    cells = [
        (title, name, share(of[level]["healthy_accused"]), share(of[level]["named"]), share(of[level]["named_first"]))
        for title, of in parts(read())
        for level, name in LEVELS.items()
    ]
    head = ("programs", "what it was given", "healthy runs accused", "cause named", "cause named first")
    return "\n".join(table(head, cells))


def codes() -> str:
    """Precision and recall of each code, with a rehearsal."""
    measured = read()
    found = [(title, of["rehearsal"]["by_code"]) for title, of in parts(measured)]
    names = sorted({code for _, by_code in found for code in by_code})
    empty = {"hits": 0, "of": 0}
    cells = []
    for code in names:
        row = [f"`{code}`"]
        for _, by_code in found:
            told = by_code.get(code, {"precision": empty, "recall": empty})
            row += [share(told["precision"]), share(told["recall"])]
        cells.append(tuple(row))
    head = ["code"]
    for title, _ in found:
        head += [f"precision, {title}", f"recall, {title}"]
    return "\n".join(table(tuple(head), cells))


def faults() -> str:
    """What was found of each fault at each level."""
    measured = read()
    found = parts(measured)
    names = sorted({fault for _, of in found for fault in of["rehearsal"]["by_fault"]})
    cells = []
    for fault in names:
        row = [fault.replace("_", " ")]
        for _, of in found:
            row += [short(of[level]["by_fault"].get(fault, {"hits": 0, "of": 0})) for level in LEVELS]
        cells.append(tuple(row))
    head = ["fault"]
    for title, _ in found:
        head += [f"{name}, {title}" for name in ("settings", "batches", "rehearsal")]
    return "\n".join(table(tuple(head), cells))


def machine() -> str:
    """What it ran on, and what was left out."""
    measured = read()
    env = measured["environment"]
    told = f"{env['processor']}, {env['cores']} cores, Python {env['python']}, PyTorch {env['torch']}, {env['date']}"
    lines = [f"{told}, revision {env['revision']}, load {env['load_before']} before the run."]
    for title, of in parts(measured):
        left = of["left_out"]
        lines.append(
            f"{title.capitalize()} programs: {of['cases']} cases counted; left out are {left['not_visible']} faults "
            f"that begin later or sit in the loop, {left['does_not_count']} runs that the vetting does not count and "
            f"{left['not_run']} that were not run. {of['vetted_by_other_code']} were vetted on runs of an earlier "
            "version of the zoo."
        )
    return "\n\n".join(lines)


def measured_or_not(part: Callable[[], str], *, missing: str = "") -> Callable[[], str]:
    """The part, or what to say while nothing was measured."""
    return lambda: part() if RESULTS.exists() else missing


PARTS: dict[str, Callable[[], str]] = {
    "preflight-summary": measured_or_not(
        summary,
        missing="No figures yet: `python benchmarks/preflight_check.py --held-out` measures them for this page.",
    ),
    "preflight-codes": measured_or_not(codes),
    "preflight-faults": measured_or_not(faults),
    "preflight-machine": measured_or_not(machine),
}
