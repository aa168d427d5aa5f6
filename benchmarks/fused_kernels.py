"""What the fused kernels cost on a GPU, stage by stage, against what reading the same bytes must cost.

    python benchmarks/fused_kernels.py                   # on a CUDA device: 124M, 410M and 1.3B parameters
    python benchmarks/fused_kernels.py --device cpu      # a dry run of tiny shapes in Triton's interpreter

The floor is the time to read gradients and parameters once at the bandwidth of a large device-to-device copy, measured
in the same run. Stages are captured in CUDA graphs and their replays timed with events, so that launch gaps stay out;
the whole hooks are timed both so and as they run in training, with the host's own time beside it. One gradient clip and
one step of fused AdamW on the same tensors give the scale.

Writes JSON with the environment.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

# name: (layers, width, context, vocabulary); all tie the head to the embedding
MODELS = {
    "124M": (12, 768, 1024, 50257),
    "410M": (24, 1024, 2048, 50304),
    "1.3B": (24, 2048, 2048, 50304),
    "tiny": (1, 24, 16, 40),
    "many small": (1000, 24, 16, 40),
}


def shapes_of(name: str) -> list[list[tuple[int, ...]]]:
    """The parameters of each layer of a GPT."""
    depth, width, context, vocabulary = MODELS[name]
    norm = [(width,), (width,)]
    block = [
        norm,
        [(3 * width, width), (3 * width,)],
        [(width, width), (width,)],
        norm,
        [(4 * width, width), (4 * width,)],
        [(width, 4 * width), (width,)],
    ]
    return [[(vocabulary, width)], [(context, width)], *(layer for _ in range(depth) for layer in block), norm]


class Timer:
    """Median seconds of a piece of work."""

    def __init__(self, device: Any, repeats: int) -> None:
        self._device, self._repeats = device, repeats

    def _median(self, work: Callable[[], Any]) -> float:
        import torch

        for _ in range(3 if self._device.type == "cuda" else 1):
            work()
        if self._device.type != "cuda":
            times = []
            for _ in range(self._repeats):
                start = time.perf_counter()
                work()
                times.append(time.perf_counter() - start)
            return statistics.median(times)
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(self._repeats)]
        for first, last in marks:
            first.record()
            work()
            last.record()
        torch.cuda.synchronize()
        return statistics.median(1e-3 * first.elapsed_time(last) for first, last in marks)

    def eager(self, work: Callable[[], Any]) -> float:
        """As it runs in training: on the device, gaps between launches included."""
        return self._median(work)

    def replayed(self, work: Callable[[], Any]) -> float:
        """On the device, from a captured graph."""
        import torch

        if self._device.type != "cuda":
            return self._median(work)
        work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return self._median(graph.replay)

    def host(self, work: Callable[[], Any]) -> float:
        """Of the host's own time."""
        import torch

        times = []
        for _ in range(self._repeats):
            if self._device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return statistics.median(times)


def copy_bandwidth(device: Any, timer: Timer) -> float:
    """Bytes a second, read and written, of a device-to-device copy far larger than the cache."""
    import torch

    count = (1 << 30) if device.type == "cuda" else (1 << 20)
    source = torch.randn(count // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / timer.eager(lambda: target.copy_(source))


def measure(name: str, dtype_name: str, *, size: int, device: Any, timer: Timer, bandwidth: float) -> dict[str, Any]:
    """One model: times in seconds by stage, and shares of the floor."""
    import torch

    from thermoclaw.layers import Unit
    from thermoclaw.measure.columns import RAW_COLUMNS
    from thermoclaw.measure.fused import FusedBackend
    from thermoclaw.measure.sketched import SketchBackend

    dtype = getattr(torch, dtype_name)
    layers = [[torch.nn.Parameter(torch.randn(s, device=device, dtype=dtype)) for s in row] for row in shapes_of(name)]
    params = [p for row in layers for p in row]
    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    units = [Unit(u, 0, device, tuple(row)) for u, row in enumerate(layers)]
    num_params = sum(p.numel() for p in params)
    num_bytes = num_params * params[0].element_size()
    floor = num_bytes / bandwidth

    with torch.no_grad():
        backend = FusedBackend(units, size=size)
        out = torch.zeros(len(units), len(RAW_COLUMNS), dtype=torch.float64, device=device)
        one, zero = backend._one, backend._zero

        def before() -> None:
            backend.read_gradients()

        def after() -> None:
            backend.read_parameters(out, lrs={})

        before()
        after()
        seconds = {
            "sketch_pieces": timer.replayed(lambda: backend._sketch(backend._gradients.values)),
            "add_up": timer.replayed(lambda: backend._add_up(0, one)),
            "make_row": timer.replayed(lambda: backend._make_row(out, zero)),
            "both_hooks": timer.eager(lambda: (before(), after())),
            "both_hooks_replayed": timer.replayed(lambda: (before(), after())),
        }
        host = {"before_step": timer.host(before), "after_step": timer.host(after)}
        row = {
            "model": name,
            "dtype": dtype_name,
            "num_params": num_params,
            "num_tensors": len(params),
            "num_units": len(units),
            "num_programs": sum(len(programs) for _, programs, _ in backend._launches),
            "held_bytes_per_param": backend.num_bytes() / num_params,
            "floor_s": 2 * floor,
            "seconds": seconds,
            "host_seconds": host,
            "read_bandwidth": num_bytes / seconds["sketch_pieces"],
            "share_of_copy_bandwidth": floor / seconds["sketch_pieces"],
            "hooks_over_floor": seconds["both_hooks_replayed"] / (2 * floor),
        }
        row["seconds"]["clip"] = timer.eager(lambda: torch.nn.utils.clip_grad_norm_(params, 1e9))
        if name != "many small" and device.type == "cuda":
            reference = SketchBackend(units, size=size)
            row["seconds"]["torch_operations"] = timer.eager(
                lambda: (reference.read_gradients(), reference.read_parameters(out, lrs={}))
            )
            del reference
    if device.type == "cuda":
        optimizer = torch.optim.AdamW(params, lr=1e-4, fused=True)
        row["seconds"]["adamw_fused"] = timer.eager(optimizer.step)
    return row


def environment(device: Any) -> dict[str, Any]:
    """What the figures were measured on."""
    import torch
    import triton

    import thermoclaw

    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "thermoclaw": thermoclaw.__version__,
        "device": "interpreter",
        "date": time.strftime("%Y-%m-%d"),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["device"] = properties.name
        found["multiprocessors"] = properties.multi_processor_count
        found["cuda"] = torch.version.cuda
    return found


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["124M", "410M", "1.3B", "many small"])
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--sketch-size", type=int, default=1021)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "fused_kernels.json")
    args = parser.parse_args()
    if args.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
        args.models, args.repeats = ["tiny"], 1
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here; --device cpu makes a dry run", file=sys.stderr)
        return 1
    device = torch.device(args.device, torch.cuda.current_device()) if args.device == "cuda" else torch.device("cpu")
    timer = Timer(device, args.repeats)
    bandwidth = copy_bandwidth(device, timer)
    print(f"a copy moves {bandwidth / 1e12:.2f} TB/s")
    results = []
    for name in args.models:
        for dtype in args.dtypes or (["float32", "bfloat16"] if device.type == "cuda" else ["float32"]):
            row = measure(name, dtype, size=args.sketch_size, device=device, timer=timer, bandwidth=bandwidth)
            results.append(row)
            times = ", ".join(f"{stage} {1e3 * s:.3f}" for stage, s in row["seconds"].items())
            print(
                f"{name} {dtype}: {times} ms; {row['share_of_copy_bandwidth']:.0%} of the copy's bandwidth", flush=True
            )
            if device.type == "cuda":
                torch.cuda.empty_cache()
    document = {"environment": environment(device), "copy_bandwidth": bandwidth, "results": results}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
