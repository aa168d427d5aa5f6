"""Trackio: numbers by step, findings as alerts, the map as an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.integrations.loggers.words import LEVELS, as_image, for_chat, in_short


class Trackio:
    """Logs into a run, which stays the user's to finish. Trackio keeps what it gets in a queue of its own.

    Numbers carry the optimizer step, so give `trackio.log` the same steps: `trackio.log({...}, step=step)`.

    Args:
        run: what `trackio.init()` returned.

    Raises:
        ImportError: trackio is missing.
    """

    def __init__(self, run: Any) -> None:
        try:
            import trackio
        except ImportError as error:
            raise ImportError("Trackio is missing: pip install 'thermoclaw[trackio]'") from error
        self._image, self._levels, self._run = trackio.Image, trackio.AlertLevel, run

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers of a step."""
        self._run.log(dict(values), step=step)

    def finding(self, finding: Finding) -> None:
        """Send an alert; Trackio prints it, too."""
        title, text = for_chat(finding.title, 200), for_chat(in_short(finding))
        level = self._levels[LEVELS[finding.confidence]]
        self._run.alert(title=title, text=text, level=level, step=finding.raised_step)

    def picture(self, name: str, step: int, png: bytes) -> None:
        """Log the picture."""
        self._run.log({name: self._image(as_image(png))}, step=step)

    def close(self) -> None:
        """Nothing to do: the run sends by itself."""
