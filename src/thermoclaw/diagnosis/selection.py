"""Layers that a rule picked, as the record knows them: their names, their groups; and how a rule tells a finding."""

from __future__ import annotations

from typing import Any

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.signals import Mask
from thermoclaw.record import LayerInfo, Record


def chosen(record: Record, mask: Mask) -> list[LayerInfo]:
    """The layers where the mask is set."""
    return [layer for layer, yes in zip(record.layers, mask, strict=True) if yes]


def names_of(record: Record, mask: Mask) -> tuple[str, ...]:
    """Their names."""
    return tuple(layer.name for layer in chosen(record, mask))


def groups_of(record: Record, mask: Mask) -> tuple[int, ...]:
    """Parameter groups that hold them; empty, which means all, where that is so or the record does not know."""
    known = record.meta.get("layer_groups") or {}
    found = {int(g) for name in names_of(record, mask) for g in known.get(name, ())}
    total = len(record.meta.get("param_groups") or ())
    return () if len(found) == total else tuple(sorted(found))


def two_digits(value: float) -> float:
    """Two significant digits, which is all that a suggestion deserves."""
    return float(f"{value:.1e}")


def tell(
    record: Record, code: str, confidence: str, span: tuple[int, int], *, mask: Mask | None = None, **words: Any
) -> Finding:
    """A finding that held from the row `span[0]` and was certain at the row `span[1]`, about the masked layers."""
    start, row = span
    return Finding(
        code=code,
        confidence=confidence,
        first_step=int(record.steps[start]),
        raised_step=int(record.steps[row]),
        layers=() if mask is None else names_of(record, mask),
        **words,
    )
