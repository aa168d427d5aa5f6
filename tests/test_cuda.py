"""The whole system on a GPU: it never waits, never changes training, and sees every step, captured or compiled.

    pytest -m gpu tests

Everything here needs a CUDA device and skips without one. The GPU's numbers are compared with exact ones, taken from
the same tensors in double precision, where layers are so small that sketched products are exact.
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.conftest import Outcome, assert_bitwise, assert_same_record, outcome, seed_everything
from thermoclaw import CollapseDetector, EntropySplit, Observer, Record
from thermoclaw.measure.fused import FusedBackend
from thermoclaw.measure.sketched import SketchBackend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # what torch's compiler, graphs and profiler have to say differs between versions
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.*"),
]

CUDA = torch.device("cuda")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def small_net(dtype: torch.dtype = F32) -> nn.Sequential:
    """Layers of at most 1021 elements: sketched products are exact. Two are larger than 251."""
    parts = (nn.Linear(16, 40), nn.Tanh(), nn.LayerNorm(40), nn.Linear(40, 20), nn.Tanh(), nn.Linear(20, 4))
    return nn.Sequential(*parts).to(CUDA, dtype)


def large_net(width: int = 1024, depth: int = 4) -> nn.Sequential:
    parts: list[nn.Module] = [nn.Embedding(2000, width), nn.Flatten()]
    for _ in range(depth):
        parts += [nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width)]
    return nn.Sequential(*parts, nn.Linear(width, 10)).to(CUDA)


def batch(generator: torch.Generator, dtype: torch.dtype = F32) -> tuple[Tensor, Tensor]:
    """Made on the host: the same on any device."""
    x = torch.randn(32, 16, generator=generator).to(dtype)
    return x.to(CUDA), torch.randint(4, (32,), generator=generator).to(CUDA)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(model(x).float(), y)


class Exact:
    """The true numbers of each step, from the tensors themselves; reading them waits, which a test may."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = [list(m.parameters(recurse=False)) for m in model.modules() if list(m.parameters(recurse=False))]
        self._before = [self._flat(layer) for layer in self._layers]
        self._start = [x.clone() for x in self._before]
        self._last: list[Tensor] | None = None
        self.rows: dict[str, list[list[float]]] = {}

    @staticmethod
    def _flat(tensors: list[Any]) -> Tensor:
        return torch.cat([x.detach().double().flatten() for x in tensors])

    def step(self, *, scale: float = 1.0) -> None:
        """Call it after a step, while its gradients are in place."""
        g = [self._flat([p.grad for p in layer]) / scale for layer in self._layers]
        now = [self._flat(layer) for layer in self._layers]
        d = [a - b for a, b in zip(now, self._before, strict=True)]
        values = {
            "grad_sq": [x.dot(x) for x in g],
            "param_sq": [x.dot(x) for x in now],
            "update_sq": [x.dot(x) for x in d],
            "work": [-x.dot(y) for x, y in zip(g, d, strict=True)],
            "distance": [(x - y).square().sum() for x, y in zip(now, self._start, strict=True)],
        }
        if self._last is not None:
            values["coherence"] = [x.dot(y) / (x.norm() * y.norm()) for x, y in zip(g, self._last, strict=True)]
        for name, row in values.items():
            self.rows.setdefault(name, []).append([float(v) for v in row])
        self._before, self._last = now, g

    def check(self, record: Record, *, rtol: float = 1e-4) -> None:
        assert len(record) == len(self.rows["grad_sq"])
        for name, rows in self.rows.items():
            want = np.array(rows)
            got = record[name][-len(want) :]
            scale = np.abs(want).max(axis=0, keepdims=True) + 1e-30
            np.testing.assert_allclose(got / scale, want / scale, rtol=rtol, atol=rtol, err_msg=name)


class Watch:
    """All listeners on; half of what they return is looked at."""

    def __init__(self, model: nn.Module, optimizer: Any, **settings: Any) -> None:
        self.observer = Observer(model, optimizer, strict=True, **settings)
        self.splitter, self.detector = EntropySplit(self.observer), CollapseDetector(model, optimizer)

    def step(self, loss: Any) -> None:
        snapshot = self.observer.step(loss=loss)
        self.splitter.step()
        self.detector.step()
        if self.observer.global_step % 2:
            assert snapshot["layers"]


@contextmanager
def never_waiting() -> Iterator[None]:
    """An operation that waits for the device raises."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


# -- which backend ----------------------------------------------------------------------------------------------------


def test_the_fused_kernels_are_used_and_nothing_is_said(caplog: Any) -> None:
    model = small_net()
    with caplog.at_level(logging.INFO, logger="thermoclaw"):
        observer = Observer(model, torch.optim.SGD(model.parameters(), lr=0.1))
    (part,) = observer._attachment.meter._parts
    assert isinstance(part.backend, FusedBackend)
    assert not caplog.messages


def test_double_precision_is_left_to_torch_and_said(caplog: Any) -> None:
    model = small_net(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with caplog.at_level(logging.WARNING, logger="thermoclaw"):
        observer = Observer(model, optimizer, strict=True)
    (part,) = observer._attachment.meter._parts
    assert isinstance(part.backend, SketchBackend)
    assert sum("float64 parameters" in line for line in caplog.messages) <= 1  # said once a process
    exact, random = Exact(model), torch.Generator().manual_seed(0)
    for _ in range(5):
        optimizer.zero_grad()
        loss_of(model, *batch(random, torch.float64)).backward()
        optimizer.step()
        observer.step()
        exact.step()
    exact.check(observer.record(), rtol=1e-9)


def test_nothing_is_compiled_after_the_observer_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import jit

    if not hasattr(jit.JITFunction, "_do_compile"):
        pytest.skip("this Triton compiles elsewhere")
    model = small_net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01, device=CUDA), capturable=True)
    observer = Observer(model, optimizer, strict=True, lag=3)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a kernel was compiled in the middle of training")

    monkeypatch.setattr(jit.JITFunction, "_do_compile", refuse)
    random = torch.Generator().manual_seed(0)
    scaler = torch.amp.GradScaler("cuda")
    for step in range(9):
        optimizer.zero_grad()
        loss = loss_of(model, *batch(random))
        scaler.scale(loss).backward()
        if step == 4:
            model[0].weight.grad = None
        scaler.step(optimizer)
        scaler.update()
        observer.step(loss=loss)
    assert len(observer.record()) == 9


# -- it sees the step -------------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, foreach=False),
    "sgd foreach": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, foreach=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-3, foreach=False),
    "adam foreach": lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-3, weight_decay=0.01, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-3, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, eps=1e-3, foreach=False),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.01, eps=1e-3, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, eps=1e-3, fused=True),
    "adamw capturable": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01, device=CUDA), eps=1e-3, capturable=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=["fp32", "bf16", "fp16"])
def test_rows_are_the_exact_numbers(name: str, dtype: torch.dtype) -> None:
    seed_everything(0)
    model = small_net(dtype)
    optimizer = OPTIMIZERS[name](model.parameters())
    observer, exact = Observer(model, optimizer, strict=True), Exact(model)
    random = torch.Generator().manual_seed(1)
    for _ in range(12):
        optimizer.zero_grad()
        loss_of(model, *batch(random, dtype)).backward()
        optimizer.step()
        observer.step()
        exact.step()
    exact.check(observer.record())


def test_a_changed_kernel_would_be_seen() -> None:
    """The comparison above can fail: a gradient that is off by a thousandth in one layer is found."""
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer, exact = Observer(model, optimizer, strict=True), Exact(model)
    random = torch.Generator().manual_seed(1)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model, *batch(random)).backward()
        optimizer.step()
        observer.step()
        model[3].weight.grad.mul_(1.001)
        exact.step()
    with pytest.raises(AssertionError):
        exact.check(observer.record())


def test_the_cpu_and_the_gpu_see_the_same_run() -> None:
    def run(device: torch.device) -> Record:
        seed_everything(0)
        model = nn.Sequential(nn.Linear(16, 300), nn.Tanh(), nn.Linear(300, 4))
        model.to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
        observer, random = Observer(model, optimizer, strict=True), torch.Generator().manual_seed(1)
        for _ in range(16):
            optimizer.zero_grad()
            x, y = batch(random)
            loss = loss_of(model, x.to(device), y.to(device))
            loss.backward()
            optimizer.step()
            observer.step(loss=loss)
        return observer.record()

    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        got, want = run(CUDA), run(torch.device("cpu"))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
    for name in ("sigma", "grad_sq", "param_sq", "update_sq", "coherence", "alignment", "overshoot", "distance", "r",
                 "noise", "d_iS_wd", "d_iS_momentum", "d_iS_noise", "loss"):  # fmt: skip
        scale = np.nanmax(np.abs(want[name]))
        np.testing.assert_allclose(got[name], want[name], rtol=5e-3, atol=1e-3 * scale, err_msg=name)


def test_sparse_gradients_are_measured_without_waiting() -> None:
    embedding = nn.Embedding(3000, 24, sparse=True).to(CUDA)
    observer = Observer(embedding, torch.optim.SparseAdam(embedding.parameters(), lr=0.1), strict=True)
    (part,) = observer._attachment.meter._parts
    embedding(torch.randint(3000, (64,), device=CUDA)).square().sum().backward()
    assert embedding.weight.grad.is_sparse
    with torch.no_grad():
        part.backend.read_gradients()
        with never_waiting():
            part.backend.read_gradients()
        once = part.backend._pack.clone()
        part.backend.read_gradients()
    assert_bitwise(part.backend._pack.cpu(), once.cpu())
    want = float(embedding.weight.grad.to_dense().double().square().sum())
    assert float(part.backend._squares[0, 0]) == pytest.approx(want, rel=5 * np.sqrt(2 / 1021))


# -- law 1: training is the same --------------------------------------------------------------------------------------


def run_small(make: Callable[[Any], Any], dtype: torch.dtype, *, watched: bool) -> tuple[Outcome, Tensor]:
    seed_everything(5)
    model = small_net(dtype)
    optimizer = make(model.parameters())
    watch = Watch(model, optimizer) if watched else None
    random, losses = torch.Generator().manual_seed(1), []
    for _ in range(11):
        optimizer.zero_grad()
        loss = loss_of(model, *batch(random, dtype))
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if watch is not None:
            watch.step(loss)
    return outcome(model, optimizer, losses), torch.cuda.get_rng_state()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=["fp32", "bf16", "fp16"])
def test_training_is_bitwise_the_same(name: str, dtype: torch.dtype) -> None:
    plain, again = (run_small(OPTIMIZERS[name], dtype, watched=False) for _ in range(2))
    try:
        assert_bitwise(again, plain)
    except AssertionError:
        pytest.skip("torch itself does not repeat this run")
    assert_bitwise(run_small(OPTIMIZERS[name], dtype, watched=True), plain)


def test_rows_repeat_to_the_bit() -> None:
    def run() -> Record:
        seed_everything(2)
        model = large_net(256, 3)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        observer, random = Observer(model, optimizer, strict=True), torch.Generator().manual_seed(1)
        rows = torch.randn(10, *[256], generator=random).to(CUDA)
        for _ in range(20):
            for i, p in enumerate(model.parameters()):  # gradients that repeat to the bit themselves
                p.grad = torch.cos(p.detach() * (i + 1)) * 1e-2
            optimizer.step()
            observer.step(loss=rows.sum())
        return observer.record()

    assert_same_record(run(), run())


# -- law 3: nothing waits ---------------------------------------------------------------------------------------------


def train_large(observe: bool, *, before: int = 4, steps: int = 40, guard: Any = nullcontext) -> Any:
    seed_everything(0)
    model = large_net(256, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    watch = Watch(model, optimizer) if observe else None
    tokens = torch.randint(2000, (32, 1), device=CUDA)
    y = torch.randint(10, (32,), device=CUDA)

    def step() -> None:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(tokens), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if watch is not None:
            watch.observer.step(loss=loss)
            watch.splitter.step()
            watch.detector.step()

    for _ in range(before):
        step()
    with guard() as guarded:
        for _ in range(steps):
            step()
    if watch is not None:
        assert watch.observer.global_step == before + steps
        assert len(watch.observer.record()) == before + steps
    return guarded


def test_no_operation_waits_for_the_device() -> None:
    with never_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones(1, device=CUDA).item()
    train_large(True, guard=never_waiting)


_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "Pageable")


def _waits(profile: Any) -> Counter[str]:
    events = Counter({e.key: e.count for e in profile.key_averages()})
    return Counter({key: n for key, n in events.items() if any(word in key for word in _WAITS)})


@contextmanager
def profiled() -> Iterator[Any]:
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            yield found


def test_a_trace_has_no_stream_synchronization_and_no_pageable_copy() -> None:
    train_large(True, steps=2, guard=profiled)  # what the profiler does once
    assert _waits(train_large(True, guard=profiled)) == _waits(train_large(False, guard=profiled))
    with profiled() as found:
        torch.ones(1, device=CUDA).item()
    assert _waits(found), "the trace does not show what it should not have"


def _work_on_the_device(num_layers: int) -> Counter[str]:
    """What hooks and `observer.step` enqueue for a step, by name."""
    model = nn.Sequential(*(nn.Linear(24, 24) for _ in range(num_layers))).to(CUDA)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = Observer(model, optimizer, strict=True)
    attachment = observer._attachment
    loss = torch.zeros((), device=CUDA)

    def step() -> None:
        for p in model.parameters():
            p.grad = torch.ones_like(p)  # elsewhere each time
        torch.cuda.synchronize()

    def measure() -> None:
        attachment.before_step(closure=False)
        attachment.after_step()
        observer.step(loss=loss)

    for _ in range(3):
        step()
        measure()
    kept = [p.grad for p in model.parameters()]
    step()
    assert kept[0].data_ptr() != model[0].weight.grad.data_ptr()
    with profiled() as found:
        measure()
        torch.cuda.synchronize()
    device = torch.autograd.DeviceType.CUDA
    return Counter(e.name for e in found.events() if e.device_type == device)


def test_as_much_work_for_a_thousand_layers_as_for_ten() -> None:
    few, many = _work_on_the_device(10), _work_on_the_device(1000)
    assert sum(few.values()) == sum(many.values()), (few, many)  # names tell of sizes, too
    assert sum(few.values()) < 30, few
    for found in (few, many):
        assert sum("sketch_pieces" in name for name in found.elements()) == 2, found


# -- law 4: memory ----------------------------------------------------------------------------------------------------


def test_memory_is_a_little_more_than_what_is_told() -> None:
    def peak(observe: bool) -> tuple[int, int]:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        told = 0
        seed_everything(0)
        model = large_net(1024, 8)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        observer = Observer(model, optimizer, strict=True) if observe else None
        for _ in range(10):
            optimizer.zero_grad()
            loss = functional.cross_entropy(
                model(torch.zeros(32, 1, dtype=torch.long, device=CUDA)), torch.zeros(32, dtype=torch.long, device=CUDA)
            )
            loss.backward()
            optimizer.step()
            if observer is not None:
                observer.step(loss=loss)
        if observer is not None:
            told = observer._attachment.meter.num_bytes()["device"]
        found = torch.cuda.max_memory_allocated() - start
        return found, told

    peak(True)  # workspaces that libraries take once
    (watched, told), (plain, _) = peak(True), peak(False)
    assert told < 8 << 20  # for ten million parameters; test_fused.py has what larger models take
    assert watched - plain < told + (2 << 20)


# -- mixed precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "fp16"])
def test_autocast_around_everything(dtype: torch.dtype) -> None:
    seed_everything(0)
    model = small_net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    observer, exact, random = Observer(model, optimizer, strict=True), Exact(model), torch.Generator().manual_seed(1)
    for _ in range(8):
        with torch.autocast("cuda", dtype=dtype):
            optimizer.zero_grad()
            loss = loss_of(model, *batch(random))
            loss.backward()
            optimizer.step()
            observer.step(loss=loss)
        exact.step()
    exact.check(observer.record())


@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("way", ["plain", "foreach", "fused"])
@pytest.mark.parametrize("overflow_at", [(), (3,), (3, 4, 7)], ids=str)
def test_gradient_scaler(way: str, unscale_first: bool, overflow_at: tuple[int, ...]) -> None:
    """Rows hold unscaled gradients, and a refused step is no row. Nothing waits but the scaler itself."""
    seed_everything(0)
    model = small_net()
    kind = {"plain": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}[way]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, **kind)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0, growth_interval=10_000)
    observer, exact, random = Observer(model, optimizer, strict=True), Exact(model), torch.Generator().manual_seed(1)
    fresh = []  # rows whose step before was refused have no coherence
    for t in range(11):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=F16):
            loss = loss_of(model, *batch(random))
        scaler.scale(loss).backward()
        if t in overflow_at:
            model[0].weight.grad[0, 0] = float("inf")
        if unscale_first:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        observer.step(loss=loss)
        if t not in overflow_at:
            exact.step()  # fused optimizers write unscaled gradients back
            fresh.append(t - 1 in overflow_at)
    record = observer.record()
    assert record.steps.tolist() == list(range(1, 12 - len(overflow_at)))
    if way == "fused":  # the scaler itself leaves out the step of others
        assert record.meta["num_skipped"] == len(overflow_at)
    rows = [row for row, is_fresh in zip([None, *exact.rows.pop("coherence")], fresh, strict=True) if not is_fresh][1:]
    exact.check(record)
    kept = record["coherence"][~np.array(fresh)][1:]
    np.testing.assert_allclose(kept, np.array(rows), rtol=1e-3, atol=1e-3)


# -- compiled ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_model(mode: str) -> None:
    def run(watched: bool) -> tuple[Any, ...]:
        torch._dynamo.reset()
        seed_everything(0)
        model = small_net()
        compiled = torch.compile(model, mode=mode)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        observer = Observer(model, optimizer, strict=True) if watched else None
        exact, random, losses = Exact(model), torch.Generator().manual_seed(1), []
        for _ in range(8):
            torch.compiler.cudagraph_mark_step_begin()
            optimizer.zero_grad()
            loss = loss_of(compiled, *batch(random))
            loss.backward()
            optimizer.step()
            exact.step()
            losses.append(loss.detach().clone())
            if observer is not None:
                observer.step(loss=loss)
        if observer is not None:
            exact.check(observer.record())
        return [p.detach().clone() for p in model.parameters()], losses

    assert_bitwise(run(True), run(False))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw foreach", "adamw capturable"])
def test_a_compiled_optimizer_step(name: str) -> None:
    def run(watched: bool) -> Any:
        torch._dynamo.reset()
        seed_everything(0)
        model = small_net()
        optimizer = OPTIMIZERS[name](model.parameters())
        observer = Observer(model, optimizer, strict=True) if watched else None
        exact, random = Exact(model), torch.Generator().manual_seed(1)
        step = torch.compile(optimizer.step)
        for _ in range(6):
            optimizer.zero_grad()
            loss_of(model, *batch(random)).backward()
            step()
            exact.step()
            if observer is not None:
                observer.step()
        if observer is not None:
            exact.check(observer.record())
        return [p.detach().clone() for p in model.parameters()]

    assert_bitwise(run(True), run(False))


# -- captured graphs --------------------------------------------------------------------------------------------------


class Captured:
    """A training whose whole step is captured in a CUDA graph, after some steps outside of it."""

    def __init__(
        self, name: str, *, watched: bool = True, dtype: torch.dtype = F32, eager: int = 4, settings: Any = None
    ) -> None:
        seed_everything(0)
        self.model = small_net(dtype)
        self.optimizer = CAPTURABLE[name](self.model.parameters())
        self.observer = Observer(self.model, self.optimizer, strict=True, **(settings or {})) if watched else None
        self.splitter = EntropySplit(self.observer) if self.observer is not None else None
        self.exact = Exact(self.model)
        self._random, self._dtype = torch.Generator().manual_seed(1), dtype
        self.x, self.y = batch(self._random, dtype)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(eager):
                self.eager()
        torch.cuda.current_stream().wait_stream(side)
        self.graphs: list[Any] = []
        self.capture()

    def _work(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = loss_of(self.model, self.x, self.y)
        loss.backward()
        self.optimizer.step()
        return loss

    def capture(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self._work()
        self.graphs.append((graph, loss, [p.grad for p in self.model.parameters()]))

    def _feed(self) -> None:
        x, y = batch(self._random, self._dtype)
        self.x.copy_(x)
        self.y.copy_(y)

    def eager(self) -> None:
        self._feed()
        self._after(self._work())

    def replay(self, which: int = 0) -> None:
        self._feed()
        graph, loss, grads = self.graphs[which]
        graph.replay()
        for p, g in zip(self.model.parameters(), grads, strict=True):
            p.grad = g  # those of this graph; the oracle reads them
        self._after(loss)

    def _after(self, loss: Tensor) -> None:
        self.exact.step()
        if self.observer is not None:
            self.observer.step(loss=loss)
            self.splitter.step()


CAPTURABLE: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, capturable=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, capturable=True, fused=True),
    "adamw, lr on the device": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01, device=CUDA), capturable=True),
}


@pytest.mark.parametrize("name", CAPTURABLE)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["fp32", "bf16"])
def test_every_replay_is_a_row(name: str, dtype: torch.dtype) -> None:
    job = Captured(name, dtype=dtype)
    for _ in range(21):
        job.replay()
    record = job.observer.record()
    assert record.steps.tolist() == list(range(1, 26))
    job.exact.check(record)
    if "device" in name:
        np.testing.assert_allclose(record["lr"], 0.01, rtol=1e-6)


def test_replays_train_as_without_an_observer() -> None:
    def run(watched: bool) -> list[Tensor]:
        job = Captured("adamw", watched=watched)
        for _ in range(9):
            job.replay()
        return [p.detach().clone() for p in job.model.parameters()]

    assert_bitwise(run(True), run(False))


def test_replays_do_not_wait() -> None:
    job = Captured("adamw")
    job._after = lambda loss: job.observer.step(loss=loss)  # type: ignore[method-assign]
    job._feed = lambda: None  # type: ignore[method-assign]
    with never_waiting():
        for _ in range(40):
            job.replay()
    assert len(job.observer.record()) == 44


def test_steps_outside_and_several_graphs_may_alternate() -> None:
    """Each kind of step reads its own gradients, wherever the others' lie."""
    job = Captured("adamw")
    job.capture()
    for kind in "0110e01ee10e0":
        if kind == "e":
            job.eager()
        else:
            job.replay(int(kind))
    job.exact.check(job.observer.record())
    assert len(job.observer.record()) == 4 + 13


def test_a_graph_outlives_its_observer() -> None:
    """Its launches go on writing into memory that nobody else may have been given."""
    job = Captured("sgd")
    job.replay()
    job.observer.close()
    job.observer = job.splitter = None
    gc.collect()
    torch.cuda.empty_cache()
    canaries = [torch.full((1 << k,), 7.0, device=CUDA) for k in range(4, 20) for _ in range(8)]
    for _ in range(5):
        job.replay()
    torch.cuda.synchronize()
    assert all(bool((x == 7.0).all()) for x in canaries)


def test_capture_without_the_fused_kernels_is_explained(caplog: Any) -> None:
    seed_everything(0)
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    observer = Observer(model, optimizer, mode="exact")
    side = torch.cuda.Stream()
    x, y = batch(torch.Generator().manual_seed(1))

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(model, x, y).backward()
        optimizer.step()

    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
            observer.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with caplog.at_level(logging.ERROR, logger="thermoclaw"), torch.cuda.graph(graph):
        work()
    assert "fused kernels only" in caplog.text
    before = model[0].weight.detach().clone()
    graph.replay()
    assert not torch.equal(before, model[0].weight)


# -- several devices --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_model_on_two_devices() -> None:
    seed_everything(0)
    first, second = nn.Linear(16, 40).to("cuda:0"), nn.Linear(40, 4).to("cuda:1")
    model = nn.Sequential(first, second)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    observer, exact, random = Observer(model, optimizer, strict=True), Exact(model), torch.Generator().manual_seed(1)
    for _ in range(6):
        optimizer.zero_grad()
        x, y = batch(random)
        functional.cross_entropy(second(first(x.to("cuda:0")).to("cuda:1")), y.to("cuda:1")).backward()
        optimizer.step()
        observer.step()
        exact.step()
    exact.check(observer.record())
