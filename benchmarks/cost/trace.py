"""Counts in a profiler trace: launches, synchronizations, copies, and the kernel time that an instrument causes."""

from __future__ import annotations

import json
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HOST_CALLS = ("cuda_runtime", "cuda_driver")
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch")


def count_calls(step: Callable[[], Any], *, steps: int) -> dict[str, Any]:
    """Profile some steps; what a step and, in it, the blocks marked "instrument" ask of the device."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(steps):
            with torch.profiler.record_function("measured step"):
                step()
    with tempfile.TemporaryDirectory(prefix="overhead-trace-") as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    step, instrument = (within(events, name, steps) for name in ("measured step", "instrument"))
    return {"steps": steps, "step": step, "instrument": instrument}


def within(events: list[dict[str, Any]], name: str, steps: int) -> dict[str, Any]:
    """Counts over the whole profile, launches and kernel time by step, of calls made inside blocks of that name."""
    blocks = sorted(
        (e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") == "user_annotation" and e["name"] == name
    )
    starts = [start for start, _ in blocks]

    def inside(event: dict[str, Any]) -> bool:
        place = bisect_right(starts, event["ts"]) - 1
        return place >= 0 and event["ts"] <= blocks[place][1]

    calls = [e for e in events if e.get("cat") in HOST_CALLS and inside(e)]
    caused = {e["args"]["correlation"] for e in calls if "correlation" in e.get("args", {})}
    work = [
        e
        for e in events
        if e.get("cat") in {"kernel", "gpu_memcpy", "gpu_memset"} and e.get("args", {}).get("correlation") in caused
    ]
    named = Counter(e["name"] for e in calls)
    waits = [e for e in calls if "Synchronize" in e["name"]]
    copies = Counter(e["name"] for e in work if e["cat"] == "gpu_memcpy")
    kernels: Counter[str] = Counter()
    for e in work:
        if e["cat"] == "kernel":
            kernels[e["name"][:80]] += e["dur"]
    return {
        "num_blocks": len(blocks),
        "launches_per_step": sum(n for call, n in named.items() if call.startswith(LAUNCHES)) / steps,
        "stream_synchronizations": sum("Event" not in e["name"] for e in waits),
        "event_synchronizations": sum("Event" in e["name"] for e in waits),
        "event_wait_us_per_step": sum(e.get("dur", 0) for e in waits if "Event" in e["name"]) / steps,
        "blocking_copies": named["cudaMemcpy"],
        "pageable_copies": sum(n for copy, n in copies.items() if "Pageable" in copy),
        "copies": dict(copies),
        "kernel_us_per_step": sum(e["dur"] for e in work) / steps,
        "longest_kernels_us_per_step": {kernel: us / steps for kernel, us in kernels.most_common(5)},
        "calls": dict(named.most_common(12)),
    }
