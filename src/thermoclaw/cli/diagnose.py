"""`thermoclaw diagnose`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from thermoclaw.cli.exits import FOUND, OK


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    diagnose = commands.add_parser("diagnose", help="print the report of a saved run")
    diagnose.add_argument("path", metavar="PATH", help="a record that Observer.save or a callback wrote, or its folder")
    diagnose.add_argument("--json", action="store_true", help="as JSON")
    diagnose.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from thermoclaw.diagnosis.report import diagnose

    report = diagnose(arguments.path)
    print(json.dumps(report.to_json(), indent=2, ensure_ascii=False) if arguments.json else report)
    return OK if report.healthy else FOUND
