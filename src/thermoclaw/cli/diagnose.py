"""`thermoclaw diagnose`."""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

from thermoclaw.cli.arguments import RUN, add_output
from thermoclaw.cli.exits import FOUND, OK

_COLORS = {"HIGH": "red", "MEDIUM": "yellow"}


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    diagnose = commands.add_parser(
        "diagnose",
        help="print the report of a run",
        description="Says what is failing, where, since when, why, and what to change. Exits 0 for a healthy run, 1 "
        "for one with findings to act on.",
    )
    diagnose.add_argument("path", metavar="RUN", help=RUN)
    add_output(diagnose, quiet_help="print the verdict only")
    diagnose.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from thermoclaw.diagnosis.report import diagnose
    from thermoclaw.lab.console import wants_color

    report = diagnose(arguments.path)
    if arguments.json:
        print(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    elif arguments.quiet:
        print(report.headline)
    else:
        print(_painted(str(report), enabled=wants_color(no_color=arguments.no_color)))
    return OK if report.healthy else FOUND


def _painted(text: str, *, enabled: bool) -> str:
    """The heads of urgent findings in color."""
    from thermoclaw.lab.console import paint

    return re.sub(
        r"^\d+\. \[(HIGH|MEDIUM)\].*$",
        lambda head: paint(head[0], _COLORS[head[1]], enabled=enabled),
        text,
        flags=re.MULTILINE,
    )
