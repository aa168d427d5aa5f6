"""The generated parts of "What am I looking at": every quantity with its picture, from the table, notes and runs."""

from __future__ import annotations

import json
from typing import Any

from cost_tables import RESULTS
from markdown_tables import plain, table
from quantity_notes import GROUPS, NOTES


def quantities_seen() -> str:
    """A section for each question, and in it every quantity that answers it."""
    measured = json.loads((RESULTS / "quantities.json").read_text(encoding="utf-8"))
    lines: list[str] = []
    for group in GROUPS:
        lines += [f"## {group.title}", "", group.text, ""]
        for name in group.notes:
            lines += [*one(name, measured), ""]
    return "\n".join(lines)


def one(name: str, measured: dict[str, Any]) -> list[str]:
    """What a quantity is, its picture, what it was in those runs, what moves it, its bands."""
    from thermoclaw.quantities import TABLE

    quantity, note = TABLE[name], NOTES[name]
    shown = "" if quantity.symbol in ("", name) else f" {plain(quantity.symbol)}"
    per = "layer and step" if quantity.scope == "layer" else "step"
    lines = [f"### [`{name}`](quantities.md#{name}){shown} {{ #{name} }}", "", plain(quantity.meaning), ""]
    lines += [f"![{name}: healthy on the left, faulty on the right](images/quantities/{name}.png){{ loading=lazy }}"]
    lines += [*caption(name, measured), ""]
    lines += [f"- **Formula:** {plain(quantity.formula)}, for each {per}"]
    lines += [f"- **Unit:** {plain(quantity.unit)}", f"- **Moves:** {note.moves}"]
    if quantity.bands:
        rows = [(plain(band.range), plain(band.meaning)) for band in quantity.bands]
        return [*lines, "", *table(("value", "reading"), rows)]
    return [*lines, "- **Bands:** none; compare it with its own past and with the other layers"]


def caption(name: str, measured: dict[str, Any]) -> list[str]:
    """The numbers of the two runs, where they tell them apart."""
    from thermoclaw.quantities import TABLE

    medians, note = measured["medians"][name], NOTES[name]
    healthy, faulty = (said(medians[run]) for run in (note.healthy, note.faulty))
    where = "the layers and " if TABLE[name].scope == "layer" else ""
    text = f"<small>Median over {where}the last {measured['rows']} steps: {healthy} healthy, {faulty} faulty.</small>"
    return [] if healthy == faulty else ["", text]


def said(value: float | None) -> str:
    """A number as the report writes it."""
    from thermoclaw.wording import number

    return "nothing" if value is None else number(value)


def runs() -> str:
    """The runs behind the pictures, how they ended and what was found."""
    measured = json.loads((RESULTS / "quantities.json").read_text(encoding="utf-8"))["runs"]
    rows = []
    for name, run in measured.items():
        found = [
            f"[`{code}`](recommendations.md#{code}) {sure}, since step {step}" for code, sure, step in run["findings"]
        ]
        first, last = (said(value) for value in run["loss"])
        model = "GPT" if name.startswith("gpt") else "perceptron"
        rows.append((model, run["label"], f"{first} → {last}", "; ".join(found) or "nothing"))
    return "\n".join(table(("model", "run", "loss: first → mean of the last", "what `diagnose` finds"), rows))


PARTS = {"quantities-seen": quantities_seen, "quantity-runs": runs}
