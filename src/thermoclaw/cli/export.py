"""`thermoclaw export`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from thermoclaw.cli.arguments import RUN, add_output, at_least
from thermoclaw.cli.exits import OK


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    export = commands.add_parser(
        "export",
        help="a run as CSV, Parquet, JSON or a record file",
        description="Writes a row for each step and layer and a column for each quantity (.csv, .json, .parquet with "
        "the extra `parquet`), or the record itself (.npz). Exits 0 when it was written.",
    )
    export.add_argument("path", metavar="RUN", help=RUN)
    export.add_argument("-o", "--output", required=True, metavar="FILE", help="ends in .csv, .parquet, .json or .npz")
    export.add_argument("--quantities", metavar="A,B,…", default="", help="names of columns (default: all)")
    export.add_argument(
        "--layers", metavar="NAME", action="append", default=[], help="* stands for anything; repeat it"
    )
    export.add_argument("--start", type=at_least(0), metavar="STEP", help="the first step")
    export.add_argument("--stop", type=at_least(0), metavar="STEP", help="the last step")
    add_output(export, json_help="say what was written as JSON", quiet_help="print nothing")
    export.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from thermoclaw.report.export import export
    from thermoclaw.runs import load

    record = load(arguments.path)
    if arguments.start is not None or arguments.stop is not None:
        record = record.rows(start=arguments.start, stop=None if arguments.stop is None else arguments.stop + 1)
    quantities = [name.strip() for name in arguments.quantities.split(",") if name.strip()]
    written = export(record, arguments.output, quantities=quantities, layers=arguments.layers)
    size = written.stat().st_size
    if arguments.json:
        told = {"path": str(written), "steps": len(record), "layers": len(record.layers), "bytes": size}
        print(json.dumps(told, ensure_ascii=False))
    elif not arguments.quiet:
        print(f"{written}: {len(record):,} steps, {len(record.layers):,} layers, {size / 1e6:.1f} MB")
    return OK
