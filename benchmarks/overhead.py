"""What watching costs: Thermoclaw and the published package against one `clip_grad_norm_`, paired step by step.

    python benchmarks/overhead.py                                    # Thermoclaw alone
    python benchmarks/overhead.py --rival path/to/other/bin/python   # beside thermoclaw 0.1.6 in its own environment

Each arm is a process of its own; the two take turns, one step each, so both see the machine at the same speed. A step
is forward and backward (or fixed gradients, where a size would take minutes a step), one `clip_grad_norm_` that is
timed and changes nothing, the optimizer's step, and everything the instrument does around it: hooks, observer, entropy
split and collapse detector, every step. Costs are quoted as ratios of medians to the clip in the same process.

Writes JSON with the environment, and a chart of it with --plot.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

GROWTH_SIZE, GROWTH_FILL, GROWTH_STEPS = "1M", 4300, 1500

# name: (layers, width, heads, context, vocabulary, batch, real forward and backward)
SIZES = {
    "1M": (4, 128, 4, 128, 1024, 8, True),
    "10M": (6, 352, 8, 128, 2048, 8, True),
    "124M": (12, 768, 12, 128, 50257, 8, False),
    "many-small": (64, 48, 4, 64, 256, 8, True),
}


# -- the worker: runs in either environment ---------------------------------------------------------------------------


class Stopwatch:
    """Adds up the time spent in wrapped callables."""

    def __init__(self) -> None:
        self.total = 0.0

    def wrap(self, call: Any) -> Any:
        """The same callable, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.total += time.perf_counter() - start

        return timed

    def lap(self) -> float:
        """Time since the last lap."""
        total, self.total = self.total, 0.0
        return total


def build_model(size: str) -> Any:
    """A GPT of plain torch modules, so that both environments run the very same model."""
    import torch
    from torch import nn

    depth, width, heads, context, vocab, _, _ = SIZES[size]

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attn_qkv, self.attn_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.mlp_up, self.mlp_down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            b, t, _ = x.shape
            q, k, v = self.attn_qkv(self.ln_1(x)).view(b, t, 3, heads, -1).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.attn_proj(mixed.transpose(1, 2).reshape(b, t, width))
            return x + self.mlp_down(nn.functional.gelu(self.mlp_up(self.ln_2(x))))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.wpe = nn.Embedding(vocab, width), nn.Embedding(context, width)
            self.blocks = nn.ModuleList(Block() for _ in range(depth))
            self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, vocab, bias=False)
            self.lm_head.weight = self.wte.weight

        def forward(self, tokens: Any) -> Any:
            x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
            for block in self.blocks:
                x = block(x)
            return self.lm_head(self.ln_f(x))

    torch.manual_seed(0)
    return GPT()


def instrument(model: Any, optimizer: Any) -> tuple[Any, Any]:
    """(call after each step, a function that tells bytes held) for whichever package this environment has."""
    import thermoclaw

    observer = thermoclaw.Observer(model, optimizer)
    splitter = thermoclaw.EntropySplit(model, optimizer, observer)
    detector = thermoclaw.CollapseDetector(model, optimizer)

    def after(loss: Any) -> None:
        observer.step(loss=loss)
        splitter.step()
        detector.step()

    def held() -> int | None:
        attachment = getattr(observer, "_attachment", None)
        return sum(attachment.meter.num_bytes().values()) if attachment is not None else None

    return (observer, after), held


def thermoclaw_version() -> str:
    """The version of the package that this environment has."""
    from importlib.metadata import version

    return version("thermoclaw")


class ReadCounter:
    """Counts, while it is on, the values that the host asks tensors for (`.item()` and its like) in wrapped calls."""

    def __init__(self) -> None:
        self.on = False
        self.reads = 0

    def wrap(self, call: Any) -> Any:
        """The same callable, counted."""
        from torch.utils._python_dispatch import TorchDispatchMode

        outer = self

        class Mode(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                outer.reads += "_local_scalar_dense" in str(func)
                return func(*args, **(kwargs or {}))

        def counted(*args: Any, **kwargs: Any) -> Any:
            if not self.on:
                return call(*args, **kwargs)
            with Mode():
                return call(*args, **kwargs)

        return counted


def worker(size: str, threads: int) -> None:
    """Take one step for each line on standard input and answer with its times as JSON."""
    import torch

    torch.set_num_threads(threads)
    _depth, _width, _heads, context, vocab, batch, real = SIZES[size]
    model = build_model(size)
    params = list(model.parameters())
    optimizer = torch.optim.AdamW(params, lr=1e-4)
    generator = torch.Generator().manual_seed(1)
    (observer, after), held = instrument(model, optimizer)
    watch, counter = Stopwatch(), ReadCounter()
    attachment = getattr(observer, "_attachment", None)
    if attachment is not None:  # the hooks run inside optimizer.step(): time them apart from it
        attachment.before_step = watch.wrap(counter.wrap(attachment.before_step))
        attachment.after_step = watch.wrap(counter.wrap(attachment.after_step))
    after = counter.wrap(after)
    if not real:
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator) * 1e-3

    def one() -> dict[str, float]:
        start = time.perf_counter()
        loss: Any = torch.zeros(())
        if real:
            tokens = torch.randint(0, vocab, (batch, context), generator=generator)
            loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
            loss.backward()
        passed = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(params, 1e9)
        clipped = time.perf_counter()
        optimizer.step()
        stepped = time.perf_counter()
        hooks = watch.lap()
        after(loss if attachment is not None else loss.item())  # 0.1.6 takes a number
        done = time.perf_counter()
        if real:
            optimizer.zero_grad()
        return {
            "forward_backward_s": passed - start,
            "clip_s": clipped - passed,
            "optimizer_s": stepped - clipped - hooks,
            "instrument_s": hooks + done - stepped,
            "held_bytes": float(held() or 0),
        }

    num_params = sum(p.numel() for p in params)
    print(
        json.dumps(
            {
                "num_params": num_params,
                "num_tensors": len(params),
                "version": thermoclaw_version(),
            }
        ),
        flush=True,
    )
    for line in sys.stdin:
        if line.strip() == "reads":
            counter.on, counter.reads = True, 0
            one()
            reply: dict[str, float] = {"reads": float(counter.reads)}
            counter.on = False
        elif line.strip() == "growth":
            reply = {"growth_bytes_per_step": grow(params, optimizer, after)}
        elif line.strip() == "step":
            reply = one()
        else:
            break
        print(json.dumps(reply), flush=True)


def grow(params: Any, optimizer: Any, after: Any) -> float:
    """Bytes that the process gains a step once every buffer is full: fixed gradients, thousands of steps."""
    import torch

    for p in params:
        p.grad = torch.zeros_like(p)
    for count in (GROWTH_FILL, GROWTH_STEPS):
        start = _rss()
        for _ in range(count):
            optimizer.step()
            after(0.0)
    return (_rss() - start) / GROWTH_STEPS


def _rss() -> int:
    """Resident bytes now, where the system tells."""
    try:
        fields = Path("/proc/self/statm").read_text().split()
    except OSError:
        return 0
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


# -- the run ----------------------------------------------------------------------------------------------------------


class Arm:
    """A worker process in some environment."""

    def __init__(self, name: str, python: str, size: str, threads: int) -> None:
        self.name = name
        command = [python, str(Path(__file__).resolve()), "--worker", size, "--threads", str(threads)]
        # each environment finds its own package, whatever the path of this one says
        own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" or python == sys.executable}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=own, cwd=HERE
        )
        self.about = self._answer()
        self.rows: list[dict[str, float]] = []

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while True:
            line = self._process.stdout.readline()
            if not line:
                raise RuntimeError(f"the {self.name} worker ended early (exit code {self._process.wait()})")
            if line.startswith("{"):  # anything else is the package's own chatter
                return dict(json.loads(line))

    def ask(self, what: str) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the worker."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(size: str, *, threads: int, steps: int, warmup: int, rival: str | None) -> list[dict[str, Any]]:
    """Run the arms of one size in turns and sum them up."""
    arms = [Arm("thermoclaw", sys.executable, size, threads)]
    if rival:
        arms.append(Arm("thermoclaw 0.1.6", rival, size, threads))
    try:
        for number in range(warmup + steps):
            for arm in arms:
                row = arm.ask("step")
                if number >= warmup:
                    arm.rows.append(row)
            print(
                f"\r{size}, {threads} threads: step {number + 1}/{warmup + steps}", end="", file=sys.stderr, flush=True
            )
        print(file=sys.stderr)
        return [_summary(arm, size, threads) for arm in arms]
    finally:
        for arm in arms:
            arm.close()


def _summary(arm: Arm, size: str, threads: int) -> dict[str, Any]:
    def column(name: str) -> list[float]:
        return [row[name] for row in arm.rows]

    median = {name: statistics.median(column(name)) for name in arm.rows[0]}
    step_s = median["forward_backward_s"] + median["optimizer_s"]
    ratios = [row["instrument_s"] / row["clip_s"] for row in arm.rows]
    num_params = arm.about["num_params"]
    return {
        "arm": arm.name,
        "version": arm.about["version"],
        "size": size,
        "threads": threads,
        "steps": len(arm.rows),
        "num_params": num_params,
        "num_tensors": arm.about["num_tensors"],
        "clip_ms": 1e3 * median["clip_s"],
        "instrument_ms": 1e3 * median["instrument_s"],
        "instrument_over_clip": median["instrument_s"] / median["clip_s"],
        "instrument_over_clip_quartiles": statistics.quantiles(ratios, n=4),
        "mean_over_clip": statistics.fmean(column("instrument_s")) / statistics.fmean(column("clip_s")),
        "step_ms": 1e3 * step_s,
        "share_of_step": median["instrument_s"] / step_s if SIZES[size][6] else None,
        "held_bytes_per_param": median["held_bytes"] / num_params if median["held_bytes"] else None,
        "host_reads_per_step": arm.ask("reads")["reads"],
    }


def measure_growth(rival: str | None) -> list[dict[str, Any]]:
    """Growth of the process a step, by arm, one after the other."""
    rows = []
    for name, python in (("thermoclaw", sys.executable), ("thermoclaw 0.1.6", rival)):
        if python:
            arm = Arm(name, python, GROWTH_SIZE, 1)
            row = {"arm": name, "version": arm.about["version"], "size": GROWTH_SIZE, "steps": GROWTH_STEPS}
            rows.append({**row, **arm.ask("growth")})
            arm.close()
    return rows


def environment() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    import thermoclaw

    model = ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "thermoclaw": thermoclaw.__version__,
        "processor": model,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "date": time.strftime("%Y-%m-%d"),
    }


def plot(results: dict[str, Any], path: Path) -> None:
    """Bars of cost over one clip, by size and arm, on a logarithmic axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = results["results"]
    labels = [
        f"{size}\n{threads} thread{'s' if threads > 1 else ''}"
        for size, threads in dict.fromkeys((r["size"], r["threads"]) for r in rows)
    ]
    keys = list(dict.fromkeys((r["size"], r["threads"]) for r in rows))
    arms = list(dict.fromkeys(r["arm"] for r in rows))
    figure = Figure(figsize=(7.2, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    colors = {"thermoclaw": "#0072B2", "thermoclaw 0.1.6": "#D55E00"}
    width = 0.8 / len(arms)
    for place, arm in enumerate(arms):
        have = {(r["size"], r["threads"]): r["instrument_over_clip"] for r in rows if r["arm"] == arm}
        x = [i + (place - (len(arms) - 1) / 2) * width for i, key in enumerate(keys) if key in have]
        y = [have[key] for key in keys if key in have]
        name = "this version" if arm == "thermoclaw" else arm
        bars = axis.bar(x, y, width * 0.92, color=colors[arm], label=name)
        axis.bar_label(bars, labels=[f"{v:.1f}" for v in y], fontsize=8, padding=2)
    axis.axhline(1, color="black", lw=0.9, ls="--", label="one clip_grad_norm_")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylim(0.5, max(r["instrument_over_clip"] for r in rows) * 2)
    axis.set_xticks(range(len(keys)), labels)
    axis.set_ylabel("cost of a step's measurement\n(multiples of one gradient clip)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="upper left", fontsize=9)
    figure.savefig(path)


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", choices=SIZES, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["1M", "10M", "124M", "many-small"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--rival", help="python of an environment with thermoclaw 0.1.6 and torch")
    parser.add_argument("--growth-only", action="store_true", help="measure the growth and put it into --out")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "overhead_cpu.json")
    parser.add_argument("--plot", type=Path, help="also draw the chart here")
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.threads[0])
        return 0
    if args.growth_only:
        document = json.loads(args.out.read_text())
        document["growth"] = measure_growth(args.rival)
        args.out.write_text(json.dumps(document, indent=2) + "\n")
        if args.plot:
            plot(document, args.plot)
        return 0
    results = []
    growth = measure_growth(args.rival)
    for row in growth:
        print(f"{row['arm']:<18} grows by {row['growth_bytes_per_step']:,.0f} bytes a step")
    for threads in args.threads:
        for size in args.sizes:
            steps = args.steps if size != "124M" else max(args.steps // 2, 8)
            results += measure(size, threads=threads, steps=steps, warmup=args.warmup, rival=args.rival)
            for row in results[-2 if args.rival else -1 :]:
                share = "" if row["share_of_step"] is None else f", {row['share_of_step']:.1%} of the step"
                print(f"{row['size']:>10} {row['arm']:<18} {row['instrument_over_clip']:6.2f} × clip{share}")
    document = {"environment": environment(), "results": results, "growth": growth}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(document, indent=2) + "\n")
    if args.plot:
        plot(document, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
