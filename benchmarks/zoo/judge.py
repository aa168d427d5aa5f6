"""Traces to verdicts: replay the live checks on each record, then diagnose it whole. Rules change, traces stay.

A record keeps the alarms that the rules of its day raised; they are taken off and raised anew. A check happens at the
steps at which the observer looks, on the rows up to there. Runs are trained on the CPU, where that is told at once; on
an accelerator values reach the host a block later, and a sudden loss is not looked at before: told beside it.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from benchmarks.zoo.rivals import RIVALS
from benchmarks.zoo.store import Store
from thermoclaw.diagnosis.engine import find, live_findings
from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.looks import Looks
from thermoclaw.lab.progress import Progress
from thermoclaw.record import Record

URGENT = ("HIGH", "MEDIUM")


def looks_at(record: Record, *, at_once: bool = True) -> Iterator[int]:
    """Steps at which the rules look while a run goes on.

    Args:
        record: of the whole run, every step of it.
        at_once: whether losses are known in their own step, as on the CPU, so that sudden ones are looked at.
    """
    looks = Looks()
    for step, loss in zip(record.steps.astype(int).tolist(), record.loss.tolist(), strict=True):
        sudden = at_once and looks.is_sudden(loss)
        if looks.is_due(step) or sudden:
            yield step


def without_alarms(record: Record, alarms: Sequence[Finding] = ()) -> Record:
    """The same record without the alarms of its day, and with others where they are given."""
    events = [event for event in record.events if event.get("kind") != "alarm"]
    events += [{"kind": "alarm", "step": alarm.raised_step, "finding": alarm.to_json()} for alarm in alarms]
    return Record(record.steps, record.layers, record.layer_values, record.run_values, dict(record.meta), tuple(events))


def replayed(record: Record, *, at_once: bool = True) -> list[Finding]:
    """Alarms that today's rules would have raised while the run went on; `at_once` as for `looks_at`."""
    alarms: list[Finding] = []
    for step in looks_at(record, at_once=at_once):
        alarms += live_findings(record.rows(stop=step + 1), known=alarms)
    return alarms


def judge_record(record: Record, *, replay: bool = True) -> dict[str, Any]:
    """What is said of a record, while it runs and afterwards.

    Args:
        record: of the whole run, its old alarms are ignored.
        replay: whether to go through the live checks; without, a finding counts as told when it was certain.

    Returns:
        `findings`, ranked, the `alarms` in the order in which they were told, and those of the same run on an
        accelerator, `alarms_on_device`, as plain data.
    """
    bare = without_alarms(record)
    alarms = replayed(bare) if replay else []
    findings = find(without_alarms(bare, alarms))
    late = alarms
    if not replay:
        late = alarms = sorted((f for f in findings if f.confidence in URGENT), key=lambda f: f.raised_step)
    elif list(looks_at(bare)) != list(looks_at(bare, at_once=False)):
        late = replayed(bare, at_once=False)
    lag = int((record.meta.get("settings") or {}).get("lag", 8))
    return {
        "findings": [_plain(finding) for finding in findings],
        "alarms": [{**_plain(alarm), "told_step": alarm.raised_step} for alarm in alarms],
        "alarms_on_device": [{**_plain(alarm), "told_step": alarm.raised_step + lag} for alarm in late],
    }


def _plain(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "confidence": finding.confidence,
        "first_step": finding.first_step,
        "raised_step": finding.raised_step,
        "layers": len(finding.layers),
        "evidence": {name: float(f"{value:.4g}") for name, value in finding.evidence.items()},
    }


def judge_case(name: str, store: Store, *, replay: bool = True) -> dict[str, Any]:
    """This library and its rivals on one trace."""
    logging.getLogger("thermoclaw").setLevel(logging.CRITICAL)
    record, outcome = Record.load(store.trace(name)), store.outcome(name)
    assert outcome is not None
    with np.errstate(all="ignore"):
        said = {rival: sayings(record, outcome) for rival, sayings in RIVALS.items()}
    old = store.outcome(name, "old")
    if old is not None:
        said["thermoclaw 0.1.6"] = old["sayings"]
    return {**judge_record(record, replay=replay), "rivals": said}


def judge_all(names: Sequence[str], store: Store, *, jobs: int, replay: bool = True) -> dict[str, dict[str, Any]]:
    """All verdicts, several traces at a time.

    Args:
        names: of runs that are there.
        store: where they lie.
        jobs: processes.
        replay: as for `judge_record`.

    Returns:
        Verdicts by name.
    """
    verdicts: dict[str, dict[str, Any]] = {}
    with Progress("judge", len(names)) as bar:
        for done, (name, verdict) in enumerate(_verdicts(names, store, jobs, replay), start=1):
            verdicts[name] = verdict
            bar.update(done, note=name)
    return verdicts


def _verdicts(names: Sequence[str], store: Store, jobs: int, replay: bool) -> Any:
    if jobs <= 1:
        for name in names:
            yield name, judge_case(name, store, replay=replay)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = [(name, pool.submit(judge_case, name, store, replay=replay)) for name in names]
        for name, future in waiting:
            yield name, future.result()
