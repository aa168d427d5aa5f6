"""Draws a run at a glance with rich, the one module that imports it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import TextIO

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.report.terminal.glance import ENDED, GOES_ON, Glance
from thermoclaw.report.terminal.sparkline import sparkline
from thermoclaw.wording import number, one_line, short_name

try:
    from rich.console import Console, Group, RenderableType
    from rich.live import Live
    from rich.padding import Padding
    from rich.rule import Rule
    from rich.table import Table
    from rich.text import Text
except ImportError as error:
    raise ImportError("watching a run in the terminal needs rich: pip install 'thermoclaw[terminal]'") from error

__all__ = ["Console", "Live", "console", "frame", "message"]

MOST_FINDINGS = 4
_STYLES = {"HIGH": "bold red", "MEDIUM": "yellow", "LOW": "dim"}
_NARROW, _WIDE = 60, 100  # columns


def console(stream: TextIO | None = None, *, no_color: bool = False, width: int | None = None) -> Console:
    """A console that writes color to a terminal only, and neither with `no_color` nor with NO_COLOR."""
    plain = no_color or bool(os.environ.get("NO_COLOR"))
    return Console(file=stream, no_color=plain, highlight=False, emoji=False, markup=False, width=width)


def message(text: str) -> RenderableType:
    """A line to wait with."""
    return Text(one_line(text), style="dim")


def frame(seen: Glance, *, name: str, width: int, plain: bool = False, hint: str = "") -> RenderableType:
    """One picture of the run.

    Args:
        seen: what to show.
        name: of the run.
        width: of the terminal, in columns.
        plain: the terminal has no block characters.
        hint: a last line.
    """
    state = _state(seen)
    title = Text(f"{short_name(name, max(width - len(state) - 6, 8))} · ").append_text(state)
    parts: list[RenderableType] = [
        Rule(title, align="left", style="dim"),
        Text(seen.facts, style="dim"),
        Text(),
        _lines(seen, width=width, plain=plain),
        Text(),
        *_verdict(seen, width=width),
    ]
    if seen.layers:
        parts += [Text(), _layers(seen, width=width, plain=plain)]
    if hint:
        parts += [Text(), Text(hint, style="dim")]
    return Group(*parts)


def _state(seen: Glance) -> Text:
    speed = f", {number(seen.steps_per_s)} steps/s" if math.isfinite(seen.steps_per_s) else ""
    if seen.state == GOES_ON:
        return Text(f"running{speed} ", style="green")
    if seen.state == ENDED:
        return Text("ended ", style="bold")
    return Text(f"no new rows for {_duration(seen.silent_s)}: stopped or killed? ", style="bold yellow")


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _lines(seen: Glance, *, width: int, plain: bool) -> Table:
    table = Table.grid(padding=(0, 1))
    narrow = width < _NARROW
    label_width = 12 if narrow else 21
    room = max(min(width - label_width - 12, 120), 8)
    table.add_column(width=label_width, style="dim", overflow="ellipsis", no_wrap=True)
    table.add_column(width=room, style="cyan", no_wrap=True)
    table.add_column(justify="right", no_wrap=True, style="bold")
    for line in seen.lines:
        drawn = sparkline(seen.steps, line.values, room, plain=plain)
        value = f"{line.last:.0%}" if line.name == "eq_frac" else number(line.last)
        table.add_row(line.name if narrow else line.label, drawn, value)
    return table


def _verdict(seen: Glance, *, width: int) -> Iterator[RenderableType]:
    urgent = [finding for finding in seen.findings if finding.confidence != "LOW"]
    if not urgent:
        more = f" ({len(seen.findings)} for information)" if seen.findings else ""
        yield Text(f"healthy{more}", style="bold green")
    else:
        yield Text(f"{len(urgent)} finding{'s' if len(urgent) != 1 else ''} to act on", style="bold red")
    shown = (urgent or seen.findings)[:MOST_FINDINGS]
    for finding in shown:
        yield from _finding(finding, is_first=finding is shown[0], width=width)
    if len(seen.findings) > len(shown):
        yield Text(f"  and {len(seen.findings) - len(shown)} more: thermoclaw diagnose RUN", style="dim")


def _finding(finding: Finding, *, is_first: bool, width: int) -> Iterator[RenderableType]:
    head = Text().append(f"[{finding.confidence}] ", _STYLES.get(finding.confidence, ""))
    yield head.append(finding.title, style="bold").append(f" ({finding.code}, since step {finding.first_step})", "dim")
    if is_first:
        advice = one_line(finding.advice, max(4 * (width - 4), 80))
        yield Padding(Text(advice), (0, 0, 0, 4))


def _layers(seen: Glance, *, width: int, plain: bool) -> Table:
    table = Table.grid(padding=(0, 1))
    narrow, wide = width < _NARROW, width >= _WIDE
    name_width = max(min(width - (34 if narrow else 72 if wide else 58), 40), 12)
    table.add_column(width=name_width, no_wrap=True)
    table.add_column(width=9, style="dim", no_wrap=True)
    heads = ["layers to look at" if name_width > 16 else "layer", "type", "r", "R_ie"]
    for _ in range(2 if narrow else 3):
        table.add_column(justify="right", no_wrap=True, min_width=5)
    if not narrow:
        heads += ["‖Δ‖/‖θ‖", "σ"]
        table.add_column(style="cyan", no_wrap=True, width=30 if wide else 16)
    table.add_row(*(Text(head, style="dim") for head in heads))
    for layer in seen.layers:
        name = Text(short_name(layer.name, name_width), style="bold yellow" if layer.is_named else "")
        cells: list[RenderableType] = [name, layer.ltype, number(layer.r), number(layer.R_ie)]
        if not narrow:
            cells += [number(layer.update_ratio), sparkline(seen.steps, layer.sigma, 30 if wide else 16, plain=plain)]
        table.add_row(*cells)
    return table
