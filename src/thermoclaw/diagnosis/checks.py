"""Checks of representations, as a record's events hold them: series by name, and the baseline they are judged by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from thermoclaw.diagnosis.signals import Mask
from thermoclaw.quantities import Array
from thermoclaw.record import Record

KIND = "representation"
BASELINE, LEAST_BASELINE = 5, 2  # healthy checks that the baseline is the median of, and how many it takes
FLOOR = 0.02  # spread below which a check is collapsed and no part of a baseline
LEAST_ROWS, LEAST_FEATURES = 32, 4
NAMES = (
    "rows",
    "features",
    "nan_rows",
    "inf_rows",
    "scale",
    "dead_share",
    "spread",
    "std_ratio",
    "uniformity",
    "variance_penalty",
    "covariance_penalty",
    "effective_rank",
    "participation_ratio",
    "rank_share",
    "input_scale",
    "input_spread",
)


@dataclass(frozen=True)
class Checks:
    """What was seen of one name, in the order of the steps.

    Attributes:
        name: of the module, or as given to `observe`.
        joint_embedding: the loss pulls embeddings together.
        steps: [C].
        values: each quantity, [C], NaN where it is not defined.
    """

    name: str
    joint_embedding: bool
    steps: Array
    values: dict[str, Array]

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, name: str) -> Array:
        return self.values[name]

    def usable(self) -> Mask:
        """Checks with rows and features enough to judge by, and all of them finite."""
        enough = (self["rows"] >= LEAST_ROWS) & (self["features"] >= LEAST_FEATURES)
        return np.asarray(enough & (self["nan_rows"] + self["inf_rows"] == 0) & np.isfinite(self["scale"]))

    def healthy(self) -> Mask:
        """Usable checks that a baseline may be made of: not collapsed."""
        return np.asarray(self.usable() & (self["spread"] > FLOOR))

    def baseline(self, name: str) -> Array:
        """At each check, the median of a quantity over the first five healthy checks before it; NaN where too few."""
        found = np.full(len(self), np.nan)
        first: list[float] = []
        for i, (good, value) in enumerate(zip(self.healthy(), self[name], strict=True)):
            if len(first) >= LEAST_BASELINE:
                found[i] = float(np.median(first))
            if good and len(first) < BASELINE and math.isfinite(value):
                first.append(float(value))
        return found

    def of_baseline(self, name: str) -> Array:
        """A quantity as a share of its baseline; NaN where there is none."""
        base = self.baseline(name)
        return np.divide(self[name], base, out=np.full(len(self), np.nan), where=base > 0)

    def last(self) -> dict[str, float]:
        """The newest check."""
        return {name: float(column[-1]) for name, column in self.values.items() if math.isfinite(column[-1])}

    def baseline_at_end(self) -> dict[str, float]:
        """What the newest check is compared with; empty before there is a baseline."""
        found = {name: float(self.baseline(name)[-1]) for name in ("spread", "rank_share", "scale", "dead_share")}
        return {name: value for name, value in found.items() if math.isfinite(value)}


def checks_of(record: Record) -> list[Checks]:
    """Every name whose representations were looked at, in the order of the first check."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for event in record.events:
        if event.get("kind") == KIND and isinstance(event.get("layer"), str):
            by_name.setdefault(event["layer"], []).append(event)
    return [
        Checks(
            name,
            bool(events[-1].get("joint_embedding")),
            np.array([event["step"] for event in events], dtype=np.float64),
            {key: np.array([_number(event.get(key)) for event in events]) for key in NAMES},
        )
        for name, events in by_name.items()
    ]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan
