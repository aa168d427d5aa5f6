"""What `.ci/matrix` asks for and writes down."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from benchmarks import compatibility, lowest

JUNIT = """<testsuites><testsuite name="pytest" tests="5" time="12.4">
<testcase classname="tests.a" name="one"/>
<testcase classname="tests.a" name="two"><skipped message="could not import 'trl': No module named 'trl'"/></testcase>
<testcase classname="tests.a" name="three"><skipped message="needs a CUDA device"/></testcase>
<testcase classname="tests.b" name="four"><failure message="no"/></testcase>
<testcase classname="tests.b" name="five"><error message="no"/></testcase>
</testsuite></testsuites>"""


def test_the_lowest_versions_are_the_bounds() -> None:
    pins = lowest.pins()
    assert {"torch==2.6", "numpy==1.24", "transformers==4.46.1", "streamlit==1.54", "peft==0.14"} <= set(pins)
    assert not [pin for pin in pins if pin.startswith("thermoclaw")]
    assert ("tomli==2" in pins) == (sys.version_info < (3, 11))
    with pytest.raises(ValueError, match="not enough values"):
        lowest.lowest(Requirement("torch"))


def test_a_row_says_what_ran_and_how_it_ended(tmp_path: Path) -> None:
    junit, results = tmp_path / "a.xml", tmp_path / "results.json"
    junit.write_text(JUNIT, encoding="utf-8")
    compatibility.main(["one", str(junit), str(results), "--only", "--left-out"])
    compatibility.main(["two", str(junit), str(results), "--only", "tests/a.py", "--left-out", "tests/b.py"])
    rows = json.loads(results.read_text(encoding="utf-8"))
    assert list(rows) == ["one", "two"]
    assert [(row["only"], row["left_out"]) for row in rows.values()] == [([], []), (["tests/a.py"], ["tests/b.py"])]
    row = rows["one"]
    assert row["passed"] == 1
    assert row["skipped"] == {"could not import 'trl'": 1, "needs a CUDA device": 1}
    assert row["failed"] == ["tests.b::four", "tests.b::five"]
    assert row["versions"]["python"].startswith("3.")
    assert torch.__version__.startswith(row["versions"]["torch"].partition("+")[0])
