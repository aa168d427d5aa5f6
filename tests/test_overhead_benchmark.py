"""The cost benchmark: it runs from end to end at tiny sizes, its files have what the documentation quotes, and it
counts what it should. Nothing here looks at how long anything took.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "overhead.py"


def run_script(*arguments: str) -> None:
    """The benchmark's script, which must succeed."""
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture
def cost(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads a module of the benchmark by name."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return lambda name: importlib.import_module(f"cost.{name}")


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The module that writes the documentation's tables, reading from the test's folder."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    module = importlib.import_module("cost_tables")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


# -- from end to end ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_cpu_document_has_what_the_documentation_quotes(tmp_path: Path, tables: ModuleType) -> None:
    out = tmp_path / "overhead_cpu.json"
    run_script("--tiny", "--without-wandb", "--out", str(out), "--images", str(tmp_path))
    results = json.loads(out.read_text())
    assert [row for rows in results.values() if isinstance(rows, list) for row in rows if "error" in row] == []
    assert results["quick"] is True
    for name, part in tables.PARTS.items():
        if name != "gpu-picture":
            assert part(), name
    assert "gpt" not in tables.overhead()
    assert tables.overhead().count(" × |") == 2  # one model; no rival was there
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert {f"overhead{kind}.png" for kind in ("", "_parameters", "_layers", "_cadence")} <= drawn
    assert {f"overhead_memory_{axis}.png" for axis in ("parameters", "layers", "steps")} <= drawn
    ours = [row for row in results["rivals"] if row["arm"] == "thermoclaw"]
    assert all(row["held_bytes"] > 0 and row["host_reads_per_step"] == 0 and row["cost_ms"] > 0 for row in ours)
    reads = {r["model"]: r["host_reads_per_step"] for r in results["rivals"] if r["arm"] == "item norms"}
    tensors = {r["model"]: r["num_tensors"] for r in ours}
    assert reads == {model: 2 * count for model, count in tensors.items()}


def test_the_gpu_part_runs_dry_and_its_tables_can_be_written(tmp_path: Path, tables: ModuleType) -> None:
    out = tmp_path / "overhead_cuda.json"
    run_script("--device", "cpu", "--out", str(out), "--images", str(tmp_path))
    results = json.loads(out.read_text())
    assert results["dry_run"] is True
    assert [row for row in [*results["models"], *results["stacks"]] if "error" in row or "waited_in" in row] == []
    (row,) = results["models"]
    assert row["calls"]["step"]["num_blocks"] == row["calls"]["steps"]
    assert row["calls"]["instrument"]["num_blocks"] == 3 * row["calls"]["steps"]  # before, after, the consumers' calls
    assert row["model"] in tables.gpu()
    assert (tmp_path / "overhead_cuda.png").exists()


def test_without_a_gpu_run_the_page_says_that_its_figure_is_arithmetic(tables: ModuleType) -> None:
    assert tables.gpu().startswith("**Arithmetic, nothing measured:**")


def test_a_dry_run_does_not_replace_measured_figures() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--tiny"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "a dry run needs --out" in done.stderr


# -- what is counted ---------------------------------------------------------------------------------------------------


def test_costs_go_to_the_instrument_wherever_they_arise(cost: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, instruments = cost("worker"), cost("instruments")
    now = [0.0]

    class Costly(instruments.Instrument):
        def attach(self, model: Any, optimizer: Any) -> None:
            def spend(seconds: float) -> Any:
                return self.watch.wrap(lambda *_: now.__setitem__(0, now[0] + seconds))

            model.register_forward_hook(spend(1.0))
            optimizer.register_step_post_hook(spend(2.0))
            optimizer.register_step_pre_hook(self.watch.wrap(lambda *_: spend(4.0)()))  # a wrapped call inside another

        def before_step(self) -> None:
            now[0] += 8.0

        def after_step(self, loss: Any) -> None:
            now[0] += 16.0

    monkeypatch.setitem(instruments.INSTRUMENTS, "costly", Costly)
    spec = {"model": "gpt-tiny", "batch": 2, "tokens": 4, "optimizer": "adamw", "dtype": "float32", "threads": 1}
    arm = worker.Worker({**spec, "instrument": "costly", "settings": {}})
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    row = arm.step()
    assert row["instrument_s"] == 31.0
    assert {key: row[key] for key in ("forward_backward_s", "optimizer_s", "clip_s", "read_s")} == {
        "forward_backward_s": 0.0,
        "optimizer_s": 0.0,
        "clip_s": 0.0,
        "read_s": 0.0,
    }
    assert row["total_s"] == 31.0


def test_an_arm_that_fails_leaves_the_others_their_figures(cost: Any) -> None:
    arms = cost("arms")
    plain = arms.Arm("plain", "plain", "stack-100x2", threads=1)
    wrong = arms.Arm("thermoclaw", "thermoclaw", "stack-100x2", threads=1, settings={"every": 0})
    first, second = arms.take_turns([plain, wrong], rounds=2, warmup=0)
    assert first["steps"] == 2
    assert "every" in second["error"]
    assert "cost_ms" not in second


def test_values_that_the_host_reads_are_counted(cost: Any) -> None:
    import torch

    count = cost("instruments").count_reads
    x = torch.ones(3)
    assert count(lambda: [float(x.sum()), x[0].item(), bool(x[1] > 0)]) == 3
    assert count(lambda: x.sum()) == 0


def event(name: str, category: str, start: float, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "cat": category, "ts": start, "dur": 2.0, "args": arguments}


def test_calls_are_counted_where_they_were_made(cost: Any) -> None:
    events = [
        {"name": "instrument", "cat": "user_annotation", "ts": 10.0, "dur": 10.0},
        {"name": "instrument", "cat": "user_annotation", "ts": 30.0, "dur": 10.0},
        {"name": "instrument", "cat": "gpu_user_annotation", "ts": 0.0, "dur": 900.0},
        event("cudaLaunchKernel", "cuda_runtime", 5.0, correlation=1),
        event("cudaLaunchKernel", "cuda_runtime", 11.0, correlation=2),
        event("cuLaunchKernelEx", "cuda_driver", 31.0, correlation=3),
        event("cudaMemcpyAsync", "cuda_runtime", 33.0, correlation=4),
        event("cudaStreamSynchronize", "cuda_runtime", 35.0, correlation=5),
        event("cudaEventSynchronize", "cuda_runtime", 37.0, correlation=6),
        event("cudaDeviceSynchronize", "cuda_runtime", 50.0, correlation=7),
        event("theirs", "kernel", 100.0, correlation=1),
        event("ours", "kernel", 102.0, correlation=2),
        event("ours", "kernel", 104.0, correlation=3),
        event("Memcpy HtoD (Pageable -> Device)", "gpu_memcpy", 106.0, correlation=4),
    ]
    found = cost("trace").within(events, "instrument", 2)
    assert found["num_blocks"] == 2
    assert found["launches_per_step"] == 1.0
    assert (found["stream_synchronizations"], found["event_synchronizations"]) == (1, 1)
    assert found["pageable_copies"] == 1
    assert found["kernel_us_per_step"] == 3.0
    assert found["longest_kernels_us_per_step"] == {"ours": 2.0}


def test_a_wait_for_the_device_is_reported_beside_the_figures(cost: Any) -> None:
    device = cost("device")
    asked: list[str] = []

    def work(scope: str) -> dict[str, Any]:
        asked.append(scope)
        if scope == "step":
            raise RuntimeError("called a synchronizing CUDA operation")
        return {"cost_ms": 1.0}

    row = device.attempt(work, {"model": "gpt"}, "cpu")
    assert asked == ["step", "instrument"]
    assert row["cost_ms"] == 1.0
    assert "called a synchronizing CUDA operation" in row["waited_in"]["step"]

    def broken(_: str) -> dict[str, Any]:
        raise ValueError("no such model")

    assert device.attempt(broken, {"model": "gpt"}, "cpu")["error"].startswith("ValueError: no such model")


def test_models_have_the_sizes_of_their_names(cost: Any) -> None:
    import torch

    models = cost("models")
    with torch.device("meta"):
        for name, millions in (("gpt-124M", 124.4), ("gpt-410M", 407.4), ("gpt-1.3B", 1315.8)):
            model = models.GPT(models.GPTS[name])
            assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    assert [p.numel() for p in models.build(models.stack(1000, 10)).parameters()] == [100] * 10
