"""What the tests of the loggers share: a small run that fails, a hostile finding, a logger that notes what it gets."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from thermoclaw import Finding, Observer, log_to

EVIL = 'a"b\\c\n# x\x1b[31m\x07\u202e<!channel> @everyone ![i](http://x.test/i) <img src=x onerror=y> `c` |d|\ud800'
LONG = EVIL + "y" * 10_000
STEPS, EVERY = 44, 10
POINTS = [10, 20, 30, 40, 44]


def evil_finding(**changes: Any) -> Finding:
    """Every word of it is whatever a layer may be called."""
    words = dict.fromkeys(("title", "seen", "meaning", "advice", "source"), LONG)
    finding = Finding(
        code="weight_decay_too_high",
        confidence="HIGH",
        first_step=7,
        raised_step=16,
        layers=(LONG, EVIL),
        evidence={"norm_drop": float("nan"), "decay": float("inf"), "plain": 0.5},
        **words,
    )
    return dataclasses.replace(finding, **changes)


def printable(text: str) -> bool:
    """Whether a text has no control or format character but line feeds."""
    return all(c.isprintable() or c == "\n" for c in text)


class Notes:
    """A logger that notes what it gets, and how far the run was; in the call named it fails."""

    def __init__(self, observer: Observer | None = None, *, broken: str = "") -> None:
        self.got: list[tuple[Any, ...]] = []
        self.when: list[int] = []
        self.observer, self.broken = observer, broken

    def _note(self, call: str, *what: Any) -> None:
        self.got.append((call, *what))
        self.when.append(self.observer.global_step if self.observer is not None else -1)
        if call == self.broken:
            raise ConnectionError("no network")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._note("scalars", step, dict(values))

    def finding(self, finding: Finding) -> None:
        self._note("finding", finding)

    def picture(self, name: str, step: int, png: bytes) -> None:
        self._note("picture", name, step, png)

    def close(self) -> None:
        self._note("close")

    def calls(self, name: str) -> list[tuple[Any, ...]]:
        return [what for call, *what in self.got if call == name]  # type: ignore[misc]


class Run:
    """A small network on handwritten digits, by default with a weight decay that erodes it from the first steps."""

    def __init__(self, digits: tuple[Tensor, Tensor], *, decay: float = 5.0, **settings: Any) -> None:
        torch.manual_seed(0)
        self.x, self.y = digits
        self.model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9, weight_decay=decay)
        self.observer: Observer | None = Observer(self.model, self.optimizer, **settings) if settings != OFF else None
        self.losses: list[Tensor] = []

    def train(self, steps: int = STEPS) -> None:
        for _ in range(steps):
            rows = torch.randint(len(self.x), (32,))
            loss = functional.cross_entropy(self.model(self.x[rows]), self.y[rows])
            loss.backward()
            self.optimizer.step()
            if self.observer is not None:
                self.observer.step(loss=loss)
            self.optimizer.zero_grad()
            self.losses.append(loss.detach())


OFF = {"off": True}


def logged(digits: tuple[Tensor, Tensor], *targets: Any, **settings: Any) -> Observer:
    """A whole failing run, with points every ten steps, closed."""
    run = Run(digits)
    assert run.observer is not None
    with run.observer, log_to(run.observer, *targets, every=EVERY, **settings):
        run.train()
    return run.observer


def wandb_records(folder: Path) -> Iterator[Any]:
    """What an offline run holds. The file is LevelDB's log: blocks of 32 KiB, chunks with crc, length and kind."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.rglob("run-*.wandb")
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
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def wandb_items(items: Any) -> dict[str, Any]:
    """The pairs of a row or a summary."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
