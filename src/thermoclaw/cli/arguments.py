"""What commands share: converters, whose messages argparse reports, and options that mean the same everywhere."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

RUN = "a run directory, also while it grows, or a saved record"


def at_least(least: int) -> Callable[[str], int]:
    """A whole number that is not below the least."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return value

    return convert


def positive(text: str) -> float:
    """A finite number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def add_output(
    parser: argparse.ArgumentParser, *, json_help: str = "as JSON", quiet_help: str | None = "print the verdict only"
) -> None:
    """The options of every command that prints: --json, --quiet (but for None) and --no-color."""
    parser.add_argument("--json", action="store_true", help=json_help)
    if quiet_help is not None:
        parser.add_argument("--quiet", action="store_true", help=quiet_help)
    parser.add_argument("--no-color", action="store_true", help="no color, even on a terminal (NO_COLOR does the same)")
