"""What the pictures are made of: time axes, bands, marks of findings, lines by layer type, heat maps.

Legend: T recorded steps, L layers, B bins.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from thermoclaw.markup import thin
from thermoclaw.quantities import TABLE, Array
from thermoclaw.record import Record
from thermoclaw.report import style
from thermoclaw.report.lettering import clean, plain, short_names, text_width
from thermoclaw.report.series import (
    SPLIT_PARTS,
    Bins,
    bin_sum,
    layer_types,
    make_bins,
    smooth,
    smoothing_width,
    split_shares,
    sum_over_layers,
)
from thermoclaw.wording import number

MAP_BINS = 300
"""Columns of a map at most; longer runs are averaged into so many."""

D_EDGES = (0.05, 0.5)
D_TICKS = (0.0, 0.5, 0.05, 0.1, *(10.0**k for k in range(0, 61, 2)), *(10.0**k for k in range(1, 60, 2)))
R_IE_BANDS = (1.0, 2.0, 5.0)
R_IE_TICKS = (0.0, 1.0, 5.0, 2.0, 10.0, 100.0, 1000.0, 0.5, 20.0)

R_EDGES = (0.25, 0.5, 0.7, 0.85, 1.15, 1.4, 2.0, 4.0)
R_COLORS = (
    "#2166AC",
    "#4393C3",
    "#92C5DE",
    "#D1E5F0",
    "#F7F7F7",
    "#FDDBC7",
    "#F4A582",
    "#D6604D",
    "#B2182B",
)
R_IE_EDGES = (0.5, 1.0, 2.0, 5.0, 20.0, 100.0)
R_IE_COLORS = ("#FFFFE5", "#FEEFB3", "#FED06F", "#FB9A29", "#E0640E", "#A84204", "#662506")


def check_record(record: Any, caller: str) -> Record:
    """The record itself; anything else raises TypeError that says what to pass."""
    if not isinstance(record, Record):
        raise TypeError(
            f"{caller} draws a Record, not {type(record).__name__}: pass observer.record() or Record.load(path)"
        )
    return record


def no_data(ax: Any, text: str = "no data") -> None:
    """Say inside an empty panel that nothing is there."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=style.SOFT, size=10)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)


def head(ax: Any, title: str, *notes: str, pad: float = 5.0) -> None:
    """The panel's name on the left and what it says now on the right, above the axes, as many notes as fit."""
    ax.set_title(title, loc="left", pad=pad, color=style.INK)
    room = 72 * style.box_in(ax)[2] - text_width(title, 10.0) - 10
    kept = [plain(note) for note in notes if note]
    while kept and text_width(" · ".join(kept), 8.5) > room:
        kept.pop()
    if kept:
        ax.set_title(clean(" · ".join(kept)), loc="right", pad=pad, color=style.SOFT, size=8.5)


def unit_label(name: str) -> str:
    """The axis label of a quantity: its symbol, and its unit where it has one."""
    quantity = TABLE[name]
    return quantity.symbol if quantity.unit in ("1", quantity.symbol) else f"{quantity.symbol}  ({quantity.unit})"


def time_axis(ax: Any, edges: Array, *, label: bool) -> None:
    """The axis of steps; the lowest panel of a column carries the numbers."""
    ax.set_xlim(edges[0], edges[-1])
    ax.xaxis.set_major_locator(style.MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1))
    ax.xaxis.set_major_formatter(style.FuncFormatter(lambda step, _: f"{step:,.0f}"))
    if label:
        ax.set_xlabel("step")
    else:
        ax.tick_params(labelbottom=False)


def log_ticks(low: float, high: float, num_ticks: int) -> list[float]:
    """At most `num_ticks` round numbers on a logarithmic axis: 1-2-5 in a short range, spaced decades in a long one."""
    bottom, top = math.floor(math.log10(low)), math.ceil(math.log10(high))
    plans: list[tuple[tuple[float, ...], int]] = [((1.0, 2.0, 5.0), 1), ((1.0, 3.0), 1)]
    plans += [((1.0,), stride) for stride in range(1, 400)]
    for subs, stride in plans:
        first = math.ceil(bottom / stride) * stride
        ticks = [sub * 10.0**e for e in range(first, top + 1, stride) for sub in subs]
        inside = [tick for tick in ticks if low <= tick * 1.001 and tick <= high * 1.001]
        if len(inside) <= num_ticks:
            break
    if len(inside) > 1:
        return inside
    ends = (low * (high / low) ** 0.15, high * (low / high) ** 0.15)
    return sorted({float(f"{end:.1e}") for end in ends})


def log_limits(*series: Any) -> tuple[float, float] | None:
    """The positive range of some series with a margin; None where nothing is positive."""
    values = np.concatenate([np.ravel(s) for s in series]) if series else np.zeros(0)
    good = values[np.isfinite(values) & (values > 0)]
    if len(good) == 0:
        return None
    low, high = float(good.min()), float(good.max())
    margin = max((high / low) ** 0.06, 1.3)
    return max(low / margin, 1e-300), min(high * margin, 1e300)


def log_axis(ax: Any, limits: tuple[float, float]) -> None:
    """A logarithmic vertical axis with round numbers, a few to the inch."""
    ax.set_yscale("log")
    ax.set_ylim(*limits)
    _, _, _, height_in = style.box_in(ax)
    ticks = log_ticks(*limits, num_ticks=max(2, int(height_in * 4)))
    ax.yaxis.set_major_locator(style.FixedLocator(ticks))
    ax.yaxis.set_major_formatter(style.FuncFormatter(lambda value, _: number(value)))
    ax.yaxis.set_minor_locator(style.NullLocator())


def stretched_axis(axis: Any, top: float, *, linear_to: float, ticks: Sequence[float]) -> None:
    """An axis from 0, linear up to `linear_to` and logarithmic beyond, so that zero and a thousand both show.

    Of the ticks, given in order of importance, those that come too close to a more important one are left out.
    """
    ax = axis.axes
    upright = axis is ax.yaxis
    set_scale, set_limit = (ax.set_yscale, ax.set_ylim) if upright else (ax.set_xscale, ax.set_xlim)
    set_scale("symlog", linthresh=linear_to, linscale=0.8)
    set_limit(0, top)
    place = axis.get_transform().transform
    length_pt = 72 * style.box_in(ax)[3 if upright else 2]
    kept: dict[float, float] = {}
    for tick in ticks:
        at = length_pt * float(place(np.array([tick]))[0] / place(np.array([top]))[0])
        if tick <= top and all(abs(at - other) >= (11 if upright else 24) for other in kept.values()):
            kept[tick] = at
    axis.set_major_locator(style.FixedLocator(sorted(kept)))
    axis.set_major_formatter(style.FuncFormatter(lambda value, _: number(value)))
    axis.set_minor_locator(style.NullLocator())


def shade(ax: Any, edges: Sequence[float], *, below: bool = False, horizontal: bool = False) -> None:
    """Tint what lies beyond each edge, deeper from edge to edge, and draw the edges."""
    low, high = ax.get_xlim() if horizontal else ax.get_ylim()
    span = ax.axvspan if horizontal else ax.axhspan
    line = ax.axvline if horizontal else ax.axhline
    for edge in edges:
        start, stop = (low, min(edge, high)) if below else (max(edge, low), high)
        if start < stop:
            span(start, stop, color=style.WARN, alpha=0.07, lw=0, zorder=0)
        if low < edge < high:
            line(edge, color=style.WARN, lw=0.6, alpha=0.5, zorder=0.5)


def band_word(name: str, value: float) -> str:
    """What the table of quantities says about a value, in its first words; "" where it says nothing.

    Example:
        >>> band_word("R_ie", 3.0)
        'overhead dominates'
    """
    for band in TABLE[name].bands:
        ends = [float(end.replace("−", "-")) for end in re.findall(r"[−-]?\d*\.?\d+(?:e-?\d+)?", band.range)]
        between = len(ends) == 2 and ends[0] <= value <= ends[1]
        below = len(ends) == 1 and band.range.startswith("<") and value < ends[0]
        above = len(ends) == 1 and band.range.startswith(">") and value > ends[0]
        if between or below or above:
            return re.split(r"[:,]", band.meaning)[0]
    return ""


def line(ax: Any, steps: Array, values: Array, **kwargs: Any) -> None:
    """A line that keeps its spikes; the points of a short run are marked, and so are points with no neighbor."""
    x, y = thin(np.asarray(steps, dtype=float), np.where(np.isfinite(values), values, np.nan))
    ax.plot(x, y, marker="o" if len(x) <= 30 else None, ms=3, **kwargs)
    good = np.isfinite(y)
    alone = good & ~np.r_[False, good[:-1]] & ~np.r_[good[1:], False]
    if len(x) > 30 and alone.any():
        ax.plot(x[alone], y[alone], ls="", marker=".", ms=3, color=kwargs.get("color"), zorder=kwargs.get("zorder", 2))


def raw_and_smooth(ax: Any, steps: Array, values: Array, *, log: bool = False, color: str = style.LINE) -> Array:
    """The series itself in a light tone and its running mean above it; returns the mean."""
    mean = smooth(values, smoothing_width(len(steps)), log=log)
    shown = np.where(values > 0, values, np.nan) if log else values
    if smoothing_width(len(steps)) > 1:
        line(ax, steps, shown, color=style.RAW, lw=0.7, alpha=0.7, zorder=2)
    line(ax, steps, mean, color=color, lw=1.6, zorder=3)
    return mean


def type_lines(ax: Any, record: Record, lines: dict[str, Array], *, log: bool = False) -> list[Array]:
    """A smoothed line for each layer type, in the type's color; returns what was drawn."""
    width = smoothing_width(len(record))
    types = layer_types(record)
    drawn = []
    for ltype, values in lines.items():
        mean = smooth(values, width, log=log)
        line(ax, record.steps, mean, color=style.type_color(ltype, types), lw=1.3, zorder=2.5)
        drawn.append(mean)
    return drawn


def stacked_shares(ax: Any, record: Record, *, limit: int = 160) -> bool:
    """The parts of the model's entropy production as shares from 0 to 1; False where there is nothing to draw."""
    if not len(record):
        return False
    bins = make_bins(np.asarray(record.steps, dtype=float), limit)
    shares = split_shares(bin_sum(sum_over_layers(record[part]), bins) for part in SPLIT_PARTS)
    if not np.isfinite(shares[0]).any():
        return False
    low = np.zeros(len(bins.starts))
    for part, share in zip(SPLIT_PARTS, shares, strict=True):
        high = low + share
        bottom, top = np.append(low, low[-1]), np.append(high, high[-1])
        ax.fill_between(bins.edges, bottom, top, step="post", color=style.PART_COLORS[part], lw=0, zorder=1)
        low = high
    ax.set_ylim(0, 1)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    ax.set_axisbelow(False)
    ax.grid(True, color="white", lw=0.5, alpha=0.6)
    return True


# -- layers × steps -------------------------------------------------------------------------------------------------


def heat_map(
    ax: Any, record: Record, values: Array, bins: Bins, *, edges: Sequence[float], colors: Sequence[str]
) -> Any:
    """Layers by steps in discrete colors, first layer on top, gray where not defined; returns the mesh."""
    colormap = style.ListedColormap(list(colors)).with_extremes(bad=style.UNDEFINED)
    norm = style.BoundaryNorm(list(edges), len(colors), extend="both")
    num_layers = len(record.layers)
    mesh = ax.pcolormesh(
        bins.edges, np.arange(num_layers + 1), np.ma.masked_invalid(values.T), cmap=colormap, norm=norm, rasterized=True
    )
    ax.set_ylim(num_layers, 0)
    ax.grid(False)
    return mesh


def layer_labels(ax: Any, record: Record, *, room_in: float, size: float = 8.0) -> None:
    """Names of the layers beside a map, as many as fit, with a strip in the colors of their types."""
    num_layers = len(record.layers)
    _, _, width_in, height_in = style.box_in(ax)
    stride = -(-num_layers // max(1, int(height_in * 72 / (size * 1.3))))
    shown = np.arange(0, num_layers, stride)
    names = short_names(record.layer_names, width=(room_in - 0.2) * 72, size=size)
    ax.set_yticks(shown + 0.5, [names[i] for i in shown])
    ax.tick_params(axis="y", labelsize=size, length=0, pad=9)
    inch = 1 / width_in
    strip = ax.inset_axes((-0.09 * inch, 0, 0.055 * inch, 1))
    types = layer_types(record)
    order = np.array([[types.index(layer.ltype)] for layer in record.layers])
    tints = style.ListedColormap([style.type_color(ltype, types) for ltype in types])
    strip.pcolormesh(
        [0, 1], np.arange(num_layers + 1), order, cmap=tints, vmin=-0.5, vmax=len(types) - 0.5, rasterized=True
    )
    strip.set_ylim(num_layers, 0)
    strip.set_axis_off()


def color_key(ax: Any, mesh: Any, edges: Sequence[float]) -> None:
    """The key of a map's colors, right of it."""
    left_in, top_in, width_in, height_in = style.box_in(ax)
    axes = style.place(ax.figure, left_in + width_in + 0.11, top_in, 0.11, height_in)
    key = ax.figure.colorbar(mesh, cax=axes, spacing="uniform", ticks=list(edges), extendfrac=0.12)
    key.ax.set_yticklabels([number(edge) for edge in edges])
    key.ax.tick_params(labelsize=8, length=2, pad=2, labelcolor=style.SOFT)
    key.ax.minorticks_off()
    key.outline.set_linewidth(0.5)


def type_legend(figure: Any, record: Record, *, left_in: float, top_in: float, extra: Iterable[Any] = ()) -> None:
    """One row that names the colors of the layer types."""
    types = layer_types(record)
    handles = [style.Patch(color=style.type_color(t, types), label=clean(t, width=110)) for t in types[:9]]
    handles += list(extra)
    if handles:
        width, height = figure.get_size_inches()
        figure.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(left_in / width, 1 - top_in / height), ncol=len(handles),
            handlelength=1.0, handleheight=0.8, columnspacing=1.3, handletextpad=0.5, borderpad=0, borderaxespad=0,
        )  # fmt: skip


def part_key(ax: Any) -> None:
    """One row above the axes, on the right, that names the parts of the entropy production."""
    handles = [style.Patch(color=style.PART_COLORS[part], label=style.PART_NAMES[part]) for part in SPLIT_PARTS]
    ax.legend(
        handles=handles, loc="lower right", bbox_to_anchor=(1.01, 1.0), ncol=len(handles), fontsize=8,
        handlelength=0.8, handleheight=0.8, columnspacing=0.7, handletextpad=0.35, borderpad=0.2, borderaxespad=0,
    )  # fmt: skip
