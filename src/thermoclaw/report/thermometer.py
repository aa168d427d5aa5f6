"""One page for the thermometer: heat against dissipation, how weights wander, who is at rest, and where it is hot.

Legend: T recorded steps, L layers, K lags.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from thermoclaw.quantities import Array
from thermoclaw.record import Record
from thermoclaw.report import panels, style
from thermoclaw.report.facts import run_facts
from thermoclaw.report.lettering import clean
from thermoclaw.report.series import bin_mean, layer_types, make_bins
from thermoclaw.wording import number

WIDTH_IN, LEFT_IN, COLUMN_IN, RIGHT_IN = 10.0, 0.85, 3.6, 5.75
TOP_IN, PANEL_IN, GAP_IN, MAP_IN = 0.75, 2.5, 0.8, 2.2
MAP_LEFT_IN, MAP_ROOM_IN = 2.3, 1.1
LATE = 0.2  # the last part of the run that a layer's point stands for
COLORS = ("#313695", "#4575B4", "#74ADD1", "#ABD9E9", "#FEE090", "#FDAE61", "#F46D43", "#A50026")


def plot_thermometer(
    record: Record,
    *,
    lags: Array,
    msd: Array,
    exponent: tuple[float, float, float],
    ratios: Sequence[tuple[float, float, float]],
    save_path: str | os.PathLike[str] | None = None,
    show: bool | None = None,
) -> style.Figure:
    """Draw what a `Thermometer` saw.

    Args:
        record: the run.
        lags: in optimizer steps, [K].
        msd: mean-squared displacement of sampled weights at them, [K].
        exponent: of the displacement, with its interval.
        ratios: of each layer, with its interval.
        save_path: a .png, .pdf or .svg to write (".png" is added where there is no suffix); missing folders are made.
        show: True opens a window and False does not; by default one opens where matplotlib can open one.

    Returns:
        The matplotlib Figure.
    """
    panels.check_record(record, "plot_thermometer")
    height = TOP_IN + PANEL_IN + GAP_IN + PANEL_IN + GAP_IN + MAP_IN + 0.9
    with style.picture(WIDTH_IN, height, save_path, show) as figure:
        style.write(figure, 0.3, 0.2, clean(run_facts(record), width=(WIDTH_IN - 0.6) * 72), color=style.SOFT)
        second = TOP_IN + PANEL_IN + GAP_IN
        _plane(style.place(figure, LEFT_IN, TOP_IN, COLUMN_IN, PANEL_IN), record)
        _walk(style.place(figure, RIGHT_IN, TOP_IN, COLUMN_IN, PANEL_IN), lags, msd, exponent)
        _rest(style.place(figure, MAP_LEFT_IN, second, RIGHT_IN + COLUMN_IN - MAP_LEFT_IN, PANEL_IN), record, ratios)
        third = second + PANEL_IN + GAP_IN
        _map(style.place(figure, MAP_LEFT_IN, third, WIDTH_IN - MAP_LEFT_IN - MAP_ROOM_IN, MAP_IN), record)
        panels.type_legend(figure, record, left_in=0.3, top_in=third + MAP_IN + 0.5)
    return figure


def _plane(ax: Any, record: Record) -> None:
    """A layer's late temperature over its late dissipation, both a weight; on the line the gradient is all noise."""
    panels.head(ax, "temperature against dissipation")
    rows = record.rows(start=record.num_steps - int(record.num_steps * LATE))
    size = np.array([layer.num_params for layer in record.layers], dtype=float)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # layers without a value
        heat = np.nanmean(rows["temperature"], axis=0)
        lost = np.nanmean(rows["sigma"], axis=0) / size
    known = (heat > 0) & (lost > 0)
    if not known.any():
        panels.no_data(ax)
        return
    types = layer_types(record)
    for i in np.flatnonzero(known):
        color = style.type_color(record.layers[i].ltype, types)
        ax.plot(lost[i], heat[i], "o", ms=5, mec="white", mew=0.5, color=color)
    low, high = lost[known].min() / 2, lost[known].max() * 2
    ax.plot([low, high], [low / 2, high / 2], color=style.INK, lw=1.0)
    bottom, top = min(low / 2, heat[known].min() / 1.5), max(high / 2, heat[known].max() * 1.5)
    panels.log_axis(ax, (bottom, top))
    _log_steps(ax, low, high)
    note = "on the line: all noise, T = σ/2N"
    ax.text(0.97, 0.06, note, transform=ax.transAxes, ha="right", fontsize=8, color=style.SOFT)
    ax.set_xlabel("dissipation a weight, σ/N")
    ax.set_ylabel("temperature T [loss]")


def _walk(ax: Any, lags: Array, msd: Array, exponent: tuple[float, float, float]) -> None:
    """Displacement by lag, with its power law."""
    panels.head(ax, "displacement of sampled weights")
    known = np.isfinite(msd) & (msd > 0)
    if known.sum() < 3:
        panels.no_data(ax, "too few samples")
        return
    ax.plot(lags[known], msd[known], "o", ms=5, color=style.LINE)
    panels.log_axis(ax, (msd[known].min() / 1.5, msd[known].max() * 1.5))
    _log_steps(ax, lags[known].min() / 1.3, lags[known].max() * 1.3)
    value, low, high = exponent
    if np.isfinite(value):
        x = np.log(lags[known])
        level = float(np.mean(np.log(msd[known]) - value * x))
        ax.plot(lags[known], np.exp(level + value * x), color=style.WARN, lw=1.2)
        law = f"τ^{value:.2f}  [{low:.2f}, {high:.2f}]"
        ax.text(0.04, 0.95, law, transform=ax.transAxes, va="top", color=style.WARN)
    ax.set_xlabel("lag τ [steps]")
    ax.set_ylabel("mean-squared displacement")


def _log_steps(ax: Any, low: float, high: float) -> None:
    """A logarithmic horizontal axis with round numbers."""
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    ax.xaxis.set_major_locator(style.FixedLocator(panels.log_ticks(low, high, num_ticks=6)))
    ax.xaxis.set_major_formatter(style.FuncFormatter(lambda value, _: number(value)))
    ax.xaxis.set_minor_locator(style.NullLocator())


def _rest(ax: Any, record: Record, ratios: Sequence[tuple[float, float, float]]) -> None:
    """The fluctuation–dissipation ratio of each layer, with its interval."""
    panels.head(ax, "fluctuation–dissipation ratio X", "1: the norm is stationary; above: it shrinks; below: it grows")
    values = np.array(ratios, dtype=float).reshape(-1, 3)
    known = np.isfinite(values[:, 0])
    if not known.any():
        panels.no_data(ax, "too few steps that follow one another")
        return
    limit = max(float(np.nanquantile(np.abs(values[known] - 1.0), 0.9)) * 1.3, 0.2)
    types = layer_types(record)
    for i in np.flatnonzero(known):
        value, low, high = np.clip(values[i], 1.0 - limit, 1.0 + limit)
        color = style.type_color(record.layers[i].ltype, types)
        ax.plot([low, high], [i + 0.5] * 2, color=color, lw=2)
        ax.plot(value, i + 0.5, "o", ms=4, color=color)
    ax.axvline(1.0, color=style.INK, lw=1.0)
    ax.set_xlim(1.0 - limit, 1.0 + limit)
    ax.set_ylim(len(record.layers), 0)
    ax.set_xlabel("X, with its 95 % interval; cut at the frame")
    panels.layer_labels(ax, record, room_in=MAP_LEFT_IN)


def _map(ax: Any, record: Record) -> None:
    """Temperature of every layer at every step, by powers of ten."""
    panels.head(ax, "temperature, log₁₀ T [loss]")
    bins = make_bins(np.asarray(record.steps, dtype=float), panels.MAP_BINS)
    with np.errstate(divide="ignore", invalid="ignore"):
        heat = np.log10(bin_mean(record["temperature"], bins))
    heat = np.where(np.isfinite(heat), heat, np.nan)
    if not np.isfinite(heat).any():
        panels.no_data(ax)
        return
    low, high = np.floor(np.nanquantile(heat, 0.02) * 2) / 2, np.ceil(np.nanquantile(heat, 0.98) * 2) / 2
    edges = [float(x) for x in np.linspace(low, max(high, low + 1.0), len(COLORS) - 1)]
    mesh = panels.heat_map(ax, record, heat, bins, edges=[edges[0] - 1, *edges, edges[-1] + 1][1:-1], colors=COLORS)
    ax.set_xlim(bins.edges[0], bins.edges[-1])
    panels.time_axis(ax, bins.edges, label=True)
    panels.layer_labels(ax, record, room_in=MAP_LEFT_IN)
    panels.color_key(ax, mesh, [round(edge, 2) for edge in edges])
