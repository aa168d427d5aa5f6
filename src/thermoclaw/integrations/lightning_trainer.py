"""What the callback needs of Lightning: the package itself, who measures, where results go, figures, a line of text.

Nothing here imports Lightning before it is asked for. It was written against version 2.6.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from thermoclaw.integrations.say import say

logger = logging.getLogger("thermoclaw")


def package() -> Any:
    """The package that the program has loaded, or else the one that is there."""
    names = ("lightning.pytorch", "pytorch_lightning")
    for name in (*(name for name in names if name in sys.modules), *names):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise  # it is there, and lacks something itself
    raise ImportError("the callback for Lightning needs lightning: pip install 'thermoclaw[lightning]'")


def results_folder(trainer: Any, chosen: str | Path | None, log_dir: str | None) -> Path | None:
    """Where this process writes the results; None for nowhere."""
    folder = chosen if chosen is not None else log_dir or trainer.default_root_dir
    if trainer.fast_dev_run or not trainer.is_global_zero:
        return None
    if "://" in str(folder):
        logger.warning("thermoclaw: no files are written to %s: give a local folder as output_dir", folder)
        return None
    return Path(folder)


def say_above(trainer: Any, text: str) -> None:
    """Print above the progress bar, or where Lightning prints; on the main process."""
    if not trainer.is_global_zero:
        return
    bar = trainer.progress_bar_callback
    if bar is None or not getattr(bar, "is_enabled", False):
        package().utilities.rank_zero.rank_zero_info(text)
        return
    say(text, bar.print)


def measures(trainer: Any, module: nn.Module) -> bool:
    """Whether this process measures: the main one, and of a sharded model all."""
    return trainer.is_global_zero or any(hasattr(p, "device_mesh") for p in module.parameters())


def check_strategy(trainer: Any) -> None:
    """Raise ValueError with the reason when a run cannot be observed."""
    if "DeepSpeed" in type(trainer.strategy).__name__:
        raise ValueError(
            "Lightning's DeepSpeed strategy is not supported yet; training goes on as it would without the callback"
        )


def first_of(metrics: Any, names: Sequence[str]) -> float | None:
    """The first of these metrics that is there. Waits for the device."""
    return next((float(metrics[name]) for name in names if name in metrics), None)
