"""Text that may hold whatever a user, or a stranger's checkpoint, named a layer: made fit for people to read."""

from __future__ import annotations

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
