"""The tables of the performance page and of README.md, from the files that `benchmarks/overhead.py` wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_tables
from markdown_tables import table, times

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
OURS, OLD, ITEMS, WANDB = "thermoclaw", "thermoclaw 0.1.6", "item norms", "wandb.watch, every 1"
COCKPIT, FALLBACK = "cockpit economy", "without compiler"

Row = dict[str, Any]


def read(name: str = "overhead_cpu.json") -> Row:
    """A measured file."""
    return dict(json.loads((RESULTS / name).read_text()))


def warning(measured: Row) -> list[str]:
    """A line for figures that nobody should rely on."""
    return ["", "These figures come from a quick run on a busy machine."] if measured.get("quick") else []


def percent(value: float | None) -> str:
    """A share of a step, where there is one."""
    return "–" if value is None else f"{value:.1%}"


def what(row: Row) -> str:
    """A model in words."""
    kind = {"gpt": "GPT", "mlp": "perceptron"}.get(row["model"].partition("-")[0], "stack")
    return f"{kind}, {row['num_params'] / 1e6:.1f}M in {row['num_tensors']} tensors"


def beside(rows: list[Row], row: Row, arm: str) -> Row | None:
    """The row of another arm in the same training."""
    same = ("model", "threads", "optimizer", "dtype")
    found = [r for r in rows if r["arm"] == arm and all(r[key] == row[key] for key in same) and "error" not in r]
    return found[0] if found else None


def cost(row: Row | None) -> str:
    """The median cost of an arm in clips."""
    return "–" if row is None else times(row["cost_over_clip"])


def of(rows: list[Row], arm: str = OURS) -> list[Row]:
    """The rows of an arm that have figures."""
    return [row for row in rows if row["arm"] == arm and "error" not in row]


def overhead() -> str:
    """README: this version, 0.1.6 and norms by `.item()`, GPTs alone."""
    measured = read()
    rows = [row for row in of(measured["rivals"]) if row["model"].startswith("gpt")]
    cells = [
        (
            f"{row['num_params'] / 1e6:.1f}M in {row['num_tensors']} tensors",
            str(row["threads"]),
            cost(row),
            times(row["mean_cost_over_clip"]),
            cost(beside(measured["rivals"], row, OLD)),
            percent(row["share_of_step"]),
        )
        for row in rows
    ]
    head = ("parameters", "threads", "this version", "its mean", "thermoclaw 0.1.6", "of the step")
    return "\n".join([*table(head, cells), *warning(measured)])


def rivals() -> str:
    """Every instrument side by side."""
    measured = read()
    rows = measured["rivals"]
    arms = (OURS, FALLBACK, ITEMS, OLD, WANDB, COCKPIT)
    cells = [
        (
            what(row),
            str(row["threads"]),
            *(cost(beside(rows, row, arm)) for arm in arms),
            times(row["read_ms"] / row["clip_ms"]),
        )
        for row in of(rows)
    ]
    named = ("this version", "without compiler", "`.item()` norms", "0.1.6", "`wandb.watch`", "Cockpit", "plain read")
    return "\n".join([*table(("model", "threads", *named), cells), *warning(measured)])


def versions() -> str:
    """Of the rivals, as far as they have one."""
    rows = read()["rivals"]
    found = dict.fromkeys((r["arm"], r["version"]) for r in rows if r["arm"] in {WANDB, COCKPIT} and r["version"])
    named = {WANDB: "wandb", COCKPIT: "Cockpit"}
    return ", ".join(f"{named[arm]} {version}" for arm, version in found) or "no other rival"


def not_run() -> str:
    """What could not be measured, in its own words."""
    lines = []
    for name, section in read().items():
        for row in section if isinstance(section, list) else ():
            if "error" in row:
                told = [text for text in row.get("warnings", []) if "does not have an extension" in text][-1:]
                why = "; ".join([row["error"].splitlines()[0], *told]).replace("|", "\\|").replace("<", "&lt;")
                lines.append(f"- **{row['arm']}** on `{row['model']}` ({row['optimizer']}, {name}): {why}")
    return "\n".join(lines or ["Everything ran."])


def shares() -> str:
    """Cost as a share of a training step."""
    measured = read()
    cells = []
    for row in of(measured["rivals"]):
        if row["share_of_step"] is not None:
            size = f"batch {row['batch']}" + (f" × {row['tokens']}" if row["tokens"] else "")
            step = f"{row['step_ms']:.0f} ms"
            both = percent(row["share_of_step"]), percent(row["mean_share_of_step"])
            cells.append((what(row), str(row["threads"]), size, step, *both))
    return "\n".join(table(("model", "threads", "step", "time of a step", "median", "mean"), cells))


def axis(section: str, column: str, name: str, show: Callable[[Any], str]) -> str:
    """A scaling table: clip, plain read, this version and its rivals."""
    rows = read()[section]
    cells = [
        (
            show(row[column]),
            f"{row['clip_ms']:.2f}",
            f"{row['read_ms']:.2f}",
            f"{row['cost_ms']:.2f}",
            times(row["cost_over_clip"]),
            times(row["mean_cost_over_clip"]),
            cost(beside(rows, row, ITEMS)),
            cost(beside(rows, row, OLD)),
        )
        for row in of(rows)
    ]
    head = (name, "clip, ms", "plain read, ms", "this version, ms", "median", "mean", "`.item()` norms", "0.1.6")
    return "\n".join(table(head, cells))


def by_parameters() -> str:
    """Cost against parameters."""
    return axis("parameters", "num_params", "parameters", lambda n: f"{n / 1e6:.1f}M")


def by_layers() -> str:
    """Cost against layers."""
    return axis("layers", "num_tensors", "layers", str)


def by_optimizer() -> str:
    """Cost beside each optimizer's own step."""
    rows = read()["optimizers"]
    cells = [
        (
            f"`{row['optimizer']}`",
            f"{row['optimizer_ms']:.1f}",
            f"{row['cost_ms']:.1f}",
            cost(row),
            times(row["mean_cost_over_clip"]),
            cost(beside(rows, row, OLD)),
        )
        for row in of(rows)
    ]
    return "\n".join(table(("optimizer", "its step, ms", "this version, ms", "median", "mean", "0.1.6"), cells))


def by_dtype() -> str:
    """Cost in other number formats."""
    return axis("dtypes", "dtype", "parameters and gradients", lambda name: f"`{name}`")


def cadence() -> str:
    """Mean cost when not every step is recorded, or under a budget."""
    cells = []
    for row in read()["cadence"]:
        if "error" in row:
            continue
        settings, chosen = row["settings"], row.get("chosen", {})
        name = f"`wandb.watch(log_freq={settings['log_freq']})`" if "log_freq" in settings else f"`{row['arm']}`"
        model = f"{what(row)}, {row['batch']} × {row['tokens']} tokens"
        share = percent(row["mean_share_of_step"])
        own = str(chosen["every"]) if chosen else "–"
        cells.append((name, model, str(row["steps"]), times(row["mean_cost_over_clip"]), share, own))
    return "\n".join(table(("setting", "model", "steps", "mean cost", "of the step", "N it chose"), cells))


def held() -> str:
    """Memory by model."""
    rows = read()["rivals"]
    seen = {}
    for row in of(rows):
        reads = [f"{r['host_reads_per_step']:,.0f}" if r else "–" for r in (row, beside(rows, row, OLD))]
        cells = f"{row['held_bytes'] / 1e6:.1f} MB", f"{row['held_bytes_per_param']:.3f}"
        seen.setdefault(row["model"], (what(row), *cells, *reads))
    head = ("model", "held", "bytes a parameter", "values the host reads in a step", "0.1.6 reads")
    return "\n".join(table(head, seen.values()))


def growth() -> str:
    """Growth of the process between the last two numbers of steps measured."""
    told = []
    for row in read()["memory_by_steps"]:
        if "error" not in row and len(row["points"]) > 1:
            first, last = row["points"][-2:]
            slope = (last["rss_bytes"] - first["rss_bytes"]) / (last["steps"] - first["steps"])
            told.append(f"{row['arm']}: {slope:,.0f} bytes a step from step {first['steps']:,} to {last['steps']:,}")
    return "Growth of the process: " + "; ".join(told) + "."


def machine() -> str:
    """What the benchmark ran on."""
    measured = read()
    env = measured["environment"]
    told = f"{env['processor']}, {env['cores']} cores, Python {env['python']}, PyTorch {env['torch']}, {env['date']}"
    minutes = sum(measured["seconds"].values()) / 60
    told += f", revision {env['revision']}, load {env['load_before']} before the run, which took {minutes:.0f} minutes."
    return "\n".join([told, *warning(measured)])


def bars() -> str:
    """What is asked of the library, and what was measured."""
    measured = read()
    rows = of(measured["rivals"])
    every = [*rows, *of(measured["parameters"]), *of(measured["layers"])]
    small = [r for r in every if r["num_tensors"] >= 300]
    large = [r for r in every if r["num_params"] > 9e6 and r not in small]
    whole = [r for r in rows if r["model"] == "gpt-10M" and r["share_of_step"] is not None]
    memory = [r["held_bytes_per_param"] for r in rows if r["model"] == "gpt-124M"]
    cells = []

    def add(name: str, bar: float, values: list[float], show: Callable[[Any], str]) -> None:
        if values:
            met = "yes" if max(values) <= bar else "**no**"
            cells.append((name, f"≤ {show(bar)}", show(max(values)), met))

    for which, key in (("median", "cost_over_clip"), ("mean", "mean_cost_over_clip")):
        add(
            f"every step, from 10M parameters up in fewer than 300 tensors, {which}",
            2.0,
            [r[key] for r in large],
            times,
        )
        add(f"every step, 300 tensors and more, {which}", 3.0, [r[key] for r in small], times)
    add("share of a step of the 10M GPT at batch 8 × 128, median", 0.03, [r["share_of_step"] for r in whole], percent)
    add("bytes held a parameter at 124M", 0.1, memory, lambda v: f"{v:.3f}")
    head = ("asked", "bar", "worst measured on this page", "met")
    return "\n".join(table(head, cells))


def gpu() -> str:
    """The GPU's figures, or the arithmetic that stands in for them."""
    measured = (RESULTS / "overhead_cuda.json").exists()
    return gpu_tables.measured(read("overhead_cuda.json")) if measured else gpu_tables.arithmetic()


def gpu_picture() -> str:
    """The chart of the GPU run, where there was one."""
    if not (RESULTS / "overhead_cuda.json").exists():
        return ""
    return "![Time on the GPU against parameters: this version, one clip, fused AdamW](images/overhead_cuda.png)"


PARTS: dict[str, Callable[[], str]] = {
    "overhead": overhead,
    "bars": bars,
    "rivals": rivals,
    "rival-versions": versions,
    "not-run": not_run,
    "shares": shares,
    "by-parameters": by_parameters,
    "by-layers": by_layers,
    "by-optimizer": by_optimizer,
    "by-dtype": by_dtype,
    "cadence": cadence,
    "held": held,
    "growth": growth,
    "machine": machine,
    "gpu": gpu,
    "gpu-picture": gpu_picture,
}
