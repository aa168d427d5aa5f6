r"""Prometheus: the newest numbers and all findings in a file for node_exporter's textfile collector. No dependency.

The format is text exposition 0.0.4: a "# HELP" and a "# TYPE" line for each metric, then its samples without a
timestamp, which the collector does not take; in a label's value, backslash, quote and line feed are escaped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.files import atomic_file
from thermoclaw.integrations.scalars import meanings
from thermoclaw.wording import one_line

STEP = ("thermoclaw_step", "the last step that numbers are given for")
RUNNING = ("thermoclaw_running", "1 while the run is logged, 0 when it has ended")
FINDING = ("thermoclaw_finding_raised_step", "a finding, with the step at which it was raised")
KEPT = 50  # findings at most


class Prometheus:
    """Writes a file anew at each point and finding. It appears whole or not at all.

    Args:
        path: a file whose name ends in ".prom", as the collector asks.
        labels: put on every sample, to tell runs apart: `{"run": "mine"}`. By default the file's name is the run.

    Raises:
        ValueError: the name has another ending, or a label's name is not one.
    """

    def __init__(self, path: str | os.PathLike[str], labels: Mapping[str, str] | None = None) -> None:
        self._path = Path(path)
        if self._path.suffix != ".prom":
            raise ValueError(f"{str(path)!r}: node_exporter reads only files whose name ends in .prom")
        self._labels = dict(labels) if labels is not None else {"run": self._path.stem}
        for name in self._labels:
            if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name) or name.startswith("__"):
                raise ValueError(f"label {name!r}: a name has letters, digits and _, and begins with no digit or __")
        self._step, self._running = 0, 1
        self._values: dict[str, float] = {}
        self._findings: dict[str, int] = {}  # labels to step: the collector refuses a sample that comes twice

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step in place of the earlier ones."""
        self._step, self._values = step, dict(values)
        self._write()

    def finding(self, finding: Finding) -> None:
        """Add a finding, which stays."""
        words = {"code": finding.code, "confidence": finding.confidence, "title": finding.title}
        if len(self._findings) < KEPT:
            self._findings.setdefault(_labels({**self._labels, **words}), finding.raised_step)
        self._write()

    def picture(self, name: str, step: int, png: bytes) -> None:
        """Nothing to do: the format has no pictures."""

    def close(self) -> None:
        """Say that the run has ended; the file stays."""
        self._running = 0
        self._write()

    def _write(self) -> None:
        mine = _labels(self._labels)
        told = meanings()
        lines = [*_gauge(*STEP, {mine: self._step}), *_gauge(*RUNNING, {mine: self._running})]
        for name, value in self._values.items():
            lines += _gauge(name, told.get(name, name), {mine: value})
        if self._findings:
            lines += _gauge(*FINDING, self._findings)
        with atomic_file(self._path, "w") as handle:
            handle.write("\n".join(lines) + "\n")


def _gauge(name: str, meaning: str, samples: Mapping[str, float]) -> list[str]:
    name = re.sub(r"[^a-zA-Z0-9_]", "_", name)
    said = one_line(meaning).replace("\\", "\\\\")
    return [
        f"# HELP {name} {said}",
        f"# TYPE {name} gauge",
        *(f"{name}{at} {value!r}" for at, value in samples.items()),
    ]


def _labels(labels: Mapping[str, str]) -> str:
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return one_line(value, 200).replace("\\", "\\\\").replace('"', '\\"')
