"""Small pieces of HTML that nothing can be injected into, and lines drawn without any library. No dependency."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from thermoclaw.wording import one_line


def escape(text: object, limit: int = 2000) -> str:
    r"""Any text as one line that stands for itself in an element or an attribute.

    Example:
        >>> escape("<b>'w\n1'</b>")
        '&lt;b&gt;&#x27;w 1&#x27;&lt;/b&gt;'
    """
    return html.escape(one_line(text, limit), quote=True)


def is_steep(values: Sequence[float]) -> bool:
    """Whether a line is drawn on a logarithmic axis: all is positive, and the greatest is thirty times the least."""
    known = [value for value in values if math.isfinite(value)]
    return bool(known) and min(known) > 0 and max(known) > 30 * min(known)


def svg_path(x: Sequence[float], y: Sequence[float], *, width: float, height: float, ends: tuple[float, float]) -> str:
    """The `d` of a line through points; what is not finite leaves a gap.

    Args:
        x: places, of which `ends` are drawn at 0 and at `width`.
        y: values, drawn from the bottom (the least) to the top, on a logarithmic axis where they are steep.
        width: of the drawing.
        height: of the drawing.
        ends: the first and the last place.

    Example:
        >>> svg_path([0, 1, 2], [1, 3, 2], width=100, height=10, ends=(0, 2))
        'M0 10L50 0L100 5'
    """
    steep = is_steep(y)
    placed = [math.log(v) if steep and math.isfinite(v) else v for v in y]
    known = [value for value in placed if math.isfinite(value)]
    if not known:
        return ""
    low, span = min(known), (max(known) - min(known)) or 1.0
    across = (ends[1] - ends[0]) or 1.0
    path, pen = "", "M"
    for at, value in zip(x, placed, strict=True):
        if not math.isfinite(value):
            pen = "M"
            continue
        left, top = width * (at - ends[0]) / across, height * (1 - (value - low) / span)
        path += f"{pen}{left:.4g} {top:.4g}"
        pen = "L"
    return path
