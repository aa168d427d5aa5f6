"""Shell completion, tried in the shells themselves."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from thermoclaw import cli
from thermoclaw.cli.parser import commands_of, options_of

COMMANDS = set(commands_of(cli.parser()))


def script(shell: str, capsys) -> str:
    assert cli.main(["completion", shell]) == 0
    return capsys.readouterr().out


def need(shell: str) -> str:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"no {shell} on this machine")
    return path


def bash(text: str, *words: str, folder: Path) -> list[str]:
    """What bash offers after these words."""
    line = " ".join(f"'{word}'" for word in words)
    body = (
        f"{text}\nCOMP_WORDS=({line})\nCOMP_CWORD={len(words) - 1}\n_thermoclaw\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
    )
    done = subprocess.run([need("bash"), "--norc", "-eu", "-c", body], capture_output=True, text=True, cwd=folder)
    assert done.stderr == ""
    return sorted(filter(None, done.stdout.split("\n")))


CASES = [
    (("thermoclaw", ""), COMMANDS | {"--help", "--version"}),
    (("thermoclaw", "co"), {"compare", "completion"}),
    (("thermoclaw", "--v"), {"--version"}),
    (("thermoclaw", "diagnose", "--j"), {"--json"}),
    (("thermoclaw", "watch", "--"), {"--help", *options_of(commands_of(cli.parser())["watch"])}),
    (("thermoclaw", "validate", "--scale", ""), {"laptop", "full"}),
    (("thermoclaw", "validate", "--scale", "f"), {"full"}),
    (("thermoclaw", "completion", ""), {"bash", "fish", "zsh"}),
    (("thermoclaw", "completion", "z"), {"zsh"}),
    (("thermoclaw", "diagnose", "ru"), set()),  # files, which the shell itself completes
    (("thermoclaw", "nonsense", "--"), set()),
]


@pytest.mark.parametrize(
    ("words", "offered"), CASES, ids=lambda case: " ".join(case) if isinstance(case, tuple) else ""
)
def test_bash(words: tuple[str, ...], offered: set[str], tmp_path: Path, capsys) -> None:
    assert bash(script("bash", capsys), *words, folder=tmp_path) == sorted(offered)


def test_bash_completes_files_by_itself(tmp_path: Path, capsys) -> None:
    """`-o default`: where the function offers nothing, readline completes files; asked of bash as readline would."""
    assert "complete -o default -F _thermoclaw thermoclaw" in script("bash", capsys)


@pytest.mark.parametrize(
    ("words", "offered"), CASES[1:], ids=lambda case: " ".join(case) if isinstance(case, tuple) else ""
)
def test_zsh(words: tuple[str, ...], offered: set[str], tmp_path: Path, capsys) -> None:
    """The function as it is, with zsh's own helpers replaced by ones that print what they are given."""
    text = script("zsh", capsys)
    line = " ".join(f"'{word}'" for word in words)
    stubs = (
        "compadd() { shift; print -l -- $@ }\n_describe() { print -l -- ${${(P)2}%%:*} }\n_files() { print -- FILES }\n"
    )
    body = f"{stubs}{text}\nwords=({line}); CURRENT={len(words)}; PREFIX='{words[-1]}'\n_thermoclaw\n"
    done = subprocess.run([need("zsh"), "-f", "-c", body], capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr == ""
    found = {word for word in done.stdout.split() if word.startswith(words[-1])}
    if len(words) == 2:
        offered = offered - {"--version"}  # zsh is told of commands there
    assert found == offered
    if words[1] == "diagnose" and not words[-1].startswith("-"):
        assert done.stdout == "FILES\n"


@pytest.mark.parametrize(
    ("words", "offered"), CASES[:8], ids=lambda case: " ".join(case) if isinstance(case, tuple) else ""
)
def test_fish(words: tuple[str, ...], offered: set[str], tmp_path: Path, capsys) -> None:
    text = script("fish", capsys)
    body = f"{text}\ncomplete -C '{' '.join(words)}'\n"
    done = subprocess.run(
        [need("fish"), "--no-config", "-c", body],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert done.stderr == ""
    found = {line.partition("\t")[0] for line in done.stdout.splitlines()}
    assert offered - {"--help", "--version"} <= found
    if len(words) > 2 and not words[-1].startswith("-"):
        assert found == offered


def test_help_texts_cannot_break_a_script(tmp_path: Path, capsys) -> None:
    for shell, flag in (("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")):
        if shutil.which(shell):
            (tmp_path / shell).write_text(script(shell, capsys))
            subprocess.run([shell, flag, str(tmp_path / shell)], check=True)


def test_an_unknown_shell(capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["completion", "tcsh"])
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err
