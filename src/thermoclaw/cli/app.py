"""`thermoclaw app`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from thermoclaw.cli.arguments import at_least

ADDRESS = "127.0.0.1"


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    app = commands.add_parser(
        "app",
        help="train and watch runs in the browser",
        description="A page at 127.0.0.1, which other machines cannot reach: start and stop trainings, watch them, "
        "look at any run under --runs. It looks at nothing outside of the folders given here.",
    )
    app.add_argument("--runs", default="runs", metavar="DIR", help="where runs are, and new ones go (%(default)s)")
    app.add_argument(
        "--data", action="append", default=[], metavar="DIR", help="where data sets are: CIFAR-10, folders, ZIP files"
    )
    app.add_argument("--port", type=at_least(1024), default=8501, metavar="N", help="(%(default)s)")
    app.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from thermoclaw.app import needs  # noqa: F401  (what is missing is said here)
    from thermoclaw.app.folders import VARIABLE, Folders

    folders = Folders(Path(arguments.runs).resolve(), tuple(Path(folder).resolve() for folder in arguments.data))
    missing = [folder for folder in folders.data if not folder.is_dir()]
    if missing:
        raise ValueError(f"--data {missing[0]}: there is no such folder")
    if folders.runs.exists() and not folders.runs.is_dir():
        raise ValueError(f"--runs {folders.runs} is a file: give a folder")
    folders.runs.mkdir(parents=True, exist_ok=True)
    where = f"http://{ADDRESS}:{arguments.port}"
    print(f"Thermoclaw: {where} (this machine alone; Ctrl-C ends the page, not the trainings)", flush=True)
    environment = {**os.environ, VARIABLE: folders.to_environment()}
    words = command(arguments.port)
    if os.name == "posix":  # the page becomes this process, so that whoever ends the one ends the other
        os.execve(words[0], words, environment)
    return subprocess.run(words, env=environment, check=False).returncode


def command(port: int) -> list[str]:
    """How Streamlit is started: for this machine alone, nothing sent anywhere; no file of settings changes that."""
    import thermoclaw.app
    from thermoclaw.app.folders import UPLOAD_MB

    page = Path(thermoclaw.app.__file__).with_name("page.py")
    settings = {
        "server.address": ADDRESS,
        "server.port": port,
        "server.headless": "true",
        "server.enableCORS": "true",
        "server.enableXsrfProtection": "true",
        "server.fileWatcherType": "none",
        "server.maxUploadSize": UPLOAD_MB,
        "server.enableStaticServing": "false",
        "browser.gatherUsageStats": "false",
        "browser.serverAddress": ADDRESS,
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "theme.light.primaryColor": "#0B6FA4",
        "theme.dark.primaryColor": "#56B4E9",
    }
    return [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        str(page),
        *(f"--{name}={value}" for name, value in settings.items()),
    ]
