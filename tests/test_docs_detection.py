"""The pages on detection: figures are those of the file, what was not measured is said so, words are the rules' own."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks.zoo.cases import CATALOGUE
from benchmarks.zoo.faults import FAULTS
from benchmarks.zoo.programs import DEVELOPMENT, HELD_OUT
from benchmarks.zoo.report import document
from benchmarks.zoo.score import share
from thermoclaw.diagnosis.knobs import KNOBS
from thermoclaw.diagnosis.rules import RULES

DOCS = Path(__file__).resolve().parent.parent / "docs"
CODES = [rule.code for rule in RULES]


def module(name: str) -> ModuleType:
    """A script of the documentation."""
    if str(DOCS) not in sys.path:
        sys.path.insert(0, str(DOCS))
    return importlib.import_module(name)


def outcome(name: str, *, held_out: bool, fault: str | None = None) -> dict[str, Any]:
    program, variant, _, seed = name.split(".")
    final = 1.9 if fault else 0.2
    return {
        "name": name, "program": program, "variant": variant, "fault": fault, "seed": int(seed), "held_out": held_out,
        "codes": list(FAULTS[fault].codes) if fault else [], "control": f"{program}.{variant}.healthy.{seed}",
        "steps": 300, "learns": 0.5, "first_faulty_step": 100 if fault else None, "non_finite_step": None,
        "wall_s": 36.0,
        "initial": {"train": 2.0, "validation": 2.0}, "final": {"train": final, "validation": final},
        "validations": [[300, final]],
    }  # fmt: skip


def said(code: str = "", step: int = 112) -> dict[str, Any]:
    finding = {"code": code, "confidence": "HIGH", "first_step": step, "raised_step": step}
    alarms = [{**finding, "told_step": step}] if code else []
    late = [{**finding, "told_step": step + 8}] if code else []
    findings = [finding] if code else []
    return {"findings": findings, "alarms": alarms, "alarms_on_device": late, "rivals": {"NaN or rising": []}}


def judged(*parts: str) -> dict[str, Any]:
    """Three runs a part: one healthy and accused, one named rightly, one called lr_too_low in error."""
    outcomes, verdicts = {}, {}
    for part, program in (("dev", DEVELOPMENT[0].name), ("held_out", HELD_OUT[0].name)):
        if part in parts:
            faulty = {"healthy": None, "rate_jumps": "lr_too_high", "decay_too_high": "lr_too_low"}
            for fault, answer in faulty.items():
                name = f"{program}.plain.{fault}.0"
                outcomes[name] = outcome(name, held_out=part == "held_out", fault=None if fault == "healthy" else fault)
                verdicts[name] = said(answer or "plateau")
    env = {"processor": "P", "cores": 2, "python": "3", "torch": "2", "date": "today", "revision": "abc"}
    return {**document(outcomes, verdicts), "environment": env}


@pytest.fixture
def zoo_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The generators, told to read a file in a temporary folder, which is not there yet."""
    tables = module("zoo_tables")
    monkeypatch.setattr(tables, "RESULT", tmp_path / "zoo.json")
    monkeypatch.setattr(tables, "IMAGES", tmp_path)
    return tables


def parts() -> dict[str, Any]:
    return dict(module("generate").PARTS)


ASKED = re.findall(r"^<!-- generate: ([\w-]+) -->$", (DOCS / "detection.md").read_text(encoding="utf-8"), flags=re.M)


def test_without_a_file_nothing_breaks_and_nothing_is_claimed(zoo_tables: ModuleType) -> None:
    assert ASKED
    for name in [*ASKED, "detection", "rules", "blind"]:
        text = parts()[name]()
        assert not re.search(r"\d of \d+; \d", text), name
    for name in ("detection", "zoo-headline", "zoo-by-failure", "zoo-calibration", "zoo-rivals", "rules"):
        assert "not measured yet" in parts()[name](), name


def test_a_part_that_is_missing_is_said_to_be(zoo_tables: ModuleType) -> None:
    zoo_tables.RESULT.write_text(json.dumps(judged("dev")))
    text = parts()["zoo-headline"]()
    assert "| right cause first | ≥ 85 % | 50 % (1 of 2; 9–91 %) | **no** |" in text
    assert "Held-out programs: not measured yet." in text
    assert parts()["detection"]() == "Detection on held-out programs: not measured yet."
    assert "On held-out programs:** not measured yet" in parts()["rules"]()
    assert "| `lr` | not measured yet | not measured yet |" in parts()["rules"]()


def test_figures_are_those_of_the_file(zoo_tables: ModuleType) -> None:
    zoo_tables.RESULT.write_text(json.dumps(judged("dev", "held_out")))
    headline = parts()["zoo-headline"]()
    assert "not measured" not in headline
    assert "| failing runs detected (HIGH or MEDIUM) | ≥ 95 % | 100 % (2 of 2; 34–100 %) | yes | 100 %" in headline
    assert "| healthy runs accused (HIGH) | ≤ 0.5 % | 100 % (1 of 1; 21–100 %) | **no** |" in headline
    assert "| median delay, in steps | – | 12 |" in headline
    failures = parts()["zoo-by-failure"]()
    assert "| `weight_decay_too_high` | 100 % (1 of 1; 21–100 %) | 0 % (0 of 1; 0–79 %) | – | 12 |" in failures
    assert "| held out | 29 / 27 | 100 % (2 of 2; 34–100 %) | 50 %" in re.sub(
        r"\d+ / \d+", "29 / 27", parts()["zoo-by-program"]()
    )
    assert "accused `plain` (1 of 1); never accused none" in parts()["zoo-recipes"]()
    assert "| NaN or rising | 0 % of 2 | 0 % of 2 | 0 % of 1 |" in parts()["detection"]()
    assert "right cause first: 50 %, asked ≥ 85 %" in parts()["detection"]()
    assert "| `lr` | 1 of 1 | 1 of 1 |" in parts()["rules"]()
    assert "abc" in parts()["zoo-machine"]()


def test_first_looks_are_also_told_together(zoo_tables: ModuleType) -> None:
    keys = ("detected", "named_first", "accused")
    looks = [
        {"date": "today", "programs": programs, "totals": dict.fromkeys(keys, share(hits, 4))}
        for hits, programs in ((3, ["a", "b"]), (1, ["c"]))
    ]
    path = zoo_tables.RESULT.with_name("zoo_first_looks.json")
    path.write_text(json.dumps(looks[:1]))
    assert "all" not in parts()["zoo-first-looks"]()
    path.write_text(json.dumps(looks))
    assert "| **all 3** | 50 % (4 of 8; 22–78 %) |" in parts()["zoo-first-looks"]()
    zoo_tables.RESULT.write_text(json.dumps(judged("held_out")))
    assert "All 2 sets of programs, 3 in all, when nobody had seen them: detected 50 % of 8," in parts()["detection"]()


def test_a_rule_is_told_what_it_was_said_of_instead(zoo_tables: ModuleType) -> None:
    zoo_tables.RESULT.write_text(json.dumps(judged("held_out")))
    held_out, dev = zoo_tables.measured("lr_too_low")
    assert "no run that counts fails in this way" in held_out
    assert "right when named first 0 % (0 of 1; 0–79 %), else said of `weight_decay_too_high` (1)" in held_out
    assert dev.startswith("- <small>")
    assert "not measured yet" in dev
    assert "named first 100 % (1 of 1; 21–100 %)" in zoo_tables.measured("lr_too_high")[0]
    assert "never named first" in zoo_tables.measured("weight_decay_too_high")[0]


def test_pictures_are_shown_once_they_are_there(zoo_tables: ModuleType) -> None:
    zoo_tables.RESULT.write_text(json.dumps(judged("dev", "held_out")))
    assert "images/" not in parts()["zoo-pictures"]()
    (zoo_tables.IMAGES / "zoo_confusion_dev.png").touch()
    assert parts()["zoo-pictures"]().count("images/zoo_confusion_dev.png") == 1


# -- the words of the rules -------------------------------------------------------------------------------------------


def test_every_rule_has_its_words() -> None:
    told = module("rule_words").words_of_findings()
    assert set(told) == set(CODES)
    for code, words in told.items():
        assert all((words.meaning, words.advice, words.source, words.evidence)), code
        assert "…" not in {*words.meaning, *words.advice, *words.source}, code
        assert set(words.remedy) <= set(KNOBS), code


def test_words_keep_both_sides_of_a_choice_and_name_their_blanks() -> None:
    words = module("rule_words").words_of_findings()["layer_lr_mismatch"]
    assert len(words.meaning) == 2
    assert words.remedy == ["lr"]
    assert "from ‹mine› to about ‹value›" in words.advice[0]


def test_every_rule_has_a_rank_and_every_section_its_parts(zoo_tables: ModuleType) -> None:
    text = parts()["rules"]()
    assert set(module("rule_pages").rank_of()) >= set(CODES)
    for rule in RULES:
        section = text.split(f"### `{rule.code}` ")[1].split("\n### ")[0]
        for part in ("Means", "Try", "Remedy", "Looks at", "Speaks when", "Evidence", "Rank", "Source", "On held-out"):
            assert f"- **{part}" in section, (rule.code, part)
        assert "docs: " not in section, rule.code


def test_a_failure_without_a_rule_is_listed_and_known(zoo_tables: ModuleType) -> None:
    text = parts()["blind"]()
    listed = set(re.findall(r"^\| `(\w+)`", text, flags=re.M))
    assert listed == {*CATALOGUE, *module("rule_pages").CATALOGUE} - set(CODES)
    issues = (DOCS.parent / "KNOWN_ISSUES.md").read_text(encoding="utf-8")
    without = re.search(r"\*\*No rule for (.*?):\*\*", issues, flags=re.S)
    assert without
    assert set(re.findall(r"`(\w+)`", without[1])) == listed


def test_every_rule_is_among_the_known_limits() -> None:
    issues = (DOCS.parent / "KNOWN_ISSUES.md").read_text(encoding="utf-8")
    section = issues.split("### Where each rule is blind")[1].split("\n## ")[0]
    assert [code for code in CODES if f"`{code}`" not in section] == []


def test_sources_in_the_documentation_become_links() -> None:
    linked = module("markdown_tables").linked
    assert linked("docs: theory, alignment; the floor") == "[theory: alignment](theory.md#alignment); the floor"
    assert linked("docs: diagnosis") == "[diagnosis](diagnosis.md)"
    assert "(diagnosis.md#level-shifts): six" in linked("docs: diagnosis, level shifts: six losses")


def test_development_programs_may_have_a_file_of_their_own(zoo_tables: ModuleType) -> None:
    zoo_tables.RESULT.write_text(json.dumps(judged("held_out")))
    older = judged("dev") | {"environment": {**judged("dev")["environment"], "revision": "older"}}
    zoo_tables.RESULT.with_name("zoo_development.json").write_text(json.dumps(older))
    assert {"held_out", "dev"} <= set(zoo_tables.read())
    assert zoo_tables.read()["environment"]["revision"] == "abc"
    counted, ran = zoo_tables.vetting(), zoo_tables.machine()
    assert "Held-out programs: 3 of 3" in counted
    assert "Development programs: 3 of 3" in counted
    assert "revision abc" in ran
    assert "revision older" in ran
    zoo_tables.RESULT.write_text(json.dumps(judged("dev", "held_out")))
    assert "older" not in zoo_tables.machine()  # what was judged with the rest counts
