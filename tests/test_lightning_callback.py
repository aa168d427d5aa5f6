"""The callback for Lightning, with a real `Trainer` on the CPU: what it measures, where it logs, and what it leaves."""

from __future__ import annotations

import copy
import logging
import pickle
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

pytest.importorskip("lightning")

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins import MixedPrecision

from tests import lightning_programs
from tests import sharded_programs as programs
from tests.conftest import assert_bitwise, assert_same_record, needs_shards, seed_everything
from tests.test_buffer import trapped
from thermoclaw import Observer, Record, diagnose
from thermoclaw.integrations import outputs
from thermoclaw.integrations.lightning import ThermoclawLightning
from thermoclaw.integrations.scalars import PREFIX

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Precision 16-mixed is not supported by the model summary"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
]

NUM_BATCHES, CLIP = 18, 0.2


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


def loader(dtype: torch.dtype = torch.float32) -> Any:
    random = torch.Generator().manual_seed(4)
    xs = [torch.randn(8, 6, generator=random).to(dtype) for _ in range(NUM_BATCHES)]
    return torch.utils.data.DataLoader([(x, x.float()[:, :4].argmax(1)) for x in xs], batch_size=None)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.drop, self.down = nn.Linear(6, 40), nn.Dropout(0.1), nn.Linear(40, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.drop(torch.tanh(self.up(x))))


class Plain(LightningModule):
    """Lightning makes the step."""

    def __init__(self, *, decay: float = 0.01, overflow_at: tuple[int, ...] = (), fail_at: int = -1) -> None:
        super().__init__()
        seed_everything(5)
        self.net = Net()
        self.decay, self.overflow_at, self.fail_at = decay, overflow_at, fail_at
        self.error: type[BaseException] = ValueError
        self.losses: list[Tensor] = []

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.02, momentum=0.9, weight_decay=self.decay)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        seed_everything(6)

    def loss_of(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if self.global_step == self.fail_at:
            raise self.error("on purpose")
        loss = self.loss_of(batch)
        self.losses.append(loss.detach().clone())
        self.log("train_loss", loss)
        return loss * float("inf") if batch_idx in self.overflow_at else loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss_of(batch))


class Manual(Plain):
    """The module makes the step, and returns nothing."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # type: ignore[override]
        optimizer = self.optimizers()
        if batch_idx % 2 == 0:
            optimizer.zero_grad()
        loss = self.loss_of(batch)
        self.losses.append(loss.detach().clone())
        self.manual_backward(loss / 2)
        if batch_idx % 2 == 1:
            self.clip_gradients(optimizer, gradient_clip_val=CLIP, gradient_clip_algorithm="norm")
            optimizer.step()


class Pair(Plain):
    """A generator and its critic, which steps twice as often."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.automatic_optimization = False
        self.generator, self.critic = Net(), Net()
        del self.net

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.generator.parameters(), lr=1e-3),
            torch.optim.SGD(self.critic.parameters(), lr=0.02, momentum=0.9, weight_decay=self.decay),
        ]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:  # type: ignore[override]
        mine, other = self.optimizers()
        found = {}
        for name, optimizer, net in (
            ("critic", other, self.critic),
            ("critic", other, self.critic),
            ("generator", mine, self.generator),
        ):
            made = self.critic(functional.pad(self.generator(batch[0]), (0, 2)))  # gradients reach the other one, too
            loss = functional.cross_entropy(net(batch[0]), batch[1]) + 0.01 * made.square().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            found[name] = found["loss"] = loss.detach()
        return found

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        pass


class Book(DummyLogger):
    """Notes what a logger is given."""

    def __init__(self, *, broken: bool = False) -> None:
        super().__init__()
        self.broken = broken
        self.got: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self.broken and any(name.startswith(PREFIX) for name in metrics):
            raise ConnectionError("no network")
        assert step is not None
        self.got.append((step, dict(metrics)))

    def steps_of(self, name: str) -> list[int]:
        return [step for step, values in self.got if name in values]


def make(folder: Path, callback: Any = None, **settings: Any) -> Trainer:
    callbacks = [callback, *settings.pop("callbacks", [])] if callback is not None else settings.pop("callbacks", [])
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "log_every_n_steps": 4,
    }
    return Trainer(callbacks=callbacks, **{**defaults, **settings})


def fit(module: LightningModule, folder: Path, callback: Any = None, **settings: Any) -> Trainer:
    trainer = make(folder, callback, **settings)
    trainer.fit(module, loader())
    return trainer


def watch(**settings: Any) -> ThermoclawLightning:
    return ThermoclawLightning(**{"plot_on_end": False, "strict": True, "quiet": True, **settings})


# -- it never changes training ----------------------------------------------------------------------------------------


def scaled() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2))


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        (Plain, {}),
        (Plain, {"gradient_clip_val": CLIP, "accumulate_grad_batches": 4, "max_epochs": 2}),
        (Plain, {"precision": "bf16-mixed", "gradient_clip_val": CLIP}),
        (Plain, {"precision": "bf16-true"}),
        (Plain, {"plugins": scaled}),
        (Manual, {}),
        (Manual, {"plugins": scaled}),
        (Pair, {}),
    ],
    ids=[
        "plain",
        "clipped and accumulated",
        "bf16-mixed",
        "bf16-true",
        "16-mixed",
        "manual",
        "manual 16-mixed",
        "pair",
    ],
)
def test_training_is_bitwise_the_same(kind: type[Plain], how: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for callback in (None, watch()):
        module = kind(overflow_at=(3,)) if "plugins" in how and kind is Plain else kind()
        settings = {**how, "plugins": [how["plugins"]()]} if "plugins" in how else how
        trainer = make(tmp_path, callback, **settings)
        bf16 = settings.get("precision") == "bf16-true"
        trainer.fit(module, loader(torch.bfloat16 if bf16 else torch.float32), loader())
        states = [optimizer.state_dict() for optimizer in trainer.optimizers]
        found.append((dict(module.state_dict()), states, torch.get_rng_state(), module.losses, trainer.global_step))
        assert not any(o._optimizer_step_pre_hooks or o._optimizer_step_post_hooks for o in trainer.optimizers)
    assert_bitwise(found[1], found[0])


# -- what it measures -------------------------------------------------------------------------------------------------


def test_the_record_is_that_of_the_plain_loop(tmp_path: Path) -> None:
    callback = watch()
    fit(Plain(), tmp_path, callback, gradient_clip_val=CLIP)
    module = Plain()
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    observer = Observer(module, optimizer, strict=True)
    data = list(loader())  # it draws a number
    module.on_train_start()
    for x, y in data:
        optimizer.zero_grad()
        loss = module.loss_of((x, y))
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        observer.step(loss=loss)
    assert callback.observer is not None
    assert_same_record(callback.observer.record(), observer.record(), skip=("epoch",))
    assert callback.observer.record().layer_names == ["net.up", "net.down"]


def test_accumulated_batches_have_the_mean_of_their_losses(tmp_path: Path) -> None:
    callback, module = watch(), Plain()
    fit(module, tmp_path, callback, accumulate_grad_batches=4)
    assert callback.observer is not None
    losses = [x.item() for x in module.losses]
    want = [np.mean(losses[i : i + 4]) for i in range(0, NUM_BATCHES, 4)]
    np.testing.assert_allclose(callback.observer.record().loss, want, rtol=1e-6)


@pytest.mark.parametrize("plugins", [[], [scaled]])
def test_in_manual_optimization_the_loss_is_what_was_differentiated(plugins: list[Any], tmp_path: Path) -> None:
    callback, module = watch(), Manual()
    fit(module, tmp_path, callback, plugins=[make() for make in plugins])
    assert callback.observer is not None
    record = callback.observer.record()
    losses = np.array([x.item() for x in module.losses])
    assert len(record) == NUM_BATCHES // 2
    np.testing.assert_allclose(record.loss, (losses[::2] + losses[1::2]) / 2, rtol=1e-6)
    assert np.sqrt(record["grad_sq"].sum(1)).max() <= CLIP * (1 + 1e-4)


def test_a_step_that_the_scaler_refused_is_no_row(tmp_path: Path) -> None:
    callback = watch()
    fit(Plain(overflow_at=(1, 6, 7)), tmp_path, callback, plugins=[scaled()])
    assert callback.observer is not None
    assert callback.observer.record().steps.tolist() == list(range(1, NUM_BATCHES - 3 + 1))
    assert np.isfinite(callback.observer.record().loss).all()


def test_epochs_carry_the_validation_of_their_end(tmp_path: Path) -> None:
    """Validated every second epoch; the check before training and old figures do not count."""
    callback, module = watch(), Plain()
    trainer = make(tmp_path, callback, max_epochs=4, check_val_every_n_epoch=2, num_sanity_val_steps=2)
    seen: list[float] = []
    module.on_validation_epoch_end = lambda: seen.append(0.0)  # type: ignore[method-assign]
    trainer.fit(module, loader(), loader())
    assert callback.observer is not None
    entries = callback.observer.epoch_history
    assert [entry["epoch"] for entry in entries] == [1, 2, 3, 4]
    known = [entry["val_loss"] is not None for entry in entries]
    assert known == [False, True, False, True]
    assert entries[-1]["val_loss"] == pytest.approx(float(trainer.callback_metrics["val/loss"]))
    assert callback.observer.record()["epoch"].tolist() == sorted(list(range(4)) * NUM_BATCHES)


def test_each_of_two_optimizers_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One observer each, no loss of adversaries, and nothing said about parameters that the other one trains."""
    book, callback = Book(), watch(quiet=False)
    bar = TQDMProgressBar(refresh_rate=100)
    settings: dict[str, Any] = {"max_epochs": 3, "enable_progress_bar": True, "callbacks": [bar]}
    fit(Pair(decay=5.0), tmp_path, callback, logger=[book], **settings)
    assert list(callback.observers) == ["generator", "critic"]
    records = {name: observer.record() for name, observer in callback.observers.items()}
    assert [len(record) for record in records.values()] == [54, 108]
    assert {name.split(".")[0] for name in records["critic"].layer_names} == {"critic"}
    assert all(np.isnan(record.loss).all() for record in records.values())
    assert {finding.code for finding in callback.observers["critic"].alarms} == {"weight_decay_too_high"}
    assert not callback.observers["generator"].alarms
    assert records["generator"].meta["unoptimized"] == []
    assert "Thermoclaw, critic, step 16: [HIGH] Weight decay is eroding" in capsys.readouterr().out
    assert book.steps_of(f"{PREFIX}generator/sigma") == [*range(3, 52, 4), 53]
    assert book.steps_of(f"{PREFIX}critic/sigma") == [*range(1, 54, 2)]
    assert (tmp_path / "thermoclaw_critic" / outputs.RECORD_FILE).exists()
    assert callback.reports["generator"].healthy
    assert not callback.reports["critic"].healthy


def test_losses_of_several_optimizers_may_be_named(tmp_path: Path) -> None:
    callback = watch(loss=["generator", None])
    fit(Pair(), tmp_path, callback)
    assert np.isfinite(callback.observers["generator"].record().loss).all()
    assert np.isnan(callback.observers["critic"].record().loss).all()


# -- where it logs ----------------------------------------------------------------------------------------------------


def test_every_logger_gets_the_numbers_where_lightning_logs_the_same_batch(tmp_path: Path) -> None:
    books, callback = [Book(), Book()], watch()
    fit(Plain(), tmp_path, callback, logger=books)
    for book in books:
        assert book.steps_of("train_loss") == [3, 7, 11, 15]
        assert book.steps_of(f"{PREFIX}sigma") == [3, 7, 11, 15, 17]
        assert all(isinstance(x, float) for _, values in book.got for x in values.values() if PREFIX in str(values))


def test_points_of_accumulated_batches_and_refused_steps_stay_beside_lightnings(tmp_path: Path) -> None:
    book, callback = Book(), watch(log_every=1)
    settings = {"plugins": [scaled()], "log_every_n_steps": 1, "accumulate_grad_batches": 2}
    fit(Plain(overflow_at=(2,)), tmp_path, callback, logger=[book], **settings)
    assert book.steps_of("train_loss") == list(range(9))
    assert book.steps_of(f"{PREFIX}sigma") == [0, *range(2, 9)]  # the second step was refused


def test_a_logger_that_fails_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken, whole = Book(broken=True), Book()
    fit(Plain(), tmp_path, watch(), logger=[broken, whole])
    assert len([line for line in caplog.messages if "Book did not take the numbers" in line]) == 1
    assert len(whole.steps_of(f"{PREFIX}sigma")) == 5
    assert broken.steps_of("train_loss") == [3, 7, 11, 15]


@pytest.mark.parametrize("kind", [Plain, Manual, Pair])
def test_nothing_in_a_step_waits_for_the_device(
    kind: type[Plain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    for name in ("on_train_batch_end", "on_before_backward"):
        original = getattr(ThermoclawLightning, name)

        def guarded(*args: Any, original: Any = original) -> None:
            with trapped(reads):
                original(*args)

        monkeypatch.setattr(ThermoclawLightning, name, guarded)
    book = Book()
    fit(kind(decay=8.0), tmp_path, watch(quiet=False), logger=[book], max_epochs=2)
    assert any(f"{PREFIX}alarms" in name or name.endswith("/alarms") for _, values in book.got for name in values)
    assert reads == []


# -- alarms and the end -----------------------------------------------------------------------------------------------


def test_alarms_are_one_line_where_lightning_prints(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    printer = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    monkeypatch.setattr(printer, "propagate", True)
    for name in ("lightning", "lightning.pytorch"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        fit(Plain(decay=8.0), tmp_path, watch(quiet=False))
    (line,) = [line for line in caplog.messages if "Thermoclaw, step" in line]
    assert line.startswith("Thermoclaw, step 16: [HIGH] Weight decay is eroding")
    assert "\n" not in line
    assert any("Thermoclaw wrote thermoclaw_record.npz" in text for text in caplog.messages)


@pytest.mark.parametrize(("early_stop", "steps"), [("HIGH", 16), (None, 36)])
def test_it_stops_early_where_it_is_asked_to(early_stop: str | None, steps: int, tmp_path: Path) -> None:
    callback = watch(early_stop=early_stop)
    trainer = fit(Plain(decay=8.0), tmp_path, callback, max_epochs=2)
    assert trainer.global_step == steps
    assert callback.observer is not None
    events = [event for event in callback.observer.record().events if event["kind"] == "early_stop"]
    assert [event["finding"] for event in events] == (["weight_decay_too_high"] if early_stop else [])


def test_a_run_leaves_its_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    callback = watch(plot_on_end=True)
    fit(Plain(), tmp_path, callback)
    assert {path.name for path in tmp_path.glob("thermoclaw*")} == {
        outputs.RECORD_FILE,
        outputs.CSV_FILE,
        outputs.SPLIT_CSV_FILE,
        outputs.TEXT_FILE,
        outputs.JSON_FILE,
        outputs.DASHBOARD_FILE,
        outputs.SPLIT_FILE,
    }
    assert str(diagnose(Record.load(tmp_path / outputs.RECORD_FILE))) == str(callback.report)


def test_a_trial_run_and_a_remote_folder_get_no_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(Plain(), tmp_path, watch(), fast_dev_run=3)
    assert not list(tmp_path.glob("thermoclaw*"))
    fit(Plain(), tmp_path, watch(output_dir="s3://bucket/run"))
    assert "no files are written to s3://bucket/run: give a local folder" in caplog.text


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_run_leaves_what_had_reached_the_host(error: type[BaseException], tmp_path: Path) -> None:
    callback, module = watch(), Plain(fail_at=15)
    module.error = error
    with pytest.raises(SystemExit if error is KeyboardInterrupt else error):
        fit(module, tmp_path, callback)
    assert Record.load(tmp_path / outputs.RECORD_FILE).steps.tolist() == list(range(1, 9))
    (tmp_path / outputs.RECORD_FILE).unlink()
    with pytest.raises(ZeroDivisionError):  # of another kind, later: nothing is written again
        make(tmp_path, callback).validate(Failing(), loader(), verbose=False)
    assert not (tmp_path / outputs.RECORD_FILE).exists()


def test_a_run_that_fails_at_once_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / outputs.RECORD_FILE).write_bytes(b"an earlier run's")
    with pytest.raises(ValueError, match="on purpose"):
        fit(Plain(fail_at=0), tmp_path, watch())
    assert (tmp_path / outputs.RECORD_FILE).read_bytes() == b"an earlier run's"


class Failing(Plain):
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        raise ZeroDivisionError


def test_an_error_inside_turns_it_off_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr("thermoclaw.integrations.watch.Watch.has_stepped", fail)
    trainer = fit(Plain(), tmp_path, watch(strict=False))
    assert trainer.global_step == NUM_BATCHES
    assert len([x for x in caplog.messages if "ThermoclawLightning failed in on_train_batch_end" in x]) == 1
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(Plain(), tmp_path, watch())


# -- going on ---------------------------------------------------------------------------------------------------------


class Still(Plain):
    """Draws no random numbers, which Lightning's checkpoints do not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.net.drop = nn.Identity()


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """To the last bit, from a checkpoint that `weights_only=True` reads; also the points that were still to come."""
    whole, book = watch(log_every=17), Book()
    fit(Still(), tmp_path / "whole", whole, logger=[book], max_epochs=2)
    saver = ModelCheckpoint(tmp_path)
    fit(Still(), tmp_path, watch(log_every=17), callbacks=[saver], enable_checkpointing=True)
    torch.load(saver.best_model_path, weights_only=True)
    resumed, resumed_book = watch(log_every=17), Book()
    trainer = make(tmp_path, resumed, logger=[resumed_book], max_epochs=2)
    trainer.fit(Still(), loader(), ckpt_path=saver.best_model_path)
    assert whole.observer is not None
    assert resumed.observer is not None
    assert_same_record(resumed.observer.record(), whole.observer.record())
    assert resumed.observer.epoch_history == whole.observer.epoch_history
    mine = [[point for point in b.got if f"{PREFIX}sigma" in point[1]] for b in (resumed_book, book)]
    assert [place for place, _ in mine[0]] == [16, 33, 35]
    assert mine[0] == mine[1]


def test_a_checkpoint_without_its_state_resumes_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=10, save_top_k=-1)
    fit(Plain(), tmp_path, None, callbacks=[saver], enable_checkpointing=True, max_steps=10)
    (path,) = tmp_path.glob("*.ckpt")
    callback = watch()
    make(tmp_path, callback).fit(Plain(), loader(), ckpt_path=path)
    assert callback.observer is not None
    assert callback.observer.record().steps.tolist() == list(range(11, NUM_BATCHES + 1))
    assert "the record begins after step 10, as nothing of thermoclaw was kept from before" in caplog.text


def test_the_same_trainer_can_fit_on_and_another_begins_anew(tmp_path: Path) -> None:
    callback, module = watch(), Plain()
    trainer = fit(module, tmp_path, callback)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader())
    assert callback.observer is not None
    record = callback.observer.record()
    assert record.steps.tolist() == list(range(1, 2 * NUM_BATCHES + 1))
    assert np.isnan(record["coherence"][NUM_BATCHES]).all()  # weights may have been changed between the two
    fit(Plain(), tmp_path, callback)
    assert callback.observer.record().steps.tolist() == list(range(1, NUM_BATCHES + 1))


def test_a_callback_can_be_copied_and_pickled(tmp_path: Path) -> None:
    callback = watch(log_every=7)
    fit(Plain(), tmp_path, callback)
    for other in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert other.log_every == 7
        assert other.observers == {}
        fit(Plain(), tmp_path, other)
        assert len(other.observer.record()) == NUM_BATCHES


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"log_every": 0}, "log_every=0: give a whole number of at least 1"),
        ({"early_stop": "LOW"}, "early_stop='LOW': choose one of HIGH, MEDIUM, or None"),
        ({"mode": "fast"}, "mode='fast': choose one of sketch, exact"),
        ({"every": True}, "every=True: give a whole number"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ThermoclawLightning(**settings)


def test_what_cannot_be_observed_trains_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class DeepSpeedStrategy:
        pass

    def check(trainer: Any) -> None:
        from thermoclaw.integrations.lightning_trainer import check_strategy

        trainer = type("Trainer", (), {"strategy": DeepSpeedStrategy()})()
        check_strategy(trainer)

    monkeypatch.setattr("thermoclaw.integrations.lightning.check_strategy", check)
    callback = watch(strict=False)
    trainer = fit(Plain(), tmp_path, callback)
    assert trainer.global_step == NUM_BATCHES
    assert "this run is not observed: Lightning's DeepSpeed strategy is not supported" in caplog.text
    assert callback.report is None


def test_it_works_where_only_pytorch_lightning_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    program = f"""
import sys
sys.modules["lightning"] = None
import torch, pytorch_lightning as pl
from thermoclaw.integrations.lightning import ThermoclawLightning
assert issubclass(ThermoclawLightning, pl.Callback)
class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 2)
    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
callback = ThermoclawLightning(plot_on_end=False, strict=True)
trainer = pl.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[callback],
                     default_root_dir={str(tmp_path)!r}, enable_progress_bar=False)
trainer.fit(Module(), torch.utils.data.DataLoader(torch.randn(24, 4), batch_size=2))
assert len(callback.observer.record()) == 12
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Thermoclaw wrote thermoclaw_record.npz" in done.stderr


def test_without_lightning_the_extra_is_named() -> None:
    program = """
import sys
sys.modules["lightning"] = sys.modules["pytorch_lightning"] = None
import thermoclaw.integrations.lightning
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert "ImportError: the callback for Lightning needs lightning: pip install 'thermoclaw[lightning]'" in done.stderr


# -- page and example --------------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "lightning.md").read_text(encoding="utf-8")
    block = text[text.index("```python\n") + 10 :]
    exec(compile(block[: block.index("```")], "lightning.md", "exec"), {"__name__": "__main__"})
    assert "True []" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "steps"), [(["--epochs", "2"], 60), (["--lr", "0.1", "--early-stop", "HIGH"], 16)]
)
def test_the_example_runs(arguments: list[str], steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "argv", ["lightning_trainer.py", *arguments, "--folder", str(tmp_path)])
    runpy.run_path(str(ROOT / "examples" / "lightning_trainer.py"), run_name="__main__")
    (folder,) = tmp_path.glob("lightning_logs/version_0")
    assert (folder / outputs.DASHBOARD_FILE).exists()
    record = Record.load(folder / outputs.RECORD_FILE)
    assert record.num_steps == steps
    rows = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert f"{PREFIX}sigma" in rows[0]


# -- several processes -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_shards
def test_several_processes(tmp_path: Path) -> None:
    """DDP: the main process measures. FSDP2: all do. Both see the run of one process, and stop together."""
    ways = [("ddp", 0.01, True), ("ddp", 0.01, False), ("fully", 0.01, True), ("ddp", 8.0, True), ("fully", 8.0, True)]
    calls = [(lightning_programs.run, way, str(tmp_path / f"{i}"), *rest) for i, (way, *rest) in enumerate(ways)]
    answers = programs.launch(programs.several, 2, calls, seconds=300)
    for answer in answers:
        assert not isinstance(answer, Exception), answer
        assert answer is not None, "a process died or hung"
    main, other = answers
    net = programs.make_net(torch.float64)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
    observer = Observer(nn.ModuleDict({"net": net}), optimizer, strict=True)
    for _ in range(2):
        programs.train(net, optimizer, observer=observer)
    want = programs.columns(observer.record())
    for found in (main[0], main[2], other[2]):
        assert found["columns"]["layers"] == want["layers"]
        assert found["columns"]["steps"].tolist() == list(range(1, 49))
        for name in programs.QUANTITIES:
            np.testing.assert_allclose(found["columns"][name], want[name], rtol=1e-6, atol=1e-9, err_msg=name)
    assert other[0]["columns"] is None, "one process is enough where gradients are the same on all"
    assert_bitwise(main[0]["weights"], main[1]["weights"])
    assert outputs.RECORD_FILE in main[0]["files"]
    assert outputs.RECORD_FILE in main[2]["files"]
    assert [answer[i]["steps"] for i in (3, 4) for answer in answers] == [24] * 4, "at the end of the first epoch"
    assert main[3]["alarms"] == main[4]["alarms"] == other[4]["alarms"] == ["weight_decay_too_high"]
    assert other[3]["alarms"] == []
