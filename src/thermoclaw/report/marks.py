"""Findings on a picture: numbered where they begin, drawn through the panels, named in a strip."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thermoclaw.report import style
from thermoclaw.report.lettering import clean

STRIP_LINE_IN = 0.225
"""Height of a line in the strip of findings."""


@dataclass(frozen=True, order=True)
class Mark:
    """A finding as a picture shows it."""

    label: int
    step: float | None  # None: it holds for the whole run
    confidence: str
    text: str

    @property
    def color(self) -> str:
        """The color of its confidence."""
        return style.CONFIDENCE[self.confidence][0]


def make_marks(findings: Iterable[Any]) -> list[Mark]:
    """Findings in the order given, numbered from 1; anything with code, confidence, first_step and title will do."""
    marks = []
    for i, finding in enumerate(findings, start=1):
        confidence = getattr(finding, "confidence", "LOW")
        word = str(getattr(confidence, "value", confidence)).upper()
        step = getattr(finding, "first_step", None)
        where = None if step is None or not np.isfinite(float(step)) else float(step)
        title = str(getattr(finding, "title", "") or getattr(finding, "code", ""))
        marks.append(Mark(i, where, word if word in style.CONFIDENCE else "LOW", title))
    return marks


def mark_steps(ax: Any, marks: Sequence[Mark]) -> None:
    """A vertical line at the first step of each finding; a surer finding's line lies over a less sure one's."""
    low, high = ax.get_xlim()
    strength = {"HIGH": 3, "MEDIUM": 2, "LOW": 1}
    for mark in sorted(marks, key=lambda m: strength[m.confidence]):
        if mark.step is not None and low <= mark.step <= high:
            color, dashes = style.CONFIDENCE[mark.confidence]
            ax.axvline(mark.step, color=color, ls=dashes, lw=1.0, alpha=0.85, zorder=4)


def number_marks(ax: Any, marks: Sequence[Mark], *, width_in: float) -> None:
    """Numbers above the axes where the findings begin; those too close to each other share a box."""
    low, high = ax.get_xlim()
    placed = sorted((mark.step, mark) for mark in marks if mark.step is not None and low <= mark.step <= high)
    groups: list[tuple[float, list[Mark]]] = []
    for step, mark in placed:
        room_in = max(0.1 + 0.09 * len(_numbers(groups[-1][1])), 0.26) if groups else 0.0
        if groups and (step - groups[-1][0]) / (high - low) * width_in < room_in:
            groups[-1][1].append(mark)
        else:
            groups.append((step, [mark]))
    for step, group in groups:
        surest = min(group, key=lambda m: list(style.CONFIDENCE).index(m.confidence))
        ax.annotate(
            _numbers(group), (step, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3),
            textcoords="offset points", ha="center", va="bottom", color="white", size=7.5, annotation_clip=False,
            bbox={"boxstyle": "round,pad=0.22", "fc": surest.color, "ec": "none"},
        )  # fmt: skip


def _numbers(group: Sequence[Mark]) -> str:
    """Numbers of several marks in one box: "2", "1 3", "1–5", "1 … 9"."""
    labels = sorted(mark.label for mark in group)
    if len(labels) > 2 and labels[-1] - labels[0] == len(labels) - 1:
        return f"{labels[0]}–{labels[-1]}"
    if len(labels) > 3:
        return f"{labels[0]} … {labels[-1]}"
    return " ".join(str(label) for label in labels)


def finding_strip(figure: Any, marks: Sequence[Mark], *, left_in: float, top_in: float, width_in: float) -> None:
    """The findings by name, a line each, with the numbers that mark them on the time axes."""
    for row, mark in enumerate(marks):
        y = top_in + STRIP_LINE_IN * row
        style.write(
            figure, left_in + 0.1, y, str(mark.label), ha="center", color="white", size=8,
            bbox={"boxstyle": "round,pad=0.25", "fc": mark.color, "ec": "none"},
        )  # fmt: skip
        style.write(figure, left_in + 0.3, y, mark.confidence, color=mark.color, size=9)
        since = "whole run" if mark.step is None else f"from step {mark.step:,.0f}"
        style.write(figure, left_in + 0.98, y, since, color=style.SOFT, size=9)
        text = clean(mark.text, width=(width_in - 2.3) * 72, size=9.5, cut_end=True)
        style.write(figure, left_in + 2.25, y - 0.01, text, size=9.5)
