"""What a logger is: four calls. Any object that has them will do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from thermoclaw.diagnosis.finding import Finding


@runtime_checkable
class Logger(Protocol):
    """Takes a run's numbers, findings and pictures somewhere.

    It is called between two steps, so what can take long belongs on a thread of its own. A call that raises is reported
    once, and nothing more is given to that logger but `close`.
    """

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step, by their names ("thermoclaw/…"); what is not defined is not among them."""

    def finding(self, finding: Finding) -> None:
        """Take a finding when it is raised. Layer names in it are whatever a user chose."""

    def picture(self, name: str, step: int, png: bytes) -> None:
        """Take a picture of the run up to a step, as the bytes of a PNG file."""

    def close(self) -> None:
        """Nothing follows: hand on what is still held. What the user made stays the user's to close."""
