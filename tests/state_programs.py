"""What the processes of tests/test_state_sharded.py run: a part of a sharded training, from the start or from a state.

Plain SGD keeps nothing but the weights, which are saved whole, so any number of processes can go on with them.
"""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests import sharded_programs as programs
from tests.zero_programs import FlatZero
from thermoclaw import Observer
from thermoclaw.state import StateError

NUM_STEPS, STOP = 30, 13
DTYPE = torch.float64


def packed(data: Any) -> bytes:
    file = io.BytesIO()
    torch.save(data, file)
    return file.getvalue()


def unpacked(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


def part(rank: int, world: int, way: str, settings: dict[str, Any], saved: bytes | None, until: int) -> dict[str, Any]:
    """Train up to a step; the record's columns, or why the state was refused, and what another one may go on from."""
    state = unpacked(saved) if saved is not None else None
    model, optimizer = _make(way, world, None if state is None else state["weights"])
    observer = Observer(model, optimizer, strict=True, **settings)
    told = ""
    if state is not None:
        try:
            observer.load_state_dict(state["observer"])
        except StateError as error:
            told = str(error)
    share = slice(0, None) if way in ("plain", "tensor") else slice(rank, None, world)
    at = state["at"] if state is not None else 0
    for x, y in programs.batches(NUM_STEPS, DTYPE)[at:until]:
        loss = functional.cross_entropy(model(x[share]), y[share])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        observer.step(loss=0.5)
    weights = {name: x.detach().clone() for name, x in programs._full(model).items()}
    return {
        **programs.columns(observer.record()),
        "told": told,
        "on_host": observer.rows_on_host(),
        "saved": packed({"weights": weights, "observer": observer.state_dict(), "at": until}),
    }


def _make(way: str, world: int, weights: dict[str, Tensor] | None) -> tuple[nn.Module, Any]:
    original = programs.make_net

    def loaded(dtype: torch.dtype) -> programs.Net:
        net = original(dtype)
        if weights is not None:
            net.load_state_dict(weights)
        return net

    programs.make_net = loaded
    try:
        if way == "fully":
            model = programs.fully_sharded(DTYPE, world)
        elif way == "tensor":
            model = programs.tensor_parallel(DTYPE, world)
        else:
            model = loaded(DTYPE)
    finally:
        programs.make_net = original
    optimizer = programs.make_optimizer(model, torch.optim.SGD)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    return model, FlatZero(optimizer) if way == "zero" else optimizer
