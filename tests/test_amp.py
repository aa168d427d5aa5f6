"""Mixed precision: rows hold the unscaled gradient, whatever the scale was; a step that the scaler refused is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import MODELS, assert_same_record, mlp, seed_everything
from thermoclaw import Observer, Record

NEIGHBORS = ("coherence", "overshoot")  # of a step and the one before
INSTANT = ("sigma", "grad_sq", "param_sq", "update_sq", "distance", "work", "alignment", "lr", "loss")

# -- a scaler alone ---------------------------------------------------------------------------------------------------


def scaled_run(
    *,
    fused: bool,
    unscale_first: bool = False,
    overflow_at: tuple[int, ...] = (),
    scale: float = 1024.0,
    **settings: Any,
) -> tuple[Observer, list[float], int]:
    """Seven losses through a gradient scaler; returns the observer, the true squared norms and the steps made."""
    seed_everything(0)
    model = mlp(6, 8, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    observer = Observer(model, optimizer, strict=True, **settings)
    norms, made = [], 0
    for t in range(7):
        optimizer.zero_grad()
        loss = MODELS[0].loss(model)
        grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        scaler.scale(loss).backward()
        if t in overflow_at:
            model[0].weight.grad[0, 0] = float("inf")
        if unscale_first:
            scaler.unscale_(optimizer)
        before = model[0].weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        moved = not torch.equal(before, model[0].weight)
        assert moved is (t not in overflow_at)
        if moved:
            made += 1
            norms.append(sum(float(g.double().square().sum()) for g in grads))
        observer.step(loss=loss)
    return observer, norms, made


@pytest.mark.parametrize("mode", ["sketch", "exact"])
@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_unscaled(fused: bool, unscale_first: bool, mode: str) -> None:
    observer, norms, _ = scaled_run(fused=fused, unscale_first=unscale_first, mode=mode)
    record = observer.record()
    np.testing.assert_allclose(record["grad_sq"].sum(1), norms, rtol=1e-5)
    plain, _, _ = scaled_run(fused=fused, scale=1.0, mode=mode)
    for name in ("coherence", "alignment", "overshoot", "noise", "R_ie_total"):
        np.testing.assert_allclose(record[name], plain.record()[name], rtol=1e-3, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("mode", ["sketch", "exact"])
@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("overflow_at", [(0,), (3,), (2, 3), (6,)])
def test_overflowing_steps_are_not_rows(
    overflow_at: tuple[int, ...], fused: bool, unscale_first: bool, mode: str
) -> None:
    observer, norms, made = scaled_run(fused=fused, unscale_first=unscale_first, overflow_at=overflow_at, mode=mode)
    record = observer.record()
    assert made == 7 - len(overflow_at)
    assert observer.global_step == made
    assert record.steps.tolist() == list(range(1, made + 1))
    np.testing.assert_allclose(record["grad_sq"].sum(1), norms, rtol=1e-5)
    assert np.isfinite(record["grad_sq"]).all()
    assert np.isfinite(record["grad_sq_smooth"]).all()
    assert np.isfinite(record.loss).all()


def test_a_refused_gradient_is_part_of_no_product() -> None:
    """Only one layer overflows; the other's gradient is finite, and still it was not used."""
    record = scaled_run(fused=True, overflow_at=(3,))[0].record()
    coherence = record["coherence"]
    assert np.isnan(coherence[0]).all()
    assert np.isfinite(coherence[1:3]).all()
    assert np.isnan(coherence[3]).all(), "the step after the refused one"
    assert np.isfinite(coherence[4:]).all()
    assert np.isnan(record["overshoot"][3]).all()


# -- the same as the plain loop ---------------------------------------------------------------------------------------


def run(
    cls: Any,
    *,
    fused: bool,
    scaled: bool,
    unscale_first: bool = False,
    overflow_at: tuple[int, ...] = (),
    **settings: Any,
) -> tuple[Record, list[float]]:
    """Twenty batches, of which the plain loop makes no step with those that overflow; the record and the scales.

    Where no hook tells of a refused step its batch looks like a part of the next one: losses are averaged.
    """
    seed_everything(0)
    model = mlp(6, 40, 30, 4)
    optimizer = cls(model.parameters(), lr=0.02, weight_decay=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=4, enabled=scaled)
    observer = Observer(model, optimizer, strict=True, **settings)
    scales = []
    for t in range(20):
        x, y = torch.randn(8, 6), torch.randint(4, (8,))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        if not scaled and t in overflow_at:
            if not fused:
                observer.step(loss=loss)
            continue
        scaler.scale(loss * 1e38 * 10.0 if t in overflow_at else loss).backward()
        if unscale_first:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scales.append(scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
        observer.step(loss=loss)
    record = observer.record()
    assert observer.global_step == 20 - len(overflow_at)
    assert record.meta["num_skipped"] == (len(overflow_at) if scaled and fused else 0)
    return record, scales


OPTIMIZERS = [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW]


@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_a_scaled_run_is_the_plain_one(cls: Any, fused: bool, unscale_first: bool) -> None:
    """Scales are powers of two, so not a bit may differ, while the scale doubles every four steps."""
    got, scales = run(cls, fused=fused, scaled=True, unscale_first=unscale_first)
    want, _ = run(cls, fused=fused, scaled=False, unscale_first=unscale_first)
    assert scales == [256.0 * 2 ** (t // 4) for t in range(20)]
    assert_same_record(got, want)


@pytest.mark.parametrize("mode", ["sketch", "exact"])
@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_a_run_that_overflows_is_the_plain_one_without_those_batches(
    cls: Any, fused: bool, unscale_first: bool, mode: str
) -> None:
    refused = (0, 4, 9, 10, 19)
    got, scales = run(cls, fused=fused, scaled=True, unscale_first=unscale_first, overflow_at=refused, mode=mode)
    want, _ = run(cls, fused=fused, scaled=False, unscale_first=unscale_first, overflow_at=refused, mode=mode)
    assert len(set(scales)) > 2
    assert got.steps.tolist() == want.steps.tolist() == list(range(1, 16))
    for name in INSTANT:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    if not fused:
        assert_same_record(got, want)
    after = np.isin(got.steps, [1, 4, 8])  # the rows that follow a refused step: neighbors of nothing
    for name in NEIGHBORS if fused else ():
        assert np.isnan(got[name][after]).all(), name
        assert np.isfinite(got[name][~after]).all(), name
        np.testing.assert_array_equal(got[name][~after], want[name][~after], err_msg=name)


@pytest.mark.parametrize("kind", [float, torch.tensor])
@pytest.mark.parametrize("refused", [float("inf"), float("nan")])
def test_an_infinite_loss_that_was_refused_is_not_the_next_steps(refused: float, kind: Any) -> None:
    """Half precision overflowed in the forward pass: no hook fires, and training goes on as if nothing had been."""
    model = mlp(6, 8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = Observer(model, optimizer, strict=True)
    for t in range(6):
        optimizer.zero_grad()
        MODELS[0].loss(model).backward()
        if t != 3:
            optimizer.step()
        observer.step(loss=kind(refused if t == 3 else float(t)))
    assert observer.record().loss.tolist() == [0.0, 1.0, 2.0, 4.0, 5.0]


@pytest.mark.parametrize("fused", [False, True])
def test_of_two_optimizers_only_the_one_that_overflowed_misses_a_step(fused: bool) -> None:
    seed_everything(0)
    model = mlp(6, 8, 4)
    first, second = (torch.optim.AdamW(model[i].parameters(), lr=0.01, fused=fused) for i in (0, 2))
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    one, two = Observer(model, first, strict=True), Observer(model, second, strict=True)
    for t in range(10):
        first.zero_grad()
        second.zero_grad()
        loss = MODELS[0].loss(model)
        scaler.scale(loss).backward()
        if t in (3, 7):
            model[2].weight.grad[0, 0] = float("nan")
        scaler.step(first)
        scaler.step(second)
        scaler.update()
        one.step(loss=loss)
        two.step(loss=loss)
    assert one.record().steps.tolist() == list(range(1, 11))
    assert two.record().steps.tolist() == list(range(1, 9))
    assert np.isfinite(one.record()["grad_sq"]).all()
    assert np.isfinite(two.record()["grad_sq"]).all()


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_that_is_off_changes_nothing(fused: bool) -> None:
    seed_everything(0)
    model = mlp(6, 8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    observer = Observer(model, optimizer, strict=True)
    for _ in range(3):
        optimizer.zero_grad()
        scaler.scale(MODELS[0].loss(model)).backward()
        want = sum(float(p.grad.double().square().sum()) for p in model.parameters())
        scaler.step(optimizer)
        scaler.update()
        observer.step()
        assert observer.record()["grad_sq"][-1].sum() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_gradients_are_those_of_the_parameters(dtype: torch.dtype) -> None:
    """The forward pass runs in half precision; gradients and parameters are single, and so is what is measured."""
    seed_everything(0)
    model = mlp(6, 40, 30, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    observer = Observer(model, optimizer, strict=True)
    norms = []
    for _ in range(6):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            loss = MODELS[0].loss(model)
        scaler.scale(loss).backward()
        norms.append(sum(float((p.grad.double() / scaler.get_scale()).square().sum()) for p in model.parameters()))
        with torch.autocast("cpu", dtype=dtype):  # whoever steps inside the block gets the same
            scaler.step(optimizer)
            observer.step(loss=loss)
        scaler.update()
    np.testing.assert_allclose(observer.record()["grad_sq"].sum(1), norms, rtol=1e-6)
