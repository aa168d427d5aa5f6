"""Training steps captured in a CUDA graph: every replay is a row, though no hook fires.

Without a GPU the device's side is played: `Graph` notes down the operations of a block, undoes what they did, and does
them again at each replay, as CUDA does; `Shifting` is a backend that keeps no count on the host, as the fused kernels
do not. What is tested is all the rest: the rings that count on the device, and the host that must follow.

Legend: B rows a block.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import thermoclaw.attachment
from tests.conftest import mlp, seed_everything
from thermoclaw import CollapseDetector, EntropySplit, Observer, Record
from thermoclaw.buffer import DeviceRing
from thermoclaw.measure import hyper, step, transit
from thermoclaw.measure import parts as parts_module
from thermoclaw.measure.meter import Meter
from thermoclaw.measure.probed import PROBED
from thermoclaw.measure.sketched import SketchBackend
from thermoclaw.measure.timing import Clock
from thermoclaw.quantities import TABLE

# -- a graph, a device and its backend, played on the host ------------------------------------------------------------


class _Notes(TorchDispatchMode):
    """Notes down operations, and what the tensors held that they touch."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self.held: dict[int, tuple[Tensor, Tensor]] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        assert func is not torch.ops.aten._local_scalar_dense.default, "a value was read while a graph is captured"
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in self._made:
                everything = x.new_empty(0).set_(x.untyped_storage())
                self.held.setdefault(x.untyped_storage().data_ptr(), (everything, everything.clone()))
        result = func(*args, **kwargs)
        outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        self._made.update({x.untyped_storage().data_ptr() for x in outputs} - set(self.held))
        self.operations.append((func, args, kwargs, outputs))
        return result


class Graph:
    """`with graph.capture(): ...` notes the block down without doing it; `graph.replay()` does it."""

    is_capturing = False

    @contextmanager
    def capture(self) -> Iterator[None]:
        self._notes = _Notes()
        self.is_capturing = True
        try:
            with self._notes:
                yield
        finally:
            self.is_capturing = False
        with torch.no_grad():
            for now, before in self._notes.held.values():
                now.copy_(before)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, outputs in self._notes.operations:
            again = [x for x in tree_leaves(func(*args, **kwargs)) if isinstance(x, Tensor)]
            for x, y in zip(outputs, again, strict=True):
                if x.data_ptr() != y.data_ptr():
                    x.copy_(y)


class Shifting(SketchBackend):
    """The sketching backend with memories that move on by themselves, on the device."""

    is_replayable = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._native = None  # a call into C is no operation on a device

    def read_parameters(self, out: Tensor, **given: Any) -> None:
        super().read_parameters(out, **given)
        self._now = 0
        moves = [(self._G + 2, self._G + 1), (self._G + 3, self._G + 2), (self._G, self._G + 3)]
        for old, new in [*moves, (self._D, self._D + 1), (self._P, self._P + 1)]:
            self._state[:, new].copy_(self._state[:, old])


class _Event:
    def record(self) -> None: ...

    def synchronize(self) -> None: ...


class LikeCuda(DeviceRing):
    """A ring whose rows reach the host by copies, a block later."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._async = True
        self._host = torch.empty_like(self._rows)
        self._events = [_Event(), _Event()]  # type: ignore[list-item]


@pytest.fixture(params=[DeviceRing, LikeCuda], ids=["handed on at once", "handed on a block later"])
def graph(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Graph:
    """A graph to capture steps in, on a machine where meters can be captured."""
    graph = Graph()

    def ring(*args: Any, replayable: bool = True, **kwargs: Any) -> DeviceRing:
        return request.param(*args, replayable=replayable, **kwargs)

    for module in (transit, parts_module):
        monkeypatch.setattr(module, "DeviceRing", ring)
    monkeypatch.setattr(parts_module, "make_backend", lambda units, *, mode, size: Shifting(units, size=size))
    monkeypatch.setattr(Meter, "is_capturing", lambda self: graph.is_capturing)
    return graph


class Job:
    """A training whose step works in fixed memory, so that it can be captured. The first steps are made eagerly."""

    def __init__(
        self, *, watched: str = "osd", looks: bool = False, lr: Any = 0.05, fused: bool = False, **settings: Any
    ) -> None:
        seed_everything(3)
        self.model = mlp(6, 40, 30, 4).double()
        cls: Any = torch.optim.AdamW if fused else torch.optim.SGD
        more = {"fused": True} if fused else {"momentum": 0.9}
        self.optimizer = cls(self.model.parameters(), lr=lr, weight_decay=0.1, **more)
        self.observer = Observer(self.model, self.optimizer, **settings)
        self.splitter, self.detector = EntropySplit(self.observer), CollapseDetector(self.observer)
        self.x, self.y = torch.zeros(16, 6).double(), torch.zeros(16, dtype=torch.long)
        self.loss = torch.zeros(())
        self.losses: list[float] = []
        self.splits: list[Any] = []
        self.watched, self.looks = watched, looks
        self._random = torch.Generator().manual_seed(1)

    def work(self) -> None:
        self.optimizer.zero_grad()
        self.loss = nn.functional.cross_entropy(self.model(self.x), self.y)
        self.loss.backward()
        self.optimizer.step()

    def capture(self, graph: Graph) -> None:
        """One step as a graph; a listener that is called inside has nothing to say."""
        with graph.capture():
            self.work()
            self.observer.step(loss=self.loss)
            self.splitter.step()
        loss = self.loss

        def replay() -> None:
            graph.replay()
            self.loss = loss

        self.replay = replay

    def go(self, num_steps: int, step: Callable[[], None] | None = None) -> None:
        for _ in range(num_steps):
            self.x.copy_(torch.randn(16, 6, generator=self._random))
            self.y.copy_(torch.randint(4, (16,), generator=self._random))
            (step or self.work)()
            self.losses.append(self.loss.item())
            for who in self.watched:
                if who == "o":
                    snapshot = self.observer.step(loss=self.loss)
                    if self.looks and len(self.losses) % 5 == 0:  # looking in between spoils nothing
                        assert snapshot["loss"] == self.losses[-1]
                elif who == "s":
                    self.splits.append(self.splitter.step())
                else:
                    self.detector.step()


def assert_close(got: Record, want: Record) -> None:
    assert got.steps.tolist() == want.steps.tolist()
    assert got.layers == want.layers
    for name in TABLE:
        known = ~np.isnan(got[name]) if name in PROBED else slice(None)  # replays are not probed
        assert name != "grad_zeros" or np.flatnonzero(known.any(axis=1)).tolist() == [0], "the first step is"
        np.testing.assert_allclose(got[name][known], want[name][known], rtol=1e-9, atol=1e-12, err_msg=name)


# -- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("watched", "lag"), [("osd", 8), ("sod", 3), ("dso", 1), ("so", 8), ("o", 3)])
def test_replays_give_the_rows_of_eager_steps(graph: Graph, watched: str, lag: int) -> None:
    """Eager steps, a capture, replays, eager steps between, replays again: whoever listens, in whatever order."""
    want = Job(watched=watched, strict=True, lag=lag)
    want.go(55)
    job = Job(watched=watched, looks=True, strict=True, lag=lag)
    job.go(4)
    job.capture(graph)
    assert job.observer.global_step == 4, "a capture makes no step"
    job.go(21, job.replay)
    job.go(3)
    job.go(27, job.replay)
    record = job.observer.record()
    assert record.steps.tolist() == list(range(1, 56))
    assert job.observer.global_step == 55
    np.testing.assert_array_equal(record.loss, job.losses)
    assert_close(record, want.observer.record())
    if "s" in watched:
        assert [split.step for split in job.splits] == list(range(1, 56))


@pytest.mark.parametrize("watched", ["s", "sd", "ds"])
def test_detectors_alone_count_replays(graph: Graph, watched: str) -> None:
    want, job = (Job(watched=watched, strict=True, lag=4) for _ in range(2))
    want.go(40)
    job.go(3)
    job.capture(graph)
    job.go(37, job.replay)
    assert_close(job.observer.record(), want.observer.record())


@pytest.mark.parametrize("every", [3, 8])
def test_a_cadence_keeps_its_rows_across_a_capture(graph: Graph, every: int) -> None:
    """Replays are all measured, but what eager steps left out before them must not be taken for the last step."""
    want, job = Job(strict=True, watched="o", mode="exact"), Job(strict=True, watched="od", every=every)
    start = np.array([sum(float(p.detach().square().sum()) for p in part.parameters()) for part in want.model[::2]])
    want.go(60)
    job.go(11)
    job.capture(graph)
    job.go(40, job.replay)
    job.go(9)
    got, full = job.observer.record(), want.observer.record()
    assert got.steps.tolist() == list(range(1, 61, every))
    for name in ("sigma", "grad_sq", "param_sq", "loss", "lr"):
        np.testing.assert_allclose(got[name], full[name][::every], rtol=1e-9, err_msg=name)
    small = [layer.num_params <= 1021 for layer in got.layers]
    for name in ("coherence", "alignment", "update_sq", "overshoot"):
        np.testing.assert_allclose(got[name][:, small], full[name][::every, small], rtol=1e-9, err_msg=name)
    if every == 8:  # smoothed over the steps whose predecessor was measured; one over a gap would weigh manifold
        seen = [0, *range(6, 9), *range(12, 17)]
        weight = 0.95 ** np.arange(len(seen))[::-1, None]
        half = 0.5 * (full["update_sq"][seen] * weight).sum(0)
        change = 0.5 * (np.diff(full["param_sq"], axis=0, prepend=start[None])[seen] * weight).sum(0)
        np.testing.assert_allclose(got["norm_budget"][2, small], (half / (half - change))[small], rtol=1e-6)


def test_a_learning_rate_on_the_device_is_followed(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph reads a tensor lr at every replay; the host, which cannot, takes it from the row."""
    known = hyper.number
    monkeypatch.setattr(hyper, "number", lambda value: float("nan") if isinstance(value, Tensor) else known(value))
    monkeypatch.setattr(
        step, "device_lrs", lambda optimizer: {i: g["lr"] for i, g in enumerate(optimizer.param_groups)}
    )
    lr = torch.tensor(0.01, dtype=torch.float64)
    job = Job(strict=True, fused=True, lr=lr)
    used = []

    def scheduled(step: Callable[[], None]) -> Callable[[], None]:
        def then() -> None:
            lr.mul_(0.9)
            used.append(lr.item())
            step()

        return then

    job.go(5, scheduled(job.work))
    job.capture(graph)
    job.go(20, scheduled(job.replay))
    record = job.observer.record()
    np.testing.assert_allclose(record["lr"], np.array(used)[:, None] * np.ones(3), rtol=1e-6)
    np.testing.assert_allclose(record["sigma"], np.array(used)[:, None] * record["grad_sq"], rtol=1e-6)


# -- training itself --------------------------------------------------------------------------------------------------


def test_replayed_training_is_bitwise_that_of_eager_steps(graph: Graph) -> None:
    """Of the playing, too: a graph that does not do what eager steps do would prove nothing."""
    want, job = Job(strict=True), Job(strict=True)
    want.observer.close()
    want.watched = ""
    want.go(30)
    job.go(4)
    job.capture(graph)
    job.go(26, job.replay)
    assert job.losses == want.losses
    assert len(set(job.losses)) == 30
    for p, q in zip(job.model.parameters(), want.model.parameters(), strict=True):
        assert torch.equal(p, q)


# -- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("told", "made"), [(1, 2), (2, 1)], ids=["too seldom", "too often"])
def test_a_replay_and_a_step_that_do_not_match_are_said_once(
    graph: Graph, caplog: pytest.LogCaptureFixture, told: int, made: int
) -> None:
    job = Job(watched="o", lag=4)
    job.go(6)
    job.capture(graph)
    for _ in range(20):
        for _ in range(made):
            job.replay()
        for _ in range(told):
            job.observer.step(loss=job.loss)
    (error,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert error.exc_info is not None
    problem = str(error.exc_info[1])
    assert "call observer.step() once after every replay" in problem
    assert "was replayed" in problem
    assert "off after an error" in repr(job.observer)
    assert job.observer.record().steps.tolist()[:4] == [1, 2, 3, 4], "what came before stays"
    job.go(5, job.replay)
    assert np.isfinite(job.losses).all(), "training goes on"


def test_a_step_that_cannot_be_captured_is_said_once(graph: Graph, caplog: pytest.LogCaptureFixture) -> None:
    Shifting_is_replayable, Shifting.is_replayable = Shifting.is_replayable, False
    try:
        job = Job(watched="o")
        job.go(3)
        job.capture(graph)
        job.go(5, job.replay)
    finally:
        Shifting.is_replayable = Shifting_is_replayable
    (error,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert error.exc_info is not None
    assert "can be measured by the fused kernels only" in str(error.exc_info[1])
    assert job.observer.record().steps.tolist() == [1, 2, 3]
    assert len(set(job.losses)) == 8, "training goes on"


def test_the_torch_backends_do_not_pretend_to_be_replayable() -> None:
    model = mlp(6, 4)
    for mode in ("sketch", "exact"):
        observer = Observer(model, torch.optim.SGD(model.parameters(), lr=0.1), mode=mode)
        assert [part.backend.is_replayable for part in observer._attachment.meter._parts] == [False]


def test_nothing_is_timed_while_a_graph_is_captured(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event recorded in a capture can never be read."""
    ticks: list[bool] = []
    original = Clock.__init__

    def clock(self: Any, tick: Any = None, *rest: Any) -> None:
        def noted() -> float:
            ticks.append(graph.is_capturing)
            return float(len(ticks))

        original(self, noted, *rest)

    monkeypatch.setattr(Clock, "__init__", clock)
    job = Job(strict=True, budget=0.5)
    job.go(20)
    job.capture(graph)
    job.go(20, job.replay)
    assert ticks
    assert not any(ticks)


def test_alarms_come_from_replays_too(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr(
        thermoclaw.attachment, "live_findings", lambda record, known: looked.append(record.num_steps) or []
    )
    job = Job(strict=True, lag=8)
    job.go(4)
    job.capture(graph)
    job.go(44, job.replay)
    assert len(looked) >= 4
    assert looked[-1] >= 32
