"""The package as a whole: what importing it loads, what it ships, that nothing public goes undocumented, and that the
examples of README and documentation run.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

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
PAGES = [*ROOT.glob("README.md"), *sorted(ROOT.glob("docs/*.md"))]


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


def test_import_loads_torch_and_numpy_and_nothing_else() -> None:
    assert {"torch", "numpy"} <= loaded_by("import thermoclaw")
    assert extras_loaded_by("import thermoclaw") == set()
    assert not OPTIONAL & loaded_by("import thermoclaw")


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
    for text in (readme, contributing):
        assert re.search(re.escape(install) + r"(\n| && )pytest$", text, flags=re.MULTILINE)
    assert f"pip install --quiet {install.removeprefix('pip install ')}" in ci
    assert re.search(r"^tests\(\) { run pytest ", ci, flags=re.MULTILINE)


# -- nothing public goes undocumented ----------------------------------------------------------------------------------

PUBLIC = [name for name in thermoclaw.__all__ if not name.startswith("__")]


def missing_from_page(names: Iterable[str], page: str) -> list[str]:
    """Names that the API page has no entry for."""
    entries = {path.rpartition(".")[2] for path in re.findall(r"^::: ([\w.]+)$", page, flags=re.MULTILINE)}
    return [name for name in names if name not in entries]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_have_a_docstring(name: str) -> None:
    doc = getattr(thermoclaw, name).__doc__
    assert doc
    assert doc.strip()


def test_public_names_are_on_the_api_page() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert PUBLIC
    assert missing_from_page(PUBLIC, page) == []
    assert missing_from_page(["Observer"], page.replace("::: thermoclaw.Observer\n", "")) == ["Observer"]


def docs_generator() -> ModuleType:
    """The hook that fills the documentation's generated parts."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_quantity_and_alias_is_on_the_quantities_page() -> None:
    from thermoclaw.quantities import ALIASES, TABLE

    page = docs_generator().fill((ROOT / "docs" / "quantities.md").read_text(encoding="utf-8"))
    assert [name for name in TABLE if f"### `{name}`" not in page] == []
    assert [alias for alias in ALIASES if f"`{alias}`" not in page] == []


def test_every_rule_is_on_the_recommendations_page() -> None:
    from thermoclaw.diagnosis.rules import RULES

    page = docs_generator().fill((ROOT / "docs" / "recommendations.md").read_text(encoding="utf-8"))
    assert [rule.code for rule in RULES if f"### `{rule.code}`" not in page] == []


def test_an_unknown_part_fails_the_documentation_build() -> None:
    with pytest.raises(KeyError, match="quantties"):
        docs_generator().fill("<!-- generate: quantties -->")


# -- figures come from measured files ----------------------------------------------------------------------------------

FIGURES = re.compile(r"<!-- figures: (\w+) -->\n\n(.*?)\n\n<!-- end -->", flags=re.DOTALL)


def stale_figures(text: str) -> list[str]:
    """Names of the tables that do not say what the measured files say."""
    parts = docs_generator().PARTS
    return [name for name, body in FIGURES.findall(text) if body != parts[name]()]


def test_figures_of_the_readme_are_the_measured_ones() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name, _ in FIGURES.findall(text)] == ["demo", "detection", "overhead"]
    assert stale_figures(text) == []
    assert stale_figures(re.sub(r"(\d) ×", r"1\1 ×", text)) == ["overhead"]


# -- the examples run --------------------------------------------------------------------------------------------------

BLOCK = re.compile(r"(^<!-- not run: .+ -->\n+)?^```python\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def python_blocks(text: str) -> Iterator[tuple[int, str]]:
    """Line number and source of every Python example that is not marked `<!-- not run: reason -->`."""
    for match in BLOCK.finditer(text):
        if match[1] is None:
            yield text.count("\n", 0, match.start(2)), match[2]


@pytest.mark.parametrize(
    "path", [p for p in PAGES if "```python" in p.read_text(encoding="utf-8")], ids=lambda p: p.name
)
def test_examples_of_a_page_run_in_order(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, source in python_blocks(path.read_text(encoding="utf-8")):
        code = compile("\n" * line + source, str(path), "exec")
        exec(code, namespace)


def test_examples_are_found_with_their_lines() -> None:
    page = "a\n```python\nb\n```\n<!-- not run: why -->\n```python\nc\n```\n```bash\nd\n```\n```python\ne\n```\n"
    assert list(python_blocks(page)) == [(2, "b\n"), (12, "e\n")]
