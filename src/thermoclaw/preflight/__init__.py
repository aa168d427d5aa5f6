"""What hyper-parameters, initial weights and a few batches foretell, before the first step.

setup → decay, weights, hypers, members, schedule              from the optimizer and the weights alone
→ guard → probe → reach, scales                          with batches: losses and gradients
→ twin → steps → rates                           trial steps, taken back
→ Preflight
"""

from thermoclaw.preflight.check import preflight
from thermoclaw.preflight.result import (
    LayerForecast,
    NoiseForecast,
    Preflight,
    RateForecast,
    Rehearsal,
    ScheduleForecast,
)

__all__ = [
    "LayerForecast",
    "NoiseForecast",
    "Preflight",
    "RateForecast",
    "Rehearsal",
    "ScheduleForecast",
    "preflight",
]
