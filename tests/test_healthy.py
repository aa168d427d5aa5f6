"""Healthy runs are silent, live and afterwards, whatever legitimate recipe they use."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from programs import adamw, cnn, full_batch_mlp, gpt, mlp, regression, sgd, train
from thermoclaw import diagnose

# name: (program, optimizer, steps, settings of `train`, how far the loss must fall for the run to count as healthy)
HEALTHY = {
    "AdamW, MLP": (mlp, adamw(), 300, {}, 0.2),
    "AdamW, CNN with batch norm": (cnn, adamw(3e-3), 250, {}, 0.5),
    "AdamW, GPT": (gpt, adamw(), 250, {}, 0.75),
    "AdamW, regression": (regression, adamw(3e-3), 250, {}, 0.8),
    "SGD with momentum, MLP": (mlp, sgd(0.05, 1e-4), 250, {}, 0.2),
    "SGD with momentum, CNN": (cnn, sgd(0.1, 5e-4), 250, {"schedule": True}, 0.3),
    "plain SGD on full batches": (full_batch_mlp, sgd(0.5, 0.0, 0.0), 150, {}, 0.3),
    "warm-up, cosine, clipping, decay 0.1": (mlp, adamw(3e-3, 0.1), 400, {"schedule": True, "clip": 1.0}, 0.2),
    "GPT, warm-up, cosine, clipping, decay 0.1": (gpt, adamw(2e-3, 0.1), 250, {"schedule": True, "clip": 1.0}, 0.75),
    "low-rate fine-tuning": (mlp, adamw(2e-5), 200, {"pretrain": 200}, 1.2),
    "low-rate fine-tuning, GPT": (gpt, adamw(2e-5), 120, {"pretrain": 150}, 1.1),
    "frozen backbone": (mlp, adamw(1e-3), 200, {"pretrain": 200, "freeze": True}, 1.2),
    "batch size 4": (functools.partial(mlp, batch=4), adamw(), 600, {}, 0.4),
    "a high but working rate": (mlp, adamw(1e-2), 400, {}, 0.1),
    "converges to almost zero loss": (functools.partial(mlp, batch=128), adamw(3e-3), 800, {}, 0.01),
    "RMSprop": (mlp, lambda p: torch.optim.RMSprop(p, lr=1e-3), 250, {}, 0.2),
    "Adagrad": (mlp, lambda p: torch.optim.Adagrad(p, lr=1e-2), 250, {}, 0.2),
    "Adafactor": (mlp, lambda p: torch.optim.Adafactor(p, lr=1e-2), 250, {}, 0.7),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_run_is_silent(name: str) -> None:
    program, optimizer, steps, settings, fall = HEALTHY[name]
    observer = train(program, optimizer, steps, **settings)
    loss = observer.record().loss
    assert np.mean(loss[-20:]) < fall * np.mean(loss[:5]), "the run does not learn, so it proves nothing"
    report = diagnose(observer)
    assert report.healthy, str(report)
    assert [f.code for f in report.findings if f.confidence != "LOW"] == []
    assert observer.alarms == []


@pytest.mark.parametrize("program", [mlp, cnn, gpt, regression])
@pytest.mark.parametrize("optimizer", [adamw(), sgd(0.05, 1e-4)], ids=["AdamW", "SGD with momentum"])
def test_network_overhead_is_modest_on_healthy_runs(program, optimizer) -> None:
    record = train(program, optimizer, 200).record()
    assert np.median(record["R_ie_total"]) < 2
    assert np.median(record["R_ie_median"]) < 2
