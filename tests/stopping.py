"""What the tests of states share: trainings whose batches follow from the step's number, stopped and gone on with."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.conftest import assert_bitwise, mlp, seed_everything
from thermoclaw import Observer, diagnose

WIDE = (6, 40, 30, 4)


def classify(model: nn.Module, step: int) -> Tensor:
    """The loss of the batch that belongs to a step."""
    random = torch.Generator().manual_seed(step)
    x = torch.randn(8, 6, generator=random)
    dtype = next(model.parameters()).dtype
    return functional.cross_entropy(model(x.to(dtype)), x[:, :4].argmax(1))


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


@dataclass(frozen=True)
class Job:
    """A training: what is trained, how, and what else happens before or after a step."""

    optimizer: Callable[[nn.Module], Any] = adamw
    make: Callable[[], nn.Module] = lambda: mlp(*WIDE)
    loss: Callable[[nn.Module, int], Tensor] = classify
    settings: dict[str, Any] = field(default_factory=dict)
    scaler: bool = False
    overflow_at: tuple[int, ...] = ()
    before: Callable[[Run, int], None] = lambda run, step: None


class Run:
    """One process of it: from the start, or from what an earlier process saved."""

    def __init__(self, job: Job, saved: bytes | None = None, *, weights_first: bool = True) -> None:
        seed_everything(0 if saved is None else 1)  # what a new process begins with is not what the run began with
        self.job, self.at = job, 0
        self.model = job.make()
        self.optimizer = job.optimizer(self.model)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=1000, enabled=job.scaler)
        self.observer = Observer(self.model, self.optimizer, strict=True, **job.settings)
        self.told: list[str] = []
        self.observer.on_alarm(lambda finding: self.told.append(finding.code))
        if saved is not None:
            state = torch.load(io.BytesIO(saved), weights_only=True)
            for name in ("training", "observer") if weights_first else ("observer", "training"):
                self._load(name, state)

    def _load(self, name: str, state: dict[str, Any]) -> None:
        if name == "observer":
            self.observer.load_state_dict(state["observer"])
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.at = state["at"]

    def save(self) -> bytes:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "at": self.at,
            "observer": self.observer.state_dict(),
        }
        file = io.BytesIO()
        torch.save(state, file)
        return file.getvalue()

    def go(self, until: int) -> Run:
        while self.at < until:
            self.at += 1
            self.job.before(self, self.at)
            self.optimizer.zero_grad()
            loss = self.job.loss(self.model, self.at)
            self.scaler.scale(loss).backward()
            if self.at in self.job.overflow_at:
                next(self.model.parameters()).grad.view(-1)[0] = float("inf")
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.observer.step(loss=loss)
        return self


def stopped(job: Job, stops: tuple[int, ...], until: int, *, weights_first: bool = True) -> Run:
    """The training in as many processes as there are stops, and one more."""
    run = Run(job)
    for stop in stops:
        before = run.go(stop)
        run = Run(job, before.save(), weights_first=weights_first)
        assert run.observer.rows_on_host() == before.observer.rows_on_host()
    return run.go(until)


def assert_same_run(got: Run, want: Run) -> None:
    """Weights, record, events, alarms and findings to the last bit."""
    assert_bitwise(dict(got.model.state_dict()), dict(want.model.state_dict()), "weights")
    one, two = got.observer.record(), want.observer.record()
    assert one.layers == two.layers
    for name in ("steps", "layer_values", "run_values"):
        assert_bitwise(getattr(one, name), getattr(two, name), name)
    assert one.events == two.events
    assert one.meta == two.meta
    assert got.observer.alarms == want.observer.alarms
    assert got.observer.rows_on_host() == want.observer.rows_on_host()
    assert got.observer.global_step == want.observer.global_step
    assert str(diagnose(one)) == str(diagnose(two))
