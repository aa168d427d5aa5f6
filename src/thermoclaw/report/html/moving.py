"""Where the weights go: displacement by lag, distance from the start, and whether norms rest. Numpy only.

Legend: T recorded steps, L layers, B bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from thermoclaw.diffusion import Estimate
from thermoclaw.motion import WIDE, drift, motion_of, norm_balance
from thermoclaw.record import Record
from thermoclaw.report.html.pack import Pack
from thermoclaw.report.series import Bins, bin_mean


def walk(record: Record, bins: Bins, pack: Pack) -> dict[str, Any] | None:
    """Squared distance of the whole model from its start, and the power of the step that it grows with lately."""
    far = bin_mean(record["E_param_dist"], bins)
    steps = bin_mean(np.asarray(record.steps, dtype=float), bins)
    good = np.isfinite(far) & (far > 0)
    if good.sum() < 3:
        return None
    since, power = drift(record)
    return {"x": pack.add(steps[good], "f8"), "y": pack.add(far[good], "f8"), "power": _ends(power), "from": since}


def displacement(record: Record) -> dict[str, Any] | None:
    """What a thermometer left: displacement of sampled weights by lag, with its power law."""
    motion = motion_of(record)
    if motion is None:
        return None
    whole = motion.whole
    return {
        "lags": whole.lags.tolist(),
        "msd": whole.msd.tolist(),
        "power": _ends(whole.exponent),
        "motion": whole.motion,
        "coefficient": whole.coefficient,
        "step": motion.step,
    }


def balance(record: Record, rows: Sequence[int]) -> dict[str, Any] | None:
    """X of the layers shown, with its interval, and over all layers how many norms rest, shrink and grow."""
    found = norm_balance(record)
    known = [one for one in found if np.isfinite(one.value)]
    if not known:
        return None
    told = [one for one in known if not one.holds(1.0) or one.high - one.low <= WIDE]
    return {
        "from": record.num_steps - record.num_steps // 2,
        "layers": [[place, *_ends(found[i])] for place, i in enumerate(rows) if np.isfinite(found[i].value)],
        "all": len(found),
        "known": len(known),
        "rest": sum(one.holds(1.0) for one in told),
        "shrink": sum(one.low > 1.0 for one in told),
        "grow": sum(one.high < 1.0 for one in told),
    }


def _ends(estimate: Estimate) -> list[float]:
    return [estimate.value, estimate.low, estimate.high]
