"""Small pieces of HTML that nothing can be injected into, and lines drawn without any library. Numpy only.

They carry their looks with them, take the colors of what is around them, and load nothing, so that they can stand in a
notebook, light or dark.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from thermoclaw.wording import one_line

Array = NDArray[np.float64]

TONES = {"HIGH": "#b2182b", "MEDIUM": "#8f4e00", "LOW": "#5a5a5a", "GOOD": "#00664b"}
LINE = "rgba(128,128,128,.35)"
SOFT = "opacity:.72"


def escape(text: object, limit: int = 2000) -> str:
    r"""Any text as one line that stands for itself in an element or an attribute.

    Example:
        >>> escape("<b>'w\n1'</b>")
        '&lt;b&gt;&#x27;w 1&#x27;&lt;/b&gt;'
    """
    return html.escape(one_line(text, limit), quote=True)


def badge(text: object, tone: str) -> str:
    """A word on a color of `TONES`."""
    look = f"background:{TONES[tone]};color:#fff;border-radius:4px;padding:1px 8px;font-weight:600"
    return f'<span style="{look}">{escape(text)}</span>'


def box(*parts: str, tone: str | None = None) -> str:
    """A frame with a bar of a color at its left."""
    bar = f"border-left:4px solid {TONES[tone]};" if tone else ""
    look = (
        f"border:1px solid {LINE};{bar}border-radius:8px;padding:10px 14px;margin:4px 0;max-width:900px;line-height:1.5"
    )
    return f'<div class="thermoclaw" style="{look};line-height:1.5">{"".join(parts)}</div>'


def line(text: str, *, soft: bool = False) -> str:
    """A paragraph of HTML."""
    return f'<div style="margin:2px 0;overflow-wrap:anywhere{";" + SOFT if soft else ""}">{text}</div>'


def folded(head: str, inside: str) -> str:
    """HTML that opens on a click."""
    return f'<details style="margin:2px 0"><summary style="cursor:pointer;{SOFT}">{head}</summary>{inside}</details>'


def table(heads: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table of texts; all columns but the first are aligned as numbers."""
    sides = ["left", *["right"] * (len(heads) - 1)]
    cell = "padding:2px 10px 2px 0;background:none;text-align:"
    top = "".join(
        f'<th scope="col" style="{cell}{side};font-weight:400;{SOFT}">{escape(head)}</th>'
        for side, head in zip(sides, heads, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f'<td style="{cell}{side}">{escape(text)}</td>' for side, text in zip(sides, row, strict=True))
        + "</tr>"
        for row in rows
    )
    look = "border-collapse:collapse;margin:4px 0;font-variant-numeric:tabular-nums"
    return f'<table style="{look}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


# -- lines -------------------------------------------------------------------------------------------------------------


def thin(x: Array, y: Array, limit: int = 2000) -> tuple[Array, Array]:
    """Keep the lowest and the highest value of each of limit / 2 stretches, so that no spike is lost."""
    if len(x) <= limit:
        return x, y
    keep = []
    for rows in np.array_split(np.arange(len(x)), limit // 2):
        part = y[rows]
        if np.isfinite(part).any():
            keep += sorted({rows[np.nanargmin(part)], rows[np.nanargmax(part)]})
        else:
            keep.append(rows[0])
    return x[keep], y[keep]


def is_steep(values: Array) -> bool:
    """Whether a line is drawn on a logarithmic axis: all is positive, and the greatest is thirty times the least."""
    known = values[np.isfinite(values)]
    return bool(len(known) and known.min() > 0 and known.max() > 30 * known.min())


def svg_path(x: Array, y: Array, *, width: float, height: float, ends: tuple[float, float]) -> str:
    """The `d` of a line through points; what is not finite leaves a gap.

    Args:
        x: places, of which `ends` are drawn at 0 and at `width`.
        y: values, drawn from the bottom (the least) to the top, on a logarithmic axis where they are steep.
        width: of the drawing.
        height: of the drawing.
        ends: the first and the last place.

    Example:
        >>> svg_path(np.array([0, 1, 2]), np.array([1.0, 3.0, 2.0]), width=100, height=10, ends=(0, 2))
        'M0 10L50 0L100 5'
    """
    placed = np.log(y) if is_steep(y) else y / max(1.0, float(np.abs(y[np.isfinite(y)]).max(initial=0.0)))
    good = np.isfinite(placed)
    if not good.any():
        return ""
    low = placed[good].min()
    left = width * (x - ends[0]) / ((ends[1] - ends[0]) or 1.0)
    top = height * (1 - (placed - low) / ((placed[good].max() - low) or 1.0))
    path, pen = "", "M"
    for at, down, known in zip(left.tolist(), top.tolist(), good.tolist(), strict=True):
        if known:
            path += f"{pen}{at:.4g} {down:.4g}"
        pen = "L" if known else "M"
    return path


def spark(x: Array, y: Array, marks: Iterable[tuple[float, str]] = (), *, width: int = 600, height: int = 70) -> str:
    """A small drawing of a series, with upright lines at marks (place, tone); "" where there is nothing to draw."""
    good = np.isfinite(y)
    if good.sum() < 2:
        return ""
    ends = (float(x[0]), float(x[-1]))
    at, values = thin(np.asarray(x, dtype=float), np.where(good, y, np.nan), 400)
    path = svg_path(at, values, width=width, height=height, ends=ends)
    upright = "".join(
        f'<path d="M{width * (step - ends[0]) / ((ends[1] - ends[0]) or 1.0):.1f} 0V{height}" '
        f'stroke="{TONES[tone]}" stroke-width="1.6"/>'
        for step, tone in marks
    )
    return (
        f'<svg viewBox="-2 -3 {width + 4} {height + 6}" role="img" '
        f'style="display:block;width:100%;max-width:{width}px">'
        f'<g fill="none"><path d="{path}" stroke="#2f86c1" stroke-width="1.6"/>{upright}</g></svg>'
    )
