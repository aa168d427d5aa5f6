"""The Trainer callback, with a real `Trainer`, a GPT-2 built from a config, and real English text."""

from __future__ import annotations

import atexit
import importlib.util
import inspect
import json
import pickle
import re
import runpy
import shutil
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from thermoclaw import Observer, Record, diagnose
from thermoclaw.diagnosis.finding import CONFIDENCES
from thermoclaw.integrations import huggingface, outputs
from thermoclaw.integrations.huggingface import ThermoclawCallback
from thermoclaw.integrations.scalars import PREFIX, SCALARS, rows_needed, scalars
from thermoclaw.integrations.trainer_access import check_supported
from thermoclaw.integrations.watch import stops
from thermoclaw.quantities import LAYER_COLUMNS, RUN_COLUMNS
from thermoclaw.record import LayerInfo

ROOT = Path(__file__).resolve().parent.parent
LENGTH, BATCH, NUM_EXAMPLES, LR = 32, 4, 64, 2e-3
FILES = {
    outputs.RECORD_FILE,
    outputs.CSV_FILE,
    outputs.SPLIT_CSV_FILE,
    outputs.TEXT_FILE,
    outputs.JSON_FILE,
    outputs.DASHBOARD_FILE,
    outputs.SPLIT_FILE,
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning:torch"),
    pytest.mark.filterwarnings("ignore:`torch.cpu.amp.autocast:FutureWarning"),  # Accelerate 1.1
    pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD:UserWarning"),
]


# -- a small real job --------------------------------------------------------------------------------------------------


class Words(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Windows of the English of Python's language reference, in words and marks; rare ones share a token."""

    def __init__(self, num_examples: int = NUM_EXAMPLES) -> None:
        pieces = re.findall(r"\w+|[^\w\s]", " ".join(topics[name] for name in sorted(topics)))
        pieces = pieces[: num_examples * LENGTH]
        common = [piece for piece, _ in Counter(pieces).most_common(199)]
        place = {piece: i + 1 for i, piece in enumerate(common)}
        self.tokens = torch.tensor([place.get(piece, 0) for piece in pieces]).view(num_examples, LENGTH)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


WORDS = Words()


def gpt2(num_layers: int = 2) -> GPT2LMHeadModel:
    set_seed(0)
    shape = {"n_embd": 32, "n_layer": num_layers, "n_head": 2, "n_positions": LENGTH, "vocab_size": 200}
    return GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM"))


def make_trainer(folder: Path, *callbacks: TrainerCallback, model: Any = None, **settings: Any) -> Trainer:
    """A Trainer of 16 steps an epoch (8 with two micro-batches a step) on the CPU."""
    extra = {key: settings.pop(key) for key in ("optimizer_cls_and_kwargs", "eval_dataset") if key in settings}
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": LR,
        "logging_steps": 4,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    args = TrainingArguments(str(folder), **{**defaults, **settings})
    model = model if model is not None else gpt2()
    return Trainer(model=model, args=args, train_dataset=WORDS, callbacks=list(callbacks), **extra)


WHOLE: dict[str, Any] = {
    "num_train_epochs": 3,
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 0.5,
    "weight_decay": 0.1,
    "eval_strategy": "epoch",
    "eval_dataset": Words(8),
}


def losses(trainer: Trainer) -> dict[int, float]:
    """The Trainer's own loss line by step."""
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def old_trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest read random numbers' state in a way that torch 2.6 refuses, and leave their precision behind."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Three epochs of eight steps, two micro-batches a step, clipped; TensorBoard, W&B, evaluation, checkpoints."""
    reporters = [name for name in ("tensorboard", "wandb") if importlib.util.find_spec(name)]
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
            patch.setenv(f"WANDB_{name}", str(folder / "wandb_files"))
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        (folder / "wandb_files").mkdir()
        callback = ThermoclawCallback(log_every=5, strict=True)
        trainer = make_trainer(
            folder / "out",
            callback,
            **WHOLE,
            save_strategy="steps",
            save_steps=11,
            report_to=reporters,
            run_name="whole",
        )
        trainer.train()
        if "wandb" in reporters:
            sys.modules["wandb"].finish()
    return SimpleNamespace(folder=folder / "out", trainer=trainer, callback=callback, wandb=folder / "wandb_files")


# -- what it measures --------------------------------------------------------------------------------------------------


def test_a_run_leaves_its_files(whole_run: SimpleNamespace) -> None:
    pytest.importorskip("matplotlib")
    files = {path.name for path in whole_run.folder.glob("thermoclaw*")}
    assert files == FILES
    assert all((whole_run.folder / name).stat().st_size > 200 for name in files)
    assert (whole_run.folder / outputs.DASHBOARD_FILE).read_bytes().startswith(b"\x89PNG")
    record = Record.load(whole_run.folder / outputs.RECORD_FILE)
    assert str(diagnose(record)) == str(whole_run.callback.report)
    assert (whole_run.folder / outputs.TEXT_FILE).read_text(encoding="utf-8").strip() == str(whole_run.callback.report)
    saved = json.loads((whole_run.folder / outputs.JSON_FILE).read_text(encoding="utf-8"))
    assert saved["healthy"] is True
    assert saved["summary"] == whole_run.callback.report.summary


def test_one_row_per_optimizer_step_with_layers_and_epochs(whole_run: SimpleNamespace) -> None:
    record = whole_run.callback.observer.record()
    assert record.steps.tolist() == list(range(1, 25))
    assert record["epoch"].tolist() == [0.0] * 8 + [1.0] * 8 + [2.0] * 8
    assert {"transformer.wte", "transformer.h.1.attn.c_attn", "transformer.ln_f"} <= set(record.layer_names)
    epochs = whole_run.callback.observer.epoch_history
    evaluated = [entry["eval_loss"] for entry in whole_run.trainer.state.log_history if "eval_loss" in entry]
    assert [epoch["val_loss"] for epoch in epochs] == evaluated


def test_the_real_optimizer_is_observed_with_its_real_schedule(whole_run: SimpleNamespace) -> None:
    record = whole_run.callback.observer.record()
    assert record.optimizer == type(whole_run.trainer.optimizer.optimizer).__name__
    schedule = LR * (1 - np.arange(24) / 24)
    np.testing.assert_allclose(record["lr"], np.broadcast_to(schedule[:, None], record["lr"].shape), rtol=1e-6)
    decay = dict(zip(record.layer_names, record["weight_decay"][-1], strict=True))
    assert decay["transformer.ln_f"] == 0.0  # the Trainer leaves norms and biases without decay
    assert decay["transformer.wte"] == 0.1


def test_the_loss_of_a_step_is_the_trainers(whole_run: SimpleNamespace) -> None:
    loss = whole_run.callback.observer.record().loss
    logged = losses(whole_run.trainer)
    assert sorted(logged) == [4, 8, 12, 16, 20, 24]
    means = [loss[step - 4 : step].mean() for step in sorted(logged)]
    np.testing.assert_allclose(means, [logged[step] for step in sorted(logged)], rtol=2e-4)


def test_the_gradient_is_the_clipped_one(whole_run: SimpleNamespace) -> None:
    norms = np.sqrt(whole_run.callback.observer.record()["grad_sq"].sum(axis=1))
    logged = {e["step"]: e["grad_norm"] for e in whole_run.trainer.state.log_history if "grad_norm" in e}
    assert max(logged.values()) > 0.5
    clipped = {step: min(norm, 0.5) for step, norm in logged.items()}
    np.testing.assert_allclose([norms[step - 1] for step in clipped], list(clipped.values()), rtol=1e-4)


def test_tables_have_a_row_for_every_point(whole_run: SimpleNamespace) -> None:
    lines = (whole_run.folder / outputs.CSV_FILE).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("step,epoch,optimizer,D,rho_mean,R_median,E_param_dist,loss,layer_name,layer_type")
    assert sorted({int(line.split(",")[0]) for line in lines[1:]}) == [5, 10, 15, 20, 24]


# -- where it logs -----------------------------------------------------------------------------------------------------

POINTS = [5, 10, 15, 20, 24]


def test_the_numbers_are_in_tensorboards_event_file(whole_run: SimpleNamespace) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = (whole_run.folder / "runs").rglob("events.out.tfevents*")
    events = EventAccumulator(str(file)).Reload()
    read = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    assert read["train/loss"] == pytest.approx(losses(whole_run.trainer), rel=1e-6)
    assert sorted(read["eval/loss"]) == [8, 16, 24]
    mine = {tag for tag in read if tag.startswith(PREFIX)}
    assert mine == {PREFIX + name for name in [*(s.name for s in SCALARS), "alarms"]}
    assert 10 <= len(mine) <= 30
    assert all(sorted(read[tag]) == POINTS for tag in mine - {f"{PREFIX}overshoot_share"})
    record = whole_run.callback.observer.record()
    for step, steps in zip(POINTS, (5, 5, 5, 5, 4), strict=True):
        expected = scalars(record.rows(stop=step + 1), steps=steps)
        assert {tag: read[tag][step] for tag in expected} == pytest.approx(expected, rel=1e-5)


def wandb_history(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of an offline run. The file is LevelDB's log: blocks of 32 KiB, chunks with crc, length and kind."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or last part
            record = wandb_internal_pb2.Record.FromString(parts)
            parts = b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_the_numbers_are_in_wandbs_offline_run(whole_run: SimpleNamespace) -> None:
    pytest.importorskip("wandb")
    (file,) = whole_run.wandb.rglob("run-*.wandb")
    rows = list(wandb_history(file))
    loss = {row["train/global_step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert loss == pytest.approx(losses(whole_run.trainer))
    overhead = {row["train/global_step"]: row["thermoclaw/R_ie"] for row in rows if "thermoclaw/R_ie" in row}
    assert sorted(overhead) == POINTS
    record = whole_run.callback.observer.record()
    assert overhead[10] == pytest.approx(scalars(record.rows(stop=11), steps=5)["thermoclaw/R_ie"])


class Carrier(TrainerCallback):
    """A reporter as transformers has them, as far as the feed can tell."""

    __module__ = "transformers.integrations.carrier"

    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken
        self.got: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.broken and any(name.startswith(PREFIX) for name in logs):
            raise ConnectionError("no network")
        self.got.append((state.global_step, dict(logs)))


class Sibling(Carrier):
    """A user's own version of a reporter."""

    __module__ = "mine"


def test_any_other_reporter_gets_them_through_on_log(tmp_path: Path) -> None:
    carrier, callback = Sibling(), ThermoclawCallback(log_every=6, enable_entropy_split=False, plot_on_end=False)
    trainer = make_trainer(tmp_path, callback, carrier)
    trainer.train()
    mine = [(step, logs) for step, logs in carrier.got if "thermoclaw/sigma" in logs]
    assert [step for step, _ in mine] == [6, 12, 16]
    assert not any("loss" in logs for _, logs in mine)
    assert "thermoclaw/R_ie" not in mine[0][1]
    assert {step for step, logs in carrier.got if "loss" in logs} == {4, 8, 12, 16}
    assert not any(name.startswith(PREFIX) for entry in trainer.state.log_history for name in entry)
    assert not (tmp_path / outputs.SPLIT_CSV_FILE).exists()
    assert not (tmp_path / outputs.DASHBOARD_FILE).exists()


def test_a_reporter_that_fails_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken, whole = Carrier(broken=True), Sibling()
    callback = ThermoclawCallback(log_every=4, plot_on_end=False, strict=True)
    make_trainer(tmp_path, callback, broken, whole).train()
    said = [line for line in caplog.messages if "Carrier did not take the numbers" in line]
    assert len(said) == 1
    assert [step for step, logs in whole.got if "thermoclaw/sigma" in logs] == [4, 8, 12, 16]


# -- it never changes training -----------------------------------------------------------------------------------------


def everything(trainer: Trainer) -> dict[str, Any]:
    """What a run leaves: parameters, optimizer, schedule, random numbers, log."""
    optimizer = trainer.optimizer.optimizer.state_dict()
    log = [
        {k: v for k, v in entry.items() if "runtime" not in k and "second" not in k}
        for entry in trainer.state.log_history
    ]
    return {
        "parameters": {name: p.detach().clone() for name, p in trainer.model.named_parameters()},
        "state": {f"{i}.{k}": v for i, state in optimizer["state"].items() for k, v in state.items()},
        "groups": optimizer["param_groups"],
        "schedule": trainer.lr_scheduler.state_dict(),
        "random": {
            "torch": torch.get_rng_state(),
            "numpy": torch.from_numpy(np.random.get_state()[1].astype(np.int64)),  # noqa: NPY002
        },
        "log": log,
    }


@pytest.mark.parametrize(
    "settings",
    [{"gradient_accumulation_steps": 3, "max_grad_norm": 0.7}, {"bf16": True, "optim": "adafactor"}],
    ids=["accumulated", "bf16"],
)
def test_training_is_bitwise_the_same(tmp_path: Path, settings: dict[str, Any]) -> None:
    runs = []
    for callbacks in ([], [ThermoclawCallback(log_every=2, strict=True, plot_on_end=False)]):
        trainer = make_trainer(tmp_path, *callbacks, num_train_epochs=1, **settings)
        trainer.train()
        runs.append(everything(trainer))
    without, with_it = runs
    for part in ("parameters", "state", "random"):
        assert without[part].keys() == with_it[part].keys()
        for key, value in without[part].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(with_it[part][key])), (part, key)
    for part in ("groups", "schedule", "log"):
        assert without[part] == with_it[part]


def test_the_trainer_is_left_as_it_was(whole_run: SimpleNamespace) -> None:
    trainer = whole_run.trainer
    assert "training_step" not in vars(trainer)
    assert not trainer.optimizer.optimizer._optimizer_step_pre_hooks
    assert not trainer.optimizer.optimizer._optimizer_step_post_hooks
    pickle.dumps(trainer.state)
    assert "hermoclaw" not in json.dumps(trainer.state.log_history)


def test_the_same_trainer_can_train_again(tmp_path: Path) -> None:
    callback = ThermoclawCallback(plot_on_end=False, strict=True)
    trainer = make_trainer(tmp_path, callback, max_steps=9)
    trainer.train()
    first = callback.observer
    trainer.train()
    assert callback.observer is not first
    assert callback.observer.record().steps.tolist() == list(range(1, 10))
    assert np.isfinite(callback.observer.record().loss).all()


def test_a_callback_can_be_given_as_a_class_and_pickled(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ThermoclawCallback)  # type: ignore[arg-type]
    assert any(isinstance(c, ThermoclawCallback) for c in trainer.callback_handler.callbacks)
    assert pickle.loads(pickle.dumps(ThermoclawCallback(7, False, False, "there"))).log_every == 7


# -- optimizers, alarms ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    "optimizer_cls_and_kwargs" not in inspect.signature(Trainer).parameters, reason="needs transformers 4.47 or newer"
)
def test_an_alarm_is_shown_while_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An optimizer class of the user's, and decay that erodes the weights."""
    callback = ThermoclawCallback(log_every=8, plot_on_end=False, strict=True)
    carrier = Carrier()
    settings = {"weight_decay": 5.0, "lr_scheduler_type": "constant", "num_train_epochs": 3}
    sgd = (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9})
    make_trainer(tmp_path, callback, carrier, optimizer_cls_and_kwargs=sgd, **settings).train()
    assert callback.observer.record().optimizer == "SGD"
    assert callback.observer.record()["momentum"].max() == pytest.approx(0.9)
    alarm = callback.alarms[0]
    assert alarm.code == "weight_decay_too_high"
    assert alarm.raised_step <= 32
    shown = capsys.readouterr().out
    assert f"Thermoclaw, step {alarm.raised_step}: [{alarm.confidence}] Weight decay is eroding" in shown
    assert shown.index("Weight decay is eroding") < shown.index("train_runtime")  # before training ended
    assert "Thermoclaw wrote thermoclaw_record.npz" in shown
    counts = {step: logs["thermoclaw/alarms"] for step, logs in carrier.got if "thermoclaw/alarms" in logs}
    assert counts[8] == 0
    assert counts[48] >= 1
    assert not callback.report.healthy


ERODING = {"weight_decay": 5.0, "lr_scheduler_type": "constant", "optim": "sgd", "learning_rate": 0.01}


@pytest.mark.parametrize(("early_stop", "steps"), [("HIGH", 16), (None, 32)])
def test_it_stops_early_where_it_is_asked_to(
    early_stop: str | None, steps: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = ThermoclawCallback(early_stop=early_stop, plot_on_end=False, strict=True)
    trainer = make_trainer(tmp_path, callback, num_train_epochs=2, **ERODING)
    trainer.train()
    assert trainer.state.global_step == callback.observer.record().num_steps == steps
    assert callback.alarms[0].code == "weight_decay_too_high"
    assert callback.alarms[0].confidence == "HIGH"
    events = [event for event in Record.load(tmp_path / outputs.RECORD_FILE).events if event["kind"] == "early_stop"]
    assert [(event["step"], event["finding"]) for event in events] == (
        [(16, "weight_decay_too_high")] if early_stop else []
    )
    shown = capsys.readouterr().out
    assert shown.count("Thermoclaw stops training, as early_stop=") == (1 if early_stop else 0)
    assert "Thermoclaw wrote thermoclaw_record.npz" in shown
    trainer.train()  # the next run is one of its own
    assert trainer.state.global_step == steps


def test_quiet_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer(tmp_path, ThermoclawCallback(quiet=True, plot_on_end=False), max_steps=2).train()
    assert "hermoclaw" not in capsys.readouterr().out


def test_a_terminal_without_unicode_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def write(text: str) -> None:
        written.append(text.encode("ascii").decode())

    monkeypatch.setattr(huggingface.tqdm, "write", write)
    callback = ThermoclawCallback(plot_on_end=False, strict=True)
    make_trainer(tmp_path, callback, max_steps=12).train()
    assert "Thermoclaw: " in "".join(written)


# -- resume ------------------------------------------------------------------------------------------------------------


def resumed(folder: Path, checkpoint: Path | bool, *reporters: TrainerCallback, **settings: Any) -> ThermoclawCallback:
    """The rest of the whole run, again, from one of its checkpoints."""
    callback = ThermoclawCallback(log_every=5, plot_on_end=False, strict=True)
    trainer = make_trainer(folder, callback, *reporters, **{**WHOLE, **settings})
    trainer.train(resume_from_checkpoint=str(checkpoint) if isinstance(checkpoint, Path) else checkpoint)
    return callback


def points(carrier: Carrier) -> dict[int, dict[str, float]]:
    return {step: logs for step, logs in carrier.got if "thermoclaw/sigma" in logs}


def assert_same(got: ThermoclawCallback, want: ThermoclawCallback) -> None:
    """The same rows to the last bit, events, epochs, alarms and findings."""
    one, two = got.observer.record(), want.observer.record()
    assert one.steps.tolist() == two.steps.tolist()
    assert one.layer_values.tobytes() == two.layer_values.tobytes()
    assert one.run_values.tobytes() == two.run_values.tobytes()
    assert one.events == two.events
    assert got.observer.epoch_history == want.observer.epoch_history
    assert got.alarms == want.alarms
    assert str(got.report) == str(want.report)


@pytest.mark.parametrize("step", [11, 22])
def test_a_resumed_run_is_the_whole_run(whole_run: SimpleNamespace, tmp_path: Path, step: int) -> None:
    """In the middle of an epoch; points whose rows had not reached the host by then come now."""
    carrier = Carrier()
    assert_same(resumed(tmp_path, whole_run.folder / f"checkpoint-{step}", carrier), whole_run.callback)
    assert list(points(carrier)) == {11: [10, 15, 20, 24], 22: [20, 24]}[step]


def test_a_run_resumed_between_epochs_after_an_alarm_is_the_whole_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its points and alarms come once, and the epoch that ended with the checkpoint is closed with its evaluation."""
    failing = {"learning_rate": 1.0, "lr_scheduler_type": "constant", "num_train_epochs": 5}
    whole, first, second = Carrier(), Carrier(), Carrier()
    want = ThermoclawCallback(log_every=5, plot_on_end=False, strict=True)
    make_trainer(tmp_path / "whole", want, whole, **{**WHOLE, **failing}).train()
    shown = capsys.readouterr().out
    callback = ThermoclawCallback(log_every=5, plot_on_end=False, strict=True)
    settings = {**WHOLE, **failing, "save_strategy": "epoch", "num_train_epochs": 3}
    make_trainer(tmp_path / "cut", callback, first, **settings).train()
    before = capsys.readouterr().out
    got = resumed(tmp_path / "cut", tmp_path / "cut" / "checkpoint-24", second, **failing)
    after = capsys.readouterr().out
    assert_same(got, want)
    assert want.alarms
    assert len(want.observer.epoch_history) == 5
    for alarm in want.alarms:
        assert [alarm.message in text for text in (shown, before, after)] in ([True, True, False], [True, False, True])
    one, two = points(first), points(second)
    assert {**one, **two}.keys() >= points(whole).keys()
    for step, logs in points(whole).items():
        if step in two:
            assert two[step] == logs
    assert min(two) == 25


def without_state(whole_run: SimpleNamespace, folder: Path) -> Path:
    """The checkpoint as an earlier version left it."""
    checkpoint = folder / "checkpoint-11"
    shutil.copytree(whole_run.folder / "checkpoint-11", checkpoint)
    (checkpoint / "thermoclaw_state.pt").unlink()
    return checkpoint


@pytest.mark.parametrize("state", ["missing", "damaged", "strange", "of another step"])
def test_resume_continues_the_record(
    whole_run: SimpleNamespace, tmp_path: Path, state: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = without_state(whole_run, tmp_path)
    if state == "damaged":
        (checkpoint / "thermoclaw_state.pt").write_bytes(b"PK\x03\x04 cut short")
    elif state == "strange":
        torch.save(
            {"global_step": 11, "epoch_step": 8, "val_loss": None, "observer": {}}, checkpoint / "thermoclaw_state.pt"
        )
    elif state == "of another step":
        shutil.copy(whole_run.folder / "checkpoint-22" / "thermoclaw_state.pt", checkpoint)
    earlier = Record.load(checkpoint / outputs.RECORD_FILE)
    assert earlier.steps.tolist() == list(range(1, 12))
    record = resumed(tmp_path / "again", checkpoint).observer.record()
    assert any("thermoclaw_state.pt is not used, as" in line for line in caplog.messages) is (state != "missing")
    whole = whole_run.callback.observer.record()
    assert record.steps.tolist() == whole.steps.tolist()
    np.testing.assert_array_equal(record.layer_values[:11], earlier.layer_values)
    assert {"kind": "resume", "step": 11} in record.events
    # Training from the checkpoint is the same training, so what needs no memory is the same on both sides of the seam.
    for name in ("grad_sq", "param_sq", "update_sq", "sigma", "lr", "loss", "epoch"):
        np.testing.assert_allclose(record[name], whole[name], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(record["coherence"][12:], whole["coherence"][12:], atol=1e-5)
    assert np.isnan(record["coherence"][11]).all()  # the gradient before the seam is not known


@pytest.mark.parametrize("sidecar", ["missing", "damaged"])
def test_resume_without_earlier_rows(
    whole_run: SimpleNamespace, tmp_path: Path, sidecar: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = without_state(whole_run, tmp_path)
    (checkpoint / outputs.RECORD_FILE).unlink()
    if sidecar == "damaged":
        (checkpoint / outputs.RECORD_FILE).write_bytes(b"PK\x03\x04 cut short")
    callback = resumed(tmp_path, True)
    record = callback.observer.record()
    assert record.steps.tolist() == list(range(12, 25))
    np.testing.assert_allclose(record["grad_sq"], whole_run.callback.observer.record()["grad_sq"][11:], rtol=1e-5)
    assert record["epoch"].tolist() == [1.0] * 5 + [2.0] * 8
    said = "has no record that can be read" if sidecar == "damaged" else "has no record;"
    assert any(said in line and "begins at step 12" in line for line in caplog.messages)
    assert Record.load(tmp_path / outputs.RECORD_FILE).steps.tolist() == list(range(12, 25))


def test_resuming_a_finished_run_overwrites_nothing(whole_run: SimpleNamespace, tmp_path: Path) -> None:
    callback = ThermoclawCallback(output_dir=str(tmp_path / "results"), strict=True)
    make_trainer(tmp_path, callback, **WHOLE).train(resume_from_checkpoint=str(whole_run.folder / "checkpoint-24"))
    assert callback.observer.record().num_steps == 24
    assert not (tmp_path / "results").exists()


def steps_of(model: torch.nn.Module, observer: Observer, optimizer: Any, count: int) -> None:
    for _ in range(count):
        model(torch.ones(2, 4)).square().mean().backward()
        optimizer.step()
        observer.step()
        optimizer.zero_grad()


def test_an_observer_resumes_with_a_record_of_its_own_layers_only() -> None:
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    first = Observer(model, optimizer)
    steps_of(model, first, optimizer, 5)
    record = first.record()
    first.close()
    again = Observer(model, optimizer)
    assert again.resume(record) is True
    assert again.global_step == 5
    steps_of(model, again, optimizer, 3)
    assert again.record().steps.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    with pytest.raises(RuntimeError, match="before the first step"):
        again.resume(record)
    again.close()

    other = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.01)
    stranger = Observer(other, optimizer)
    assert stranger.resume(record, step=7, epoch=2) is False
    steps_of(other, stranger, optimizer, 2)
    assert stranger.record().steps.tolist() == [8, 9]
    assert stranger.record()["epoch"].tolist() == [2.0, 2.0]


# -- it never stops training -------------------------------------------------------------------------------------------


def test_an_internal_error_turns_it_off_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(Observer, "step", broken)
    trainer = make_trainer(tmp_path, ThermoclawCallback(), max_steps=3)
    assert trainer.train().global_step == 3
    assert sum("failed in on_optimizer_step and is off" in line for line in caplog.messages) == 1
    assert "training_step" not in vars(trainer)
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        make_trainer(tmp_path, ThermoclawCallback(strict=True), max_steps=3).train()


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    callback = ThermoclawCallback(output_dir=str(tmp_path / "file" / "below"), strict=True)
    assert make_trainer(tmp_path, callback, max_steps=2).train().global_step == 2
    said = [line for line in caplog.messages if "was not written: cannot write" in line]
    assert {line.split()[1] for line in said} == FILES
    assert callback.report is not None


def test_without_matplotlib_the_rest_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in sys.modules if name.startswith(("matplotlib", "thermoclaw.report."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    make_trainer(tmp_path, ThermoclawCallback(strict=True), max_steps=2).train()
    assert sum("no pictures: drawing needs matplotlib" in line for line in caplog.messages) == 1
    assert {path.name for path in tmp_path.glob("thermoclaw*")} == FILES - {outputs.DASHBOARD_FILE, outputs.SPLIT_FILE}


class Stops(TrainerCallback):
    """An error in the middle of a run."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 11:
            raise RuntimeError("the disk is full")


def test_an_interrupted_run_is_written_when_python_exits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_exit: list[Any] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    callback = ThermoclawCallback(strict=True)
    with pytest.raises(RuntimeError, match="the disk is full"):
        make_trainer(tmp_path, callback, Stops()).train()
    assert not list(tmp_path.glob("thermoclaw*"))
    mine = [run for run in at_exit if getattr(run, "func", None) is huggingface._rescue]
    assert len(mine) == 1
    mine[0]()
    assert Record.load(tmp_path / outputs.RECORD_FILE).num_steps >= 8
    assert {path.name for path in tmp_path.glob("thermoclaw*")} == FILES - {outputs.DASHBOARD_FILE, outputs.SPLIT_FILE}
    before = (tmp_path / outputs.RECORD_FILE).stat().st_mtime_ns
    mine[0]()  # what a later run wrote is not overwritten
    assert (tmp_path / outputs.RECORD_FILE).stat().st_mtime_ns == before
    assert callback.save(tmp_path / "by_hand")
    assert Record.load(tmp_path / "by_hand" / outputs.RECORD_FILE).num_steps == 11


def test_other_processes_and_what_cannot_be_measured_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    callback = ThermoclawCallback()
    args, state = SimpleNamespace(output_dir="."), SimpleNamespace(is_world_process_zero=False, global_step=0, epoch=0)
    callback.on_train_begin(args, state, None, model=model, optimizer=optimizer)
    callback.on_train_end(args, state, None)
    assert callback.observer is None
    state.is_world_process_zero = True
    callback.on_train_begin(args, state, None, model=torch.nn.Linear(2, 2), optimizer=optimizer, extra=1)
    assert callback.observer is None
    assert "not observed: model and optimizer share no parameter" in caplog.text
    with pytest.raises(ValueError, match="share no parameter"):
        ThermoclawCallback(strict=True).on_train_begin(
            args, state, None, model=torch.nn.Linear(2, 2), optimizer=optimizer
        )


def test_the_first_fsdp_is_refused() -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=re.escape("fsdp_config={'version': 2} in TrainingArguments")):
        check_supported(SimpleNamespace(is_fsdp_enabled=True), model)
    model.weight.device_mesh = None  # as a DTensor has it
    check_supported(SimpleNamespace(is_fsdp_enabled=True), model)


def test_confidences_at_which_it_stops() -> None:
    for early_stop, stopped in ((None, []), ("HIGH", ["HIGH"]), ("MEDIUM", ["HIGH", "MEDIUM"])):
        assert [c for c in CONFIDENCES if stops(SimpleNamespace(confidence=c), early_stop)] == stopped


def test_a_step_that_the_loss_scaler_refused_has_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.optimizer import AcceleratedOptimizer

    monkeypatch.setattr(AcceleratedOptimizer, "step_was_skipped", property(lambda _: True))
    callback = ThermoclawCallback(plot_on_end=False, strict=True)
    make_trainer(tmp_path, callback, max_steps=3).train()
    assert np.isnan(callback.observer.record().loss).all()


def test_wrong_settings_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="log_every=0: give a whole number of at least 1"):
        ThermoclawCallback(log_every=0)
    with pytest.raises(ValueError, match="early_stop='LOW': choose one of HIGH, MEDIUM, or None"):
        ThermoclawCallback(early_stop="LOW")
    with pytest.raises(ValueError, match="mode='fast': choose one of sketch, exact"):
        ThermoclawCallback(mode="fast")
    with pytest.raises(TypeError, match="every_n"):
        ThermoclawCallback(every_n=3)


def test_without_transformers_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    spec = importlib.util.spec_from_file_location("without_transformers", huggingface.__file__)
    with pytest.raises(ImportError, match=re.escape("pip install 'thermoclaw[hf]'")):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# -- the numbers themselves --------------------------------------------------------------------------------------------


def test_scalars_are_sums_and_means_over_the_window() -> None:
    rng = np.random.default_rng(0)
    layer = {name: rng.uniform(0.1, 1.0, (60, 3)) for name in LAYER_COLUMNS}
    for part in ("d_iS_wd", "d_iS_momentum", "d_iS_noise"):
        layer[part] = 0.25 * layer["sigma"] * rng.uniform(0, 1, (60, 3))
    layer["coherence"][:, 2] = np.nan
    values = np.stack([layer[name] for name in LAYER_COLUMNS], axis=-1)
    layers = tuple(LayerInfo(f"l{i}", "mlp", 10) for i in range(3))
    record = Record(np.arange(1, 61), layers, values, np.zeros((60, len(RUN_COLUMNS))))
    found = scalars(record, steps=7)
    last = slice(53, 60)
    internal = sum(layer[part][last].sum() for part in ("d_iS_wd", "d_iS_momentum", "d_iS_noise"))
    sigma = layer["sigma"][last].sum()
    assert found["thermoclaw/R_ie"] == pytest.approx(internal / (sigma - internal))
    parts = sum(found[f"thermoclaw/{p}_share"] for p in ("d_eS", "d_iS_wd", "d_iS_momentum", "d_iS_noise"))
    assert parts == pytest.approx(1.0)
    assert found["thermoclaw/sigma"] == pytest.approx(sigma / 7)
    assert found["thermoclaw/coherence"] == pytest.approx(layer["coherence"][last, :2].mean())
    assert found["thermoclaw/distance"] == pytest.approx(layer["distance"][-1].sum())
    assert found["thermoclaw/param_norm"] == pytest.approx(np.sqrt(layer["param_sq"][-1].sum()))
    assert found["thermoclaw/eq_frac"] == pytest.approx(record["eq_now"][10:].mean())
    assert found["thermoclaw/grad_norm"] == pytest.approx(np.sqrt(layer["grad_sq"][last].sum(axis=1)).mean())
    assert scalars(record.rows(start=60 - rows_needed(7) + 1), steps=7) == pytest.approx(found)


def test_scalars_of_nothing_and_of_nan() -> None:
    layers = (LayerInfo("l", "mlp", 10),)
    empty = Record(np.arange(0), layers, np.zeros((0, 1, len(LAYER_COLUMNS))), np.zeros((0, len(RUN_COLUMNS))))
    assert scalars(empty, steps=5) == {}
    nothing = np.full((2, 1, len(LAYER_COLUMNS)), np.nan)
    assert scalars(Record(np.arange(1, 3), layers, nothing, np.zeros((2, len(RUN_COLUMNS)))), steps=5) == {}


def test_every_reporter_and_file_is_on_the_page() -> None:
    page = (ROOT / "docs" / "huggingface.md").read_text(encoding="utf-8")
    assert "<!-- generate: scalars -->" in page
    assert [name for name in FILES if f"`{name}`" not in page] == []
    words = page.lower().replace("&", "and").replace(" ", "")
    missing = [name for name in INTEGRATION_TO_CALLBACK if name.removesuffix("_ml").replace("_", "") not in words]
    assert [name for name in missing if name != "wandb"] == []


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["huggingface_trainer.py", "--steps", "3", "--folder", str(tmp_path / "run")])
    runpy.run_path(str(ROOT / "examples" / "huggingface_trainer.py"), run_name="__main__")
    assert "Thermoclaw: " in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "run").iterdir()} >= FILES
