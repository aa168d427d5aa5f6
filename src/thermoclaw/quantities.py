"""The one table of everything Thermoclaw measures: name, symbol, unit, formula, meaning, bands, source.

CSV heads, plot labels, logger keys and the documentation's quantities page are read from here, so one name has one
definition. A *layer* quantity has a value per step and layer; a *run* quantity a value per step. A *stored* quantity
is a column of the record; the others are computed from stored ones when they are asked for.

Legend: T steps, L layers. Per layer: g gradient, θ⁻ and θ the parameters before and after the step, Δ = θ − θ⁻,
η learning rate, λ weight decay, N elements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

R_IE_CAP = 1e3
"""Largest reported d_iS / d_eS. Beyond a thousand to one the exact figure says nothing more."""

EQUILIBRIUM_BAND = 0.15
"""A layer is called "at equilibrium" while |r − 1| is at most this."""

EQUILIBRIUM_WINDOW = 50
"""Steps over which the equilibrium fraction is averaged."""


@dataclass(frozen=True)
class Band:
    """A range of values and what a reader should make of it."""

    range: str
    meaning: str


@dataclass(frozen=True)
class Quantity:
    """One row of the table."""

    name: str
    symbol: str
    unit: str
    scope: str  # "layer" or "run"
    formula: str
    meaning: str
    source: str
    bands: tuple[Band, ...] = ()
    aliases: tuple[str, ...] = ()
    derive: Callable[[Mapping[str, Array]], Array] | None = None  # None: stored in the record

    @property
    def stored(self) -> bool:
        """Whether the record keeps it as a column (otherwise it is computed from columns)."""
        return self.derive is None


def _ratio(top: Array, bottom: Array) -> Array:
    """top / bottom, NaN where bottom is zero, silent about it."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(bottom != 0, top / np.where(bottom != 0, bottom, 1.0), np.nan)


def _product(cosine: Array, lengths: Array) -> Array:
    """cosine · lengths, 0 where a length is 0 and the cosine therefore undefined."""
    return np.where(lengths == 0, 0.0, cosine * lengths)


def _rest(whole: Array, part: Array) -> Array:
    """whole − part, not below 0; NaN where both are infinite, silent about it."""
    with np.errstate(invalid="ignore"):
        return np.maximum(whole - part, 0.0)


def _root(square: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.sqrt(np.maximum(square, 0.0)) + 0.0 * square  # the sum keeps NaN and Inf


def _capped_ratio(internal: Array, external: Array) -> Array:
    """d_iS / d_eS, between 0 and R_IE_CAP; 0 where nothing flows at all."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.where(external > 0, internal / np.where(external > 0, external, 1.0), R_IE_CAP)
    return np.where(internal > 0, np.minimum(ratio, R_IE_CAP), np.where(np.isnan(internal), np.nan, 0.0))


def _nan_reduce(reduce: Callable[..., Array], values: Array) -> Array:
    """Reduce over layers ignoring NaN; NaN where a step has no finite value."""
    if values.shape[-1] == 0:
        return np.full(values.shape[:-1], np.nan)
    finite = np.where(np.isfinite(values), values, np.nan)
    empty = np.asarray(np.isnan(finite).all(axis=-1))
    filled = np.where(empty[..., None], 0.0, finite)
    return np.where(empty, np.nan, reduce(filled, axis=-1))


def _trailing_mean(steps: Array, values: Array, *, window: int) -> Array:
    """Mean of the values recorded in the last `window` steps, NaN ignored."""
    good = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(good, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(good)])
    start = np.searchsorted(steps, steps - window, side="right")
    stop = np.arange(1, len(values) + 1)
    return _ratio(total[stop] - total[start], (count[stop] - count[start]).astype(float))


def _eq_now(columns: Mapping[str, Array]) -> Array:
    r = columns["r"]
    inside = np.where(np.isfinite(r), np.abs(r - 1.0) <= EQUILIBRIUM_BAND, np.nan)
    return _nan_reduce(np.nanmean, inside)


_SEED = "thermoclaw 0.1.6"
_SHARE = "docs: theory, the entropy split"

QUANTITIES: tuple[Quantity, ...] = (
    # -- stored, per layer ------------------------------------------------------------------------------------------
    Quantity(
        "grad_sq",
        "‖g‖²",
        "loss²/weight²",
        "layer",
        "Σ g²",
        "Squared norm of the gradient that the optimizer used: unscaled, clipped, averaged over ranks. Exact.",
        _SEED,
        aliases=("gnorm_sq",),
    ),
    Quantity(
        "param_sq", "‖θ‖²", "weight²", "layer", "Σ θ²", "Squared norm of the parameters after the step. Exact.", _SEED
    ),
    Quantity(
        "update_sq",
        "‖Δ‖²",
        "weight²",
        "layer",
        "Σ (θ − θ⁻)²",
        "Squared length of the step that was really taken, decay included.",
        "Karpathy, A recipe for training neural networks (2019)",
    ),
    Quantity(
        "sigma",
        "σ",
        "loss",
        "layer",
        "Σ_p η_p ‖g_p‖²",
        "Entropy production, also the dissipation rate: what plain gradient descent would take off the loss.",
        _SEED,
        aliases=("layer_sigma", "sigma_total", "dissipation"),
    ),
    Quantity(
        "grad_sq_smooth",
        "⟨‖g‖²⟩",
        "loss²/weight²",
        "layer",
        "bias-corrected exponential mean of ‖g‖² over about 20 steps",
        "Squared gradient norm without its step-to-step flicker.",
        _SEED,
    ),
    Quantity(
        "grad_sq_baseline",
        "⟨‖g‖²⟩*",
        "loss²/weight²",
        "layer",
        "running median of ⟨‖g‖²⟩",
        "The layer's own habit, against which r compares it.",
        _SEED,
    ),
    Quantity(
        "coherence",
        "ρ",
        "1",
        "layer",
        "cos(g_t, g_{t−1})",
        "How far successive gradients agree.",
        _SEED,
        bands=(
            Band("> 0.3", "coherent: the direction persists"),
            Band("about 0", "each batch pulls its own way: noise dominates"),
            Band("< −0.1", "oscillating: successive steps undo each other"),
        ),
        aliases=("rho", "layer_rho"),
    ),
    Quantity(
        "distance",
        "E",
        "weight²",
        "layer",
        "‖θ − θ₀‖²",
        "Squared distance from where the observer first saw the layer.",
        _SEED,
    ),
    Quantity(
        "alignment",
        "c",
        "1",
        "layer",
        "cos(−g, Δ)",
        "How far the step follows the batch's own descent direction.",
        "docs: theory, alignment",
        bands=(
            Band("1", "plain SGD"),
            Band("√(1 − β₁²)", "the floor for momentum on pure noise: 0.44 at β₁ = 0.9, 0.04 at 0.999"),
            Band("< 0", "the step climbs its own batch's loss"),
        ),
    ),
    Quantity(
        "overshoot",
        "⟨g_t, Δ_{t−1}⟩",
        "loss",
        "layer",
        "⟨g_t, θ_{t−1} − θ_{t−2}⟩, the new batch's slope along the last step",
        "Below 0: the last direction still descends. Persistently above 0: it stepped past the minimum.",
        "docs: theory, overshoot; Cohen et al. 2022 (arXiv 2207.14484) for the edge of stability",
        bands=(Band("< 0", "still descending"), Band("> 0, persistently", "stepping past the minimum")),
    ),
    Quantity(
        "norm_budget",
        "½‖Δ‖² / −⟨θ⁻,Δ⟩",
        "1",
        "layer",
        "½⟨‖Δ‖²⟩ / (½⟨‖Δ‖²⟩ − ½⟨‖θ‖² − ‖θ⁻‖²⟩), both sides smoothed over about 20 steps",
        "Balance of the two forces on a layer's norm: what steps add against what decay and gradient take away.",
        "Yaida 2018 (arXiv 1810.00004); Kosson et al. 2024 (arXiv 2305.17212)",
        bands=(
            Band("≪ 1", "decay erodes the weights faster than the gradient rebuilds them"),
            Band("1", "the norm is stationary"),
            Band("≫ 1, or below 0", "the norm grows"),
        ),
    ),
    Quantity(
        "noise",
        "tr Σ",
        "loss²/weight²",
        "layer",
        "½⟨‖g_t − g_{t−1}‖²⟩, smoothed",
        "Total variance of the gradient over batches (with what little the gradient moved in a step).",
        "docs: theory, noise",
    ),
    Quantity(
        "noise_share",
        "ν",
        "1",
        "layer",
        "⟨g_t − g_{t−1}, g_{t−3} − g_{t−1}⟩₊ / ⟨‖g‖²⟩, smoothed",
        "Share of the squared gradient that is batch noise, free of the gradient's own drift; 0 on full batches.",
        "docs: theory, the drift-free noise estimate",
        bands=(Band("0", "full batch"), Band("→ 1", "no signal left that the window could resolve")),
    ),
    Quantity(
        "d_iS_wd",
        "d_iS_wd",
        "loss",
        "layer",
        "σ · (c′₊ − c₊)₊, c′ = cos(−g, Δ without its decay part)",
        "Entropy production lost because decay turns the step away from the gradient.",
        _SHARE,
    ),
    Quantity(
        "d_iS_momentum",
        "d_iS_momentum",
        "loss",
        "layer",
        "σ · (1 − max(c₊, c′₊))",
        "Entropy production lost because momentum and preconditioning turn the step away from the gradient.",
        _SHARE,
    ),
    Quantity(
        "d_iS_noise",
        "d_iS_noise",
        "loss",
        "layer",
        "σ · (c₊ − (1 − h(ν)))₊",
        "Entropy production spent on directions that only this batch asked for.",
        _SHARE,
    ),
    Quantity(
        "lr", "η", "weight²/loss", "layer", "of the layer's group, weighted by size", "Learning rate.", "optimizer"
    ),
    Quantity("weight_decay", "λ", "1", "layer", "of the layer's group, weighted by ‖θ‖²", "Weight decay.", "optimizer"),
    Quantity("momentum", "β₁", "1", "layer", "momentum, or betas[0]", "Momentum coefficient.", "optimizer"),
    Quantity(
        "has_grad",
        "",
        "1",
        "layer",
        "1 if any parameter had a gradient, 0 if none had; NaN if none had and none requires one",
        "Whether the step saw a gradient.",
        "optimizer",
    ),
    # -- stored, per layer, at probed steps only (docs: measuring, probes); NaN elsewhere -----------------------------
    Quantity(
        "grad_zeros",
        "",
        "1",
        "layer",
        "share of the gradient's elements that are exactly 0",
        "How much of the layer the batch did not touch at all, or touched below the smallest number of its format.",
        "Micikevicius et al. 2018 (arXiv 1710.03740) for gradients that underflow",
        bands=(Band("about 0", "dense layers"), Band("→ 1", "nearly nothing of the loss arrives")),
    ),
    Quantity(
        "silent_rows",
        "",
        "1",
        "layer",
        "share of output rows whose gradient was exactly 0 in each of the last 3 probes",
        "Units that do not learn now; embeddings are left out, as rows of unseen tokens rest.",
        "Lu et al. 2019 (arXiv 1903.06733), dying ReLU",
        bands=(Band("0", "every unit learns"), Band("→ 1", "most units are off for every example")),
    ),
    Quantity(
        "dead_rows",
        "",
        "1",
        "layer",
        "share of output rows whose gradient was exactly 0 in each of the last 12 probes",
        "Units that have long stopped learning.",
        "Lu et al. 2019 (arXiv 1903.06733), dying ReLU; Sokar et al. 2023 (arXiv 2302.12902), dormant neurons",
        bands=(Band("0", "every unit learns"), Band("→ 1", "most of the layer is lost")),
    ),
    Quantity(
        "row_likeness",
        "",
        "1",
        "layer",
        "C ‖mean row‖² / ‖W‖² of the largest matrix W, of C rows, after the step",
        "Whether the rows say the same: they do after a symmetric start, and where outputs run away together.",
        "definition; Goodfellow et al. 2016, Deep Learning, 8.4, for breaking symmetry",
        bands=(Band("about 1/C", "random rows"), Band("1", "all rows are the same")),
    ),
    Quantity(
        "start_gain",
        "",
        "1",
        "layer",
        "√(mean W² · fan-in) of the largest matrix W before the first measured step; told at the first probe only",
        "How much a layer scaled its inputs when the run began; fan-in is 1 for the rows of an embedding.",
        "Glorot & Bengio 2010; He et al. 2015 (arXiv 1502.01852)",
        bands=(
            Band("0.58", "PyTorch's own start of linear and convolutional layers"),
            Band("1", "keeps the size of its inputs"),
            Band("1.4", "the same before a ReLU"),
        ),
    ),
    Quantity(
        "attention_gain",
        "",
        "1",
        "layer",
        "‖W_Qᵀ W_K‖, the largest singular value, after the step, estimated from below by power iteration",
        "How large logits an attention's weights can make; stands with the layer that maps to queries.",
        "Zhai et al. 2023 (arXiv 2303.06296), attention entropy collapse; Dehghani et al. 2023 (arXiv 2302.05442)",
    ),
    Quantity(
        "input_scale",
        "",
        "input",
        "layer",
        "‖g_W‖ / (‖g_b‖ √fan-in) of the first layer (of a recurrent one, its map of inputs), where it has a bias and "
        "no batch norm right behind",
        "Root mean square of the model's inputs as the first layer's gradients tell it: g_W = Σ δxᵀ, g_b = Σ δ.",
        "LeCun et al. 1998, Efficient BackProp, for inputs near unit scale",
        bands=(Band("about 1", "normalized"), Band("> 30", "the first layer is driven far harder than the rest")),
    ),
    Quantity(
        "output_drift",
        "",
        "1",
        "layer",
        "C·‖mean over the C outputs of g‖² / ‖g‖², of the last layer's bias, or its weight",
        "Share of the last layer's gradient that moves all outputs together. Softmax cross-entropy gives 0: what it "
        "takes from one logit it gives to others.",
        "Wortsman et al. 2023 (arXiv 2309.14322), for the divergence of output logits",
        bands=(Band("0", "softmax cross-entropy"), Band("1", "all outputs are pushed alike")),
    ),
    Quantity(
        "stable_rank",
        "",
        "1",
        "layer",
        "‖g‖²/‖g ŷ‖² with ŷ = gᵀs/‖gᵀs‖, s fixed: ‖g‖²/σ₁² from above; of the last layer's weight, or, with fewer than "
        "3 outputs, the first one's",
        "How many directions the gradient has. The gradient of a batch is Σ δxᵀ: a single example has one direction "
        "where the layer sees it once.",
        "Rudelson & Vershynin 2007 (J. ACM 54), stable rank; definition",
        bands=(Band("1", "one example, or all alike"), Band("> 1.001", "several examples")),
    ),
    # -- derived, per layer -----------------------------------------------------------------------------------------
    Quantity(
        "grad_norm",
        "‖g‖",
        "loss/weight",
        "layer",
        "√‖g‖²",
        "Gradient norm.",
        _SEED,
        derive=lambda c: _root(c["grad_sq"]),
    ),
    Quantity(
        "param_norm", "‖θ‖", "weight", "layer", "√‖θ‖²", "Parameter norm.", _SEED, derive=lambda c: _root(c["param_sq"])
    ),
    Quantity(
        "update_norm", "‖Δ‖", "weight", "layer", "√‖Δ‖²", "Step length.", _SEED, derive=lambda c: _root(c["update_sq"])
    ),
    Quantity(
        "sigma_ema",
        "⟨σ⟩",
        "loss",
        "layer",
        "η · ⟨‖g‖²⟩",
        "Smoothed entropy production at today's learning rate.",
        _SEED,
        aliases=("layer_sigma_ema",),
        derive=lambda c: c["lr"] * c["grad_sq_smooth"],
    ),
    Quantity(
        "sigma_star",
        "σ*",
        "loss",
        "layer",
        "η · ⟨‖g‖²⟩*",
        "The layer's own baseline at today's learning rate; no extra factor, so a steady layer has r = 1.",
        _SEED,
        aliases=("layer_sigma_star",),
        derive=lambda c: c["lr"] * c["grad_sq_baseline"],
    ),
    Quantity(
        "r",
        "r",
        "1",
        "layer",
        "η⟨‖g‖²⟩ / σ*",
        "Entropy production now against the layer's own habit. A schedule alone does not move it.",
        _SEED,
        bands=(
            Band("0.85 – 1.15", "at equilibrium with its own past"),
            Band("< 0.85", "doing less work than it did"),
            Band("> 1.15", "doing more work than it did"),
        ),
        aliases=("layer_r",),
        derive=lambda c: _ratio(c["grad_sq_smooth"], c["grad_sq_baseline"]),
    ),
    Quantity(
        "grad_param_ratio",
        "‖g‖/‖θ‖",
        "loss/weight²",
        "layer",
        "‖g‖ / ‖θ‖",
        "Gradient against weights; the classic signal of the collapse detector.",
        _SEED,
        derive=lambda c: _ratio(c["grad_norm"], c["param_norm"]),
    ),
    Quantity(
        "update_ratio",
        "‖Δ‖/‖θ‖",
        "1",
        "layer",
        "‖Δ‖ / ‖θ‖",
        "Relative size of a step.",
        "Karpathy (2019)",
        bands=(
            Band("about 1e-3", "the usual neighbourhood"),
            Band("≫ 1e-2", "the layer is rewritten in tens of steps"),
        ),
        derive=lambda c: _ratio(c["update_norm"], c["param_norm"]),
    ),
    Quantity(
        "work",
        "−⟨g,Δ⟩",
        "loss",
        "layer",
        "−⟨g, Δ⟩ = c ‖g‖ ‖Δ‖",
        "First-order loss that the step bought on its own batch.",
        "docs: theory, work and overshoot",
        derive=lambda c: _product(c["alignment"], c["grad_norm"] * c["update_norm"]),
    ),
    Quantity(
        "d_iS",
        "d_iS",
        "loss",
        "layer",
        "d_iS_wd + d_iS_momentum + d_iS_noise",
        "Overhead: entropy production that buys no descent.",
        _SHARE,
        derive=lambda c: c["d_iS_wd"] + c["d_iS_momentum"] + c["d_iS_noise"],
    ),
    Quantity(
        "d_eS",
        "d_eS",
        "loss",
        "layer",
        "σ − d_iS = σ · min(c₊, 1 − h(ν))",
        "Productive entropy production.",
        _SHARE,
        derive=lambda c: _rest(c["sigma"], c["d_iS"]),
    ),
    Quantity(
        "R_ie",
        "R_ie",
        "1",
        "layer",
        "d_iS / d_eS, at most 1000",
        "Overhead per unit of productive work: a measure of misalignment.",
        _SEED,
        bands=(
            Band("< 1", "most of it is productive"),
            Band("1 – 2", "modest overhead, normal for momentum and Adam"),
            Band("2 – 5", "overhead dominates: look at decay and momentum"),
            Band("> 5", "mostly heat"),
        ),
        derive=lambda c: _capped_ratio(c["d_iS"], c["d_eS"]),
    ),
    Quantity(
        "temperature",
        "T",
        "loss",
        "layer",
        "(η/2) · tr Σ / N",
        "Effective temperature of the layer's parameters under gradient noise.",
        "ThermoDL, with the variance taken over batches; Mandt et al. 2017 (arXiv 1704.04289)",
        derive=lambda c: 0.5 * c["lr"] * c["noise"] / c["num_params"],
    ),
    # -- run --------------------------------------------------------------------------------------------------------
    Quantity("loss", "loss", "loss", "run", "as given to observer.step", "Training loss.", "user"),
    Quantity("epoch", "epoch", "1", "run", "number of epoch_end calls so far", "Epoch counter.", "user"),
    Quantity(
        "D",
        "D",
        "1",
        "run",
        "Var_l(r)",
        "Dispersion: how differently the layers depart from their own habits.",
        _SEED,
        bands=(
            Band("< 0.05", "coordinated"),
            Band("0.1 – 0.4", "some tension between layers"),
            Band("> 0.5", "fragmented: some layers race while others stall"),
        ),
        aliases=("dispersion",),
        derive=lambda c: _nan_reduce(np.nanvar, c["r"]),
    ),
    Quantity(
        "rho_mean",
        "mean ρ",
        "1",
        "run",
        "mean over layers of ρ",
        "Coherence of the run.",
        _SEED,
        derive=lambda c: _nan_reduce(np.nanmean, c["coherence"]),
    ),
    Quantity(
        "R_median",
        "median r",
        "1",
        "run",
        "median over layers of r",
        "The typical layer against its own habit.",
        _SEED,
        derive=lambda c: _nan_reduce(np.nanmedian, c["r"]),
    ),
    Quantity(
        "E_param_dist",
        "E",
        "weight²",
        "run",
        "Σ_l ‖θ − θ₀‖²",
        "Squared distance travelled by the whole model.",
        _SEED,
        derive=lambda c: _nan_reduce(np.nansum, c["distance"]),
    ),
    Quantity(
        "eq_now",
        "eq",
        "1",
        "run",
        "share of layers with r in 0.85 – 1.15",
        "Share of layers at equilibrium with their own past, this step.",
        _SEED,
        derive=_eq_now,
    ),
    Quantity(
        "eq_frac",
        "eq_frac",
        "1",
        "run",
        f"eq averaged over the last {EQUILIBRIUM_WINDOW} steps",
        "Equilibrium fraction: a steady-state score.",
        _SEED,
        bands=(Band("> 0.5", "mostly steady"), Band("< 0.2", "rarely steady: transient, or unstable")),
        derive=lambda c: _trailing_mean(c["step"], c["eq_now"], window=EQUILIBRIUM_WINDOW),
    ),
    Quantity(
        "total_d_eS",
        "Σ d_eS",
        "loss",
        "run",
        "Σ_l d_eS",
        "Productive entropy production of the model.",
        _SEED,
        derive=lambda c: _nan_reduce(np.nansum, c["d_eS"]),
    ),
    Quantity(
        "total_d_iS",
        "Σ d_iS",
        "loss",
        "run",
        "Σ_l d_iS",
        "Overhead of the model.",
        _SEED,
        derive=lambda c: _nan_reduce(np.nansum, c["d_iS"]),
    ),
    Quantity(
        "R_ie_total",
        "R_ie",
        "1",
        "run",
        "Σ_l d_iS / Σ_l d_eS, at most 1000",
        "Overhead per productive unit for the model: a ratio of sums, never a mean of ratios.",
        _SHARE,
        derive=lambda c: _capped_ratio(c["total_d_iS"], c["total_d_eS"]),
    ),
    Quantity(
        "R_ie_median",
        "median R_ie",
        "1",
        "run",
        "median over layers of R_ie",
        "The typical layer's overhead.",
        _SEED,
        derive=lambda c: _nan_reduce(np.nanmedian, c["R_ie"]),
    ),
    Quantity(
        "R_ie_max",
        "max R_ie",
        "1",
        "run",
        "max over layers of R_ie",
        "The worst layer's overhead.",
        _SEED,
        derive=lambda c: _nan_reduce(np.nanmax, c["R_ie"]),
    ),
)

TABLE: dict[str, Quantity] = {q.name: q for q in QUANTITIES}
ALIASES: dict[str, str] = {alias: q.name for q in QUANTITIES for alias in q.aliases}
LAYER_COLUMNS: tuple[str, ...] = tuple(q.name for q in QUANTITIES if q.scope == "layer" and q.stored)
RUN_COLUMNS: tuple[str, ...] = tuple(q.name for q in QUANTITIES if q.scope == "run" and q.stored)


def canonical(name: str) -> str:
    """The one name of a quantity, whichever alias was given.

    >>> canonical("rho")
    'coherence'
    """
    resolved = ALIASES.get(name, name)
    if resolved not in TABLE:
        raise KeyError(f"unknown quantity {name!r}; known ones: {', '.join(sorted(TABLE))}")
    return resolved
