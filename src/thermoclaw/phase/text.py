"""The summary in words. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from thermoclaw.phase.metrics import FOUNDED_METRICS, SEED_METRICS, Metric
from thermoclaw.phase.phases import Phase
from thermoclaw.phase.rows import Tally
from thermoclaw.wording import short_name

RULE = "=" * 78
MOST_LAYERS = 40


def summary_text(
    metrics: Mapping[str, float],
    phase: Phase,
    tally: Tally,
    *,
    steps: int,
    epochs: int,
    layers: Mapping[str, tuple[Mapping[str, float], Phase]],
) -> str:
    """Everything that `PhaseMonitor.summary` tells."""
    lines = [RULE, "PHASE OF THE WEIGHTS", RULE, f"Steps: {steps}, Epochs: {epochs}", ""]
    lines += [f"Final phase: {phase.name}", f"  {phase.description}", ""]
    if metrics:
        lines += ["Metrics (a dash where one is not defined)", *_numbers(SEED_METRICS, metrics)]
        if any(metric.name in metrics for metric in FOUNDED_METRICS):
            lines += ["", "Their better founded counterparts", *_numbers(FOUNDED_METRICS, metrics)]
        lines += ["", *(_layers(layers) if layers else [])]
    if tally.count:
        lines += ["Delta over the run", f"  mean: {tally.mean:.4f}, std: {tally.std:.4f}"]
        lines += [f"  range: [{tally.low:.4f}, {tally.high:.4f}]", ""]
    total = sum(tally.phases.values())
    if total:
        lines.append("Phases over the run")
        lines += [f"  {p.name}: {n} ({n / total:.1%})" for p, n in tally.phases.most_common()]
        lines.append("")
    return "\n".join([*lines, RULE])


def _numbers(rows: tuple[Metric, ...], metrics: Mapping[str, float]) -> list[str]:
    return [f"  {m.name:<18} {_number(metrics[m.name])}" for m in rows if m.name in metrics]


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.6g}"


def _layers(layers: Mapping[str, tuple[Mapping[str, float], Phase]]) -> list[str]:
    """A line for each layer, the first of many."""
    heads = ("delta", "lattice_order", "spectral_r", "negentropy")
    shown = [h for h in heads if any(h in metrics for metrics, _ in layers.values())]
    lines = ["  ".join(["By layer".ljust(34), *(f"{h:>13}" for h in shown), "phase"])]
    for name, (metrics, phase) in list(layers.items())[:MOST_LAYERS]:
        cells = (f"{_number(round(metrics.get(h, math.nan), 4)):>13}" for h in shown)
        lines.append("  ".join([f"  {short_name(name, 32):<32}", *cells, phase.name]))
    if len(layers) > MOST_LAYERS:
        lines.append(f"  … and {len(layers) - MOST_LAYERS} more: compute_layer_metrics() has them")
    return [*lines, ""]
