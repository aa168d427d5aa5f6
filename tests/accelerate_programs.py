"""What the processes of tests/test_accelerate.py run; `tests.sharded_programs.launch` starts them over gloo."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from tests import huggingface_programs
from tests import sharded_programs as programs


def run(
    rank: int, world: int, way: str, folder: str, watched: bool, stop: int | None = None, precision: str = "no"
) -> dict[str, Any]:
    """A loop under DDP, sharded by FSDP2 by hand, or by Accelerate's own plugin, and what this process has of it.

    Args:
        rank: of this process.
        world: number of processes.
        way: ddp, fully or plugin.
        folder: for the results, and for the checkpoint.
        watched: whether an observer looks on.
        stop: save a checkpoint after so many steps, begin anew and go on from it.
        precision: of the plugin, "no" or "bf16".
    """
    warnings.simplefilter("ignore")
    os.environ.update(LOCAL_RANK=str(rank), WORLD_SIZE=str(world), ACCELERATE_USE_CPU=str(way != "plugin").lower())
    if way == "plugin":
        huggingface_programs.on_accelerators(world)
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.tracking import GeneralTracker

    from thermoclaw.integrations.accelerate import observe

    class Book(GeneralTracker):
        name = "book"
        requires_logging_directory = False
        tracker = None

        def __init__(self) -> None:
            super().__init__()
            self.got: list[Any] = []

        def start(self) -> None:
            pass

        def store_init_configuration(self, values: Any) -> None:
            pass

        def log(self, values: Any, step: int | None = None, **_: Any) -> None:
            self.got.append(step)

    dtype = torch.float64 if precision == "no" else torch.float32
    batches = programs.batches(24, dtype)
    book = Book()

    def begin() -> tuple[Any, Any, Any, Any]:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        if way == "plugin":
            plugin = FullyShardedDataParallelPlugin(fsdp_version=2, transformer_cls_names_to_wrap=["Linear"])
            accelerator = Accelerator(fsdp_plugin=plugin, log_with=book, mixed_precision=precision)
        else:
            accelerator = Accelerator(cpu=True, log_with=book)
        accelerator.init_trackers("run")
        if way != "fully":
            model = programs.make_net(dtype)
            model, optimizer = accelerator.prepare(model, programs.make_optimizer(model))
        else:  # by hand, as Accelerate shards on accelerators only
            model = programs.fully_sharded(dtype, world)
            optimizer = accelerator.prepare(programs.make_optimizer(model))
        seen = observe(accelerator, model, optimizer, output_dir=folder, strict=True, quiet=True) if watched else None
        return accelerator, model, optimizer, seen

    accelerator, model, optimizer, seen = begin()
    for step, (x, y) in enumerate(batches):
        if step == stop:
            accelerator.save_state(f"{folder}-checkpoint")
            if seen is not None:
                seen.finish()
            accelerator, model, optimizer, seen = begin()
            accelerator.load_state(f"{folder}-checkpoint")
        optimizer.zero_grad()
        accelerator.backward(functional.cross_entropy(model(x[rank::world]), y[rank::world]))
        optimizer.step()
    if seen is not None:
        seen.finish()  # end_training would end the processes' group, which other programs need
    observer = seen.observer if seen is not None else None
    return {
        "columns": programs.columns(observer.record()) if observer is not None else None,
        "logged": book.got,
        "files": sorted(path.name for path in Path(folder).glob("thermoclaw*")),
        "weights": programs._full(accelerator.unwrap_model(model)),
    }
