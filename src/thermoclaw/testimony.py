"""What detectors beside an observer have to say, as findings among the record's events: for one diagnosis."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.record import Record

logger = logging.getLogger("thermoclaw")

KIND = "testimony"


class Witness(Protocol):
    """A detector with findings of its own."""

    def findings(self, record: Record, /) -> Sequence[Finding]:
        """What it says of the observer's record."""


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
        """The record with an event for each finding of theirs. One that breaks is told once and left out."""
        events = []
        for witness in filter(None, (ref() for ref in self._refs)):
            try:
                found = [finding.to_json() for finding in witness.findings(record)]
            except Exception:
                level = logging.DEBUG if self._is_broken else logging.ERROR
                self._is_broken = True
                logger.log(level, "thermoclaw: %s failed and is left out", type(witness).__name__, exc_info=True)
                continue
            by = type(witness).__name__
            events += [{"kind": KIND, "step": record.num_steps, "by": by, "finding": each} for each in found]
        return replace(record, events=(*record.events, *events)) if events else record
