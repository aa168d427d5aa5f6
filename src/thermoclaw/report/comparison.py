"""Several runs side by side: one page, a table of numbers, and the step at which they part.

Legend: T recorded steps.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from thermoclaw.quantities import R_IE_CAP, Array
from thermoclaw.record import Record
from thermoclaw.report import panels, style
from thermoclaw.report.lettering import clean
from thermoclaw.report.series import (
    parts_at,
    series_of,
    smooth,
    smoothing_width,
)
from thermoclaw.wording import number

WIDTH_IN, LEFT_IN, COLUMN_IN, RIGHT_IN = 11.0, 0.82, 4.35, 6.1
TOP_IN, ROW_IN, GAP_IN, TABLE_LINE_IN = 1.15, 1.55, 0.5, 0.24
MAX_LISTED = 12

# name, heading, how the axis runs
PANELS = (
    ("loss", "Loss", "loss"),
    ("R_ie_total", "Overhead R_ie", "R_ie"),
    ("rho_mean", "Coherence ρ", "coherence"),
    ("D", "Dispersion D over layers", "D"),
    ("E_param_dist", "Distance from the start E", "log"),
    ("sigma", "Entropy production σ, all layers", "log"),
    ("eq_frac", "Layers at equilibrium", "share"),
    ("lr", "Learning rate η, median layer", "zero"),
)
TABLE_HEADS = {
    "steps": "steps",
    "loss": "loss at end",
    "loss_min": "lowest loss",
    "R_ie_total": "R_ie",
    "rho_mean": "ρ",
    "D": "D",
    "E_param_dist": "E",
    "eq_frac": "eq_frac",
    "lr": "η",
    "parts_at": "loss parts at",
}


class Comparison(NamedTuple):
    """What `compare` returns: `table[label][quantity]`, and the Figure."""

    table: dict[str, dict[str, float]]
    figure: style.Figure


def compare(
    records: Sequence[Record],
    *,
    labels: Sequence[str] | None = None,
    save_path: str | os.PathLike[str] | None = None,
    show: bool | None = None,
) -> Comparison:
    """Draw several runs into the same panels and tabulate how they ended and where they parted from the first.

    Lines are running means over a fortieth of each run. A triangle at the foot of a panel marks, in a run's color, the
    step from which on it stays apart from the first run, by more than the noise of both and by more than 2 %.

    Args:
        records: the runs; the first is the reference.
        labels: a name for each run; by default the optimizers' names. Equal names are numbered.
        save_path: a .png, .pdf or .svg to write (".png" is added where there is no suffix); missing folders are made.
        show: True opens a window and False does not; by default one opens where matplotlib can open one. With a
            `save_path` none opens in any case.

    Returns:
        The table and the Figure. In the table, by label: `steps`; means over the last tenth of the run of `loss`,
        `R_ie_total` (a ratio of means), `rho_mean`, `D`, `E_param_dist`, `eq_frac` and `lr`; `loss_min`, the lowest
        smoothed loss; and `parts_at`, the step at which the loss parted from the first run's. NaN where a run has no
        such number.

    Raises:
        TypeError: one of `records` is no Record.
        ValueError: there are no records, or labels do not match them, or the suffix of `save_path` names no format.
        OSError: the file cannot be written; the message names it.
    """
    records = list(records)
    if not records:
        raise ValueError("compare needs at least one record")
    for record in records:
        panels.check_record(record, "compare")
    names = _names(records, labels)
    table = {name: _numbers(record, records[0]) for name, record in zip(names, records, strict=True)}
    num_rows = (len(PANELS) + 1) // 2
    table_in = TOP_IN + num_rows * (ROW_IN + GAP_IN) + 0.25
    height_in = table_in + TABLE_LINE_IN * (min(len(records), MAX_LISTED) + 2) + 0.2
    edges = _common_edges(records)
    with style.picture(WIDTH_IN, height_in, save_path, show) as figure:
        title = f"{len(records)} runs side by side" if len(records) > 1 else "One run"
        style.write(figure, LEFT_IN, 0.2, title, size=15)
        if len(records) > 1:
            right_in, note = RIGHT_IN + COLUMN_IN, f"▲ where a run parts from {clean(names[0], width=150)}"
            style.write(figure, right_in, 0.28, note, ha="right", color=style.SOFT)
        _legend(figure, names)
        for i, (name, heading, axis) in enumerate(PANELS):
            row, column = divmod(i, 2)
            top_in = TOP_IN + row * (ROW_IN + GAP_IN)
            ax = style.place(figure, (LEFT_IN, RIGHT_IN)[column], top_in, COLUMN_IN, ROW_IN)
            ax.set_xlim(edges[0], edges[-1])
            panels.head(ax, heading)
            _panel(ax, records, name, axis)
            panels.time_axis(ax, edges, label=row == num_rows - 1)
        _table(figure, table, top_in=table_in)
    return Comparison(table, figure)


def _names(records: Sequence[Record], labels: Sequence[str] | None) -> list[str]:
    """A different name for each run."""
    names = [record.optimizer for record in records] if labels is None else [str(label) for label in labels]
    if len(names) != len(records):
        raise ValueError(f"{len(names)} labels for {len(records)} records: give one for each")
    unique: list[str] = []
    for name in names:
        count, candidate = 1, name
        while candidate in unique:
            count += 1
            candidate = f"{name} ({count})"
        unique.append(candidate)
    return unique


def _color(i: int) -> tuple[str, Any]:
    """Color and dashes of the i-th run; the colors come again with dashes."""
    colors = style.RUN_COLORS
    return colors[i % len(colors)], ("-", (0, (4, 2)), (0, (1, 1.5)))[(i // len(colors)) % 3]


def _common_edges(records: Sequence[Record]) -> Array:
    spans = [(record.steps[0], record.steps[-1]) for record in records if len(record)]
    if not spans:
        return np.array([0.0, 1.0])
    return np.array([min(first for first, _ in spans) - 0.5, max(last for _, last in spans) + 0.5])


def _numbers(record: Record, reference: Record) -> dict[str, float]:
    """A run's row of the table."""
    row = {"steps": float(record.num_steps)}
    num_tail = max(1, len(record) // 10)
    for name in ("loss", "rho_mean", "D", "E_param_dist", "eq_frac", "lr"):
        row[name] = _finite_mean(series_of(record, name)[-num_tail:])
    internal, external = (_finite_mean(record[name][-num_tail:]) for name in ("total_d_iS", "total_d_eS"))
    row["R_ie_total"] = min(internal / external, R_IE_CAP) if external > 0 else R_IE_CAP if internal > 0 else internal
    mean = smooth(record["loss"], smoothing_width(len(record)))
    row["loss_min"] = float(np.nanmin(mean)) if np.isfinite(mean).any() else float("nan")
    parts = parts_at(record, reference, "loss")
    row["parts_at"] = float("nan") if parts is None else parts
    return {name: row[name] for name in TABLE_HEADS}


def _finite_mean(values: Array) -> float:
    good = values[np.isfinite(values)]
    return float(good.mean()) if len(good) else float("nan")


def _panel(ax: Any, records: Sequence[Record], name: str, axis: str) -> None:
    """One quantity of all runs."""
    widths = [1 if axis in ("share", "zero") else smoothing_width(len(record)) for record in records]
    raw = [series_of(record, name, width=width) for record, width in zip(records, widths, strict=True)]
    finite = np.concatenate([values[np.isfinite(values)] for values in raw])
    if not len(finite) or (axis == "log" and not (finite > 0).any()):
        panels.no_data(ax)
        return
    far = _far_apart([float(np.nanmax(values[np.isfinite(values)], initial=0.0)) for values in raw])
    log = axis == "log" or (axis == "zero" and far) or (axis == "loss" and 0 < 20 * finite.min() < finite.max())
    means = []
    for i, (record, values) in enumerate(zip(records, raw, strict=True)):
        color, dashes = _color(i)
        means.append(values if axis == "R_ie" else smooth(values, widths[i], log=log))
        panels.line(ax, record.steps, means[-1], color=color, ls=dashes, lw=1.5, zorder=3 - 0.01 * i)
    _scale(ax, name, axis if not log else "log", np.concatenate(means))
    _triangles(ax, [(i, parts_at(record, records[0], name, log=axis == "log")) for i, record in enumerate(records)])


def _far_apart(peaks: Sequence[float]) -> bool:
    """Whether the largest values of the runs differ so much that a linear axis would hide some."""
    positive = [peak for peak in peaks if peak > 0]
    return bool(positive) and max(positive) > 20 * min(positive)


def _triangles(ax: Any, partings: Sequence[tuple[int, float | None]]) -> None:
    """Where runs part, at the foot of a panel; those at the same place stand on each other."""
    low, high = ax.get_xlim()
    placed: list[float] = []
    for i, step in sorted((i, step) for i, step in partings if step is not None):
        level = sum(abs(step - other) < 0.02 * (high - low) for other in placed)
        placed.append(step)
        ax.plot(
            step, 0.065 * level, marker="^", ms=6, color=_color(i)[0], transform=ax.get_xaxis_transform(),
            clip_on=False, zorder=5, mec="white", mew=0.5,
        )  # fmt: skip


def _scale(ax: Any, name: str, axis: str, drawn: Array) -> None:
    """Limits, ticks and bands of a panel."""
    good = drawn[np.isfinite(drawn)]
    low, high = float(good.min()), float(good.max())
    if axis == "log":
        panels.log_axis(ax, panels.log_limits(good) or (1e-9, 1.0))
    elif axis == "R_ie":
        top = min(max(high * 1.3, 8.0), R_IE_CAP * 1.5)
        panels.stretched_axis(ax.yaxis, top, linear_to=1.0, ticks=panels.R_IE_TICKS)
        panels.shade(ax, panels.R_IE_BANDS)
    elif axis == "D":
        panels.stretched_axis(ax.yaxis, max(high * 1.4, 0.8), linear_to=0.1, ticks=panels.D_TICKS)
        panels.shade(ax, panels.D_EDGES)
    elif axis == "coherence":
        ax.set_ylim(max(min(low - 0.08, -0.25), -1.05), min(max(high + 0.08, 0.45), 1.05))
        panels.shade(ax, (-0.1,), below=True)
        ax.axhline(0, color="#999999", lw=0.7, zorder=1)
    elif axis == "share":
        ax.set_ylim(0, 1.04)
        ax.set_yticks([0, 0.2, 0.5, 1], ["0", "20 %", "50 %", "100 %"])
        panels.shade(ax, (0.2,), below=True)
    elif axis == "zero":
        ax.set_ylim(0, max(high * 1.12, 1e-300))
        ax.yaxis.set_major_locator(style.MaxNLocator(nbins=4))
        ax.yaxis.set_major_formatter(style.FuncFormatter(lambda value, _: number(value)))
    ax.set_ylabel(panels.unit_label(name))


def _legend(figure: Any, names: Sequence[str]) -> None:
    """The runs' colors, in rows of four."""
    width_in = (WIDTH_IN - 2 * LEFT_IN) / 4
    for i, name in enumerate(names[:8]):
        color, dashes = _color(i)
        left_in, top_in = LEFT_IN + width_in * (i % 4), 0.62 + 0.2 * (i // 4)
        width, height = figure.get_size_inches()
        xs = [left_in / width, (left_in + 0.25) / width]
        figure.add_artist(style.Line2D(xs, [1 - top_in / height] * 2, color=color, ls=dashes, lw=2))
        style.write(figure, left_in + 0.33, top_in, clean(name, width=(width_in - 0.45) * 72), va="center")


def _table(figure: Any, table: dict[str, dict[str, float]], *, top_in: float) -> None:
    """The numbers, a line for each run."""
    right_in = RIGHT_IN + COLUMN_IN
    first_in = LEFT_IN + 2.35
    stride_in = (right_in - first_in) / (len(TABLE_HEADS) - 1)
    for j, head in enumerate(TABLE_HEADS.values()):
        style.write(figure, first_in + j * stride_in, top_in, head, ha="right", color=style.SOFT, size=8.5)
    for i, (label, row) in enumerate(list(table.items())[:MAX_LISTED]):
        y = top_in + TABLE_LINE_IN * (i + 1)
        style.write(figure, LEFT_IN, y, clean(label, width=1.75 * 72), color=_color(i)[0])
        for j, name in enumerate(TABLE_HEADS):
            text = (
                f"{row[name]:,.0f}" if name in ("steps", "parts_at") and np.isfinite(row[name]) else number(row[name])
            )
            style.write(figure, first_in + j * stride_in, y, text, ha="right")
    if len(table) > MAX_LISTED:
        y = top_in + TABLE_LINE_IN * (MAX_LISTED + 1)
        style.write(figure, LEFT_IN, y, f"and {len(table) - MAX_LISTED} more", color=style.SOFT)
