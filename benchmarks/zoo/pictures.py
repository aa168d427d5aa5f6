"""The confusion matrix as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from thermoclaw.report.style import DPI, FONT, INK, SOFT, Figure

RIGHT, WRONG = np.array([11, 79, 125]) / 255, np.array([213, 94, 0]) / 255


def draw_confusion(table: Mapping[str, Mapping[str, int]], path: Path, *, title: str) -> Path:
    """Rows are what was wrong, columns what was said first; shares of a row in blue where right, orange where not.

    Args:
        table: truth → answer → count.
        path: of the picture.
        title: above it.

    Returns:
        The path.
    """
    truths = [t for t in table if t != "healthy"]
    answers = sorted({a for row in table.values() for a in row} - {"silent"} - set(truths))
    rows = [*truths, *(["healthy"] if "healthy" in table else [])]
    columns = [*truths, *(a for a in answers if a != "healthy"), "silent"]
    figure = Figure(figsize=(3.2 + 0.27 * len(columns), 2.4 + 0.25 * len(rows)), dpi=DPI)
    axes = figure.add_axes((0.2, 0.03, 0.78, 0.72))
    image = np.ones((len(rows), len(columns), 3))
    for i, truth in enumerate(rows):
        total = sum(table[truth].values())
        for j, answer in enumerate(columns):
            count = table[truth].get(answer, 0)
            is_right = answer == truth or (truth == "healthy" and answer == "silent")
            image[i, j] = 1.0 + (count / total) * ((RIGHT if is_right else WRONG) - 1.0)
            if count:
                color = "white" if count / total > 0.55 else INK
                axes.text(j, i, str(count), ha="center", va="center", fontsize=6.5, color=color, family=FONT)
    axes.imshow(image, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7, family=FONT)
    axes.set_yticks(range(len(rows)), rows, fontsize=7, family=FONT)
    axes.xaxis.tick_top()
    axes.set_xticks(np.arange(-0.5, len(columns)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(rows)), minor=True)
    axes.grid(which="minor", color="#EEEEEE", linewidth=0.6)
    axes.tick_params(which="both", length=0, colors=SOFT)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.text(0.01, 0.985, title, fontsize=10, color=INK, family=FONT, va="top")
    figure.text(0.01, 0.955, "row: what was wrong · column: what was said first", fontsize=7, color=SOFT, va="top")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
