"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """Processor, system, versions, revision and load, at the start of a run."""
    import torch

    import thermoclaw

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor()
    told = {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "thermoclaw": thermoclaw.__version__,
        "revision": revision(),
        "processor": processor,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    if torch.cuda.is_available():
        told |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        told["device_memory_bytes"] = torch.cuda.get_device_properties(0).total_memory
    return told


def revision() -> str | None:
    """The commit of the package measured, with a plus where there were changes on top; None outside a checkout."""
    import thermoclaw

    here = Path(thermoclaw.__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
