"""Markdown that the pages' generated parts are made of."""

from __future__ import annotations

from collections.abc import Iterable


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """A Markdown table of cells that are Markdown already."""
    cells = [head, tuple("---" for _ in head), *rows]
    return ["| " + " | ".join(row) + " |" for row in cells]


def times(value: float) -> str:
    """A multiple."""
    return f"{value:.2f} ×" if value < 0.1 else f"{value:.1f} ×" if value < 100 else f"{value:,.0f} ×"
