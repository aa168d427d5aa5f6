"""What holds for every command: options of one meaning, exit codes, help, and that reading runs loads no torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kept_runs import command, keep_run
from thermoclaw import cli
from thermoclaw.cli.exits import MEANINGS
from thermoclaw.cli.parser import commands_of, options_of

COMMANDS = commands_of(cli.parser())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    keep_run(folder / "a")
    keep_run(folder / "b", steps=150)
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["diagnose", "a"],
        ["diagnose", "a", "--json"],
        ["watch", "a", "--once"],
        ["compare", "a", "b"],
        ["export", "a", "-o", "a.csv", "--quantities", "loss"],
        ["export", "a", "-o", "a.npz"],
        ["report", "a", "-o", "a.html"],
        ["preflight"],
        ["completion", "bash"],
    ],
    ids=" ".join,
)
def test_no_torch_is_loaded(arguments: list[str], runs: Path, tmp_path: Path) -> None:
    """With torch refused: it is not tried either."""
    if arguments[0] == "report":
        pytest.importorskip("plotly")
    places = [str(runs / word) if word in ("a", "b") else word for word in arguments]
    places = [str(tmp_path / word) if word in ("a.csv", "a.npz", "a.html") else word for word in places]
    done = command(*places, refuse="torch")
    assert done.returncode in (0, 1), done.stderr
    assert done.stderr == ""
    assert len(done.stdout) > 5


def test_a_command_that_trains_loads_torch() -> None:
    """So that the test above can fail."""
    assert command("validate", refuse="torch").returncode == 2


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_of_every_command(name: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: thermoclaw {name}")
    assert "None" not in out


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_options_mean_the_same_everywhere(name: str) -> None:
    options = options_of(COMMANDS[name])
    if name not in ("app", "completion"):
        assert "--json" in options
    if "--no-color" in options:
        assert options["--no-color"].nargs == 0
    if "--quiet" in options:
        assert options["--quiet"].nargs == 0
    if "--output" in options:
        assert "-o" in options["--output"].option_strings


def test_the_help_tells_the_exit_status(capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    for status, meaning in MEANINGS.items():
        assert f"{status} {meaning}" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["diagnoze"], "did you mean diagnose?"),
        ([], "are required: COMMAND; thermoclaw --help lists them"),
        (["diagnose", "a", "--jsno"], "unrecognized arguments: --jsno; did you mean --json?"),
        (["watch", "a", "--once", "--every", "0"], "'0' is not a number above 0"),
        (["watch", "a", "--every", "nan"], "'nan' is not a number above 0"),
        (["export", "a"], "required: -o/--output"),
        (["diagnose", "a", "--js"], "unrecognized arguments: --js"),  # nothing is abbreviated: new options may come
        (["xyzzy"], "invalid choice: 'xyzzy'"),
    ],
)
def test_wrong_use_says_what_was_meant(arguments: list[str], words: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["diagnose", "watch", "compare", "export", "report"])
def test_a_path_that_is_no_run_says_what_lies_there(name: str, runs: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "weights.pt").write_text("x")
    more = {"watch": ["--once"], "compare": [str(runs / "a")], "export": ["-o", str(tmp_path / "a.csv")]}.get(name, [])
    assert cli.main([name, str(tmp_path), *more]) == 2
    assert "holds no record and no run: weights.pt" in capsys.readouterr().err
    assert cli.main([name, str(runs / "c"), *more]) == 2
    assert f"no record at {runs / 'c'}; in {runs} there are a/, b/" in capsys.readouterr().err


def test_the_demo_and_the_validation_as_json(tmp_path: Path, monkeypatch, capsys) -> None:
    """The rest goes to standard error."""
    from thermoclaw import demo, validate

    def run_demo(*, out: str, **_: object) -> int:
        Path(out, "results.json").write_text('{"passed": true}')
        print("words")
        return 0

    def run_validation(*, json_path: str | None, **_: object) -> int:
        if json_path is not None:
            Path(json_path).write_text('{"checks": []}')
        print("words")
        return 1

    monkeypatch.setattr(demo, "run_demo", run_demo)
    monkeypatch.setattr(validate, "run_validation", run_validation)
    assert cli.main(["demo", "--out", str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"passed": True}
    assert err == "words\n"
    assert cli.main(["validate", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"checks": []}
    assert cli.main(["validate", "--json", str(tmp_path / "table.json")]) == 1
    assert capsys.readouterr().out == "words\n"
    assert (tmp_path / "table.json").exists()
    assert cli.main(["validate"]) == 1


def test_preflight_says_how_and_why(capsys) -> None:
    assert cli.main(["preflight"]) == 0
    out = capsys.readouterr().out
    assert "Running a script up to its first step would do whatever" in out
    call = out[out.index("from thermoclaw import preflight") :]
    compile(call, "call", "exec")
    assert cli.main(["preflight", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["call"] == call


def test_diagnose_in_words_and_in_one(runs: Path, capsys) -> None:
    assert cli.main(["diagnose", str(runs / "a"), "--quiet"]) == 0
    out = capsys.readouterr().out
    assert out == "Thermoclaw: healthy.\n"


def test_findings_are_painted_where_color_is_wanted() -> None:
    from thermoclaw.cli.diagnose import _painted

    text = "1. [HIGH] it burns (x)\n   Seen: [HIGH] is a word\n2. [LOW] it glows (y)"
    assert _painted(text, enabled=False) == text
    assert _painted(text, enabled=True) == text.replace(
        "1. [HIGH] it burns (x)", "\x1b[31m1. [HIGH] it burns (x)\x1b[0m"
    )
