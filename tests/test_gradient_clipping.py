"""The example on gradient clipping: the old figures come out again, and the new arms are what they are said to be."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

PATH = Path(__file__).resolve().parent.parent / "examples" / "gradient_clipping.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("gradient_clipping", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gradient_clipping"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_old_figures_come_out_again(example: Any) -> None:
    said: list[str] = []
    found = example.replicate(("extreme",), said.append)
    assert found["extreme none"]["dimension_spread"] == pytest.approx(0.0085, abs=1e-4)
    assert found["extreme clip"]["dimension_spread"] == pytest.approx(0.0003, abs=1e-4)
    assert found["extreme none"]["largest_change"] == pytest.approx(0.131, abs=1e-3)
    assert found["extreme clip"]["largest_change"] == pytest.approx(0.022, abs=1e-3)
    assert found["extreme none"]["largest_norm"] == pytest.approx(7.35, abs=0.01)
    assert found["extreme none"]["rare_accuracy"] == 0.0
    assert "cannot be learned" in said[-1]


def test_the_matched_arm_walks_the_same_path(example: Any) -> None:
    run = example.experiment(0, steps=600, share=0.05)
    assert run["matched"].path == pytest.approx(run["clip"].path, rel=0.05)
    assert run["clip"].path < run["none"].path
    assert max(run["none"].norms) > 1.0
    assert run["clip"].clip_fraction > 0
    assert run["none"].clip_fraction is None


def test_the_rare_word_tells_its_class(example: Any) -> None:
    words, classes = example.rare_word(20_000, 0.1, 0)
    assert float((words == example.RARE).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert float(classes[words == example.RARE].float().mean()) == pytest.approx(0.9, abs=0.03)
    assert float(classes[words != example.RARE].float().mean()) == pytest.approx(0.02, abs=0.005)


def test_intervals_are_students(example: Any) -> None:
    mean, low, high = example.interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert high - mean == pytest.approx(4.30 / math.sqrt(3))
    assert mean - low == pytest.approx(high - mean)
    assert example.interval([1.0])[1:] == (-math.inf, math.inf)


def test_a_verdict_needs_an_interval_without_zero(example: Any) -> None:
    def trace(rare: float) -> Any:
        return example.Trace([1.0], [1.0, 1.1], [1.0, 2.0, 3.0], 1.0, rare, 0.0, 0.1, 0.5, 0, 0.1)

    def runs(rare: list[float]) -> list[dict[str, Any]]:
        return [{"none": trace(1.0), "matched": trace(1.0), "clip": trace(value)} for value in rare]

    def verdict(rare: list[float]) -> str:
        rows = example.compare(runs(rare), lambda _: None)
        return str(next(row for row in rows if row["measure"] == "rare loss")["verdict"])

    assert verdict([2.0, 2.1, 1.9]) == "higher with clipping"
    assert verdict([0.5, 0.4, 0.6]) == "lower with clipping"
    assert verdict([0.0, 2.0, 1.0]) == "no difference shown"


def test_the_area_under_the_curve(example: Any) -> None:
    class Fixed(torch.nn.Module):
        def forward(self, words: torch.Tensor) -> torch.Tensor:
            scores = torch.tensor([0.0, 1.0, 2.0, 2.0])[words]
            return torch.stack([-scores, scores, -scores, -scores], 1)

    words, classes = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 0, 1])
    pairs = np.mean([1.0, 0.0, 1.0, 0.5])  # (1, 0), (1, 2), (3, 0), (3, 2): won, lost, won, tied
    assert example._tell(Fixed(), words, classes)[3] == pytest.approx(pairs)
