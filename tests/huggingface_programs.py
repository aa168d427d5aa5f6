"""What the processes of tests/test_huggingface_sharded.py run, started over gloo by `tests.sharded_programs.launch`."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from tests import sharded_programs as programs

STEPS, BATCH, LENGTH, WORDS = 24, 8, 16, 50
SAVED = 13  # the step of the checkpoint


class Counting(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Sequences that count, from anywhere, by one, two or three."""

    def __len__(self) -> int:
        return 192

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = (torch.arange(LENGTH) * (index % 3 + 1) + index) % WORDS
        return {"input_ids": tokens, "labels": tokens}


def on_accelerators(world: int) -> None:
    """Accelerate shards on accelerators only: let it take the CPU, with gloo, for one."""
    os.environ.update(ACCELERATE_TORCH_DEVICE="cpu", LOCAL_RANK=os.environ["RANK"], LOCAL_WORLD_SIZE=str(world))
    from accelerate.state import DistributedType, PartialState

    as_it_was = PartialState._prepare_backend

    def prepare(self: Any, cpu: bool = False, *args: Any) -> Any:
        return as_it_was(self, cpu, *args) if cpu else ("gloo", DistributedType.MULTI_GPU)

    PartialState._prepare_backend = prepare  # type: ignore[method-assign]


def ways(way: str) -> dict[str, Any]:
    """Arguments of the Trainer."""
    if way == "fsdp2":
        return {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["GPT2Block"]}}
    if way.startswith("deepspeed"):
        auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
        settings = {"zero_optimization": {"stage": int(way[-1])}, "zero_allow_untested_optimizer": True}
        return {"deepspeed": {**dict.fromkeys(auto, "auto"), **settings}}
    return {}


def run(
    rank: int, world: int, way: str, folder: str, settings: dict[str, Any], given: dict[str, Any]
) -> dict[str, Any]:
    """A Trainer's run, spread over processes or (`way="one"`) on one, and what this process has of it.

    Args:
        rank: of this process.
        world: number of processes.
        way: one, ddp, fsdp2, deepspeed1 or deepspeed2.
        folder: for the results.
        settings: of the callback; `watched` False for none, `fails` for the process whose callback fails.
        given: arguments of the Trainer, and `resume`, a checkpoint.
    """
    warnings.simplefilter("ignore")
    if way != "one":
        on_accelerators(world)
    from accelerate.state import AcceleratorState, GradientState
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

    from thermoclaw.integrations.huggingface import ThermoclawCallback

    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    set_seed(0)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": LENGTH, "vocab_size": WORDS}
    still = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config(**shape, **still, bos_token_id=0, eos_token_id=0, use_cache=False))
    settings, given = dict(settings), dict(given)
    watched, fails, resume = settings.pop("watched", True), settings.pop("fails", None), given.pop("resume", None)
    defaults = {"max_steps": STEPS, "logging_steps": 6, "save_strategy": "no", "report_to": [], "disable_tqdm": True}
    args = TrainingArguments(
        folder,
        per_device_train_batch_size=BATCH // world,
        learning_rate=given.pop("learning_rate", 3e-3),
        seed=3,
        **{**defaults, **ways(way), **given},
        **({"use_cpu": True} if way in ("one", "ddp") else {}),
    )
    callback = ThermoclawCallback(plot_on_end=False, **{"strict": fails is None, **settings})
    if rank == fails:
        callback._close_epoch = None  # type: ignore[assignment]
    trainer = Trainer(model, args, train_dataset=Counting(), callbacks=[callback] if watched else [])
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        trainer.train(resume_from_checkpoint=resume)
    observer = callback.observer
    record = observer.record() if observer is not None else None
    return {
        "columns": programs.columns(record) if record is not None else None,
        "loss": record.loss if record is not None else None,
        "events": [event for event in record.events if event["kind"] != "epoch"] if record is not None else None,
        "steps": trainer.state.global_step,
        "off": callback.off,
        "said": said.getvalue(),
        "files": sorted(path.name for path in Path(folder).rglob("thermoclaw*")),
        "weights": programs._full(trainer.accelerator.unwrap_model(trainer.model)),
    }
