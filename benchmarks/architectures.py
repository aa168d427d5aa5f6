"""What is said of published architectures, trained from random weights on real text and pictures, healthy and faulty.

    python benchmarks/architectures.py --jobs 2

Every model is made by transformers from a small configuration: its initialization, normalization and attention are
those of the published one. Healthy runs differ in schedule, optimizer, precision and accumulation; failing ones have
one fault. A healthy run counts if it learns, a failing one if it ends worse than the plain healthy run of its model.
Runs that are done are kept in `--runs` and not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cost.machine import environment
from benchmarks.published import ARCHITECTURES, Architecture, batch_of, make_model
from benchmarks.zoo.judge import URGENT
from benchmarks.zoo.score import share
from thermoclaw import Observer, diagnose
from thermoclaw.lab.progress import Progress

RESULTS = Path(__file__).resolve().parent / "results" / "architectures.json"
STEPS, WARMUP, LAST = 160, 16, 10
LEARNS = 0.9  # of the first loss, at most, is left in a healthy run
HURTS = 0.05  # of the first loss by which a failing run ends above the healthy one, at least

HEALTHY = ("plain", "constant", "cosine", "bfloat16", "accumulated", "sgd")
FAULTS = {
    "wrong sign": ("wrong_sign",),
    "rate × 50": ("lr_too_high",),
    "rate / 1000": ("lr_too_low",),
    "rate × 100 in the middle": ("lr_too_high",),
    "decay × 10,000": ("weight_decay_too_high",),
    "targets shuffled": ("label_noise",),
}


# -- training ----------------------------------------------------------------------------------------------------------


def schedule_of(case: str) -> Callable[[int], float]:
    """The rate's factor at a step."""

    def factor(step: int) -> float:
        risen = min((step + 1) / WARMUP, 1.0)
        if case == "constant":
            return 1.0
        if case == "cosine":
            return risen * 0.5 * (1.0 + math.cos(math.pi * step / STEPS))
        jump = 100.0 if case == "rate × 100 in the middle" and step >= STEPS // 2 else 1.0
        return jump * min(risen, (STEPS - step) / (STEPS - WARMUP))

    return factor


def make_optimizer(model: nn.Module, architecture: Architecture, case: str) -> torch.optim.Optimizer:
    """As the case asks for it."""
    params = model.parameters()
    if case == "sgd":
        return torch.optim.SGD(params, lr=0.1 if architecture.task == "pictures" else 0.3, momentum=0.9)
    rate = architecture.rate * {"rate × 50": 50.0, "rate / 1000": 1e-3}.get(case, 1.0)
    return torch.optim.AdamW(params, lr=rate, weight_decay=100.0 if case == "decay × 10,000" else 0.01)


def run(name: str, case: str) -> dict[str, Any]:
    """Train one model for `STEPS` steps, gradients clipped at 1 as is usual, and say what the rules say of it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    architecture, random = ARCHITECTURES[name], torch.Generator().manual_seed(1)
    model = make_model(architecture).train()
    optimizer = make_optimizer(model, architecture, case)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule_of(case))
    observer, losses = Observer(model, optimizer), []
    parts = 2 if case == "accumulated" else 1
    for _ in range(STEPS):
        model.zero_grad()
        total = 0.0
        for _ in range(parts):
            batch = batch_of(architecture.task, random, shuffled=case == "targets shuffled")
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case == "bfloat16"):
                loss = model(**batch).loss / parts
            (-loss if case == "wrong sign" else loss).backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        observer.step(total)
        losses.append(total)
        if not math.isfinite(total):
            break
    said = [[f.code, f.confidence, f.raised_step] for f in diagnose(observer.record()).findings]
    last = sum(losses[-LAST:]) / len(losses[-LAST:])
    ends = {"first": losses[0], "last": last if math.isfinite(last) else None}
    return {"architecture": name, "case": case, **ends, "said": said}


# -- figures -----------------------------------------------------------------------------------------------------------


def counts(told: dict[str, Any], plain: dict[str, Any]) -> bool:
    """Whether a healthy run learns, or a failing one hurts; `plain` is the healthy run of the same model."""
    last = math.inf if told["last"] is None else told["last"]
    if told["case"] in HEALTHY:
        return bool(last < LEARNS * told["first"])
    return bool(last > plain["last"] + HURTS * plain["first"])


def figures(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares by case, over the runs that count."""
    plain = {run["architecture"]: run for run in told if run["case"] == "plain"}
    table: dict[str, Any] = {}
    for case in (*HEALTHY, *FAULTS):
        here = [run for run in told if run["case"] == case and counts(run, plain[run["architecture"]])]
        first = {run["architecture"]: _first_said(run) for run in here}
        right = FAULTS.get(case, ())
        table[case] = {"heard": share(sum(code is not None for code in first.values()), len(here))}
        if right:
            table[case]["named"] = share(sum(code in right for code in first.values()), len(here))
        table[case]["otherwise"] = {name: code for name, code in first.items() if code not in (None, *right)}
    return table


def _first_said(run: dict[str, Any]) -> str | None:
    """The first finding of HIGH or MEDIUM confidence."""
    return next((code for code, confidence, _ in run["said"] if confidence in URGENT), None)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, and write all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--only", nargs="*", choices=tuple(ARCHITECTURES), help="some architectures alone")
    parser.add_argument(
        "--runs", type=Path, default=Path.home() / ".cache" / "thermoclaw-architectures", help="kept here"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="file to write")
    arguments = parser.parse_args(argv)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    about, names = environment(), arguments.only or list(ARCHITECTURES)
    places = {
        (name, case): arguments.runs / f"{name}.{case.replace('/', 'over')}.json"
        for name in names
        for case in (*HEALTHY, *FAULTS)
    }
    missing = [key for key, place in places.items() if not place.exists()]
    with (
        Progress("runs", len(missing)) as bar,
        ProcessPoolExecutor(arguments.jobs, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        running: dict[Future[dict[str, Any]], tuple[str, str]] = {pool.submit(run, *key): key for key in missing}
        for done, future in enumerate(as_completed(running), start=1):
            places[running[future]].write_text(json.dumps(future.result()))
            bar.update(done, note=" ".join(running[future]))
    told = [json.loads(place.read_text()) for place in places.values()]
    document = {"environment": about, "architectures": names, "cases": figures(told), "runs": told}
    arguments.results.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {arguments.results}")


if __name__ == "__main__":
    main()
