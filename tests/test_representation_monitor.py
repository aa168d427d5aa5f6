"""Watched modules: the hook changes nothing and leaves nothing, its checks are in the record, the rules judge them."""

from __future__ import annotations

import copy
import gc
import io
import logging
import math
import runpy
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import seed_everything
from thermoclaw import Observer, Record, RepresentationMonitor, diagnose, sampler
from thermoclaw import watch as watch_module
from thermoclaw.diagnosis.checks import checks_of
from thermoclaw.diagnosis.engine import run_rules
from thermoclaw.diagnosis.rules.representation import CODES
from thermoclaw.representation import summarize

ROOT = Path(__file__).resolve().parent.parent


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 16)
        )
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


def train(
    model: nn.Module,
    *,
    watch: Callable[[Observer], Any] | None = None,
    steps: int = 40,
    batch: int = 64,
    run: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Observer, Any]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    observer = Observer(model, optimizer, strict=watch is not None)
    handle = watch(observer) if watch is not None else None
    for _ in range(steps):
        loss = (model if run is None else run)(torch.randn(batch, 8)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        observer.step(loss=loss)
    return observer, handle


def events(observer: Observer) -> list[dict[str, Any]]:
    return [event for event in observer.record().events if event["kind"] == "representation"]


# -- it changes nothing ------------------------------------------------------------------------------------------------


def test_training_is_bitwise_the_same_when_watched() -> None:
    states = []
    for watched in (False, True):
        seed_everything(3)
        model = Small()
        train(model, watch=(lambda o, m=model: o.watch(m.encoder, every=7)) if watched else None)
        states.append([*model.state_dict().values(), torch.get_rng_state(), torch.tensor(np.random.get_state()[1])])  # noqa: NPY002
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_compiled_model_is_left_as_it_is_and_said_once(fullgraph: bool, caplog: pytest.LogCaptureFixture) -> None:
    states = []
    for watched in (False, True):
        seed_everything(3)
        torch._dynamo.reset()
        model = Small()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=fullgraph)
        watch = (lambda o, m=model: o.watch(m.encoder, every=7)) if watched else None
        _, handle = train(model, watch=watch, run=compiled, steps=160)
        states.append([*model.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert handle.num_checks == 0
    assert sum("never seen to run" in message for message in caplog.messages) == 1


def test_a_module_that_is_itself_compiled_is_looked_at() -> None:
    torch._dynamo.reset()
    model = Small()
    model.encoder = torch.compile(model.encoder, backend="aot_eager", fullgraph=True)  # type: ignore[assignment]
    _, handle = train(model, watch=lambda o: o.watch(model.encoder), steps=3, batch=256)
    assert handle.num_checks == 3
    assert handle.name == "encoder"


def test_a_module_inside_of_ddp_is_looked_at_and_left_as_it_is() -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        states = []
        for watched in (False, True):
            seed_everything(3)
            model = nn.parallel.DistributedDataParallel(Small())
            encoder = model.module.encoder
            watch = (lambda o, e=encoder: o.watch(e, every=7)) if watched else None
            _, handle = train(model, watch=watch)
            states.append([*model.state_dict().values(), torch.get_rng_state()])
    finally:
        torch.distributed.destroy_process_group()
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert handle.num_checks > 5
    assert handle.name == "module.encoder"


def test_no_value_is_read_and_no_graph_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device a sample is nothing but copies; a host number is made when a sample is read, and then only."""
    gather = sampler.Sampler(every=1, rows=128)
    monkeypatch.setattr(sampler.Sample, "is_due", lambda self, step: False)
    for name in ("item", "__bool__", "__float__", "__int__", "cpu", "numpy", "tolist", "nonzero"):
        monkeypatch.setattr(Tensor, name, lambda *_: pytest.fail("a value was read"))
    z = torch.randn(64, 8, requires_grad=True) * 1
    for step in (1, 2, 3):
        assert gather.wants(step)
        gather.take({"features": z.view(64, 8, 1, 1), "input": torch.arange(64)})
    held = [part for sample in gather._sent for part in sample._parts.values()]
    assert held
    assert not any(part.requires_grad or part.grad_fn for part in (*held, *gather._buffers.values()))
    given = weakref.ref(z)
    del z
    gc.collect()
    assert given() is None


def test_the_hook_goes_with_remove_close_and_the_observer() -> None:
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def hooks() -> int:
        return len(model.encoder._forward_hooks)

    observer = Observer(model, optimizer)
    handle = observer.watch(model.encoder)
    assert observer.watch(model.encoder) is handle
    assert hooks() == 1
    handle.remove()
    handle.remove()
    assert hooks() == 0
    assert observer._attachment.on_rows == []
    assert watch_module._watches[observer._attachment] == []
    observer.watch(model.encoder)
    observer.close()
    assert hooks() == 0
    with pytest.raises(ValueError, match="closed"):
        observer.watch(model.encoder)
    observer = Observer(model, optimizer)
    observer.watch(model.encoder)
    monitor = RepresentationMonitor(observer)
    monitor.observe(torch.randn(64, 8))
    del observer, handle, monitor
    gc.collect()
    assert hooks() == 0


def test_copies_of_a_watched_module_are_not_looked_at_and_it_can_be_pickled() -> None:
    model = Small()
    observer, handle = train(model, watch=lambda o: o.watch(model.encoder), steps=3, batch=256)
    read = torch.load(io.BytesIO(pickled(model)), weights_only=False)
    for other in (copy.deepcopy(model), read):  # an exponential average, say
        other(torch.randn(256, 8))
        assert handle.num_checks == 3
    model(torch.randn(256, 8))
    assert [event["step"] for event in events(observer)] == [1, 2, 3, 4]


def pickled(model: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return buffer.getvalue()


def test_an_error_is_said_once_and_training_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = Observer(model, optimizer)
    observer.watch(model.encoder, features=lambda out: out["missing"])
    monitor = RepresentationMonitor(observer)
    for _ in range(5):
        model(torch.randn(64, 8)).sum().backward()
        optimizer.step()
        monitor.observe(torch.randn(64, 8), torch.randn(3, 8))
        observer.step()
    said = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [message.getMessage().split(" failed")[0] for message in said] == [
        "thermoclaw: looking at encoder",
        "thermoclaw: looking at features",
    ]
    assert "give one target for each" in caplog.text
    assert observer.global_step == 5
    assert not model.encoder._forward_hooks
    assert events(observer) == []
    strict = Observer(model, torch.optim.SGD(model.parameters(), lr=0.1), strict=True)
    strict.watch(model.encoder, features=lambda out: out["missing"])
    with pytest.raises(IndexError):
        model(torch.randn(64, 8))


def test_wrong_use_is_refused_at_once() -> None:
    model = Small()
    observer = Observer(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match=r"observer.watch\(model.encoder\)"):
        observer.watch("encoder")  # type: ignore[arg-type]
    for wrong in ({"every": 0}, {"rows": 1}, {"rows": 5000}, {"every": True}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            observer.watch(model.encoder, **wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="features="):
        observer.watch(model.encoder, features=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="RepresentationMonitor"):
        RepresentationMonitor(model)


# -- what is looked at, and when ---------------------------------------------------------------------------------------


def test_checks_come_at_their_steps_in_training_mode_and_outside_of_pauses() -> None:
    model = Small()
    observer, handle = train(model, watch=lambda o: o.watch(model.encoder, every=50), steps=99)
    assert [event["step"] for event in events(observer)] == [1, 2, 3, 4, 5, 16, 32, 48, 50, 64]
    assert handle.num_checks == 10
    model.eval()
    model(torch.randn(256, 8))
    model.train()
    with observer.paused():
        model(torch.randn(256, 8))
    assert handle.num_checks == 10
    model(torch.randn(256, 8))
    assert events(observer)[-1]["step"] == 100


def test_a_sample_on_its_way_is_read_where_the_record_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accelerator it arrives steps later; whoever reads the record waits for it."""
    monkeypatch.setattr(sampler.Sample, "is_due", lambda self, step: step >= self.step + sampler.LAG)
    model = Small()
    observer, handle = train(model, watch=lambda o: o.watch(model.encoder), steps=4, batch=256)
    assert handle.num_checks == 0
    assert [event["step"] for event in events(observer)] == [1, 2, 3, 4]
    observer, handle = train(model, watch=lambda o: o.watch(model.encoder), steps=11, batch=256)
    assert handle.num_checks == 3
    observer.close()
    assert [event["step"] for event in events(observer)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("batch", "rows"), [(1, 64), (4, 64), (64, 64), (300, 256), (5000, 256)])
def test_small_batches_are_gathered_and_large_ones_thinned(batch: int, rows: int) -> None:
    model = nn.Sequential(nn.Linear(8, 16))
    observer, _ = train(model, watch=lambda o: o.watch(model[0]), steps=70, batch=batch)
    first = events(observer)[0]
    assert first["rows"] == rows
    assert first["features"] == 16


def test_the_numbers_are_those_of_the_rows() -> None:
    model = nn.Sequential(nn.Linear(8, 16))
    seen: list[Tensor] = []
    model.register_forward_hook(lambda _, args, out: seen.append(out.detach().clone()))
    observer, _ = train(model, watch=lambda o: o.watch(model[0]), steps=1, batch=256)
    (event,) = events(observer)
    assert {name: event[name] for name in summarize(seen[0])} == pytest.approx(summarize(seen[0]), rel=1e-4)


@pytest.mark.parametrize(
    ("output", "shape"),
    [
        (torch.zeros(64, 5), (64, 5)),
        (torch.zeros(64, 7, 5), (64, 5)),
        (torch.zeros(64, 5, 3, 3), (64, 5)),
        (torch.zeros(64, 5, 2, 3, 3), (64, 5)),
        (torch.zeros(64), (64, 1)),
        (torch.zeros(64, 9000), (64, 3000)),
        ((torch.zeros(64, 3, dtype=torch.long), {"a": [torch.zeros(64, 5, dtype=torch.bfloat16)]}), (64, 5)),
    ],
    ids=["matrix", "sequence", "image", "volume", "numbers", "wide", "nested"],
)
def test_whatever_a_module_puts_out_becomes_rows(output: Any, shape: tuple[int, int]) -> None:
    gather = sampler.Sampler(every=1, rows=64)
    assert gather.wants(1)
    gather.take({"features": watch_module.rows_of(output, None)})
    ((_, found),) = gather.due(1)
    assert (found["features"]["rows"], found["features"]["features"]) == shape


def test_a_change_of_width_begins_anew() -> None:
    gather = sampler.Sampler(every=1, rows=128)
    assert gather.wants(1)
    gather.take({"features": torch.ones(64, 5)})
    gather.take({"features": torch.ones(100, 6)})
    assert list(gather.due(1)) == []
    gather.take({"features": torch.ones(100, 6)})
    ((_, found),) = gather.due(1)
    assert (found["features"]["rows"], found["features"]["features"]) == (128, 6)


def test_events_are_bounded_and_keep_both_ends() -> None:
    model = nn.Sequential(nn.Linear(8, 16))
    observer, _ = train(model, watch=lambda o: o.watch(model[0], every=1), steps=700, batch=256)
    steps = [event["step"] for event in events(observer)]
    assert len(steps) <= watch_module.MOST_EVENTS
    assert steps[:16] == list(range(1, 17))
    assert steps[-64:] == list(range(637, 701))
    assert steps == sorted(steps)


def test_both_sides_of_a_prediction_are_looked_at() -> None:
    model = Small()
    monitor = RepresentationMonitor(model, torch.optim.SGD(model.parameters(), lr=0.1))
    z = torch.randn(256, 8, requires_grad=True)
    monitor.observe(z, 2 * z, name="jepa")
    told = monitor.summary()
    assert set(told) == {"jepa", "jepa.target"}
    assert told["jepa.target"]["last"]["scale"] == pytest.approx(2 * told["jepa"]["last"]["scale"], rel=1e-4)


def test_a_saved_record_has_the_checks_and_a_run_goes_on(tmp_path: Path) -> None:
    model = Small()
    observer, _ = train(model, watch=lambda o: o.watch(model.encoder), steps=6)
    again = Record.load(observer.save(tmp_path / "run"))
    assert checks_of(again)[0].steps.tolist() == [1, 2, 3, 4, 5]
    other = copy.deepcopy(model)
    on = Observer(other, torch.optim.AdamW(other.parameters(), lr=1e-3), strict=True)
    on.load_state_dict(observer.state_dict())
    assert len(events(on)) == 5


# -- the rules ---------------------------------------------------------------------------------------------------------


def record_of(checks: list[dict[str, Any]], **more: Any) -> Record:
    model = nn.Linear(4, 2)
    observer = Observer(model, torch.optim.SGD(model.parameters(), lr=0.1))
    usual = {"rows": 256, "features": 64, "nan_rows": 0, "inf_rows": 0, "scale": 1, "spread": 0.8, "dead_share": 0.1}
    usual |= {"effective_rank": 40, "rank_share": 0.7, "input_scale": 1, "input_spread": 0.8, "std_ratio": 0.8}
    for number, check in enumerate(checks, start=1):
        observer.note_event("representation", layer="encoder", **{"step": 50 * number, **usual, **more, **check})
    return observer.record()


def told(record: Record) -> list[tuple[str, str, int, int]]:
    found = [f for f in run_rules(record) if f.code in CODES]
    return [(f.code, f.confidence, f.first_step, f.raised_step) for f in found]


GOOD: list[dict[str, Any]] = [{}] * 5
NAN = math.nan


@pytest.mark.parametrize(
    ("checks", "joint", "expected"),
    [
        ([{"spread": 0.05, "scale": 0.05}] * 2, False, ("representation_collapse", "HIGH", 300, 350)),
        ([{"spread": NAN, "scale": 0.0}] * 2, False, ("representation_collapse", "HIGH", 300, 350)),
        ([{"spread": 0.1}] * 2, True, ("representation_collapse", "HIGH", 300, 350)),
        ([{"spread": 0.2}] * 2, True, ("representation_collapse", "MEDIUM", 300, 350)),
        ([{"rank_share": 0.2}] * 2, True, ("representation_collapse", "MEDIUM", 300, 350)),
        ([{"dead_share": 0.8}] * 3, False, ("dead_features", "LOW", 300, 400)),
        ([{"nan_rows": 1}] * 2, False, ("non_finite_features", "HIGH", 300, 350)),
        ([{"inf_rows": 200}], False, ("non_finite_features", "HIGH", 300, 300)),
    ],
)
def test_what_is_told(checks: list[dict[str, Any]], joint: bool, expected: tuple[str, str, int, int]) -> None:
    assert told(record_of([*GOOD, *checks], joint_embedding=joint)) == [expected]
    for share in (checks[:-1], [*checks[:-1], {}]):  # one check less, or not in a row
        assert told(record_of([*GOOD, *share], joint_embedding=joint)) == []


@pytest.mark.parametrize(
    "checks",
    [
        [{"spread": 0.01}] * 9,  # an offset that all share
        [{"rank_share": 0.02}] * 9,  # neural collapse
        [{"scale": 0.01}] * 9,  # decay
        [{"spread": 0.05, "scale": 0.05, "input_scale": 0.1}] * 9,  # other data
        [{"spread": 0.0, "scale": 0.0, "rows": 16}] * 9,
        [{"spread": 0.0, "scale": 0.0, "features": 2}] * 9,
        [{"nan_rows": 1}],
        [{"dead_share": 0.99, "rows": 64}] * 9,
    ],
)
def test_what_is_left_alone(checks: list[dict[str, Any]]) -> None:
    assert told(record_of([*GOOD, *checks])) == []


def test_directions_that_others_outgrow_are_not_lost() -> None:
    assert told(record_of([*GOOD, *[{"rank_share": 0.2, "scale": 5.0}] * 9], joint_embedding=True)) == []
    assert told(record_of([*GOOD, *[{"rank_share": 0.03, "scale": 5.0}] * 9], joint_embedding=True))


def test_a_baseline_is_never_latched_onto_a_collapsed_batch() -> None:
    collapsed = {"spread": 0.001, "scale": 0.001}
    (checks,) = checks_of(record_of([collapsed, collapsed, {"spread": 0.5}, {"spread": 0.7}, {"spread": 0.6}, {}]))
    assert np.isnan(checks.baseline("spread")[:4]).all()
    assert checks.baseline("spread")[4:].tolist() == [0.6, 0.6]
    assert told(record_of([collapsed] * 4 + GOOD + [collapsed] * 2)) == [("representation_collapse", "HIGH", 500, 550)]
    assert told(record_of([{"spread": 0.001}] * 8)) == [("representation_collapse", "LOW", 50, 400)]
    assert told(record_of([{"spread": 0.001, "input_spread": 0.0}] * 8)) == []


def test_infinities_from_the_start_are_a_mask_and_those_after_a_remedy_count_anew() -> None:
    assert told(record_of([{"inf_rows": 256}] * 5)) == []
    assert told(record_of([{"nan_rows": 256}])) == [("non_finite_features", "HIGH", 50, 50)]
    record = record_of([*GOOD, *[{"spread": 0.05, "scale": 0.05}] * 4])
    remedied = Record(
        record.steps, record.layers, record.layer_values, record.run_values, record.meta,
        (*record.events, {"kind": "remedy", "step": 420}),
    )  # fmt: skip
    assert told(remedied) == []


def test_an_alarm_is_raised_once_while_training_and_stands_in_the_saved_record(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    observer = Observer(model, optimizer)
    observer.watch(model[1], every=10)
    for step in range(160):
        loss = model(torch.randn(64, 8)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        observer.step(loss=loss)
        if step == 60:
            with torch.no_grad():
                model[0].bias.fill_(-100)
    assert [f.code for f in observer.alarms].count("representation_collapse") == 1
    (finding,) = (f for f in diagnose(observer).findings if f.code == "representation_collapse")
    assert finding.layers == ("1",)
    assert 60 < finding.first_step <= 70
    saved = diagnose(observer.save(tmp_path / "run"))
    assert [f.code for f in saved.findings] == [f.code for f in diagnose(observer).findings]
    assert RepresentationMonitor(observer).get_recommendations()[0].endswith(finding.advice)
    assert finding.refuted_by


def test_features_that_are_not_finite_are_told_and_no_error() -> None:
    model = Small()
    observer, _ = train(model, watch=lambda o: o.watch(model.encoder, every=5), steps=12)
    with torch.no_grad():
        model.encoder[4].bias.fill_(math.nan)
    model(torch.randn(256, 8))  # at step 13
    for _ in range(20):
        observer.optimizer.step()
        model(torch.randn(256, 8))
    assert ("non_finite_features", "HIGH") in [entry[:2] for entry in told(observer.record())]


def test_the_picture(tmp_path: Path) -> None:
    model = Small()
    observer, _ = train(model, watch=lambda o: o.watch(model.encoder))
    figure = RepresentationMonitor(observer).plot(save_path=tmp_path / "one.png")
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "Spread of directions", "Rank share", "Scale", "Dead features",
    ]  # fmt: skip
    assert (tmp_path / "one.png").stat().st_size > 10_000
    observer, _ = train(Small(), steps=1)
    assert RepresentationMonitor(observer).plot(save_path=tmp_path / "none.png").axes


def test_the_example_tells_collapse_from_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["example", "--steps", "150"])
    runpy.run_path(str(ROOT / "examples" / "representation_collapse.py"), run_name="__main__")
    with_stop, without = capsys.readouterr().out.split('"stop_gradient": false')
    assert "representation_collapse" not in with_stop
    assert "[MEDIUM] representations collapse" in without
    assert Path("representation_collapse.png").exists()
