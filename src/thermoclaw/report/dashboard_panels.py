"""The panels of the dashboard, one function each: it gets empty axes with their steps set, and the record.

Legend: T recorded steps, L layers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from thermoclaw.quantities import R_IE_CAP, TABLE, Array
from thermoclaw.record import Record
from thermoclaw.report import panels, style
from thermoclaw.report.lettering import clean
from thermoclaw.report.series import (
    bin_mean,
    by_type,
    last_value,
    make_bins,
    median_over_layers,
    ratio_of_means,
    silent_from,
    smooth,
    smoothing_width,
    sum_over_layers,
)
from thermoclaw.wording import number

# -- left column: the run -------------------------------------------------------------------------------------------


def loss(ax: Any, record: Record, *, pad: float) -> None:
    """The loss as given; hatched from where on it is not finite any more."""
    loss = record["loss"]
    good = loss[np.isfinite(loss)]
    if not len(good):
        panels.head(ax, "Loss", pad=pad)
        panels.no_data(ax, "the loss was never finite" if np.isinf(loss).any() else "no loss was given")
        return
    low, high, middle = float(good.min()), float(good.max()), float(np.median(np.abs(good)))
    log = low > 0 and high / low > 20
    mean = panels.raw_and_smooth(ax, record.steps, loss, log=log)
    if log:
        panels.log_axis(ax, panels.log_limits(good) or (low, high))
    elif high - low > 1e3 * middle > 0:
        ax.set_yscale("symlog", linthresh=middle)
    notes = [f"last {number(last_value(mean))}", f"lowest {number(float(np.nanmin(mean)))}"]
    lost = silent_from(record.steps, loss)
    if lost is not None:
        ax.axvspan(lost - 0.5, ax.get_xlim()[1], fc="none", ec=style.UNDEFINED, hatch="////", lw=0, zorder=1)
        notes = [f"no finite loss from step {lost:,.0f}"]
    panels.head(ax, "Loss", *notes, pad=pad)
    ax.set_ylabel(panels.unit_label("loss"))


def overhead(ax: Any, record: Record) -> None:
    """R_ie of the whole model with its bands, from 0, logarithmic above 1."""
    width = smoothing_width(len(record))
    title = "Overhead R_ie"
    if not np.isfinite(record["R_ie_total"]).any():
        panels.head(ax, title)
        panels.no_data(ax)
        return
    mean = ratio_of_means(record, width)
    raw = np.where(np.isfinite(record["R_ie_total"]), record["R_ie_total"], np.nan)
    if width > 1:
        panels.line(ax, record.steps, raw, color=style.RAW, lw=0.7, alpha=0.7, zorder=2)
    panels.line(ax, record.steps, mean, color=style.LINE, lw=1.6, zorder=3)
    usual = max(float(np.nanmax(mean)), float(np.nanquantile(raw, 0.95)))  # single spikes may leave at the top
    top = min(max(1.3 * usual, 8.0), R_IE_CAP * 1.5)
    panels.stretched_axis(ax.yaxis, top, linear_to=1.0, ticks=panels.R_IE_TICKS)
    panels.shade(ax, panels.R_IE_BANDS)
    last = last_value(mean)
    panels.head(ax, title, f"last {number(last)}", panels.band_word("R_ie", last))
    ax.set_ylabel(panels.unit_label("R_ie_total"))


def split(ax: Any, record: Record) -> None:
    """Shares of the model's entropy production."""
    title = "Where σ goes"
    panels.head(ax, title)
    if not panels.stacked_shares(ax, record):
        panels.no_data(ax)
        return
    ax.set_ylabel("share of σ")
    panels.part_key(ax)


def learning_rate(ax: Any, record: Record) -> None:
    """The learning rate, from lowest to highest over layers, and what weight decay does."""
    rates, decay = _spread(record["lr"]), _spread(record["weight_decay"])
    notes = [] if decay is None else _decay_notes(record.steps, decay[1])
    panels.head(ax, f"Learning rate ({TABLE['lr'].unit})", *notes)
    if rates is None:
        panels.no_data(ax)
        return
    least, most = rates
    if _far_apart(least, most):
        panels.log_axis(ax, panels.log_limits(least, most) or (1e-8, 1.0))
    else:
        ax.set_ylim(min(0.0, 1.12 * float(np.nanmin(least))), max(float(np.nanmax(most)) * 1.12, 1e-300))
        ax.yaxis.set_major_locator(style.MaxNLocator(nbins=3))
        ax.yaxis.set_major_formatter(style.FuncFormatter(lambda value, _: number(value)))
    if np.nanmax(most - least) > 0:
        ax.fill_between(record.steps, least, most, color=style.RAW, alpha=0.4, lw=0, zorder=1)
        panels.line(ax, record.steps, least, color=style.LINE, lw=0.8, zorder=2)
    panels.line(ax, record.steps, most, color=style.LINE, zorder=3)
    ax.set_ylabel("η")


def _decay_notes(steps: Array, decay: Array) -> list[str]:
    """Weight decay in words: its value, or from what to what, and when if it changed once."""
    known = np.flatnonzero(np.isfinite(decay))
    values = decay[known]
    changes = np.flatnonzero(np.diff(values) != 0)
    if not len(changes):
        return [f"decay λ {number(values[0])}"]
    when = [f"step {steps[known[changes[0] + 1]]:,.0f}"] if len(changes) == 1 else []
    return [f"decay λ {number(values[0])} → {number(values[-1])}", *when]


def _spread(values: Array) -> tuple[Array, Array] | None:
    """Lowest and highest value over layers, [T] each, NaN where there is none; None where all are undefined."""
    good = np.isfinite(values)
    if not good.any():
        return None
    some = good.any(axis=1)
    low = np.where(some, np.where(good, values, np.inf).min(axis=1), np.nan)
    return low, np.where(some, np.where(good, values, -np.inf).max(axis=1), np.nan)


def _far_apart(low: Array, high: Array) -> bool:
    """Whether the learning rates of layers differ by more than a factor of twenty at the same step."""
    both = np.isfinite(low) & (low > 0)
    return bool(both.any() and np.max(high[both] / low[both]) > 20)


def equilibrium(ax: Any, record: Record) -> None:
    """The share of layers at equilibrium, averaged over recent steps."""
    values = record["eq_frac"]
    title = "Layers at equilibrium"
    if not np.isfinite(values).any():
        panels.head(ax, title)
        panels.no_data(ax)
        return
    panels.line(ax, record.steps, values, color=style.LINE, zorder=3)
    ax.set_ylim(0, 1.04)
    ax.set_yticks([0, 0.2, 0.5, 1], ["0", "20 %", "50 %", "100 %"])
    panels.shade(ax, (0.2,), below=True)
    last = last_value(values)
    panels.head(ax, title, f"last {100 * last:.0f} %", panels.band_word("eq_frac", last))
    ax.set_ylabel("eq_frac")


# -- right column: the layers ---------------------------------------------------------------------------------------


def ratio_map(ax: Any, record: Record, *, pad: float, label_room_in: float) -> None:
    """R of every layer at every step: white in the equilibrium band, blue below, red above."""
    title = "r: every layer against its own past"
    r = record["r"]
    panels.head(ax, title, "gray: not defined" if np.isfinite(r).any() and np.isnan(r).any() else "", pad=pad)
    if not np.isfinite(r).any():
        panels.no_data(ax)
        return
    bins = make_bins(np.asarray(record.steps, dtype=float), panels.MAP_BINS)
    with np.errstate(divide="ignore"):
        logs = np.clip(np.log(np.where(np.isfinite(r), np.maximum(r, 0.0), np.nan)), -9.0, 9.0)
    values = np.exp(bin_mean(logs, bins))
    mesh = panels.heat_map(ax, record, values, bins, edges=panels.R_EDGES, colors=panels.R_COLORS)
    panels.layer_labels(ax, record, room_in=label_room_in)
    panels.color_key(ax, mesh, panels.R_EDGES)


def dispersion(ax: Any, record: Record) -> None:
    """The dispersion D with its bands, from 0, logarithmic above 0.1."""
    values = record["D"]
    title = "Dispersion D over layers"
    if not np.isfinite(values).any():
        panels.head(ax, title)
        panels.no_data(ax)
        return
    if len(record.layers) == 1:
        panels.head(ax, title)
        panels.no_data(ax, "one layer: nothing to compare")
        return
    mean = panels.raw_and_smooth(ax, record.steps, values)
    top = max(float(np.nanmax(np.where(np.isfinite(values), values, np.nan))) * 1.4, 0.8)
    panels.stretched_axis(ax.yaxis, top, linear_to=0.1, ticks=panels.D_TICKS)
    panels.shade(ax, panels.D_EDGES)
    last = last_value(mean)
    panels.head(ax, title, f"last {number(last)}", panels.band_word("D", last))
    ax.set_ylabel("D = Var(r)")


def coherence(ax: Any, record: Record) -> None:
    """The coherence ρ: the mean of all layers, and the median of each type."""
    values = record["rho_mean"]
    title = "Coherence ρ of successive gradients"
    if not np.isfinite(values).any():
        panels.head(ax, title)
        panels.no_data(ax)
        return
    drawn = []
    types = by_type(record, "coherence", median_over_layers)
    if len(types) > 1:
        drawn = panels.type_lines(ax, record, types)
    mean = smooth(values, smoothing_width(len(record)))
    panels.line(ax, record.steps, mean, color=style.INK, lw=1.6, zorder=3)
    every = np.concatenate([mean, *drawn])
    low, high = float(np.nanmin(every)), float(np.nanmax(every))
    ax.set_ylim(max(min(low - 0.08, -0.25), -1.05), min(max(high + 0.08, 0.45), 1.05))
    panels.shade(ax, (-0.1,), below=True)
    ax.axhline(0, color="#999999", lw=0.7, zorder=1)
    ax.axhline(0.3, color="#999999", lw=0.7, ls=(0, (4, 3)), zorder=1)
    last = last_value(mean)
    panels.head(ax, title, f"last {number(last)}", panels.band_word("coherence", last))
    ax.set_ylabel("ρ")


def relative_step(ax: Any, record: Record) -> None:
    """‖Δ‖/‖θ‖, the median of each layer type; the broken line is the usual 0.001."""
    _typed_log(ax, record, "update_ratio", median_over_layers, "Relative step, type medians")
    low, high = ax.get_ylim()
    if low < 1e-3 < high and ax.get_yscale() == "log":
        ax.axhline(1e-3, color="#999999", lw=0.7, ls=(0, (4, 3)), zorder=1)


def distance(ax: Any, record: Record) -> None:
    """The squared distance from the start, the sum of each layer type."""
    _typed_log(ax, record, "distance", sum_over_layers, "Distance from the start, type sums")


def _typed_log(ax: Any, record: Record, name: str, reduce: Any, title: str) -> None:
    """A positive layer quantity by layer type on a logarithmic axis; types that stay at zero are named."""
    lines = by_type(record, name, reduce)
    moving = {ltype: values for ltype, values in lines.items() if (values > 0).any()}
    still = [ltype for ltype in lines if ltype not in moving]
    panels.head(ax, title, clean("at zero: " + ", ".join(still), width=110, size=8.5) if still else "")
    drawn = panels.type_lines(ax, record, moving, log=True)
    limits = panels.log_limits(*drawn)
    if limits is None:
        panels.no_data(ax, "nothing moves" if still else "no data")
        return
    panels.log_axis(ax, limits)
    ax.set_ylabel(panels.unit_label(name))
