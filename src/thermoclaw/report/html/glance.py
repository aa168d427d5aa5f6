"""The loss of the run with its findings, as a drawing that needs no script."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.markup import escape, is_steep, svg_path, thin
from thermoclaw.record import Record
from thermoclaw.report.series import smooth, smoothing_width

WIDTH, HEIGHT, POINTS = 1000, 100, 500
APART = 2.5  # per cent of the width between two numbers


def glance(record: Record, findings: Sequence[Finding]) -> str:
    """HTML of the drawing; "" where no loss was given."""
    if len(record) < 2:
        return ""
    loss = np.where(np.isfinite(record.loss), record.loss, np.nan)
    if np.isfinite(loss).sum() < 2:
        return ""
    steps = np.asarray(record.steps, dtype=float)
    ends = (float(steps[0]), float(steps[-1]))
    x, y = thin(steps, loss, POINTS)
    raw = svg_path(x, y, width=WIDTH, height=HEIGHT, ends=ends)
    mean = smooth(loss, smoothing_width(len(loss)), log=is_steep(y))
    every = np.unique(np.linspace(0, len(loss) - 1, POINTS).astype(int))
    line = ""
    if len(loss) >= 80:  # below, the mean is the loss itself
        line = _mean_path(x, y, steps[every], mean[every], ends)
    return (
        f'<div class="glance" aria-hidden="true"><svg viewBox="0 -4 {WIDTH} {HEIGHT + 8}" preserveAspectRatio="none">'
        f'<path class="raw{"" if line else " alone"}" d="{raw}"/>{line}{_lines(findings, ends)}</svg>'
        f"{_numbers(findings, ends)}"
        f'<span class="from">step {escape(f"{steps[0]:,.0f}")}</span><span class="to">{steps[-1]:,.0f}</span>'
        f'<span class="what">loss{", logarithmic" if is_steep(y) else ""}</span></div>'
    )


def _mean_path(x: np.ndarray, y: np.ndarray, at: np.ndarray, mean: np.ndarray, ends: tuple[float, float]) -> str:
    """The running mean on the axes of the raw line: both are drawn as one, and the mean's part is kept."""
    low, high = np.nanmin(y), np.nanmax(y)
    mean = np.clip(mean, low, high)
    xs, ys = np.concatenate([ends[:1] * 2, at]), np.concatenate([[low, high], mean])
    path = svg_path(xs, ys, width=WIDTH, height=HEIGHT, ends=ends)
    _, _, rest = path.partition("L")[2].partition("L")
    return f'<path class="mean" d="M{rest}"/>' if rest else ""


def _place(step: float, ends: tuple[float, float]) -> float:
    return min(max((step - ends[0]) / (ends[1] - ends[0]), 0.0), 1.0)


def _lines(findings: Sequence[Finding], ends: tuple[float, float]) -> str:
    lines = []
    for finding in findings:
        x = f"{WIDTH * _place(finding.first_step, ends):.1f}"
        lines.append(f'<path class="since {finding.confidence.lower()}" d="M{x} -4V{HEIGHT + 4}"/>')
    return "".join(lines)


def _numbers(findings: Sequence[Finding], ends: tuple[float, float]) -> str:
    """Numbers over the lines; those that would cover each other stand in one box."""
    placed = sorted((100 * _place(f.first_step, ends), i, f) for i, f in enumerate(findings, start=1))
    boxes: list[tuple[float, list[int], str]] = []
    for at, label, finding in placed:
        if boxes and at - boxes[-1][0] < APART:
            boxes[-1][1].append(label)
        else:
            boxes.append((at, [label], finding.confidence.lower()))
    return "".join(
        f'<span class="number {level}" style="left:{at:.2f}%">{" ".join(map(str, sorted(labels)))}</span>'
        for at, labels, level in boxes
    )
