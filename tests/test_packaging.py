"""The package as a whole: what importing it loads and what it ships."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import thermoclaw

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


# -- what importing it loads -------------------------------------------------------------------------------------------

OPTIONAL = {"accelerate", "matplotlib", "pandas", "sklearn", "tensorboard", "transformers", "wandb"}


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in a new interpreter after the statement, the standard library left out."""
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split()) - set(sys.stdlib_module_names)


def extras_loaded_by(statement: str) -> set[str]:
    """What the statement loads beyond what torch and numpy load by themselves."""
    return loaded_by(statement) - loaded_by("import torch, numpy") - {"thermoclaw"}


def test_import_loads_nothing_and_all_names_load_torch_and_numpy_and_nothing_else() -> None:
    assert loaded_by("import thermoclaw") - loaded_by("pass") == {"thermoclaw"}
    everything = "from thermoclaw import *"
    assert {"torch", "numpy"} <= loaded_by(everything)
    assert extras_loaded_by(everything) == set()
    assert not OPTIONAL & loaded_by(everything)


@pytest.mark.parametrize("names", ["load, diagnose, Record, RecordError, Report, Finding, Remedy, StateError"])
def test_what_reads_runs_does_not_load_torch(names: str) -> None:
    assert "torch" not in loaded_by(f"from thermoclaw import {names}")


def test_names_have_one_home_for_type_checkers_and_for_python() -> None:
    import ast

    tree = ast.parse(Path(thermoclaw.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    static = {a.name: str(node.module) for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names}
    homes = {name: f"thermoclaw.{home}" for name, home in thermoclaw._HOME.items()}
    assert {**homes, "preflight": "thermoclaw.preflight"} == static
    assert {*static, "__version__"} == set(thermoclaw.__all__)
    assert set(thermoclaw.__all__) <= set(dir(thermoclaw))


def test_a_package_does_not_hide_the_function_of_its_name() -> None:
    code = "import thermoclaw.preflight.result, thermoclaw; print(callable(thermoclaw.preflight))"
    code += "; from thermoclaw import preflight; from thermoclaw.preflight import Preflight; print(preflight.__name__)"
    done = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "preflight"]


def test_a_name_that_is_not_there_is_an_ordinary_error() -> None:
    with pytest.raises(AttributeError, match="module 'thermoclaw' has no attribute 'nope'"):
        thermoclaw.nope  # noqa: B018


def test_the_import_check_can_fail() -> None:
    pytest.importorskip("matplotlib")
    assert "matplotlib" in extras_loaded_by("import thermoclaw, matplotlib")


def test_the_table_of_promises_names_tests_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("## Which test guards which promise")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+\.py)`", table))
    assert len(named) > 15
    assert {name for name in named if not (ROOT / "tests" / name).exists()} == set()


def test_a_test_file_that_cannot_be_imported_fails(tmp_path: Path) -> None:
    """Skipped instead, a typo in an import would silence a whole file."""
    (tmp_path / "test_broken.py").write_text("from thermoclaw import nonexistent\n\n\ndef test_it(): ...\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2, done.stdout
    assert "cannot import name 'nonexistent'" in done.stdout


# -- what it ships -----------------------------------------------------------------------------------------------------


def test_the_package_is_typed() -> None:
    assert Path(thermoclaw.__file__).with_name("py.typed").is_file()


def test_the_version_is_the_installed_one() -> None:
    assert thermoclaw.__version__ == version("thermoclaw"), "the installed package is an older one: install it again"


def requirements(extras: Iterable[str]) -> Iterator[Requirement]:
    """Every requirement of the project and of the extras named, extras of extras included."""
    for text in PROJECT["dependencies"]:
        yield Requirement(text)
    for extra in extras:
        for text in PROJECT["optional-dependencies"][extra]:
            requirement = Requirement(text)
            if requirement.name == PROJECT["name"]:
                yield from requirements(sorted(requirement.extras))
            else:
                yield requirement


def pins(text: str) -> dict[str, Version]:
    """Name to version; a line that is not an exact pin is an error."""
    found = {}
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        if line:
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", f"not an exact pin: {line}"
            assert "*" not in specifier.version, f"not an exact pin: {line}"
            found[canonicalize_name(requirement.name)] = Version(specifier.version)
    return found


def unsatisfied(pinned: dict[str, Version]) -> list[str]:
    """Requirements of any extra that apply here and whose pin is missing or outside the promised range."""
    wrong = set()
    for requirement in requirements(PROJECT["optional-dependencies"]):
        if requirement.marker is None or requirement.marker.evaluate():
            pin = pinned.get(canonicalize_name(requirement.name))
            if pin is None or not requirement.specifier.contains(pin):
                wrong.add(f"{requirement}: pinned to {pin}")
    return sorted(wrong)


def test_the_pins_lie_in_the_promised_ranges() -> None:
    pinned = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert unsatisfied(pinned) == []
    assert unsatisfied({**pinned, "torch": Version("2.5")}) == ["torch>=2.6: pinned to 2.5"]
    del pinned["ruff"]
    assert [line.partition(":")[2] for line in unsatisfied(pinned)] == [" pinned to None"]


def test_readme_and_ci_use_the_same_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    install = "pip install -c constraints.txt -e '.[dev]'"
    tests = "pytest -n 2 --dist worksteal"
    for text in (readme, contributing):
        assert re.search(rf"{re.escape(install)}(\n| && ){tests}$", text, flags=re.MULTILINE)
    assert f"pip install --quiet {install.removeprefix('pip install ')}" in ci
    assert re.search(rf"^tests\(\) {{ run {tests} ", ci, flags=re.MULTILINE)
