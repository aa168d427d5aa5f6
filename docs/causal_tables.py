"""The tables of the page on what the advice does, from the file that `python -m benchmarks.zoo causal` wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markdown_tables import table

RESULT = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "causal.json"
TITLES = {"held_out": "held-out programs", "dev": "development programs"}

SELECTIONS = {
    "totals": "every first alarm",
    "rolled_back": "every first alarm, earlier weights put back",
    "named_right": "cause named right",
    "named_right_rolled_back": "cause named right, earlier weights put back",
}

Row = dict[str, Any]


def read() -> Row:
    """What was measured; nothing where nobody has run it yet."""
    return dict(json.loads(RESULT.read_text())) if RESULT.exists() else {}


def share(figure: Row) -> str:
    """Hits of all, with the interval."""
    if not figure["of"]:
        return "–"
    return f"{figure['hits']} of {figure['of']} ({figure['low']:.0%}–{figure['high']:.0%})"


def totals() -> str:
    """One line for each part and selection."""
    told, rows = read(), []
    for part, title in TITLES.items():
        if part in told:
            for key, words in SELECTIONS.items():
                figures = told[part][key]
                cells = (share(figures[name]) for name in ("better", "tie", "worse", "refused", "as_control"))
                rows.append((f"{title}, {words}", *cells))
    heads = ("runs", "better", "tie", "worse", "not applied", "as good as the healthy run")
    return "\n".join(table(heads, rows)) if rows else "Not measured yet."


def by_code() -> str:
    """One line for each code."""
    told, rows = read(), []
    for part, title in TITLES.items():
        for code, figures in told.get(part, {}).get("by_code", {}).items():
            back = told[part]["by_code_rolled_back"][code]
            cells = [share(figures[name]) for name in ("better", "worse", "as_control")]
            cells += [share(back["better"]), share(back["as_control"])]
            rows.append((title, f"`{code}`", *cells))
    heads = (
        "programs",
        "first alarm",
        "better",
        "worse",
        "as the healthy run",
        "put back: better",
        "as the healthy run",
    )
    return "\n".join(table(heads, rows)) if rows else ""


def coverage() -> str:
    """How many failing runs had something to try."""
    told, lines = read(), []
    for part, title in TITLES.items():
        if part in told:
            here = told[part]
            lines.append(
                f"- {title}: {here['failing']} failing runs count; {here['totals']['better']['of']} had a remedy in "
                f"their first alarm, {here['without_remedy']} an alarm without one, {here['silent']} no alarm."
            )
    return "\n".join(lines)


def healthy() -> str:
    """Healthy runs with a guard."""
    told, rows = read(), []
    for part, title in TITLES.items():
        if part in told:
            figures = told[part]["healthy"]
            keys = ("bitwise_where_nothing_was_done", "touched", "touched_and_worse")
            rows.append((title, *(share(figures[key]) for key in keys)))
    heads = ("healthy runs", "the same to the last bit, of those not touched", "touched", "worse, of those touched")
    return "\n".join(table(heads, rows)) if rows else ""


def picture() -> str:
    """The pairs, where there are some."""
    if not any(told.get("rows") for told in read().values() if isinstance(told, dict)):
        return ""
    return "![Final loss of each failing run with the advice taken against without](images/causal.png)"


def experiment() -> str:
    """The demo's language model as one more case."""
    rows = []
    for row in read().get("experiment", []):
        losses = (f"{row[arm]:.2f}" for arm in ("continued", "remedied", "control"))
        rows.append((str(row["seed"]), str(row["step"]), row["change"], *losses))
    heads = ("seed", "alarm at step", "remedy", "loss when it goes on", "with the remedy", "healthy AdamW beside it")
    return "\n".join(table(heads, rows)) if rows else ""


PARTS: dict[str, Callable[[], str]] = {
    "causal-totals": totals,
    "causal-coverage": coverage,
    "causal-by-code": by_code,
    "causal-healthy": healthy,
    "causal-picture": picture,
    "causal-experiment": experiment,
}
