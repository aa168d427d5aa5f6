"""What preflight says of the zoo's programs before their first step, against what is wrong with them.

    python benchmarks/preflight_check.py --jobs 2               development programs, on which thresholds are set
    python benchmarks/preflight_check.py --jobs 2 --held-out    … and those that no threshold saw, in a file with both

A case counts if the zoo's vetting says so: a healthy run that learns, a fault that hurts (run `python -m benchmarks.zoo
run` first). Faults that begin later, or sit in the loop, cannot be seen before the first step; they are left out and
counted. Each case is looked at three times: from its settings and weights alone, with eight batches, and with a
rehearsal.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cost.machine import environment
from benchmarks.zoo.cases import Case, chosen
from benchmarks.zoo.recipe import Batch, shuffled_order
from benchmarks.zoo.score import share
from benchmarks.zoo.store import Store
from benchmarks.zoo.training import Run, _cast, _prepared
from benchmarks.zoo.vet import verdict
from thermoclaw import preflight
from thermoclaw.lab.progress import Progress

RESULTS = Path(__file__).resolve().parent / "results" / "preflight.json"
NUM_BATCHES, REHEARSED = 8, 20
LEVELS = ("settings", "batches", "rehearsal")
URGENT = ("HIGH", "MEDIUM")
# Faults that are there before the first step, not in what the loop does around the model.
VISIBLE = (
    "rate_too_high", "rate_too_low", "rate_reaches_zero", "decay_too_high", "momentum_too_high", "epsilon_too_large",
    "clip_too_tight", "clip_too_tight_sgd", "hot_layer", "cold_layers", "detached_loss", "missing_parameters",
    "stale_head", "cut_graph", "coarse_weights", "unscaled_inputs", "batch_of_one", "all_zero", "far_too_large",
    "far_too_small", "deep_sigmoid", "amplifying_layers", "amplifying_recurrence", "dead_from_the_start",
)  # fmt: skip


@dataclass
class Prepared:
    """What a user would hand to preflight."""

    model: nn.Module
    settings: dict[str, Any]
    with_batches: dict[str, Any]
    optimizer: torch.optim.Optimizer


def prepare(case: Case) -> Prepared:
    """A case up to its first step."""
    recipe, _ = case.recipe()
    torch.manual_seed(recipe.seed)
    run = _prepared(recipe, by_layer=False)
    scheduler = torch.optim.lr_scheduler.LambdaLR(run.optimizer, lambda step: recipe.schedule(step / recipe.steps))
    run.tell("step")
    settings = {"total_steps": recipe.steps, "scheduler": scheduler, "max_grad_norm": recipe.clip}
    return Prepared(run.model, settings, {"loss_fn": _loss_of(run), "batches": _batches(run)}, run.optimizer)


def _batches(run: Run) -> list[Batch]:
    """What the first steps would see, the micro-batches of a step together."""
    recipe = run.recipe
    pick = shuffled_order(recipe.seed, len(recipe.data))
    batches = []
    for number in range(NUM_BATCHES):
        places = [pick(number * recipe.accumulation + i, recipe.batch_size) for i in range(recipe.accumulation)]
        run.batch = tuple(part[torch.cat(places)] for part in recipe.data.train)
        run.step = number
        run.tell("batch")
        batches.append(_cast(run.batch, recipe.dtype))
    run.step = 0
    return batches


def _loss_of(run: Run) -> Any:
    """The loss as the loop computes it, with what a fault does to it."""
    recipe = run.recipe

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        run.batch = batch
        with torch.autocast("cpu", dtype=torch.bfloat16) if recipe.autocast else nullcontext():
            run.loss = recipe.loss(model, batch)
        run.tell("loss")
        return run.loss

    return loss_fn


def look(case: Case) -> dict[str, Any]:
    """What preflight says of a case, at every level."""
    torch.set_num_threads(1)
    fault = case.fault_is()
    row: dict[str, Any] = {
        "name": case.name,
        "program": case.program,
        "variant": case.variant,
        "fault": case.fault,
        "held_out": case.is_held_out,
        "codes": list(fault.codes) if fault else [],
        "said": {},
        "seconds": {},
    }
    for level in LEVELS:
        prepared = prepare(case)
        more = dict(prepared.with_batches) if level != "settings" else {}
        if level == "rehearsal":
            more["rehearse"] = REHEARSED
        started = time.perf_counter()
        told = preflight(prepared.model, prepared.optimizer, **prepared.settings, **more)
        row["seconds"][level] = round(time.perf_counter() - started, 3)
        row["said"][level] = [
            {"code": f.code, "confidence": f.confidence, "evidence": f.to_json()["evidence"]} for f in told.findings
        ]
    plain = told.to_json()
    row["told"] = {
        key: plain[key] for key in ("schedule", "loss", "noise", "rate", "rehearsal", "memory_bytes", "forecasts")
    }
    return row


def counted(cases: Sequence[Case], store: Store) -> tuple[list[Case], dict[str, int]]:
    """Cases that can be seen before the first step and that count, and how many do not."""
    outcomes = {p.name.removesuffix(".outcome.json"): p for p in (store.folder / "traces").glob("*.outcome.json")}
    known = {name: json.loads(path.read_text()) for name, path in outcomes.items()}
    left_out = {"not_visible": 0, "not_run": 0, "does_not_count": 0}
    kept = []
    for case in cases:
        if case.fault and case.fault not in VISIBLE:
            left_out["not_visible"] += 1
        elif case.name not in known:
            left_out["not_run"] += 1
        elif not _counts(case, known):
            left_out["does_not_count"] += 1
        else:
            kept.append(case)
    return kept, left_out


def _counts(case: Case, known: dict[str, Any]) -> bool:
    """The zoo's vetting, except that a loss that is not finite at the start is the fault's doing, and visible here."""
    broken = known[case.name]["initial"]["train"] is None
    return (broken and case.fault is not None) or verdict(case.name, known)[0]


def score(rows: Sequence[dict[str, Any]], level: str) -> dict[str, Any]:
    """Accusations of healthy runs, and for every code how often it was right and how often it was found."""
    said = {row["name"]: [f for f in row["said"][level] if f["confidence"] in URGENT] for row in rows}
    healthy = [row for row in rows if not row["fault"]]
    faulty = [row for row in rows if row["fault"]]
    accused = [row["name"] for row in healthy if said[row["name"]]]
    found = [row for row in faulty if said[row["name"]]]
    named = [row for row in faulty if {f["code"] for f in said[row["name"]]} & set(row["codes"])]
    first = [row for row in faulty if said[row["name"]] and said[row["name"]][0]["code"] in row["codes"]]
    codes = sorted({row["codes"][0] for row in faulty} | {f["code"] for told in said.values() for f in told})
    return {
        "healthy_accused": share(len(accused), len(healthy)),
        "accused": accused,
        "detected": share(len(found), len(faulty)),
        "named": share(len(named), len(faulty)),
        "named_first": share(len(first), len(faulty)),
        "by_code": {code: _of_code(code, rows, said) for code in codes},
        "by_fault": {
            fault: share(sum(row in named for row in of), len(of))
            for fault in sorted({row["fault"] for row in faulty})
            if (of := [row for row in faulty if row["fault"] == fault])
        },
    }


def _of_code(code: str, rows: Sequence[dict[str, Any]], said: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Precision over runs of which it was said, recall over runs whose fault has it first among its codes."""
    told = [row for row in rows if any(f["code"] == code for f in said[row["name"]])]
    wanted = [row for row in rows if row["codes"][:1] == [code]]
    return {
        "precision": share(sum(code in row["codes"] for row in told), len(told)),
        "recall": share(
            sum(bool({f["code"] for f in said[row["name"]]} & set(row["codes"])) for row in wanted), len(wanted)
        ),
    }


def looked_at(cases: Sequence[Case], jobs: int) -> list[dict[str, Any]]:
    """All rows, several cases at a time."""
    rows = []
    with (
        ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool,
        Progress("preflight", len(cases)) as bar,
    ):
        for done, row in enumerate(pool.map(look, cases, chunksize=4), start=1):
            rows.append(row)
            bar.update(done, note=row["name"])
    return rows


def main() -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--held-out", action="store_true", help="held-out programs too")
    parser.add_argument("--only", default="*", help="shell pattern, or a part of a case's name")
    parser.add_argument("--zoo", type=Path, help="folder of the zoo's outcomes, by default in the user's cache")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON is written")
    parser.add_argument("--rows", type=Path, help="also write every case here")
    args = parser.parse_args()
    told: dict[str, Any] = {"environment": environment(), "batches": NUM_BATCHES, "rehearsed_steps": REHEARSED}
    every = []
    for part in ("dev", "held_out") if args.held_out else ("dev",):
        store = Store(args.zoo)
        cases, left_out = counted(chosen(only=args.only, part=part), store)
        rows = looked_at(cases, args.jobs)
        every += rows
        seconds = {level: round(sum(row["seconds"][level] for row in rows) / max(len(rows), 1), 3) for level in LEVELS}
        told[part] = {
            "cases": len(rows),
            "left_out": left_out,
            "vetted_by_other_code": len(store.stale(case.name for case in cases)),
            "mean_seconds": seconds,
            **{level: score(rows, level) for level in LEVELS},
        }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(told, indent=1) + "\n")
    if args.rows:
        args.rows.write_text(json.dumps(every, indent=1) + "\n")
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
