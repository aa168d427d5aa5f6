"""Cases to traces: train each once with the observer on, keep record and outcome, go on where a run stopped."""

from __future__ import annotations

import logging
import math
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.cases import Case
from benchmarks.zoo.store import Store, fingerprint
from benchmarks.zoo.training import train
from thermoclaw import Observer
from thermoclaw.lab.progress import Progress


class Watching:
    """The observer, as a user would attach it; strict, so that an error of the measurement is no silent gap."""

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.observer = Observer(model, optimizer, strict=True)

    def step(self, loss: Tensor) -> None:
        self.observer.step(loss=loss)

    def validated(self, loss: float) -> None:
        self.observer.epoch_end(val_loss=loss)


def run_case(case: Case, store: Store) -> dict[str, Any]:
    """Train one case and keep its trace.

    Args:
        case: what to train.
        store: where to keep it.

    Returns:
        The outcome as it was written.
    """
    recipe, first = case.recipe()
    watching = Watching()
    outcome = train(recipe, watching)
    watching.observer.record().save(store.trace(case.name))
    fault = case.fault_is()
    told = {
        **asdict(case),
        "name": case.name,
        "control": case.control.name,
        "held_out": case.is_held_out,
        "codes": list(fault.codes) if fault else [],
        "first_faulty_step": first + 1 if fault else None,
        "begins": fault.begins if fault else None,
        "steps": recipe.steps,
        "batch_size": recipe.batch_size,
        "optimizer": asdict(recipe.optimizer),
        "learns": recipe.learns,
        **_plain(asdict(outcome)),
        "fingerprint": fingerprint(),
    }
    store.keep(case.name, told)
    return told


def _plain(values: Any) -> Any:
    """Numbers that every JSON reader takes: infinities and NaN as None."""
    if isinstance(values, dict):
        return {key: _plain(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_plain(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def begin_worker() -> None:
    """One thread a process, and no alarms on the console."""
    torch.set_num_threads(1)
    logging.getLogger("thermoclaw").setLevel(logging.CRITICAL)


def run_all(cases: Sequence[Case], store: Store, *, jobs: int, again: bool = False) -> list[tuple[str, str]]:
    """Run what is missing, several at a time.

    Args:
        cases: what to run.
        store: where traces are kept.
        jobs: processes; 1 stays in this one.
        again: also what is there already.

    Returns:
        Names of cases that broke, each with its error.
    """
    todo = [case for case in cases if again or not store.has(case.name)]
    broken: list[tuple[str, str]] = []
    with Progress("zoo", len(todo)) as bar:
        for done, (case, error) in enumerate(_results(todo, store, jobs), start=1):
            if error:
                broken.append((case.name, error))
            bar.update(done, note=case.name)
    return broken


def _results(cases: Sequence[Case], store: Store, jobs: int) -> Any:
    """(case, error) as they finish."""
    if jobs <= 1:
        begin_worker()
        for case in cases:
            yield case, _guarded(case, store)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=begin_worker) as pool:
        waiting = {pool.submit(_guarded, case, store): case for case in cases}
        for future in as_completed(waiting):
            yield waiting[future], future.result()


def _guarded(case: Case, store: Store) -> str:
    """Run a case; a broken one is told and does not stop the others."""
    started = time.perf_counter()
    try:
        run_case(case, store)
    except Exception as error:
        return f"{type(error).__name__}: {error} (after {time.perf_counter() - started:.0f} s)"
    return ""
