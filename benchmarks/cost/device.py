"""The GPU part: GPTs in bf16 autocast under fused AdamW, all consumers at every step, everything in one process.

Two equal models take turns step by step, in an order that flips each round: one is plain, the other is instrumented.
Before the observer is attached the same two run as a control, which shows how far two equal arms differ by themselves.
Then come blocks of steps without any wait in between, as in training, and a profiled part in which launches,
synchronizations and copies are counted. While a step runs, torch's sync-debug mode is "error".

On the CPU the same code runs at tiny sizes, with a clock instead of CUDA events; nothing of that is a result.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch

from cost import models
from cost.device_run import SCOPES, Clock, Run
from cost.machine import environment
from cost.trace import count_calls

CASES = {  # name: model, batch, tokens of a sequence, rounds of one step each, blocks, steps of a block, traced steps
    "cuda": {
        "gpt-124M": ("gpt-124M", 16, 1024, 40, 8, 20, 16),
        "gpt-410M": ("gpt-410M", 8, 2048, 30, 6, 10, 8),
        "gpt-1.3B": ("gpt-1.3B", 8, 2048, 20, 4, 8, 8),
        "gpt-124M compiled": ("gpt-124M", 16, 1024, 40, 8, 20, 16),
    },
    "cpu": {"gpt-tiny": ("gpt-tiny", 2, 16, 3, 2, 3, 8)},
}
STACKS = {  # parameters, layers
    "cuda": [(10**6, 50), (10**7, 50), (10**8, 50), (10**9, 50), (10**8, 10), (10**8, 200), (10**8, 1000)],
    "cpu": [(10_000, 4)],
}
WAITED = "synchronizing"  # in torch's words for an operation that waits for the device
COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 20}


def medians_ms(rows: list[dict[str, float]]) -> dict[str, float]:
    """The median of each column, in milliseconds."""
    return {name.removesuffix("_s") + "_ms": 1e3 * statistics.median(row[name] for row in rows) for name in rows[0]}


def means_ms(rows: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each column, in milliseconds."""
    return {name.removesuffix("_s") + "_ms": 1e3 * statistics.fmean(row[name] for row in rows) for name in rows[0]}


def paired_share(rows: list[dict[str, float]], plain: list[dict[str, float]], column: str) -> dict[str, Any]:
    """What a step costs beyond the plain one of the same round, as a share of the plain step."""
    shares = [row[column] / other[column] - 1 for row, other in zip(rows, plain, strict=True)]
    quartiles = statistics.quantiles(shares, n=4)
    return {"median": statistics.median(shares), "quartiles": quartiles, "mean": statistics.fmean(shares)}


def in_turns(runs: dict[str, Run], *, rounds: int, warmup: int) -> dict[str, list[dict[str, float]]]:
    """One step of each run in turn, the order flipped each round; the rows of each."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for number in range(warmup + rounds):
        for name in list(runs) if number % 2 == 0 else list(reversed(runs)):
            row = runs[name].timed_step()
            if number >= warmup:
                rows[name].append(row)
    return rows


def in_blocks(runs: dict[str, Run], *, blocks: int, steps: int) -> dict[str, list[float]]:
    """Milliseconds of a step in each block of steps that nothing waits in, the runs in turn."""
    took: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(blocks):
        for name in list(runs) if number % 2 == 0 else list(reversed(runs)):
            took[name].append(1e3 * runs[name].steps_without_wait(steps))
    return took


def measure_model(name: str, device: str, scope: str) -> dict[str, Any]:
    """One model: control, turns, blocks, trace and memory."""
    model, batch, tokens, rounds, blocks, block_steps, traced = CASES[device][name]
    plain, watched = (
        Run(model, device, batch=batch, tokens=tokens, compiled=name.endswith("compiled")) for _ in range(2)
    )
    both = {"plain": plain, "thermoclaw": watched}
    for run in both.values():  # what happens once (kernels chosen, perhaps compiled) may wait
        run.scope = "nowhere"
        run.timed_step()
        run.scope = scope
    control = in_turns(both, rounds=max(rounds // 2, 2), warmup=4)
    before = allocated_bytes(device)
    watched.attach()
    allocated = allocated_bytes(device) - before
    rows = in_turns(both, rounds=rounds, warmup=10)
    took_ms = in_blocks(both, blocks=blocks, steps=block_steps)
    free_ms = {run: statistics.median(values) for run, values in took_ms.items()}
    calls = traced_calls(watched, traced)
    held = watched.held_bytes()
    plain.item_norms, plain.scope = True, "nowhere"
    items = in_turns({"item norms": plain}, rounds=max(rounds // 4, 2), warmup=1)["item norms"]
    cost, mean, bare = medians_ms(rows["thermoclaw"]), means_ms(rows["thermoclaw"]), medians_ms(rows["plain"])
    kernels_ms = calls["instrument"]["kernel_us_per_step"] / 1e3 if "error" not in calls else 0.0
    traffic = bytes_read(watched)
    return {
        "model": name,
        "num_params": sum(p.numel() for p in plain.params),
        "num_tensors": len(plain.params),
        "batch": batch,
        "tokens": tokens,
        "tokens_per_step": batch * tokens,
        "autocast": "bfloat16",
        "optimizer": "adamw-fused",
        "sync_debug_error_in": scope,
        "backend": watched.backend(),
        "rounds": rounds,
        "plain": bare,
        "thermoclaw": cost,
        "thermoclaw_mean": mean,
        "item_norms": medians_ms(items),
        "share_of_step": cost["instrument_ms"] / bare["device_ms"],
        "mean_share_of_step": mean["instrument_ms"] / means_ms(rows["plain"])["device_ms"],
        "share_of_step_paired_device": paired_share(rows["thermoclaw"], rows["plain"], "device_s"),
        "share_of_step_paired_wall": paired_share(rows["thermoclaw"], rows["plain"], "wall_s"),
        "control_paired_device": paired_share(control["thermoclaw"], control["plain"], "device_s"),
        "control_paired_wall": paired_share(control["thermoclaw"], control["plain"], "wall_s"),
        "free_running_steps_per_block": block_steps,
        "free_running_blocks_ms": took_ms,
        "share_of_step_free_running": free_ms["thermoclaw"] / free_ms["plain"] - 1,
        "cost_over_clip": cost["instrument_ms"] / cost["clip_ms"],
        "bytes_read": traffic,
        "achieved_gb_per_s": traffic / cost["instrument_ms"] / 1e6,
        "achieved_gb_per_s_in_kernels": traffic / kernels_ms / 1e6 if kernels_ms else None,
        "held_bytes": held,
        "allocated_bytes": allocated,
        "calls": calls,
    }


def traced_calls(run: Run, steps: int) -> dict[str, Any]:
    """What the profiler counted; its own failure is a note, a step that waited is not."""
    run.tracing = True
    try:
        return count_calls(run.step, steps=steps)
    except Exception as error:
        if WAITED in str(error):
            raise
        traceback.print_exc()
        return {"steps": steps, "error": f"{type(error).__name__}: {error}"}
    finally:
        run.tracing = False


def measure_stack(params: int, layers: int, device: str, scope: str) -> dict[str, Any]:
    """A stack of equal layers with fixed gradients: clip, optimizer and instrument alone."""
    run = Run(models.stack(params, layers), device)
    run.scope = "nowhere"
    run.timed_step()
    run.scope = scope
    run.attach()
    row = medians_ms(in_turns({"": run}, rounds=30 if device == "cuda" else 3, warmup=10)[""])
    return {
        "num_params": sum(p.numel() for p in run.params),
        "num_tensors": len(run.params),
        "sync_debug_error_in": scope,
        "clip_ms": row["clip_ms"],
        "cost_ms": row["instrument_ms"],
        "cost_host_ms": row["instrument_host_ms"],
        "optimizer_ms": row["after_clip_ms"] - row["instrument_ms"],
        "cost_over_clip": row["instrument_ms"] / row["clip_ms"],
        "achieved_gb_per_s": bytes_read(run) / row["instrument_ms"] / 1e6,
        "held_bytes": run.held_bytes(),
    }


def bytes_read(run: Run) -> int:
    """Bytes of gradients and parameters, each read once."""
    return sum(2 * p.numel() * p.element_size() for p in run.params)


def bandwidth(device: str) -> dict[str, float]:
    """What the device's memory does here: a copy counts bytes read and written, a read the bytes read."""
    clock = Clock(device)
    source = torch.ones(COPY_BYTES[device] // 4, device=device)
    target = torch.empty_like(source)

    def best(work: Callable[[], Any]) -> float:
        took = []
        for _ in range(20):
            start = clock.mark()
            work()
            stop = clock.mark()
            clock.wait(stop)
            took.append(clock.seconds(start, stop))
        return min(took)

    num_bytes = source.numel() * 4
    reads = (lambda: source.sum(), lambda: torch.linalg.vector_norm(source))
    return {
        "copied_bytes": num_bytes,
        "copy_gb_per_s": 2 * num_bytes / best(lambda: target.copy_(source)) / 1e9,
        "read_gb_per_s": num_bytes / min(best(read) for read in reads) / 1e9,
    }


def allocated_bytes(device: str) -> int:
    """Bytes that tensors hold on the device; 0 on the CPU."""
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def attempt(work: Callable[[str], dict[str, Any]], about: dict[str, Any], device: str) -> dict[str, Any]:
    """The row, or what went wrong: a failure must not take the other figures along.

    Where something waits for the device, the row is measured again with fewer places checked, the fault beside it.
    """
    faults: dict[str, str] = {}
    for scope in SCOPES:
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        try:
            return {**work(scope), **({"waited_in": faults} if faults else {})}
        except Exception as error:
            told = traceback.format_exception(error)
            print("".join(told), flush=True)
            faults[scope] = f"{type(error).__name__}: {error}".strip()[:1000] + "\n" + "".join(told[-4:])[:3000]
            if WAITED not in str(error):
                break
    return {**about, "error": list(faults.values())[-1], "waited_in": faults}


def measure(device: str, *, minutes: float, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Everything, saved after each part; nothing new begins when the minutes are over."""
    start = time.perf_counter()
    results: dict[str, Any] = {"environment": environment(), "dry_run": device != "cuda"}
    results |= {"bandwidth": bandwidth(device), "models": [], "stacks": []}

    def keep(section: str, row: dict[str, Any]) -> None:
        results[section].append(row)
        results["seconds"] = round(time.perf_counter() - start, 1)
        save(results)

    def late(about: dict[str, Any], section: str) -> bool:
        over = time.perf_counter() - start > 60 * minutes
        if over:
            keep(section, {**about, "error": "not begun: the time was over"})
        return over

    def one_model(name: str) -> None:
        about = {"model": name}
        if not late(about, "models"):
            row = attempt(lambda scope: measure_model(name, device, scope), about, device)
            keep("models", row)
            share = row.get("share_of_step", math.nan)
            print(f"{name}: {share:.2%} of the step, {results['seconds']} s so far", flush=True)

    def one_stack(params: int, layers: int) -> None:
        about = {"num_params": params, "num_tensors": layers}
        if not late(about, "stacks"):
            row = attempt(lambda scope: measure_stack(params, layers, device, scope), about, device)
            keep("stacks", row)
            print(f"{params:,} in {layers} layers: {row.get('cost_ms', math.nan):.3f} ms", flush=True)

    names = list(CASES[device])
    for name in names:
        if not name.endswith("compiled"):
            one_model(name)
    for params, layers in STACKS[device]:
        one_stack(params, layers)
    for name in names:
        if name.endswith("compiled"):  # last: compiling takes long and may fail
            one_model(name)
    results["bandwidth_after"] = bandwidth(device)
    results["seconds"] = round(time.perf_counter() - start, 1)
    save(results)
    return results
