"""Fills the generated parts of the documentation from the code, each time the pages are built.

A page asks for a part with a line of its own, `<!-- generate: quantities -->`. Nothing generated is stored, so nothing
can go stale; a name that no function here answers for fails the build.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # whoever loads this file may not look for modules beside it

import architecture_tables
import causal_tables
import clipping_tables
import compatibility_tables
import cost_tables
import extras
import html_tables
import phase_tables
import preflight_tables
import quantity_parts
import representation_tables
import rule_pages
import zoo_cases
import zoo_tables
from cost_tables import RESULTS
from markdown_tables import linked, plain, table

if TYPE_CHECKING:
    from thermoclaw.quantities import Quantity

REQUEST = re.compile(r"^<!-- generate: ([\w-]+) -->$", flags=re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs with the source of every page."""
    return fill(markdown)


def fill(markdown: str) -> str:
    """The page with every requested part in place."""
    return REQUEST.sub(lambda match: PARTS[match[1]](), markdown)


def quantities() -> str:
    """For each scope a table of its quantities, then a section for each."""
    from thermoclaw.quantities import QUANTITIES

    scopes = {
        "layer": ("Per layer and step", "One value for every layer that owns parameters, at every recorded step."),
        "run": ("Per step", "One value for the whole model at every recorded step."),
    }
    lines: list[str] = []
    for scope, (title, text) in scopes.items():
        chosen = [quantity for quantity in QUANTITIES if quantity.scope == scope]
        rows = [(f"[`{q.name}`](#{q.name})", symbol(q), plain(q.unit), plain(q.meaning)) for q in chosen]
        lines += [f"## {title}", "", text, "", *table(("name", "symbol", "unit", "what it tells"), rows), ""]
        for quantity in chosen:
            lines += [*quantity_section(quantity), ""]
    return "\n".join(lines)


def quantity_section(quantity: Quantity) -> list[str]:
    """Definition, unit, other names, source and bands of one quantity."""
    lines = [f"### `{quantity.name}` {symbol(quantity)} {{ #{quantity.name} }}", "", plain(quantity.meaning), ""]
    lines += [f"- **Definition:** {plain(quantity.formula)}", f"- **Unit:** {plain(quantity.unit)}"]
    if quantity.aliases:
        lines.append("- **Also called:** " + ", ".join(f"`{alias}`" for alias in quantity.aliases))
    lines.append(f"- **In the record:** {'stored' if quantity.stored else 'computed from stored quantities when read'}")
    lines.append(f"- **Source:** {linked(quantity.source)}")
    if quantity.bands:
        rows = [(plain(band.range), plain(band.meaning)) for band in quantity.bands]
        lines += ["", *table(("value", "reading"), rows)]
    return lines


def symbol(quantity: Quantity) -> str:
    """The symbol where it says more than the name."""
    return "" if quantity.symbol == quantity.name else plain(quantity.symbol)


def scalars() -> str:
    """What every logger gets, by name."""
    from thermoclaw.integrations.scalars import meanings

    rows = [(f"`{name}`", plain(meaning)) for name, meaning in meanings().items()]
    return "\n".join(table(("name", "meaning"), rows))


def known_issues() -> str:
    """KNOWN_ISSUES.md without its title, its pages as links."""
    text = (RESULTS.parent.parent / "KNOWN_ISSUES.md").read_text(encoding="utf-8").partition("\n")[2]
    return re.sub(r"`docs/([\w/]+\.md)`", lambda match: f"[{match[1]}]({match[1]})", text).strip()


def demo() -> str:
    """The arms of the demo by seed, from the file that the demo wrote."""
    measured = json.loads((RESULTS / "demo.json").read_text())
    rows = []
    for seed in measured["seeds"]:
        ends = seed["perplexity"]
        arms = [f"{ends[name]:,.0f}" for name in ("unmodified", "remedied", "healthy AdamW")]
        rows.append((str(seed["seed"]), str(seed["alarm"]["raised_step"]), *arms))
    heads = ("seed", "alarm at step", "unmodified: perplexity", "remedied", "healthy AdamW beside it")
    return "\n".join(table(heads, rows))


PARTS: dict[str, Callable[[], str]] = {
    "quantities": quantities,
    "demo": demo,
    "extras": extras.extras,
    "known-issues": known_issues,
    "scalars": scalars,
    **architecture_tables.PARTS,
    **causal_tables.PARTS,
    **clipping_tables.PARTS,
    **compatibility_tables.PARTS,
    **cost_tables.PARTS,
    **html_tables.PARTS,
    **phase_tables.PARTS,
    **preflight_tables.PARTS,
    **quantity_parts.PARTS,
    **representation_tables.PARTS,
    **rule_pages.PARTS,
    **zoo_cases.PARTS,
    **zoo_tables.PARTS,
}
