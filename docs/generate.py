"""Fills the generated parts of the documentation from the code, each time the pages are built.

A page asks for a part with a line of its own, `<!-- generate: quantities -->`. Nothing generated is stored, so nothing
can go stale; a name that no function here answers for fails the build.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thermoclaw.quantities import Quantity

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
ARMS = ("thermoclaw", "thermoclaw 0.1.6")
THEORY = re.compile(r"docs: theory, ([\w -]*\w)")
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


def rules() -> str:
    """A section for every rule: what it detects, by which signal and threshold, and from which source."""
    from thermoclaw.diagnosis.rules import RULES

    rows = [(f"[`{rule.code}`](#{rule.code})", plain(rule.detects)) for rule in RULES]
    lines = table(("code", "what it detects"), rows)
    for rule in RULES:
        lines += ["", f"### `{rule.code}` {{ #{rule.code} }}", "", f"{plain(rule.detects)}.", ""]
        lines += [f"- **Looks at:** {plain(rule.signal)}", f"- **Speaks when:** {plain(rule.threshold)}"]
        lines.append(f"- **Source:** {linked(rule.source)}")
    return "\n".join(lines)


def overhead() -> str:
    """Cost of a step's measurement by size and arm, from the benchmark's file."""
    measured = json.loads((RESULTS / "overhead_cpu.json").read_text())
    ours, rival = ({(r["size"], r["threads"]): r for r in measured["results"] if r["arm"] == a} for a in ARMS)
    rows = []
    for key, row in ours.items():
        beside = rival.get(key)
        share = "–" if row["share_of_step"] is None else f"{row['share_of_step']:.1%}"
        other = "–" if beside is None else f"{beside['instrument_over_clip']:.1f} ×"
        size = f"{row['num_params'] / 1e6:.1f}M in {row['num_tensors']} tensors"
        rows.append((size, str(row["threads"]), f"{row['instrument_over_clip']:.1f} ×", other, share))
    return "\n".join(table(("parameters", "threads", "this version", "thermoclaw 0.1.6", "of the step"), rows))


def held() -> str:
    """Memory and host reads by size, from the benchmark's file."""
    measured = json.loads((RESULTS / "overhead_cpu.json").read_text())
    seen: dict[str, tuple[str, ...]] = {}
    for row in measured["results"]:
        if row["arm"] == ARMS[0]:
            total = row["held_bytes_per_param"] * row["num_params"]
            cells = (f"{total / 1e6:.1f} MB", f"{row['held_bytes_per_param']:.2f}", f"{row['host_reads_per_step']:.0f}")
            seen[row["size"]] = (f"{row['num_params'] / 1e6:.1f}M", *cells)
    lines = table(("parameters", "held", "bytes a parameter", "values read by the host in a step"), seen.values())
    growth = {row["arm"]: row["growth_bytes_per_step"] for row in measured["growth"]}
    told = "; ".join(f"{arm}: {value:,.0f} bytes" for arm, value in growth.items())
    return "\n".join([*lines, "", f"Growth of the process a step, once every buffer is full ({told})."])


def machine() -> str:
    """What the benchmark ran on."""
    env = json.loads((RESULTS / "overhead_cpu.json").read_text())["environment"]
    return f"{env['processor']}, {env['cores']} cores, Python {env['python']}, PyTorch {env['torch']}, {env['date']}."


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


def plain(text: str) -> str:
    """Text from the code in which nothing is taken for Markdown."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(text, quote=False))


def linked(source: str) -> str:
    """A source in which `docs: theory, the entropy split` has become a link to that section."""
    return THEORY.sub(lambda match: f"[theory: {match[1]}](theory.md#{match[1].replace(' ', '-')})", plain(source))


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """A Markdown table of cells that are Markdown already."""
    cells = [head, tuple("---" for _ in head), *rows]
    return ["| " + " | ".join(row) + " |" for row in cells]


PARTS: dict[str, Callable[[], str]] = {
    "quantities": quantities,
    "rules": rules,
    "overhead": overhead,
    "held": held,
    "machine": machine,
    "demo": demo,
}
