"""What detectors beside an observer have to say, as findings and measurements among the record's events."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.record import Record

logger = logging.getLogger("thermoclaw")

KIND = "testimony"


class Witness(Protocol):
    """A detector with findings of its own."""

    def findings(self, record: Record, /) -> Sequence[Finding]:
        """What it says of the observer's record."""


@runtime_checkable
class Measurer(Protocol):
    """A detector with measurements that a record has no column for."""

    def measured(self, record: Record, /) -> dict[str, Any] | None:
        """An event of bounded size, with a kind of its own; None where there is nothing yet."""


class Witnesses:
    """The detectors that were made beside an observer, for as long as somebody holds them."""

    def __init__(self) -> None:
        self._refs: list[weakref.ref[Witness]] = []
        self._is_broken = False

    def add(self, witness: Witness) -> None:
        """Ask this one, too."""
        self._refs = [ref for ref in self._refs if ref() is not None]
        self._refs.append(weakref.ref(witness))

    def heard(self, record: Record) -> Record:
        """The record with an event for each finding and measurement. One that breaks is told once and left out."""
        events: list[dict[str, Any]] = []
        for witness in filter(None, (ref() for ref in self._refs)):
            try:
                found = [finding.to_json() for finding in witness.findings(record)]
                measured = witness.measured(record) if isinstance(witness, Measurer) else None
            except Exception:
                level = logging.DEBUG if self._is_broken else logging.ERROR
                self._is_broken = True
                logger.log(level, "thermoclaw: %s failed and is left out", type(witness).__name__, exc_info=True)
                continue
            by = type(witness).__name__
            events += [{"kind": KIND, "step": record.num_steps, "by": by, "finding": each} for each in found]
            events += [{**measured, "by": by}] if measured else []
        return replace(record, events=(*record.events, *events)) if events else record
