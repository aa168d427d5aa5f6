"""`diagnose`: an observer, a record or a saved one in, a report in plain English out."""

from __future__ import annotations

import json
import os
import textwrap
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from thermoclaw.diagnosis.engine import find
from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.rich import report_html
from thermoclaw.files import atomic_file
from thermoclaw.quantities import EQUILIBRIUM_BAND, R_IE_CAP, Array
from thermoclaw.record import Record
from thermoclaw.runs.reader import load
from thermoclaw.wording import number as in_digits

_RECENT = 50
_WIDTH = 110  # characters of a line


@dataclass(frozen=True)
class Report:
    """What `diagnose` found.

    Attributes:
        summary: one paragraph, the verdict first.
        healthy: no finding of HIGH or MEDIUM confidence.
        findings: ranked `Finding`s, the most urgent first.
        recommendations: the findings as strings, "[HIGH] …".
        equilibrium_fraction: share of layers with r inside the band over the recent steps.
        equilibrium_layers, non_equilibrium_layers: names by their mean r over the recent steps.
        entropy_split_available: whether the record holds the split.
        worst_R_ie_layers: (layer, R_ie) of the five layers with most overhead, as a ratio of sums.
        raw_stats: the numbers behind the summary.
        lines: the summary's sentences by line: the verdict, what the run was, background, what remedies changed.
    """

    summary: str
    healthy: bool
    equilibrium_fraction: float
    equilibrium_layers: list[str]
    non_equilibrium_layers: list[str]
    entropy_split_available: bool
    worst_R_ie_layers: list[tuple[str, float]]
    recommendations: list[str]
    raw_stats: dict[str, Any]
    findings: list[Finding] = field(default_factory=list)
    lines: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """The verdict in a line."""
        return self.lines[0] if self.lines else self.summary

    def __str__(self) -> str:
        lines = [textwrap.fill(line, width=_WIDTH, subsequent_indent="  ") for line in self.lines or (self.summary,)]
        lines.append("")
        if not self.findings:
            lines.append("Nothing to report: no rule found anything wrong.")
        roots = {code: place for place, f in enumerate(self.findings, start=1) for code in f.explains}
        for place, finding in enumerate(self.findings, start=1):
            root = roots.get(finding.code) if finding.confidence == "LOW" else None
            lines += _paragraphs(place, finding) if root is None else _consequence(place, finding, root)
        return "\n".join(lines).rstrip()

    def _repr_html_(self) -> str:
        """For notebooks."""
        return report_html(self.summary, self.findings, healthy=self.healthy)

    def to_json(self) -> dict[str, Any]:
        """Plain data for programs."""
        return {
            "healthy": self.healthy,
            "summary": self.summary,
            "findings": [finding.to_json() for finding in self.findings],
            "recommendations": self.recommendations,
            "equilibrium_fraction": _finite_or_none(self.equilibrium_fraction),
            "equilibrium_layers": self.equilibrium_layers,
            "non_equilibrium_layers": self.non_equilibrium_layers,
            "worst_R_ie_layers": [[name, value] for name, value in self.worst_R_ie_layers],
            "raw_stats": {key: _finite_or_none(value) for key, value in self.raw_stats.items()},
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report: JSON when the name ends in .json, text otherwise."""
        as_json = str(path).endswith(".json")
        with atomic_file(path, "w") as handle:
            handle.write(json.dumps(self.to_json(), indent=2) if as_json else str(self))
            handle.write("\n")


def diagnose(
    observer: Any, splitter: Any = None, collapse_detector: Any = None, equilibrium_band: float = EQUILIBRIUM_BAND
) -> Report:
    """Say what is failing, where, since when, why, and what to change.

    Args:
        observer: an `Observer` (or a detector), a `Record`, or the path of a saved record or a run directory.
        splitter: taken for the sake of thermoclaw 0.1.6; its buffers are the observer's, so it adds nothing.
        collapse_detector: likewise.
        equilibrium_band: a layer counts as at equilibrium while |r − 1| is at most this.

    Returns:
        A `Report`; `print` it, or read `findings`.

    Raises:
        TypeError: the argument is none of these.
        FileNotFoundError, RecordError: a path that is no readable record.

    Reading an observer waits for the device.

    Example:
        >>> import torch, thermoclaw
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> observer = thermoclaw.Observer(model, optimizer)
        >>> report = thermoclaw.diagnose(observer)
        >>> report.healthy, report.findings
        (True, [])
    """
    if not 0 < equilibrium_band < 1:
        raise ValueError(f"equilibrium_band={equilibrium_band!r}: give a number between 0 and 1, such as 0.15")
    record = as_record(observer)
    findings = find(record)
    healthy = not any(finding.confidence in ("HIGH", "MEDIUM") for finding in findings)
    stats = _stats(record)
    typical = _recent_mean(record["r"])
    known = np.isfinite(typical)
    inside = known & (np.abs(typical - 1.0) <= equilibrium_band)
    names = np.array(record.layer_names, dtype=object)
    fraction = float(inside.sum() / known.sum()) if known.any() else float("nan")
    lines = _lines(record, findings, fraction, stats)
    return Report(
        summary=" ".join(lines),
        healthy=healthy,
        equilibrium_fraction=fraction,
        equilibrium_layers=list(names[inside]),
        non_equilibrium_layers=list(names[known & ~inside]),
        entropy_split_available=bool(len(record)),
        worst_R_ie_layers=_worst_layers(record),
        recommendations=[finding.recommendation for finding in findings],
        raw_stats=stats,
        findings=findings,
        lines=tuple(lines),
    )


def as_record(source: Any) -> Record:
    """The Record behind an observer, a detector, a path, or itself."""
    if isinstance(source, Record):
        return source
    if isinstance(source, (str, os.PathLike)):
        return load(source)
    record = getattr(source, "record", None)
    if callable(record):
        found = record()
        if isinstance(found, Record):
            return found
    inner = getattr(source, "observer", None)
    if inner is not None and inner is not source:
        return as_record(inner)
    raise TypeError(f"diagnose takes an Observer, a Record or the path of a saved record, not {type(source).__name__}")


def _recent_mean(values: Array) -> Array:
    """Mean over the last rows by layer, NaN ignored."""
    tail = values[-_RECENT:]
    good = np.isfinite(tail)
    count = good.sum(axis=0)
    return np.where(count > 0, np.where(good, tail, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _worst_layers(record: Record) -> list[tuple[str, float]]:
    """Layers by overhead per productive unit over the recent steps, worst first."""
    internal, external = _recent_mean(record["d_iS"]), _recent_mean(record["d_eS"])
    ratio = np.where(external > 0, internal / np.where(external > 0, external, 1.0), R_IE_CAP)
    ratio = np.where(internal > 0, np.minimum(ratio, R_IE_CAP), 0.0)
    order = np.argsort(-ratio, kind="stable")[:5]
    return [(record.layers[i].name, float(ratio[i])) for i in order]


def _stats(record: Record) -> dict[str, Any]:
    internal, external = record["total_d_iS"], record["total_d_eS"]
    good = np.isfinite(internal) & np.isfinite(external)
    flow = external[good].sum()
    typical = record["R_ie_median"][np.isfinite(record["R_ie_median"])]
    finite_loss = record.loss[np.isfinite(record.loss)]

    def last(name: str) -> float:
        values = record[name][np.isfinite(record[name])]
        return float(values[-1]) if len(values) else float("nan")

    return {
        "num_steps": record.num_steps,
        "num_layers": len(record.layers),
        "loss_first": float(finite_loss[0]) if len(finite_loss) else float("nan"),
        "loss_last": float(finite_loss[-1]) if len(finite_loss) else float("nan"),
        "D": last("D"),
        "rho_mean": last("rho_mean"),
        "eq_frac": last("eq_frac"),
        "E_param_dist": last("E_param_dist"),
        "R_ie_median": float(np.median(typical)) if len(typical) else float("nan"),
        "R_ie_total": float(min(internal[good].sum() / flow, R_IE_CAP)) if flow > 0 else float("nan"),
    }


def _lines(record: Record, findings: list[Finding], fraction: float, stats: dict[str, Any]) -> list[str]:
    """The summary: verdict, run, background, changes."""
    if not len(record):
        return [f"Thermoclaw: {record.optimizer}, no optimizer step was measured yet."]
    urgent = [finding for finding in findings if finding.confidence != "LOW"]
    background = []
    if np.isfinite(fraction):
        background.append(f"{fraction:.0%} of layers at their usual rate (r)")
    if np.isfinite(stats["R_ie_median"]):
        background.append(f"overhead R_ie {in_digits(stats['R_ie_median'])} in the typical layer")
    if np.isfinite(stats["rho_mean"]):
        background.append(f"coherence {stats['rho_mean']:.2f}")
    lines = [_verdict(record, urgent), _run(record, len(urgent), len(findings) - len(urgent), stats)]
    if background:
        lines.append(f"Background: {', '.join(background)}.")
    lines += _changes(record)
    if record.meta.get("failed"):
        lines.append("Measuring stopped early after an internal error; see the log.")
    return lines


def _verdict(record: Record, urgent: list[Finding]) -> str:
    if not urgent:
        return f"Thermoclaw: {'incomplete' if record.meta.get('failed') else 'healthy'}."
    word = "failing" if any(finding.confidence == "HIGH" for finding in urgent) else "doubtful"
    return f"Thermoclaw: {word} since step {urgent[0].first_step}: {urgent[0].title}."


def _run(record: Record, num_urgent: int, num_more: int, stats: dict[str, Any]) -> str:
    """What the run was, and how much there is to read."""
    text = f"{record.optimizer}, {_count(record.num_steps, 'step')}, {_count(len(record.layers), 'layer')}"
    if np.isfinite(stats["loss_first"]):
        text += f", loss {stats['loss_first']:.4g} → {stats['loss_last']:.4g}"
    counts = [f"{_count(num_urgent, 'finding')} to act on"] if num_urgent else []
    if num_more:
        counts.append(f"{num_more} for information" if counts else f"nothing to act on, {num_more} for information")
    return f"{text}: {', '.join(counts)}." if counts else f"{text}."


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _changes(record: Record) -> list[str]:
    """What remedies changed while the run went on, a sentence each."""
    told = []
    for event in record.events:
        if event.get("kind") == "remedy":
            verb = "took back" if event.get("undo") else "changed"
            who, what = event.get("by") or "You", (event.get("change") or {}).get("text", "a hyper-parameter")
            told.append(f"{who} {verb} {what}, after step {event.get('step')} ({event.get('finding', 'by hand')}).")
    return told


def _paragraphs(number: int, finding: Finding) -> list[str]:
    """A finding for the terminal."""
    evidence = ", ".join(f"{name} = {value:.4g}" for name, value in finding.evidence.items())
    parts = (("Seen", finding.seen), ("Means", finding.meaning), ("Try", finding.advice))
    wrong = f"{finding.refuted_by}." if finding.refuted_by else ""
    symptoms = ", ".join(finding.explains)
    more = (("Wrong if", wrong), ("Explains", symptoms), ("Evidence", evidence), ("Source", finding.source))
    lines = [_head(number, finding, ""), *(_part(label, text) for label, text in (*parts, *more) if text)]
    if finding.remedy is not None:
        lines.append(f"   {'Remedy:':<10}{finding.remedy.describe()}: finding.remedy.apply(optimizer)")
    return [*lines, ""]


def _consequence(number: int, finding: Finding, root: int) -> list[str]:
    """A finding that another accounts for, in short: what was seen of it."""
    return [_head(number, finding, f"; explained by {root}"), _part("Seen", finding.seen), ""]


def _head(number: int, finding: Finding, more: str) -> str:
    since = f"since step {finding.first_step}"
    if finding.raised_step != finding.first_step:
        since += f", certain at step {finding.raised_step}"
    return f"{number}. [{finding.confidence}] {finding.title} ({finding.code}, {since}{more})"


def _part(label: str, text: str) -> str:
    return textwrap.fill(text, width=_WIDTH, initial_indent=f"   {label + ':':<10}", subsequent_indent=" " * 13)


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
