"""What the callback needs of a `Trainer` and is not handed: the Trainer itself, its checkpoint, the loss of a step.

Nothing here imports transformers. It was written against versions 4.46 to 5.23.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import distributed

from thermoclaw.record import Record, RecordError


def calling(kind: type) -> tuple[Any, Path | None]:
    """The object of this kind that is calling, by the call stack, and the checkpoint that it resumes from."""
    found = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if found is None and isinstance(owner, kind):
            found = owner
        if found is not None and owner is found and "resume_from_checkpoint" in frame.f_locals:
            checkpoint = frame.f_locals["resume_from_checkpoint"]
            return found, Path(checkpoint) if isinstance(checkpoint, (str, os.PathLike)) else None
        frame = frame.f_back
    return found, None


def checkpoint_folder(args: Any, state: Any) -> Path:
    """Where the Trainer puts the checkpoint of this step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def earlier_record(path: Path) -> tuple[Record | None, str]:
    """The record beside a checkpoint, or None; and what there is to say if nothing can be made of it."""
    try:
        return Record.load(path), "has the record of a model with other layers"
    except FileNotFoundError:
        return None, "has no record"
    except (RecordError, OSError) as error:
        return None, f"has no record that can be read ({error})"


def is_sharded(trainer: Any, model: Any) -> bool:
    """Whether each process may hold but a part of what the optimizer works on, so that all must measure."""
    parameters = model.parameters() if model is not None else ()
    return _uses(trainer, "deepspeed") or any(hasattr(p, "device_mesh") for p in parameters)


def check_supported(trainer: Any, model: Any) -> None:
    """Raise ValueError with the reason when a run cannot be observed."""
    if _uses(trainer, "fsdp") and not is_sharded(trainer, model):
        raise ValueError(
            "the first FSDP flattens the parameters, which mixes the layers; training goes on as it would without the "
            "callback. FSDP2 is measured: fsdp_config={'version': 2} in TrainingArguments, or fsdp_version: 2 for "
            "accelerate launch"
        )


def _uses(trainer: Any, what: str) -> bool:
    return getattr(trainer, f"is_{what}_enabled", False) is True


def agree(wish: bool, device: torch.device) -> bool:
    """Whether any process wishes it; the same answer on all, and all must ask. Waits for them and for the device."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    count = torch.tensor(float(wish), device=device)
    distributed.all_reduce(count)
    return bool(count)


def tap_loss(trainer: Any, take: Callable[[Any], None]) -> Callable[[], None]:
    """Hand every micro-batch's training loss to `take`, as the Trainer adds it up; returns how to undo it."""
    before = vars(trainer).get("training_step")
    original = trainer.training_step

    @functools.wraps(original)
    def training_step(*args: Any, **kwargs: Any) -> Any:
        loss = original(*args, **kwargs)
        with contextlib.suppress(Exception):
            take(loss)
        return loss

    def undo() -> None:
        if vars(trainer).get("training_step") is training_step:
            del trainer.training_step
            if before is not None:
                trainer.training_step = before

    trainer.training_step = training_step
    return undo
