"""The observer: attached by hooks, shared, guarded, detached without a trace, and deaf to the order of the loop."""

from __future__ import annotations

import gc
import logging
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import thermoclaw.attachment
from tests.conftest import (
    MODELS,
    Outcome,
    assert_bitwise,
    assert_same_record,
    mlp,
    outcome,
    seed_everything,
    train_step,
)
from thermoclaw import CollapseDetector, EntropySplit, Observer, Record, ThermoScheduler, diagnose
from thermoclaw.buffer import DeviceRing
from thermoclaw.derive.derivation import Derivation
from thermoclaw.measure.meter import Meter
from thermoclaw.measure.sketched import SketchBackend

CASE = MODELS[0]


def start(cls: type[Optimizer] = torch.optim.AdamW, **settings: Any) -> tuple[nn.Sequential, Optimizer]:
    seed_everything(9)
    model = mlp(6, 12, 4)
    return model, cls(model.parameters(), **{"lr": 0.01, **settings})


def watched(num_steps: int = 5, **settings: Any) -> Observer:
    model, optimizer = start()
    observer = Observer(model, optimizer, strict=True, **settings)
    for _ in range(num_steps):
        observer.step(loss=train_step(model, optimizer, CASE))
    return observer


def hooks_of(optimizer: Optimizer) -> int:
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


# -- the order of the loop --------------------------------------------------------------------------------------------

Act = Callable[[], None]


def ordered(order: str) -> Record:
    """Twelve steps in which what follows the optimizer's step comes in the given order."""
    model, optimizer = start(weight_decay=0.1)
    observer = Observer(model, optimizer, strict=True)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    splitter = EntropySplit(observer)
    loss = torch.zeros(())
    acts: dict[str, Act] = {
        "o": lambda: void(observer.step(loss=loss)),
        "z": optimizer.zero_grad,
        "s": schedule.step,
        "e": lambda: void(splitter.step()),
        "c": lambda: void(nn.utils.clip_grad_norm_(model.parameters(), 1e-3)),  # too late to matter
    }
    for _ in range(12):
        loss = CASE.loss(model)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        for act in order:
            acts[act]()
        optimizer.zero_grad()
    return observer.record()


def void(_: object) -> None:
    return None


@pytest.mark.parametrize("order", ["zos", "szo", "zso", "eos", "soze", "zeso", "oczs", "cso"])
def test_the_order_after_the_step_changes_nothing(order: str) -> None:
    assert_same_record(ordered(order), ordered("osz"))


def test_the_order_before_the_step_changes_nothing_but_the_loss() -> None:
    """observer.step before optimizer.step: all measurements are the same, a loss then counts for the step before."""

    def go(before: bool) -> Record:
        model, optimizer = start()
        observer = Observer(model, optimizer, strict=True)
        for _ in range(12):
            loss = CASE.loss(model)
            loss.backward()
            if before:
                observer.step()
            optimizer.step()
            if not before:
                observer.step()
            optimizer.zero_grad()
        return observer.record()

    assert_same_record(go(True), go(False))


def test_without_any_call_of_step_the_record_is_the_same() -> None:
    """Hooks measure; observer.step only brings the loss."""
    model, optimizer = start()
    silent = Observer(model, optimizer, strict=True)
    for _ in range(30):
        train_step(model, optimizer, CASE)
    assert_same_record(silent.record(), watched(30).record(), skip=("loss",))


def test_clipping_before_the_step_counts() -> None:
    model, optimizer = start(torch.optim.SGD)
    observer = Observer(model, optimizer, strict=True)
    CASE.loss(model).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.step()
    assert observer.record()["grad_sq"].sum() == pytest.approx(1e-6, rel=1e-2)


# -- sharing ----------------------------------------------------------------------------------------------------------


def test_a_step_is_measured_once_whoever_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = {"gradients": 0, "parameters": 0}
    for part in reads:
        original = getattr(SketchBackend, f"read_{part}")

        def counting(self: Any, *args: Any, _part: str = part, _original: Any = original, **kwargs: Any) -> Any:
            reads[_part] += 1
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(SketchBackend, f"read_{part}", counting)
    model, optimizer = start()
    first, second = Observer(model, optimizer), Observer(model, optimizer)
    consumers = [
        EntropySplit(model, optimizer),
        CollapseDetector(model, optimizer),
        EntropySplit(first),
        CollapseDetector(model, optimizer, observer=second),
    ]
    scheduler = ThermoScheduler(optimizer, total_steps=20)
    for _ in range(6):
        loss = train_step(model, optimizer, CASE)
        first.step(loss=loss)
        second.step(loss=loss)
        for consumer in consumers:
            consumer.step()
        scheduler.step()
    assert reads == {"gradients": 6, "parameters": 6}
    assert hooks_of(optimizer) == 2
    attachments = {id(x._attachment) for x in (first, second, *(c.observer for c in consumers), scheduler.observer)}
    assert len(attachments) == 1
    assert_same_record(first.record(), second.record())
    np.testing.assert_allclose(first.record().loss, second.record().loss)


def test_detectors_alone_make_one_observer() -> None:
    model, optimizer = start()
    splitter, detector = EntropySplit(model, optimizer), CollapseDetector(model, optimizer)
    assert splitter.observer._attachment is detector.observer._attachment
    for _ in range(10):
        train_step(model, optimizer, CASE)
        splitter.step()
        detector.step()
    assert len(splitter.record()) == len(detector.record()) == 10
    assert hooks_of(optimizer) == 2


def test_other_settings_are_another_measurement() -> None:
    model, optimizer = start()
    rough, exact = Observer(model, optimizer), Observer(model, optimizer, mode="exact")
    assert rough._attachment is not exact._attachment
    train_step(model, optimizer, CASE)
    assert len(rough.record()) == len(exact.record()) == 1
    # a detector finds the first
    assert EntropySplit(model, optimizer).observer._attachment is rough._attachment


def test_strictness_asked_for_later_holds_for_all() -> None:
    model, optimizer = start()
    first = Observer(model, optimizer)
    assert not first._attachment.strict
    later = Observer(model, optimizer, strict=True)
    assert later._attachment is first._attachment
    assert first._attachment.strict


# -- leaving no trace -------------------------------------------------------------------------------------------------


def test_close_takes_the_hooks_off_and_keeps_the_record() -> None:
    model, optimizer = start()
    with Observer(model, optimizer, strict=True) as observer:
        for _ in range(3):
            observer.step(loss=train_step(model, optimizer, CASE))
        assert hooks_of(optimizer) == 2
    assert hooks_of(optimizer) == 0
    before = observer.record()
    for _ in range(3):
        observer.step(loss=train_step(model, optimizer, CASE))
    observer.close()
    assert_same_record(observer.record(), before)
    assert "closed" in repr(observer)
    assert diagnose(observer).raw_stats["num_steps"] == 3


def test_closing_one_of_two_shared_observers_is_said_plainly() -> None:
    """A closed measurement is closed for all that share it; a new observer starts anew."""
    model, optimizer = start()
    one, two = Observer(model, optimizer), Observer(model, optimizer)
    one.close()
    assert "closed" in repr(two)
    fresh = Observer(model, optimizer)
    train_step(model, optimizer, CASE)
    assert (len(fresh.record()), len(two.record())) == (1, 0)


def test_an_observer_that_is_dropped_takes_its_hooks_along() -> None:
    model, optimizer = start()
    observer = Observer(model, optimizer)
    splitter = EntropySplit(observer)
    train_step(model, optimizer, CASE)
    attachment = weakref.ref(observer._attachment)
    del observer
    assert hooks_of(optimizer) == 2, "the splitter still listens"
    del splitter
    gc.collect()
    assert attachment() is None
    assert hooks_of(optimizer) == 0
    train_step(model, optimizer, CASE)


def test_nothing_keeps_model_and_optimizer_alive() -> None:
    model, optimizer = start()
    observer = Observer(model, optimizer)
    snapshot = observer.step(loss=train_step(model, optimizer, CASE))
    gone = [weakref.ref(x) for x in (model, optimizer, observer)]
    record = observer.record()
    del model, optimizer, observer
    gc.collect()
    assert [x() for x in gone] == [None] * 3
    assert len(record) == 1
    with pytest.raises(RuntimeError, match="read a snapshot while its observer lives"):
        snapshot["step"]


def test_dropping_an_observer_inside_a_hook_does_no_harm() -> None:
    """Another hook drops the last reference in the middle of optimizer.step()."""
    model, optimizer = start()
    held = [Observer(model, optimizer)]
    called = []
    optimizer.register_step_post_hook(lambda *_: held.clear())
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    for _ in range(3):
        train_step(model, optimizer, CASE)
    assert not held
    assert len(called) == 3


def test_closing_an_observer_inside_a_hook_does_no_harm() -> None:
    model, optimizer = start()
    observer = Observer(model, optimizer, strict=True)
    called = []
    optimizer.register_step_pre_hook(lambda *_: observer.close())
    optimizer.register_step_pre_hook(lambda *_: called.append(1))
    for _ in range(3):
        train_step(model, optimizer, CASE)
    assert len(called) == 3
    assert len(observer.record()) == 0
    assert "closed" in repr(observer)


# -- errors in the hot path -------------------------------------------------------------------------------------------


def failing(where: str, at: int) -> Any:
    """A replacement that works until its `at`-th call and raises from then on."""
    owner, _, name = where.rpartition(".")
    target = STAGES[owner]
    original, count = getattr(target, name), [0]

    def broken(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] >= at:
            raise ZeroDivisionError(f"injected into {where}")
        return original(*args, **kwargs)

    return target, name, broken


STAGES: dict[str, Any] = {
    "Meter": Meter,
    "SketchBackend": SketchBackend,
    "DeviceRing": DeviceRing,
    "Derivation": Derivation,
    "attachment": thermoclaw.attachment,
}
PLACES = [
    "Meter.before_step",
    "Meter.after_step",
    "Meter.set_loss",
    "Meter.ingest",
    "SketchBackend.read_gradients",
    "SketchBackend.read_parameters",
    "DeviceRing.next_row",
    "DeviceRing.start_copies",
    "DeviceRing.take",
    "Derivation.rows",
    "attachment.live_findings",
]


def run(watch: bool, *, strict: bool = False, bystanders: bool = True) -> tuple[Outcome, Observer | None]:
    """Forty steps, with hooks of somebody else before and after the observer's."""
    model, optimizer = start()
    called = []
    if bystanders:
        optimizer.register_step_pre_hook(lambda *_: called.append("before"))
        optimizer.register_step_post_hook(lambda *_: called.append("after"))
    observer = Observer(model, optimizer, strict=strict) if watch else None
    if bystanders:
        optimizer.register_step_pre_hook(lambda *_: called.append("before"))
        optimizer.register_step_post_hook(lambda *_: called.append("after"))
    losses = []
    for _ in range(40):
        losses.append(train_step(model, optimizer, CASE))
        if observer is not None:
            observer.step(loss=losses[-1])
    assert len(called) == (160 if bystanders else 0)
    return outcome(model, optimizer, losses), observer


@pytest.mark.parametrize("at", [1, 2, 7])
@pytest.mark.parametrize("where", PLACES)
def test_an_error_is_reported_once_and_training_goes_on(
    where: str, at: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain, _ = run(False)
    if where == "attachment.live_findings" or where in ("DeviceRing.take", "Derivation.rows"):
        at = min(at, 2)
    monkeypatch.setattr(*failing(where, at))
    with caplog.at_level(logging.INFO, logger="thermoclaw"):
        got, observer = run(True)
    assert_bitwise(got, plain)
    errors = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert "measuring failed and is off from here on; training goes on" in errors[0].getMessage()
    assert errors[0].exc_info is not None
    assert f"injected into {where}" in str(errors[0].exc_info[1])
    assert observer is not None
    assert "off after an error" in repr(observer)
    assert hooks_of(observer.optimizer) == 4, "the bystanders' alone"
    monkeypatch.undo()
    report = diagnose(observer)  # what there is can still be diagnosed
    assert "Measuring stopped early" in report.summary or not len(observer.record())
    assert len(observer.record()) < 40
    assert observer.record().meta["failed"] is True


@pytest.mark.parametrize("where", PLACES)
def test_strict_raises_at_once(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*failing(where, 1))
    with pytest.raises(ZeroDivisionError, match=f"injected into {where}"):
        run(True, strict=True)


def test_an_alarm_callback_that_fails_is_its_own_fault(caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer = start(torch.optim.SGD, lr=0.05, weight_decay=5.0)
    observer = Observer(model, optimizer)

    def broken(finding: Any) -> None:
        raise KeyError("no such channel")

    told: list[Any] = []
    observer.on_alarm(broken)
    observer.on_alarm(told.append)
    for _ in range(60):
        observer.step(loss=train_step(model, optimizer, CASE))
    assert "a callback given to on_alarm failed; measuring goes on" in caplog.text
    assert len(observer.record()) == 60
    assert told == observer.alarms
    assert told


def test_alarms_come_while_training_and_are_kept() -> None:
    model, optimizer = start(torch.optim.SGD, lr=0.05, weight_decay=5.0)
    observer = Observer(model, optimizer, strict=True)
    told: list[tuple[int, str]] = []
    observer.on_alarm(lambda finding: told.append((observer.global_step, finding.code)))
    for _ in range(60):
        observer.step(loss=train_step(model, optimizer, CASE))
    codes = [finding.code for finding in observer.alarms]
    assert "weight_decay_too_high" in codes
    assert [code for _, code in told] == codes
    first = observer.alarms[codes.index("weight_decay_too_high")]
    assert 0 < first.first_step <= first.raised_step <= told[codes.index("weight_decay_too_high")][0] <= 40
    events = [e for e in observer.record().events if e["kind"] == "alarm"]
    assert [e["finding"]["code"] for e in events] == codes


# -- losses -----------------------------------------------------------------------------------------------------------


def loss_of_one_step(loss: Any, **settings: Any) -> float:
    model, optimizer = start()
    observer = Observer(model, optimizer, **settings)
    train_step(model, optimizer, CASE)
    observer.step(loss=loss)
    return float(observer.record().loss[0])


@pytest.mark.parametrize(
    "loss",
    [
        2.5,
        torch.tensor(2.5),
        torch.tensor([2.5]),
        torch.tensor([[2.5]], dtype=torch.float64),
        torch.tensor(2.5, dtype=torch.bfloat16),
        torch.tensor(2.5, requires_grad=True),
        np.float32(2.5),
        np.array(2.5),
        torch.nn.Parameter(torch.tensor(2.5)) * 1,
    ],
    ids=repr,
)
def test_a_loss_is_a_number_or_a_tensor_with_one(loss: Any) -> None:
    assert loss_of_one_step(loss, strict=True) == 2.5


@pytest.mark.parametrize("loss", [3, True, torch.tensor(3), torch.tensor(True)])
def test_whole_numbers_count(loss: Any) -> None:
    assert loss_of_one_step(loss, strict=True) == float(loss)


@pytest.mark.parametrize("loss", [None, math.nan, torch.tensor(math.nan), np.float64("nan")])
def test_no_loss_and_nan_are_nan(loss: Any) -> None:
    assert math.isnan(loss_of_one_step(loss, strict=True))


@pytest.mark.parametrize("loss", [math.inf, torch.tensor(-math.inf)])
def test_an_infinite_loss_is_infinite(loss: Any) -> None:
    assert math.isinf(loss_of_one_step(loss, strict=True))


@pytest.mark.parametrize(
    ("loss", "problem"),
    [
        ("low", "str"),
        ({"loss": 1.0}, "dict"),
        ([1.0, 2.0], "list"),
        (object(), "object"),
        (torch.ones(3), r"a float32 tensor of shape \(3,\)"),
        (torch.ones(0), r"a float32 tensor of shape \(0,\)"),
        (torch.tensor(1.0 + 2.0j), r"a complex64 tensor of shape \(\)"),
    ],
    ids=["text", "dict", "list", "object", "three numbers", "none", "complex"],
)
def test_a_loss_of_the_wrong_kind_is_said_once(loss: Any, problem: str, caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer = start()
    observer = Observer(model, optimizer)
    for _ in range(5):
        train_step(model, optimizer, CASE)
        observer.step(loss=loss)
    (message,) = [r.getMessage() for r in caplog.records if "loss" in r.getMessage()]
    assert "takes a number or a tensor with one element" in message
    assert "give loss.mean() or leave it out" in message
    assert __import__("re").search(problem, message)
    observer.step(loss=1.0)
    record = observer.record()
    assert len(record) == 5
    assert np.isnan(record.loss[:4]).all()
    with pytest.raises(TypeError, match=problem):
        loss_of_one_step(loss, strict=True)


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_losses_of_micro_batches_are_averaged(kind: Callable[[float], Any]) -> None:
    model, optimizer = start()
    observer = Observer(model, optimizer, strict=True)
    for step in range(3):
        for part in range(4):
            CASE.loss(model).backward()
            if part == 3:
                optimizer.step()
                optimizer.zero_grad()
            observer.step(loss=kind(10.0 * step + part))
    assert observer.record().loss.tolist() == [1.5, 11.5, 21.5]


def test_numbers_and_tensors_are_averaged_together() -> None:
    model, optimizer = start()
    observer = Observer(model, optimizer, strict=True)
    CASE.loss(model).backward()
    observer.step(loss=1.0)
    observer.step(loss=torch.tensor(2.0))
    optimizer.step()
    observer.step(loss=np.float64(6.0))
    assert observer.record().loss.tolist() == [3.0]


def test_a_running_sum_is_taken_as_it_stood() -> None:
    model, optimizer = start()
    observer = Observer(model, optimizer, strict=True)
    running = torch.zeros(())
    for _ in range(3):
        for part in range(2):
            running += 1.0
            observer.step(loss=running)
            if part == 0:
                train_step(model, optimizer, CASE)
    losses = observer.record().loss
    assert losses.tolist() == [1.5, 3.5, 5.5]


def test_a_loss_given_twice_counts_the_last_time() -> None:
    """Two observers on one measurement, each told its own: the row has one loss."""
    model, optimizer = start()
    one, two = Observer(model, optimizer, strict=True), Observer(model, optimizer, strict=True)
    train_step(model, optimizer, CASE)
    one.step(loss=1.0)
    two.step(loss=2.0)
    assert one.record().loss.tolist() == two.record().loss.tolist() == [2.0]


# -- snapshots and histories ------------------------------------------------------------------------------------------

KEYS = ["step", "epoch", "optimizer", "D", "rho_mean", "R_median", "E_param_dist", "loss", "layers"]
LAYER_KEYS = ["name", "ltype", "sigma", "sigma_ema", "sigma_star", "r", "rho", "lr", "gnorm_sq"]


def test_a_snapshot_reads_like_the_seeds_dictionary() -> None:
    model, optimizer = start()
    observer = Observer(model, optimizer, strict=True)
    for _ in range(3):
        loss = train_step(model, optimizer, CASE)
        snapshot = observer.step(loss=loss)
    assert list(snapshot) == list(snapshot.keys()) == KEYS
    assert len(snapshot) == len(KEYS)
    assert snapshot["step"] == 3
    assert snapshot["optimizer"] == "AdamW"
    assert snapshot["loss"] == pytest.approx(loss.item())
    assert [list(layer) for layer in snapshot["layers"]] == [LAYER_KEYS] * 2
    record = observer.record()
    for i, layer in enumerate(snapshot["layers"]):
        for key, name in {"sigma": "sigma", "rho": "coherence", "gnorm_sq": "grad_sq", "r": "r", "lr": "lr"}.items():
            assert layer[key] == record[name][-1, i]
    assert snapshot["D"] == record["D"][-1]
    assert dict(snapshot) == {**snapshot}
    assert "loss" in snapshot
    assert snapshot.get("nothing", 7) == 7
    assert bool(snapshot)
    assert repr(snapshot) == repr(dict(snapshot))


def test_values_that_are_not_defined_yet_read_as_the_seed_had_them() -> None:
    model, optimizer = start()
    observer = Observer(model, optimizer, strict=True)
    train_step(model, optimizer, CASE)
    snapshot = observer.step()
    assert snapshot["loss"] is None
    assert snapshot["rho_mean"] == 0.0
    assert [layer["rho"] for layer in snapshot["layers"]] == [0.0, 0.0]
    assert [layer["r"] for layer in snapshot["layers"]] == [1.0, 1.0]


def test_a_snapshot_is_of_its_own_step_whenever_it_is_read() -> None:
    model, optimizer = start()
    observer = Observer(model, optimizer, strict=True)
    snapshots = [observer.step(loss=train_step(model, optimizer, CASE)) for _ in range(30)]
    assert [snapshot["step"] for snapshot in snapshots] == list(range(1, 31))
    np.testing.assert_array_equal([s["loss"] for s in snapshots], observer.record().loss)


def test_a_snapshot_before_any_step_says_so() -> None:
    model, optimizer = start()
    observer = Observer(model, optimizer)
    snapshot = observer.step(loss=1.0)
    with pytest.raises(LookupError, match="no optimizer step was measured yet: call step\\(\\) after optimizer"):
        snapshot["step"]


def test_a_snapshot_whose_row_is_gone_says_so() -> None:
    model, optimizer = start()
    observer = Observer(model, optimizer, history_bytes=0)
    snapshots = [observer.step(loss=train_step(model, optimizer, CASE)) for _ in range(400)]
    held = observer.record().steps
    lost = next(t for t in range(1, 400) if t not in held)
    with pytest.raises(LookupError, match=f"step {lost} was thinned from the history"):
        snapshots[lost - 1]["step"]
    assert snapshots[0]["step"] == 1


def test_a_snapshot_read_at_once_is_there_with_every() -> None:
    model, optimizer = start()
    observer = Observer(model, optimizer, every=4, strict=True)  # every step is measured, one in four is kept
    for t in range(1, 25):
        loss = train_step(model, optimizer, CASE)
        snapshot = observer.step(loss=loss)
        assert snapshot["step"] == t
        assert snapshot["loss"] == pytest.approx(loss.item())
    assert observer.record().steps.tolist() == [1, 5, 9, 13, 17, 21]


def test_step_history_is_a_list_of_snapshots() -> None:
    observer = watched(6)
    history = observer.step_history
    assert len(history) == len(observer.history) == 6
    assert [row["step"] for row in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1] == history[5]
    assert [row["step"] for row in history[1:3]] == [2, 3]
    with pytest.raises(IndexError, match="step_history has 6 rows, no row 6"):
        history[6]
    assert list(history[0]) == KEYS


def test_epochs() -> None:
    model, optimizer = start()
    observer = Observer(model, optimizer, strict=True)
    entries = []
    for epoch in range(3):
        for _ in range(4):
            snapshot = observer.step(loss=train_step(model, optimizer, CASE))
            assert snapshot["epoch"] == epoch
        entries.append(observer.epoch_end(val_acc=0.5 + epoch / 10, val_loss=1.0))
    assert observer.epoch_history == entries
    assert [entry["epoch"] for entry in entries] == [1, 2, 3]
    assert entries[1]["val_acc"] == 0.6
    record = observer.record()
    assert record["epoch"].tolist() == [0.0] * 4 + [1.0] * 4 + [2.0] * 4
    assert entries[1]["mean_D"] == pytest.approx(record["D"][4:8].mean())
    assert entries[2]["mean_rho"] == pytest.approx(record["rho_mean"][8:].mean())
    assert entries[2]["E_param_dist"] == record["E_param_dist"][-1]
    assert set(entries[0]) == {
        "epoch",
        "optimizer",
        "mean_D",
        "mean_rho",
        "mean_R",
        "E_param_dist",
        "val_acc",
        "val_loss",
    }


def test_summary_is_of_means_and_last_values() -> None:
    observer = watched(20)
    summary, record = observer.summary(), observer.record()
    assert summary["n_steps"] == 20
    assert summary["optimizer"] == "AdamW"
    assert summary["loss_mean"] == pytest.approx(record.loss.mean())
    assert summary["D_final"] == record["D"][-1]
    assert summary["R_ie_total"] == pytest.approx(record["d_iS"].sum() / record["d_eS"].sum(), rel=1e-5)
    model, optimizer = start()
    empty = Observer(model, optimizer).summary()
    assert empty["n_steps"] == 0
    assert empty["loss_mean"] is None
    assert empty["R_ie_total"] is None


def test_repr_says_what_it_is() -> None:
    assert repr(watched(3)) == "Observer(AdamW, 2 layers, 3 steps, on)"


def test_what_the_run_was_is_kept() -> None:
    meta = watched(3).record().meta
    assert meta["optimizer"] == "AdamW"
    assert meta["torch_version"] == torch.__version__
    assert meta["param_groups"][0]["lr"] == 0.01
    assert meta["num_params"] == sum(p.numel() for p in start()[0].parameters())
    assert meta["devices"] == ["cpu"]
    assert meta["dtypes"] == ["torch.float32"]
    assert meta["settings"]["mode"] == "sketch"
    assert meta["failed"] is False


# -- torch's own settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["no_grad", "inference_mode", "deterministic", "default_dtype", "autocast"])
@pytest.mark.parametrize("mode", ["sketch", "exact"])
def test_settings_of_torch_around_step_change_nothing(setting: str, mode: str) -> None:
    def go(wrap: Callable[[], Any]) -> Record:
        model, optimizer = start()
        observer = Observer(model, optimizer, strict=True, mode=mode)
        for _ in range(12):
            loss = train_step(model, optimizer, CASE)
            with wrap():
                observer.step(loss=loss)
        return observer.record()

    @contextmanager
    def changed() -> Iterator[None]:
        if setting == "deterministic":
            torch.use_deterministic_algorithms(True)
        elif setting == "default_dtype":
            torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)
            torch.set_default_dtype(torch.float32)

    wraps: dict[str, Callable[[], Any]] = {
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    }
    assert_same_record(go(wraps.get(setting, changed)), go(nullcontext))


# -- going on from a checkpoint ---------------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_stopped() -> None:
    first = watched(10)
    model, optimizer = start()
    second = Observer(model, optimizer, strict=True)
    assert second.resume(first.record()) is True
    for _ in range(10):
        second.step(loss=train_step(model, optimizer, CASE))
    record = second.record()
    assert record.steps.tolist() == list(range(1, 21))
    assert_same_record(record.rows(stop=11), first.record())
    assert second.global_step == 20
    with pytest.raises(RuntimeError, match=r"resume\(\) comes before the first step"):
        second.resume(first.record())


def test_decisions_go_on_at_the_fixed_lag_after_a_resume() -> None:
    model, optimizer = start()
    observer = Observer(model, optimizer, strict=True, lag=8)
    observer.resume(step=100)
    seen = []
    for _ in range(20):
        observer.step(loss=train_step(model, optimizer, CASE))
        seen.append(observer.rows_on_host())
    assert seen == [100] * 7 + [108] * 8 + [116] * 5
    assert observer.step()["step"] == 120


class Saved:
    """What a graph keeps for its backward pass."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


def test_no_graph_is_kept_alive_by_a_loss() -> None:
    model, optimizer = start()
    observer = Observer(model, optimizer, strict=True)
    saved: list[weakref.ref[Saved]] = []

    def pack(x: Tensor) -> Saved:
        kept = Saved(x.detach())
        saved.append(weakref.ref(kept))
        return kept

    for accumulated in (False, True):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.x):
            loss = CASE.loss(model)
        loss.backward(retain_graph=True)
        if not accumulated:
            optimizer.step()
        assert any(ref() is not None for ref in saved)
        observer.step(loss=loss)
        del loss
        gc.collect()
        assert all(ref() is None for ref in saved)


def test_a_record_knows_the_last_step_that_was_given_a_loss() -> None:
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = Observer(model, optimizer, strict=True)
    for step in range(8):
        optimizer.zero_grad()
        model(torch.randn(3, 4)).square().mean().backward()
        optimizer.step()
        observer.step(loss=float("nan") if step < 6 else None)
    assert observer.record().meta["last_loss_step"] == 6
    again = Observer(model, optimizer.__class__(model.parameters(), lr=0.1))
    again.load_state_dict(observer.state_dict())
    assert again.record().meta["last_loss_step"] == 6
