"""What the processes of tests/test_lightning_callback.py run; `tests.sharded_programs.launch` starts them over gloo."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from tests import sharded_programs as programs
from thermoclaw.integrations.lightning import ThermoclawLightning

NUM_BATCHES = 24


def run(rank: int, world: int, way: str, folder: str, decay: float, watched: bool) -> dict[str, Any]:
    """A Lightning run under DDP, or sharded by FSDP2, and what this process has of it."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", LOCAL_WORLD_SIZE=str(world))
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = programs.make_net(torch.float64)

        def configure_model(self) -> None:
            if way == "fully":
                from torch.distributed.fsdp import fully_shard

                for layer in (self.net.up, self.net.mid, self.net.down):
                    fully_shard(layer, mesh=self.device_mesh["data_parallel"])
                fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9, weight_decay=decay)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = (part[rank::world] for part in batch)
            return functional.cross_entropy(self.net(x), y)

    callback = ThermoclawLightning(plot_on_end=False, strict=True, quiet=True, early_stop="HIGH")
    strategy = (
        DDPStrategy() if way == "ddp" else ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1)
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=world,
        strategy=strategy,
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[callback] if watched else [],
        default_root_dir=folder,
    )
    module = Module()
    data = torch.utils.data.DataLoader(programs.batches(NUM_BATCHES, torch.float64), batch_size=None)
    trainer.fit(module, data)
    record = callback.observer.record() if callback.observer is not None else None
    return {
        "steps": trainer.global_step,
        "columns": programs.columns(record) if record is not None else None,
        "files": sorted(path.name for path in Path(folder).glob("thermoclaw*")),
        "alarms": [finding.code for finding in callback.alarms],
        "weights": {name: p.detach() for name, p in programs._full(module).items()},
    }
