"""`thermoclaw validate`."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

STDOUT = "-"


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    validate = commands.add_parser("validate", help="check the measurements and the diagnoses against known truths")
    validate.add_argument("--device", default="cpu", help="where to train (default %(default)s)")
    validate.add_argument("--scale", choices=("laptop", "full"), default="laptop", help="default %(default)s")
    validate.add_argument(
        "--json", metavar="FILE", nargs="?", const=STDOUT, help="the table as JSON: printed, or written to FILE"
    )
    validate.add_argument("--quiet", action="store_true", help="no progress bar")
    validate.add_argument(
        "--no-color", action="store_true", help="no color, even on a terminal (NO_COLOR does the same)"
    )
    validate.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.json != STDOUT:
        return _validate(arguments, arguments.json)
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "table.json")
        with contextlib.redirect_stdout(sys.stderr):
            status = _validate(arguments, str(table))
        print(table.read_text(encoding="utf-8"))
    return status


def _validate(arguments: argparse.Namespace, json_path: str | None) -> int:
    from thermoclaw.validate import run_validation

    return run_validation(
        device=arguments.device,
        scale=arguments.scale,
        json_path=json_path,
        quiet=arguments.quiet,
        no_color=arguments.no_color,
    )
