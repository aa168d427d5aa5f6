"""Each rule finds its failure on real programs, names it first, says it early, and its remedy works."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from torch import nn

from programs import adamw, cnn, gpt, mlp, regression, sgd, train
from thermoclaw import Finding, Observer, diagnose
from thermoclaw.diagnosis.engine import find, rank
from thermoclaw.diagnosis.rules import RULES
from thermoclaw.record import Record
from thermoclaw.registry import attached_to

# name: (program, optimizer, steps, code that must come first, latest step at which it must have been said)
FAILING = {
    "rate × 100, GPT": (gpt, adamw(0.1), 100, "lr_too_high", 64),
    "rate × 1000, MLP": (mlp, adamw(1.0), 60, "lr_too_high", 16),
    "rate × 100, regression": (regression, adamw(0.3), 80, "lr_too_high", 48),
    "rate far too high, SGD": (mlp, sgd(3.0), 120, "lr_too_high", 64),
    "rate too high to stay finite": (regression, sgd(3.0), 60, "lr_too_high", 16),
    "decay 5, AdamW, GPT": (gpt, adamw(1e-3, 5.0), 150, "weight_decay_too_high", 120),
    "decay 5, AdamW, CNN": (cnn, adamw(1e-3, 5.0), 150, "weight_decay_too_high", 120),
    "decay 5, SGD with momentum, MLP": (mlp, sgd(0.01, 5.0), 60, "weight_decay_too_high", 24),
    "decay 5, SGD with momentum, GPT": (gpt, sgd(0.01, 5.0), 60, "weight_decay_too_high", 24),
    "momentum 0.999, GPT": (gpt, adamw(1e-3, 0.01, 0.999), 150, "momentum_too_high", 120),
    "deep sigmoid": (functools.partial(mlp, depth=12, activation=nn.Sigmoid), sgd(0.1), 60, "vanishing_gradients", 48),
}


@pytest.mark.parametrize("name", FAILING)
def test_failure_is_named_first_and_early(name: str) -> None:
    program, optimizer, steps, code, latest = FAILING[name]
    observer = train(program, optimizer, steps)
    report = diagnose(observer)
    assert not report.healthy
    assert report.findings[0].code == code, str(report)
    live = [alarm for alarm in observer.alarms if alarm.code == code]
    assert live, "not said while training"
    assert live[0].raised_step <= latest
    assert live[0].first_step <= live[0].raised_step


def test_divergence_is_said_before_the_loss_is_lost() -> None:
    observer = train(mlp, adamw(1.0), 60)
    first = observer.alarms[0]
    assert first.code == "lr_too_high"
    assert np.isfinite(observer.record().loss[: first.raised_step]).all()


def test_late_jump_of_the_rate_is_found() -> None:
    def jump(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if step == 150:
            optimizer.param_groups[0]["lr"] = 0.3

    finding = diagnose(train(mlp, adamw(), 260, each=jump)).findings[0]
    assert finding.code == "lr_too_high"
    assert finding.first_step >= 150


def test_nan_names_the_step_and_the_layer() -> None:
    def poison(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if step == 30:
            model[2].weight.register_hook(lambda g: g * float("nan"))

    observer = train(mlp, adamw(), 40, each=poison)
    finding = diagnose(observer).findings[0]
    assert (finding.code, finding.confidence, finding.first_step) == ("non_finite", "HIGH", 31)
    assert "2" in finding.layers


def test_a_single_nan_loss_alone_is_no_alarm() -> None:
    observer = _loop(lambda step, loss, optimizer: float("nan") if step == 20 else loss.item())
    report = diagnose(observer)
    assert report.healthy
    assert [f.code for f in report.findings] == ["non_finite"]
    assert report.findings[0].confidence == "LOW"


def test_gradients_cleared_before_the_step() -> None:
    def forget(step: int, loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> float:
        return loss.item()

    observer = _loop(forget, clear_first=True)
    finding = diagnose(observer).findings[0]
    assert (finding.code, finding.confidence) == ("no_gradient", "HIGH")
    assert "zero_grad" in finding.advice


def test_parameters_missing_from_the_optimizer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD([*model[0].parameters(), *model[4].parameters()], lr=0.1)
    observer = Observer(model, optimizer, strict=True)
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(16, 8)).square().mean().backward()
        optimizer.step()
        observer.step()
    finding = diagnose(observer).findings[0]
    assert (finding.code, finding.confidence) == ("frozen_layers", "HIGH")
    assert set(finding.layers) == {"2.weight", "2.bias"}


def only_the_end(trained_before: int, start: int) -> tuple[str, str]:
    """What is said where the optimizer has the layers from `start` on, and the others had some steps before."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64) if i % 2 == 0 else nn.Tanh() for i in range(9)))
    everything = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(trained_before):
        everything.zero_grad()
        (model(torch.randn(16, 64)) - 1).square().mean().backward()
        everything.step()
    optimizer = torch.optim.SGD(model[start:].parameters(), lr=0.05)
    observer = Observer(model, optimizer, strict=True)
    for _ in range(20):
        model.zero_grad()
        loss = (model(torch.randn(16, 64)) - 1).square().mean()
        loss.backward()
        optimizer.step()
        observer.step(loss=loss)
    return next((f.confidence, f.meaning) for f in diagnose(observer).findings if f.code == "frozen_layers")


def test_a_forgotten_encoder_is_one_that_nobody_ever_trained() -> None:
    confidence, meaning = only_the_end(0, 4)
    assert confidence == "HIGH"
    assert "as they were drawn" in meaning
    assert only_the_end(100, 4)[0] == "LOW"  # a backbone that was trained before, left alone on purpose
    assert only_the_end(0, 8)[0] == "MEDIUM"  # a head on random features may be meant


def test_training_only_the_head_is_not_a_fault() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    observer = Observer(model, optimizer, strict=True)
    for _ in range(20):
        model.zero_grad()
        model(torch.randn(16, 8)).square().mean().backward()
        optimizer.step()
        observer.step()
    report = diagnose(observer)
    assert report.healthy
    assert [f.confidence for f in report.findings] == ["LOW"]


def test_parameters_of_another_optimizer_are_not_missing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    one = torch.optim.SGD(model[0].parameters(), lr=0.1)
    two = torch.optim.SGD(model[2].parameters(), lr=0.1)
    observer = Observer(model, one, strict=True)
    for _ in range(20):
        model.zero_grad()
        model(torch.randn(16, 8)).square().mean().backward()
        one.step()
        two.step()
        observer.step()
    assert diagnose(observer).findings == []


def test_weights_that_cannot_hold_the_update() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 4).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.uniform_(0.5, 1.0)
        model.bias.fill_(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    observer = Observer(model, optimizer, strict=True)
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(16, 8, dtype=torch.bfloat16)).float().square().mean().backward()
        optimizer.step()
        observer.step()
    finding = diagnose(observer).findings[0]
    assert (finding.code, finding.confidence) == ("frozen_layers", "HIGH")


def test_stationary_loss_is_at_most_for_information() -> None:
    def nothing_to_learn(seed: int):
        random = torch.Generator().manual_seed(seed)
        model = nn.Linear(4, 1)

        def loss() -> torch.Tensor:
            x, y = torch.randn(64, 4, generator=random), torch.randn(64, 1, generator=random)
            return nn.functional.mse_loss(model(x), y)

        return model, loss

    report = diagnose(train(nothing_to_learn, sgd(0.01, 0.0, 0.0), 2000))
    assert report.healthy
    assert [f.code for f in report.findings] == ["plateau"]


@pytest.mark.parametrize(
    ("program", "optimizer", "knob"),
    [(mlp, sgd(0.02, 0.3), "weight_decay"), (gpt, adamw(1e-3, 0.01, 0.999), "momentum")],
    ids=["decay", "momentum"],
)
def test_remedy_applied_at_the_alarm_makes_the_run_better(program, optimizer, knob: str) -> None:
    """Two arms from the same start: one goes on, one takes the first remedy when it is offered."""
    applied: list[dict] = []

    def treat(step: int, model: nn.Module, inner: torch.optim.Optimizer) -> None:
        for alarm in attached_to(inner)[0].alarms:
            if alarm.remedy is not None and alarm.remedy.knob == knob and not applied:
                applied.extend(alarm.remedy.apply(inner))

    steps = 600 if program is mlp else 220
    left = train(program, optimizer, steps).record().loss[-30:].mean()
    right = train(program, optimizer, steps, each=treat).record().loss[-30:].mean()
    assert applied
    assert right < 0.95 * left


@pytest.mark.parametrize(
    ("program", "lr"), [(gpt, 0.3), (mlp, 1.0), (regression, 0.3)], ids=["GPT", "MLP", "regression"]
)
def test_restart_at_the_advised_rate_makes_the_run_better(program, lr: float) -> None:
    bad = train(program, adamw(lr), 150)
    advised = bad.alarms[0].remedy.value
    good = train(program, adamw(advised), 150)
    assert good.record().loss[-30:].mean() < 0.95 * bad.record().loss[-30:].mean()


def test_verdicts_do_not_change_when_the_loss_is_scaled() -> None:
    """A constant factor on the loss changes nothing under Adam, so it changes no finding."""

    def scaled(factor: float, optimizer) -> list[tuple[str, str]]:
        def program(seed: int):
            model, loss_of = gpt(seed)
            return model, lambda: factor * loss_of()

        return [(f.code, f.confidence) for f in find(train(program, optimizer, 120).record())]

    for optimizer in (adamw(0.1), adamw(1e-3, 5.0), adamw()):
        assert scaled(1.0, optimizer) == scaled(64.0, optimizer)


def test_rules_are_causal() -> None:
    """What a rule says of a run it says of every longer part of it, from the same step on."""
    record = train(gpt, adamw(0.1), 120).record()
    whole = {f.code: f for f in find(_without_events(record))}
    for stop in range(20, 121, 10):
        for finding in find(_without_events(record.rows(stop=stop))):
            if finding.confidence == "HIGH" and finding.code in whole:
                assert finding.first_step == whole[finding.code].first_step


def test_every_finding_is_complete() -> None:
    for name in ("rate × 100, GPT", "decay 5, SGD with momentum, MLP", "deep sigmoid"):
        program, optimizer, steps, _, _ = FAILING[name]
        for finding in diagnose(train(program, optimizer, steps)).findings:
            for text in (finding.title, finding.seen, finding.meaning, finding.advice, finding.source):
                assert len(text) > 5
            assert "nan" not in f"{finding.seen} {finding.advice}".lower().replace("became nan or inf", "")
            assert finding.evidence
            assert all(isinstance(v, (int, float)) for v in finding.evidence.values())
            assert Finding.from_json(finding.to_json()) == finding


def test_root_cause_stands_before_its_symptom() -> None:
    cause = _finding("lr_too_high", "HIGH", 10)
    symptom = _finding("non_finite", "HIGH", 12)
    ranked = rank([symptom, cause])
    assert [f.code for f in ranked] == ["lr_too_high", "non_finite"]
    assert ranked[1].confidence == "LOW"
    assert rank([symptom])[0].confidence == "HIGH"


def test_a_broken_rule_says_nothing_and_is_reported(monkeypatch, caplog) -> None:
    from dataclasses import replace

    from thermoclaw.diagnosis import engine

    def broken(record: Record) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(engine, "_told_broken", set())  # said once in a process
    monkeypatch.setattr(engine, "RULES", (replace(RULES[0], check=broken), *RULES[1:]))
    observer = train(mlp, sgd(0.01, 5.0), 40)
    assert diagnose(observer).findings[0].code == "weight_decay_too_high"
    assert "the rule non_finite failed" in caplog.text


def test_rules_survive_records_of_any_length() -> None:
    record = train(mlp, adamw(), 40).record()
    for stop in range(1, 41):
        part = _without_events(record.rows(stop=stop))
        for rule in RULES:
            rule.check(part)


def _finding(code: str, confidence: str, step: int) -> Finding:
    return Finding(code, confidence, code, "seen.", "means.", "try.", "source", step, step, evidence={"x": 1.0})


def _without_events(record: Record) -> Record:
    return Record(record.steps, record.layers, record.layer_values, record.run_values, record.meta)


def _loop(loss_given, *, clear_first: bool = False) -> Observer:
    torch.manual_seed(0)
    model, loss_of = mlp(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    observer = Observer(model, optimizer, strict=True)
    for step in range(60):
        loss = loss_of()
        loss.backward()
        if clear_first:
            optimizer.zero_grad(set_to_none=step % 2 == 0)
        optimizer.step()
        observer.step(loss=loss_given(step, loss, optimizer))
        optimizer.zero_grad()
    assert math.isfinite(observer.record()["param_sq"].sum())
    return observer


@pytest.mark.parametrize("how", ["maximize", "minus"])
def test_an_optimizer_that_climbs(how: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, maximize=how == "maximize")
    observer = Observer(model, optimizer, strict=True)
    for _ in range(120):
        loss = nn.functional.cross_entropy(model(torch.randn(32, 8)), torch.randint(4, (32,)))
        optimizer.zero_grad()
        (loss if how == "maximize" else -loss).backward()
        optimizer.step()
        observer.step(loss=loss)
    told = diagnose(observer.record()).findings[0]
    assert told.code == "wrong_sign"
    assert ("Remove maximize=True" in told.advice) == (how == "maximize")
