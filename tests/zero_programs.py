"""What the processes of tests/test_zero.py run: DeepSpeed's ZeRO, and a stand-in that partitions in the same way.

Each program takes (rank, world) and returns what the test compares; see `sharded_programs.launch`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests import sharded_programs as programs
from thermoclaw import EntropySplit, Observer, preflight
from thermoclaw.record import Record

CLIP = 1.1  # some gradients of these runs are longer, some shorter
MICRO_BATCHES = 2
NUM_STEPS = 20
OVERFLOW_AT = 7  # a step that is not made


def batches(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """As those of the sharded runs, one of them spoiled."""
    found = programs.batches(NUM_STEPS + 1, dtype)
    found[OVERFLOW_AT][0].fill_(float("nan"))
    return found


def make_optimizer(model: nn.Module) -> Any:
    """Two groups with other rates and decays, neither to be taken for the other; some layers lack the last."""
    optimizer = programs.make_optimizer(model)
    optimizer.param_groups.reverse()
    optimizer.param_groups[0].update(lr=1e-3, weight_decay=0.02)
    return optimizer


def cool(optimizer: Any) -> None:
    """A schedule."""
    for group in optimizer.param_groups:
        group["lr"] *= 0.97


# -- the unsharded run ------------------------------------------------------------------------------------------------


def plain(dtype: torch.dtype, **settings: Any) -> dict[str, Any]:
    """One process, all of the batch, clipped."""
    model = programs.make_net(dtype)
    optimizer = make_optimizer(model)
    observer = Observer(model, optimizer, strict=True, **settings)
    clipped = 0
    for x, y in batches(dtype):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        clipped += int(norm > CLIP)
        if norm.isfinite():
            optimizer.step()
            observer.step(loss=loss)
        cool(optimizer)
    assert 5 < clipped < NUM_STEPS, f"{clipped} steps were clipped: not what is to be tested"
    return columns(observer.record())


def columns(record: Record) -> dict[str, Any]:
    return {**programs.columns(record), "has_grad": record["has_grad"]}


# -- a stand-in for DeepSpeed -----------------------------------------------------------------------------------------


class FlatZero:
    """ZeRO of stage 1 in a few lines, with the names that DeepSpeed gives its parts.

    Args:
        optimizer: over the model's parameters; it gets flat partitions instead.
        align: partitions are of a multiple of so many elements.
        at_once: step all groups together and leave the gradients where they are, as BF16_Optimizer does.
    """

    def __init__(self, optimizer: Any, *, align: int = 2, at_once: bool = False) -> None:
        import torch.distributed as dist

        self.optimizer, self.at_once = optimizer, at_once
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.bit16_groups: list[list[Tensor]] = []
        self.bit16_groups_flat: list[Tensor] = []
        self.single_partition_of_fp32_groups: list[Tensor] = []
        self.real_dp_process_group = [dist.group.WORLD for _ in optimizer.param_groups]
        for group in optimizer.param_groups:
            params = list(group["params"])
            whole = torch.cat([p.detach().reshape(-1) for p in params])
            whole = torch.cat([whole, whole.new_zeros(-len(whole) % (align * self.world))])
            at = 0
            for p in params:
                p.data = whole[at : at + p.numel()].view_as(p)
                at += p.numel()
            flat = whole.chunk(self.world)[self.rank].clone().requires_grad_()
            self.bit16_groups.append(params)
            self.bit16_groups_flat.append(whole)
            self.single_partition_of_fp32_groups.append(flat)
            group["params"] = [flat]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def step(self) -> None:
        import torch.distributed as dist

        grads = []
        for params, whole in zip(self.bit16_groups, self.bit16_groups_flat, strict=True):
            grad = torch.cat([p.grad.reshape(-1) for p in params])
            dist.all_reduce(grad)
            grads.append(torch.cat([grad / self.world, grad.new_zeros(len(whole) - len(grad))]))
        norm = torch.stack([g.norm() for g in grads]).norm()
        if not norm.isfinite():
            return
        groups = self.optimizer.param_groups
        for i, (flat, grad) in enumerate(zip(self.single_partition_of_fp32_groups, grads, strict=True)):
            flat.grad = (grad * (CLIP / (norm + 1e-6)).clamp(max=1.0)).chunk(self.world)[self.rank].clone()
            if not self.at_once:
                self.optimizer.param_groups = [groups[i]]
                self.optimizer.step()
                self.optimizer.param_groups = groups
                flat.grad = None
        if self.at_once:
            self.optimizer.step()
        for whole, flat in zip(self.bit16_groups_flat, self.single_partition_of_fp32_groups, strict=True):
            dist.all_gather(list(whole.chunk(self.world)), flat.detach())

    def zero_grad(self) -> None:
        for p in (p for params in self.bit16_groups for p in params):
            p.grad = None


class Engine(NamedTuple):
    """What a training loop needs, of either."""

    model: nn.Module  # the one the optimizer trains
    optimizer: Any
    train: Callable[[Tensor, Tensor], Tensor]  # one step on this process's part of a batch


def stand_in(rank: int, world: int, *, dtype: torch.dtype, **given: Any) -> Engine:
    model = programs.make_net(dtype)
    optimizer = FlatZero(make_optimizer(model), **given)

    def train(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x[rank::world]), y[rank::world])
        loss.backward()
        optimizer.step()
        return loss

    return Engine(model, optimizer, train)


def deepspeed(rank: int, world: int, *, stage: int, config: dict[str, Any] | None = None) -> Engine:
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK=str(rank))
    import deepspeed

    model = programs.make_net(torch.float32)
    optimizer = make_optimizer(model)
    settings = {
        "train_micro_batch_size_per_gpu": programs.BATCH // world // MICRO_BATCHES,
        "gradient_accumulation_steps": MICRO_BATCHES,
        "gradient_clipping": CLIP,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        **(config or {}),
    }
    engine, wrapper, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)

    def train(x: Tensor, y: Tensor) -> Tensor:
        losses = []
        for i in range(MICRO_BATCHES):
            mine = slice(rank * MICRO_BATCHES + i, None, world * MICRO_BATCHES)
            out = engine(x[mine].to(next(engine.parameters()).dtype))
            losses.append(functional.cross_entropy(out.float(), y[mine]))
            engine.backward(losses[-1])
            engine.step()
        return torch.stack(losses).mean().detach()

    return Engine(model, wrapper, train)


MAKERS: dict[str, Callable[..., Engine]] = {"stand-in": stand_in, "deepspeed": deepspeed}


# -- programs ---------------------------------------------------------------------------------------------------------


def watched_run(rank: int, world: int, maker: str, given: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The columns of a run, how many numbers its measuring sent around, and how the model was cut."""
    import torch.distributed as dist

    engine = MAKERS[maker](rank, world, **given)
    observer = Observer(engine.model, engine.optimizer, strict=True, **settings)
    meter = observer._attachment.meter
    inside, sent, original = [False], [], dist.all_reduce

    def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if inside[0]:
            sent.append(tensor.numel())
        return original(tensor, *args, **kwargs)

    for name in ("before_step", "after_step"):
        setattr(meter, name, programs._marked(getattr(meter, name), inside))
    dist.all_reduce = counted
    try:
        run(engine, observer, dtype=given.get("dtype", torch.float32))
    finally:
        dist.all_reduce = original
    record = observer.record()
    return {
        **columns(record),
        "loss": record.loss,
        "sent": sent,
        "held": [[(f.numel(), f.count) for f in fragments] for fragments in meter._partition.fragments],
        "padding": [
            flat.tensor.numel() * world - sum(f.numel() for f in fragments)
            for flat, fragments in zip(meter._partition._flats, meter._partition.fragments, strict=True)
        ],
        "kind": type(engine.optimizer).__name__,
        "num_steps": observer.global_step,
    }


def run(
    engine: Engine,
    observer: Observer | None,
    *,
    dtype: torch.dtype,
    on_step: Callable[[int], None] = lambda step: None,
) -> list[Tensor]:
    """Train, and return the parameters at the end."""
    for step, (x, y) in enumerate(batches(dtype), start=1):
        on_step(step)
        loss = engine.train(x, y)
        if observer is not None:
            observer.step(loss=loss)
        cool(engine.optimizer)
    return [p.detach().clone() for p in engine.model.parameters()]


def law_1(rank: int, world: int, maker: str, given: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters after a run without and with an observer."""
    found = []
    for watched in (False, True):
        engine = MAKERS[maker](rank, world, **given)
        observer = Observer(engine.model, engine.optimizer, strict=True) if watched else None
        found.append(run(engine, observer, dtype=given.get("dtype", torch.float32)))
    return found[0], found[1]


def one_fails(rank: int, world: int, stage: str, at: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Measuring fails on the last process at step 6, in the call number `at` of that step; training goes on."""
    engine = stand_in(rank, world, dtype=torch.float32)
    observer = Observer(engine.model, engine.optimizer, **settings)
    (part,) = observer._attachment.meter._parts
    original = getattr(part.backend, stage)

    def fail(step: int) -> None:
        calls = [0]

        def broken(*args: Any, **kwargs: Any) -> None:
            calls[0] += 1
            if calls[0] > at:
                raise RuntimeError("deliberate")
            original(*args, **kwargs)

        if step == 6 and rank == world - 1:
            setattr(part.backend, stage, broken)

    params = run(engine, observer, dtype=torch.float32, on_step=fail)
    return {"params": params, "failed": observer._attachment.failed, "steps": observer.record().steps.tolist()}


def consumers(rank: int, world: int) -> bool:
    """Whoever listens beside the observer shares its measurements, by the wrapper or by what it wraps."""
    engine = stand_in(rank, world, dtype=torch.float32)
    observer = Observer(engine.model, engine.optimizer, strict=True)
    for optimizer in (engine.optimizer, engine.optimizer.optimizer):
        assert Observer.of(engine.model, optimizer)._attachment is observer._attachment
    split = EntropySplit(engine.model, engine.optimizer)
    forecast = preflight(engine.model, engine.optimizer)
    model = programs.make_net(torch.float32)
    assert repr(forecast.forecasts) == repr(preflight(model, make_optimizer(model)).forecasts)  # NaN is not itself
    for x, y in batches(torch.float32)[:5]:
        engine.train(x, y)
        split.step()
    observer.close()
    engine.train(*batches(torch.float32)[5])
    assert observer.record().steps.tolist() == [1, 2, 3, 4, 5]
    return len(split.step_history) == 5


def refused(rank: int, world: int, config: dict[str, Any]) -> str:
    """What is said of a configuration of DeepSpeed that is not measured."""
    engine = deepspeed(rank, world, stage=0, config=config)
    try:
        Observer(engine.model, engine.optimizer)
    except ValueError as error:
        return str(error)
    return "nothing"


def wrong_optimizer(rank: int, world: int) -> str:
    """What is said when the optimizer that DeepSpeed was given is passed, not the one that it gave."""
    engine = stand_in(rank, world, dtype=torch.float32)
    try:
        Observer(engine.model, engine.optimizer.optimizer)
    except ValueError as error:
        return str(error)
    return "nothing"
