"""The GPU part of the performance page: tables of a measured run, or the arithmetic that stands in for one."""

from __future__ import annotations

from typing import Any

from markdown_tables import table, times

# What the GPU was expected to do before anybody measured it.
EXPECTED_BYTES_PER_S, EXPECTED_FLOP_PER_S, EXPECTED_TOKENS = 4e12, 4e14, 16384


def arithmetic() -> str:
    """What reading costs by arithmetic."""
    share = (8 / EXPECTED_BYTES_PER_S) / (6 * EXPECTED_TOKENS / EXPECTED_FLOP_PER_S)
    billion_ms = 8e12 / EXPECTED_BYTES_PER_S
    return (
        "**Arithmetic, nothing measured:** reading a gradient and a parameter in single precision is 8 bytes, at "
        f"{EXPECTED_BYTES_PER_S / 1e12:.0f} TB/s {billion_ms:.0f} ms for a billion parameters. A step of T tokens "
        f"is about 6·T operations a parameter; at {EXPECTED_FLOP_PER_S / 1e12:.0f} TFLOP/s and {EXPECTED_TOKENS:,} "
        f"tokens the reading would be {share:.1%} of the step, whatever the size of the model. Launches and the "
        "optimizer are left out."
    )


def measured(results: dict[str, Any]) -> str:
    """The tables of a run on a GPU."""
    rows = [row for row in results["models"] if "error" not in row]
    copy = results["bandwidth"]["copy_gb_per_s"]
    cost_cells = [
        (
            f"{row['model']}, {row['num_params'] / 1e6:,.0f}M",
            f"{row['tokens_per_step']:,}",
            f"{row['plain']['device_ms']:.1f}",
            f"{row['thermoclaw']['instrument_ms']:.3f}",
            f"{row['share_of_step']:.2%}",
            f"{row['mean_share_of_step']:.2%}",
            f"{row['share_of_step_paired_device']['median']:.2%}",
            f"{row['control_paired_device']['median']:.2%}",
            f"{row['share_of_step_free_running']:.2%}",
            times(row["cost_over_clip"]),
        )
        for row in rows
    ]
    head = ("model", "tokens a step", "plain step, ms", "measuring, ms", "share", "mean share")
    head += ("paired", "control", "free-running", "in clips")
    call_cells = []
    for row in rows:
        if "error" in row["calls"]:
            call_cells.append((row["model"], "no trace: " + row["calls"]["error"], *["–"] * 6))
            continue
        own, whole = row["calls"]["instrument"], row["calls"]["step"]
        call_cells.append(
            (
                row["model"],
                f"{row['achieved_gb_per_s']:,.0f} GB/s, {row['achieved_gb_per_s'] / copy:.0%} of a copy",
                f"{own['launches_per_step']:.0f} of {whole['launches_per_step']:,.0f}",
                str(own["stream_synchronizations"] + own["blocking_copies"]),
                str(own["pageable_copies"]),
                row["sync_debug_error_in"],
                f"{sum(row['held_bytes'].values()) / row['num_params']:.3f}",
                f"{row['item_norms']['wall_ms'] / row['plain']['wall_ms'] - 1:.1%}",
            )
        )
    calls = ("model", "achieved", "launches a step", "synchronizations", "pageable copies")
    calls += ("sync-debug error in", "bytes held a parameter", "`.item()` norms, of the step")
    failed = [f"- {row['model']}: {row['error'].splitlines()[0]}" for row in results["models"] if "error" in row]
    env = results["environment"]
    told = f"{env.get('device', 'no GPU')}, PyTorch {env['torch']}, {env['date']}, revision {env['revision']}; "
    told += f"a copy moves {copy:,.0f} GB/s there, a read {results['bandwidth']['read_gb_per_s']:,.0f} GB/s."
    lines = [*table(head, cost_cells), "", *table(calls, call_cells), "", told]
    if "stacks" in results:
        good = [row for row in results["stacks"] if "error" not in row]
        cells = [
            (
                f"{r['num_params'] / 1e6:,.0f}M in {r['num_tensors']}",
                *(f"{r[key]:.3f}" for key in ("clip_ms", "optimizer_ms", "cost_ms", "cost_host_ms")),
                f"{r['achieved_gb_per_s']:,.0f}",
            )
            for r in good
        ]
        names = ("parameters in layers", "clip, ms", "fused AdamW, ms", "this version, ms", "of the host, ms", "GB/s")
        lines += ["", *table(names, cells)]
    return "\n".join([*lines, *(["", "Not measured:", "", *failed] if failed else [])])
