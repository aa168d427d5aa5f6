"""Add the outcome of one row of `.ci/matrix` to a JSON file: versions, and how many tests passed, failed, were skipped.

python benchmarks/compatibility.py NAME JUNIT_XML RESULTS_JSON
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
import xml.etree.ElementTree as ElementTree
from datetime import date
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "transformers", "accelerate", "lightning", "matplotlib", "pandas", "scikit-learn")


def outcome(junit: Path) -> dict[str, Any]:
    """Counts of a pytest run, and the names of the tests that failed."""
    suite = next(ElementTree.parse(junit).getroot().iter("testsuite"))
    total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    bad = [
        case for case in suite.iter("testcase") if case.find("failure") is not None or case.find("error") is not None
    ]
    return {
        "passed": total - skipped - len(bad),
        "skipped": skipped,
        "failed": [f"{case.get('classname')}::{case.get('name')}" for case in bad],
        "seconds": round(float(suite.get("time", 0))),
    }


def versions() -> dict[str, str]:
    """Of what is installed here."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main(name: str, junit: str, results: str) -> None:
    path = Path(results)
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rows[name] = {"date": date.today().isoformat(), "versions": versions(), **outcome(Path(junit))}
    path.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(json.dumps(rows[name], indent=1))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
