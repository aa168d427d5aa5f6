"""Add the outcome of one row of `.ci/matrix` to a JSON file: versions, how many tests passed, failed or were skipped.

python benchmarks/compatibility.py NAME JUNIT_XML RESULTS_JSON [TESTS ...]
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

from lowest import requirements

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
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def main(name: str, junit: str, results: str, *tests: str) -> None:
    path = Path(results)
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rows[name] = {
        "date": date.today().isoformat(),
        "revision": revision(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "tests": list(tests) or "all",
        "versions": versions(),
        **outcome(Path(junit)),
    }
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows[name], indent=1))


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
