"""Tables of the page on the phase monitor: its metrics from the code, its figures from `benchmarks/phase.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from cost_tables import RESULTS
from markdown_tables import plain, table

if TYPE_CHECKING:
    from thermoclaw.phase.metrics import Metric


def measured() -> dict[str, Any]:
    return json.loads((RESULTS / "phase.json").read_text(encoding="utf-8"))


def seed_metrics() -> str:
    """Neurothermo's seventeen, with what stands beside each."""
    from thermoclaw.phase.metrics import FOUNDED_METRICS, SEED_METRICS

    known = {metric.name for metric in FOUNDED_METRICS}
    heads = ("name", "formula", "what it can say", "what it cannot", "better founded")
    return "\n".join(table(heads, (metric_row(m, known) for m in SEED_METRICS)))


def founded_metrics() -> str:
    """The counterparts."""
    from thermoclaw.phase.metrics import FOUNDED_METRICS

    heads = ("name", "formula", "what it can say", "what it cannot")
    return "\n".join(table(heads, (metric_row(m, set())[:4] for m in FOUNDED_METRICS)))


def metric_row(metric: Metric, known: Iterable[str]) -> tuple[str, ...]:
    words = [f"`{word}`" if word in known else plain(word) for word in metric.counterpart.split(", ")]
    texts = (plain(text) for text in (metric.formula, metric.says, metric.blind))
    return (f"`{metric.name}`", *texts, ", ".join(words))


def phases() -> str:
    from thermoclaw.phase import Phase

    return "\n".join(table(("phase", "meaning"), ((phase.name, plain(phase.description)) for phase in Phase)))


def kinds() -> str:
    heads = ("weights", "δ", "lattice order", "negentropy", "spectral r", "phase", "phase by δ")
    names = ("delta", "lattice_order", "negentropy", "spectral_r")
    rows = (
        (plain(row["kind"]), *(f"{row[name] + 0:.2f}" for name in names), row["phase"], row["seed_phase"])
        for row in measured()["kinds"]
    )
    return "\n".join(table(heads, rows)).replace("-0.00", "0.00")


def example() -> str:
    heads = ("run", "accuracy", "held out", "lattice order", "δ", "r of weights", "spectral r", "phase")
    names = ("lattice_order", "delta", "r", "spectral_r")
    rows = (
        (
            plain(row["run"]),
            f"{row['train_accuracy']:.0%}",
            f"{row['accuracy']:.0%}",
            *(f"{row[name]:.2f}" for name in names),
            row["phase"],
        )
        for row in measured()["example"]
    )
    return "\n".join(table(heads, rows))


def cost() -> str:
    figures = measured()
    heads = ("parameters", "a step", "a summary", "held")
    rows = (
        (
            f"{row['num_params']:,}",
            f"{1e3 * row['step_s']:.1f} ms",
            f"{row['summary_s']:.2f} s",
            f"{row['held_bytes'] / 2**20:.1f} MiB",
        )
        for row in figures["cost"]
    )
    slow = figures["spectrum"][-1]
    words = (
        f"For {slow['num_params']:,} parameters and 50 steps the spectrum takes {1e3 * slow['gram_s']:.1f} ms by the "
        f"Gram matrix and {1e3 * slow['covariance_s']:,.0f} ms by the covariance, whose time grows with the cube of "
        "their number."
    )
    return "\n".join(
        [*table(heads, rows), "", f"One thread of a shared CPU, PyTorch {figures['environment']['torch']}. {words}"]
    )


PARTS: dict[str, Callable[[], str]] = {
    "phase-seed-metrics": seed_metrics,
    "phase-metrics": founded_metrics,
    "phase-phases": phases,
    "phase-kinds": kinds,
    "phase-example": example,
    "phase-cost": cost,
}
