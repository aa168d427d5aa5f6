"""`thermoclaw validate`: the tiers of checks, as a table that ends in an exit code."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from thermoclaw.files import atomic_file
from thermoclaw.lab import tiers
from thermoclaw.lab.analytic import Check, analytic_checks
from thermoclaw.lab.console import paint, quiet_log, wants_color
from thermoclaw.lab.progress import Progress
from thermoclaw.version import __version__

SCALES = {"laptop": tiers.LAPTOP, "full": tiers.FULL}


def run_validation(
    *,
    device: str = "cpu",
    scale: str | tiers.Scale = "laptop",
    json_path: str | Path | None = None,
    quiet: bool = False,
    no_color: bool = False,
) -> int:
    """Run all tiers and print a line per check as it is done.

    Args:
        device: where tiers 2 and 3 train; tier 1 is arithmetic in float64 and stays on the CPU.
        scale: "laptop", "full" (the sizes of the original experiments; needs CUDA), or sizes of your own.
        json_path: a file to write the table to.
        quiet: no progress bar.
        no_color: print without color even on a terminal.

    Returns:
        0 if every check passed, 1 if not.

    Raises:
        ValueError: there is no such scale or device, or the two do not go together.
        OSError: the file cannot be written; nothing was trained then.
    """
    sizes = _sizes(scale, device)
    if json_path is not None:
        with atomic_file(json_path, "w") as handle:
            handle.write("{}\n")
    color = wants_color(no_color=no_color)
    began = time.monotonic()
    print(f"Thermoclaw {__version__}: validation at {sizes.name} scale on {device}, torch {torch.__version__}\n")
    checks: list[Check] = []
    with quiet_log(), Progress("validating", sizes.total_steps, enabled=not quiet) as bar:
        done = 0

        def on_step(note: str) -> None:
            nonlocal done
            done += 1
            bar.update(done, note=note)

        for check in _all_checks(sizes, on_step):
            checks.append(check)
            bar.print(_line(check, color=color))
    seconds = time.monotonic() - began
    passed = sum(check.passed for check in checks)
    if json_path is not None:
        with atomic_file(json_path, "w") as handle:
            json.dump(_as_data(checks, sizes.name, device, seconds), handle, indent=2, ensure_ascii=False)
            handle.write("\n")
    summary = f"{passed} of {len(checks)} checks passed in {seconds:.0f} s."
    print(f"\n{paint(summary, 'green' if passed == len(checks) else 'red', enabled=color)}")
    return 0 if passed == len(checks) else 1


def _all_checks(sizes: tiers.Scale, on_step: Callable[[str], None]) -> Iterator[Check]:
    yield from analytic_checks()
    yield from tiers.tier2(sizes, on_step=on_step)
    yield from tiers.tier3(sizes, on_step=on_step)


def _sizes(scale: str | tiers.Scale, device: str) -> tiers.Scale:
    """The scale with its workloads on the device, after checking that both exist."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"there is no device {device!r}: use cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' asked for, but torch finds no CUDA device here: use --device cpu")
    if isinstance(scale, str):
        if scale not in SCALES:
            raise ValueError(f"there is no scale {scale!r}: use {' or '.join(SCALES)}")
        if scale == "full" and kind != "cuda":
            raise ValueError("--scale full trains 410 million parameters and needs --device cuda")
        scale = SCALES[scale]
    return replace(scale, tier2=replace(scale.tier2, device=device), tier3=replace(scale.tier3, device=device))


def _line(check: Check, *, color: bool) -> str:
    """A check as one line, or two where it says much."""
    word = paint("PASS", "green", enabled=color) if check.passed else paint("FAIL", "red", enabled=color)
    head = f"{word}  {check.tier:<4} {check.name:<46}"
    if len(check.measured) > 40:
        return f"{head} want: {check.wanted}\n{'':11}{check.measured}"
    return f"{head} {check.measured}  ({check.wanted})"


def _as_data(checks: list[Check], scale: str, device: str, seconds: float) -> dict[str, Any]:
    """The table for programs."""
    return {
        "passed": all(check.passed for check in checks),
        "scale": scale,
        "device": device,
        "seconds": round(seconds, 1),
        "versions": {"thermoclaw": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "checks": [asdict(check) for check in checks],
    }
