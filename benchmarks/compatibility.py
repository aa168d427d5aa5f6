"""Add the outcome of one row of `.ci/matrix` to a JSON file: versions, how many tests passed, failed or were skipped.

python -m benchmarks.compatibility NAME JUNIT_XML RESULTS_JSON [--only TESTS ...] [--left-out TESTS ...]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.lowest import requirements

ROOT = Path(__file__).resolve().parent.parent


def outcome(junit: Path) -> dict[str, Any]:
    """Counts of a pytest run, why tests were skipped, and the names of those that failed."""
    suite = next(ElementTree.parse(junit).getroot().iter("testsuite"))
    cases = list(suite.iter("testcase"))
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = Counter(reason(mark) for case in cases if (mark := case.find("skipped")) is not None)
    return {
        "passed": len(cases) - sum(skipped.values()) - len(bad),
        "skipped": dict(skipped.most_common()),
        "failed": [f"{case.get('classname')}::{case.get('name')}" for case in bad],
        "seconds": round(float(suite.get("time", 0))),
    }


def reason(mark: ElementTree.Element) -> str:
    """Why a test was skipped, without what differs from test to test."""
    return re.sub(r"(could not import '[\w.]+').*", r"\1", mark.get("message", ""), flags=re.DOTALL)


def versions() -> dict[str, str]:
    """Of Python, and of what is installed here of all that the project names."""
    found = {"python": platform.python_version()}
    for name in sorted({requirement.name for requirement in requirements()}):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def revision() -> str:
    """The commit that was tested."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("junit", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="TESTS", help="what was run; all where nothing is said"
    )
    parser.add_argument("--left-out", nargs="*", default=[], metavar="TESTS", help="what was not run")
    told = parser.parse_args(arguments)
    rows = json.loads(told.results.read_text(encoding="utf-8")) if told.results.exists() else {}
    rows[told.name] = {
        "date": date.today().isoformat(),
        "revision": revision(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "only": told.only,
        "left_out": told.left_out,
        "versions": versions(),
        **outcome(told.junit),
    }
    told.results.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows[told.name], indent=1))


if __name__ == "__main__":
    main()
