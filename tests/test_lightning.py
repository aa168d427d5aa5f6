"""In Lightning's loop an observer on the module's own optimizer records what it does in the plain loop, bit for bit.

Automatic optimization hands the optimizer a closure, so gradients exist only inside its step; they are clipped there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

pytest.importorskip("lightning")

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision

from tests.conftest import assert_bitwise, assert_same_record, seed_everything
from thermoclaw import EntropySplit, Observer, Record

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Precision 16-mixed is not supported by the model summary"),
]

NUM_BATCHES, CLIP, LR = 14, 0.2, 0.02
Make = Callable[..., torch.optim.Optimizer]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Without the lines about accelerators and precision that every trainer prints."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def batches(dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(4)
    xs = [torch.randn(8, 6, generator=random).to(dtype) for _ in range(NUM_BATCHES)]
    return [(x, x.float()[:, :4].argmax(1)) for x in xs]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.drop, self.down = nn.Linear(6, 40), nn.Dropout(0.1), nn.Linear(40, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.drop(torch.tanh(self.up(x))))


class Automatic(LightningModule):
    """Lightning makes the step. `attach` says where the observer is made; losses that overflow are told by place."""

    def __init__(self, make: Make, *, attach: str = "on_train_start", overflow_at: tuple[int, ...] = ()) -> None:
        super().__init__()
        seed_everything(5)
        self.net = Net()
        self.make, self.attach, self.overflow_at = make, attach, overflow_at
        self.observer: Observer | None = None
        self.losses: list[Tensor] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = self.make(self.net.parameters())
        if self.attach == "configure_optimizers":
            self.observer = Observer(self.net, optimizer, strict=True)
        return optimizer

    def on_train_start(self) -> None:
        seed_everything(6)  # for dropout; the trainer has drawn numbers of its own
        if self.attach == "on_train_start":
            self.observer = Observer(self.net, self.optimizers(), strict=True)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        loss = functional.cross_entropy(self.net(batch[0]), batch[1])
        return {"loss": loss * float("inf") if batch_idx in self.overflow_at else loss, "true": loss.detach()}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["true"])
        if self.observer is not None:
            self.observer.step(loss=outputs["true"])


def fit(module: LightningModule, folder: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **settings,
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches(dtype), batch_size=None))
    return trainer


def plain(
    make: Make,
    *,
    accumulate: int = 1,
    clip: bool = False,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    dtype: torch.dtype = torch.float32,
    scaler: torch.amp.GradScaler | None = None,
    overflow_at: tuple[int, ...] = (),
) -> tuple[Record, Net]:
    """The same in a loop of one's own."""
    seed_everything(5)
    net = Net().to(dtype)
    optimizer = make(net.parameters())
    observer = Observer(net, optimizer, strict=True)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    seed_everything(6)
    for i, (x, y) in enumerate(batches(dtype)):
        if i % accumulate == 0:
            optimizer.zero_grad()
        with context():
            loss = functional.cross_entropy(net(x), y)
        scaler.scale((loss * float("inf") if i in overflow_at else loss) / accumulate).backward()
        if (i + 1) % accumulate == 0 or i == NUM_BATCHES - 1:
            if clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            scaler.step(optimizer)
            scaler.update()
        observer.step(loss=loss)
    return observer.record(), net


def sgd(params: Any, **settings: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=LR, momentum=0.9, weight_decay=0.1, **settings)


def adamw(params: Any, **settings: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=LR, weight_decay=0.1, **settings)


def assert_same(module: Any, want: tuple[Record, Net]) -> None:
    assert module.observer is not None
    assert_same_record(module.observer.record(), want[0])
    assert_bitwise(dict(module.net.state_dict()), dict(want[1].state_dict()))


# -- automatic optimization -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize("attach", ["configure_optimizers", "on_train_start"])
@pytest.mark.parametrize("clip", [False, True])
def test_automatic_optimization_is_the_plain_loop(clip: bool, attach: str, make: Make, tmp_path: Path) -> None:
    module = Automatic(make, attach=attach)
    trainer = fit(module, tmp_path, gradient_clip_val=CLIP if clip else None)
    record = module.observer.record()
    assert record.steps.tolist() == list(range(1, NUM_BATCHES + 1))
    assert trainer.global_step == NUM_BATCHES
    assert record.optimizer == make([nn.Parameter(torch.ones(1))]).__class__.__name__
    assert_same(module, plain(make, clip=clip))
    if clip:
        norms = np.sqrt(record["grad_sq"].sum(1))
        assert norms.max() <= CLIP * (1 + 1e-4)
        assert (norms > 0.99 * CLIP).any(), "nothing was clipped"


@pytest.mark.parametrize("clip", [False, True])
def test_accumulated_batches_are_one_row_an_optimizer_step(clip: bool, tmp_path: Path) -> None:
    """Fourteen batches, three a step; the rest of the epoch is a step of its own."""
    module = Automatic(adamw)
    trainer = fit(module, tmp_path, accumulate_grad_batches=3, gradient_clip_val=CLIP if clip else None)
    assert trainer.global_step == len(module.observer.record()) == 5
    assert_same(module, plain(adamw, accumulate=3, clip=clip))
    losses = [x.item() for x in module.losses]
    want = [np.mean(losses[i : i + 3]) for i in range(0, NUM_BATCHES, 3)]
    np.testing.assert_allclose(module.observer.record().loss, want, rtol=1e-6)


def test_training_is_bitwise_the_same(tmp_path: Path) -> None:
    watched, alone = Automatic(adamw), Automatic(adamw, attach="never")
    for module in (watched, alone):
        fit(module, tmp_path, gradient_clip_val=CLIP)
    assert alone.observer is None
    assert_bitwise(dict(watched.state_dict()), dict(alone.state_dict()))
    assert_bitwise(watched.losses, alone.losses)


# -- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "dtype", "context"),
    [
        ("bf16-mixed", torch.float32, lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
        ("bf16-true", torch.bfloat16, nullcontext),
        ("16-true", torch.float16, nullcontext),  # without a scaler
        ("64-true", torch.float64, nullcontext),
    ],
)
def test_every_precision_is_that_of_the_plain_loop(
    precision: Any, dtype: torch.dtype, context: Callable[[], AbstractContextManager[Any]], tmp_path: Path
) -> None:
    make = sgd if dtype == torch.float16 else adamw  # Adam's epsilon is nothing in half precision
    module = Automatic(make)
    fit(module, tmp_path, dtype, precision=precision, gradient_clip_val=CLIP)
    assert_same(module, plain(make, clip=True, context=context, dtype=dtype))
    assert np.isfinite(module.observer.record()["grad_sq"]).all()


@pytest.mark.parametrize(("fused", "clip"), [(False, False), (False, True), (True, False)])
def test_half_precision_with_a_loss_scaler(fused: bool, clip: bool, tmp_path: Path) -> None:
    """fp16 with scaling, in which three batches overflow: their steps are refused and are no rows."""

    def make(params: Any) -> torch.optim.Optimizer:
        return adamw(params, fused=fused)

    def scaler() -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)

    refused = (1, 6, 7)
    module = Automatic(make, overflow_at=refused)
    plugin = MixedPrecision("16-mixed", "cpu", scaler())
    fit(module, tmp_path, plugins=[plugin], gradient_clip_val=CLIP if clip else None)
    assert module.observer.record().steps.tolist() == list(range(1, NUM_BATCHES - len(refused) + 1))
    assert np.isfinite(module.observer.record()["grad_sq"]).all()
    assert_same(
        module,
        plain(
            make,
            clip=clip,
            context=lambda: torch.autocast("cpu", dtype=torch.float16),
            scaler=scaler(),
            overflow_at=refused,
        ),
    )


# -- manual optimization ----------------------------------------------------------------------------------------------


class Manual(LightningModule):
    """The module makes the step itself, through Lightning's wrapper of its optimizer."""

    def __init__(self, make: Make, *, closure: bool, accumulate: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        seed_everything(5)
        self.net = Net()
        self.make, self.closure, self.accumulate = make, closure, accumulate

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make(self.net.parameters())

    def on_train_start(self) -> None:
        seed_everything(6)  # for dropout; the trainer has drawn numbers of its own
        self.observer = Observer(self.net, self.optimizers(), strict=True)
        self.splitter = EntropySplit(self.net, self.optimizers())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()

        def work() -> Tensor:
            if batch_idx % self.accumulate == 0:
                optimizer.zero_grad()
            loss = functional.cross_entropy(self.net(batch[0]), batch[1])
            self.manual_backward(loss / self.accumulate)
            if (batch_idx + 1) % self.accumulate == 0:
                self.clip_gradients(optimizer, gradient_clip_val=CLIP, gradient_clip_algorithm="norm")
            return loss

        if self.closure:
            loss = optimizer.step(closure=work)
        else:
            loss = work()
            if (batch_idx + 1) % self.accumulate == 0:
                optimizer.step()
        self.observer.step(loss=loss)
        self.splitter.step()


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize("closure", [False, True])
def test_manual_optimization_is_the_plain_loop(closure: bool, make: Make, tmp_path: Path) -> None:
    module = Manual(make, closure=closure)
    trainer = fit(module, tmp_path)
    assert trainer.global_step == len(module.observer.record()) == NUM_BATCHES
    assert module.splitter.observer._attachment is module.observer._attachment
    assert_same(module, plain(make, clip=True))


def test_manual_accumulation_is_one_row_an_optimizer_step(tmp_path: Path) -> None:
    module = Manual(adamw, closure=False, accumulate=7)
    fit(module, tmp_path)
    assert module.observer.record().steps.tolist() == [1, 2]
    assert_same(module, plain(adamw, accumulate=7, clip=True))


class Pair(LightningModule):
    """Two optimizers in turn, as for a generator and its critic."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        seed_everything(5)
        self.net = Net()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [sgd(self.net.up.parameters()), adamw(self.net.down.parameters())]

    def on_train_start(self) -> None:
        seed_everything(6)  # for dropout; the trainer has drawn numbers of its own
        self.observers = [Observer(self.net, optimizer, strict=True) for optimizer in self.optimizers()]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        turn = batch_idx % 3 == 0
        optimizer = self.optimizers()[turn]
        self.toggle_optimizer(optimizer)
        loss = functional.cross_entropy(self.net(batch[0]), batch[1])
        self.manual_backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        self.untoggle_optimizer(optimizer)
        self.observers[turn].step(loss=loss)


def test_each_of_two_optimizers_has_its_own_rows(tmp_path: Path) -> None:
    module = Pair()
    fit(module, tmp_path)
    first, second = (observer.record() for observer in module.observers)
    assert (first.optimizer, second.optimizer) == ("SGD", "AdamW")
    assert (first.layer_names, second.layer_names) == (["up"], ["down"])
    assert (len(first), len(second)) == (9, 5)
    for record in (first, second):
        assert (record["has_grad"] == 1).all()
        assert np.isfinite(record.loss).all()
