"""DETECT, without accusing: how weights are arranged, after Neurothermo.

measure → track     on the device, at every step: a row of numbers and a sample by parameter
rows                on the host: rows put together, paths, tallies
lattice, shapes, spectra → describe     metrics from arrays, without torch
phases → monitor → text
"""

from thermoclaw.phase.config import Computation, Core, PhaseConfig, Thresholds
from thermoclaw.phase.gather import extract_gradients, extract_weights
from thermoclaw.phase.monitor import PhaseMonitor, create_monitor
from thermoclaw.phase.phases import Phase, get_phase_description
from thermoclaw.phase.result import MetricsResult

__all__ = [
    "Computation",
    "Core",
    "MetricsResult",
    "Phase",
    "PhaseConfig",
    "PhaseMonitor",
    "Thresholds",
    "create_monitor",
    "extract_gradients",
    "extract_weights",
    "get_phase_description",
]
