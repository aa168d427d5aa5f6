"""Pairs of final losses as a picture: the run that went on against the run that took the advice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thermoclaw.report.style import (
    FAINT,
    INK,
    RUN_COLORS,
    SOFT,
    FixedLocator,
    FuncFormatter,
    Line2D,
    NullLocator,
    picture,
    place,
    write,
)

LOW, HIGH = 0.5, 30.0  # of the healthy run's loss; beyond it, and not finite, lies on the lane outside
LANE = 60.0
TICKS = (0.5, 1, 2, 5, 10, 20)
MARKERS = "osD^vPX*"  # beside colors, so that no color has to be told from another
TITLES = {"held_out": "Held-out programs", "dev": "Development programs"}
ARMS = {"remedied": ("the knob alone", "totals"), "rolled_back": ("with earlier weights", "rolled_back")}
TOP, SIDE, LEFT, ACROSS, DOWN = 1.15, 4.0, 0.95, 0.9, 1.05  # inches


def draw_pairs(told: Mapping[str, Any], path: Path) -> Path:
    """A point a failing run: its loss when it goes on, and when it takes the advice, both over the healthy run's.

    Args:
        told: as `causal_report.document` makes it.
        path: of the picture.

    Returns:
        The path.
    """
    parts = [part for part in TITLES if told.get(part, {}).get("rows")]
    rows = [row for part in parts for row in told[part]["rows"]]
    codes = sorted({row["code"] for row in rows}, key=lambda code: (-sum(r["code"] == code for r in rows), code))
    looks = {code: (RUN_COLORS[i % len(RUN_COLORS)], MARKERS[i % len(MARKERS)]) for i, code in enumerate(codes)}
    path.parent.mkdir(parents=True, exist_ok=True)
    width = LEFT + len(parts) * SIDE + (len(parts) - 1) * ACROSS + 0.25
    columns = max(int(width / 2.6), 1)
    bottom = TOP + len(ARMS) * SIDE + (len(ARMS) - 1) * DOWN
    with picture(width, bottom + 0.75 + 0.28 * math.ceil(len(codes) / columns), path, None) as figure:
        write(figure, 0.15, 0.12, "Does the advice help?", fontsize=16, color=INK)
        note = "Final loss over that of the healthy run, a point for each failing run"
        write(figure, 0.15, 0.47, f"{note} (lost: above {HIGH:g}× or not finite)", fontsize=11, color=SOFT)
        for i, part in enumerate(parts):
            for j, arm in enumerate(ARMS):
                axes = place(figure, LEFT + i * (SIDE + ACROSS), TOP + j * (SIDE + DOWN), SIDE, SIDE)
                _panel(axes, told[part], looks, arm, title=TITLES[part])
        handles = [
            Line2D([], [], linestyle="", color=c, marker=m, markersize=8, label=code) for code, (c, m) in looks.items()
        ]
        figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.01, 0.005), ncols=columns, fontsize=11)
    return path


def _panel(axes: Any, part: Mapping[str, Any], looks: Mapping[str, tuple[str, str]], arm: str, *, title: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    edge = LANE * 1.4
    axes.plot([LOW, HIGH], [LOW, HIGH], color=SOFT, linewidth=1.2)
    axes.axhline(1.0, color=SOFT, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.fill_between([LOW, HIGH], [LOW, HIGH], edge, color=FAINT, linewidth=0)
    for i, row in enumerate(part["rows"]):
        color, marker = looks[row["code"]]
        style = {"color": color, "marker": marker, "markersize": 7, "markeredgecolor": "white", "markeredgewidth": 0.7}
        x, y = _at(row["continued"], row, i * 0.755), _at(row[arm], row, i * 0.57)
        axes.plot([x], [y], linestyle="", alpha=0.85, **style)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator([*TICKS, LANE]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: "lost" if value == LANE else f"{value:g}×"))
    axes.set_xlim(LOW, edge)
    axes.set_ylim(LOW, edge)
    axes.tick_params(labelsize=11)
    what, key = ARMS[arm]
    axes.set_xlabel("it goes on", fontsize=12)
    axes.set_ylabel("it takes the advice", fontsize=12)
    counts = ", ".join(f"{part[key][effect]['hits']} {effect}" for effect in ("better", "tie", "worse"))
    axes.set_title(f"{title}, {what}:\n{counts}", fontsize=11.5, loc="left", color=INK)
    axes.text(0.03, 0.97, "worse", transform=axes.transAxes, fontsize=11, color=SOFT, va="top")
    axes.text(0.97, 0.03, "better", transform=axes.transAxes, fontsize=11, color=SOFT, ha="right")


def _at(loss: float | None, row: Mapping[str, Any], turn: float) -> float:
    """Where a loss lies, in multiples of the control's; lost ones spread over their lane."""
    value = math.inf if loss is None else loss / row["control"]
    return LANE * 1.22 ** (2.0 * (turn % 1.0) - 1.0) if value > HIGH else max(value, LOW * 1.03)
