"""The tables of the compatibility page, from the file that `.ci/matrix` wrote."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from cost_tables import RESULTS
from markdown_tables import plain, table
from packaging.version import Version

Row = dict[str, Any]
COLUMNS = ("python", "torch", "numpy", "transformers", "accelerate", "lightning")


def rows() -> dict[str, Row]:
    """The rows that were run, by name."""
    return dict(json.loads((RESULTS / "compatibility.json").read_text(encoding="utf-8")))


def compatibility() -> str:
    """One line a row: the versions that matter most, and how its tests ended."""
    lines = [
        (
            name,
            *(row["versions"].get(package, "–") for package in COLUMNS),
            f"{row['passed']:,}",
            str(len(row["failed"])),
            str(sum(row["skipped"].values())),
            row["date"],
        )
        for name, row in rows().items()
    ]
    return "\n".join([*table(("row", *COLUMNS, "passed", "failed", "skipped", "date"), lines), "", *notes()])


def notes() -> Iterator[str]:
    """What was run in each row, on what machine, and what failed."""
    for name, row in rows().items():
        tests = f"{named(row['only'])} alone" if row["only"] else "all tests"
        but = f" but {named(row['left_out'])}" if row["left_out"] else ""
        yield f"- **{name}:** {tests}{but}, at commit `{row['revision']}`, {row['machine']}."
        for test in row["failed"]:
            yield f"    - failed: `{test}`"


def named(paths: list[str]) -> str:
    """Files of tests."""
    return ", ".join(f"`{path}`" for path in paths)


def not_lowest() -> str:
    """What the rows called lowest did not run with the lowest version that is promised today."""
    used: dict[str, str] = {}
    for name, row in sorted(rows().items(), reverse=True):  # so that `lowest` has the last word
        used |= row["versions"] if name.startswith("lowest") else {}
    above = [
        f"`{name}` {used.get(name, 'was not there')} (promised from {bound})"
        for name, bound in (pin.split("==") for pin in promised())
        if name not in used or Version(Version(used[name]).public) != Version(bound)
    ]
    return f"What they did not hold at its lowest: {', '.join(above) or 'nothing'}."


def promised() -> list[str]:
    """The lowest version of everything, as `pyproject.toml` has it now."""
    root = str(RESULTS.parent.parent)
    if root not in sys.path:
        sys.path.append(root)
    return list(importlib.import_module("benchmarks.lowest").pins())


def skipped() -> str:
    """Why tests were skipped, and how many in each row."""
    found = rows()
    reasons = {reason: None for row in found.values() for reason in row["skipped"]}
    lines = [(plain(reason), *(str(row["skipped"].get(reason, "")) for row in found.values())) for reason in reasons]
    return "\n".join(table(("why", *found), lines))


def versions() -> str:
    """Every package that the project names, and its version in each row."""
    found = rows()
    names = sorted({package for row in found.values() for package in row["versions"]})
    lines = [(f"`{name}`", *(row["versions"].get(name, "–") for row in found.values())) for name in names]
    return "\n".join(table(("package", *found), lines))


PARTS: dict[str, Callable[[], str]] = {
    "compatibility": compatibility,
    "compatibility-not-lowest": not_lowest,
    "compatibility-skipped": skipped,
    "compatibility-versions": versions,
}
