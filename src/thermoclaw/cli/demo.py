"""`thermoclaw demo`."""

from __future__ import annotations

import argparse
from typing import Any

from thermoclaw.cli.arguments import at_least


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    demo = commands.add_parser("demo", help="watch it catch a dying run, apply the remedy and prove it (about 90 s)")
    demo.add_argument("--seeds", type=at_least(1), default=1, metavar="N", help="replicate from N seeds (default 1)")
    demo.add_argument(
        "--out", default="thermoclaw-demo", metavar="DIR", help="folder for results (default %(default)s)"
    )
    demo.add_argument("--steps", type=at_least(50), metavar="N", help="optimizer steps of each arm (default 400)")
    demo.add_argument("--quiet", action="store_true", help="print the tables and the verdict only")
    demo.add_argument("--no-color", action="store_true", help="no color, even on a terminal")
    demo.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from thermoclaw.demo import run_demo

    return run_demo(
        num_seeds=arguments.seeds,
        out=arguments.out,
        steps=arguments.steps,
        quiet=arguments.quiet,
        no_color=arguments.no_color,
    )
