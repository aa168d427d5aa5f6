"""One picture of every layer at every step: r, with the findings marked where they begin.

Legend: T recorded steps, L layers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from thermoclaw.record import Record
from thermoclaw.report import dashboard_panels, panels, style
from thermoclaw.report.dashboard import MAX_LISTED
from thermoclaw.report.facts import run_facts
from thermoclaw.report.lettering import clean, plain, text_width
from thermoclaw.report.marks import STRIP_LINE_IN, finding_strip, make_marks, mark_steps, number_marks
from thermoclaw.report.series import make_bins

WIDTH_IN, MARGIN_IN, RIGHT_IN = 9.0, 0.3, 0.8
NARROWEST_IN, WIDEST_IN = 0.9, 2.3  # room for the layers' names
LAYER_IN, LOWEST_IN, HIGHEST_IN = 0.17, 1.2, 6.0


def plot_layer_map(
    record: Record,
    *,
    findings: Iterable[Any] = (),
    save_path: str | os.PathLike[str] | None = None,
    show: bool | None = None,
) -> style.Figure:
    """Draw r of every layer at every step: white at equilibrium, blue below, red above, gray where not defined.

    Args:
        record: the run.
        findings: anything with `code`, `confidence`, `first_step` and `title`; the first eight are drawn and listed.
        save_path: a .png, .pdf or .svg to write (".png" is added where there is no suffix); missing folders are made.
        show: True opens a window and False does not; by default one opens where matplotlib can open one. With a
            `save_path` none opens in any case.

    Returns:
        The matplotlib Figure.

    Raises:
        TypeError: `record` is no Record.
        ValueError: the suffix of `save_path` names no format that can be written.
        OSError: the file cannot be written; the message names it.
    """
    panels.check_record(record, "plot_layer_map")
    marks = make_marks(findings)[:MAX_LISTED]
    map_in = min(max(LAYER_IN * len(record.layers), LOWEST_IN), HIGHEST_IN)
    top_in = 0.55 + STRIP_LINE_IN * len(marks) + (0.5 if marks else 0.35)
    left_in = _room_in(record.layer_names)
    with style.picture(WIDTH_IN, top_in + map_in + 0.9, save_path, show) as figure:
        wide_in = WIDTH_IN - 2 * MARGIN_IN
        style.write(figure, MARGIN_IN, 0.2, clean(run_facts(record), width=wide_in * 72), color=style.SOFT)
        finding_strip(figure, marks, left_in=MARGIN_IN, top_in=0.5, width_in=wide_in)
        column_in = WIDTH_IN - left_in - RIGHT_IN
        ax = style.place(figure, left_in, top_in, column_in, map_in)
        edges = make_bins(np.asarray(record.steps, dtype=float), panels.MAP_BINS).edges
        ax.set_xlim(edges[0], edges[-1])
        pad = 17.0 if any(mark.step is not None for mark in marks) else 5.0
        dashboard_panels.ratio_map(ax, record, pad=pad, label_room_in=left_in - 0.2)
        panels.time_axis(ax, edges, label=True)
        mark_steps(ax, marks)
        number_marks(ax, marks, width_in=column_in)
        panels.type_legend(figure, record, left_in=left_in, top_in=top_in + map_in + 0.5)
    return figure


def _room_in(names: Sequence[str]) -> float:
    longest_in = max((text_width(plain(name), 8.0) for name in names), default=0.0) / 72
    return min(max(longest_in + 0.6, NARROWEST_IN), WIDEST_IN)
