"""`thermoclaw preflight`: how to make the check, which only the training program itself can make."""

from __future__ import annotations

import argparse
import json
from typing import Any

from thermoclaw.cli.arguments import add_output
from thermoclaw.cli.exits import OK

WHY = """\
preflight checks hyper-parameters, initial weights and, where it gets batches, a few trial steps before the first one.
It needs your model, optimizer and number of steps as objects. Running a script up to its first step would do whatever
that script does on the way (make folders, start trackers, join processes) and would still not know which batches and
which schedule are to come. So the call stands in your program, after the optimizer is made, and leaves everything
bitwise as it was:
"""
CALL = """\
from thermoclaw import preflight

report = preflight(model, optimizer, total_steps=total_steps)
print(report)

# with a loss and a few batches it sees more: gradients, noise and trial steps that are taken back
report = preflight(model, optimizer, total_steps=total_steps, loss_fn=loss_fn, batches=batches)
"""


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    preflight = commands.add_parser(
        "preflight",
        help="how to check a run before its first step",
        description="Says how to check a run before its first step, from Python. Exits 0.",
    )
    add_output(preflight, json_help="the call as JSON", quiet_help="print the call only")
    preflight.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.json:
        print(json.dumps({"why": WHY, "call": CALL}))
    else:
        print(CALL if arguments.quiet else f"{WHY}\n{CALL}", end="")
    return OK
