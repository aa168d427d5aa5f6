"""Causes before consequences: what follows from another finding is kept, at LOW confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from thermoclaw.diagnosis.finding import Finding

# Consequence → the findings that explain it.
_WEIGHTS = ("bad_init", "vanishing_gradients", "exploding_gradients", "dead_units")
_DEAF = ("no_gradient", "frozen_layers", "over_clipping", "epsilon_dominates", "lr_schedule_zero", "lost_updates")
FOLLOWS_FROM = {
    "bad_init": ("unnormalised_input",),
    "exploding_gradients": ("unnormalised_input",),
    "epsilon_dominates": _WEIGHTS,
    "lr_too_high": (*_WEIGHTS, "unnormalised_input", "layer_lr_mismatch", "momentum_too_high"),
    "lr_too_low": (*_WEIGHTS, *_DEAF, "unnormalised_input", "layer_lr_mismatch", "weight_decay_too_high"),
    "weight_decay_too_high": ("momentum_too_high", "layer_lr_mismatch"),
}
URGENT = ("HIGH", "MEDIUM")


def ranked(findings: Sequence[Finding]) -> list[Finding]:
    """Findings by confidence, consequences of others last."""
    urgent = {f.code for f in findings if f.confidence in URGENT}
    told = [replace(f, confidence="LOW") if urgent.intersection(FOLLOWS_FROM.get(f.code, ())) else f for f in findings]
    return sorted(told, key=lambda f: f.severity)
