"""One page for one run: is it healthy, where is it not, and since when.

Eight panels share the axis of steps. The left column says how the run as a whole is doing, the right column in which
layers; findings are numbered at the top and drawn through all panels at the step where they begin.

Legend: T recorded steps, L layers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from thermoclaw.record import Record
from thermoclaw.report import dashboard_panels as draw_panel
from thermoclaw.report import panels, style
from thermoclaw.report.facts import run_facts
from thermoclaw.report.lettering import clean
from thermoclaw.report.marks import STRIP_LINE_IN, Mark, finding_strip, make_marks, mark_steps, number_marks
from thermoclaw.report.series import make_bins

WIDTH_IN, LEFT_IN, COLUMN_IN, RIGHT_IN = 11.0, 0.78, 4.05, 6.22
TOP_ROW_IN, ROW_IN, BOTTOM_ROW_IN, GAP_IN = 1.95, 1.3, 2.1, 0.48
MAX_LISTED = 8

Panel = Callable[[Any, Record], None]


def plot_dashboard(
    record: Record,
    *,
    findings: Iterable[Any] | None = None,
    save_path: str | os.PathLike[str] | None = None,
    show: bool | None = None,
    title: str | None = None,
) -> style.Figure:
    """Draw the eight-panel page of a run, with its findings marked on the time axes.

    Light lines are the values as recorded, strong lines their running mean over a fortieth of the run (a mean of
    logarithms on logarithmic axes). Areas and maps average neighboring steps where a run is too long to show each.

    Args:
        record: the run.
        findings: what `diagnose` found, ranked; anything with `code`, `confidence`, `first_step` and `title`. The
            first eight are drawn and listed, the others counted. An empty list is a clean bill, and the page says so;
            None says nothing about the run's health.
        save_path: a .png, .pdf or .svg to write (".png" is added where there is no suffix); missing folders are made.
        show: True opens a window and False does not; by default one opens where matplotlib can open one. With a
            `save_path` none opens in any case.
        title: the page's title; by default how many findings there are.

    Returns:
        The matplotlib Figure.

    Raises:
        TypeError: `record` is no Record.
        ValueError: the suffix of `save_path` names no format that can be written.
        OSError: the file cannot be written; the message names it.

    Example:
        >>> import numpy as np
        >>> from thermoclaw.quantities import LAYER_COLUMNS, RUN_COLUMNS
        >>> from thermoclaw.record import LayerInfo, Record
        >>> values, run = np.full((5, 1, len(LAYER_COLUMNS)), 0.1), np.ones((5, len(RUN_COLUMNS)))
        >>> record = Record(np.arange(1, 6), (LayerInfo("fc", "mlp", 10),), values, run)
        >>> len(plot_dashboard(record, show=False).axes) >= 8
        True
    """
    panels.check_record(record, "plot_dashboard")
    marks = make_marks(findings or ())
    if title is None:
        title = "Training run" if findings is None else _verdict(marks)
    listed = marks[:MAX_LISTED]
    strip_in = STRIP_LINE_IN * (len(listed) + (len(marks) > len(listed)))
    head_in = 0.86 + strip_in + (0.5 if listed else 0.3)
    height_in = head_in + TOP_ROW_IN + 2 * ROW_IN + BOTTOM_ROW_IN + 3 * GAP_IN + 0.8
    with style.picture(WIDTH_IN, height_in, save_path, show) as figure:
        _page_head(figure, record, marks, listed, title)
        bottom_in = _panels(figure, record, listed, head_in)
        mean = [style.Line2D([], [], color=style.INK, lw=1.8, label="mean of layers")]
        panels.type_legend(figure, record, left_in=LEFT_IN, top_in=bottom_in + 0.5, extra=mean)
    return figure


def _panels(figure: Any, record: Record, marks: Sequence[Mark], top_in: float) -> float:
    """Draw the eight panels; returns where the last row ends, in inches from the top."""
    edges = make_bins(np.asarray(record.steps, dtype=float), panels.MAP_BINS).edges
    half_in = (BOTTOM_ROW_IN - 0.36) / 2
    rows = [top_in]
    for height_in in (TOP_ROW_IN, ROW_IN, ROW_IN, half_in):
        rows.append(rows[-1] + height_in + GAP_IN)
    rows[4] = rows[3] + half_in + 0.36
    pad = 17.0 if any(mark.step is not None for mark in marks) else 5.0
    ratio_map = partial(draw_panel.ratio_map, pad=pad, label_room_in=RIGHT_IN - LEFT_IN - COLUMN_IN)
    plan: tuple[tuple[Panel, Panel, float], ...] = (
        (partial(draw_panel.loss, pad=pad), ratio_map, TOP_ROW_IN),
        (draw_panel.overhead, draw_panel.dispersion, ROW_IN),
        (draw_panel.split, draw_panel.coherence, ROW_IN),
        (draw_panel.learning_rate, draw_panel.relative_step, half_in),
        (draw_panel.equilibrium, draw_panel.distance, half_in),
    )
    for row, (left, right, height_in) in enumerate(plan):
        for left_in, draw in ((LEFT_IN, left), (RIGHT_IN, right)):
            ax = style.place(figure, left_in, rows[row], COLUMN_IN, height_in)
            ax.set_xlim(edges[0], edges[-1])
            draw(ax, record)
            panels.time_axis(ax, edges, label=row == len(plan) - 1)
            mark_steps(ax, marks)
            if row == 0:
                number_marks(ax, marks, width_in=COLUMN_IN)
    return rows[4] + half_in


def _verdict(marks: Sequence[Mark]) -> str:
    """The findings in a few words."""
    if not marks:
        return "No findings"
    steps = [mark.step for mark in marks if mark.step is not None]
    since = f", {'from' if len(marks) == 1 else 'the first from'} step {min(steps):,.0f}" if steps else ""
    return f"{len(marks)} finding{'s' if len(marks) > 1 else ''}{since}"


def _page_head(figure: Any, record: Record, marks: Sequence[Mark], listed: Sequence[Mark], title: str) -> None:
    """Title, the run in a line, and the strip of findings."""
    width_in = WIDTH_IN - 2 * LEFT_IN
    style.write(figure, LEFT_IN, 0.2, clean(title, width=width_in * 72, size=15), size=15)
    style.write(figure, LEFT_IN, 0.54, clean(run_facts(record), width=width_in * 72), color=style.SOFT)
    finding_strip(figure, listed, left_in=LEFT_IN, top_in=0.86, width_in=width_in)
    if len(marks) > len(listed):
        more = f"and {len(marks) - len(listed)} more in the report"
        style.write(figure, LEFT_IN + 0.3, 0.86 + STRIP_LINE_IN * len(listed), more, color=style.SOFT)
