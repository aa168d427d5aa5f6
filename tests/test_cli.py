"""The command line: commands, exit codes, and one clear line for whatever goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from thermoclaw import Observer, cli
from thermoclaw.version import __version__


def record_file(path: Path, *, weight_decay: float) -> Path:
    """A saved run, healthy or eroded by decay."""
    layer = torch.nn.Linear(16, 16)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01, weight_decay=weight_decay)
    observer = Observer(layer, optimizer)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (layer(torch.randn(32, 16)) - 1).square().mean()
        loss.backward()
        optimizer.step()
        observer.step(loss=loss)
    return Path(observer.save(path))


@pytest.fixture
def healthy(tmp_path: Path) -> Path:
    return record_file(tmp_path / "healthy.npz", weight_decay=0.0)


@pytest.fixture
def eroded(tmp_path: Path) -> Path:
    return record_file(tmp_path / "eroded.npz", weight_decay=5.0)


def test_a_healthy_record_prints_its_report_and_exits_0(healthy: Path, capsys) -> None:
    assert cli.main(["diagnose", str(healthy)]) == 0
    out, err = capsys.readouterr()
    assert "60 steps" in out
    assert "healthy" in out
    assert err == ""


def test_a_failing_record_exits_1_and_names_the_cause(eroded: Path, capsys) -> None:
    assert cli.main(["diagnose", str(eroded)]) == 1
    assert "weight_decay_too_high" in capsys.readouterr().out


def test_json_is_json(eroded: Path, capsys) -> None:
    assert cli.main(["diagnose", str(eroded), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["healthy"] is False
    assert data["findings"][0]["code"] == "weight_decay_too_high"


def test_a_folder_with_one_record_is_that_record(healthy: Path, capsys) -> None:
    assert cli.main(["diagnose", str(healthy.parent)]) == 0
    assert "60 steps" in capsys.readouterr().out


def test_a_folder_with_two_records_is_ambiguous(healthy: Path, eroded: Path, capsys) -> None:
    assert cli.main(["diagnose", str(healthy.parent)]) == 2
    assert "2 .npz files; name one" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "other"])
def test_a_file_that_is_no_record_gets_one_line(damage: str, healthy: Path, capsys) -> None:
    target = healthy.with_name("broken.npz")
    if damage == "empty":
        target.write_bytes(b"")
    elif damage == "cut":
        target.write_bytes(healthy.read_bytes()[:2000])
    elif damage == "other":
        target.write_text("step,loss\n1,2\n")
    assert cli.main(["diagnose", str(target)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("thermoclaw diagnose: ")
    assert "broken.npz" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required"),
        (["trian"], "did you mean train?"),
        (["demo", "--seeds", "0"], "'0' is not a whole number of at least 1"),
        (["demo", "--seeds", "many"], "'many' is not a whole number"),
        (["demo", "--steps", "5"], "at least 50"),
        (["validate", "--scale", "huge"], "invalid choice"),
        (["diagnose"], "RUN"),
    ],
)
def test_wrong_use_exits_2_and_says_why(arguments: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_full_scale_on_a_cpu_is_refused_in_one_line(capsys) -> None:
    assert cli.main(["validate", "--scale", "full"]) == 2
    assert capsys.readouterr().err.startswith("thermoclaw validate: --scale full")


def test_the_demo_command_hands_its_arguments_on(monkeypatch) -> None:
    from thermoclaw import demo

    got: dict[str, Any] = {}
    monkeypatch.setattr(demo, "run_demo", lambda **settings: got.update(settings) or 1)
    assert cli.main(["demo", "--seeds", "3", "--out", "there", "--steps", "80", "--quiet", "--no-color"]) == 1
    assert got == {"num_seeds": 3, "out": "there", "steps": 80, "quiet": True, "no_color": True}


def test_the_validate_command_hands_its_arguments_on(monkeypatch) -> None:
    from thermoclaw import validate

    got: dict[str, Any] = {}
    monkeypatch.setattr(validate, "run_validation", lambda **settings: got.update(settings) or 0)
    assert cli.main(["validate", "--device", "cuda", "--scale", "full", "--json", "t.json"]) == 0
    assert got == {"device": "cuda", "scale": "full", "json_path": "t.json", "quiet": False, "no_color": False}


def test_an_interrupt_is_no_traceback(monkeypatch, capsys) -> None:
    from thermoclaw import demo

    def interrupted(**settings: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_demo", interrupted)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "thermoclaw: interrupted\n"


def test_a_folder_that_cannot_be_written_gets_one_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("in the way")
    assert cli.main(["demo", "--out", str(tmp_path / "file" / "here")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("thermoclaw demo: cannot write ")
    assert err.count("\n") == 1


def test_it_runs_as_a_module() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-m", "thermoclaw", "--version"], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"thermoclaw {__version__}\n"
