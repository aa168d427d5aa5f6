"""`thermoclaw report`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from thermoclaw.cli.exits import OK


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    report = commands.add_parser(
        "report",
        help="write a run as one HTML page that opens anywhere, offline",
        description="Writes verdict, findings and interactive pictures of a run as one HTML file that needs no network "
        "and no other file. Exits 0 when it was written, whatever it says.",
    )
    report.add_argument("path", metavar="RUN", help="a run directory, also while it grows, or a saved record")
    report.add_argument("-o", "--output", default="report.html", metavar="FILE", help="default %(default)s")
    report.add_argument("--title", metavar="TEXT", help="title of the page (by default the name of the run)")
    report.add_argument("--open", action="store_true", help="open it in the browser")
    report.add_argument("--json", action="store_true", help="say what was written as JSON")
    report.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from thermoclaw.diagnosis.report import diagnose
    from thermoclaw.report.html import write_html
    from thermoclaw.runs import load

    record = load(arguments.path)
    report = diagnose(record)
    title = arguments.title or Path(arguments.path).resolve().stem
    written = write_html(record, arguments.output, findings=report.findings, title=title)
    if arguments.json:
        codes = [finding.code for finding in report.findings]
        print(json.dumps({"path": str(written), "healthy": report.healthy, "findings": codes}, ensure_ascii=False))
    else:
        print(report.headline)
        print(f"Written to {written}, {written.stat().st_size / 1e6:.1f} MB: open it in any browser.")
    if arguments.open:
        import webbrowser

        webbrowser.open(written.resolve().as_uri())
    return OK
