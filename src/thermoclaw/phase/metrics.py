"""The one table of what a `PhaseMonitor` tells: name, formula, what it can say, what it cannot. No torch.

The documentation's table and the order of the summary are read from here. "neurothermo" metrics have the name and the
formula that Neurothermo has in its code; "founded" ones stand beside those that are ill defined.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One row of the table."""

    name: str
    formula: str
    says: str
    blind: str
    counterpart: str = ""  # names of better founded ones
    origin: str = "founded"


def _kept(name: str, formula: str, says: str, blind: str, counterpart: str = "") -> Metric:
    return Metric(name, formula, says, blind, counterpart, "neurothermo")


SEED_METRICS: tuple[Metric, ...] = (
    _kept(
        "delta",
        "max |w − round(w)|",
        "whether all weights are integers",
        "anything about scale or learning: one weight decides, and every fresh initialization with a small standard "
        "deviation has a small δ",
        "lattice_order",
    ),
    _kept("alpha", "−ln(δ + 10⁻⁹)", "δ, on another scale", "anything that δ does not", "lattice_noise"),
    _kept(
        "lc",
        "share of |w| above a hundredth of the 95th percentile of |w|",
        "whether many weights are (nearly) zero",
        "complexity: every Gaussian has 0.984",
        "active_share",
    ),
    _kept(
        "vacuum",
        "share of |w| < 10⁻⁶",
        "how many weights are exactly zero",
        "small weights: the bound does not follow the scale",
        "empty_rows",
    ),
    _kept(
        "health",
        "½/(1 + δ) + ½ min(1, α/7), 0 where a weight is not finite",
        "δ once more, and that weights are finite",
        "whether a run or a checkpoint is sound; diagnose() is for that",
        "finite_share",
    ),
    _kept(
        "kappa",
        "largest over smallest non-zero eigenvalue of the gradients' covariance",
        "with its chance value, whether some directions carry more noise than others",
        "anything alone: T steps leave T − 1 eigenvalues, and independent gradients have "
        "((1 + √y)/(1 − √y))², y = (T − 1)/n; it tends to 1 for any large model",
        "kappa_excess, top_share",
    ),
    _kept(
        "t_eff",
        "mean of the non-zero eigenvalues",
        "the size of gradient fluctuations, in one window",
        "a temperature: it falls as 1/(T − 1) with the window and knows no learning rate",
        "grad_noise, the observer's temperature",
    ),
    _kept(
        "ricci",
        "k · Σ 1/λ over the k non-zero eigenvalues",
        "an inverse size of the noise",
        "curvature of anything; it grows without bound as gradients vanish",
        "the observer's overshoot and work",
    ),
    _kept(
        "pr",
        "(Σ μ)²/Σ μ², μ the eigenvalues of the gradients' correlation matrix",
        "how many directions the fluctuations use",
        "more than T − 1 of them",
        "pr_share",
    ),
    _kept("hbar", "std ‖g‖ / mean ‖g‖ over the window", "how uneven the gradient norm is", "direction", "grad_cv"),
    _kept(
        "berry_phase_total",
        "Σ arg⟨w_{t−1}, w_t⟩ + arg⟨w_T, w_0⟩ modulo 2π, of complex weights; 0 for real ones",
        "the geometric phase of a closed path of complex weights",
        "anything about real weights, whose inner products have no phase but a sign. In the mode seed it is π for "
        "every step that reverses the weights",
        "angular_path, angular_net, tortuosity",
    ),
    _kept(
        "r",
        "mean of min/max of neighboring spacings of the sorted |w|",
        "nothing: independent numbers always give 0.386",
        "localization",
        "spectral_r",
    ),
    _kept(
        "g_alg",
        "‖g‖/(δ² + 10⁻⁹)",
        "that gradients are small, unless δ is",
        "crystallization: it grows without bound as δ goes to 0",
        "grad_param_ratio",
    ),
    _kept(
        "hbar_eff",
        "mean over sampled weights of std(θ) · std(g) over the window; 0 in the mode seed",
        "how much loss the joint fluctuation of weights and gradients is worth",
        "quanta",
    ),
    _kept(
        "entropy",
        "Shannon entropy of a histogram of 50 bins from the least to the largest weight",
        "whether few values are taken: ln 3 for a ternary crystal",
        "disorder: a single outlier narrows all bins; at most ln 50",
        "negentropy",
    ),
    _kept(
        "c_v",
        "mean |dL/dt| over the losses of the window",
        "how fast the loss moves",
        "fluctuations, hence a heat capacity",
        "loss_cv",
    ),
    _kept(
        "psi",
        "d · mean over pairs of rows of cos²; 1 in the mode seed",
        "how far features share directions: 0 orthogonal, 1 random, d all alike",
        "what the features are for",
    ),
)

FOUNDED_METRICS: tuple[Metric, ...] = (
    Metric(
        "lattice_order",
        "max over spacings s of 0.2 to 2 σ of |mean e^{2πi w/s}|, zeros left out; per matrix, mean by size",
        "how nearly weights lie on evenly spaced values, at any scale: 1 on a lattice, 0.14 uniform, 0.02 Gaussian",
        "lattices finer than a fifth of the standard deviation (more than about 16 levels), fewer than 256 values, "
        "parameters that are no matrices, and why",
    ),
    Metric(
        "lattice_noise",
        "√(−2 ln order)/2π",
        "standard deviation of the distance to the lattice, in spacings",
        "more than lattice_order",
    ),
    Metric(
        "active_share",
        "share of |w| above a tenth of their rms",
        "how many weights count: 0.92 for a Gaussian",
        "which",
    ),
    Metric(
        "empty_rows",
        "share of rows with a norm below 10⁻³ of the rows' rms",
        "units that are switched off by their weights",
        "units that are switched off by their inputs",
    ),
    Metric("finite_share", "share of parameters whose elements are all finite", "where NaN and Inf are", "why"),
    Metric(
        "negentropy",
        "½ ln 2πe − h, h the entropy of the standardized weights",
        "distance from a Gaussian: 0 Gaussian, 0.18 uniform, large for few values",
        "in which way they differ",
    ),
    Metric(
        "spectral_r",
        "spacing ratio of the singular values; median over matrices with 64 of them and more",
        "whether singular values repel each other (0.53, as in random matrices) or are independent (0.39)",
        "learning: trained matrices stay at 0.53 (Thamm, Staats and Rosenow 2022, arXiv 2203.14661)",
    ),
    Metric(
        "kappa_excess",
        "κ over its chance value at the effective number of coordinates (Σ v)²/Σ v², v their variances",
        "1: the fluctuations have no preferred direction; above: they have",
        "anything where there are no more coordinates than steps (not defined)",
    ),
    Metric("top_share", "λ₁/Σ λ", "share of the fluctuations in their first direction", "which direction"),
    Metric("pr_share", "(tr K)²/‖K‖²/(T − 1), K the Gram matrix", "1: all directions alike, 1/(T − 1): one", "which"),
    Metric(
        "grad_cv",
        "std ‖g‖ / mean ‖g‖ over the window; the same as hbar",
        "how uneven the gradient norm is",
        "direction",
    ),
    Metric(
        "grad_noise",
        "mean ½‖g_t − g_{t−1}‖² over the number of parameters",
        "variance of a gradient element between batches, whatever the window",
        "drift, which is in it; the observer's noise_share is free of it",
    ),
    Metric(
        "grad_param_ratio",
        "‖g‖/‖θ‖ at the last step",
        "gradient against weights",
        "the step, which the optimizer makes",
    ),
    Metric("angular_path", "Σ of the angles between successive weights", "how far the weights turned", "to what end"),
    Metric("angular_net", "angle between the first and the last weights", "how far they got", "on which way"),
    Metric("tortuosity", "angular_path / angular_net", "1 straight ahead, large back and forth", "why"),
    Metric("loss_cv", "std of the losses about a straight line / |their mean|", "how noisy the loss is", "its source"),
)

METRICS = SEED_METRICS + FOUNDED_METRICS
NAMES = tuple(metric.name for metric in METRICS)
SEED_NAMES = tuple(metric.name for metric in SEED_METRICS)
