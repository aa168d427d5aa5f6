"""One page for the entropy split: how much is productive, what takes the rest, when and in which layers.

Legend: T recorded steps, L layers, B bins.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from thermoclaw.quantities import R_IE_CAP, Array
from thermoclaw.record import Record
from thermoclaw.report import panels, style
from thermoclaw.report.facts import run_facts, steps_text
from thermoclaw.report.lettering import clean, short_names
from thermoclaw.report.series import (
    SPLIT_PARTS,
    bin_sum,
    last_value,
    layer_types,
    make_bins,
    ratio_of_means,
    smooth,
    smoothing_width,
    split_shares,
    sum_over_layers,
)
from thermoclaw.wording import number

WIDTH_IN, LEFT_IN, COLUMN_IN, RIGHT_IN, RIGHT_COLUMN_IN = 11.0, 0.78, 4.3, 7.0, 3.2
TOP_IN, ROW_IN, GAP_IN, MAP_IN = 1.2, 2.05, 0.62, 2.3
MAP_LEFT_IN = 2.3
NUM_WORST = 10

NEGLIGIBLE = 0.01
"""A layer with less than this part of its fair share of σ is not ranked: what its R_ie says is nobody's concern."""

NOTHING = 1e-8
"""Below this share of a step's σ a layer's R_ie is made of rounding errors and drawn as undefined."""


def plot_entropy_split(
    record: Record, *, save_path: str | os.PathLike[str] | None = None, show: bool | None = None
) -> style.Figure:
    """Draw how the entropy production of a run splits into productive work and overhead.

    Shares and amounts over time on the left; on the right the layer types and the worst layers over the last quarter
    of the steps that have an entropy production; below, R_ie of every layer at every step.

    Args:
        record: the run.
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
    panels.check_record(record, "plot_entropy_split")
    second_in, third_in = TOP_IN + ROW_IN + GAP_IN, TOP_IN + 2 * (ROW_IN + GAP_IN) + 0.1
    with style.picture(WIDTH_IN, third_in + MAP_IN + 0.85, save_path, show) as figure:
        style.write(figure, LEFT_IN, 0.2, "Entropy split: productive work and overhead", size=15)
        facts = clean(run_facts(record), width=(WIDTH_IN - 2 * LEFT_IN) * 72)
        style.write(figure, LEFT_IN, 0.54, facts, color=style.SOFT)
        edges = make_bins(np.asarray(record.steps, dtype=float), panels.MAP_BINS).edges
        late = _late_rows(record)
        for draw, top_in in ((_shares, TOP_IN), (_amounts, second_in)):
            ax = style.place(figure, LEFT_IN, top_in, COLUMN_IN, ROW_IN)
            ax.set_xlim(edges[0], edges[-1])
            draw(ax, record)
            panels.time_axis(ax, edges, label=draw is _amounts)
        _types(style.place(figure, RIGHT_IN, TOP_IN, RIGHT_COLUMN_IN, ROW_IN), record, late)
        _worst(style.place(figure, RIGHT_IN, second_in, RIGHT_COLUMN_IN, ROW_IN), record, late)
        map_axes = style.place(figure, MAP_LEFT_IN, third_in, RIGHT_IN + RIGHT_COLUMN_IN - MAP_LEFT_IN, MAP_IN)
        _map(map_axes, record)
        panels.time_axis(map_axes, edges, label=True)
        panels.type_legend(figure, record, left_in=MAP_LEFT_IN, top_in=third_in + MAP_IN + 0.5)
    return figure


def _late_rows(record: Record) -> Any:
    """The last quarter of the rows that have an entropy production, at least one; none where there is none."""
    rows = np.flatnonzero(np.nan_to_num(sum_over_layers(record["sigma"]), nan=0.0, posinf=0.0) > 0)
    return rows[-max(1, len(rows) // 4) :]


def _span(record: Record, rows: Any) -> str:
    return steps_text(record.steps[rows[0]], record.steps[rows[-1]])


def _shares(ax: Any, record: Record) -> None:
    panels.head(ax, "Where σ goes")
    if not panels.stacked_shares(ax, record):
        panels.no_data(ax)
        return
    ax.set_ylabel("share of σ")
    panels.part_key(ax)


def _amounts(ax: Any, record: Record) -> None:
    """The four parts and their sum, smoothed, on a logarithmic axis."""
    width = smoothing_width(len(record))
    total = smooth(sum_over_layers(record["sigma"]), width)
    if panels.log_limits(total) is None:
        panels.head(ax, "How much it is")
        panels.no_data(ax)
        return
    counting = [total]
    for part in SPLIT_PARTS:
        values = smooth(sum_over_layers(record[part]), width)
        panels.line(ax, record.steps, np.where(values > 0, values, np.nan), color=style.PART_LINES[part], lw=1.3)
        with np.errstate(invalid="ignore"):
            counting.append(np.where(values > 1e-3 * total, values, np.nan))  # less must not flatten the others
    panels.line(ax, record.steps, np.where(total > 0, total, np.nan), color=style.INK, lw=1.8)
    panels.log_axis(ax, panels.log_limits(*counting) or (1e-9, 1.0))
    last = last_value(ratio_of_means(record, width))
    panels.head(ax, "How much it is", "black: all of σ", f"last R_ie {number(last)}")
    ax.set_ylabel("Σ over layers  (loss)")


def _sums(record: Record, rows: Any, columns: Any) -> list[Array]:
    """The parts of the split summed over some rows, and over some layers: [parts][L or groups]."""
    values = [np.where(np.isfinite(record[part][rows]), record[part][rows], 0.0).sum(axis=0) for part in SPLIT_PARTS]
    return [np.array([value[group].sum() for group in columns]) for value in values]


def _overhead_ratio(parts: list[Array]) -> Array:
    internal, external = np.sum(parts[1:], axis=0), parts[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(external > 0, internal / np.where(external > 0, external, 1.0), R_IE_CAP)
    return np.where(internal > 0, np.minimum(ratio, R_IE_CAP), 0.0)


def _types(ax: Any, record: Record, rows: Any) -> None:
    """A stacked bar of shares for each layer type, with its R_ie."""
    types = layer_types(record)
    ltypes = np.array([layer.ltype for layer in record.layers], dtype=object)
    parts = _sums(record, rows, [ltypes == ltype for ltype in types]) if len(rows) else []
    if not len(rows) or not types:
        panels.head(ax, "By layer type")
        panels.no_data(ax)
        return
    panels.head(ax, "By layer type", _span(record, rows))
    places = np.arange(len(types))
    left = np.zeros(len(types))
    for part, share in zip(SPLIT_PARTS, split_shares(parts), strict=True):
        share = np.nan_to_num(share)
        ax.barh(places, share, left=left, height=0.62, color=style.PART_COLORS[part], lw=0)
        left += share
    for y, (ratio, total) in enumerate(zip(_overhead_ratio(parts), np.sum(parts, axis=0), strict=True)):
        text = f"R_ie {number(ratio)}" if total > 0 else "no σ"
        ax.text(1.02, y, text, va="center", size=8.5, color=style.SOFT)
    ax.set_ylim(max(len(types), 3) - 0.4, -0.6)
    ax.set_yticks(places, [clean(ltype, width=100) for ltype in types])
    ax.tick_params(axis="y", length=0)
    ax.grid(False)
    _share_axis(ax)


def _share_axis(ax: Any) -> None:
    ax.set_xlim(0, 1)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    ax.set_xlabel("share of σ")


def _worst(ax: Any, record: Record, rows: Any) -> None:
    """The layers with the highest R_ie, each in the color of the part that takes most."""
    title = "Worst layers by R_ie"
    if not len(rows) or not record.layers:
        panels.head(ax, title)
        panels.no_data(ax)
        return
    parts = _sums(record, rows, list(np.arange(len(record.layers))[:, None]))
    total = np.sum(parts, axis=0)
    counts = total > NEGLIGIBLE / len(total) * total.sum()
    ratio = np.where(counts, _overhead_ratio(parts), -1.0)
    worst = [i for i in np.argsort(-ratio, kind="stable")[:NUM_WORST] if ratio[i] >= 0]
    panels.head(ax, title, _span(record, rows), "share of σ")
    if not worst:
        panels.no_data(ax)
        return
    main = np.argmax(np.stack(parts[1:]), axis=0)
    colors = [style.PART_COLORS[SPLIT_PARTS[1 + main[i]]] for i in worst]
    ax.barh(np.arange(len(worst)), ratio[worst], height=0.62, color=colors, lw=0, zorder=2)
    top = min(max(float(ratio[worst].max()) * 1.25, 6.5), R_IE_CAP * 1.2)
    panels.stretched_axis(ax.xaxis, top, linear_to=1.0, ticks=panels.R_IE_TICKS)
    panels.shade(ax, panels.R_IE_BANDS, horizontal=True)
    ax.set_ylim(max(len(worst), 3) - 0.4, -0.6)
    names = short_names(record.layer_names, width=1.6 * 72, size=8.5)
    ax.set_yticks(np.arange(len(worst)), [names[i] for i in worst])
    ax.tick_params(axis="y", length=0)
    for y, i in enumerate(worst):
        share = f"{100 * total[i] / total.sum():.2g} %" if total[i] > 1e-4 * total.sum() else "< 0.01 %"
        ax.text(top, y, f" {share}", va="center", size=8.5, color=style.SOFT, clip_on=False)
    ax.grid(False)
    ax.set_xlabel("R_ie, color: its largest part" + ("" if counts.all() else "; layers without σ left out"))


def _map(ax: Any, record: Record) -> None:
    """R_ie of every layer at every step, as a ratio of sums within a bin."""
    panels.head(ax, "R_ie of every layer", "overhead per unit of productive work: light is good, gray without σ")
    if not len(record) or not np.isfinite(record["R_ie"]).any():
        panels.no_data(ax)
        return
    bins = make_bins(np.asarray(record.steps, dtype=float), panels.MAP_BINS)
    known = np.isfinite(record["d_iS"]) & np.isfinite(record["d_eS"])
    parts = [bin_sum(np.where(known, record[name], np.nan), bins) for name in ("d_eS", "d_iS")]
    sigma = parts[0] + parts[1]
    with np.errstate(invalid="ignore"):
        defined = sigma >= NOTHING * sum_over_layers(sigma)[:, None]
    values = np.where(defined, _overhead_ratio(parts), np.nan)
    mesh = panels.heat_map(ax, record, values, bins, edges=panels.R_IE_EDGES, colors=panels.R_IE_COLORS)
    panels.layer_labels(ax, record, room_in=MAP_LEFT_IN)
    panels.color_key(ax, mesh, panels.R_IE_EDGES)
