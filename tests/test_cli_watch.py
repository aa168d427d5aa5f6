"""`thermoclaw watch`: a frame at any width, with and without color, live while the run grows, and how it ends."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from kept_runs import Training, command, keep_run, program
from thermoclaw import cli, diagnose, load
from thermoclaw.cli.watch import Follower
from thermoclaw.report.terminal.glance import ENDED, GOES_ON, SILENT, glance
from thermoclaw.report.terminal.sparkline import BLOCKS, PLAIN, sparkline

pytest.importorskip("rich")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    keep_run(folder / "well")
    keep_run(folder / "eroded", weight_decay=30.0)
    return folder


# -- one frame ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [24, 40, 59, 60, 80, 100, 200])
@pytest.mark.parametrize("name", ["well", "eroded"])
def test_a_frame_fits_the_terminal(name: str, width: int, runs: Path, capsys) -> None:
    status = cli.main(["watch", str(runs / name), "--once", "--width", str(width)])
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= width
    assert width < 59 or "…" not in "".join(lines[1:])  # nothing is cut but the path
    assert "\x1b" not in out
    assert "ended" in lines[0]
    assert any(line.startswith("loss") and BLOCKS[7] in line for line in lines)
    words = re.sub(r"\s+", " ", out)
    assert "3 layers" in words
    assert "steps 1–200" in words
    assert ("healthy" in words) == (name == "well")
    assert ("[HIGH]" in words) == (name == "eroded")
    assert status == (0 if name == "well" else 1)


def test_a_finding_is_told_with_its_code_step_and_advice(runs: Path, capsys) -> None:
    cli.main(["watch", str(runs / "eroded"), "--once", "--width", "120"])
    out = capsys.readouterr().out
    finding = diagnose(runs / "eroded").findings[0]
    assert f"[HIGH] {finding.title} ({finding.code}, since step {finding.first_step})" in out
    assert finding.advice in out
    assert "1 finding to act on" in out


def test_a_record_file_is_shown_too(runs: Path, tmp_path: Path, capsys) -> None:
    path = load(runs / "well").save(tmp_path / "a.npz")
    assert cli.main(["watch", str(path)]) == 0  # without --once: a run that has ended ends the view
    assert "steps 1–200" in capsys.readouterr().out


def test_names_cannot_write_to_the_terminal(tmp_path: Path, capsys) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    model.add_module("evil\x1b[2J\n[red]x[/red]" + "y" * 300, nn.Linear(3, 3))
    Training(model, run_dir=tmp_path / "a\x1b[31m").go(40).observer.close()
    cli.main(["watch", str(tmp_path / "a\x1b[31m"), "--once", "--width", "80"])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "evil·" in out
    assert "[red]" not in re.sub(r"…", "", out) or "[red]x" in out  # as it is, not as markup
    assert max(map(len, out.splitlines())) <= 80


def test_json_is_one_line_for_programs(runs: Path, capsys) -> None:
    assert cli.main(["watch", str(runs / "eroded"), "--once", "--json"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    data = json.loads(line)
    assert data["state"] == "ended"
    assert data["step"] == 200
    assert data["healthy"] is False
    assert data["findings"][0]["code"] == "weight_decay_too_high"
    assert math.isclose(data["last"]["loss"], load(runs / "eroded").loss[-1])
    assert len(data["worst_layers"]) == 3


def test_json_needs_no_rich_and_pictures_say_what_is_missing(runs: Path) -> None:
    assert command("watch", str(runs / "well"), "--once", "--json", refuse="rich torch").returncode == 0
    refused = command("watch", str(runs / "well"), "--once", refuse="rich")
    assert refused.returncode == 2
    assert refused.stderr == (
        "thermoclaw watch: watching a run in the terminal needs rich: pip install 'thermoclaw[terminal]'\n"
    )


def test_a_terminal_without_block_characters(runs: Path) -> None:
    done = command("watch", str(runs / "well"), "--once", "--width", "80", PYTHONIOENCODING="ascii")
    line = next(line for line in done.stdout.splitlines() if line.startswith("loss"))
    assert set(line.split()[1]) <= set(PLAIN)
    assert len(set(line.split()[1])) > 3


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize(("environment", "arguments"), [({}, []), ({"NO_COLOR": "1"}, []), ({}, ["--no-color"])])
def test_color_is_for_terminals_that_want_it(environment: dict, arguments: list, runs: Path) -> None:
    import pty

    master, slave = pty.openpty()
    env = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    child = subprocess.Popen(
        [sys.executable, "-m", "thermoclaw", "watch", str(runs / "eroded"), "--once", *arguments],
        stdout=slave,
        env={**env, "TERM": "xterm-256color", **environment},
    )
    os.close(slave)
    out = b""
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:
            break
        if not data:
            break
        out += data
    child.wait()
    os.close(master)
    has_color = re.search(rb"\x1b\[(\d+;)*3[0-7]m", out) is not None
    assert has_color == (not environment and not arguments)
    assert b"finding" in out


# -- what is not there -------------------------------------------------------------------------------------------------


def test_once_does_not_wait(tmp_path: Path, capsys) -> None:
    assert cli.main(["watch", str(tmp_path / "a"), "--once"]) == 2
    assert "no record at" in capsys.readouterr().err


def test_a_folder_without_a_run_is_an_error_even_when_waiting(tmp_path: Path, capsys) -> None:
    (tmp_path / "notes.txt").write_text("x")
    assert cli.main(["watch", str(tmp_path)]) == 2
    assert "holds no record and no run: notes.txt" in capsys.readouterr().err


def test_waiting_for_a_run_that_begins(tmp_path: Path) -> None:
    follower = Follower(tmp_path / "a", waits=True)
    assert follower.look() is None
    Training(run_dir=tmp_path / "a").go(30).observer.close()
    seen = follower.look()
    assert seen is not None
    assert seen.state == ENDED


# -- live --------------------------------------------------------------------------------------------------------------

SLOWLY = """
from thermoclaw.runs import writer
writer.FLUSH_S = writer.FIRST_FLUSH_S = 0.05
run = Training(run_dir=sys.argv[1])
for _ in range(40):
    run.go(8)
    time.sleep(0.1)
run.observer.close()
"""


@pytest.mark.slow
def test_a_run_is_followed_to_its_end(tmp_path: Path) -> None:
    child = subprocess.Popen(program(SLOWLY, str(tmp_path / "a")))
    done = command("watch", str(tmp_path / "a"), "--json", "--every", "0.2")
    child.wait()
    looks = [json.loads(line) for line in done.stdout.splitlines()]
    steps = [look["step"] for look in looks]
    assert steps == sorted(steps)
    assert len(set(steps)) > 3
    assert steps[-1] == 320
    assert [look["state"] for look in looks] == ["running"] * (len(looks) - 1) + ["ended"]
    assert any((look["steps_per_s"] or 0) > 10 for look in looks)
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_ctrl_c_ends_the_view_cleanly(arguments: list, tmp_path: Path) -> None:
    run = Training(run_dir=tmp_path / "a").go(40)
    while not (tmp_path / "a" / "meta.json").exists():
        time.sleep(0.01)
    child = subprocess.Popen(
        [sys.executable, "-u", "-m", "thermoclaw", "watch", str(tmp_path / "a"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what began the tests may ignore it
    )
    assert child.stdout is not None
    first = child.stdout.readline() if arguments else (time.sleep(6) or "")
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert err == ""
    assert child.returncode == 0
    assert "running" in first + out
    run.observer.close()


def test_a_run_whose_rows_stay_away_is_called_silent(runs: Path) -> None:
    """Slow steps fill a block slowly: what counts is the usual pause."""
    record = load(runs / "well")
    report = diagnose(record)

    def state(silent_s: float, *, steps_per_s: float, is_closed: bool = False) -> str:
        marks = ((0, 1000.0), (200, 1000.0 + 200 / steps_per_s))
        return glance(record, report, is_closed=is_closed, marks=marks, now_s=marks[-1][1] + silent_s).state

    assert state(20, steps_per_s=100) == GOES_ON
    assert state(60, steps_per_s=100) == SILENT
    assert state(60, steps_per_s=0.1) == GOES_ON  # a block takes 80 s
    assert state(600, steps_per_s=0.1) == SILENT
    assert state(9e9, steps_per_s=100, is_closed=True) == ENDED


def test_a_silent_run_is_told_in_words(tmp_path: Path, capsys) -> None:
    folder = keep_run(tmp_path / "a")
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "closed": False}))  # as a killed process leaves it
    for path in folder.iterdir():
        os.utime(path, (time.time() - 7200, time.time() - 7200))
    cli.main(["watch", str(folder), "--once", "--width", "100"])
    assert "no new rows for 2 h: stopped or killed?" in capsys.readouterr().out


def test_rules_are_not_asked_all_the_time(runs: Path, monkeypatch) -> None:
    from thermoclaw.diagnosis import report

    calls = []
    ask = report.diagnose
    monkeypatch.setattr(report, "diagnose", lambda record: calls.append(1) or ask(record))
    follower = Follower(runs / "well", waits=False)
    for _ in range(5):
        follower.look()
    assert len(calls) == 1


# -- sparklines --------------------------------------------------------------------------------------------------------


def test_sparklines_say_what_happened() -> None:
    steps = np.arange(100.0)
    rising = sparkline(steps, steps, 10)
    assert len(rising) == 10
    assert list(rising) == sorted(rising)
    assert set(sparkline(steps, np.full(100, 2.0), 10)) == {BLOCKS[0]}
    gap = np.where((steps > 30) & (steps < 60), np.nan, steps)
    assert sparkline(steps, gap, 10)[4] == " "
    assert sparkline(steps, np.full(100, np.nan), 10) == ""
    assert sparkline(steps[:3], steps[:3], 10) == BLOCKS[0] + BLOCKS[4] + BLOCKS[7]
    decades = sparkline(steps, 10 ** (-steps / 10), 10)
    assert len(set(decades)) >= 7  # by its logarithm
    assert sparkline(steps, np.where(steps == 50, np.inf, steps), 10) == rising
    assert sparkline(np.empty(0), np.empty(0), 10) == ""
