"""The command line: `thermoclaw COMMAND`. A module here is a command, and imports what it needs when it runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from thermoclaw.cli import (
    app,
    compare,
    completion,
    demo,
    diagnose,
    export,
    preflight,
    report,
    train,
    validate,
    watch,
)
from thermoclaw.cli.exits import INTERRUPTED, MEANINGS, OK, WRONG
from thermoclaw.cli.parser import Parser
from thermoclaw.version import __version__

COMMANDS = (  # in the order of the help
    demo,
    validate,
    preflight,
    watch,
    diagnose,
    compare,
    report,
    export,
    train,
    app,
    completion,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments, those of the process by default.

    Returns:
        0 for success or a healthy run; 1 for a demo or validation that failed, or a run with findings to act on; 2 for
        wrong use, with one line on standard error; 130 when interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that knows no σ shows a question mark
            stream.reconfigure(errors="replace")
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        print("thermoclaw: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return OK
    except (ImportError, OSError, ValueError) as error:  # RecordError is a ValueError, a missing extra an ImportError
        print(f"thermoclaw {arguments.command}: {error}", file=sys.stderr)
        return WRONG


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    whole = Parser(
        prog="thermoclaw",
        description="Says why a PyTorch training run misbehaves, where, since when, and what to change.",
        epilog=f"exit status: {', '.join(f'{status} {meaning}' for status, meaning in MEANINGS.items())}",
    )
    whole.add_argument("--version", action="version", version=f"thermoclaw {__version__}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    return whole
