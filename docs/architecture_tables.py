"""The table of published architectures, from the file that `benchmarks/architectures.py` wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markdown_tables import table
from zoo_tables import NOT_YET, counts

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "architectures.json"

Row = dict[str, Any]


def architectures() -> str:
    """What was said of each case, over all models."""
    if not RESULTS.exists():
        return f"Figures: {NOT_YET}."
    measured: Row = json.loads(RESULTS.read_text(encoding="utf-8"))
    cases: dict[str, Row] = measured["cases"]
    healthy = [
        (f"healthy, {case}", counts(told["heard"]), "–", _others(told))
        for case, told in cases.items()
        if "named" not in told
    ]
    failing = [
        (case, counts(told["heard"]), counts(told["named"]), _others(told))
        for case, told in cases.items()
        if "named" in told
    ]
    heads = ("runs", "HIGH or MEDIUM said", "right cause first", "what else was said first")
    names = ", ".join(measured["architectures"])
    return "\n".join([f"{names}.", "", *table(heads, [*healthy, *failing])])


def _others(told: Row) -> str:
    return "; ".join(f"{name}: `{code}`" for name, code in told["otherwise"].items()) or "–"


PARTS: dict[str, Callable[[], str]] = {"architectures": architectures}
