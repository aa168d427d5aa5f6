"""What the processes of tests/test_sharded.py run: small real trainings, sharded in every way, watched.

Each program takes (rank, world) and returns what the test compares. `launch` starts the processes over gloo and
collects their answers; a process that does not answer in time is a failure.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional

from thermoclaw import Observer
from thermoclaw.record import Record

QUANTITIES = (
    "sigma", "grad_sq", "param_sq", "update_sq", "distance", "coherence", "alignment", "overshoot", "noise",
    "norm_budget", "r", "d_iS_wd", "d_iS_momentum", "d_iS_noise", "lr", "weight_decay",
)  # fmt: skip

BATCH, INPUTS, CLASSES = 24, 12, 4


class Net(nn.Module):
    """Layers smaller than a sketch, larger, of several chunks, with rows that no number of processes divides."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(INPUTS, 331)
        self.norm = nn.LayerNorm(331)
        self.mid = nn.Linear(331, 227)
        self.down = nn.Linear(227, CLASSES)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.mid(torch.tanh(self.norm(self.up(x)))))) * self.scale


def make_net(dtype: torch.dtype) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype)


def make_optimizer(model: nn.Module, kind: Callable[..., Any] = torch.optim.AdamW, **settings: Any) -> Any:
    """Two groups, so that a layer is cut into units: matrices with decay, the rest without."""
    params = list(model.parameters())
    groups = [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return kind(groups, lr=3e-3, **settings)


def batches(num_steps: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(7)
    xs = [torch.randn(BATCH, INPUTS, generator=random).to(dtype) for _ in range(num_steps)]
    return [(x, x[:, :CLASSES].argmax(1)) for x in xs]


def train(
    model: nn.Module,
    optimizer: Any,
    *,
    observer: Observer | None = None,
    num_steps: int = 24,
    dtype: torch.dtype = torch.float64,
    part: tuple[int, int] = (0, 1),
    on_step: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """Train on this process's part of every batch."""
    losses = []
    for step, (x, y) in enumerate(batches(num_steps, dtype), start=1):
        on_step(step)
        mine = slice(part[0], None, part[1])
        loss = functional.cross_entropy(model(x[mine]), y[mine])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if observer is not None:
            observer.step(loss=loss)
    return losses


def columns(record: Record) -> dict[str, Any]:
    found = {name: record[name] for name in QUANTITIES}
    return {**found, "steps": record.steps, "layers": [(x.name, x.ltype, x.num_params) for x in record.layers]}


def plain(dtype: torch.dtype, *, num_steps: int = 24, **settings: Any) -> dict[str, Any]:
    """The unsharded run that all others are compared with."""
    model = make_net(dtype)
    optimizer = make_optimizer(model)
    observer = Observer(model, optimizer, strict=True, **settings)
    train(model, optimizer, observer=observer, dtype=dtype, num_steps=num_steps)
    return columns(observer.record())


# -- ways to shard ----------------------------------------------------------------------------------------------------


def fully_sharded(dtype: torch.dtype, world: int, *, replicas: int = 1) -> nn.Module:
    """FSDP2; with `replicas`, hybrid: replicated along one mesh dimension, sharded along the other."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if replicas == 1:
        mesh = init_device_mesh("cpu", (world,))
    else:
        mesh = init_device_mesh("cpu", (replicas, world // replicas), mesh_dim_names=("replicate", "shard"))
    model = make_net(dtype)
    for layer in (model.up, model.mid, model.down):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def tensor_parallel(dtype: torch.dtype, world: int) -> nn.Module:
    """Columns of one layer, rows of the next; norms and the head stay whole and plain."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (world,))
    plan = {"up": ColwiseParallel(output_layouts=Replicate()), "mid": RowwiseParallel(input_layouts=Replicate())}
    return parallelize_module(make_net(dtype), mesh, plan)


def sharded_both_ways(dtype: torch.dtype, world: int) -> nn.Module:
    """Tensor parallel within pairs, FSDP2 across them: a mesh of two dimensions."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("data", "tensor"))
    plan = {"up": ColwiseParallel(output_layouts=Replicate()), "mid": RowwiseParallel(input_layouts=Replicate())}
    model = parallelize_module(make_net(dtype), mesh["tensor"], plan)
    for layer in (model.up, model.mid):
        fully_shard(layer, mesh=mesh["data"])
    return fully_shard(model, mesh=mesh["data"])


# -- programs ---------------------------------------------------------------------------------------------------------


def _full(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for name, p in model.named_parameters()}


def watched_run(rank: int, world: int, way: str, dtype: torch.dtype, settings: dict[str, Any]) -> dict[str, Any]:
    """The columns of a sharded run, with how many all-reduces and numbers its measuring took."""
    import torch.distributed as dist

    part = (rank, world)
    if way == "fully":
        model = fully_sharded(dtype, world)
    elif way == "hybrid":
        model = fully_sharded(dtype, world, replicas=2)
    elif way == "tensor":
        model, part = tensor_parallel(dtype, world), (0, 1)
    elif way == "both":
        model, part = sharded_both_ways(dtype, world), (rank // 2, world // 2)
    elif way == "ddp":
        model = nn.parallel.DistributedDataParallel(make_net(dtype))
    else:
        raise ValueError(way)
    optimizer = make_optimizer(model)
    observer = Observer(getattr(model, "module", model), optimizer, strict=True, **settings)
    inside = [False]
    sent: list[int] = []
    original = dist.all_reduce

    def counted(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if inside[0]:
            sent.append(x.numel())
        return original(x, *args, **kwargs)

    meter = observer._attachment.meter
    for name in ("before_step", "after_step"):
        setattr(meter, name, _marked(getattr(meter, name), inside))
    dist.all_reduce = counted
    try:
        train(model, optimizer, observer=observer, dtype=dtype, part=part)
        local = [p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in model.parameters()]
        return {**columns(observer.record()), "sent": sent, "local": local, "bytes": meter.num_bytes()}
    finally:
        dist.all_reduce = original


def _marked(call: Callable[..., Any], inside: list[bool]) -> Callable[..., Any]:
    def marked(*args: Any, **kwargs: Any) -> Any:
        inside[0] = True
        try:
            return call(*args, **kwargs)
        finally:
            inside[0] = False

    return marked


def several(rank: int, world: int, calls: list[tuple[Any, ...]]) -> list[Any]:
    """Several programs, one after the other in the same processes: starting them takes the longest."""
    return [program(rank, world, *args) for program, *args in calls]


def law_1(rank: int, world: int, way: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters after a run without and with an observer."""
    found = []
    for watched in (False, True):
        model = fully_sharded(torch.float32, world) if way == "fully" else make_net(torch.float32)
        if way == "ddp":
            model = nn.parallel.DistributedDataParallel(model)
        optimizer = make_optimizer(model)
        observer = Observer(getattr(model, "module", model), optimizer, strict=True) if watched else None
        train(model, optimizer, observer=observer, dtype=torch.float32, part=(rank, world))
        found.append(_full(getattr(model, "module", model)))
    return found[0], found[1]


def zero_redundancy(rank: int, world: int) -> dict[str, Any]:
    """torch's ZeRO stage 1 over DDP: each process updates its share and sends it around."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = make_net(torch.float64)
    ddp = nn.parallel.DistributedDataParallel(model)
    params = list(model.parameters())
    optimizer = ZeroRedundancyOptimizer(
        [{"params": [p for p in params if p.ndim > 1]}, {"params": [p for p in params if p.ndim <= 1]}],
        optimizer_class=torch.optim.AdamW,
        lr=3e-3,
        weight_decay=0.0,
    )
    for group, decay in zip(optimizer.param_groups, (0.1, 0.0), strict=True):
        group["weight_decay"] = decay
    observer = Observer(model, optimizer, strict=True)
    train(ddp, optimizer, observer=observer, part=(rank, world))
    return columns(observer.record())


def one_fails(rank: int, world: int, stage: str) -> dict[str, Any]:
    """Measuring fails on the last process at step 6; training goes on everywhere."""
    model = fully_sharded(torch.float32, world)
    optimizer = make_optimizer(model)
    observer = Observer(model, optimizer)
    (part,) = observer._attachment.meter._parts

    def fail(step: int) -> None:
        if step == 6 and rank == world - 1:

            def broken(*args: Any, **kwargs: Any) -> None:
                raise RuntimeError("deliberate")

            if stage == "derivation":
                observer._attachment.meter.intake.take = broken
            else:
                setattr(part.backend, stage, broken)

    losses = train(model, optimizer, observer=observer, dtype=torch.float32, part=(rank, world), on_step=fail)
    return {
        "params": _full(model),
        "losses": losses,
        "failed": observer._attachment.failed,
        "steps": observer.record().steps.tolist(),
    }


def one_dies(rank: int, world: int) -> str:
    """The last process is gone at step 6."""
    model = fully_sharded(torch.float32, world)
    optimizer = make_optimizer(model)
    observer = Observer(model, optimizer)

    def die(step: int) -> None:
        if step == 6 and rank == world - 1:
            os._exit(3)

    train(model, optimizer, observer=observer, dtype=torch.float32, part=(rank, world), on_step=die)
    return "finished"


def one_alone(rank: int, world: int) -> bool:
    """Only the first process makes an observer of a sharded model."""
    from thermoclaw.measure import sharded

    sharded.meet.__kwdefaults__["seconds"] = 2.0
    model = fully_sharded(torch.float32, world)
    optimizer = make_optimizer(model)
    told = rank > 0
    if rank == 0:
        try:
            Observer(model, optimizer)
        except RuntimeError as error:
            told = "make it on every process" in str(error)
    train(model, optimizer, dtype=torch.float32, part=(rank, world))
    return told


def ddp_on_one(rank: int, world: int) -> int:
    """Under DDP nothing is communicated, so an observer on one process alone is fine."""
    model = nn.parallel.DistributedDataParallel(make_net(torch.float32))
    optimizer = make_optimizer(model)
    observer = Observer(model.module, optimizer, strict=True) if rank == 0 else None
    train(model, optimizer, observer=observer, dtype=torch.float32, part=(rank, world))
    return len(observer.record()) if observer is not None else 24


def budget_of(rank: int, world: int) -> tuple[int, list[int]]:
    """The cadence that a budget chooses when every process takes its own time."""
    from thermoclaw.measure.timing import Timing

    Timing.result = lambda self: (0.02 * (1 + rank), 0.0, 1.0)  # type: ignore[method-assign]
    model = fully_sharded(torch.float32, world)
    optimizer = make_optimizer(model)
    observer = Observer(model, optimizer, strict=True, budget=0.01)
    train(model, optimizer, observer=observer, dtype=torch.float32, part=(rank, world), num_steps=100)
    record = observer.record()
    return record.meta["every"], record.steps.tolist()


def local_reads(rank: int, world: int) -> int:
    """Reading on one process alone communicates nothing."""
    model = fully_sharded(torch.float32, world)
    optimizer = make_optimizer(model)
    observer = Observer(model, optimizer, strict=True)

    def read(step: int) -> None:
        if rank == 0 and step > 1:
            assert observer.record()["sigma"].shape[0] == step - 1
            assert len(observer.step_history) == step - 1

    train(model, optimizer, observer=observer, dtype=torch.float32, part=(rank, world), on_step=read)
    return len(observer.record())


# -- running them -----------------------------------------------------------------------------------------------------


def launch(program: Callable[..., Any], world: int, *args: Any, seconds: float = 120.0) -> list[Any]:
    """Run `program(rank, world, *args)` in so many processes and return their answers.

    An answer is what the program returned, the exception it raised, or None for a process that died or hung.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        context = mp.get_context("spawn")
        processes = [
            context.Process(target=_process, args=(program, rank, world, port, folder, args), daemon=True)
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(seconds)
        for process in processes:
            if process.is_alive():
                process.kill()
        found = []
        for rank in range(world):
            path = Path(folder) / f"{rank}.pickle"
            found.append(pickle.loads(path.read_bytes()) if path.exists() else None)
        return found


def _process(program: Callable[..., Any], rank: int, world: int, port: int, folder: str, args: tuple[Any, ...]) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    answer: Any
    try:
        answer = program(rank, world, *args)
    except Exception as error:
        answer = RuntimeError(f"{type(error).__name__}: {error}")
    (Path(folder) / f"{rank}.part").write_bytes(pickle.dumps(answer))
    os.replace(Path(folder) / f"{rank}.part", Path(folder) / f"{rank}.pickle")
    sys.stdout.flush()
    os._exit(0)  # a peer that died would keep the usual farewell waiting
