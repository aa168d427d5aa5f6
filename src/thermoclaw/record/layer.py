"""A layer, as the record names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LayerInfo:
    """A module that owns parameters, as the record names it."""

    name: str
    ltype: str
    num_params: int
    depth: int = 0
    param_names: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerInfo:
        """Rebuild from `dataclasses.asdict`."""
        return cls(
            name=str(data["name"]),
            ltype=str(data["ltype"]),
            num_params=int(data["num_params"]),
            depth=int(data.get("depth", 0)),
            param_names=tuple(str(n) for n in data.get("param_names", ())),
        )
