"""Shared signals of the rules, and columns of a record, against their definitions written out plainly."""

from __future__ import annotations

import numpy as np
import pytest

from thermoclaw.diagnosis.signals import held, median_over
from thermoclaw.record.columns import shortest


def held_plainly(condition: np.ndarray, rows: int) -> tuple[int, int] | None:
    run = 0
    for i, yes in enumerate(condition):
        run = run + 1 if yes else 0
        if run >= rows:
            return i - run + 1, i
    return None


@pytest.mark.parametrize("rows", [1, 2, 5, 11])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 0.95, 1.0])
def test_first_stretch_in_which_a_condition_holds(rows: int, share: float) -> None:
    random = np.random.default_rng(0)
    for length in (0, 1, 4, 10, 11, 12, 60):
        for _ in range(20):
            condition = random.random(length) < share
            assert held(condition, rows) == held_plainly(condition, rows)


def test_median_over_layers_leaves_out_what_is_not_finite() -> None:
    random = np.random.default_rng(0)
    for missing in (0.0, 0.2, 0.9, 1.0):
        for num_layers in (0, 1, 2, 7, 8):
            values = random.standard_normal((30, num_layers))
            values[random.random(values.shape) < missing] = random.choice([np.nan, np.inf, -np.inf])
            layers = random.random(num_layers) < 0.7
            want = np.full(30, np.nan)
            for t, row in enumerate(values[:, layers]):
                if np.isfinite(row).any():
                    want[t] = np.median(row[np.isfinite(row)])
            np.testing.assert_array_equal(median_over(values, layers), want)


@pytest.mark.parametrize("kind", ["one value", "by step", "by layer", "mixed", "empty"])
def test_hyper_parameters_are_read_as_they_were_written(kind: str) -> None:
    """0.01 in single precision is 0.01 again, whichever way the values vary, and NaN and infinity stay."""
    written = [0.01, 3e-4, 0.95, 0.0, 1e-38, 1.0, 123456.0, float("nan"), float("inf")]
    random = np.random.default_rng(0)
    values = {
        "one value": np.full((7, 3), 0.01),
        "by step": np.tile(random.choice(written, (7, 1)), (1, 3)),
        "by layer": np.tile(random.choice(written, (1, 3)), (7, 1)),
        "mixed": random.choice(written, (7, 3)),
        "empty": np.zeros((0, 3)),
    }[kind]
    single = values.astype(np.float32).astype(np.float64)
    np.testing.assert_array_equal(shortest(single), values)
