"""Does the advice help? Each case that is told to change something is trained again, and takes the advice.

A failing case counts when its first alarm of HIGH or MEDIUM confidence carries a remedy: the same run, from the same
seed, is made with a `Guard` that applies that remedy when the alarm comes, and ends with losses of its own beside those
of the run that went on. It is made once more with a `Guard` that also puts earlier weights back. A healthy case is made
again with a `Guard` as a user would have it (HIGH): without an alarm the record must be the trace to the last bit. What
today's rules say first of a trace decides what has to be made anew.
"""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from benchmarks.zoo.cases import Case
from benchmarks.zoo.judge import URGENT, looks_at, without_alarms
from benchmarks.zoo.run import Watching, begin_worker
from benchmarks.zoo.run import _plain as plain
from benchmarks.zoo.store import Store
from benchmarks.zoo.training import Outcome, train
from thermoclaw import Guard, Observer
from thermoclaw.diagnosis.engine import live_findings
from thermoclaw.diagnosis.finding import Finding
from thermoclaw.lab.progress import Progress
from thermoclaw.record import Record

KIND = "causal"


class Guarded(Watching):
    """The observer, and a guard that gets the schedule of the loop."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.observer = Observer(model, optimizer, strict=True)
        self.guard = Guard(self.observer, **self.settings)

    def step(self, loss: Tensor) -> None:
        if self.guard.scheduler is None:  # by now the loop has made its schedule
            self.guard.scheduler = schedules_of(self.observer.optimizer)
        super().step(loss)


def schedules_of(optimizer: torch.optim.Optimizer) -> list[LRScheduler]:
    """The schedules that somebody made for an optimizer: the loop, which traces come from, hands out none."""
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), LRScheduler)]
    return [schedule for schedule in found if schedule.optimizer is optimizer]


def first_alarm(record: Record, confidences: Sequence[str]) -> Finding | None:
    """What today's rules would have told first, with one of these confidences, while the run went on."""
    bare, known = without_alarms(record), []
    with np.errstate(all="ignore"):
        for step in looks_at(record):
            fresh = live_findings(bare.rows(stop=step + 1), known=known)
            known += fresh
            for finding in fresh:
                if finding.confidence in confidences:
                    return finding
    return None


def decide(case: Case, record: Record) -> dict[str, Any]:
    """What there is to try in a case, as plain data: another answer makes an earlier result worthless."""
    finding = first_alarm(record, URGENT if case.fault else URGENT[:1])
    if finding is None:
        return {"alarm": None, "remedy": None}
    alarm = {"code": finding.code, "confidence": finding.confidence, "step": finding.raised_step}
    return {"alarm": alarm, "remedy": plain(finding.remedy.to_json()) if finding.remedy else None}


def try_case(case: Case, store: Store, traces: Store) -> dict[str, Any]:
    """Decide what a case needs, and train it again unless that was done already.

    Args:
        case: what to train.
        store: where results are kept.
        traces: where the runs lie that went on.

    Returns:
        The result as it was written.
    """
    record, was = Record.load(traces.trace(case.name)), traces.outcome(case.name)
    assert was is not None
    decision = decide(case, record)
    old = store.outcome(case.name, KIND)
    if old is not None and old["decision"] == decision and old["fingerprint"] == was["fingerprint"]:
        return old
    told: dict[str, Any] = {
        "name": case.name,
        "program": case.program,
        "variant": case.variant,
        "fault": case.fault,
        "held_out": case.is_held_out,
        "decision": decision,
        "fingerprint": was["fingerprint"],
    }
    if case.fault is None:
        told |= _guarded(case, record, was)
    elif decision["remedy"] is not None:
        told |= _remedied(case)
    store.keep(case.name, told, KIND)
    return told


def _remedied(case: Case) -> dict[str, Any]:
    """The failing run that takes its advice, and the one that takes it and goes back to weights from before."""
    arms = []
    for rollback in (False, True):
        watching = Guarded(at_least="MEDIUM", limit=1, rollback=rollback)
        arms.append(_outcome(watching, train(case.recipe()[0], watching)))
    return {**arms[0], "rollback": arms[1]}


def _guarded(case: Case, record: Record, was: dict[str, Any]) -> dict[str, Any]:
    """The healthy run with a guard: whether anything of it is other than it was."""
    watching = Guarded()
    told = _outcome(watching, train(case.recipe()[0], watching))
    same = is_same(watching.observer.record(), record) and told["final"] == was["final"]
    if not same and not told["acts"]:  # perhaps the trace comes from another machine: compare with a run on this one
        bare = Watching()
        final = plain(asdict(train(case.recipe()[0], bare)))["final"]
        same = is_same(watching.observer.record(), bare.observer.record()) and told["final"] == final
    return {**told, "bitwise": same}


def is_same(one: Record, other: Record) -> bool:
    """Whether two records hold the same numbers, to the last bit."""
    pairs = ((one.steps, other.steps), (one.layer_values, other.layer_values), (one.run_values, other.run_values))
    return all(a.shape == b.shape and np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def _outcome(watching: Guarded, outcome: Outcome) -> dict[str, Any]:
    guard = watching.guard
    acts = [
        {"step": a.step, "code": a.finding.code, "change": plain(a.applied.to_json()), "rewound_to": a.rewound_to}
        for a in guard.acts
    ]
    return {
        **plain(asdict(outcome)),
        "acts": acts,
        "refused": [why for _, why in guard.refused],
        "alarms": [[a.code, a.confidence, a.raised_step] for a in watching.observer.alarms],
        "failed": guard.closed,
    }


def try_all(cases: Sequence[Case], store: Store, traces: Store, *, jobs: int) -> list[tuple[str, str]]:
    """Try cases, several at a time; what is there and still holds is left.

    Args:
        cases: which; those without a trace are left out.
        store: where results are kept.
        traces: where traces lie.
        jobs: processes; 1 stays in this one.

    Returns:
        Names of cases that broke, each with its error.
    """
    todo = [case for case in cases if traces.has(case.name)]
    broken: list[tuple[str, str]] = []
    with Progress("causal", len(todo)) as bar:
        for done, (case, error) in enumerate(_results(todo, store, traces, jobs), start=1):
            if error:
                broken.append((case.name, error))
            bar.update(done, note=case.name)
    return broken


def _results(cases: Sequence[Case], store: Store, traces: Store, jobs: int) -> Any:
    if jobs <= 1:
        begin_worker()
        for case in cases:
            yield case, _safely(case, store, traces)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=begin_worker) as pool:
        waiting = {pool.submit(_safely, case, store, traces): case for case in cases}
        for future in as_completed(waiting):
            yield waiting[future], future.result()


def _safely(case: Case, store: Store, traces: Store) -> str:
    """Try a case; a broken one is told and does not stop the others."""
    try:
        try_case(case, store, traces)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
