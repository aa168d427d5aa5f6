"""What detectors beside an observer say joins its diagnosis, is saved with the record, and stops nothing."""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.conftest import mlp, seed_everything
from tests.test_thermometer import wander
from thermoclaw import Observer, PhaseMonitor, SpikeDetector, Thermometer, diagnose
from thermoclaw.diagnosis.engine import rank
from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.rules import RULES


def clipped(max_norm: float = 0.02) -> tuple[Observer, SpikeDetector]:
    """A run whose every step is clipped, with a detector beside it that knows the bound."""
    seed_everything(0)
    model = mlp(8, 16, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = Observer(model, optimizer, strict=True)
    detector = SpikeDetector(observer, max_norm=max_norm)
    for _ in range(60):
        x = torch.randn(16, 8)
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        observer.step(loss=loss)
        detector.step(norm)
    return observer, detector


def codes(source: Any) -> dict[str, Finding]:
    return {finding.code: finding for finding in diagnose(source).findings}


def test_a_detector_speaks_in_the_diagnosis_of_its_observer(tmp_path: Path) -> None:
    observer, detector = clipped()
    finding = codes(observer)["over_clipping"]
    assert finding.evidence["clip_fraction"] == 1.0
    assert finding.confidence == "LOW"
    assert codes(detector)["over_clipping"] == finding
    assert codes(observer.save(tmp_path / "run"))["over_clipping"] == finding  # the file has it, too
    assert [event["by"] for event in observer.record().events if event["kind"] == "testimony"] == ["SpikeDetector"]


def test_without_a_detector_nothing_is_added() -> None:
    observer, detector = clipped()
    del detector
    gc.collect()
    assert not [event for event in observer.record().events if event["kind"] == "testimony"]
    assert "over_clipping" not in codes(observer)


def test_what_a_rule_found_keeps_its_words_and_gains_the_numbers() -> None:
    observer, detector = clipped(1e-3)
    with_detector = codes(observer)["over_clipping"]
    del detector
    gc.collect()
    alone = codes(observer)["over_clipping"]
    assert alone.confidence == with_detector.confidence == "HIGH"
    assert with_detector.seen == alone.seen
    assert with_detector.evidence == {**alone.evidence, **with_detector.evidence}
    assert with_detector.evidence["clip_fraction"] == 1.0
    assert "clip_fraction" not in alone.evidence


def test_a_detector_that_breaks_is_told_once_and_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    observer, detector = clipped()
    monkeypatch.setattr(SpikeDetector, "findings", lambda *_: 1 / 0)
    with caplog.at_level(logging.ERROR, logger="thermoclaw"):
        assert len(observer.record()) == 60
        assert len(observer.record()) == 60
    assert [record.getMessage() for record in caplog.records] == ["thermoclaw: SpikeDetector failed and is left out"]
    assert detector.max_norm == 0.02


@pytest.mark.parametrize("code", [rule.code for rule in RULES])
def test_a_finding_of_any_code_ranks_whatever_its_evidence(code: str) -> None:
    bare = [Finding(code, level, "t", "s", "m", "a", "docs", 1, 9) for level in ("HIGH", "LOW")]
    other = Finding("lr_too_high", "HIGH", "t", "s", "m", "a", "docs", 1, 9)
    assert len(rank([*bare, other])) == 3


def test_spikes_of_a_detector_join_those_of_the_rule() -> None:
    observer, detector = clipped()
    detector.max_norm = None
    norms = [torch.tensor(1.0 if step != 55 else 40.0) for step in range(60)]
    detector._waiting = [(step + 1, norm) for step, norm in enumerate(norms)]
    found = codes(observer)["gradient_spike"]
    assert found.evidence["recommended_max_norm"] == pytest.approx(1.0)


def test_the_thermometer_says_when_a_run_has_come_to_rest() -> None:
    thermometer = wander(4.0, 900, batch_size=4)
    found = codes(thermometer)
    assert found["plateau"].evidence == {"stationary_layers": 1.0, "layers": 1.0}
    assert found["gradient_noise"].evidence["noise_scale"] > 40
    assert {finding.confidence for finding in found.values()} == {"LOW"}
    assert diagnose(thermometer).healthy
    assert thermometer.get_recommendations() == [finding.recommendation for finding in thermometer.findings()]


def test_the_thermometer_is_silent_where_weights_still_move() -> None:
    assert "plateau" not in codes(wander(0.0, 400))
    assert wander(4.0, 150, batch_size=4).findings() == []  # too short to tell


def test_weights_on_a_lattice_are_told_by_the_phase_monitor() -> None:
    def codes_of(rounded: bool) -> dict[str, Finding]:
        seed_everything(0)
        model = nn.Linear(64, 64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        observer = Observer(model, optimizer, strict=True)
        monitor = PhaseMonitor(observer, strict=True)
        for _ in range(20):
            optimizer.zero_grad()
            loss = (model(torch.randn(8, 64)) - 1).square().mean()
            loss.backward()
            optimizer.step()
            observer.step(loss=loss)
            if rounded:
                with torch.no_grad():
                    model.weight.copy_((model.weight / 0.05).round() * 0.05)
            monitor.step(loss=loss)
        return codes(observer)

    found = codes_of(True)["lost_updates"]
    assert (found.confidence, found.layers) == ("LOW", ("(root)",))
    assert found.evidence["lattice_order"] > 0.95
    assert "lost_updates" not in codes_of(False)


def test_a_detector_alone_is_heard_of_any_observer_of_its_optimizer() -> None:
    model = mlp(8, 16, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first, second = Observer(model, optimizer), Observer(model, optimizer)
    thermometer = Thermometer(second)
    asked = []
    thermometer.findings = lambda record=None: asked.append(record) or []  # type: ignore[method-assign]
    first.record()
    assert len(asked) == 1
