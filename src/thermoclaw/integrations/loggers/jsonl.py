"""JSON lines, for people without a tracker: a line for each point and each finding. No dependency."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thermoclaw.diagnosis.finding import Finding


class JSONLines:
    """Adds to a file, a line at a time: `{"step": 10, "thermoclaw/R_ie": …}` and `{"step": 16, "finding": {…}}`.

    The picture is written beside it, as "…_r_map.png".

    Args:
        path: the file; what is in it stays, and missing folders are made.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.open("a").close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add the numbers of a step."""
        self._add({"step": step, **values})

    def finding(self, finding: Finding) -> None:
        """Add a finding."""
        self._add({"step": finding.raised_step, "finding": finding.to_json()})

    def picture(self, name: str, step: int, png: bytes) -> None:
        """Write the picture beside the file."""
        self._path.with_name(f"{self._path.stem}_{name.rpartition('/')[2]}.png").write_bytes(png)

    def close(self) -> None:
        """Nothing to do: nothing is held."""

    def _add(self, entry: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(entry), allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """The same data with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
