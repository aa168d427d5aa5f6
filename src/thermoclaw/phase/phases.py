"""The phases, and the rules by which a model is put into one. No torch.

A phase says how weights are arranged, not whether a run is good: GLASS is what ordinary floating-point training makes.
"""

from __future__ import annotations

import math
from enum import Enum

from thermoclaw.phase.config import Thresholds


class Phase(Enum):
    """How the weights are arranged; the value is a word, `description` a sentence."""

    CRYSTAL = "crystal"
    GLASS = "glass"
    TRANSITION = "transition"
    LIQUID = "liquid"
    TOPOLOGICAL_INSULATOR = "topological insulator"
    UNKNOWN = "unknown"

    @property
    def description(self) -> str:
        """What the phase means, in a sentence."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    Phase.CRYSTAL: "Most weights lie on a lattice of evenly spaced values.",
    Phase.GLASS: "The weights lie on no lattice, as in any ordinary training; this says nothing about memorizing.",
    Phase.TRANSITION: "The weights crowd near the points of a lattice without lying on it.",
    Phase.LIQUID: "The singular values of the weight matrices do not repel each other: independent modes.",
    Phase.TOPOLOGICAL_INSULATOR: "Complex weights came back to where they were with another phase.",
    Phase.UNKNOWN: "Weights that are not finite, too few to tell, or nothing measured yet.",
}


def get_phase_description(phase: Phase) -> str:
    """What a phase means, in a sentence.

    Example:
        >>> get_phase_description(Phase.CRYSTAL)
        'Most weights lie on a lattice of evenly spaced values.'
    """
    return phase.description


def wrapped(angle: float) -> float:
    """An angle modulo 2π, in (−π, π]."""
    return -(math.remainder(-angle, 2 * math.pi))


def structural_phase(
    order: float,
    thresholds: Thresholds,
    *,
    finite: bool = True,
    spectral_r: float = math.nan,
    berry_phase: float = math.nan,
    overlap: float = math.nan,
) -> Phase:
    """The phase by the rules of this library, the first that holds.

    1. weights that are not finite → UNKNOWN
    2. |berry_phase| > 0.1 (modulo 2π) and |overlap| of the last weights with the first ≥ 0.95, so that the path is all
       but closed → TOPOLOGICAL_INSULATOR; complex parameters only
    3. lattice order ≥ 0.7 → CRYSTAL
    4. spectral r < 0.42 → LIQUID
    5. lattice order ≤ 0.4 → GLASS, above it TRANSITION; not defined → UNKNOWN

    Args:
        order: lattice order; NaN where it is not defined.
        thresholds: the numbers of the rules, of which those above are the defaults.
        finite: whether all weights are.
        spectral_r: of the singular values; NaN where there are too few.
        berry_phase: accumulated geometric phase; NaN without complex parameters.
        overlap: |⟨ŵ_first, ŵ_last⟩| of the complex parameters.
    """
    if not finite:
        return Phase.UNKNOWN
    closed = overlap >= thresholds.overlap_closed_threshold
    if closed and abs(wrapped(berry_phase)) > thresholds.berry_phase_threshold:
        return Phase.TOPOLOGICAL_INSULATOR
    if order >= thresholds.order_crystal_threshold:
        return Phase.CRYSTAL
    if spectral_r < thresholds.spectral_r_threshold:
        return Phase.LIQUID
    if math.isnan(order):
        return Phase.UNKNOWN
    return Phase.GLASS if order <= thresholds.order_glass_threshold else Phase.TRANSITION


def seed_phase(delta: float, thresholds: Thresholds) -> Phase:
    """The phase as Neurothermo tells it, by the largest distance of any weight from an integer alone."""
    if not math.isfinite(delta):
        return Phase.UNKNOWN
    if delta < thresholds.delta_crystal_threshold:
        return Phase.CRYSTAL
    return Phase.GLASS if delta > thresholds.delta_glass_threshold else Phase.TRANSITION
