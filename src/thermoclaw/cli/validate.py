"""`thermoclaw validate`."""

from __future__ import annotations

import argparse
from typing import Any


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    validate = commands.add_parser("validate", help="check the measurements and the diagnoses against known truths")
    validate.add_argument("--device", default="cpu", help="where to train (default %(default)s)")
    validate.add_argument("--scale", choices=("laptop", "full"), default="laptop", help="default %(default)s")
    validate.add_argument("--json", metavar="FILE", help="also write the table to FILE")
    validate.add_argument("--quiet", action="store_true", help="no progress bar")
    validate.add_argument("--no-color", action="store_true", help="no color, even on a terminal")
    validate.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from thermoclaw.validate import run_validation

    return run_validation(
        device=arguments.device,
        scale=arguments.scale,
        json_path=arguments.json,
        quiet=arguments.quiet,
        no_color=arguments.no_color,
    )
