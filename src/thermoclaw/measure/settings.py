"""How an optimizer is measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from thermoclaw.state import StateError

_KEYWORDS = {"baseline_steps": "sigma_window_size"}  # of the Observer, where a setting has another name


@dataclass(frozen=True)
class Settings:
    """How a meter measures. Observers with equal settings on one optimizer share a meter."""

    mode: str = "sketch"
    sketch_size: int = 1021
    every: int = 1
    budget: float | None = None
    lag: int = 8
    history_bytes: int | None = None
    baseline_steps: int = 200

    def check(self, theirs: Any) -> None:
        """Refuse a state that was saved with other settings, given as a mapping.

        Raises:
            StateError: they differ; the message says in what.
        """
        mine = asdict(self)
        other = [name for name, value in mine.items() if theirs.get(name) != value]
        if other:
            here, there = (
                ", ".join(f"{_KEYWORDS.get(name, name)}={settings.get(name)!r}" for name in other)
                for settings in (mine, theirs)
            )
            raise StateError(
                f"the state was saved by an observer with {there}, and this one has {here}: make it as that one was, "
                f"Observer(model, optimizer, {there})"
            )
