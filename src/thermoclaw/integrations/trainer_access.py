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


def check_supported(trainer: Any, model: Any, optimizer: Any) -> None:
    """Raise ValueError with the reason when a run cannot be observed."""
    if model is None or optimizer is None:
        raise ValueError("the Trainer handed over no model or no optimizer")
    sharded = any(getattr(trainer, name, False) is True for name in ("is_fsdp_enabled", "is_deepspeed_enabled"))
    if sharded or any(hasattr(p, "device_mesh") for p in model.parameters()):
        raise ValueError(
            "its parameters are sharded (FSDP or DeepSpeed), which is not supported yet; training goes on as it would "
            "without the callback"
        )


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
