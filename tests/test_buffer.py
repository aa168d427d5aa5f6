"""The buffers: bounded for ever, thinned the same way every time, and never waited for.

Legend: B rows a block, T steps.
"""

from __future__ import annotations

import gc
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import MODELS, assert_same_record, mlp, seed_everything, train_step
from thermoclaw import CollapseDetector, EntropySplit, Observer, Record, ThermoScheduler
from thermoclaw.buffer import DeviceRing, History
from thermoclaw.measure.meter import Meter
from thermoclaw.quantities import LAYER_COLUMNS, RUN_COLUMNS

CASE = MODELS[0]
CPU = torch.device("cpu")

# -- the ring ---------------------------------------------------------------------------------------------------------


def ring_of(block: int = 4) -> DeviceRing:
    return DeviceRing((2,), block=block, device=CPU, dtype=torch.float64)


def push(ring: DeviceRing, value: float) -> None:
    ring.next_row().fill_(value)
    ring.advance()


def test_rows_come_out_in_order_once_and_at_the_lag() -> None:
    ring, out = ring_of(4), []
    for t in range(1, 30):
        push(ring, t)
        ring.start_copies(t)
        due = ring.due(t) - ring.taken()
        assert due == (4 if t % 4 == 0 else 0)
        out += ring.take(due)[:, 0].tolist()
    assert out == list(range(1, 29))
    assert ring.pending() == 1
    out += ring.take(1)[:, 0].tolist()
    assert out == list(range(1, 30))
    assert ring.pending() == 0
    assert ring.take(0).shape == (0, 2)


def test_early_reads_do_not_move_the_lag() -> None:
    early, calm = ring_of(4), ring_of(4)
    for t in range(1, 20):
        for ring in (early, calm):
            push(ring, t)
            ring.start_copies(t)
        assert early.take(early.pending())[:, 0].tolist() == [t]
        assert early.due(t) == calm.due(t) == t // 4 * 4
        calm.take(calm.due(t) - calm.taken())


def test_a_row_that_is_still_open_is_not_due() -> None:
    ring = ring_of(4)
    for t in range(4):
        push(ring, t)
    assert ring.due(3) == 0
    assert ring.due(4) == 4


# -- the history ------------------------------------------------------------------------------------------------------


def fill(history: History, steps: np.ndarray, *, block: int) -> None:
    for start in range(0, len(steps), block):
        part = steps[start : start + block]
        layer_values = np.repeat(part[:, None, None], len(LAYER_COLUMNS), axis=2).astype(np.float64)
        run_values = np.repeat(part[:, None], len(RUN_COLUMNS), axis=1).astype(np.float64)
        history.append(part, layer_values, run_values)


@pytest.mark.parametrize("every", [1, 2, 3, 7])
@pytest.mark.parametrize("num_rows", [500, 2_000, 30_000])
def test_thinning_keeps_the_first_and_the_recent_rows_and_a_middle(num_rows: int, every: int) -> None:
    history = History(1, capacity=256)
    steps = 1 + every * np.arange(num_rows)
    held = history.num_bytes()
    fill(history, steps, block=8)
    kept, layer_values, run_values = history.arrays()
    assert history.num_bytes() == held
    assert 160 <= len(kept) <= 256
    assert kept[:32].tolist() == steps[:32].tolist()
    assert kept[-128:].tolist() == steps[-128:].tolist()
    middle = kept[32:-128]
    assert len(middle) >= 32, "the middle of the run is not lost"
    gaps = np.diff(middle)
    assert gaps.max() <= 2 * history.stride * every
    assert gaps.max() <= 12 * num_rows * every / 96, "and lies evenly"
    assert history.stride <= 16 * num_rows / 96
    assert (layer_values[:, 0, 0] == kept).all()
    assert (run_values[:, 0] == kept).all()


def test_thinning_depends_on_the_rows_alone() -> None:
    steps = np.arange(1, 3000)
    found = []
    for block in (1, 7, 8, 16, 500):
        history = History(1, capacity=256)
        fill(history, steps, block=block)
        found.append(history.arrays()[0].tolist())
    assert all(kept == found[0] for kept in found)


def test_a_history_is_cut_by_step() -> None:
    history = History(1, capacity=256)
    fill(history, np.arange(1, 100), block=8)
    assert history.arrays(start=10, stop=13)[0].tolist() == [10, 11, 12]
    assert history.arrays(start=98)[0].tolist() == [98, 99]
    assert len(history.arrays(start=200)[0]) == 0
    assert history.arrays(stop=3)[0].tolist() == [1, 2]


def test_layers_that_join_have_an_undefined_past() -> None:
    history = History(1, capacity=64)
    fill(history, np.arange(1, 10), block=4)
    history.widen(3)
    values = history.arrays()[1]
    assert values.shape[1] == 3
    assert np.isnan(values[:, 1:]).all()
    assert np.isfinite(values[:, 0]).all()


def test_a_late_loss_is_written_to_its_own_row_alone() -> None:
    history = History(1, capacity=64)
    fill(history, np.arange(1, 10), block=4)
    place = RUN_COLUMNS.index("loss")
    history.amend(9, "loss", 0.5)
    history.amend(8, "loss", 7.0)
    assert history.arrays()[2][-2:, place].tolist() == [8.0, 0.5]


# -- bounded for ever -------------------------------------------------------------------------------------------------


class Loop:
    """A run with all consumers on."""

    def __init__(self, model: nn.Module | None = None, **settings: Any) -> None:
        seed_everything(5)
        self.model = model or mlp(6, 40, 30, 4)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.02, momentum=0.9)
        self.observer = Observer(self.model, self.optimizer, strict=True, **settings)
        self.splitter = EntropySplit(self.observer)
        self.detector = CollapseDetector(self.observer)

    def go(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.observer.step(loss=train_step(self.model, self.optimizer, CASE))
            self.splitter.step()
            assert not self.detector.is_collapsing
            self.detector.step()


LEAST_GROWTH = 128.0  # bytes a step; training alone shows up to 60 while tracemalloc gets to know its objects


def growth(loop: Loop, each: Callable[[Loop], None] = lambda loop: None) -> float:
    """Bytes a step that Python and NumPy hold more: the least over three stretches, as growth shows in all."""
    tracemalloc.start()
    held = []
    for num_steps in (208, 128, 128, 128):  # first, what was full from before it was traced turns over
        for _ in range(num_steps):
            loop.go(1)
            each(loop)
        gc.collect()
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    return float(np.diff(held).min()) / 128


@pytest.mark.parametrize("settings", [{}, {"mode": "exact"}, {"every": 3}], ids=str)
def test_nothing_grows_once_the_buffers_are_full(settings: dict[str, Any]) -> None:
    loop = Loop(history_bytes=0, **settings)  # the least: 128 rows
    loop.go(450 if settings.get("every") else 200)
    meter = loop.observer._attachment.meter
    assert len(meter.intake.history) <= 128
    assert meter.intake.history.stride > 1, "not full yet"
    before = meter.num_bytes()
    assert growth(loop) < LEAST_GROWTH
    assert meter.num_bytes() == before


def test_the_growth_check_can_fail() -> None:
    """A dozen floats a step are seen (thermoclaw 0.1.6 kept tens of kilobytes)."""
    hoard: list[Any] = []

    def keep(loop: Loop) -> None:
        hoard.append([float(len(hoard) + k) for k in range(12)])

    assert growth(Loop(history_bytes=0), keep) > LEAST_GROWTH


@pytest.mark.parametrize("history_bytes", [0, 1 << 20, 16 << 20])
def test_the_host_history_keeps_to_what_was_asked(history_bytes: int) -> None:
    observer = Loop(history_bytes=history_bytes).observer
    row = 3 * len(LAYER_COLUMNS) * 4 + len(RUN_COLUMNS) * 8 + 16
    host = observer._attachment.meter.num_bytes()["host"]
    assert host <= max(1.5 * history_bytes, 128 * row)
    assert host <= 4096 * row


def test_skipped_rows_and_open_losses_are_bounded() -> None:
    loop = Loop()
    attachment = loop.observer._attachment
    for _ in range(5000):
        loop.observer.step(loss=torch.tensor(1.0))  # no optimizer step in between
    assert len(attachment._losses.pending) <= 4096
    assert attachment.meter.intake._skipped.maxlen == 4096


# -- the same whatever the lag, the readers and the order -------------------------------------------------------------


@pytest.mark.parametrize("lag", [1, 3, 8, 50])
@pytest.mark.parametrize("history_bytes", [0, 16 << 20])
def test_the_record_is_the_same_at_every_lag(lag: int, history_bytes: int) -> None:
    got, want = (Loop(lag=n, history_bytes=history_bytes) for n in (lag, 8))
    for loop in (got, want):
        seed_everything(6)
        loop.go(300)
    assert_same_record(got.observer.record(), want.observer.record())


def erode(
    read: Callable[[Any, Any, Any], None] | None, *, lag: int, alone: bool = False, num_steps: int = 120
) -> dict[str, Any]:
    """A run that decay destroys, with a scheduler's feedback, a detector that acts, and alarms; `read` looks in.

    `alone`: the detectors are stepped, the observer is not.
    """
    seed_everything(8)
    model = mlp(6, 40, 30, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=3.0)
    observer = Observer(model, optimizer, strict=True, lag=lag)
    splitter, detector = EntropySplit(observer), CollapseDetector(observer)
    scheduler = ThermoScheduler(optimizer, total_steps=num_steps, warmup_steps=0, adapt_rate=0.5, observer=observer)
    told: list[Any] = []
    observer.on_alarm(lambda finding: told.append((observer.global_step, finding.code, finding.raised_step)))
    acted, rates = [], []
    for t in range(num_steps):
        optimizer.zero_grad()
        loss = CASE.loss(model) * 1.08**t  # the gradient grows, so the feedback has work
        loss.backward()
        optimizer.step()
        if read is not None:
            assert observer.record().num_steps == t + 1
        snapshot = None if alone else observer.step(loss=loss)
        split, ratios = splitter.step(), detector.step()
        if detector.is_collapsing:
            acted.append(t)
            for group in optimizer.param_groups:
                group["weight_decay"] *= 0.3
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
        if read is not None:
            read(snapshot, split, ratios)
    return {
        "record": observer.record(),
        "told": told,
        "acted": acted,
        "rates": rates,
        "alarms": observer.alarms,
        "params": [p.detach().clone() for p in model.parameters()],
    }


def greedy(snapshot: Any, split: Any, ratios: Any) -> None:
    assert snapshot is None or snapshot["step"] == split.step
    assert len(ratios) == 3


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("lag", [1, 5, 8])
def test_decisions_are_the_same_whether_or_not_anybody_reads(lag: int, alone: bool) -> None:
    calm, read = erode(None, lag=lag, alone=alone), erode(greedy, lag=lag, alone=alone)
    assert calm["acted"], "the detector must have something to decide"
    assert calm["told"]
    assert min(calm["rates"][:110]) < 0.9 * 0.05
    for name in ("told", "acted", "rates", "alarms"):
        assert read[name] == calm[name], name
    assert_same_record(read["record"], calm["record"])
    assert all(torch.equal(a, b) for a, b in zip(read["params"], calm["params"], strict=True))


def test_the_feedback_of_that_run_is_not_idle() -> None:
    """Without the jump of the gradient the rates differ: the test above compares something."""
    rates = erode(None, lag=8)["rates"]
    envelope = [0.05 * (1 + np.cos(np.pi * (t + 1) / 120)) / 2 for t in range(120)]
    assert max(abs(a / b - 1) for a, b in zip(rates[:115], envelope[:115], strict=True)) > 0.05


@pytest.mark.parametrize("lag", [1, 8])
@pytest.mark.parametrize(
    "order", ["observer first", "splitter first", "snapshot read before the loss", "everything read before the loss"]
)
def test_no_loss_is_lost_to_the_order_of_consumers(order: str, lag: int) -> None:
    model = mlp(6, 8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = Observer(model, optimizer, strict=True, lag=lag)
    splitter = EntropySplit(observer)
    losses = []
    for _ in range(40):
        loss = train_step(model, optimizer, CASE)
        losses.append(loss.item())
        if order != "observer first":
            split = splitter.step()
            if "snapshot" in order:
                assert split.total_d_eS >= 0
            if "everything" in order:
                assert len(observer.record()) == len(losses)
        observer.step(loss=loss)
        splitter.step()
    np.testing.assert_array_equal(observer.record().loss, losses)


# -- nothing waits ----------------------------------------------------------------------------------------------------

_READS = ("item", "tolist", "cpu", "__float__", "__int__", "__bool__", "__index__", "__contains__")


class _Trap(TorchDispatchMode):
    """Notes every read of a tensor's value by the host."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default):
            self._found.append("".join(traceback.format_stack(limit=8)))
        return func(*args, **(kwargs or {}))


@contextmanager
def trapped(found: list[str]) -> Iterator[None]:
    """Within this block, `.item()` and its kin are noted: by method and by the operator behind them."""
    methods = {name: getattr(Tensor, name) for name in _READS}

    def noting(name: str) -> Any:
        def read(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            found.append(f"Tensor.{name}\n" + "".join(traceback.format_stack(limit=8)))
            return methods[name](self, *args, **kwargs)

        return read

    with pytest.MonkeyPatch.context() as patch, _Trap(found):
        for name in _READS:
            patch.setattr(Tensor, name, noting(name))
        yield


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.item(),
        lambda x: float(x),
        lambda x: int(x),
        lambda x: bool(x),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: torch.ones(3)[x.long()] if x > 0 else None,
        lambda x: torch.is_nonzero(x),
    ],
)
def test_the_trap_closes(read: Callable[[Tensor], Any]) -> None:
    found: list[str] = []
    with trapped(found):
        read(torch.tensor(1.0))
    assert found


@pytest.mark.parametrize("settings", [{}, {"mode": "exact"}, {"lag": 1}, {"every": 3}, {"sketch_size": 251}], ids=str)
@pytest.mark.parametrize("name", ["mlp", "tied_gpt", "conv_bn_channels_last", "bfloat16", "complex", "double"])
def test_a_step_reads_nothing(name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """All consumers on, a tensor for a loss: neither hooks nor step() calls ever ask a tensor for its value."""
    case = next(c for c in MODELS if c.name == name)
    model = case.make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    found: list[str] = []
    for part in ("before_step", "after_step"):
        original = getattr(Meter, part)

        def under_trap(self: Meter, *args: Any, _original: Any = original, **kwargs: Any) -> Any:
            with trapped(found):
                return _original(self, *args, **kwargs)

        monkeypatch.setattr(Meter, part, under_trap)
    observer = Observer(model, optimizer, strict=True, **settings)
    splitter, detector = EntropySplit(observer), CollapseDetector(observer)
    scheduler = ThermoScheduler(optimizer, total_steps=50, observer=observer)
    kept = []
    for _ in range(20):
        loss = train_step(model, optimizer, case)
        with trapped(found):
            kept.append((observer.step(loss=loss), splitter.step(), detector.step(), detector.is_collapsing))
            scheduler.step()
    assert not found, found[0]
    assert observer.global_step == 20
    assert np.isfinite(observer.record().loss).all()


def test_accumulated_losses_and_scaled_gradients_read_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp(6, 8, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler("cpu")
    observer = Observer(model, optimizer, strict=True)
    found: list[str] = []
    before, after = Meter.before_step, Meter.after_step

    def traced(work: Any) -> Any:
        def under_trap(self: Meter, **kwargs: Any) -> None:
            with trapped(found):
                work(self, **kwargs)

        return under_trap

    monkeypatch.setattr(Meter, "before_step", traced(before))
    monkeypatch.setattr(Meter, "after_step", traced(after))
    for _ in range(10):
        optimizer.zero_grad()
        for part in range(2):
            loss = CASE.loss(model)
            scaler.scale(loss).backward()
            if part:
                scaler.step(optimizer)
                scaler.update()
            with trapped(found):
                observer.step(loss=loss)
    assert not found, found[0]
    assert len(observer.record()) == 10


# -- on a GPU ---------------------------------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def cuda_run(*, watched: bool, num_steps: int = 40, **settings: Any) -> tuple[dict[str, Tensor], Record | None]:
    seed_everything(3)
    model = mlp(20, 200, 100, 4).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01, device="cuda"), fused=True)
    observer = splitter = detector = None
    if watched:
        observer = Observer(model, optimizer, strict=True, **settings)
        splitter, detector = EntropySplit(observer), CollapseDetector(observer)
    inputs, labels = torch.randn(32, 20, device="cuda"), torch.randint(4, (32,), device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(num_steps):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
            if observer is not None and splitter is not None and detector is not None:
                observer.step(loss=loss)
                splitter.step()
                detector.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return dict(model.state_dict()), observer.record() if observer is not None else None


@pytest.mark.gpu
@needs_gpu
def test_cuda_never_waits_and_training_is_the_same() -> None:
    plain, _ = cuda_run(watched=False)
    for settings in ({}, {"lag": 1}, {"mode": "exact"}):
        params, record = cuda_run(watched=True, **settings)
        assert all(torch.equal(params[name], plain[name]) for name in plain)
        assert record is not None
        assert record.steps.tolist() == list(range(1, 41))
        assert np.isfinite(record.loss).all()
        np.testing.assert_allclose(record["lr"], 0.01, rtol=1e-6)


@pytest.mark.gpu
@needs_gpu
def test_cuda_and_cpu_see_the_same_run() -> None:
    def go(device: str) -> Record:
        seed_everything(3)
        model = mlp(20, 30, 20, 4).double()
        data = [(torch.randn(32, 20).double(), torch.randint(4, (32,))) for _ in range(30)]
        model = model.to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        observer = Observer(model, optimizer, strict=True)
        for x, y in data:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x.to(device)), y.to(device))
            loss.backward()
            optimizer.step()
            observer.step(loss=loss)
        return observer.record()

    got, want = go("cuda"), go("cpu")
    for name in ("sigma", "coherence", "alignment", "distance", "noise", "overshoot", "d_iS_wd", "R_ie", "r", "loss"):
        np.testing.assert_allclose(got[name], want[name], rtol=1e-7, atol=1e-9, err_msg=name)
