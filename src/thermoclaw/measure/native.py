"""The CPU's fast path: norm and sketch in one read of memory, by a kernel of a few dozen lines of C.

The kernel is compiled once per machine with the C compiler that is there (as Triton and torch.compile do) and kept in
the user's cache folder. Without a compiler, or with THERMOCLAW_NATIVE=0, the torch operations of `sums` and `sketch`
do the same work more slowly; nothing else changes.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from thermoclaw.measure.sketch import Sketcher

logger = logging.getLogger("thermoclaw")

_SOURCE = Path(__file__).with_name("kernel.c")
_FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-std=c11", "-fPIC", "-shared")
_KINDS = {torch.float32: 0, torch.bfloat16: 1}
_SMALL = 1 << 20  # elements below which a second thread costs more than it saves


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
        found = ctypes.CDLL(str(target))
        integer, address = ctypes.c_int64, ctypes.c_void_p
        found.thermoclaw_measure.argtypes = [
            integer,
            integer,
            *[address] * 5,
            integer,
            address,
            address,
            integer,
            address,
        ]
        found.thermoclaw_measure.restype = None
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        logger.info(
            "thermoclaw: the CPU kernel could not be compiled (%s); measuring with torch operations, at a higher cost",
            error,
        )
        return None
    return found


def _processor() -> str:
    """What tells processors apart, so that a cache shared between machines serves each its own kernel."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


class NativePass:
    """Measures the flat tensors of all units at once, where every one of them is of a kind the kernel knows.

    Args:
        sketcher: whose buckets, signs and places to use.
    """

    def __init__(self, sketcher: Sketcher) -> None:
        self._sketcher = sketcher
        places = sketcher.places
        self._begin = np.cumsum([0, *(len(row) for row in places)]).astype(np.int64)
        self._width = np.array([sketcher.width(unit) for unit in range(len(places))], dtype=np.int64)
        self._place = np.array([place for row in places for place in row], dtype=np.int64).reshape(-1, 4)
        self._n = [place.size for row in places for place in row]
        self._data = np.zeros(len(self._n), dtype=np.int64)
        self._kind = np.zeros(len(self._n), dtype=np.int64)
        self._norms = np.zeros(len(self._n), dtype=np.float64)
        self._elements = np.array([sum(place.size for place in row) for row in places], dtype=np.int64)
        self._pool: ThreadPoolExecutor | None = None
        self._pool_pid = -1

    def __call__(self, tensors: list[Tensor | None], out: Tensor) -> Tensor | None:
        """Sketch into `out` [U, p] (rows may be far apart) and return ‖x‖² by tensor; None where it cannot.

        A tensor of another kind, or without the expected elements, makes the whole call decline before it writes.
        """
        kernel = library()
        if kernel is None or out.dtype != torch.float32 or out.stride(1) != 1:
            return None
        data, kind = self._data, self._kind
        for i, x in enumerate(tensors):
            if x is None:
                data[i] = 0
                continue
            code = _KINDS.get(x.dtype)
            if code is None or x.layout != torch.strided or x.numel() != self._n[i] or not x.is_contiguous():
                return None
            data[i] = x.data_ptr()
            kind[i] = code

        tables = [a.ctypes.data for a in (self._begin, self._width, data, kind, self._place)]
        targets = (self._sketcher.signs.data_ptr(), out.data_ptr(), out.stride(0), self._norms.ctypes.data)

        def work(first: int, last: int) -> None:
            kernel.thermoclaw_measure(first, last, *tables, self._sketcher.size, *targets)

        ranges = self._ranges(torch.get_num_threads())
        if len(ranges) == 1:
            work(*ranges[0])
        else:
            list(self._threads(len(ranges)).map(lambda bounds: work(*bounds), ranges))
        return torch.from_numpy(self._norms.copy())

    def _ranges(self, threads: int) -> list[tuple[int, int]]:
        """Runs of units with about equally many elements."""
        units = len(self._elements)
        total = int(self._elements.sum())
        parts = max(min(threads, units, total // _SMALL), 1)
        share = np.searchsorted(np.cumsum(self._elements), np.arange(1, parts) * total / parts, side="left") + 1
        bounds = [0, *np.minimum(share, units).tolist(), units]
        return [(a, b) for a, b in itertools.pairwise(bounds) if b > a]

    def _threads(self, count: int) -> ThreadPoolExecutor:
        """A pool of this very process: a forked child inherits the object but not its threads."""
        if self._pool is None or self._pool_pid != os.getpid():
            self._pool = ThreadPoolExecutor(max_workers=count, thread_name_prefix="thermoclaw")
            self._pool_pid = os.getpid()
        return self._pool
