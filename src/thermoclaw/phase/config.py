"""Settings of a `PhaseMonitor`, from Python or from a TOML file. No torch."""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MODES = ("structure", "seed")

MOST_SAMPLED = 2048
"""Values of a parameter that are looked at in a step, beyond its largest and its norm."""


@dataclass(frozen=True)
class Core:
    """What is kept and how phases are told.

    Args:
        window_size: steps that are remembered.
        mode: "structure" (the rules of this library) or "seed" (the literal numbers of Neurothermo, for comparison).
        sample_size: values kept of each parameter and step.
        enable_logging: log a line whenever a summary finds another phase than the one before.
    """

    window_size: int = 50
    mode: str = "structure"
    sample_size: int = 256
    enable_logging: bool = False


@dataclass(frozen=True)
class Thresholds:
    """Where one phase ends and the next begins; those of δ decide in the mode "seed" only."""

    delta_crystal_threshold: float = 0.1
    delta_glass_threshold: float = 0.4
    purity_high_threshold: float = 7.0
    zero_epsilon: float = 1e-6
    numerical_stability_epsilon: float = 1e-9
    order_crystal_threshold: float = 0.7
    order_glass_threshold: float = 0.4
    spectral_r_threshold: float = 0.42
    berry_phase_threshold: float = 0.1
    overlap_closed_threshold: float = 0.95


@dataclass(frozen=True)
class Computation:
    """How much is computed.

    Args:
        gradient_buffer_window: steps whose gradients are remembered; by default `window_size`.
    """

    gradient_buffer_window: int | None = None


@dataclass(frozen=True)
class PhaseConfig:
    """All settings, in the tables in which a TOML file has them.

    Raises:
        ValueError: a setting is out of range; the message names it.

    Example:
        >>> PhaseConfig(core=Core(window_size=20)).core.window_size
        20
    """

    core: Core = field(default_factory=Core)
    thresholds: Thresholds = field(default_factory=Thresholds)
    computation: Computation = field(default_factory=Computation)

    def __post_init__(self) -> None:
        _check_whole("core.window_size", self.core.window_size, least=2)
        _check_whole("core.sample_size", self.core.sample_size, least=16)
        if self.core.sample_size > MOST_SAMPLED:
            raise ValueError(f"core.sample_size={self.core.sample_size}: give at most {MOST_SAMPLED}")
        if self.core.mode not in MODES:
            raise ValueError(f"core.mode={self.core.mode!r}: choose one of {', '.join(MODES)}")
        if not isinstance(self.core.enable_logging, bool):
            raise ValueError(f"core.enable_logging={self.core.enable_logging!r}: give true or false")
        if self.computation.gradient_buffer_window is not None:
            _check_whole("computation.gradient_buffer_window", self.computation.gradient_buffer_window, least=2)
        for name, value in vars(self.thresholds).items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
                raise ValueError(f"thresholds.{name}={value!r}: give a number of at least 0")
        for kind in ("delta", "order"):
            low, high = sorted((f"{kind}_crystal_threshold", f"{kind}_glass_threshold"), reverse=kind == "order")
            if getattr(self.thresholds, low) > getattr(self.thresholds, high):
                raise ValueError(f"thresholds.{low} lies above thresholds.{high}: there would be no transition")

    @property
    def gradient_window(self) -> int:
        """Steps whose gradients are remembered."""
        window = self.computation.gradient_buffer_window
        return self.core.window_size if window is None else window

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> PhaseConfig:
        """Read the tables `core`, `thresholds` and `computation`; what is left out keeps its default.

        Args:
            path: a file such as Neurothermo's `config.toml`, which is read as it is.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no TOML, or has a table or key that is not known, or a value out of range.
            ImportError: Python 3.10 without the package tomli.
        """
        text = Path(path).read_text(encoding="utf-8")
        tables: dict[str, Any] = {}
        kinds = {"core": Core, "thresholds": Thresholds, "computation": Computation}
        for name, content in _parse(text, path).items():
            if name not in kinds or not isinstance(content, dict):
                raise ValueError(f"{path}: {name!r} is no table of this file: there are {', '.join(kinds)}")
            known = [f.name for f in dataclasses.fields(kinds[name])]
            unknown = [key for key in content if key not in known]
            if unknown:
                raise ValueError(f"{path}: [{name}] has no key {unknown[0]!r}: there are {', '.join(known)}")
            tables[name] = kinds[name](**content)
        try:
            return cls(**tables)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _parse(text: str, path: str | os.PathLike[str]) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise ImportError("reading TOML with Python 3.10 needs tomli: pip install tomli") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is no TOML: {error}") from error


def _check_whole(name: str, value: Any, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}: give a whole number of at least {least}")
