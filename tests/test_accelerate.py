"""Loops that train with an `Accelerator`, watched by one line: what is measured, where it is logged, how it goes on."""

from __future__ import annotations

import inspect
import logging
import runpy
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

pytest.importorskip("accelerate")

from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import GeneralTracker

from tests import accelerate_programs
from tests import sharded_programs as programs
from tests.conftest import assert_bitwise, assert_same_record, mlp, needs_shards, seed_everything
from tests.test_buffer import trapped
from thermoclaw import Observer, Record
from thermoclaw.integrations import outputs
from thermoclaw.integrations.accelerate import Observed, observe
from thermoclaw.integrations.scalars import PREFIX

NUM_BATCHES, CLIP = 24, 0.2
Loop = dict[str, Any]


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    """Accelerate keeps its state in one place for the whole process."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def batches() -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(4)
    xs = [torch.randn(8, 6, generator=random) for _ in range(NUM_BATCHES)]
    return [(x, x[:, :4].argmax(1)) for x in xs]


def begin(*, decay: float = 0.01) -> tuple[nn.Module, torch.optim.Optimizer]:
    seed_everything(5)
    model = mlp(6, 40, 30, 4, dropout=0.1)
    return model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=decay)


def watched(accelerator: Accelerator, model: Any, optimizer: Any, **settings: Any) -> Observed:
    return observe(accelerator, model, optimizer, **{"strict": True, "quiet": True, "plot_on_end": False, **settings})


def train(
    accelerator: Accelerator,
    model: Any,
    optimizer: Any,
    *,
    clip: bool = False,
    overflow_at: tuple[int, ...] = (),
    part: slice = slice(None),
) -> list[Tensor]:
    """What the documentation of Accelerate shows."""
    losses = []
    for i, (x, y) in list(enumerate(batches()))[part]:
        with accelerator.accumulate(model):
            with accelerator.autocast():
                loss = functional.cross_entropy(model(x), y)
            losses.append(loss.detach().clone())
            accelerator.backward(loss)
            if i in overflow_at:
                next(iter(model.parameters())).grad.fill_(float("inf"))
            if accelerator.sync_gradients and clip:
                accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
    return losses


def scaled(accelerator: Accelerator) -> None:
    """A loss scaler on the CPU, which Accelerate itself has on GPUs only."""
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)


# -- it never changes training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "how"),
    [
        ({}, {}),
        ({"gradient_accumulation_steps": 4}, {"clip": True}),
        ({"mixed_precision": "bf16"}, {"clip": True}),
        ({}, {"overflow_at": (2, 3, 9)}),
    ],
    ids=["plain", "accumulated and clipped", "bf16", "refused steps"],
)
def test_training_is_bitwise_the_same(settings: Loop, how: Loop) -> None:
    found = []
    for is_watched in (False, True):
        AcceleratorState._reset_state(True)
        accelerator = Accelerator(cpu=True, **settings)
        if "overflow_at" in how:
            scaled(accelerator)
        model, optimizer = accelerator.prepare(*begin())
        if is_watched:
            watched(accelerator, model, optimizer)
        losses = train(accelerator, model, optimizer, **how)
        accelerator.end_training()
        found.append((dict(model.state_dict()), optimizer.state_dict(), torch.get_rng_state(), losses))
        assert not optimizer.optimizer._optimizer_step_pre_hooks
        assert not {"backward", "end_training"} & vars(accelerator).keys()
    assert_bitwise(found[1], found[0])


# -- what it measures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_record_is_that_of_the_plain_loop(accumulate: int, prepared: bool) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model, optimizer = begin()
    if prepared:
        model, optimizer = accelerator.prepare(model, optimizer)
    seen = watched(accelerator, model, optimizer)
    assert (seen.observer is not None) is prepared
    if not prepared:
        model, optimizer = accelerator.prepare(model, optimizer)
    train(accelerator, model, optimizer, clip=True)
    accelerator.end_training()

    net, plain = begin()
    observer = Observer(net, plain, strict=True)
    for i, (x, y) in enumerate(batches()):
        loss = functional.cross_entropy(net(x), y)
        (loss / accumulate).backward()
        if (i + 1) % accumulate == 0:
            nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            plain.step()
            plain.zero_grad()
        observer.step(loss=loss)
    assert seen.observer is not None
    assert_same_record(seen.observer.record(), observer.record())
    assert len(observer.record()) == NUM_BATCHES // accumulate
    assert seen.report is not None
    assert seen.report.healthy


def test_a_step_that_was_skipped_is_no_row_and_its_loss_not_the_next_ones() -> None:
    accelerator = Accelerator(cpu=True)
    scaled(accelerator)
    model, optimizer = accelerator.prepare(*begin())
    seen = watched(accelerator, model, optimizer)
    losses = train(accelerator, model, optimizer, overflow_at=(2, 3, 9))
    accelerator.end_training()
    assert seen.observer is not None
    record = seen.observer.record()
    assert record.steps.tolist() == list(range(1, NUM_BATCHES - 3 + 1))
    want = [x.item() for i, x in enumerate(losses) if i not in (2, 3, 9)]
    np.testing.assert_allclose(record.loss, want, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_names_are_those_of_the_bare_model() -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer = begin()
    seen = watched(accelerator, torch.compile(model), accelerator.prepare(optimizer))
    assert seen.observer is not None
    assert seen.observer.record().layer_names == ["0", "3", "6"]


def test_losses_may_be_given_by_hand() -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(*begin())
    seen = watched(accelerator, model, optimizer)
    for i, (x, y) in enumerate(batches()):
        accelerator.backward(functional.cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()
        seen.step(loss=100.0 + i)
    accelerator.end_training()
    assert seen.observer is not None
    assert seen.observer.record().loss.tolist() == [100.0 + i for i in range(NUM_BATCHES)]


def test_several_optimizers_are_named_and_have_no_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = Book()
    accelerator = Accelerator(cpu=True, log_with=book, project_dir=str(tmp_path))
    accelerator.init_trackers("pair")
    made = {name: accelerator.prepare(*begin(decay=decay)) for name, decay in (("left", 0.01), ("right", 8.0))}
    seen = {name: watched(accelerator, *pair, name=name, quiet=False) for name, pair in made.items()}
    for _ in range(2):
        for model, optimizer in made.values():
            train(accelerator, model, optimizer)
    accelerator.end_training()
    shown = capsys.readouterr().out
    for name, one in seen.items():
        assert one.observer is not None
        assert len(one.observer.record()) == 2 * NUM_BATCHES
        assert np.isnan(one.observer.record().loss).all()
        assert book.steps_of(f"{PREFIX}{name}/sigma") == [10, 20, 30, 40, 48]
        assert (tmp_path / f"thermoclaw_{name}" / outputs.RECORD_FILE).exists()
    assert "Thermoclaw, right, step 16: [HIGH] Weight decay is eroding" in shown
    assert not seen["left"].alarms


def test_epochs_and_pauses() -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(*begin())
    seen = watched(accelerator, model, optimizer)
    train(accelerator, model, optimizer, part=slice(8))
    seen.epoch_end(val_loss=1.5)
    with seen.paused():
        train(accelerator, model, optimizer, part=slice(8, 16))
    losses = train(accelerator, model, optimizer, part=slice(16, 24))
    accelerator.end_training()
    assert seen.observer is not None
    record = seen.observer.record()
    assert record.steps.tolist() == list(range(1, 17))
    assert record["epoch"].tolist() == [0.0] * 8 + [1.0] * 8
    assert seen.observer.epoch_history[0]["val_loss"] == 1.5
    np.testing.assert_allclose(record.loss[8:], [x.item() for x in losses], rtol=1e-6)


def test_what_others_have_wrapped_stays_wrapped() -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(*begin())
    calls: list[str] = []
    for name in ("before", "after"):
        original = accelerator.backward

        def wrapped(loss: Tensor, *, name: str = name, original: Any = original) -> None:
            calls.append(name)
            original(loss)

        accelerator.backward = wrapped
        if name == "before":
            seen = watched(accelerator, model, optimizer)
    train(accelerator, model, optimizer, part=slice(4))
    seen.finish()
    train(accelerator, model, optimizer, part=slice(4, 8))
    assert calls == ["after", "before"] * 8
    assert seen.observer is not None
    assert len(seen.observer.record()) == 4
    accelerator.backward = first = wrapped
    watched(accelerator, model, optimizer).finish()
    assert accelerator.backward is first


# -- where it logs -----------------------------------------------------------------------------------------------------


class Book(GeneralTracker):
    """Notes what a tracker is given."""

    name = "book"
    requires_logging_directory = False

    def __init__(self, name: str = "book", *, broken: bool = False) -> None:
        super().__init__()
        self.name, self.broken = name, broken  # type: ignore[misc]
        self.got: list[tuple[int | None, dict[str, float], Any]] = []

    @property
    def tracker(self) -> Any:
        return self

    def start(self) -> None:
        pass

    def store_init_configuration(self, values: Any) -> None:
        pass

    def define_metric(self, *_: Any, **__: Any) -> None:
        pass

    def log(self, values: dict[str, float], step: int | None = None, **kwargs: Any) -> None:
        if self.broken:
            raise ConnectionError("no network")
        self.got.append((step, dict(values), kwargs))

    def steps_of(self, name: str) -> list[Any]:
        return [step for step, values, _ in self.got if name in values]


def test_every_tracker_gets_the_numbers_at_their_steps(caplog: pytest.LogCaptureFixture) -> None:
    books = [Book(), Book(broken=True), Book("dvclive"), Book("wandb")]
    accelerator = Accelerator(cpu=True, log_with=list(books))
    accelerator.init_trackers("run")
    model, optimizer = accelerator.prepare(*begin())
    watched(accelerator, model, optimizer, log_every=5)
    train(accelerator, model, optimizer)
    accelerator.end_training()
    assert books[0].steps_of(f"{PREFIX}sigma") == [5, 10, 15, 20, 24]
    assert all(isinstance(x, float) for _, values, _ in books[0].got for x in values.values())
    assert books[2].got == [], "its steps are the calls that it gets"
    assert [values[f"{PREFIX}step"] for _, values, _ in books[3].got] == [5, 10, 15, 20, 24]
    assert all(step is None and extra == {"commit": False} for step, _, extra in books[3].got), "W&B's steps are kept"
    assert len([line for line in caplog.messages if "Book did not take the numbers" in line]) == 1


def test_the_numbers_are_in_tensorboards_event_file(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(tmp_path))
    accelerator.init_trackers("run")
    model, optimizer = accelerator.prepare(*begin())
    watched(accelerator, model, optimizer)
    train(accelerator, model, optimizer)
    accelerator.end_training()
    (file,) = tmp_path.rglob("events.out.tfevents*")
    events = EventAccumulator(str(file)).Reload()
    assert [event.step for event in events.Scalars(f"{PREFIX}R_ie")] == [10, 20, 24]
    assert (tmp_path / outputs.RECORD_FILE).exists()


def test_nothing_in_a_step_waits_for_the_device() -> None:
    book = Book()
    accelerator = Accelerator(cpu=True, log_with=book, gradient_accumulation_steps=2)
    accelerator.init_trackers("run")
    model, optimizer = accelerator.prepare(*begin(decay=8.0))
    seen = watched(accelerator, model, optimizer, quiet=False)
    reads: list[str] = []
    for _ in range(2):
        with trapped(reads):
            train(accelerator, model, optimizer)
    accelerator.end_training()
    assert reads == []
    assert seen.alarms
    assert book.steps_of(f"{PREFIX}sigma") == [10, 20, 24]


# -- going on ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    tuple(int(part) for part in version("accelerate").split(".")[:2]) < (1, 2),
    reason="there a resumed loop is not the uninterrupted one without an observer either",
)
def test_a_resumed_loop_is_the_uninterrupted_one(tmp_path: Path) -> None:
    records, books = [], []
    for cut in (None, 10):
        AcceleratorState._reset_state(True)
        books.append(Book())
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, log_with=books[-1])
        accelerator.init_trackers("run")
        model, optimizer = accelerator.prepare(*begin())
        seen = watched(accelerator, model, optimizer, log_every=3)
        train(accelerator, model, optimizer, part=slice(cut))
        if cut is not None:
            accelerator.save_state(str(tmp_path))
            AcceleratorState._reset_state(True)
            accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, log_with=books[-1])
            accelerator.init_trackers("run")
            model, optimizer = accelerator.prepare(*begin(decay=0.0))
            seen = watched(accelerator, model, optimizer, log_every=3)
            accelerator.load_state(str(tmp_path))
            train(accelerator, model, optimizer, part=slice(cut, None))
        accelerator.end_training()
        assert seen.observer is not None
        records.append(seen.observer.record())
    assert_same_record(records[1], records[0])
    assert books[1].steps_of(f"{PREFIX}sigma") == books[0].steps_of(f"{PREFIX}sigma") == [3, 6, 9, 12]


def test_an_earlier_state_may_be_loaded_while_training(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(*begin())
    seen = watched(accelerator, model, optimizer)
    train(accelerator, model, optimizer, part=slice(6))
    accelerator.save_state(str(tmp_path))
    train(accelerator, model, optimizer, part=slice(6, 16))
    accelerator.load_state(str(tmp_path))
    train(accelerator, model, optimizer, part=slice(6, 9))
    accelerator.end_training()
    assert seen.observer is not None
    assert seen.observer.record().steps.tolist() == list(range(1, 10))


@pytest.mark.parametrize("damaged", [False, True])
def test_a_checkpoint_of_others_is_loaded_all_the_same(
    damaged: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(*begin())
    train(accelerator, model, optimizer, part=slice(6))
    accelerator.save_state(str(tmp_path))
    if damaged:
        (tmp_path / "thermoclaw_state.pt").write_bytes(b"nothing")
    seen = watched(accelerator, model, optimizer, strict=False)
    accelerator.load_state(str(tmp_path))
    train(accelerator, model, optimizer, part=slice(6, 16))
    accelerator.end_training()
    assert seen.observer is not None
    assert len(seen.observer.record()) == 10
    assert "the record begins anew at the checkpoint" in caplog.text


# -- when things go wrong ----------------------------------------------------------------------------------------------


def test_an_error_inside_turns_it_off_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr("thermoclaw.integrations.watch.Watch.has_stepped", fail)
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(*begin())
    watched(accelerator, model, optimizer, strict=False)
    train(accelerator, model, optimizer)
    accelerator.end_training()
    assert len([line for line in caplog.messages if "Observed failed in _settle and is off" in line]) == 1
    assert "backward" not in vars(accelerator)


def test_a_run_that_an_exception_ends_leaves_its_record(tmp_path: Path) -> None:
    program = f"""
import torch
from accelerate import Accelerator
from thermoclaw.integrations.accelerate import observe
accelerator = Accelerator(cpu=True)
model = torch.nn.Linear(4, 2)
model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
observe(accelerator, model, optimizer, output_dir={str(tmp_path)!r})
for step in range(30):
    accelerator.backward(model(torch.ones(8, 4)).square().mean())
    optimizer.step()
    optimizer.zero_grad()
raise SystemExit(3)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 3, done.stderr
    assert Record.load(tmp_path / outputs.RECORD_FILE).steps.tolist() == list(range(1, 25))


def test_wrong_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(*begin())
    with pytest.raises(TypeError, match="the first argument is the Accelerator, not Sequential"):
        observe(model, optimizer, accelerator)
    with pytest.raises(TypeError, match="the second argument is the optimizer"):
        observe(accelerator, model, model)
    with pytest.raises(ValueError, match="log_every=0: give a whole number of at least 1"):
        observe(accelerator, model, optimizer, log_every=0)
    with pytest.raises(ValueError, match="share no parameter"):
        observe(accelerator, nn.Linear(2, 2), optimizer)
    for kind, words in (("DEEPSPEED", "make Observer"), ("FSDP", "fsdp_version=2"), ("MEGATRON_LM", "Megatron")):
        name = type("Kind", (), {"name": kind})
        monkeypatch.setattr(Accelerator, "distributed_type", name)
        with pytest.raises(ValueError, match=words):
            observe(accelerator, model, optimizer)
    assert not {"backward", "end_training"} & vars(accelerator).keys()
    logging.getLogger("accelerate").setLevel(logging.WARNING)


def test_without_accelerate_the_extra_is_named() -> None:
    program = "import sys; sys.modules['accelerate'] = None; import thermoclaw.integrations.accelerate"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert "ImportError: watching an Accelerator needs accelerate: pip install 'thermoclaw[acc" in done.stderr


# -- page and example --------------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "accelerate.md").read_text(encoding="utf-8")
    block = text[text.index("```python\n") + 10 :]
    exec(compile(block[: block.index("```")], "accelerate.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.endswith("True []\n")


@pytest.mark.parametrize(("rate", "codes"), [("0.05", set()), ("2", {"lr_too_high"})])
def test_the_example_runs(rate: str, codes: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    arguments = ["--lr", rate, "--epochs", "6", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["accelerate_loop.py", *arguments])
    runpy.run_path(str(ROOT / "examples" / "accelerate_loop.py"), run_name="__main__")
    record = Record.load(tmp_path / outputs.RECORD_FILE)
    assert record.num_steps == 180
    assert {event["finding"]["code"] for event in record.events if event["kind"] == "alarm"} == codes
    assert (tmp_path / outputs.DASHBOARD_FILE).exists()


# -- several processes -------------------------------------------------------------------------------------------------


def answers_of(calls: list[tuple[Any, ...]]) -> tuple[list[Any], list[Any]]:
    """Of the main process and of the other one, by call."""
    answers = programs.launch(programs.several, 2, calls, seconds=300)
    for answer in answers:
        assert not isinstance(answer, Exception), answer
        assert answer is not None, "a process died or hung"
    return answers[0], answers[1]


def assert_is_the_plain_run(found: dict[str, Any]) -> None:
    want = programs.plain(torch.float64)
    assert found["columns"]["layers"] == want["layers"]
    for name in programs.QUANTITIES:
        np.testing.assert_allclose(found["columns"][name], want[name], rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.slow
@needs_shards
def test_several_processes(tmp_path: Path) -> None:
    """DDP: the main process measures. FSDP2: all do. Both see the run of one process."""
    ways = [("ddp", True), ("ddp", False), ("fully", True)]
    calls = [(accelerate_programs.run, way, str(tmp_path / f"{i}"), on) for i, (way, on) in enumerate(ways)]
    main, other = answers_of(calls)
    for found in (main[0], main[2], other[2]):
        assert_is_the_plain_run(found)
    assert other[0]["columns"] is None, "one process is enough where gradients are the same on all"
    assert_bitwise(main[0]["weights"], main[1]["weights"])
    assert main[0]["logged"] == main[2]["logged"] == [10, 20, 24]
    assert other[0]["logged"] == other[2]["logged"] == []
    assert outputs.RECORD_FILE in main[2]["files"]


needs_fsdp2 = pytest.mark.skipif(
    "fsdp_version" not in inspect.signature(FullyShardedDataParallelPlugin).parameters,
    reason="this Accelerate has no FSDP2",
)


@pytest.mark.slow
@needs_shards
@needs_fsdp2
def test_accelerates_own_fsdp2(tmp_path: Path) -> None:
    """Its plugin shards and maps the optimizer's parameters: all processes see the run of one, and nothing changes."""
    calls = [(accelerate_programs.run, "plugin", str(tmp_path / f"{on}"), on) for on in (True, False)]
    (main, alone), (other, _) = answers_of(calls)
    for found in (main, other):
        assert_is_the_plain_run(found)
    assert_bitwise(main["weights"], alone["weights"])
    assert (main["logged"], other["logged"]) == ([10, 20, 24], [])
    assert outputs.RECORD_FILE in main["files"]
    assert other["files"] == []


@pytest.mark.slow
@needs_shards
@needs_fsdp2
def test_accelerates_own_fsdp2_resumed(tmp_path: Path) -> None:
    """`save_state` and `load_state` on shards: the run goes on as if it had not stopped."""
    calls = [(accelerate_programs.run, "plugin", str(tmp_path / f"{on}"), on, 10) for on in (True, False)]
    (main, alone), (other, _) = answers_of(calls)
    for found in (main, other):
        assert_is_the_plain_run(found)
    assert_bitwise(main["weights"], alone["weights"])


@pytest.mark.slow
@needs_shards
@needs_fsdp2
def test_accelerates_own_fsdp2_in_mixed_precision(tmp_path: Path) -> None:
    """Sharded parameters are float32 and computed with in bfloat16; what is measured is the float32 step."""
    calls = [(accelerate_programs.run, "plugin", str(tmp_path / f"{on}"), on, None, "bf16") for on in (True, False)]
    (main, alone), (other, _) = answers_of(calls)
    assert_bitwise(main["weights"], alone["weights"])
    want = programs.plain(torch.float64)
    for found in (main, other):
        assert found["columns"]["layers"] == want["layers"]
        np.testing.assert_allclose(found["columns"]["update_sq"], want["update_sq"], rtol=0.2)
