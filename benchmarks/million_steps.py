"""Does anything of an observed run grow? A million optimizer steps of a small model, and what is held at each tenth.

    python benchmarks/million_steps.py                    # a few minutes; writes benchmarks/results/million_steps.json
    python benchmarks/million_steps.py --steps 20000      # a look

Losses and gradients are noisy, so that rules have something to look at all the time; a second run without an observer
gives the ratio of times.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from cost.machine import environment
from torch import nn

from thermoclaw import Observer

RESULTS = Path(__file__).resolve().parent / "results" / "million_steps.json"


def train(steps: int, *, watch: bool, every: int) -> tuple[list[dict[str, Any]], float]:
    """Train on noise; returns what was held at every tenth of the run, and seconds a step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    observer = Observer(model, optimizer, every=every) if watch else None
    x, y = torch.randn(4096, 4), torch.randn(4096, 2)
    held: list[dict[str, Any]] = []
    began, tenth = time.perf_counter(), max(steps // 10, 1)
    for step in range(1, steps + 1):
        at = (step * 16) % 4096
        optimizer.zero_grad()
        loss = (model(x[at : at + 16]) - y[at : at + 16]).square().mean()
        loss.backward()
        optimizer.step()
        if observer is not None:
            observer.step(loss=loss)
            if step % tenth == 0:
                held.append({"step": step, **holdings(observer)})
                print(
                    f"\r{step:,} of {steps:,} steps, {held[-1]['rss_mb']:.0f} MB", end="", file=sys.stderr, flush=True
                )
    if watch:
        print(file=sys.stderr)
    return held, (time.perf_counter() - began) / steps


def holdings(observer: Observer) -> dict[str, Any]:
    """What the process and the observer hold just now."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if isinstance(x, torch.Tensor)]
    record = observer.record()
    with open("/proc/self/statm", encoding="ascii") as file:
        resident = int(file.read().split()[1]) * resource.getpagesize()
    return {
        "rss_mb": resident / 2**20,
        "tensors": len(tensors),
        "tensor_kb": sum(x.numel() * x.element_size() for x in tensors) / 1024,
        "objects": len(gc.get_objects()),
        "rows": len(record),
        "events": len(record.events),
        "alarms": len(observer.alarms),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    before = environment()
    held, seconds = train(arguments.steps, watch=True, every=arguments.every)
    _, plain = train(max(arguments.steps // 10, 1), watch=False, every=1)
    document = {
        "environment": before,
        "steps": arguments.steps,
        "every": arguments.every,
        "held": held,
        "seconds_a_step": seconds,
        "seconds_a_step_unobserved": plain,
    }
    arguments.results.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {arguments.results}")


if __name__ == "__main__":
    main()
