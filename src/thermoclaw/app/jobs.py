"""Trainings that the app starts: each a process of its own, in a session of its own, which no page takes with it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from thermoclaw.app.folders import CONSOLE, Folders
from thermoclaw.train.settings import settings_of
from thermoclaw.train.status import RUNNING, STOP_FILE, ask_to_stop, read_status

STARTING = "starting"
_PATIENCE_S = 120.0  # until a process that has not said anything is given up


def start(folders: Folders, name: str, given: dict[str, Any]) -> Path:
    """Begin a training; returns its folder.

    Args:
        folders: what is allowed.
        name: of the run.
        given: settings, as `thermoclaw.train.Settings` has them.

    Raises:
        PathError, RunError: (ValueErrors) a name leads elsewhere, or a setting cannot be meant.
        OSError: the process cannot be started.
    """
    run = folders.new_run(name)
    settings = settings_of({**given, "data": folders.check_data(given.get("data", "digits"))}, source="the form")
    run.mkdir(parents=True)
    _launch(run, arguments(settings.to_json()))
    return run


def go_on(run: Path) -> None:
    """Let a run that was stopped go on from its newest checkpoint; one that goes on already is left alone."""
    if not is_live(state_of(run)):
        _launch(run, ["--resume"])


def stop(run: Path) -> None:
    """Ask a run to stop after its present step."""
    ask_to_stop(run)


def is_asked_to_stop(run: Path) -> bool:
    """Whether a run was asked to stop and has not yet answered."""
    return (run / STOP_FILE).exists()


def arguments(settings: dict[str, Any]) -> list[str]:
    """Settings as the command line has them.

    Example:
        >>> arguments({"lr": 0.1, "steps": None, "amp": True, "augment": False, "export": ["state", "onnx"]})
        ['--lr=0.1', '--amp', '--no-augment', '--export=state', '--export=onnx']
    """
    words = []
    for name, value in settings.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, (list, tuple)):
            words += [f"--{option}={one}" for one in value]
        elif value is not None:
            words.append(f"--{option}={value}")
    return words


def state_of(run: Path) -> dict[str, Any]:
    """What a run says of itself; {"state": ""} for one that was not trained here."""
    told, console = read_status(run), run / CONSOLE
    if told is not None and told["state"] == RUNNING:
        return told
    if console.is_file() and not console.stat().st_size:
        begun = console.stat().st_mtime
        later = told is None or begun > float(told.get("updated", 0))
        if later and time.time() - begun < _PATIENCE_S:
            left = {name: value for name, value in (told or {}).items() if name not in ("error", "phase", "eta_s")}
            return {**left, "state": STARTING}
    if told is None and console.is_file():
        return {"state": "failed", "error": console_end(run) or "the process ended without a word"}
    return told or {"state": ""}


def is_live(told: dict[str, Any]) -> bool:
    """Whether there is more to come."""
    return told["state"] in (RUNNING, STARTING)


def console_end(run: Path, most: int = 4000) -> str:
    """The last of what the process printed."""
    try:
        with open(run / CONSOLE, "rb") as handle:
            handle.seek(0, 2)
            handle.seek(max(handle.tell() - most, 0))
            return handle.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _launch(run: Path, words: list[str]) -> None:
    command = [sys.executable, "-m", "thermoclaw", "train", f"--out={run}", "--no-color", *words]
    with open(run / CONSOLE, "wb") as console:
        subprocess.Popen(  # it outlives this process on purpose
            command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT, start_new_session=True
        )
