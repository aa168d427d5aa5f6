"""A run at a glance: the numbers, verdict and worst layers that a terminal has room for. Numpy only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.report import Report
from thermoclaw.quantities import R_IE_CAP, Array
from thermoclaw.record import Record
from thermoclaw.report.facts import run_facts
from thermoclaw.report.series import last_value, median_over_layers, ratio_of_means, sum_over_layers

RECENT = 50  # rows
MOST_LAYERS = 5
SILENT_S, SILENT_FACTOR = 30.0, 6.0  # no new rows for longer than this, and than so many times the usual pause
FLUSH_S = 5.0  # the usual pause of a run that steps fast

GOES_ON, ENDED, SILENT = "running", "ended", "silent"


@dataclass(frozen=True)
class Line:
    """One quantity of the run over its steps."""

    name: str
    label: str
    values: Array  # [T]

    @property
    def last(self) -> float:
        """The last value that is defined."""
        return last_value(self.values)


@dataclass(frozen=True)
class Layer:
    """One layer over the recent steps."""

    name: str
    ltype: str
    r: float
    R_ie: float
    update_ratio: float
    sigma: Array  # [T], of the whole run
    is_named: bool  # by a finding


@dataclass(frozen=True)
class Glance:
    """See the module's docstring.

    Attributes:
        facts: the run in a line.
        state: "running", "ended", or "silent" where no rows came for longer than usual.
        silent_s: seconds since the last rows; NaN where that is not known.
        steps_per_s: how fast it goes, or went; NaN where that is not known.
    """

    facts: str
    state: str
    silent_s: float
    steps_per_s: float
    report: Report
    lines: tuple[Line, ...]
    layers: tuple[Layer, ...]
    steps: Array

    @property
    def findings(self) -> list[Finding]:
        """The ranked findings."""
        return self.report.findings

    def to_json(self) -> dict[str, Any]:
        """Plain data for programs."""
        named = [
            {"name": x.name, "ltype": x.ltype, "r": _plain(x.r), "R_ie": _plain(x.R_ie), "sigma": _plain(x.sigma[-1])}
            for x in self.layers
        ]
        return {
            "state": self.state,
            "silent_s": _plain(self.silent_s),
            "step": int(self.steps[-1]) if len(self.steps) else 0,
            "steps_per_s": _plain(self.steps_per_s),
            "healthy": self.report.healthy,
            "summary": self.report.summary,
            "last": {line.name: _plain(line.last) for line in self.lines},
            "findings": [finding.to_json() for finding in self.findings],
            "worst_layers": named,
        }


def glance(
    record: Record,
    report: Report,
    *,
    is_closed: bool = True,
    marks: tuple[tuple[int, float], ...] = (),
    now_s: float = math.nan,
) -> Glance:
    """Put together what is shown of a run.

    Args:
        record: the run so far.
        report: its diagnosis, which may be of a moment before.
        is_closed: whether it has ended in good order.
        marks: how far it was, and when.
        now_s: the time, by the same clock.
    """
    silent_s = now_s - marks[-1][1] if marks else math.nan
    speed = _speed(marks)
    state = ENDED if is_closed else SILENT if _is_silent(silent_s, speed, record) else GOES_ON
    return Glance(
        facts=run_facts(record),
        state=state,
        silent_s=silent_s,
        steps_per_s=speed,
        report=report,
        lines=_lines(record),
        layers=_worst_layers(record, report),
        steps=record["step"],
    )


def _speed(marks: tuple[tuple[int, float], ...]) -> float:
    """Steps a second over the last writes that lie some seconds apart."""
    if len(marks) < 2:
        return math.nan
    last_step, last_s = marks[-1]
    earlier = [mark for mark in marks[:-1] if last_s - mark[1] >= 2 * FLUSH_S] or [marks[0]]
    step, then_s = earlier[-1]
    return (last_step - step) / (last_s - then_s) if last_s > then_s else math.nan


def _is_silent(silent_s: float, speed: float, record: Record) -> bool:
    """Whether rows are missing: they come in blocks of `lag`, which slow steps take long to fill."""
    settings = record.meta.get("settings")
    lag = settings.get("lag", 8) if isinstance(settings, dict) else 8
    every = record.meta.get("every") or 1
    block_s = lag * every / speed if speed > 0 else 0.0
    return silent_s > max(SILENT_S, SILENT_FACTOR * max(FLUSH_S, block_s))


def _lines(record: Record) -> tuple[Line, ...]:
    series = (
        ("loss", "loss", record.loss),
        ("sigma", "σ entropy production", sum_over_layers(record["sigma"])),
        ("R_ie_total", "R_ie overhead", ratio_of_means(record, 1)),
        ("rho_mean", "ρ coherence", record["rho_mean"]),
        ("eq_frac", "at equilibrium", record["eq_frac"]),
        ("update_ratio", "update ‖Δ‖/‖θ‖", median_over_layers(record["update_ratio"])),
        ("lr", "η learning rate", median_over_layers(record["lr"])),
    )
    return tuple(Line(*one) for one in series if np.isfinite(one[2]).any())


def _worst_layers(record: Record, report: Report) -> tuple[Layer, ...]:
    """Layers that findings name, the most urgent finding's first, then those with most overhead."""
    if not len(record):
        return ()
    recent = record.rows(start=int(record.steps[-RECENT:][0]))
    internal, external = _mean(recent["d_iS"]), _mean(recent["d_eS"])
    ratio = np.where(external > 0, internal / np.where(external > 0, external, 1.0), R_IE_CAP)
    ratio = np.where(internal > 0, np.minimum(ratio, R_IE_CAP), np.where(np.isnan(internal), np.nan, 0.0))
    r, update = _mean(recent["r"]), _mean(recent["update_ratio"])
    place = {layer.name: i for i, layer in enumerate(record.layers)}
    named = [
        place[name]
        for finding in report.findings
        if finding.confidence != "LOW" and len(finding.layers) < len(record.layers)
        for name in finding.layers
        if name in place
    ]
    order = list(dict.fromkeys([*named, *np.argsort(-np.nan_to_num(ratio, nan=-1.0), kind="stable").tolist()]))
    sigma = record["sigma"]
    return tuple(
        Layer(
            record.layers[i].name,
            record.layers[i].ltype,
            float(r[i]),
            float(ratio[i]),
            float(update[i]),
            sigma[:, i],
            i in named,
        )
        for i in order[:MOST_LAYERS]
    )


def _mean(values: Array) -> Array:
    """Mean over rows, NaN ignored."""
    good = np.isfinite(values)
    count = good.sum(axis=0)
    return np.where(count > 0, np.where(good, values, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
