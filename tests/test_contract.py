"""What real runs go through: threads, forks, other kinds of parameters, two trainers of one model, names from hell."""

from __future__ import annotations

import csv
import json
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import assert_bitwise, mlp, outcome, seed_everything
from thermoclaw import Observer, Record, diagnose

HOSTILE = (
    "=cmd|' /C calc'!A0",
    "a\nb\r\tc",
    "\x1b[31mred\x1b[0m\x07",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "/etc/passwd",
    "..",
    "\u202egnp.exe",
    "x" * 10_000,
    "'; DROP TABLE runs; --",
    "$\\alpha_{1}$ %s {0}",
    "\ud800lone",
)


def hostile_model() -> nn.Sequential:
    model = nn.Sequential()
    for name in HOSTILE:
        model._modules[name] = nn.Linear(4, 4)  # as a stranger's pickle may bring them: add_module refuses dots
    return model


def trained(model: nn.Module, steps: int = 40, *, decay: float = 5.0) -> Observer:
    seed_everything(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=decay)
    observer = Observer(model, optimizer, strict=True)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).square().mean()
        loss.backward()
        optimizer.step()
        observer.step(loss=loss)
    return observer


# -- names ------------------------------------------------------------------------------------------------------------


def fit_to_show(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text) and max(map(len, text.split()), default=0) < 300


def test_hostile_names_reach_people_harmless(tmp_path: Path) -> None:
    observer = trained(hostile_model())
    report = diagnose(observer)
    assert report.findings, "nothing was said, so nothing was shown"
    assert fit_to_show(str(report))
    assert all(fit_to_show(alarm.message) for alarm in observer.alarms)
    report.save(tmp_path / "report.txt")
    assert fit_to_show((tmp_path / "report.txt").read_text(encoding="utf-8"))
    report.save(tmp_path / "report.json")
    json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))


def test_hostile_names_come_back_as_they_were(tmp_path: Path) -> None:
    record = trained(hostile_model()).record()
    assert {layer.name for layer in record.layers} == set(HOSTILE)
    saved = record.save(tmp_path / "run")
    assert [layer.name for layer in Record.load(saved).layers] == [layer.name for layer in record.layers]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.npz"], "a name was taken for a path"


def test_no_cell_of_a_table_is_a_formula(tmp_path: Path) -> None:
    record = trained(hostile_model()).record()
    for write in (record.to_csv, record.split_to_csv):
        with open(write(tmp_path / "run.csv"), newline="", encoding="utf-8", errors="surrogatepass") as file:
            rows = list(csv.DictReader(file))
        names = {row.get("layer_name", row.get("layer", "")) for row in rows}
        assert len(rows) == len(record) * len(HOSTILE)
        assert len(names) == len(HOSTILE)
        assert not [name for name in names if name.startswith(("=", "+", "-", "@", "\t", "\r"))]


# -- kinds of parameters ----------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """A model with parameters of every kind that is not an ordinary matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(4, 4)
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.scalar = nn.Parameter(torch.tensor(1.0))
        self.complex = nn.Parameter(torch.randn(4, dtype=torch.complex64))
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)
        self.quantised = nn.Parameter(torch.randint(-8, 8, (4, 4), dtype=torch.int8), requires_grad=False)
        self.short = nn.Parameter(torch.randn(4).bfloat16())
        self.long = nn.Parameter(torch.randn(4).double())
        self.unused = nn.Parameter(torch.randn(3))
        self.table = nn.Embedding(9, 4, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.plain(x) * self.scalar + (self.quantised.float() / 8) @ x.mean(0)
        y = y + self.complex.abs() + self.short.float() + self.long.float() + self.frozen
        return y + self.table(torch.tensor([1, 2, 2])).sum(0)


def odd_run(*, watch: bool) -> tuple[Any, Observer | None]:
    seed_everything(5)
    model = Odd()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    observer = Observer(model, optimizer, strict=True) if watch else None
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if observer is not None:
            observer.step(loss=loss)
    return outcome(model, optimizer, losses), observer


def test_parameters_of_every_kind() -> None:
    plain, _ = odd_run(watch=False)
    got, observer = odd_run(watch=True)
    assert_bitwise(got, plain)
    assert observer is not None
    record = observer.record()
    assert len(record) == 12
    known = {layer.name: i for i, layer in enumerate(record.layers)}
    assert np.isfinite(record["sigma"][:, known["plain"]]).all()
    assert np.isfinite(record["sigma"][:, known["table"]]).all()
    diagnose(observer)


# -- models and optimizers that change --------------------------------------------------------------------------------


def test_two_optimizers_on_one_model() -> None:
    def run(*, watch: bool) -> tuple[Any, list[Observer]]:
        seed_everything(7)
        model = mlp(4, 8, 4)
        first, second = list(model[0].parameters()), list(model[2].parameters())
        optimizers = [torch.optim.AdamW(first, lr=0.01), torch.optim.SGD(second, lr=0.1)]
        observers = [Observer(model, o, strict=True) for o in optimizers] if watch else []
        losses = []
        for t in range(20):
            turn = t % 2
            optimizers[turn].zero_grad()
            loss = model(torch.randn(8, 4)).square().mean()
            loss.backward()
            optimizers[turn].step()
            losses.append(loss.detach())
            if watch:
                observers[turn].step(loss=loss)
        return [outcome(model, o, losses) for o in optimizers], observers

    plain, _ = run(watch=False)
    got, observers = run(watch=True)
    for mine, want in zip(got, plain, strict=True):
        assert_bitwise(mine, want)
    assert [len(observer.record()) for observer in observers] == [10, 10]
    assert [[layer.name for layer in observer.record().layers] for observer in observers] == [["0"], ["2"]]


def test_weights_that_are_put_into_a_parameter_are_followed() -> None:
    model = mlp(4, 8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = Observer(model, optimizer, strict=True)
    for t in range(12):
        if t == 6:
            for p in model.parameters():
                p.data = torch.full_like(p, 0.5)  # other memory under the same parameter
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).square().mean()
        loss.backward()
        optimizer.step()
        observer.step(loss=loss)
    norms = observer.record()["param_norm"]
    want = [
        float(torch.cat([p.detach().reshape(-1) for p in layer.parameters()]).norm()) for layer in (model[0], model[2])
    ]
    assert norms[-1] == pytest.approx(want, rel=1e-5)


def test_an_optimizer_made_anew_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    model = mlp(4, 8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = Observer(model, optimizer)
    for t in range(30):
        if t == 10:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        observer.step(loss=1.0)
    assert len(observer.record()) == 10
    told = [r.getMessage() for r in caplog.records if "makes no steps" in r.getMessage()]
    assert len(told) == 1
    assert "Observer(model, optimizer)" in told[0]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_a_step_that_a_checkpoint_makes_for_the_state_is_none(kind: Any) -> None:
    """torch.distributed.checkpoint steps an optimizer without a state, on zero gradients at a rate of zero."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    model, other = mlp(4, 8, 4), mlp(4, 8, 4)
    optimizer, its = kind(model.parameters(), lr=0.01), kind(other.parameters(), lr=0.01)
    observer = Observer(model, optimizer, strict=True)
    set_optimizer_state_dict(model, optimizer, get_optimizer_state_dict(other, its))
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).square().mean()
        loss.backward()
        optimizer.step()
        observer.step(loss=loss)
    record = observer.record()
    assert record.steps.tolist() == [1, 2, 3]
    assert np.isfinite(record.loss).all()
    assert (record["grad_sq"] > 0).all()


@pytest.mark.parametrize("end", ["failed", "closed"])
def test_weights_that_move_when_nothing_is_measured_any_more_are_no_strangers(
    end: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = mlp(4, 8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = Observer(model, optimizer)
    for t in range(20):
        if t == 10 and end == "closed":
            observer.close()
        elif t == 10:
            observer._attachment.meter.after_step = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        observer.step(loss=1.0)
    assert observer._attachment.failed == (end == "failed")
    assert not [r.getMessage() for r in caplog.records if "makes no steps" in r.getMessage()]


# -- threads and processes --------------------------------------------------------------------------------------------


def thread_run(seed: int, *, watch: bool) -> tuple[list[Tensor], Record | None]:
    random = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=random) * 0.3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    observer = Observer(model, optimizer, strict=True) if watch else None
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 6, generator=random)).square().mean()
        loss.backward()
        optimizer.step()
        if observer is not None:
            observer.step(loss=loss)
    return [p.detach().clone() for p in model.parameters()], observer.record() if observer is not None else None


def test_threads_that_train_at_once_do_not_meet() -> None:
    alone = [thread_run(seed, watch=True) for seed in range(4)]
    found: dict[int, tuple[list[Tensor], Record | None]] = {}
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            found[seed] = thread_run(seed, watch=True)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors
    for seed, (weights, record) in enumerate(alone):
        unwatched, _ = thread_run(seed, watch=False)
        assert all(torch.equal(a, b) for a, b in zip(weights, unwatched, strict=True))
        other, other_record = found[seed]
        assert all(torch.equal(a, b) for a, b in zip(weights, other, strict=True))
        assert record is not None
        assert other_record is not None
        np.testing.assert_array_equal(record.layer_values, other_record.layer_values)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("end", [os._exit, pytest.param(None, id="exception")])
def test_a_forked_child_leaves_the_parent_alone(end: Callable[[int], Any] | None) -> None:
    observer = trained(mlp(4, 8, 4), 20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads
        child = os.fork()
    if child == 0:  # as a data loader's worker: it has the observer, and goes
        try:
            if end is None:
                del observer
                raise SystemExit
            end(0)
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    model, optimizer = observer.model, observer.optimizer
    for _ in range(10):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).square().mean()
        loss.backward()
        optimizer.step()
        observer.step(loss=loss)
    assert len(observer.record()) == 30


@pytest.mark.parametrize("workers", [2])
def test_a_data_loader_with_workers(workers: int) -> None:
    data = torch.utils.data.TensorDataset(torch.randn(64, 4))
    model = mlp(4, 8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = Observer(model, optimizer, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for _ in range(2):
            for (x,) in torch.utils.data.DataLoader(data, batch_size=16, num_workers=workers):
                optimizer.zero_grad()
                loss = model(x).square().mean()
                loss.backward()
                optimizer.step()
                observer.step(loss=loss)
    assert len(observer.record()) == 8
