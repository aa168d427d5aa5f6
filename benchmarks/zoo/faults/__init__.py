"""Faults: one change each, the step at which it begins, and the code that a diagnosis should give it."""

from __future__ import annotations

from benchmarks.zoo.faults import data, mistakes, models, steps
from benchmarks.zoo.faults.fault import Fault

FAULTS: dict[str, Fault] = {f.name: f for f in (*steps.FAULTS, *mistakes.FAULTS, *data.FAULTS, *models.FAULTS)}
