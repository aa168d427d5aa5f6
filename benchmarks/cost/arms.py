"""Arms: worker processes that take turns, so that all of them see the machine at the same speed."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cost.worker import ANSWER

WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Arm:
    """What a worker builds: a name for the tables, an instrument, and the training around it."""

    name: str
    instrument: str
    model: str
    python: str = sys.executable
    settings: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "adamw"
    dtype: str = "float32"
    threads: int = 2
    batch: int = 8
    tokens: int = 128
    environment: dict[str, str] = field(default_factory=dict)


class ArmFailed(RuntimeError):
    """A worker could not do what it was told; `told` is its answer."""

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__(told["error"])
        self.told = told


class Process:
    """A running worker."""

    def __init__(self, arm: Arm) -> None:
        self.arm = arm
        # each environment finds its own package, whatever the path of this one says
        own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" or arm.python == sys.executable}
        own |= arm.environment
        command = [arm.python, str(WORKER), json.dumps(asdict(arm))]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, bufsize=1, env=own
        )
        self.rows: list[dict[str, float]] = []
        self.about: dict[str, Any] = {}

    def start(self) -> None:
        """Wait until the worker has built everything.

        Raises:
            ArmFailed: it could not.
        """
        self.about = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(ANSWER):  # anything else is the package's own chatter
                answer = dict(json.loads(line.removeprefix(ANSWER)))
                if "error" in answer:
                    raise ArmFailed(answer)
                return answer
        raise ArmFailed({"error": f"the worker ended early (exit code {self._process.wait()})", "warnings": []})

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Raises:
            ArmFailed: the worker could not do it.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; its last answer says why
        return self._answer()

    def close(self) -> None:
        """End the worker."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def take_turns(arms: list[Arm], *, rounds: int, warmup: int, block: int = 1) -> list[dict[str, Any]]:
    """Let the arms take `block` steps each in turn, `rounds` times after the warm-up; one summary for each arm.

    An arm that fails leaves the others to go on; its summary has the error instead of figures.
    """
    started = [Process(arm) for arm in arms]
    failed: dict[str, dict[str, Any]] = {}

    def attempt(process: Process, do: str, **arguments: Any) -> dict[str, Any]:
        if process.arm.name in failed:
            return {}
        try:
            if do == "start":
                process.start()
                return {}
            return process.ask(do, **arguments)
        except ArmFailed as error:
            failed[process.arm.name] = error.told
            return {}

    try:
        for process in started:
            attempt(process, "start")
        for number in range(warmup + rounds):
            first = number % len(started)
            for process in started[first:] + started[:first]:
                rows = attempt(process, "steps", count=block).get("rows", [])
                if number >= warmup:
                    process.rows += rows
            label = f"{arms[0].model} {arms[0].optimizer} {arms[0].dtype}, {arms[0].threads} threads"
            print(f"\r{label}: {number + 1}/{warmup + rounds}  ", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        states = {process.arm.name: attempt(process, "state") for process in started}
        plain = next((p for p in started if p.arm.instrument == "plain"), None)
        return [
            {**_heading(process), **failed[process.arm.name]}
            if process.arm.name in failed
            else _summary(process, plain, states)
            for process in started
        ]
    finally:
        for process in started:
            process.close()


def _heading(process: Process) -> dict[str, Any]:
    arm = process.arm
    has_tokens = arm.model.startswith("gpt")
    return {
        "arm": arm.name,
        "version": process.about.get("version", ""),
        "model": arm.model,
        "num_params": process.about.get("num_params"),
        "num_tensors": process.about.get("num_tensors"),
        "optimizer": arm.optimizer,
        "dtype": arm.dtype,
        "threads": arm.threads,
        "batch": None if arm.model.startswith("stack") else arm.batch,
        "tokens": arm.tokens if has_tokens else None,
        "settings": arm.settings,
    }


def _is_whole_step(arm: Arm) -> bool:
    """Whether a share of the step says something: there are passes, over more than a few tokens."""
    return not arm.model.startswith("stack") and (not arm.model.startswith("gpt") or arm.batch * arm.tokens >= 256)


def _summary(process: Process, plain: Process | None, states: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Medians, means and ratios of an arm's steps; times in milliseconds, memory beyond the plain arm's."""
    rows, about, state = process.rows, process.about, states[process.arm.name]
    column = {name: [row[name] for row in rows] for name in rows[0]}
    median = {name: statistics.median(values) for name, values in column.items()}
    cost = column["instrument_s"]
    if about["cost_is"] == "difference":
        beside = [row["total_s"] for row in plain.rows] if plain is not None else [math.nan]
        cost = [mine - other for mine, other in zip(column["total_s"], beside, strict=False)]
        step_s, mean_step_s = statistics.median(beside), statistics.fmean(beside)
    else:
        step_s = median["forward_backward_s"] + median["optimizer_s"]
        mean_step_s = statistics.fmean(column["forward_backward_s"]) + statistics.fmean(column["optimizer_s"])
    cost_s, mean_cost_s = statistics.median(cost), statistics.fmean(cost)
    ratios = [c / clip for c, clip in zip(cost, column["clip_s"], strict=True)]
    base = states.get(plain.arm.name, {}) if plain is not None and plain is not process else {}
    return {
        **_heading(process),
        "chosen": state["chosen"],
        "steps": len(rows),
        "cost_is": about["cost_is"],
        "read_by": about["read_by"],
        "clip_ms": 1e3 * median["clip_s"],
        "read_ms": 1e3 * median["read_s"],
        "read_gb_per_s": about["read_bytes"] / median["read_s"] / 1e9,
        "optimizer_ms": 1e3 * median["optimizer_s"],
        "step_ms": 1e3 * step_s,
        "cost_ms": 1e3 * cost_s,
        "mean_cost_ms": 1e3 * mean_cost_s,
        "cost_over_clip": cost_s / median["clip_s"],
        "cost_over_clip_quartiles": statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3,
        "mean_cost_over_clip": mean_cost_s / statistics.fmean(column["clip_s"]),
        "cost_over_read": cost_s / median["read_s"],
        "share_of_step": cost_s / step_s if _is_whole_step(process.arm) else None,
        "mean_share_of_step": mean_cost_s / mean_step_s if _is_whole_step(process.arm) else None,
        "held_bytes": state["held_bytes"],
        "held_bytes_per_param": state["held_bytes"] / about["num_params"] if state["held_bytes"] else None,
        "rss_beyond_plain_bytes": state["rss_bytes"] - base["rss_bytes"] if base else None,
        "host_reads_per_step": state["reads"] - base["reads"] if base else None,
    }


def memory_by_steps(arm: Arm, counts: list[int]) -> dict[str, Any]:
    """What an arm holds after each number of steps."""
    process = Process(arm)
    try:
        process.start()
        return {**_heading(process), **process.ask("curve", counts=counts)}
    except ArmFailed as error:
        return {**_heading(process), **error.told}
    finally:
        process.close()
