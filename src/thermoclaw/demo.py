"""`thermoclaw demo`: a run is caught dying, told why, given the remedy, and compared with what it would have become."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from thermoclaw.diagnosis.report import Report, diagnose
from thermoclaw.files import atomic_file
from thermoclaw.lab.console import paint, quiet_log, table, wants_color, wrap
from thermoclaw.lab.intervention import LAPTOP, Intervention, default_seeds, loud, run_intervention
from thermoclaw.lab.progress import Progress
from thermoclaw.lab.training import Arm, Workload
from thermoclaw.version import __version__

FILES = ("report.txt", "report.json", "history.csv")


def run_demo(
    *,
    num_seeds: int = 1,
    out: str | Path = "thermoclaw-demo",
    steps: int | None = None,
    quiet: bool = False,
    no_color: bool = False,
    workload: Workload = LAPTOP,
) -> int:
    """Run the demo and print what happens.

    Args:
        num_seeds: how many times, each from another seed.
        out: folder for pictures, records and reports; made if missing, its files of the same names replaced.
        steps: optimizer steps of each arm, the workload's by default.
        quiet: print the tables and the verdict only.
        no_color: print without color even on a terminal.
        workload: what is trained.

    Returns:
        0 if every seed showed what the demo claims, 1 if not.

    Raises:
        OSError: the folder cannot be written; nothing was trained then.
    """
    folder = Path(out)
    with atomic_file(folder / "results.json", "w") as handle:  # find out now, not after the training
        handle.write("{}\n")
    workload = workload if steps is None else workload.with_steps(steps)
    color = wants_color(no_color=no_color)
    began = time.monotonic()
    if not quiet:
        print(_introduction(workload, num_seeds))
    results: list[Intervention] = []
    with quiet_log():
        for seed in default_seeds(num_seeds):
            result = _run_seed(workload, seed, quiet=quiet, color=color)
            where = folder if num_seeds == 1 else folder / f"seed-{seed}"
            report = diagnose(result.unmodified.observer)
            if not quiet:
                print(f"The report on the unmodified arm:\n\n{report}\n")
            written, missing = _write(result, report, where)
            if not quiet or num_seeds == 1:
                print(f"Where the arms ended, on text that none had seen:\n\n{_arms_table(result)}")
            for arm in result.arms:
                arm.observer.close()
            results.append(result)
            if not quiet:
                print(f"\nWritten to {where}/: {', '.join(written)}.")
                print("".join(f"Not drawn: {text}\n" for text in missing), end="")
    if num_seeds > 1:
        print(f"\n{_seeds_table(results)}")
    passed = all(not result.failures() for result in results)
    with atomic_file(folder / "results.json", "w") as handle:
        json.dump(_as_data(results, workload, time.monotonic() - began), handle, indent=2)
        handle.write("\n")
    print(f"\n{paint(wrap(verdict(results)), 'green' if passed else 'red', enabled=color)}")
    if not quiet:
        first = folder if num_seeds == 1 else folder / f"seed-{results[0].seed}"
        print(f"{time.monotonic() - began:.0f} s. Ask again at any time: thermoclaw diagnose {first}/unmodified.npz")
        print(f"As a page to look at (extra html): thermoclaw report {first}/unmodified.npz")
    return 0 if passed else 1


def _introduction(workload: Workload, num_seeds: int) -> str:
    corpus = workload.corpus()
    times = "once" if num_seeds == 1 else f"from {num_seeds} seeds"
    return wrap(
        f"Thermoclaw {__version__}: a small GPT learns English from the {len(corpus.train):,} tokens of Python's own "
        f"language reference (vocabulary {corpus.vocab_size:,}), {workload.steps} steps, {times}. One arm has SGD with "
        "momentum 0.9 and weight_decay 5.0; beside it, a healthy arm has AdamW, at the same learning rate. Both are "
        "observed with the same three lines."
    )


def _run_seed(workload: Workload, seed: int, *, quiet: bool, color: bool) -> Intervention:
    """One experiment with its bar and its live alarm."""
    with Progress(f"seed {seed}", workload.steps, enabled=not quiet) as bar:

        def on_alarm(arm: Arm, finding: Any, remedy: str) -> None:
            if quiet:
                return
            head = f"\nstep {arm.step}: alarm in the arm '{arm.name}' (seed {seed})"
            bar.print(paint(head, "yellow", enabled=color))
            bar.print(wrap(finding.recommendation, indent=2))
            then = f"Branch: a copy of the run goes on from here with the finding's remedy, {remedy}." if remedy else ""
            bar.print(wrap(then or "The finding brings no remedy, so there is no branch.", indent=2) + "\n")

        def on_step(step: int, arms: Sequence[Arm]) -> None:
            bar.update(step, note=lambda: "loss " + ", ".join(f"{arm.name} {arm.loss.item():.2f}" for arm in arms))

        return run_intervention(workload, seed=seed, on_step=on_step, on_alarm=on_alarm)


def _alarm_words(arm: Arm) -> str:
    alarms = loud(arm.observer.alarms)
    return f"{alarms[0].confidence} at step {arm.begun_at + alarms[0].raised_step}" if alarms else "none"


def _arms_table(result: Intervention) -> str:
    """The arms, their alarms and where they ended."""
    rows = []
    for arm in result.arms:
        end = result.perplexity[arm.name]
        share = end / result.vocab_size
        rows.append([arm.name, arm.settings, _alarm_words(arm), f"{end:,.0f}", f"{share:.0%}"])
    return table(["arm", "optimizer", "alarm", "perplexity", "of vocabulary"], rows)


def _seeds_table(results: Sequence[Intervention]) -> str:
    """A row per seed."""
    rows = []
    for result in results:
        ends = result.perplexity
        left, right = ends[result.unmodified.name], ends[result.remedied.name] if result.remedied else None
        rows.append(
            [
                str(result.seed),
                f"{result.alarm.raised_step}" if result.alarm else "–",
                f"{1 - result.norm_left:.0%}" if result.alarm else "–",
                f"{left:,.0f}",
                "–" if right is None else f"{right:,.0f}",
                "–" if right is None else f"{left / right:.1f}×",
                f"{ends[result.healthy.name]:,.0f}",
                "shown" if not result.failures() else "not shown",
            ]
        )
    heads = ["seed", "alarm at step", "norm lost by then", "unmodified", "remedied", "gap", "healthy AdamW", "claim"]
    return table(heads, rows)


def verdict(results: Sequence[Intervention]) -> str:
    """One sentence made of what was measured."""
    failures = [f"seed {result.seed}: {text}" for result in results for text in result.failures()]
    if failures:
        return f"The demo did not show what it claims: {'; '.join(failures)}."
    steps = sorted({result.alarm.raised_step for result in results if result.alarm})
    gaps = [
        result.perplexity[result.unmodified.name] / result.perplexity[result.remedied.name]
        for result in results
        if result.remedied
    ]
    when = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    gap = f"{gaps[0]:.1f}" if len(gaps) == 1 else f"{min(gaps):.1f} to {max(gaps):.1f}"
    times = "" if len(results) == 1 else f" In {len(results)} of {len(results)} seeds."
    return (
        f"The alarm at {when} of {results[0].unmodified.step} named the cause: left alone, the run ended knowing "
        f"nothing (perplexity = vocabulary); with the one change, at a perplexity {gap} times lower; and the healthy "
        f"run raised no alarm.{times}"
    )


def _write(result: Intervention, report: Report, folder: Path) -> tuple[list[str], list[str]]:
    """Records, report and pictures into the folder; returns what was written and why something was not."""
    record = result.unmodified.observer.record()
    written = []
    for arm in result.arms:
        written.append(arm.observer.record().save(folder / f"{arm.name.split()[0]}.npz").name)
    report.save(folder / "report.txt")
    report.save(folder / "report.json")
    record.to_csv(folder / "history.csv")
    written += FILES
    try:
        from thermoclaw.report.plots import compare, plot_dashboard, plot_entropy_split
    except ImportError as error:
        return written, [str(error)]
    plot_dashboard(record, findings=report.findings, save_path=folder / "dashboard.png")
    plot_entropy_split(record, save_path=folder / "entropy_split.png")
    shifted = []
    for arm in result.arms:  # the branch counts its own steps from 1
        own = arm.observer.record()
        shifted.append(replace(own, steps=own.steps + arm.begun_at))
    compare(shifted, labels=[arm.name for arm in result.arms], save_path=folder / "comparison.png")
    return [*written, "dashboard.png", "entropy_split.png", "comparison.png"], []


def _as_data(results: Sequence[Intervention], workload: Workload, seconds: float) -> dict[str, Any]:
    """The results for programs."""
    return {
        "passed": all(not result.failures() for result in results),
        "verdict": verdict(results),
        "steps": workload.steps,
        "vocab_size": workload.shape.vocab_size,
        "seconds": round(seconds, 1),
        "versions": {"thermoclaw": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "seeds": [
            {
                "seed": result.seed,
                "alarm": result.alarm.to_json() if result.alarm else None,
                "remedy": result.remedy,
                "norm_left_at_alarm": result.norm_left if result.alarm else None,
                "perplexity": result.perplexity,
                "failures": result.failures(),
            }
            for result in results
        ],
    }
