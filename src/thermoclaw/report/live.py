"""A run while it goes on, as one piece of HTML: verdict so far, loss, alarms, the layers that stand out. Numpy only.

Legend: T recorded steps, L layers, B bins.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.markup import LINE, SOFT, badge, box, escape, line, spark
from thermoclaw.quantities import Array
from thermoclaw.record import Record
from thermoclaw.report.series import bin_mean, last_value, make_bins
from thermoclaw.wording import number, short_name

BINS, RECENT, TOLD = 90, 20, 4
WIDTH, ROW, NAMES = 600, 15, 200
EDGES = (0.25, 0.5, 0.85, 1.15, 2.0, 4.0)
SHADES = ("#2166ac", "#4393c3", "#92c5de", "", "#f4a582", "#d6604d", "#b2182b")
"""Of r, from far below to far above the layer's own habit; the band in between is left open."""


def live_html(record: Record, alarms: Sequence[Finding], *, layers: int = 8, is_over: bool = False) -> str:
    """What a live plot shows.

    Args:
        record: the rows that reached the host.
        alarms: findings raised so far.
        layers: rows of the strip.
        is_over: the run has ended.
    """
    tone = next((word for word in ("HIGH", "MEDIUM") if any(a.confidence == word for a in alarms)), "GOOD")
    word = {"GOOD": "No alarm", "HIGH": "Failing", "MEDIUM": "Doubtful"}[tone]
    if not len(record):
        return box(line(f"{badge('Waiting', 'LOW')} no step has reached the host yet"), tone="LOW")
    loss = last_value(record.loss)
    told = f"step {record.num_steps:,}" + (f" · loss {number(loss)}" if loss == loss else "")
    head = line(f"{badge(word, tone)} <b>{told}</b>{' · ended' if is_over else ''}")
    marks = [(float(alarm.first_step), alarm.confidence) for alarm in alarms]
    return box(
        head, spark(record["step"], record.loss, marks), _strip(record, alarms, layers), _told(alarms), tone=tone
    )


def _told(alarms: Sequence[Finding]) -> str:
    shown = [
        line(f"{badge(a.confidence, a.confidence)} {escape(a.title)}, since step {a.first_step:,}. {escape(a.advice)}")
        for a in alarms[-TOLD:]
    ]
    more = len(alarms) - len(shown)
    return "".join(shown) + (line(f"and {more} earlier", soft=True) if more > 0 else "")


def worst_layers(record: Record, alarms: Sequence[Finding], count: int) -> list[int]:
    """Layers that alarms name, then those furthest from their own habit lately, in model order."""
    named = {name for alarm in alarms for name in alarm.layers}
    recent = record["r"][-RECENT:]
    with np.errstate(divide="ignore", invalid="ignore"):
        away = np.abs(np.log(np.where(recent > 0, recent, np.nan)))
    away = np.where(np.isfinite(away), away, -1.0).max(axis=0, initial=-1.0)
    first = np.array([layer.name in named for layer in record.layers], dtype=bool)
    order = np.lexsort((np.arange(len(away)), -away, ~first))
    return sorted(int(i) for i in order[:count])


def _strip(record: Record, alarms: Sequence[Finding], count: int) -> str:
    """r of the worst layers over the steps: blue below its habit, red above."""
    chosen = worst_layers(record, alarms, count)
    r = record["r"][:, chosen]
    if not chosen or not np.isfinite(r).any():
        return ""
    bins = make_bins(np.asarray(record.steps, dtype=float), BINS)
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.exp(bin_mean(np.where(r > 0, np.log(np.where(r > 0, r, 1.0)), np.nan), bins))
    rows = "".join(_row(place, record.layers[i].name, level[:, place]) for place, i in enumerate(chosen))
    height = ROW * len(chosen)
    say = line("r of the layers that stand out: blue below their habit, red above; gray not defined", soft=True)
    return (
        f'<svg viewBox="0 0 {WIDTH + NAMES} {height}" role="img" style="display:block;width:100%;'
        f'max-width:{WIDTH + NAMES}px;font-size:11px"><rect width="{WIDTH}" height="{height}" fill="none" '
        f'stroke="{LINE}"/>{rows}</svg>{say}'
    )


def _row(place: int, name: str, level: Array) -> str:
    """A layer: runs of cells of one shade as one rectangle each."""
    width, top = WIDTH / len(level), place * ROW
    shades = [SHADES[int(np.searchsorted(EDGES, v))] if np.isfinite(v) else "#9a9a9a" for v in level.tolist()]
    cells, at = [], 0
    for shade, group in itertools.groupby(shades):
        length = len(list(group))
        if shade:
            x = f'x="{at * width:.1f}" y="{top}" width="{length * width + 0.3:.1f}" height="{ROW - 1}"'
            cells.append(f'<rect {x} fill="{shade}"/>')
        at += length
    text = escape(short_name(name, 32))
    label = f'<text x="{WIDTH + 6}" y="{top + ROW - 4}" fill="currentColor" style="{SOFT}">{text}'
    return "".join(cells) + f"{label}<title>{escape(short_name(name, 300))}</title></text>"
