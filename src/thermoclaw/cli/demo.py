"""`thermoclaw demo`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

from thermoclaw.cli.arguments import add_output, at_least


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    demo = commands.add_parser("demo", help="watch it catch a dying run, apply the remedy and prove it (about 90 s)")
    demo.add_argument("--seeds", type=at_least(1), default=1, metavar="N", help="replicate from N seeds (default 1)")
    demo.add_argument(
        "--out", default="thermoclaw-demo", metavar="DIR", help="folder for results (default %(default)s)"
    )
    demo.add_argument("--steps", type=at_least(50), metavar="N", help="optimizer steps of each arm (default 400)")
    add_output(demo, json_help="print the results as JSON, the rest on standard error", quiet_help="less words")
    demo.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from thermoclaw.demo import run_demo

    with contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext():
        status = run_demo(
            num_seeds=arguments.seeds,
            out=arguments.out,
            steps=arguments.steps,
            quiet=arguments.quiet,
            no_color=arguments.no_color,
        )
    if arguments.json:
        print(Path(arguments.out, "results.json").read_text(encoding="utf-8"))
    return status
