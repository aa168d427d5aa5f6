"""What watched modules put out over a run: spread, rank, size, dead features, and where a finding was raised."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from thermoclaw.diagnosis.checks import Checks, checks_of
from thermoclaw.diagnosis.engine import find
from thermoclaw.diagnosis.rules.representation import CODES
from thermoclaw.record import Record
from thermoclaw.report import panels, style
from thermoclaw.report.lettering import plain

PANEL_IN, HEIGHT_IN, LEFT_IN, GAP_IN, TOP_IN, BOTTOM_IN = 2.9, 2.4, 0.7, 0.75, 1.0, 0.55
PANELS = (
    ("spread", "Spread of directions", "0: all outputs point one way"),
    ("rank_share", "Rank share", "effective rank over that of noise"),
    ("scale", "Scale", "standard deviation of a feature"),
    ("dead_share", "Dead features", "zero for every row of a check"),
)
MOST_LINES = 8


def plot_representation(
    record: Record | Mapping[str, Record],
    *,
    save_path: str | os.PathLike[str] | None = None,
    show: bool | None = None,
) -> style.Figure:
    """Draw the checks of watched modules, a line for each; a dotted line stands where a finding was raised.

    Args:
        record: a run, or several by name, whose lines then carry it.
        save_path: a .png, .pdf or .svg to write (".png" is added where there is no suffix); missing folders are made.
        show: True opens a window and False does not; by default one opens where matplotlib can open one.

    Returns:
        The matplotlib Figure.

    Raises:
        TypeError: it is no Record.
        ValueError: the suffix of `save_path` names no format that can be written.
        OSError: the file cannot be written; the message names it.
    """
    runs = dict(record) if isinstance(record, Mapping) else {"": record}
    for run in runs.values():
        panels.check_record(run, "plot_representation")
    lines = [(_label(name, checks), checks) for name, run in runs.items() for checks in checks_of(run)][:MOST_LINES]
    raised = [(i, f) for i, run in enumerate(runs.values()) for f in find(run) if f.code in CODES]
    width = LEFT_IN + len(PANELS) * (PANEL_IN + GAP_IN) - GAP_IN + 0.25
    with style.picture(width, TOP_IN + HEIGHT_IN + BOTTOM_IN, save_path, show) as figure:
        style.write(figure, LEFT_IN, 0.15, "Representations", size=14)
        for place, (name, title, note) in enumerate(PANELS):
            ax = style.place(figure, LEFT_IN + place * (PANEL_IN + GAP_IN), TOP_IN, PANEL_IN, HEIGHT_IN)
            if not lines:
                panels.no_data(ax, "nothing was watched")
                continue
            panels.head(ax, title)
            for number, (label, checks) in enumerate(lines):
                color = style.RUN_COLORS[number % len(style.RUN_COLORS)]
                ax.plot(checks.steps, checks[name], ".-", ms=3.5, lw=1.2, color=color, label=label)
            _dress(ax, name, note, lines)
            for at, finding in raised:
                color = style.CONFIDENCE[finding.confidence][0] if len(runs) == 1 else style.RUN_COLORS[at]
                ax.axvline(finding.raised_step, color=color, lw=0.9, ls=(0, (1, 1.5)))
        if lines:
            figure.axes[0].legend(
                loc="lower left", bbox_to_anchor=(0, 1.13), ncols=4, fontsize=8, borderaxespad=0.0, handlelength=1.4
            )
    return figure


def _dress(ax: Any, name: str, note: str, lines: list[tuple[str, Checks]]) -> None:
    if name == "scale":
        known = np.concatenate([checks["scale"][checks["scale"] > 0] for _, checks in lines])
        if len(known) and known.max() > 10 * known.min():
            ax.set_yscale("log")
        elif len(known):
            ax.set_ylim(0, 1.05 * known.max())
    else:
        top = max(float(np.nanmax(np.append(checks[name], 0.0))) for _, checks in lines)
        ax.set_ylim(0, 1.05 * max(top, 1.0 if name != "rank_share" else 0.5))
    ax.set_ylabel(note)
    ax.set_xlabel("optimizer step")


def _label(run: str, checks: Checks) -> str:
    text = plain(checks.name)
    return plain(f"{run}: {text}") if run else text
