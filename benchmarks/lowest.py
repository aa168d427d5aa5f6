"""Prints pip constraints: of everything that pyproject.toml names, the lowest version that it admits on this Python.

python -m benchmarks.lowest > lowest.txt
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def requirements() -> Iterator[Requirement]:
    """What the project and its extras ask for here, other extras of its own left out."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    for requirement in map(Requirement, texts):
        applies = requirement.marker is None or requirement.marker.evaluate()
        if applies and requirement.name != project["name"]:
            yield requirement


def lowest(requirement: Requirement) -> str:
    """The bound as a pin; a requirement without one lower bound is an error."""
    (bound,) = [specifier.version for specifier in requirement.specifier if specifier.operator == ">="]
    return f"{requirement.name}=={bound}"


def pins() -> list[str]:
    """All of them, sorted."""
    return sorted({lowest(requirement) for requirement in requirements()})


if __name__ == "__main__":
    print(*pins(), sep="\n")
