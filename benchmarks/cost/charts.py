"""The charts of the measured files, in the library's own style and in colors that everybody can tell apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from thermoclaw.report.style import DPI, INK, SOFT, Figure, FixedLocator, FuncFormatter, NullLocator, house_style

# arm: what the legend calls it, color, marker
ARMS = {
    "thermoclaw": ("this version", "#0072B2", "o"),
    "without compiler": ("this version, no compiler", "#56B4E9", "P"),
    "item norms": (".item() norms", "#009E73", "^"),
    "cockpit economy": ("Cockpit, economy", "#E69F00", "v"),
    "wandb.watch, every 1": ("wandb.watch, every step", "#CC79A7", "D"),
    "thermoclaw 0.1.6": ("thermoclaw 0.1.6", "#D55E00", "s"),
}
MODELS = {
    "gpt-1M": "GPT, 1M",
    "gpt-10M": "GPT, 10M",
    "gpt-124M": "GPT, 124M",
    "gpt-many-small": "GPT, many small tensors",
    "mlp-1M": "perceptron, 1M",
    "mlp-10M": "perceptron, 10M",
}
Rows = list[dict[str, Any]]


def short(value: float, _: Any = None) -> str:
    """A number as axes show it: 1k, 10M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def new_axes(width_in: float = 6.4, height_in: float = 3.9) -> tuple[Any, Any]:
    """A figure with one pair of axes."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    axes = figure.subplots()
    axes.tick_params(labelsize=10, labelcolor=SOFT, color="#888888")
    return figure, axes


def ticks(low: float, high: float) -> list[float]:
    """Powers of ten from one value to another, with twos and fives between where there are few."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    found = [10.0**power for power in powers if low <= 10.0**power <= high]
    if len(found) < 3:
        found = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    return [value for value in found if low <= value <= high]


def logarithmic(axes: Any, *, x: bool = True, y: bool = True) -> None:
    """Logarithmic axes with plain numbers; called when everything is drawn."""
    for wanted, side, scale in ((x, axes.xaxis, axes.set_xscale), (y, axes.yaxis, axes.set_yscale)):
        if wanted:
            scale("log")
            side.set_major_locator(FixedLocator(ticks(*sorted(side.get_view_interval()))))
            side.set_major_formatter(FuncFormatter(short))
            side.set_minor_locator(NullLocator())


def label(axes: Any, x: str, y: str) -> None:
    """Names of the axes, with their units."""
    axes.set_xlabel(x, fontsize=11)
    axes.set_ylabel(y, fontsize=11)


def measured(rows: Rows, arm: str) -> Rows:
    """The rows of an arm that has figures."""
    return [row for row in rows if row["arm"] == arm and "error" not in row]


def draw_rivals(results: dict[str, Any]) -> Any:
    """One line for each model, one mark for each instrument."""
    rows = [
        row for row in results["rivals"] if row["threads"] > 1 or len({r["threads"] for r in results["rivals"]}) < 2
    ]
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = new_axes(7.2, 0.52 * len(models) + 1.5)
    for arm, (name, color, marker) in ARMS.items():
        found = measured(rows, arm)
        x, y = [row["cost_over_clip"] for row in found], [models.index(row["model"]) for row in found]
        axes.plot(x, y, ls="", marker=marker, ms=9, color=color, mec="white", mew=0.8, label=name, clip_on=False)
    for row in measured(rows, "thermoclaw"):
        axes.annotate(
            f"{row['cost_over_clip']:.1f}",
            (row["cost_over_clip"], models.index(row["model"])),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=INK,
            bbox={"fc": "white", "ec": "none", "pad": 0.6},
        )
    axes.axvline(1, color="black", lw=1.1, ls="--")
    axes.set_yticks(range(len(models)), [MODELS.get(model, model) for model in models], fontsize=10.5, color=INK)
    axes.set_ylim(len(models) - 0.5, -0.7)
    logarithmic(axes, y=False)
    label(axes, "cost of measuring one step, in gradient clips (dashed: one clip)", "")
    figure.legend(loc="outside upper center", ncols=3, fontsize=10)
    return figure


def draw_times(rows: Rows, column: str, x_label: str) -> Any:
    """Milliseconds of measuring one step against the size of the model, beside the clip and the plain read."""
    figure, axes = new_axes()
    for arm, (name, color, marker) in ARMS.items():
        found = measured(rows, arm)
        if found:
            x, y = [row[column] for row in found], [row["cost_ms"] for row in found]
            axes.plot(x, y, color=color, marker=marker, ms=6.5, lw=1.8, label=name)
    found = measured(rows, "thermoclaw")
    x = [row[column] for row in found]
    axes.plot(x, [row["clip_ms"] for row in found], color="black", ls="--", lw=1.4, label="one clip_grad_norm_")
    axes.plot(x, [row["read_ms"] for row in found], color="#777777", ls=":", lw=1.8, label="plain read of memory")
    logarithmic(axes)
    label(axes, x_label, "measuring one step (ms)")
    figure.legend(loc="outside upper center", ncols=2, fontsize=10)
    return figure


def draw_memory(rows: Rows, column: str, x_label: str) -> Any:
    """Megabytes against the size of the model: what this version holds, and what each arm's process gained."""
    figure, axes = new_axes()
    found = measured(rows, "thermoclaw")
    x = [row[column] for row in found]
    axes.plot(
        x, [row["held_bytes"] / 1e6 for row in found], color="#0072B2", marker="o", lw=1.8, label="this version holds"
    )
    for arm in ("thermoclaw", "thermoclaw 0.1.6"):
        name, color, marker = ARMS[arm]
        gained = [row for row in measured(rows, arm) if row["rss_beyond_plain_bytes"] is not None]
        if gained:
            x, y = [row[column] for row in gained], [max(row["rss_beyond_plain_bytes"] / 1e6, 0.1) for row in gained]
            axes.plot(x, y, color=color, marker=marker, mfc="white", lw=1.4, ls="--", label=f"process with {name}")
    axes.plot(
        [row[column] for row in found],
        [row["num_params"] * 4 / 1e6 for row in found],
        color="#777777",
        ls=":",
        lw=1.8,
        label="the parameters themselves",
    )
    logarithmic(axes)
    label(axes, x_label, "memory (MB)")
    figure.legend(loc="outside upper center", ncols=2, fontsize=10)
    return figure


def draw_growth(rows: Rows) -> Any:
    """What each process gained since its tenth step."""
    figure, axes = new_axes()
    for arm in ("thermoclaw", "thermoclaw 0.1.6"):
        for row in measured(rows, arm):
            name, color, marker = ARMS[arm]
            x = [point["steps"] for point in row["points"]]
            y = [point["rss_bytes"] / 1e6 for point in row["points"]]
            axes.plot(x, y, color=color, marker=marker, ms=6.5, lw=1.8, label=name)
    logarithmic(axes, y=False)
    label(axes, "steps of a model of 12 layers", "growth of the process (MB)")
    figure.legend(loc="outside upper center", ncols=2, fontsize=10)
    return figure


def draw_cadence(results: dict[str, Any]) -> Any:
    """The mean cost of a step when only every Nth is recorded."""
    figure, axes = new_axes()
    found = [row for row in results["cadence"] if "every" in row["settings"] and "error" not in row]
    x = [row["settings"]["every"] for row in found]
    axes.plot(
        x, [row["mean_cost_over_clip"] for row in found], color="#0072B2", marker="o", lw=1.8, label="this version"
    )
    if found:
        first = found[0]["mean_cost_over_clip"]
        expected = [first * min(4 / n, 1) for n in x]
        axes.plot(x, expected, color="#777777", ls=":", lw=1.8, label="arithmetic: 4 of N steps measured")
    for row in results["cadence"]:
        if "log_freq" in row["settings"] and "error" not in row:
            n = row["settings"]["log_freq"]
            axes.plot(
                n,
                row["mean_cost_over_clip"],
                ls="",
                marker="D",
                ms=7,
                color="#CC79A7",
                label="wandb.watch, its default",
            )
    logarithmic(axes)
    label(axes, "record every N steps", "mean cost of a step (gradient clips)")
    figure.legend(loc="outside upper center", ncols=2, fontsize=10)
    return figure


def draw_device(results: dict[str, Any]) -> Any:
    """Milliseconds on the GPU against the number of parameters, with clip and optimizer, and the copy as the limit."""
    figure, axes = new_axes()
    rows = [row for row in results["stacks"] if "error" not in row and row["num_tensors"] in {50, 4}]
    x = [row["num_params"] for row in rows]
    for key, name, color, marker in (
        ("cost_ms", "this version", "#0072B2", "o"),
        ("clip_ms", "one clip_grad_norm_", "#000000", "s"),
        ("optimizer_ms", "fused AdamW", "#E69F00", "^"),
    ):
        axes.plot(x, [row[key] for row in rows], color=color, marker=marker, ms=6.5, lw=1.8, label=name)
    speed = results["bandwidth"]["copy_gb_per_s"]
    limit = [8 * n / speed / 1e6 for n in x]
    axes.plot(x, limit, color="#777777", ls=":", lw=1.8, label="arithmetic: 8 bytes each, at copy speed")
    logarithmic(axes)
    label(axes, "parameters, in 50 layers", "time on the GPU (ms)")
    figure.legend(loc="outside upper center", ncols=2, fontsize=10)
    return figure


CHARTS: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {  # file: section it needs, how it is drawn
    "overhead.png": ("rivals", draw_rivals),
    "overhead_parameters.png": (
        "parameters",
        lambda r: draw_times(r["parameters"], "num_params", "parameters, in 48 layers"),
    ),
    "overhead_layers.png": (
        "layers",
        lambda r: draw_times(r["layers"], "num_tensors", "layers, of 10M parameters in all"),
    ),
    "overhead_memory_parameters.png": (
        "parameters",
        lambda r: draw_memory(r["parameters"], "num_params", "parameters, in 48 layers"),
    ),
    "overhead_memory_layers.png": (
        "layers",
        lambda r: draw_memory(r["layers"], "num_tensors", "layers, of 10M parameters in all"),
    ),
    "overhead_memory_steps.png": ("memory_by_steps", lambda r: draw_growth(r["memory_by_steps"])),
    "overhead_cadence.png": ("cadence", draw_cadence),
    "overhead_cuda.png": ("stacks", draw_device),
}


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draw every chart that the results have figures for."""
    paths = []
    for name, (section, make) in CHARTS.items():
        if results.get(section):
            with house_style():
                figure = make(results)
                figure.savefig(folder / name, dpi=DPI)
            paths.append(folder / name)
    return paths
