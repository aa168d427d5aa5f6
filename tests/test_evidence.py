"""Every number that a finding gives has one definition, and no definition stands for nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import thermoclaw
from html_pages import finding, grown
from thermoclaw.diagnosis.rich import finding_html
from thermoclaw.evidence import EVIDENCE, meaning
from thermoclaw.quantities import TABLE
from thermoclaw.report.html import render_html

HOME = Path(thermoclaw.__file__).parent
SOURCES = [path for part in ("diagnosis", "detectors", "phase") for path in sorted((HOME / part).rglob("*.py"))]
CHOSEN_THERE = {"clip_value", "max_norm"}  # the one of them that was set, by `over_clipping`


def emitted() -> Iterator[str]:
    """Names in every dictionary that is given as a finding's evidence."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "evidence":
                for part in (part for part in ast.walk(node.value) if isinstance(part, ast.Dict)):
                    yield from (key.value for key in part.keys if isinstance(key, ast.Constant))


def test_every_name_of_evidence_has_one_definition() -> None:
    names = set(emitted()) | CHOSEN_THERE
    assert len(names) > 90
    assert {name for name in names if not meaning(name)} == set()
    assert set(EVIDENCE) & set(TABLE) == set()
    assert set(EVIDENCE) - names == set()
    assert list(EVIDENCE) == sorted(EVIDENCE)


def test_evidence_is_a_dictionary_where_a_finding_is_made() -> None:
    """So that the names above are all there are."""
    for path in SOURCES:
        if path.name in ("finding.py", "engine.py"):  # which hand on what was given
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "evidence":
                assert isinstance(node.value, ast.Dict), f"{path.name}:{node.value.lineno}"


def test_definitions_are_sentences() -> None:
    for name, text in EVIDENCE.items():
        assert text[0].isupper() or text[0].isdigit() or text[0] in "‖", name
        assert text.endswith("."), name


@pytest.mark.parametrize("name", ["norm_drop", "coherence"])
def test_pages_say_what_a_number_is(name: str) -> None:
    record = grown()
    told = finding(record, evidence={name: 0.5, "mine": 1.0})
    assert meaning(name) in render_html(record, findings=[told])
    assert f"{name}: {meaning(name)}" in finding_html(told)
    assert meaning("mine") == ""
