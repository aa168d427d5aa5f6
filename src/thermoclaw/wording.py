"""Text that may hold whatever a user, or a stranger's checkpoint, named a layer: made fit for people to read."""

from __future__ import annotations

import math
import re
import unicodedata

NAME, LINE = 100, 2000  # characters


def one_line(text: object, limit: int = LINE) -> str:
    r"""Any text as one line of printable characters, cut at its end; control and format characters become "·".

    Example:
        >>> one_line("conv\n1\x1b[31m", 9)
        'conv 1·[…'
    """
    shown = (
        " " if c.isspace() else "·" if unicodedata.category(c)[0] == "C" else c for c in str(text)[: 2 * limit + 100]
    )
    line = " ".join("".join(shown).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def short_name(name: object, limit: int = NAME) -> str:
    """A name as one line that loses its middle where it is longer than `limit` characters.

    Example:
        >>> short_name("transformer.h.11.attn.c_attn", 16)
        'transf…tn.c_attn'
    """
    line = one_line(name, 100 * limit)
    if len(line) <= limit:
        return line
    head = (2 * limit) // 5
    return line[:head] + "…" + line[len(line) - (limit - head - 1) :]


def sentence(text: object) -> str:
    """One line in which no word is longer than a name may be."""
    return one_line(re.sub(rf"\S{{{NAME + 50},}}", lambda word: short_name(word[0]), str(text)), 2 * LINE)


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float) -> str:
    """A number in three significant digits, with a power of ten where it needs one.

    Example:
        >>> number(0.25), number(1e-7), number(float("nan"))
        ('0.25', '10⁻⁷', '–')
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    if 1e-4 <= abs(value) < 1e4:
        return f"{value:.3g}".replace("-", "−") if abs(value) < 1000 else f"{value:,.0f}".replace("-", "−")
    power = "10" + str(int(exponent)).translate(_SUPERSCRIPT)
    lead = mantissa.removesuffix(".0").replace("-", "−")
    return power if lead == "1" else f"{lead}·{power}"
