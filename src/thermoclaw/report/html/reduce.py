"""A record of any length and width as so many numbers as a screen can show, with what stands out kept. Numpy only.

Legend: T recorded steps, L layers, B bins.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from thermoclaw.quantities import Array
from thermoclaw.record import Record
from thermoclaw.report.html.quantities import LOG, Scale, Shown
from thermoclaw.report.series import Bins, make_bins

MAX_BINS, LEAST_BINS = 320, 64
"""Columns of the map: a column is at least three pixels wide on a desktop."""

MAX_LAYERS = 750
"""Rows of the map."""

CELLS = MAX_LAYERS * LEAST_BINS
"""Cells of the map, which keep a page of noise in all quantities below 8 MB."""

UNDEFINED, NOT_FINITE, NOT_POSITIVE, FIRST_CODE, LAST_CODE = 0, 1, 2, 3, 65535
"""What a cell's code says: three words, then 65,533 places on the scale."""


@dataclass(frozen=True)
class Map:
    """One quantity of all layers over all steps.

    Attributes:
        usual: places on the scale of the mean of each cell's steps, NaN where there is none, [B, L].
        far: places of the step that is furthest from what is usual in its layer, [B, L]; None where a cell is a step.
        flags: `UNDEFINED`, `NOT_FINITE`, `NOT_POSITIVE`, or `FIRST_CODE` where there is a value, [B, L].
        scale: of the places.
    """

    usual: Array
    far: Array | None
    flags: Any
    scale: Scale


def bins_of(record: Record, num_layers: int) -> Bins:
    """Columns of the map: as many as a screen can show, fewer where there are very many layers."""
    limit = int(np.clip(CELLS // max(num_layers, 1), LEAST_BINS, MAX_BINS))
    return make_bins(np.asarray(record.steps, dtype=float), limit)


def rows_of(record: Record, named: Iterable[str]) -> list[int]:
    """Rows of the map: every layer, or those that findings name and evenly many of the others."""
    total = len(record.layers)
    if total <= MAX_LAYERS:
        return list(range(total))
    wanted = set(named)
    first = [i for i, layer in enumerate(record.layers) if layer.name in wanted][:MAX_LAYERS]
    rest = np.linspace(0, total - 1, MAX_LAYERS).astype(int)
    chosen = dict.fromkeys([*first, *rest.tolist()])
    return sorted(list(chosen)[:MAX_LAYERS])


def make_map(values: Array, bins: Bins, shown: Shown, scale: Scale) -> Map:
    """Reduce [T, L] to [B, L] on a quantity's scale."""
    made = _reduced(values, bins, shown, scale)
    return _held(made) if shown.held else made


def _held(made: Map) -> Map:
    """Values go on until the next one, over no more bins than lie between two of them anywhere."""
    at = np.arange(len(made.flags))[:, None]
    last = np.maximum.accumulate(np.where(made.flags != UNDEFINED, at, -1), axis=0)
    gaps = np.diff(last, axis=0)[last[:-1] >= 0]
    known = (last >= 0) & (at - last < gaps.max(initial=1))
    columns = np.arange(made.flags.shape[1])
    source = np.where(known, last, at)
    far = None if made.far is None else made.far[source, columns]
    return Map(made.usual[source, columns], far, made.flags[source, columns], made.scale)


def _reduced(values: Array, bins: Bins, shown: Shown, scale: Scale) -> Map:
    places = scale.place(values)
    if len(bins.starts) == len(values):
        good = np.isfinite(places)
        return Map(np.where(good, places, np.nan), None, _flags(values, places, good, None, shown), scale)
    good = np.isfinite(places)
    everywhere = good.all()
    count: Any = _counts(bins, len(values))[:, None]
    if not everywhere:
        count = np.add.reduceat(good, bins.starts, axis=0, dtype=np.int32)
    total = np.add.reduceat(places if everywhere else np.where(good, places, 0.0), bins.starts, axis=0)
    high = np.maximum.reduceat(places if everywhere else np.where(good, places, -np.inf), bins.starts, axis=0)
    low = np.minimum.reduceat(places if everywhere else np.where(good, places, np.inf), bins.starts, axis=0)
    have = np.broadcast_to(count > 0, total.shape)
    usual = np.where(have, total / np.maximum(count, 1), np.nan)
    typical = _median(usual)
    far = np.where(high - typical >= typical - low, high, low)
    flags = np.where(have, FIRST_CODE, UNDEFINED) if everywhere else _flags(values, places, good, bins, shown)
    return Map(usual, np.where(have, far, np.nan), flags, scale)


def _counts(bins: Bins, num_rows: int) -> Any:
    return np.diff(np.append(bins.starts, num_rows))


def _flags(values: Array, places: Array, good: Any, bins: Bins | None, shown: Shown) -> Any:
    """What there is to say of each cell. One step that is not finite marks its cell."""
    if good.all():
        return np.full(values.shape, FIRST_CODE)

    def any_row(which: Any) -> Any:
        return which if bins is None else np.add.reduceat(which, bins.starts, axis=0, dtype=np.int32) > 0

    lost = np.isinf(values) | (np.isnan(values) if shown.always_defined else False)
    flags = np.where(any_row(good), FIRST_CODE, UNDEFINED)
    if shown.scale == LOG:
        flags = np.where(any_row(values <= 0) & ~any_row(good), NOT_POSITIVE, flags)
    return np.where(any_row(lost), NOT_FINITE, flags)


def _median(usual: Array) -> Array:
    """Of each layer over the bins; 0 where nothing is known. [B, L] → [L]"""
    known = np.isfinite(usual)
    ordered = np.sort(np.where(known, usual, np.inf), axis=0)
    middle = np.maximum(known.sum(axis=0) - 1, 0) // 2
    found = ordered[middle, np.arange(usual.shape[1])]
    return np.where(np.isfinite(found), found, 0.0)


def codes(places: Array, flags: Any, low: float, high: float) -> Any:
    """Places and flags as 16-bit codes; `low` and `high` are the ends of the scale."""
    span = high - low if high > low else 1.0
    with np.errstate(invalid="ignore"):
        steps = np.nan_to_num((places - low) / span * (LAST_CODE - FIRST_CODE))
    code = FIRST_CODE + np.clip(np.rint(steps), 0, LAST_CODE - FIRST_CODE).astype(np.uint16)
    return np.where(flags == FIRST_CODE, code, flags).astype(np.uint16)


def ends(*places: Array | None) -> tuple[float, float]:
    """The least and the greatest of what is finite; 0 and 1 where nothing is."""
    known = [part[np.isfinite(part)] for part in places if part is not None]
    found = np.concatenate(known) if known else np.zeros(0)
    return (float(found.min()), float(found.max())) if len(found) else (0.0, 1.0)
