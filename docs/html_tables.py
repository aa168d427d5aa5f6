"""The table of the page on the HTML report: what `benchmarks/html_report.py` measured."""

from __future__ import annotations

import json
from collections.abc import Callable

from cost_tables import RESULTS
from markdown_tables import table


def html_report() -> str:
    """Seconds to build and to open, and size, by length and width of the run."""
    measured = json.loads((RESULTS / "html_report.json").read_text(encoding="utf-8"))
    told = measured["environment"]
    rows = [
        (
            f"{row['steps']:,}",
            f"{row['layers']:,}",
            f"{row['build_s']:.1f} s",
            f"{row['rules_s']:.1f} s",
            f"{row['megabytes']:.1f} MB",
            "–" if row["open_s"] is None else f"{row['open_s']:.1f} s",
        )
        for row in measured["pages"]
    ]
    heads = ("recorded steps", "layers", "to build", "to ask the rules before", "size", "to open in Chromium")
    rounds = len(measured["pages"][0]["build_s_all"])
    load = f"at a load of {told['load_before']:.0f} from other work on {told['cores']} cores"
    where = f"Median of {rounds}, {told['processor']}, {load}, {told['date']}."
    return "\n".join([*table(heads, rows), "", where])


PARTS: dict[str, Callable[[], str]] = {"html-report": html_report}
