"""Markdown that the pages' generated parts are made of."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

SECTION = re.compile(r"docs: (theory|diagnosis|measuring|preflight)(?:, ([\w -]*\w))?")


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """A Markdown table of cells that are Markdown already."""
    cells = [head, tuple("---" for _ in head), *rows]
    return ["| " + " | ".join(row) + " |" for row in cells]


def times(value: float) -> str:
    """A multiple."""
    return f"{value:.2f} ×" if value < 0.1 else f"{value:.1f} ×" if value < 100 else f"{value:,.0f} ×"


def plain(text: str) -> str:
    """Text from the code in which nothing is taken for Markdown."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(text, quote=False))


def linked(source: str) -> str:
    """A source in which `docs: theory, the entropy split` has become a link to that page and section."""
    return SECTION.sub(lambda match: _link(match[1], match[2]), plain(source))


def _link(page: str, section: str | None) -> str:
    if not section:
        return f"[{page}]({page}.md)"
    return f"[{page}: {section}]({page}.md#{section.lower().replace(' ', '-')})"
