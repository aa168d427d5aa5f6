"""README and documentation: every block runs, shows what it really prints, and nothing public or drawn is left out."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import thermoclaw
from thermoclaw.cli import parser

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def script(name: str) -> ModuleType:
    """A script of the documentation."""
    if str(DOCS) not in sys.path:
        sys.path.insert(0, str(DOCS))
    return importlib.import_module(name)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


pages = script("pages")
every_page = pytest.mark.parametrize("path", PAGES, ids=name_of)


# -- blocks ------------------------------------------------------------------------------------------------------------

PRINTED_ON = (3, 11)  # pages train on text that comes with Python, another one with each version
KINDS = {"bash", "python", "text", "console", "json", "yaml", "toml"}


def slow(path: Path) -> object:
    """The page as a parameter, marked where its code takes long."""
    return pytest.param(path, marks=[pytest.mark.slow] if path.parent.name == "tutorials" else [])


@pytest.mark.parametrize("path", [slow(p) for p in PAGES if "```python" in read(p)], ids=name_of)
def test_python_of_a_page_runs_and_prints_what_the_page_shows(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    for block, printed in pages.run(read(path), tmp_path, name=str(path)):
        same = pages.same(block.body, printed) or sys.version_info[:2] != PRINTED_ON
        assert same, f"line {block.line}: python docs/pages.py {name_of(path)}\n{printed}"
    assert [name for name in pages.pictures(read(path)) if not (tmp_path / name).is_file()] == []


@every_page
def test_a_block_is_of_a_known_kind_and_left_out_for_a_reason(path: Path) -> None:
    text = read(path)
    found = pages.blocks(text)
    assert len(found) * 2 == len(re.findall(r"^ *```", text, flags=re.MULTILINE)), "a block that no check sees"
    assert {block.kind for block in found} <= KINDS
    marks = re.findall(r"^<!-- (?:output|not run)\b.*-->$", text, flags=re.MULTILINE)
    assert len(marks) == sum(bool(block.mark) for block in found), "a mark that stands above no block"
    for block in found:
        if block.mark == "not run":
            assert block.kind == "python", f"line {block.line}: shell commands are checked, not run"
            assert len(block.reason.split()) >= 3, f"line {block.line}: say why it is not run"
            compile(block.body, str(path), "exec")
        assert block.mark != "output" or block.kind == "text", f"line {block.line}"


def test_blocks_marks_and_outputs_are_found(tmp_path: Path) -> None:
    page = (
        "a\n```python\nprint(7)\n```\n<!-- not run: no way here -->\n```python\nc\n```\n```bash\nd\n```\n"
        '<!-- output -->\n\n```text\n8\n```\n```python\nassert 0, "reached"\n```\n![x](../images/pages/x.png)\n'
    )
    found = pages.blocks(page)
    assert [(b.kind, b.line, b.mark, b.reason) for b in found] == [
        ("python", 2, "", ""), ("python", 6, "not run", "no way here"), ("bash", 9, "", ""), ("text", 14, "output", ""),
        ("python", 17, "", ""),
    ]  # fmt: skip
    assert pages.pictures(page) == ["x.png"]
    with pytest.raises(AssertionError, match="reached"):
        pages.run(page, tmp_path)
    ((block, printed),) = pages.run(page.replace("assert 0", "assert 1"), tmp_path)
    assert (block.body, printed) == ("8\n", "7\n")


def test_outputs_are_the_same_by_words_and_nearly_by_numbers() -> None:
    shown = "loss 2.30 at step 16,\nlr = 1e-4"
    assert pages.same(shown, "loss 2.10 at step 18, lr = 1e-4")
    assert not pages.same(shown, "loss 1.30 at step 16, lr = 1e-4")
    assert not pages.same(shown, "loss 2.30 at step 16, lr = 1e-4, too")
    assert not pages.same(shown, "rate 2.30 at step 16, lr = 1e-4")
    assert not pages.same("−0.5", "0.5")


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a page's shell blocks, each as its words."""
    for block in pages.blocks(text):
        if block.kind == "bash":
            for line in block.body.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words:
                    stop = next((i for i, word in enumerate(words) if word in ("&&", ";", "|", "&")), len(words))
                    yield words[:stop]
                    words = words[stop + 1 :]


def wrong_with(words: list[str]) -> str:
    """Why a command cannot work; empty where it can."""
    match words:
        case ["thermoclaw", *arguments]:
            try:
                parser().parse_args(arguments)
            except SystemExit as left:
                return "" if left.code == 0 else "thermoclaw does not take these arguments"
            return ""
        case ["pip", "install", *rest]:
            named = {
                extra.strip() for word in rest for extra in re.findall(r"\[(.*)\]", word) for extra in extra.split(",")
            }
            return "" if named <= PROJECT["optional-dependencies"].keys() else f"no such extra: {named}"
        case ["python", "-m", "benchmarks.zoo", command, *options]:
            source = "".join(read(path) for path in (ROOT / "benchmarks" / "zoo").glob("*.py"))
            return missing([command, *options], source)
        case ["python", file, *options] if file.endswith(".py"):
            path = ROOT / file
            return (
                missing(options, read(path)) if path.is_file() else "" if "/" not in file else f"no such file: {file}"
            )
        case [".ci/run", *arguments]:
            return missing(arguments, read(ROOT / ".ci" / "run"))
        case ["python3", "-m", "venv", _] | [".", ".venv/bin/activate"] | ["pytest", *_]:
            return ""
        case _:
            return "not a command that is checked here"


def missing(words: Iterable[str], source: str) -> str:
    """Which commands and options a script does not know."""
    unknown = [word for word in words if re.fullmatch(r"--[\w-]+|[a-z]+", word) and word.lstrip("-") not in source]
    return f"the script does not know {unknown}" if unknown else ""


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_shell_commands_name_what_there_is(path: Path) -> None:
    told = [(shlex.join(words), wrong_with(words)) for words in commands(read(path))]
    assert [(command, why) for command, why in told if why] == []


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("thermoclaw diagnoze x.npz", "does not take"),
        ("thermoclaw diagnose x.npz --jsn", "does not take"),
        ("pip install -e '.[vizz]'", "no such extra"),
        ("python docs/picture.py", "no such file"),
        ("python docs/pictures.py --figurs", "does not know"),
        ("python -m benchmarks.zoo juge", "does not know"),
        (".ci/run --no-env", "does not know"),
        ("curl x", "not a command"),
    ],
)
def test_a_shell_command_that_cannot_work_is_seen(command: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    (words,) = commands(f"```bash\n{command}  # why\n```\n")
    assert why in wrong_with(words)


# -- nothing public goes undocumented ----------------------------------------------------------------------------------

PUBLIC = [name for name in thermoclaw.__all__ if not name.startswith("__")]
PACKAGES = [
    "thermoclaw", "thermoclaw.integrations.loggers", "thermoclaw.phase", "thermoclaw.preflight",
    "thermoclaw.report.html", "thermoclaw.report.plots", "thermoclaw.representation", "thermoclaw.runs",
    "thermoclaw.train",
]  # fmt: skip
ENTRY = re.compile(r"^::: ([\w.]+)$", flags=re.MULTILINE)


def meant_by(path: str) -> object:
    """What an entry of the API page documents: a module where there is one of that name, else what it holds."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        home, _, name = path.rpartition(".")
        return getattr(meant_by(home), name)


def undocumented(page: str, package: str) -> list[str]:
    """Public names of a package that have no entry on the page."""
    entries = ENTRY.findall(page)
    known = [id(meant_by(path)) for path in entries]
    names = [name for name in meant_by(package).__all__ if not name.startswith("__")]  # type: ignore[attr-defined]
    assert names
    return [] if package in entries else [n for n in names if id(getattr(meant_by(package), n)) not in known]


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_on_the_api_page(package: str) -> None:
    assert undocumented(read(DOCS / "api.md"), package) == []


def test_a_public_name_that_is_not_on_the_api_page_is_seen() -> None:
    page = read(DOCS / "api.md")
    assert undocumented(page.replace("::: thermoclaw.Observer\n", ""), "thermoclaw") == ["Observer"]
    page = page.replace("thermoclaw.preflight.check.preflight", "thermoclaw.preflight")  # the package, not the function
    assert undocumented(page, "thermoclaw") == ["preflight"]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_have_a_docstring_and_an_example(name: str) -> None:
    value = getattr(thermoclaw, name)
    texts = [value.__doc__ or ""]
    assert texts[0].strip()
    if isinstance(value, type) and not issubclass(value, Exception):
        texts += [getattr(member, "__doc__", None) or "" for member in vars(value).values()]
    shown = "".join(block.body for block in pages.blocks(read(DOCS / "api.md")) if block.kind == "python")
    is_error = isinstance(value, type) and issubclass(value, Exception)
    assert is_error or any(">>>" in text for text in texts) or re.search(rf"\b{name}\b", shown)


# -- generated parts and figures ---------------------------------------------------------------------------------------

FIGURES = re.compile(r"<!-- figures: (\w+) -->\n\n(.*?)\n\n<!-- end -->", flags=re.DOTALL)


def filled(page: str) -> str:
    return str(script("generate").fill(read(DOCS / page)))


def stale_figures(text: str) -> list[str]:
    """Names of the tables that do not say what the measured files say."""
    parts = script("generate").PARTS
    return [name for name, body in FIGURES.findall(text) if body != parts[name]()]


def test_figures_of_the_readme_are_the_measured_ones() -> None:
    text = read(ROOT / "README.md")
    assert [name for name, _ in FIGURES.findall(text)] == ["demo", "detection", "overhead"]
    assert stale_figures(text) == []
    assert stale_figures(re.sub(r"(\d) ×", r"1\1 ×", text)) == ["overhead"]


def test_every_quantity_and_alias_is_on_the_quantities_page() -> None:
    from thermoclaw.quantities import ALIASES, TABLE

    page = filled("quantities.md")
    assert [name for name in TABLE if f"### `{name}`" not in page] == []
    assert [alias for alias in ALIASES if f"`{alias}`" not in page] == []


def test_every_rule_is_on_the_recommendations_page() -> None:
    from thermoclaw.diagnosis.rules import RULES

    page = filled("recommendations.md")
    assert [rule.code for rule in RULES if f"### `{rule.code}`" not in page] == []


def test_an_unknown_part_fails_the_documentation_build() -> None:
    with pytest.raises(KeyError, match="quantties"):
        script("generate").fill("<!-- generate: quantties -->")


def test_every_extra_has_its_line_in_the_quick_start() -> None:
    page = filled("quickstart.md")
    for extra in PROJECT["optional-dependencies"]:
        assert re.search(rf"^\| `{extra}` \| .+ \| .+ \|$", page, flags=re.MULTILINE), (
            f"docs/extras.py: what is {extra} for?"
        )


# -- what am I looking at ----------------------------------------------------------------------------------------------


def test_every_quantity_is_shown_with_what_moves_it_and_a_picture() -> None:
    from thermoclaw.quantities import TABLE

    notes, runs = script("quantity_notes"), script("quantity_runs").RUNS
    page = filled("looking_at.md")
    for name in TABLE:
        section = page.split(f"### [`{name}`](quantities.md#{name})")[1].split("\n### ")[0]
        for part in (f"(images/quantities/{name}.png)", "**Formula:**", "**Unit:**", "**Moves:**"):
            assert part in section, (name, part)
        assert (DOCS / "images" / "quantities" / f"{name}.png").is_file(), name
        note = notes.NOTES[name]
        assert {note.healthy, note.faulty} <= runs.keys()
        if runs[note.faulty].label.startswith("the same"):
            assert note.healthy.split("_")[0] == note.faulty.split("_")[0], f"{name}: not the same model"
    assert set(notes.NOTES) == set(TABLE)


def test_every_picture_is_shown_somewhere_and_all_are_small() -> None:
    shown = " ".join(filled(name_of(path).removeprefix("docs/")) for path in PAGES if path.is_relative_to(DOCS))
    shown += read(ROOT / "README.md")
    pictures = [path.relative_to(DOCS / "images") for path in (DOCS / "images").rglob("*.png")]
    assert [str(path) for path in pictures if f"images/{path}" not in shown] == []
    own = [path for path in pictures if path.parts[0] in ("quantities", "pages")]
    assert sum((DOCS / "images" / path).stat().st_size for path in own) < 2_000_000
