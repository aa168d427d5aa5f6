"""What the detectors beside an observer say of healthy runs: nobody should be accused, and no run changed.

    python benchmarks/detectors_check.py --jobs 2               development programs, on which thresholds are set
    python benchmarks/detectors_check.py --jobs 2 --held-out    … and those that no threshold saw, in a file with both

Each healthy case of the zoo is trained again (run `python -m benchmarks.zoo run` first) with a `Thermometer`, a
`SpikeDetector` and a watch on up to four modules of its model. A run counts as accused where one of their rules tells
something of HIGH or MEDIUM confidence, live or afterwards. Its losses must be those of the trace, to the last bit.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cost.machine import environment
from benchmarks.zoo.cases import Case, chosen
from benchmarks.zoo.run import Watching, begin_worker
from benchmarks.zoo.run import _plain as plain
from benchmarks.zoo.score import share
from benchmarks.zoo.store import Store
from benchmarks.zoo.training import train
from benchmarks.zoo.vet import verdict
from thermoclaw import SpikeDetector, Thermometer
from thermoclaw.diagnosis.engine import find
from thermoclaw.diagnosis.rules.representation import CODES
from thermoclaw.lab.progress import Progress

RESULTS = Path(__file__).parent / "results" / "detectors.json"
JOINT = ("contrastive",)  # programs whose loss pulls embeddings together
MOST_WATCHED, EVERY = 4, 25
URGENT = ("HIGH", "MEDIUM")


def watched(model: nn.Module) -> list[nn.Module]:
    """Up to four modules without parts, evenly over the model in the order in which it names them, the last one too."""
    leaves = [m for m in model.modules() if not list(m.children()) and not isinstance(m, (nn.Dropout, nn.Identity))]
    places = sorted({round((i + 1) * (len(leaves) - 1) / MOST_WATCHED) for i in range(MOST_WATCHED)})
    return [leaves[place] for place in places]


class Beside(Watching):
    """The observer with all detectors beside it."""

    def __init__(self, batch_size: int, joint: bool) -> None:
        self.batch_size, self.joint = batch_size, joint

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().attach(model, optimizer)
        self.watches = [self.observer.watch(m, every=EVERY, joint_embedding=self.joint) for m in watched(model)]
        self.thermometer = Thermometer(self.observer, batch_size=self.batch_size)
        self.spikes = SpikeDetector(self.observer)

    def step(self, loss: Tensor) -> None:
        super().step(loss)
        self.thermometer.step()
        self.spikes.step()


def look(case: Case, was: dict[str, Any]) -> dict[str, Any]:
    """Train a healthy case beside its trace, and what is said of it."""
    begin_worker()
    recipe, _ = case.recipe()
    beside = Beside(recipe.batch_size, case.program in JOINT)
    final = plain(asdict(train(recipe, beside)))["final"]
    if final != was["final"]:  # perhaps the trace comes from another machine: compare with a run on this one
        was = plain(asdict(train(case.recipe()[0], Watching())))
    record = beside.observer.record()
    checks = [event for event in record.events if event.get("kind") == "representation"]
    testimony = {(e["finding"]["code"], e["finding"]["confidence"]) for e in record.events if e["kind"] == "testimony"}
    found = {(f.code, f.confidence) for f in find(record) if f.code in CODES}
    live = {(f.code, f.confidence) for f in beside.observer.alarms if f.code in CODES}
    return {
        "name": case.name,
        "program": case.program,
        "held_out": case.is_held_out,
        "watched": len(beside.watches),
        "checks": len(checks),
        "said": sorted(testimony | found | live),
        "bitwise": final == was["final"],
    }


def score(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accusations, what was told for information, and whether all runs were what they are without."""
    accused = [row["name"] for row in rows if any(confidence in URGENT for _, confidence in row["said"])]
    told = Counter(code for row in rows for code, confidence in row["said"] if confidence not in URGENT)
    return {
        "accused": share(len(accused), len(rows)),
        "names": accused,
        "bitwise": share(sum(row["bitwise"] for row in rows), len(rows)),
        "watched_modules": sum(row["watched"] for row in rows),
        "checks": sum(row["checks"] for row in rows),
        "for_information": {code: share(count, len(rows)) for code, count in sorted(told.items())},
    }


def looked_at(cases: Sequence[tuple[Case, dict[str, Any]]], jobs: int) -> list[dict[str, Any]]:
    """All rows, several cases at a time."""
    rows = []
    context = multiprocessing.get_context("spawn")
    with Progress("detectors", len(cases)) as bar, ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for row in pool.map(look, *zip(*cases, strict=True)):
            rows.append(row)
            bar.update(len(rows), note=row["name"])
    return rows


def main() -> None:
    """Look at all healthy cases that count, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--held-out", action="store_true", help="the held-out programs, too")
    parser.add_argument("--only", default="*", help="shell pattern of the cases' names")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default %(default)s")
    parser.add_argument("--traces", type=Path, default=Path.home() / ".cache" / "thermoclaw-zoo", help="%(default)s")
    arguments = parser.parse_args()
    about, store = environment(), Store(arguments.traces)
    parts = ("dev", "held_out") if arguments.held_out else ("dev",)
    told: dict[str, Any] = {}
    for part in parts:
        cases = [case for case in chosen(only=arguments.only, part=part) if case.fault is None]
        outcomes = {case.name: store.outcome(case.name) for case in cases}
        known = {name: outcome for name, outcome in outcomes.items() if outcome is not None}
        counted = [(case, known[case.name]) for case in cases if case.name in known and verdict(case.name, known)[0]]
        rows = looked_at(counted, arguments.jobs)
        told[part] = {
            **score(rows),
            "by_program": {
                p: score([r for r in rows if r["program"] == p]) for p in sorted({r["program"] for r in rows})
            },
        }
        print(part, json.dumps({k: v for k, v in told[part].items() if k != "by_program"}, indent=1))
    arguments.results.write_text(json.dumps({**told, "environment": about}, indent=1) + "\n")
    print(f"wrote {arguments.results}")


if __name__ == "__main__":
    main()
