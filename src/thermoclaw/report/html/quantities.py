"""Which quantities the page shows, under which words, on which scale. Numpy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from thermoclaw.quantities import TABLE, Array, Band, Quantity
from thermoclaw.record import Record

LOG, LINEAR, SIGNED = "log", "linear", "signed"


@dataclass(frozen=True)
class Shown:
    """A quantity of the picker.

    Attributes:
        name: in the table of quantities.
        title: in a few words.
        scale: "log", "linear", or "signed" (linear near the center, logarithmic away from it).
        center: the value that is neither much nor little, where there is one; then colors go both ways from it.
        near: on a signed scale, the distance from the center up to which it is linear; None takes it from the data.
        limits: of the colors on a linear scale.
        always_defined: it has a value at each measured step, so that NaN in it is a failure.
        held: it is looked at every few steps, and a value is shown until the next.
        own: what it is, where it is made for the page from one of the table.
        make: how it is made then, [T, L].
    """

    name: str
    title: str
    scale: str = LOG
    center: float | None = None
    near: float | None = None
    limits: tuple[float, float] | None = None
    always_defined: bool = False
    held: bool = False
    own: Quantity | None = None
    make: Callable[[Record], Array] | None = None

    @property
    def quantity(self) -> Quantity:
        """Its definition."""
        return self.own or TABLE[self.name]

    def values(self, record: Record) -> Array:
        """Its values, [T, L]."""
        return self.make(record) if self.make else record[self.name]


def _against_first(record: Record) -> Array:
    norm = record["param_norm"]
    known = np.isfinite(norm) & (norm > 0)
    first = norm[known.argmax(axis=0), np.arange(norm.shape[1])]
    return norm / np.where(known.any(axis=0), first, np.nan)


def _dissipation_ratio(record: Record) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1.0 / record["norm_budget"]


_GROWTH = Quantity(
    "param_growth",
    "‖θ‖/‖θ₁‖",
    "1",
    "layer",
    "‖θ‖ over its value in the first recorded row",
    "How far a layer’s weights have grown or shrunk since the record begins.",
    "definition",
    bands=(Band("1", "as long as at first"), Band("≫ 1", "blown up"), Band("≪ 1", "eroded")),
)
_BALANCE = Quantity(
    "inverse_norm_budget",
    "X",
    "1",
    "layer",
    "1/norm_budget = 1 − ⟨‖θ‖² − ‖θ⁻‖²⟩/⟨‖Δ‖²⟩, smoothed over about 20 steps",
    "Balance of the two forces on a layer’s norm: what decay and gradient take away against what steps add.",
    TABLE["norm_budget"].source,
    bands=(Band("1", "the norm is stationary"), Band("> 1", "it shrinks"), Band("< 1", "it grows")),
)

SHOWN: tuple[Shown, ...] = (
    Shown("r", "Work against the layer’s own habit", center=1.0),
    Shown("update_ratio", "Relative step"),
    Shown("grad_norm", "Gradient norm", always_defined=True),
    Shown("param_norm", "Weight norm", always_defined=True),
    Shown("param_growth", "Weight norm against its start", center=1.0, own=_GROWTH, make=_against_first),
    Shown(
        "inverse_norm_budget", "Balance of decay and growth", SIGNED, 1.0, 0.5, own=_BALANCE, make=_dissipation_ratio
    ),
    Shown("R_ie", "Overhead per productive work", center=1.0),
    Shown("coherence", "Agreement of successive gradients", scale=LINEAR, center=0.0, limits=(-1.0, 1.0)),
    Shown("alignment", "Step against gradient", scale=LINEAR, center=0.0, limits=(-1.0, 1.0)),
    Shown("overshoot", "Overshoot", scale=SIGNED, center=0.0),
    Shown("noise_share", "Share of batch noise", scale=LINEAR, limits=(0.0, 1.0)),
    Shown("sigma", "Entropy production"),
    Shown("temperature", "Temperature"),
    Shown("distance", "Squared distance from the start"),
    Shown("lr", "Learning rate"),
    Shown("dead_rows", "Dead units", scale=LINEAR, limits=(0.0, 1.0), held=True),
    Shown("silent_rows", "Silent units", scale=LINEAR, limits=(0.0, 1.0), held=True),
    Shown("grad_zeros", "Exact zeros in the gradient", scale=LINEAR, limits=(0.0, 1.0), held=True),
    Shown("row_likeness", "Likeness of rows", scale=LINEAR, limits=(0.0, 1.0), held=True),
    Shown("attention_gain", "Attention gain", held=True),
    Shown("output_drift", "Drift of the outputs", scale=LINEAR, limits=(0.0, 1.0), held=True),
    Shown("stable_rank", "Stable rank of the gradient", held=True),
)

_OF_FINDING = {
    "attention_gain": ("attention_logit_growth",),
    "dead_rows": ("dead_units",),
    "silent_rows": ("dead_features",),
    "output_drift": ("output_logit_divergence",),
    "row_likeness": ("bad_init",),
    "grad_zeros": ("underflow",),
    "noise_share": ("gradient_noise", "label_noise"),
    "param_growth": ("weight_decay_too_high", "weight_blow_up"),
    "alignment": ("momentum_too_high", "incoherent_update"),
    "overshoot": ("lr_too_high",),
    "coherence": ("gradient_accumulation_bug",),
    "lr": ("lr_schedule_zero",),
    "update_ratio": (
        "lr_too_low",
        "layer_lr_mismatch",
        "frozen_layers",
        "lost_updates",
        "epsilon_dominates",
        "over_clipping",
        "external_update",
        "optimizer_state_reset",
        "second_moment_lag",
    ),
    "grad_norm": (
        "vanishing_gradients",
        "exploding_gradients",
        "gradient_spike",
        "loss_spike",
        "non_finite",
        "no_gradient",
        "unnormalised_input",
        "distribution_shift",
    ),
}
_BY_CODE = {code: name for name, codes in _OF_FINDING.items() for code in codes}


def of_finding(code: str) -> str:
    """The quantity in which a failure shows best.

    Example:
        >>> of_finding("weight_decay_too_high"), of_finding("something_new")
        ('param_growth', 'r')
    """
    return _BY_CODE.get(code, "r")


@dataclass(frozen=True)
class Scale:
    """How values lie on the scale of colors: t = log10 v, v, or asinh((v − center)/near)."""

    kind: str
    center: float = 0.0
    near: float = 1.0

    def place(self, values: Array) -> Array:
        """Values → places on the scale; NaN where a logarithm has none."""
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.kind == LOG:
                return np.where(values > 0, np.log10(np.where(values > 0, values, 1.0)), np.nan)
            if self.kind == SIGNED:
                return np.arcsinh((values - self.center) / self.near)
        return values

    def value(self, places: Array) -> Array:
        """Places on the scale → values."""
        with np.errstate(over="ignore"):
            if self.kind == LOG:
                return np.asarray(10.0**places)
            if self.kind == SIGNED:
                return np.asarray(self.center + self.near * np.sinh(places))
        return places


def scale_of(shown: Shown, values: Array) -> Scale:
    """The scale of a quantity; where a signed one begins to be logarithmic may depend on the values."""
    if shown.scale != SIGNED or shown.near is not None:
        return Scale(shown.scale, shown.center or 0.0, shown.near or 1.0)
    part = np.abs(values[:: max(1, len(values) // 256)])
    part = part[np.isfinite(part) & (part > 0)]
    return Scale(SIGNED, shown.center or 0.0, float(np.quantile(part, 0.1)) if len(part) else 1.0)
