"""What the phase monitor costs, and what its numbers are on weights of known kinds.

    python benchmarks/phase.py

Writes benchmarks/results/phase.json and docs/images/phase_of_weights.png, the picture of examples/phase_of_weights.py.
One thread, a minute or two.
"""

from __future__ import annotations

import argparse
import json
import platform
import runpy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import thermoclaw
from thermoclaw.phase import PhaseMonitor
from thermoclaw.phase.lattice import find_lattice
from thermoclaw.phase.shapes import negentropy, spectral_spacing

ROOT = Path(__file__).resolve().parent.parent
STEPS = 60  # more than the window


def network(width: int) -> nn.Sequential:
    """About 3 · width² parameters."""
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(3)))


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cost(width: int) -> dict[str, Any]:
    """Seconds of a step and of a summary with a full window, and what is held."""
    model = network(width)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    monitor = PhaseMonitor(model, strict=True)
    loss = torch.tensor(1.0)
    steps = [seconds(lambda: monitor.step(loss=loss)) for _ in range(STEPS)]
    num_params = sum(p.numel() for p in model.parameters())
    return {
        "num_params": num_params,
        "step_s": statistics.median(steps),
        "summary_s": min(seconds(monitor.summary) for _ in range(3)),
        "held_bytes": monitor.num_bytes(),
        "model_bytes": 4 * num_params,
    }


def slow_spectrum(n: int, steps: int = 50) -> dict[str, Any]:
    """The spectrum by the n × n covariance, and by the Gram matrix."""
    from thermoclaw.phase import spectra

    g = np.random.default_rng(0).normal(size=(steps, n))
    return {
        "num_params": n,
        "covariance_s": seconds(lambda: np.linalg.eigvalsh(np.cov(g.T))),
        "gram_s": seconds(lambda: spectra.gram_spectrum(spectra.centered(g))),
    }


def kinds() -> list[dict[str, Any]]:
    """Matrices of known kinds: δ, lattice order, negentropy, spacing ratio, and both phases."""
    rng, n = np.random.default_rng(0), 256
    shape = (n, n)
    torch.manual_seed(0)
    ternary = 0.07 * rng.integers(-1, 2, shape)
    left, right = (np.linalg.qr(rng.normal(size=shape))[0] for _ in range(2))
    made = {
        "Gaussian, σ = 0.05": 0.05 * rng.normal(size=shape),
        "Gaussian, σ = 1": rng.normal(size=shape),
        "fresh nn.Linear(512, 512)": nn.Linear(512, 512).weight.detach().numpy(),
        "fresh nn.Conv2d(64, 64, 3)": nn.Conv2d(64, 64, 3).weight.detach().flatten(1).numpy(),
        "fresh nn.Embedding(1000, 64)": nn.Embedding(1000, 64).weight.detach().numpy(),
        "Laplace": 0.05 * rng.laplace(size=shape),
        "Gaussian, nine in ten pruned": 0.05 * rng.normal(size=shape) * (rng.random(shape) < 0.1),
        "−s, 0, s with s = 0.07": ternary,
        "−s, 0, s with s = 0.45": 0.45 / 0.07 * ternary,
        "the first with 5 % noise": ternary + 0.05 * 0.07 * rng.normal(size=shape),
        "the first with 10 % noise": ternary + 0.1 * 0.07 * rng.normal(size=shape),
        "the first with 20 % noise": ternary + 0.2 * 0.07 * rng.normal(size=shape),
        "16 levels": 0.01 * rng.integers(-8, 8, shape),
        "integers": rng.integers(-2, 3, shape).astype(float),
        "independent singular values": left * rng.uniform(size=n) @ right.T,
    }
    rows = []
    for name, weights in made.items():
        flat = weights.astype(np.float64).ravel()
        phases = {}
        for mode in ("structure", "seed"):
            monitor = PhaseMonitor(mode=mode, window_size=2, strict=True)
            monitor.step_manual(weights)
            phases[mode] = monitor.read().phase.name
        rows.append(
            {
                "kind": name,
                "delta": float(np.abs(flat - np.round(flat)).max()),
                "lattice_order": find_lattice(flat).order,
                "negentropy": negentropy(flat),
                "spectral_r": spectral_spacing(weights.astype(np.float64)),
                "phase": phases["structure"],
                "seed_phase": phases["seed"],
            }
        )
    return rows


def example() -> list[dict[str, Any]]:
    """The three runs of the example, whose picture goes to the documentation."""
    with tempfile.TemporaryDirectory() as folder:
        arguments, sys.argv = sys.argv, ["phase_of_weights.py", "--folder", folder]
        try:
            shown = runpy.run_path(str(ROOT / "examples" / "phase_of_weights.py"), run_name="__main__")
        finally:
            sys.argv = arguments
        picture = (Path(folder) / "phase_of_weights.png").read_bytes()
    (ROOT / "docs" / "images" / "phase_of_weights.png").write_bytes(picture)
    kept = ("phase", "train_accuracy", "accuracy")
    return [
        {"run": shown["TITLES"][name]}
        | {key: found[key] for key in kept}
        | {key: found["metrics"][key] for key in ("lattice_order", "delta", "negentropy", "spectral_r", "r")}
        for name, found in shown["RESULTS"].items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "phase.json")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    document = {
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "thermoclaw": thermoclaw.__version__,
            "date": time.strftime("%Y-%m-%d"),
        },
        "cost": [cost(width) for width in (18, 183, 577, 1826)],
        "spectrum": [slow_spectrum(n) for n in (300, 1000, 2000)],
        "kinds": kinds(),
        "example": example(),
    }
    out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    for row in document["cost"]:
        print(f"{row['num_params']:>10,} parameters: step {row['step_s']:.4f} s, summary {row['summary_s']:.3f} s")


if __name__ == "__main__":
    main()
