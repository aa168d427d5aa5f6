"""How weights move and whether their norms rest, as far as a record tells. Numpy only.

Norms and distances are in every record. Positions are not: displacement by lag is there where a `Thermometer` stood
beside the run, as an event of bounded size.

Legend: T recorded steps, L layers, K lags.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from thermoclaw.diffusion import UNKNOWN, Array, Diffusion, Estimate, fluctuation_dissipation, motion_word, power_law
from thermoclaw.record import Record

KIND = "diffusion"
MOST_LAYERS, MOST_LAGS = 400, 64  # of an event
DIGITS = 5
WIDE = 1.0  # an interval of X that tells nothing of rest
LATE = 4  # distances count from a quarter of the run on
POINTS, LEAST_POINTS, PARTS, LEAST_PARTS = 24, 8, 8, 3


def norm_balance(record: Record) -> list[Estimate]:
    """X of every layer over the last half of the steps: 1 where its norm is stationary, for any optimizer.

    See `thermoclaw.diffusion.fluctuation_dissipation`.
    """
    half = record.rows(start=int(record.num_steps - record.num_steps // 2)) if len(record) else record
    norms, moves = half["param_sq"], half["update_sq"]
    steps = np.asarray(half.steps)
    return [fluctuation_dissipation(norms[:, i], moves[:, i], steps=steps) for i in range(len(record.layers))]


def drift(record: Record) -> tuple[int, Estimate]:
    """The power of the step with which ‖θ − θ₀‖² grows over the last three quarters of the run, and from which step on.

    It is of one start, not a mean over starts as the displacement by lag is. Its interval is that of up to eight parts
    of the model, and unknown for fewer than three layers.
    """
    known = (record["distance"] > 0).all(axis=1) & np.isfinite(record["distance"]).all(axis=1)
    steps = np.asarray(record.steps)
    rows = np.flatnonzero(known & (steps >= max(record.num_steps / LATE, 1)))
    if len(rows) < LEAST_POINTS:
        return 0, UNKNOWN
    places = np.searchsorted(steps[rows], np.geomspace(steps[rows[0]], steps[rows[-1]], POINTS))
    chosen = rows[np.unique(np.minimum(places, len(rows) - 1))]
    far = record["distance"][chosen]
    layers = np.array_split(np.arange(far.shape[1]), min(PARTS, far.shape[1]))
    blocks = np.array([far[:, part].sum(axis=1) for part in layers])
    power, _ = power_law(steps[chosen], far.sum(axis=1), blocks=blocks)
    if len(layers) < LEAST_PARTS:
        power = Estimate(power.value, UNKNOWN.low, UNKNOWN.high)
    return int(steps[chosen[0]]), power


@dataclass(frozen=True)
class Motion:
    """What a thermometer left in a record.

    Attributes:
        step: of the run, when it was asked.
        whole: of all layers.
        layers: exponent of the displacement by the place of the layer.
    """

    step: int
    whole: Diffusion
    layers: Mapping[int, Estimate] = field(default_factory=dict)

    def to_event(self) -> dict[str, Any]:
        """For the record's events: plain data, of at most `MOST_LAYERS` layers."""
        every = -(-len(self.layers) // MOST_LAYERS) or 1
        return {
            "kind": KIND,
            "step": self.step,
            "lags": [int(lag) for lag in self.whole.lags],
            "msd": _rounded(self.whole.msd),
            "exponent": _rounded(_ends(self.whole.exponent)),
            "coefficient": _rounded([self.whole.coefficient])[0],
            "green_kubo": _rounded([self.whole.green_kubo])[0],
            "layers": [[i, *_rounded(_ends(one))] for i, one in list(self.layers.items())[::every]],
        }


def motion_of(record: Record) -> Motion | None:
    """What the last thermometer left; None where there was none, or what is there is no such thing."""
    for event in reversed(record.events):
        if event.get("kind") == KIND:
            try:
                return _read(event, len(record.layers))
            except (TypeError, ValueError, KeyError, OverflowError):
                return None
    return None


def _read(event: Mapping[str, Any], num_layers: int) -> Motion | None:
    lags, msd = (np.array(event[name][:MOST_LAGS], dtype=np.float64) for name in ("lags", "msd"))
    if (
        lags.ndim != 1
        or lags.shape != msd.shape
        or not (np.isfinite(msd).all() and (np.diff(lags, prepend=0) > 0).all())
    ):
        return None
    exponent = Estimate(*_numbers(event["exponent"], 3))
    places = [(int(row[0]), Estimate(*_numbers(row[1:], 3))) for row in event["layers"][:MOST_LAYERS]]
    (coefficient,), (green_kubo,) = _numbers([event["coefficient"]], 1), _numbers([event["green_kubo"]], 1)
    whole = Diffusion(lags, msd, exponent, coefficient, green_kubo, motion_word(exponent))
    return Motion(int(event["step"]), whole, {i: one for i, one in places if 0 <= i < num_layers})


def _ends(estimate: Estimate) -> list[float]:
    return [estimate.value, estimate.low, estimate.high]


def _numbers(values: Any, count: int) -> list[float]:
    found = [float("nan") if value is None else float(value) for value in values]
    if len(found) != count:
        raise ValueError(f"{len(found)} numbers, not {count}")
    return found


def _rounded(values: Array | list[float]) -> list[float | None]:
    return [float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None for value in values]
