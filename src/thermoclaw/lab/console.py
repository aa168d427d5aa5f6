"""What goes to the terminal: color where it is wanted, plain tables, a quiet log."""

from __future__ import annotations

import logging
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

_CODES = {"red": "31", "green": "32", "yellow": "33", "bold": "1"}


def wants_color(stream: TextIO | None = None, *, no_color: bool = False) -> bool:
    """Whether to write color: to a terminal only, and neither with `no_color` nor with NO_COLOR in the environment."""
    stream = stream if stream is not None else sys.stdout
    return not no_color and not os.environ.get("NO_COLOR") and stream.isatty()


def paint(text: str, color: str, *, enabled: bool) -> str:
    """The text in a color of the terminal's.

    >>> paint("PASS", "green", enabled=False)
    'PASS'
    """
    return f"\x1b[{_CODES[color]}m{text}\x1b[0m" if enabled else text


def wrap(text: str, *, indent: int = 0, width: int = 110) -> str:
    """A paragraph, indented."""
    space = " " * indent
    return textwrap.fill(text, width=width, initial_indent=space, subsequent_indent=space)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need be; the first is flush left, and so are words, numbers flush right.

    >>> print(table(["arm", "perplexity"], [["unmodified", "2,048"], ["remedied", "443"]]))
    arm         perplexity
    unmodified       2,048
    remedied           443
    """
    columns = list(zip(heads, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    right = [all(cell[:1].isdigit() or cell[:1] == "–" for cell in column[1:]) for column in columns]
    lines = []
    for row in (heads, *rows):
        cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


@contextmanager
def quiet_log() -> Iterator[None]:
    """Let the library's log speak of errors only; the demo prints the rest itself."""
    logger = logging.getLogger("thermoclaw")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
