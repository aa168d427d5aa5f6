"""What the page's script draws from: maps, lines, the loss, the split, heat, and the schedule. Numpy only.

Legend: T recorded steps, L layers, B bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.markup import is_steep, thin
from thermoclaw.quantities import R_IE_CAP, Array
from thermoclaw.record import Record
from thermoclaw.report import palette
from thermoclaw.report.html import moving, reduce
from thermoclaw.report.html.groups import groups_of
from thermoclaw.report.html.pack import Pack
from thermoclaw.report.html.quantities import SHOWN, Scale, Shown, of_finding, scale_of
from thermoclaw.report.series import (
    SPLIT_PARTS,
    Bins,
    bin_mean,
    bin_sum,
    layer_types,
    median_over_layers,
    smooth,
    smoothing_width,
    split_shares,
    sum_over_layers,
)
from thermoclaw.wording import short_name

LOSS_POINTS = 2400
FULL_NAME, SHORT_NAME = 400, 60  # characters of a layer's name on hover, and elsewhere
LATE = 0.2  # the last part of the run that a layer's point in the plane stands for


def page_data(record: Record, findings: Sequence[Finding], pack: Pack) -> dict[str, Any]:
    """Everything that the script reads; arrays go into the pack."""
    named = [name for finding in findings for name in finding.layers]
    rows = reduce.rows_of(record, named)
    bins = reduce.bins_of(record, len(rows))
    types = layer_types(record)
    per_bin = np.diff(np.append(bins.starts, len(record)))
    return {
        "steps": {"first": record.steps[0], "last": record.steps[-1], "rows": len(record)},
        "edges": bins.edges.tolist(),
        "rowsPerBin": int(per_bin.max()),
        "layers": [_layer(record, i, types) for i in rows],
        "places": rows,
        "types": [{"name": short_name(t, SHORT_NAME), "color": palette.type_color(t, types)} for t in types],
        "groups": [vars(group) for group in groups_of([record.layers[i].name for i in rows])],
        "quantities": _quantities(record, rows, bins, pack),
        "findings": [_finding(finding, record, rows) for finding in findings],
        "loss": _loss(record, pack),
        "split": _split(record, bins, pack),
        "plane": _plane(record, pack),
        "walk": moving.walk(record, bins, pack),
        "displacement": moving.displacement(record),
        "balance": moving.balance(record, rows),
        "schedule": _schedule(record, bins, pack),
    }


def _layer(record: Record, i: int, types: list[str]) -> dict[str, Any]:
    layer = record.layers[i]
    return {
        "name": short_name(layer.name, FULL_NAME) or "(unnamed)",
        "type": types.index(layer.ltype),
        "parameters": layer.num_params,
    }


def _finding(finding: Finding, record: Record, rows: list[int]) -> dict[str, Any]:
    wanted = set(finding.layers)
    return {
        "step": finding.first_step,
        "raised": finding.raised_step,
        "confidence": finding.confidence,
        "title": finding.title,
        "layers": [place for place, i in enumerate(rows) if record.layers[i].name in wanted],
        "quantity": of_finding(finding.code),
    }


# -- quantities of layers ----------------------------------------------------------------------------------------------


def _quantities(record: Record, rows: list[int], bins: Bins, pack: Pack) -> list[dict[str, Any]]:
    """The map and the lines by type of each quantity that has a value somewhere."""
    found = []
    for shown in SHOWN:
        values = shown.values(record)
        values = values if len(rows) == values.shape[1] else values[:, rows]
        scale = scale_of(shown, values)
        made = reduce.make_map(values, bins, shown, scale)
        if not (made.flags != reduce.UNDEFINED).any():
            continue
        low, high = reduce.ends(made.usual, made.far)
        quantity = shown.quantity
        found.append(
            {
                "name": shown.name,
                "title": shown.title,
                "symbol": quantity.symbol or quantity.name,
                "unit": "" if quantity.unit == "1" else quantity.unit,
                "meaning": quantity.meaning,
                "formula": quantity.formula,
                "bands": [[band.range, band.meaning] for band in quantity.bands],
                "scale": vars(scale),
                "center": shown.center,
                "held": shown.held,
                "ends": [low, high],
                "colors": _colors(made, shown, scale),
                "usual": pack.add(reduce.codes(made.usual, made.flags, low, high).T, "u2"),
                "far": None if made.far is None else pack.add(reduce.codes(made.far, made.flags, low, high).T, "u2"),
                "lines": _lines(record, rows, made, pack),
            }
        )
    return found


def _colors(made: reduce.Map, shown: Shown, scale: Scale) -> list[float]:
    """The places between which colors run: nearly all cells, or as far to one side of the center as to the other."""
    if shown.limits:
        return list(shown.limits)
    known = made.usual[np.isfinite(made.usual)]
    if not len(known):
        return [0.0, 1.0]
    if shown.center is None:
        low, high = np.quantile(known, [0.01, 0.99])
        return [float(low), float(max(high, low + 0.1))]
    middle = float(scale.place(np.array([shown.center]))[0])
    reach = float(np.clip(np.quantile(np.abs(known - middle), 0.98), 0.15, 2.0 if shown.scale == "log" else 5.0))
    return [middle - reach, middle + reach]


def _lines(record: Record, rows: list[int], made: reduce.Map, pack: Pack) -> list[dict[str, Any] | None]:
    """The median over the layers of each type of what a cell usually has, [B]; None for a type without a value."""
    kinds = np.array([record.layers[i].ltype for i in rows], dtype=object)
    lines: list[dict[str, Any] | None] = []
    for ltype in layer_types(record):
        values = made.scale.value(median_over_layers(made.usual[:, kinds == ltype]))
        lines.append(pack.add(values, "f4") if np.isfinite(values).any() else None)
    return lines


# -- the run -----------------------------------------------------------------------------------------------------------


def _loss(record: Record, pack: Pack) -> dict[str, Any] | None:
    """Every loss of a short run, the least and the greatest of each stretch of a long one, and the running mean."""
    loss = np.asarray(record.loss, dtype=float)
    good = np.isfinite(loss)
    validation = [
        (int(event["step"]), float(event["val_loss"]))
        for event in record.events
        if event.get("kind") == "epoch" and isinstance(event.get("val_loss"), (int, float))
    ]
    if not good.any() and not np.isinf(loss).any() and not validation:
        return None
    x, y = thin(np.asarray(record.steps, dtype=float), np.where(good, loss, np.nan), LOSS_POINTS)
    mean = smooth(loss, smoothing_width(len(loss)))
    every = np.unique(np.linspace(0, len(loss) - 1, min(len(loss), 800)).astype(int))
    lost = np.asarray(record.steps)[~good & _after_first(good)]
    return {
        "x": pack.add(x, "f8"),
        "y": pack.add(y, "f8"),
        "meanX": pack.add(np.asarray(record.steps, dtype=float)[every], "f8"),
        "mean": pack.add(mean[every], "f8"),
        "window": smoothing_width(len(loss)),
        "thinned": len(x) < len(loss),
        "validation": validation,
        "lost": [int(step) for step in lost[:: max(1, len(lost) // 100)]] if len(lost) <= len(loss) / 2 else [],
        "numLost": len(lost),
        "firstLost": int(lost[0]) if len(lost) else None,
        "positive": bool((loss[good] > 0).all()),
        "steep": is_steep(loss[good]),
    }


def _after_first(good: Any) -> Any:
    """Rows after the first loss, where one that is not finite is no loss that was not given."""
    return np.arange(len(good)) > np.argmax(good) if good.any() else np.ones(len(good), dtype=bool)


def _split(record: Record, bins: Bins, pack: Pack) -> dict[str, Any] | None:
    """Shares of the entropy production in each bin, as ratios of sums."""
    parts = [bin_sum(sum_over_layers(record[part]), bins) for part in SPLIT_PARTS]
    shares = split_shares(parts)
    if not np.isfinite(shares[0]).any():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.sum(parts[1:], axis=0) / parts[0]
    return {
        "parts": [
            {
                "name": palette.PART_NAMES[part],
                "symbol": part,
                "color": palette.PART_COLORS[part],
                "share": pack.add(100.0 * share, "f4"),
            }
            for part, share in zip(SPLIT_PARTS, shares, strict=True)
        ],
        "ratio": pack.add(np.where(parts[0] > 0, np.minimum(ratio, R_IE_CAP), np.nan), "f4"),
    }


def _plane(record: Record, pack: Pack) -> dict[str, Any] | None:
    """Dissipation a weight and temperature of each layer late in the run."""
    start = record.num_steps - int(record.num_steps * LATE)
    late = np.asarray(record.steps) >= start
    size = np.array([max(layer.num_params, 1) for layer in record.layers], dtype=float)
    lost, heat = _mean(record["sigma"][late]) / size, _mean(record["temperature"][late])
    known = np.flatnonzero((lost > 0) & (heat > 0) & np.isfinite(lost * heat))
    if not len(known):
        return None
    types = layer_types(record)
    return {
        "from": start,
        "x": pack.add(lost[known], "f8"),
        "y": pack.add(heat[known], "f8"),
        "names": [short_name(record.layers[i].name, SHORT_NAME) for i in known],
        "types": [types.index(record.layers[i].ltype) for i in known],
    }


def _mean(values: Array) -> Array:
    """Over the rows, what is not finite left out. [T, L] → [L]"""
    good = np.isfinite(values)
    return np.where(good, values, 0.0).sum(axis=0) / np.maximum(good.sum(axis=0), 1)


def _schedule(record: Record, bins: Bins, pack: Pack) -> list[dict[str, Any]]:
    """Rate, decay and momentum: the lowest and the highest over the layers."""
    found = []
    for name, title in (("lr", "Learning rate η"), ("weight_decay", "Weight decay λ"), ("momentum", "Momentum β₁")):
        values = record[name]
        good = np.isfinite(values)
        if not good.any():
            continue
        low = bin_mean(np.where(good.any(axis=1), np.where(good, values, np.inf).min(axis=1), np.nan), bins)
        high = bin_mean(np.where(good.any(axis=1), np.where(good, values, -np.inf).max(axis=1), np.nan), bins)
        differs = bool((np.nan_to_num(high - low) > 1e-9 * np.nan_to_num(np.abs(high))).any())
        found.append(
            {
                "name": name,
                "title": title,
                "high": pack.add(high, "f8"),
                "low": pack.add(low, "f8") if differs else None,
                "moves": bool(np.nanmax(high) > np.nanmin(high) * (1 + 1e-9)) or differs,
            }
        )
    return found
