"""The last steps of a record as the two dozen numbers that a logger should show. No torch, no framework.

Legend: T rows of the window, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from thermoclaw.quantities import EQUILIBRIUM_WINDOW, R_IE_CAP, Array
from thermoclaw.record import Record

PREFIX = "thermoclaw/"
ALARMS, ALARMS_MEANING = f"{PREFIX}alarms", "alarms raised so far"  # beside SCALARS: no record knows them


@dataclass(frozen=True)
class Scalar:
    """One number for a logger: how it is called, what it says, and how the window's record yields it."""

    name: str
    meaning: str
    of: Callable[[Record], float]
    split: bool = False  # part of the entropy split
    whole: bool = False  # looks at all rows that it is given, not at the window alone


def _finite(values: Array) -> Array:
    return values[np.isfinite(values)]


def _mean(values: Array) -> float:
    good = _finite(values)
    return float(good.mean()) if len(good) else float("nan")


def _over_layers(reduce: Callable[[Array], float], values: Array) -> Array:
    """A number per row from [T, L]; NaN where a row has nothing finite."""
    rows = [_finite(row) for row in values]
    return np.array([reduce(row) if len(row) else np.nan for row in rows])


def _total(name: str) -> Callable[[Record], float]:
    """Mean over rows of the sum over layers."""
    return lambda record: _mean(_over_layers(np.sum, record[name]))


def _typical(name: str) -> Callable[[Record], float]:
    """Mean over rows of the median over layers."""
    return lambda record: _mean(_over_layers(np.median, record[name]))


def _worst(name: str) -> Callable[[Record], float]:
    """Mean over rows of the largest layer."""
    return lambda record: _mean(_over_layers(np.max, record[name]))


def _latest(name: str) -> Callable[[Record], float]:
    """The last row of a run quantity."""
    return lambda record: float(record[name][-1])


def _run(name: str) -> Callable[[Record], float]:
    """Mean over rows of a run quantity."""
    return lambda record: _mean(record[name])


def _share(name: str) -> Callable[[Record], float]:
    """Part of σ, as a ratio of sums over rows and layers."""

    def share(record: Record) -> float:
        known = np.isfinite(record[name]) & np.isfinite(record["sigma"])
        total = record["sigma"][known].sum()
        return float(record[name][known].sum() / total) if total > 0 else float("nan")

    return share


def _overhead(record: Record) -> Array:
    """d_iS / d_eS of each layer, as a ratio of sums over rows, [L]; NaN where nothing flowed."""
    known = np.isfinite(record["d_iS"]) & np.isfinite(record["d_eS"])
    internal, external = (np.where(known, record[name], 0.0).sum(axis=0) for name in ("d_iS", "d_eS"))
    ratio = np.where(external > 0, internal / np.where(external > 0, external, 1.0), R_IE_CAP)
    return np.where(internal + external > 0, np.minimum(ratio, R_IE_CAP), np.nan)


def _overhead_total(record: Record) -> float:
    known = np.isfinite(record["d_iS"]) & np.isfinite(record["d_eS"])
    internal, external = (float(record[name][known].sum()) for name in ("d_iS", "d_eS"))
    if internal + external <= 0:
        return float("nan")
    return min(internal / external, R_IE_CAP) if external > 0 else R_IE_CAP


def _overhead_worst(record: Record) -> float:
    ratios = _finite(_overhead(record))
    return float(ratios.max()) if len(ratios) else float("nan")


def _overshoots(record: Record) -> float:
    """Share of steps whose predecessor went past the minimum along its own direction."""
    summed = _finite(_over_layers(np.sum, record["overshoot"]))
    return float((summed > 0).mean()) if len(summed) else float("nan")


SCALARS: tuple[Scalar, ...] = (
    Scalar("R_ie", "overhead per productive unit, d_iS / d_eS, as a ratio of sums", _overhead_total, split=True),
    Scalar("R_ie_max", "the same for the layer that has most", _overhead_worst, split=True),
    Scalar("d_eS_share", "productive share of σ", _share("d_eS"), split=True),
    Scalar("d_iS_wd_share", "share of σ lost to weight decay", _share("d_iS_wd"), split=True),
    Scalar("d_iS_momentum_share", "share of σ lost to momentum", _share("d_iS_momentum"), split=True),
    Scalar("d_iS_noise_share", "share of σ spent on batch noise", _share("d_iS_noise"), split=True),
    Scalar("sigma", "entropy production σ of all layers, per step", _total("sigma")),
    Scalar("dispersion", "D, the variance of r over layers", _run("D")),
    Scalar("r_median", "the typical layer's σ against its own habit", _run("R_median")),
    Scalar("eq_frac", "share of layers at equilibrium over the last 50 steps", _latest("eq_frac"), whole=True),
    Scalar("coherence", "ρ, cosine of successive gradients, mean over layers", _run("rho_mean")),
    Scalar("alignment_median", "cosine of step and descent direction", _typical("alignment")),
    Scalar("overshoot_share", "share of steps that were followed by a slope uphill", _overshoots),
    Scalar("work", "first-order loss that a step bought on its own batch", _total("work")),
    Scalar("distance", "E, squared distance from the start of the run", _latest("E_param_dist")),
    Scalar("update_ratio_median", "relative size of a step, ‖Δ‖/‖θ‖, typical layer", _typical("update_ratio")),
    Scalar("update_ratio_max", "the same for the layer that moves most", _worst("update_ratio")),
    Scalar("grad_param_ratio_median", "‖g‖/‖θ‖, typical layer", _typical("grad_param_ratio")),
    Scalar(
        "grad_norm",
        "gradient norm as the optimizer used it, after clipping",
        lambda record: _mean(np.sqrt(_over_layers(np.sum, record["grad_sq"]))),
    ),
    Scalar(
        "param_norm",
        "norm of all parameters",
        lambda record: float(np.sqrt(_over_layers(np.sum, record["param_sq"][-1:])[-1])),
    ),
    Scalar("norm_budget_median", "1: norms are stationary; below: decay erodes them", _typical("norm_budget")),
    Scalar("noise_share_median", "share of the squared gradient that is batch noise", _typical("noise_share")),
    Scalar("temperature_median", "effective temperature, typical layer", _typical("temperature")),
)


def rows_needed(steps: int) -> int:
    """How many rows before and with the last one `scalars` looks at."""
    return max(steps, EQUILIBRIUM_WINDOW)


def scalars(record: Record, *, steps: int, split: bool = True) -> dict[str, float]:
    """The numbers of `SCALARS` over the last steps of a record.

    Args:
        record: at least the last `rows_needed(steps)` steps of a run.
        steps: the window, in steps; where its meaning says nothing else, a number is a mean over it.
        split: whether to include the entropy split.

    Returns:
        Name (with the prefix "thermoclaw/") to value; what is not finite is left out, so a chart has a gap there.
    """
    if not len(record):
        return {}
    window = record.rows(start=record.num_steps - steps + 1)
    found = {}
    for scalar in SCALARS:
        if scalar.split and not split:
            continue
        value = scalar.of(record if scalar.whole else window)
        if np.isfinite(value):
            found[PREFIX + scalar.name] = float(value)
    return found


def meanings() -> dict[str, str]:
    """Every name that a logger can be given, with what it says."""
    return {**{PREFIX + scalar.name: scalar.meaning for scalar in SCALARS}, ALARMS: ALARMS_MEANING}
