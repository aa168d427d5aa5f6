"""What to change, as data that can describe and apply itself. Works on anything with `param_groups`; no torch."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger("thermoclaw")


class RemedyError(ValueError):
    """The remedy does not fit the optimizer it was given."""


@dataclass(frozen=True)
class Remedy:
    """Set one hyper-parameter in some parameter groups.

    Attributes:
        knob: "lr", "weight_decay" or "momentum" (betas[0] where the optimizer has betas).
        value: what to set it to.
        was: the value that the finding was made under.
        groups: indices of the parameter groups; empty means all.
    """

    knob: str
    value: float
    was: float
    groups: tuple[int, ...] = ()

    def describe(self) -> str:
        """The change in words.

        >>> Remedy("weight_decay", 0.01, 5.0).describe()
        'set weight_decay from 5 to 0.01 in every parameter group'
        """
        where = "every parameter group" if not self.groups else f"parameter groups {', '.join(map(str, self.groups))}"
        return f"set {self.knob} from {self.was:.4g} to {self.value:.4g} in {where}"

    def apply(self, optimizer: Any) -> list[dict[str, Any]]:
        """Carry the change out.

        Args:
            optimizer: the optimizer, or a wrapper with `param_groups`.

        Returns:
            One entry per changed group: group, knob, was, now. Give them to `undo`.

        Raises:
            RemedyError: the optimizer has no such group or knob; nothing was changed then.

        Example:
            >>> import torch
            >>> optimizer = torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=0.1, weight_decay=5.0)
            >>> changed = Remedy("weight_decay", 0.01, 5.0).apply(optimizer)
            >>> optimizer.param_groups[0]["weight_decay"], changed[0]["was"]
            (0.01, 5.0)
        """
        groups = optimizer.param_groups
        places = self.groups or tuple(range(len(groups)))
        for place in places:
            if not 0 <= place < len(groups):
                raise RemedyError(f"the optimizer has {len(groups)} parameter groups, the remedy names group {place}")
            self._read(groups[place], place)
        changed = []
        for place in places:
            was = self._read(groups[place], place)
            if self.knob == "weight_decay" and was == 0:
                continue  # a group without decay stays without
            self._write(groups[place], self.value)
            changed.append({"group": place, "knob": self.knob, "was": was, "now": self.value})
        logger.warning("thermoclaw: remedy applied: %s", self.describe())
        return changed

    @staticmethod
    def undo(optimizer: Any, changed: list[dict[str, Any]]) -> None:
        """Put back what `apply` returned."""
        for entry in changed:
            Remedy(entry["knob"], 0.0, 0.0)._write(optimizer.param_groups[entry["group"]], entry["was"])

    def _read(self, group: dict[str, Any], place: int) -> float:
        if self.knob == "momentum" and "betas" in group:
            return float(group["betas"][0])
        if self.knob not in group:
            raise RemedyError(f"parameter group {place} has no {self.knob!r}; it has {', '.join(sorted(group))}")
        return float(group[self.knob])

    def _write(self, group: dict[str, Any], value: float) -> None:
        if self.knob == "momentum" and "betas" in group:
            group["betas"] = (value, *group["betas"][1:])
        elif hasattr(group[self.knob], "fill_"):
            group[self.knob].fill_(value)
        else:
            group[self.knob] = value

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` reads it back."""
        return {"knob": self.knob, "value": self.value, "was": self.was, "groups": list(self.groups)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Remedy:
        """Rebuild what `to_json` wrote."""
        knob = str(data["knob"])
        if knob not in ("lr", "weight_decay", "momentum"):
            raise ValueError(f"unknown knob {knob!r}")
        return cls(knob, float(data["value"]), float(data["was"]), tuple(int(g) for g in data["groups"]))
