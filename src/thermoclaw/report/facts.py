"""A run in a line of words. Numpy only."""

from __future__ import annotations

import numpy as np

from thermoclaw.record import Record
from thermoclaw.wording import number


def run_facts(record: Record) -> str:
    """A run in one line: layers, parameters, steps, and the first and the last loss, as all reports give them."""
    num_params = sum(layer.num_params for layer in record.layers)
    num_layers = len(record.layers)
    facts = [record.optimizer] if record.meta.get("optimizer") else []
    facts.append(f"{num_layers:,} layer{'s' if num_layers != 1 else ''}")
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if num_params >= size:
            facts.append(f"{num_params / size:.3g}{suffix} parameters")
            break
    else:
        facts.append(f"{num_params} parameters")
    if not len(record):
        return " · ".join([*facts, "no steps recorded"])
    facts.append(steps_text(record.steps[0], record.steps[-1]))
    good = record.loss[np.isfinite(record.loss)]
    if len(good) > 1:
        facts.append(f"loss {number(good[0])} → {number(good[-1])}")
    return " · ".join(facts)


def steps_text(first: float, last: float) -> str:
    """A range of steps in words."""
    return f"steps {first:,.0f}–{last:,.0f}" if first != last else f"step {first:,.0f}"
