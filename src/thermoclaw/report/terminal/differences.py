"""What tells runs apart: settings, layers, where they part from the first one, and which is healthier. Numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from thermoclaw.diagnosis.report import Report
from thermoclaw.quantities import Array
from thermoclaw.record import Record
from thermoclaw.report.series import parting, parts_at, series_of, smooth, smoothing_width
from thermoclaw.wording import number, one_line, short_name

# name, how it is called, whether logarithms are compared
QUANTITIES = (
    ("loss", "loss", False),
    ("lr", "η learning rate", False),
    ("sigma", "σ entropy production", True),
    ("R_ie_total", "R_ie overhead", False),
    ("rho_mean", "ρ coherence", False),
    ("D", "D dispersion", False),
    ("E_param_dist", "E distance from the start", True),
)
MOST_LAYERS = 5
# of a record's meta: told elsewhere, of no weight, or as many as there are layers
_LAYERWISE = ("layer_groups", "layer_dtypes", "layer_shapes", "parameter_order", "unoptimized", "outside_optimizer")
_UNLIKE_SETTINGS = (*_LAYERWISE, "run_id", "unreadable", "num_skipped")


@dataclass(frozen=True)
class Outcome:
    """How a run went."""

    label: str
    optimizer: str
    steps: int
    loss_first: float
    loss_last: float  # mean over the last tenth
    loss_least: float  # of the smoothed loss
    report: Report = field(repr=False)

    def count(self, confidence: str) -> int:
        """Findings of this confidence."""
        return sum(finding.confidence == confidence for finding in self.report.findings)

    @property
    def verdict(self) -> str:
        """In words."""
        urgent = [f"{f.code} ({f.confidence})" for f in self.report.findings if f.confidence != "LOW"]
        return "healthy" if self.report.healthy else ", ".join(urgent)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        losses = {name: _plain(getattr(self, name)) for name in ("loss_first", "loss_last", "loss_least")}
        codes = {finding.code: finding.confidence for finding in self.report.findings}
        facts = {"label": self.label, "optimizer": self.optimizer, "steps": self.steps, **losses}
        return {**facts, "healthy": self.report.healthy, "findings": codes}


@dataclass(frozen=True)
class Differences:
    """See the module's docstring.

    Attributes:
        outcomes: of each run.
        settings: by name, the value of each run; those alone that differ.
        layers: sentences on layers that not all runs have.
        partings: by quantity, for each run the step at which it parts from the first, or None.
        layer_partings: for each run after the first, (layer, step) of the layers whose σ parts first.
        healthier: a sentence.
    """

    outcomes: tuple[Outcome, ...]
    settings: dict[str, tuple[str, ...]]
    layers: tuple[str, ...]
    partings: dict[str, tuple[float | None, ...]]
    layer_partings: tuple[tuple[tuple[str, float], ...], ...]
    healthier: str

    @property
    def is_worse(self) -> bool:
        """Whether a later run has a finding to act on that the first one has not."""
        known = _urgent(self.outcomes[0])
        return any(_urgent(outcome) - known for outcome in self.outcomes[1:])

    def to_json(self) -> dict[str, Any]:
        """Plain data for programs."""
        labels = [outcome.label for outcome in self.outcomes]
        return {
            "runs": [outcome.to_json() for outcome in self.outcomes],
            "settings": {name: dict(zip(labels, values, strict=True)) for name, values in self.settings.items()},
            "layers": list(self.layers),
            "parts_at": {name: dict(zip(labels, at, strict=True)) for name, at in self.partings.items()},
            "layers_part_at": {
                label: dict(parts) for label, parts in zip(labels[1:], self.layer_partings, strict=True)
            },
            "worse": self.is_worse,
            "healthier": self.healthier,
        }


def differences(records: Sequence[Record], reports: Sequence[Report], labels: Sequence[str]) -> Differences:
    """Compare runs with the first of them.

    Args:
        records: at least two.
        reports: the diagnosis of each.
        labels: a different name for each.
    """
    first = records[0]
    outcomes = tuple(map(_outcome, labels, records, reports))
    partings = {
        name: tuple(parts_at(record, first, name, log=log) for record in records) for name, _, log in QUANTITIES
    }
    return Differences(
        outcomes=outcomes,
        settings=_settings(records),
        layers=tuple(_layers(records, labels)),
        partings=partings,
        layer_partings=tuple(_layer_partings(record, first) for record in records[1:]),
        healthier=_healthier(outcomes),
    )


def _outcome(label: str, record: Record, report: Report) -> Outcome:
    loss = record.loss
    good = loss[np.isfinite(loss)]
    tail = loss[-max(1, len(loss) // 10) :]
    tail = tail[np.isfinite(tail)]
    mean = smooth(loss, smoothing_width(len(loss)))
    mean = mean[np.isfinite(mean)]
    return Outcome(
        label,
        record.optimizer,
        record.num_steps,
        float(good[0]) if len(good) else math.nan,
        float(tail.mean()) if len(tail) else math.nan,
        float(mean.min()) if len(mean) else math.nan,
        report,
    )


# -- settings ----------------------------------------------------------------------------------------------------------


def _settings(records: Sequence[Record]) -> dict[str, tuple[str, ...]]:
    known = [_flat(record) for record in records]
    names = list(dict.fromkeys(name for one in known for name in one))
    rows = {name: tuple(one.get(name, "–") for one in known) for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def _flat(record: Record) -> dict[str, str]:
    """Settings by name, as texts."""
    found: dict[str, str] = {}
    of_steps: tuple[tuple[str, Callable[[Array], float]], ...] = (
        ("η at the first step", lambda lr: float(lr[0])),
        ("η at its highest", lambda lr: float(lr.max())),
        ("η at the last step", lambda lr: float(lr[-1])),
    )
    lr = series_of(record, "lr")
    lr = lr[np.isfinite(lr)]
    for name, of in of_steps if len(lr) else ():
        found[name] = number(of(lr))
    groups = record.meta.get("param_groups")
    groups = groups if isinstance(groups, list) else []
    for i, group in enumerate(groups):
        place = f" (group {i})" if len(groups) > 1 else ""
        for name, value in group.items() if isinstance(group, dict) else ():
            if name != "lr":
                found[f"{name}{place}"] = _text(value)
    for name, value in record.meta.items():
        if name == "settings" and isinstance(value, dict):
            found |= {f"Observer({key}=)": _text(held) for key, held in value.items()}
        elif name != "param_groups" and name not in _UNLIKE_SETTINGS:
            found[name] = _text(value)
    return found


def _text(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, (list, tuple)):
        return one_line(", ".join(map(str, value)), 60)
    return one_line(value, 60)


def _layers(records: Sequence[Record], labels: Sequence[str]) -> list[str]:
    told = []
    mine = {layer.name: layer for layer in records[0].layers}
    for label, record in zip(labels[1:], records[1:], strict=True):
        theirs = {layer.name: layer for layer in record.layers}
        resized = [n for n in mine if n in theirs and mine[n].num_params != theirs[n].num_params]
        changes = (
            ("only in " + labels[0], [n for n in mine if n not in theirs]),
            ("only in " + label, [n for n in theirs if n not in mine]),
            ("of another size in " + label, resized),
        )
        for where, names in changes:
            if names:
                some = ", ".join(short_name(name, 40) for name in names[:MOST_LAYERS])
                more = f" and {len(names) - MOST_LAYERS} more" if len(names) > MOST_LAYERS else ""
                told.append(f"{len(names)} layer{'s' if len(names) > 1 else ''} {where}: {some}{more}")
    return told


# -- where they part ---------------------------------------------------------------------------------------------------


def _layer_partings(record: Record, reference: Record) -> tuple[tuple[str, float], ...]:
    """The layers whose entropy production parts first from the reference's, on the steps that both recorded."""
    steps, mine, theirs = np.intersect1d(record.steps, reference.steps, return_indices=True)
    place = {layer.name: i for i, layer in enumerate(reference.layers)}
    found = []
    for i, layer in enumerate(record.layers):
        if layer.name in place:
            one, other = reference["sigma"][theirs, place[layer.name]], record["sigma"][mine, i]
            at = parting(steps.astype(float), one, other, log=True)
            if at is not None:
                found.append((layer.name, at))
    return tuple(sorted(found, key=lambda pair: pair[1])[:MOST_LAYERS])


# -- which is healthier ------------------------------------------------------------------------------------------------


def _urgent(outcome: Outcome) -> set[str]:
    return {finding.code for finding in outcome.report.findings if finding.confidence != "LOW"}


def _healthier(outcomes: Sequence[Outcome]) -> str:
    def burden(outcome: Outcome) -> tuple[int, int]:
        return outcome.count("HIGH"), outcome.count("MEDIUM")

    least = min(map(burden, outcomes))
    best = [outcome for outcome in outcomes if burden(outcome) == least]
    if len(best) < len(outcomes):
        names = " and ".join(outcome.label for outcome in best)
        verb = "is" if len(best) == 1 else "are"
        return f"{names} {verb} healthier: {_findings(*least)}, against {_findings(*max(map(burden, outcomes)))}."
    told = (
        f"Equally healthy: {_findings(*least)} each." if least == (0, 0) else f"Equally ill: {_findings(*least)} each."
    )
    known = [outcome for outcome in outcomes if math.isfinite(outcome.loss_last)]
    if len(known) < 2:
        return told
    lowest = min(known, key=lambda outcome: outcome.loss_last)
    return f"{told} {lowest.label} ends at the lowest loss, {number(lowest.loss_last)}."


def _findings(high: int, medium: int) -> str:
    if not high and not medium:
        return "no finding to act on"
    parts = [f"{count} {name}" for count, name in ((high, "HIGH"), (medium, "MEDIUM")) if count]
    return f"{' and '.join(parts)} finding{'s' if high + medium > 1 else ''}"


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
