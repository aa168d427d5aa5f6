"""Draw every quantity, healthy and faulty side by side, from real runs.

    python docs/quantity_pictures.py              # a minute on one core
    python docs/quantity_pictures.py r coherence  # only these pictures

Writes docs/images/quantities/NAME.png and, with all of them, benchmarks/results/quantities.json, which the page "What
am I looking at" takes its numbers from.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cost_tables import RESULTS  # beside this script, like all below
from pages import ROOT, shrink
from quantity_notes import NOTES, Note
from quantity_runs import RUNS

from thermoclaw import Record, diagnose
from thermoclaw.quantities import TABLE, Array
from thermoclaw.report import panels, style
from thermoclaw.report.series import layer_types, median_over_layers, smooth, smoothing_width
from thermoclaw.wording import number

IMAGES = ROOT / "docs" / "images" / "quantities"
LAST = 50  # rows that the numbers on the page are medians of
WIDTH_IN, TOP_IN, HEIGHT_IN, COLUMN_IN, LEFT_IN, RIGHT_IN = 7.2, 0.42, 1.35, 2.85, 0.8, 4.05
Series = list[tuple[Array, Array, str]]  # steps, values, color


def main() -> None:
    """Make the runs that are asked for and draw from them."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="quantities to draw; all by default")
    names = parser.parse_args().names or list(TABLE)
    needed = {run for name in names for run in NOTES[name][:2]}
    records = {name: run.make() for name, run in RUNS.items() if name in needed}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            draw(name, NOTES[name], records, Path(folder) / "picture.png")
            shrink(Path(folder) / "picture.png", IMAGES / f"{name}.png")
    if len(names) == len(TABLE):
        write_numbers(records)


def write_numbers(records: dict[str, Record]) -> None:
    """What the page says in numbers: ends of the runs, findings, medians."""
    runs = {
        name: {
            "label": RUNS[name].label,
            "loss": [figures(value) for value in ends(record)],
            "findings": [[f.code, f.confidence, f.first_step] for f in diagnose(record).findings],
        }
        for name, record in records.items()
    }
    medians = {name: {run: median(records[run], name) for run in note[:2]} for name, note in NOTES.items()}
    told = {"runs": runs, "medians": medians, "rows": LAST}
    (RESULTS / "quantities.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def ends(record: Record) -> tuple[float, float]:
    """The first loss, and the mean of the last."""
    loss = record["loss"]
    return float(loss[0]), float(np.mean(loss[-LAST:]))


def figures(value: float) -> float | None:
    """Three figures; None where it is no number."""
    return float(f"{value:.3g}") if np.isfinite(value) else None


def median(record: Record, name: str) -> float | None:
    """Median over layers and the last rows; over all rows where those hold nothing."""
    for values in (record[name][-LAST:], record[name]):
        finite = values[np.isfinite(values)]
        if len(finite):
            return figures(float(np.median(finite)))
    return None


# -- drawing -----------------------------------------------------------------------------------------------------------


def draw(name: str, note: Note, records: dict[str, Record], target: Path) -> None:
    """Two panels with one scale: healthy on the left, the fault on the right."""
    pair = [records[note.healthy], records[note.faulty]]
    drawn = [series(record, name, note) for record in pair]
    titles = [f"healthy: {RUNS[note.healthy].label}", f"faulty: {RUNS[note.faulty].label}"]
    is_by_layer = TABLE[name].scope == "layer"
    with style.picture(WIDTH_IN, TOP_IN + HEIGHT_IN + (0.78 if is_by_layer else 0.48), target, show=False) as figure:
        axes = [style.place(figure, left_in, TOP_IN, COLUMN_IN, HEIGHT_IN) for left_in in (LEFT_IN, RIGHT_IN)]
        for ax, record, lines, title in zip(axes, pair, drawn, titles, strict=True):
            panels.head(ax, title)
            plot(ax, lines, note.axis)
            scale(ax, note.axis, [values for line in drawn for _, values, _ in line])
            edges(ax, name)
            steps_below(ax, record, note.axis)
        axes[0].set_ylabel(axis_label(name))
        axes[1].tick_params(labelleft=False)
        if is_by_layer:
            keys(figure, pair)


def axis_label(name: str) -> str:
    """Symbol and unit; the name where the symbol is empty or no letters."""
    quantity = TABLE[name]
    if quantity.symbol and "{" not in quantity.symbol:
        return panels.unit_label(name)
    return name if quantity.unit == "1" else f"{name} ({quantity.unit})"


def steps_below(ax: Any, record: Record, axis: str) -> None:
    """The horizontal axis: steps, or layers."""
    if axis == "points":
        ax.set_xlim(-0.5, len(record.layers) - 0.5)
        ax.set_xticks(range(len(record.layers)), record.layer_names)
    else:
        ax.set_xlim(0, record.steps[-1])
    ax.set_xlabel("layer" if axis == "points" else "step", labelpad=2)


def colors_of(record: Record) -> dict[str, str]:
    """Label → color: layer types, or single layers where all are of one type."""
    types = layer_types(record)
    if len(types) > 1:
        return {kind: style.type_color(kind, types) for kind in types}
    return {f"layer {layer.name}": style.RUN_COLORS[i] for i, layer in enumerate(record.layers)}


def series(record: Record, name: str, note: Note) -> Series:
    """What to draw of a record: one line for the run, for each layer, or for each layer type where signs flicker."""
    values, steps, colors = record[name], np.asarray(record.steps, dtype=float), colors_of(record)
    if TABLE[name].scope == "run":
        return [(steps, tidy(values, note.axis), style.LINE)]
    if note.axis == "points":
        rows = np.isfinite(values).any(axis=1)
        return [(np.array([i]), values[rows, i][:1], color) for i, color in enumerate(colors.values())]
    labels = [layer.ltype if layer.ltype in colors else f"layer {layer.name}" for layer in record.layers]
    columns = [(label, values[:, i]) for i, label in enumerate(labels)]
    if note.axis == "symlog":
        kinds = np.array(labels)
        columns = [(label, median_over_layers(values[:, kinds == label])) for label in dict.fromkeys(labels)]
    found = []
    for label, column in columns:
        rows = np.isfinite(column)
        if rows.any():
            found.append((steps[rows], tidy(column[rows], note.axis), colors[label]))
    return found


def tidy(values: Array, axis: str) -> Array:
    """A running mean, in logarithms on a logarithmic axis; a longer running median where signs flicker."""
    if axis != "symlog":
        return smooth(values, smoothing_width(len(values)), log=axis == "log")
    half = 2 * smoothing_width(len(values))
    padded = np.pad(values, half, constant_values=np.nan)
    return np.asarray(np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=1))


def plot(ax: Any, lines: Series, axis: str) -> None:
    for steps, values, color in lines:
        if axis == "points":
            ax.plot(steps, values, marker="o", ms=5, ls="", color=color)
        else:
            ax.plot(steps, values, color=color, lw=1.1, alpha=0.85)


def scale(ax: Any, axis: str, drawn: Iterable[Array]) -> None:
    """One scale for both panels."""
    values = np.concatenate([v[np.isfinite(v)] for v in drawn] or [np.zeros(1)])
    if axis == "log" and (limits := panels.log_limits(values)):
        panels.log_axis(ax, limits)
        return
    low, high = min(values.min(), 0.0), values.max()
    if axis == "symlog":
        size = np.abs(values[values != 0])
        ax.set_yscale("symlog", linthresh=float(np.quantile(size, 0.3)) if len(size) else 1.0)
    room = 0.06 * ((high - low) or 1.0)
    if axis == "symlog":
        ax.set_ylim(1.6 * low, 1.6 * high or 1.0)
        signed_ticks(ax)
        return
    ax.set_ylim(low - room, high + room)


def edges(ax: Any, name: str) -> None:
    """Where the bands of the table end."""
    low, high = ax.get_ylim()
    for band in TABLE[name].bands:
        for edge in band_edges(band.range):
            if low < edge < high:
                ax.axhline(edge, color=style.WARN, lw=0.8, ls=(0, (4, 3)), zorder=0.5)


def band_edges(text: str) -> list[float]:
    """The numbers in a band's range; none where it is said in words or as a formula."""
    if re.search(r"[/√]", text):
        return []
    return [float(found.replace("−", "-")) for found in re.findall(r"[−-]?\d*\.?\d+(?:e-?\d+)?", text)]


def signed_ticks(ax: Any) -> None:
    """Zero and powers of ten on both sides, the outermost first, none closer than a line of text."""
    low, high = ax.get_ylim()
    place = ax.transData.transform
    wanted = [0.0, *(sign * 10.0**k for k in range(6, -40, -1) for sign in (1, -1))]
    kept: dict[float, float] = {}
    for tick in wanted:
        at = 72 / ax.figure.dpi * place((0, tick))[1]
        if low <= tick <= high and all(abs(at - other) >= 13 for other in kept.values()):
            kept[tick] = at
    ax.yaxis.set_major_locator(style.FixedLocator(sorted(kept)))
    ax.yaxis.set_minor_locator(style.NullLocator())
    ax.yaxis.set_major_formatter(style.FuncFormatter(lambda value, _: number(value)))


def keys(figure: Any, pair: list[Record]) -> None:
    """Which color is which layer: once, or under each panel where they differ."""
    width, height = figure.get_size_inches()
    told = [colors_of(record) for record in pair]
    for left_in, colors in zip((LEFT_IN, RIGHT_IN), told if told[0] != told[1] else told[:1], strict=False):
        handles = [style.Line2D([], [], color=color, lw=2, label=label) for label, color in colors.items()]
        figure.legend(
            handles=handles, loc="upper left", ncols=len(handles), borderaxespad=0, handlelength=0.9, columnspacing=0.9,
            handletextpad=0.4, fontsize=8, bbox_to_anchor=(left_in / width, 1 - (TOP_IN + HEIGHT_IN + 0.5) / height),
        )  # fmt: skip


if __name__ == "__main__":
    main()
