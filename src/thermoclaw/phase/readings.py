"""What a step and a summary tell: numbers and phases, of the model and of each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from thermoclaw.phase import describe
from thermoclaw.phase.config import PhaseConfig
from thermoclaw.phase.gather import host_values
from thermoclaw.phase.measure import Entry
from thermoclaw.phase.metrics import NAMES, SEED_NAMES
from thermoclaw.phase.phases import Phase, seed_phase, structural_phase
from thermoclaw.phase.result import Reading
from thermoclaw.phase.track import Track

Array = NDArray[np.float64]


def row_reading(track: Track, row: Array, config: PhaseConfig) -> Reading:
    """What one step tells."""
    found = [group_reading(track, row, group, config) for group in range(len(track.groups.names))]
    phases = [row_phase(metrics, config) for metrics in found]
    layers = track.groups.names[1:]
    return Reading(
        found[0], dict(zip(layers, found[1:], strict=True)), phases[0], dict(zip(layers, phases[1:], strict=True))
    )


def group_reading(track: Track, row: Array, group: int, config: PhaseConfig) -> dict[str, float]:
    """One step's numbers of a group."""
    delta = track.history.reduce(row, "delta", group)
    found = {
        "delta": delta,
        "alpha": describe.alpha_of(delta, config.thresholds),
        "health": describe.health_of(delta, config.thresholds),
    }
    if config.core.mode != "seed":
        found["lattice_order"] = track.history.reduce(row, "order", group)
    return found


def row_phase(metrics: Mapping[str, float], config: PhaseConfig) -> Phase:
    """The phase that one step's numbers tell."""
    if config.core.mode == "seed":
        return seed_phase(metrics["delta"], config.thresholds)
    return structural_phase(metrics["lattice_order"], config.thresholds, finite=math.isfinite(metrics["delta"]))


def _full_phase(metrics: Mapping[str, float], state: describe.State, config: PhaseConfig) -> Phase:
    if config.core.mode == "seed":
        return seed_phase(metrics["delta"], config.thresholds)
    return structural_phase(
        metrics["lattice_order"],
        config.thresholds,
        finite=math.isfinite(metrics["delta"]),
        spectral_r=metrics["spectral_r"],
        berry_phase=metrics["berry_phase_total"] if state.has_complex else math.nan,
        overlap=state.path.overlap,
    )


def full_reading(track: Track, entries: Sequence[Entry], losses: Array, config: PhaseConfig) -> Reading:
    """Everything, of the model and of each layer. Waits."""
    literal = config.core.mode == "seed"
    names = SEED_NAMES if literal else NAMES
    values = [
        describe.Looked(v.piece, v.flat, {} if literal else describe.look_at(v))  # a matrix goes before the next comes
        for v in host_values(track.arrange(entries), track.groups.pieces, everything=literal)
    ]
    samples = track.samples()
    metrics, phases = [], []
    for group, members in enumerate(track.groups.members):
        if group == 1 and literal:  # Neurothermo knows no layers
            break
        mine = [values[i] for i in members]
        state = track.state(group)
        if not all(np.isfinite(v.flat).all() for v in mine):
            state = replace(state, delta=math.nan)
        found = describe.weight_metrics(mine, config.thresholds, literal=literal)
        window = track.window(group, samples, losses)
        found |= describe.window_metrics(window, config.thresholds, literal=literal)
        found |= describe.state_metrics(state, config.thresholds, literal=literal)
        metrics.append({name: found.get(name, math.nan) for name in names})
        phases.append(_full_phase(metrics[-1], state, config))
    layers = track.groups.names[1 : len(metrics)]
    return Reading(
        metrics[0],
        dict(zip(layers, metrics[1:], strict=True)),
        phases[0],
        dict(zip(layers, phases[1:], strict=True)),
    )
