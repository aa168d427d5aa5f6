"""The benchmark of published architectures: what it trains, what counts, and its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import architectures
from benchmarks.published import ARCHITECTURES, batch_of, make_model

pytest.importorskip("transformers")


def told(case: str, last: float | None, *said: tuple[str, str, int], name: str = "ViT") -> dict[str, Any]:
    return {"architecture": name, "case": case, "first": 2.0, "last": last, "said": [list(s) for s in said]}


def test_a_run_counts_if_it_learns_or_if_its_fault_hurts() -> None:
    plain = told("plain", 1.0)
    assert architectures.counts(plain, plain)
    assert not architectures.counts(told("sgd", 1.9), plain)
    assert not architectures.counts(told("sgd", None), plain)
    assert architectures.counts(told("wrong sign", 1.2), plain)
    assert architectures.counts(told("wrong sign", None), plain)
    assert not architectures.counts(told("wrong sign", 1.05), plain)


def test_figures_are_of_the_first_urgent_finding_in_runs_that_count() -> None:
    runs = [
        told("plain", 1.0),
        told("plain", 1.0, ("plateau", "LOW", 90), ("label_noise", "MEDIUM", 99), name="BERT"),
        told("plain", 1.95, ("label_noise", "MEDIUM", 99), name="Swin"),
        told("wrong sign", 9.0, ("wrong_sign", "HIGH", 20), ("plateau", "HIGH", 99)),
        told("wrong sign", 9.0, ("plateau", "HIGH", 99), ("wrong_sign", "HIGH", 20), name="BERT"),
    ]
    found = architectures.figures(runs)
    assert (found["plain"]["heard"]["hits"], found["plain"]["heard"]["of"]) == (1, 2)
    assert found["plain"]["otherwise"] == {"BERT": "label_noise"}
    assert "named" not in found["plain"]
    assert (found["wrong sign"]["heard"]["hits"], found["wrong sign"]["named"]["hits"]) == (2, 1)
    assert found["wrong sign"]["otherwise"] == {"BERT": "plateau"}


@pytest.mark.parametrize("name", ["GPT-2", "BERT", "RoBERTa", "T5", "ResNet"])  # one of each task
def test_models_take_their_batches_and_shuffling_takes_labels_from_elsewhere(name: str) -> None:
    task = ARCHITECTURES[name].task
    batch, same, mixed = (
        batch_of(task, torch.Generator().manual_seed(0), shuffled=shuffled) for shuffled in (False, False, True)
    )
    assert all(torch.equal(batch[key], same[key]) for key in batch)
    inputs = next(key for key in batch if key != "labels")
    assert torch.equal(batch[inputs], mixed[inputs])
    assert not torch.equal(batch["labels"], mixed["labels"])
    torch.manual_seed(0)
    assert torch.isfinite(make_model(ARCHITECTURES[name])(**batch).loss)


def test_the_command_trains_what_is_missing_and_writes_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []

    class Here:
        """Runs at once, in this process."""

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def __enter__(self) -> Here:
            return self

        def __exit__(self, *_: object) -> None: ...

        def submit(self, work: Any, *key: str) -> Any:
            seen.append(key)  # type: ignore[arg-type]
            future: Any = architectures.Future()
            future.set_result(work(*key))
            return future

    monkeypatch.setattr(architectures, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(architectures, "STEPS", 20)
    monkeypatch.setattr(architectures, "HEALTHY", ("plain", "bfloat16", "accumulated"))
    monkeypatch.setattr(architectures, "FAULTS", {"wrong sign": ("wrong_sign",)})
    arguments = ["--only", "ResNet", "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "told.json")]
    architectures.main(arguments)
    document = json.loads((tmp_path / "told.json").read_text())
    assert [run["case"] for run in document["runs"]] == ["plain", "bfloat16", "accumulated", "wrong sign"]
    losses = {run["case"]: run["last"] / run["first"] for run in document["runs"]}
    assert losses["plain"] < 0.7
    assert losses["wrong sign"] > 1.5
    assert document["cases"]["plain"]["heard"]["of"] == 1
    first, seen[:] = list(seen), []
    architectures.main(arguments)
    assert len(first) == 4
    assert seen == []
