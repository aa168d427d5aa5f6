"""The CPU's fast path: a small kernel in C, for norms and sketches in one read of memory, products, and probes.

It is compiled once per machine with the C compiler that is there (as Triton and torch.compile do) and kept in the
user's cache folder. Without a compiler, or with THERMOCLAW_NATIVE=0, torch operations do the same work more slowly;
nothing else changes.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

logger = logging.getLogger("thermoclaw")

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""What the kernel reads, and what it calls that."""

_SOURCE = Path(__file__).with_name("kernel.c")
_FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fopenmp-simd", "-std=c11", "-fPIC", "-shared")


def cache_folder() -> Path:
    """Where compiled kernels are kept: THERMOCLAW_CACHE, or `thermoclaw` in the user's cache folder."""
    chosen = os.environ.get("THERMOCLAW_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "thermoclaw"


def _compile(compiler: str, target: Path) -> None:
    """Compile the kernel into `target`, whole or not at all."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / target.name
        command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        os.replace(built, target)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel, or None where there is none to be had (said once)."""
    if os.environ.get("THERMOCLAW_NATIVE", "1") == "0":
        return None
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or os.name != "posix":
        logger.info("thermoclaw: no C compiler found; measuring with torch operations, at a higher cost")
        return None
    try:
        told = (_SOURCE.read_text(), " ".join(_FLAGS), compiler, platform.machine(), _processor())
        name = hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
        target = cache_folder() / f"kernel-{name}.so"
        if not target.exists():
            _compile(compiler, target)
        return _load(target)
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        logger.info(
            "thermoclaw: the CPU kernel could not be compiled (%s); measuring with torch operations, at a higher cost",
            error,
        )
        return None


def _load(target: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(target))
    integer, address = ctypes.c_int64, ctypes.c_void_p
    found.thermoclaw_measure.argtypes = [address, address, address, address, integer, address]
    found.thermoclaw_finish.argtypes = [address, address, integer, address]
    found.thermoclaw_products.argtypes = [address] * 6
    found.thermoclaw_rows.argtypes = [
        *(address, integer, address, address, address, address),
        *(integer, integer, address, integer, integer),
    ]
    found.thermoclaw_likeness.argtypes = [address, integer, address, address, address, address]
    for name in ("measure", "finish", "products", "rows", "likeness"):
        getattr(found, f"thermoclaw_{name}").restype = None
    return found


def _processor() -> str:
    """What tells processors apart, so that a cache shared between machines serves each its own kernel."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))
