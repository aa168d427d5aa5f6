"""The report as text: the verdict first, lines that fit a terminal, what follows from a finding in short."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.synthetic import Synthetic
from thermoclaw.diagnosis import report as module
from thermoclaw.diagnosis.finding import Finding
from thermoclaw.record import Record

ROOT = Finding(
    "lr_too_high", "HIGH", "the steps are too long", "Seen so.", "Means this.", "Lower it.", "docs", 7, 9, ("a", "b")
)
ROOT = replace(ROOT, evidence={"lr": 3.0}, explains=("dead_units",))
SYMPTOM = Finding("dead_units", "LOW", "units are dead", "Half of them.", "They stay so.", "Go back.", "docs", 8, 8)
NOTE = Finding("plateau", "LOW", "the loss is stationary", "It stayed.", "Done, or stuck.", "Stop.", "docs", 20, 30)


def report_of(record: Record, *findings: Finding, monkeypatch: pytest.MonkeyPatch) -> module.Report:
    monkeypatch.setattr(module, "find", lambda _: list(findings))
    return module.diagnose(record)


def test_the_first_line_is_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Synthetic(40, 8)
    run.loss = np.arange(40.0, 0.0, -1.0)
    record = run.record()

    def first(*findings: Finding) -> list[str]:
        return str(report_of(record, *findings, monkeypatch=monkeypatch)).splitlines()[:2]

    words = f"AdamW, 40 steps, {len(record.layers)} layers, loss 40 → 1"
    assert first() == ["Thermoclaw: healthy.", f"{words}."]
    assert first(NOTE) == ["Thermoclaw: healthy.", f"{words}: nothing to act on, 1 for information."]
    failing = [
        "Thermoclaw: failing since step 7: the steps are too long.",
        f"{words}: 1 finding to act on, 2 for information.",
    ]
    assert first(ROOT, SYMPTOM, NOTE) == failing
    assert first(replace(ROOT, confidence="MEDIUM"))[0].startswith("Thermoclaw: doubtful since step 7: ")
    assert first(ROOT, replace(NOTE, confidence="HIGH"))[1].endswith(": 2 findings to act on.")


def test_what_was_cut_short_is_not_called_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    record = replace(Synthetic(40).record(), meta={"failed": True})
    report = report_of(record, monkeypatch=monkeypatch)
    assert report.headline == "Thermoclaw: incomplete."
    assert "Measuring stopped early" in str(report)


def test_no_line_is_longer_than_a_terminal_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    long = replace(ROOT, seen=" ".join(["seen"] * 90), advice=" ".join(["try"] * 90), title="it burns")
    report = report_of(Synthetic(400).record(), long, monkeypatch=monkeypatch)
    assert max(map(len, str(report).splitlines())) <= 110
    assert len(report.summary) > 110
    assert report.lines[2].startswith("Background: ")
    assert " ".join(str(report).split()).startswith(report.summary)
    assert report.summary == " ".join(report.lines)


def test_what_another_finding_explains_is_told_in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    text = str(report_of(Synthetic(40).record(), ROOT, SYMPTOM, NOTE, monkeypatch=monkeypatch))
    assert (
        "2. [LOW] units are dead (dead_units, since step 8; explained by 1)\n   Seen:     Half of them.\n\n3." in text
    )
    assert "They stay so" not in text
    assert "Try:      Stop." in text  # a note that nothing explains is told in full
    urgent = str(report_of(Synthetic(40).record(), ROOT, replace(SYMPTOM, confidence="HIGH"), monkeypatch=monkeypatch))
    assert "They stay so" in urgent


def test_a_report_made_by_hand_shows_its_summary() -> None:
    made: dict[str, Any] = {"equilibrium_fraction": 1.0, "equilibrium_layers": [], "non_equilibrium_layers": []}
    made |= {"entropy_split_available": False, "worst_R_ie_layers": [], "recommendations": [], "raw_stats": {}}
    assert str(module.Report("All is well.", True, **made)).startswith("All is well.\n")


def test_a_large_overhead_is_a_number_that_people_read() -> None:
    run = Synthetic(60, 4)
    run.set(d_iS_wd=1e-3, d_iS_momentum=0.0, d_iS_noise=0.0, alignment=0.01)
    summary = module.diagnose(run.record()).summary
    assert "overhead R_ie " in summary
    assert "e+0" not in summary
