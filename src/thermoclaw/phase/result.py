"""What a step or a summary returns: named numbers and a phase, read when they are looked at. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from thermoclaw.phase.phases import Phase


class Reading(NamedTuple):
    """Numbers by name, those of each layer, the phase, and that of each layer."""

    metrics: Mapping[str, float]
    layers: Mapping[str, Mapping[str, float]]
    phase: Phase
    layer_phases: Mapping[str, Phase]


NOTHING = Reading({}, {}, Phase.UNKNOWN, {})


class MetricsResult:
    """Named numbers and a phase. Making one costs nothing; the first look waits for the device.

    Example:
        >>> result = MetricsResult(lambda: Reading({"delta": 0.25}, {}, Phase.GLASS, {}))
        >>> result.get("delta"), result.get("kappa", 0.0), result.phase.name
        (0.25, 0.0, 'GLASS')
    """

    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read: Callable[[], Reading] | None = read
        self._reading = NOTHING

    def _look(self) -> Reading:
        if self._read is not None:
            self._reading, self._read = self._read(), None
        return self._reading

    def get(self, name: str, default: float = math.nan) -> float:
        """A number by its name; the default where there is none, or it is not defined."""
        value = self._look().metrics.get(name, math.nan)
        return default if math.isnan(value) else value

    @property
    def phase(self) -> Phase:
        """The phase."""
        return self._look().phase

    @property
    def layers(self) -> dict[str, dict[str, float]]:
        """The same numbers of each layer."""
        return {name: dict(values) for name, values in self._look().layers.items()}

    @property
    def layer_phases(self) -> dict[str, Phase]:
        """The phase of each layer."""
        return dict(self._look().layer_phases)

    def to_dict(self) -> dict[str, float]:
        """All numbers by name, NaN where one is not defined."""
        return dict(self._look().metrics)

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name}={value:.4g}" for name, value in self._look().metrics.items())
        return f"MetricsResult({self.phase.name}, {numbers})"
