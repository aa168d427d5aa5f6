"""Figures of the app, in the house colors, from a record, a log or what a thermometer left.

Legend: T recorded steps, L layers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from thermoclaw.app.needs import go
from thermoclaw.diagnosis.finding import Finding
from thermoclaw.markup import escape
from thermoclaw.quantities import TABLE, Array
from thermoclaw.record import Record
from thermoclaw.report.palette import CONFIDENCE, RAW, RUN_COLORS, WARN, type_color
from thermoclaw.report.series import bin_mean, layer_types, make_bins, smooth, smoothing_width
from thermoclaw.wording import short_name

LINE = RUN_COLORS[0]  # to be seen on white and on black
POINTS, MAP_BINS, MOST_ROWS = 600, 200, 400
MOST_X = 20.0
SHOWN = 1e-12  # of the largest dissipation: what is below has come to a stop
LATE = 0.2  # the last part of the run that a layer's point stands for
HEAT = ("#313695", "#4575B4", "#74ADD1", "#ABD9E9", "#FEE090", "#FDAE61", "#F46D43", "#A50026")


def figure(title: str, x: str = "", y: str = "", *, height: int = 320, log: bool = False) -> Any:
    """An empty figure; `title` names its state, so that zoom and legend outlive a refresh."""
    made = go.Figure()
    made.update_layout(
        title={"text": title, "font": {"size": 15}},
        height=height,
        margin={"l": 10, "r": 10, "t": 44, "b": 10},
        legend={"orientation": "h", "y": -0.25},
        hovermode="closest",
        uirevision=title,
    )
    made.update_xaxes(title=x, automargin=True)
    made.update_yaxes(title=y, automargin=True, type="log" if log else "linear", exponentformat="power")
    return made


def label(name: str) -> str:
    """A layer's name, which may be anybody's, for a legend or an axis."""
    return escape(short_name(name, 40))


def loss_chart(steps: Sequence[float], loss: Sequence[float] | Array, tested: Sequence[dict[str, float]]) -> Any:
    """Training loss, and the test loss of every pass."""
    chart = figure("Loss", "step")
    values = np.asarray(loss, dtype=float)
    chart.add_scatter(x=list(steps), y=_plain(values), name="training", line={"color": RAW, "width": 1.5})
    if (width := smoothing_width(len(values))) > 1:
        chart.add_scatter(x=list(steps), y=_plain(smooth(values, width)), name="smoothed", line={"color": LINE})
    rows = [row for row in tested if "val_loss" in row]
    _dots(chart, [row["step"] for row in rows], [row["val_loss"] for row in rows], "test", WARN)
    return chart


def accuracy_chart(tested: Sequence[dict[str, float]]) -> Any:
    """Test accuracy of every pass."""
    chart = figure("Test accuracy", "step")
    rows = [row for row in tested if "val_accuracy" in row]
    _dots(chart, [row["step"] for row in rows], [row["val_accuracy"] for row in rows], "test", WARN)
    chart.update_yaxes(tickformat=".0%", rangemode="tozero")
    return chart


def quantity_chart(record: Record, name: str, layers: Sequence[str], findings: Sequence[Finding] = ()) -> Any:
    """A quantity over the steps: of the run, or the median of every type of layer and the layers that were picked."""
    quantity, values = TABLE[name], record[name]
    bins = make_bins(np.asarray(record.steps, dtype=float), POINTS)
    steps = record.steps[bins.starts].tolist()
    positive = bool((values[np.isfinite(values)] > 0).all()) and _spread(values) > 30
    axis = quantity.symbol if quantity.unit == "1" else f"{quantity.symbol} ({quantity.unit})"
    chart = figure(f"{quantity.symbol}: {quantity.name}", "step", axis, height=380, log=positive)
    binned = bin_mean(values, bins)
    if values.ndim == 1:
        chart.add_scatter(x=steps, y=_plain(binned), name=quantity.name, line={"color": LINE})
    else:
        types = layer_types(record)
        kinds = np.array([layer.ltype for layer in record.layers], dtype=object)
        for kind in types if not layers else ():
            line = _median(binned[:, kinds == kind])
            words = f"{label(kind)}, median of {int((kinds == kind).sum())}"
            chart.add_scatter(x=steps, y=_plain(line), name=words, line={"color": type_color(kind, types)})
        for i, layer in enumerate(layers):
            at = record.layer_names.index(layer)
            color = RUN_COLORS[i % len(RUN_COLORS)]
            chart.add_scatter(x=steps, y=_plain(binned[:, at]), name=label(layer), line={"color": color})
    for finding in findings:
        color = CONFIDENCE[finding.confidence][0]
        chart.add_vline(x=finding.first_step, line={"color": color, "dash": "dash", "width": 1})
    return chart


def plane_chart(record: Record) -> Any:
    """A layer's late temperature over its late dissipation, both a weight; on the line the gradient is all noise."""
    chart = figure("Temperature against dissipation", "σ/N", "T", height=380, log=True)
    rows = record.rows(start=record.num_steps - int(record.num_steps * LATE))
    heat = _middle(rows["temperature"])
    lost = _middle(rows["sigma"]) / np.array([max(layer.num_params, 1) for layer in record.layers], dtype=float)
    known = (heat > 0) & (lost > 0)
    known &= lost > SHOWN * np.nanmax(np.where(known, lost, 0.0))
    types = layer_types(record)
    for kind in types:
        mine = [i for i in np.flatnonzero(known) if record.layers[i].ltype == kind]
        if mine:
            chart.add_scatter(
                x=lost[mine].tolist(),
                y=heat[mine].tolist(),
                mode="markers",
                name=label(kind),
                text=[label(record.layers[i].name) for i in mine],
                hovertemplate="%{text}<br>σ/N %{x:.2e}<br>T %{y:.2e}<extra></extra>",
                marker={"color": type_color(kind, types), "size": 9, "line": {"color": "white", "width": 0.5}},
            )
    if known.any():
        ends = [float(lost[known].min() / 2), float(lost[known].max() * 2)]
        chart.add_scatter(
            x=ends, y=[end / 2 for end in ends], mode="lines", name="pure noise, T = σ/2N", line={"color": "#888888"}
        )
    chart.update_xaxes(type="log", exponentformat="power")
    return chart


def heat_chart(record: Record, name: str) -> Any:
    """A quantity of every layer at every step."""
    bins = make_bins(np.asarray(record.steps, dtype=float), MAP_BINS)
    values = bin_mean(record[name], bins).T
    known = values[np.isfinite(values)]
    log = len(known) > 0 and bool((known > 0).all()) and _spread(known) > 30
    shown = np.log10(values) if log else values
    low, high = (float(np.quantile(shown[np.isfinite(shown)], q)) for q in (0.02, 0.98)) if len(known) else (0.0, 1.0)
    quantity = TABLE[name]
    chart = figure(f"{quantity.symbol} of every layer", "step", height=max(300, 90 + 16 * min(len(values), 60)))
    chart.add_heatmap(
        x=record.steps[bins.starts].tolist(),
        y=list(range(len(values))),
        z=[_plain(row) for row in shown],
        colorscale=list(HEAT),
        zmin=low,
        zmax=high if high > low else low + 1.0,
        colorbar={"title": "log₁₀" if log else "", "thickness": 12},
        customdata=[[label(layer.name)] * len(bins.starts) for layer in record.layers],
        hovertemplate="%{customdata}<br>step %{x}<br>%{z:.3g}<extra></extra>",
    )
    every = max(1, math.ceil(len(values) / 40))
    ticks = list(range(0, len(values), every))
    chart.update_yaxes(
        autorange="reversed", tickvals=ticks, ticktext=[escape(short_name(record.layers[i].name, 18)) for i in ticks]
    )
    return chart


def displacement_chart(heat: dict[str, Any]) -> Any:
    """Displacement of sampled weights by lag, with its power law."""
    chart = figure("Displacement of sampled weights", "lag [steps]", "mean-squared displacement", height=340, log=True)
    pairs = [(lag, value) for lag, value in zip(heat.get("lags", ()), heat.get("msd", ()), strict=False) if value]
    if pairs:
        lags, msd = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
        chart.add_scatter(x=lags.tolist(), y=msd.tolist(), mode="markers", name="measured", marker={"color": LINE})
        exponent = heat.get("diffusion_exponent")
        if exponent is not None and (msd > 0).all():
            level = float(np.mean(np.log(msd) - exponent * np.log(lags)))
            low, high = (heat.get(f"diffusion_exponent_{end}") for end in ("low", "high"))
            words = f"τ^{exponent:.2f}" + (f" [{low:.2f}, {high:.2f}]" if None not in (low, high) else "")
            fit = np.exp(level + exponent * np.log(lags))
            chart.add_scatter(x=lags.tolist(), y=fit.tolist(), mode="lines", name=words, line={"color": WARN})
    chart.update_xaxes(type="log")
    return chart


def ratio_chart(heat: dict[str, Any]) -> Any:
    """The fluctuation–dissipation ratio of each layer, with its interval, cut at the frame."""
    layers = list(heat.get("layers", {}).items())[:MOST_ROWS]
    known = [(name, one) for name, one in layers if one.get("fdt_ratio") is not None]
    height = max(260, 110 + 14 * min(len(known), 50))
    chart = figure("Ratio X of every layer", "X", height=height)
    if known:
        values = np.array([[one[f"fdt_{end}"] for end in ("ratio", "low", "high")] for _, one in known], dtype=float)
        limit = min(max(1.3 * float(np.quantile(np.abs(values[:, 0] - 1), 0.9)), 0.2), MOST_X)
        middle, low, high = np.clip(values, 1 - limit, 1 + limit).T
        bars = {"type": "data", "symmetric": False, "array": _plain(high - middle), "arrayminus": _plain(middle - low)}
        names = [label(name) for name, _ in known]
        chart.add_scatter(
            x=_plain(middle), y=names, mode="markers", error_x=bars, marker={"color": LINE}, showlegend=False
        )
        chart.add_vline(x=1.0, line={"color": "#888888"})
        chart.update_xaxes(range=[1 - limit, 1 + limit])
        chart.update_yaxes(autorange="reversed", type="category")
    return chart


def classes_chart(data: dict[str, Any]) -> Any:
    """Images of each class."""
    names = [label(str(name)) for name in data["classes"]]
    chart = figure("Images of each class", height=max(240, 120 + 18 * min(len(names), 40)))
    for part, color in (("train", LINE), ("test", WARN)):
        chart.add_bar(y=names, x=data[part], name=part, orientation="h", marker={"color": color})
    chart.update_layout(barmode="group")
    chart.update_yaxes(autorange="reversed", type="category")
    return chart


def _dots(chart: Any, x: list[float], y: list[float], name: str, color: str) -> None:
    if x:
        chart.add_scatter(x=x, y=y, name=name, mode="lines+markers", line={"color": color}, marker={"size": 6})


def _plain(values: Array) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]


def _median(values: Array) -> Array:
    """Over layers, [T, L] → [T]."""
    return _quiet(values, 1)


def _middle(values: Array) -> Array:
    """Over steps, [T, L] → [L]."""
    return _quiet(values, 0)


def _quiet(values: Array, axis: int) -> Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # layers and steps without a value
        return np.nanmedian(np.where(np.isfinite(values), values, np.nan), axis=axis)


def _spread(values: Array) -> float:
    known = values[np.isfinite(values) & (values > 0)]
    return float(known.max() / known.min()) if len(known) else 1.0
