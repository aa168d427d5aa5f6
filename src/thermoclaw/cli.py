"""The command line: `thermoclaw demo`, `validate`, `diagnose`. Each command imports what it needs when it runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence

from thermoclaw.version import __version__

OK, FOUND, WRONG = 0, 1, 2


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
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        print("thermoclaw: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return OK
    except (OSError, ValueError) as error:  # RecordError is a ValueError
        print(f"thermoclaw {arguments.command}: {error}", file=sys.stderr)
        return WRONG


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="thermoclaw",
        description="Says why a PyTorch training run misbehaves, where, since when, and what to change.",
    )
    parser.add_argument("--version", action="version", version=f"thermoclaw {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="watch it catch a dying run, apply the remedy and prove it (about 90 s)")
    demo.add_argument("--seeds", type=_at_least(1), default=1, metavar="N", help="replicate from N seeds (default 1)")
    demo.add_argument(
        "--out", default="thermoclaw-demo", metavar="DIR", help="folder for results (default %(default)s)"
    )
    demo.add_argument("--steps", type=_at_least(50), metavar="N", help="optimizer steps of each arm (default 400)")
    demo.add_argument("--quiet", action="store_true", help="print the tables and the verdict only")
    demo.add_argument("--no-color", action="store_true", help="no color, even on a terminal")
    demo.set_defaults(run=_demo)

    validate = commands.add_parser("validate", help="check the measurements and the diagnoses against known truths")
    validate.add_argument("--device", default="cpu", help="where to train (default %(default)s)")
    validate.add_argument("--scale", choices=("laptop", "full"), default="laptop", help="default %(default)s")
    validate.add_argument("--json", metavar="FILE", help="also write the table to FILE")
    validate.add_argument("--quiet", action="store_true", help="no progress bar")
    validate.add_argument("--no-color", action="store_true", help="no color, even on a terminal")
    validate.set_defaults(run=_validate)

    diagnose = commands.add_parser("diagnose", help="print the report of a saved run")
    diagnose.add_argument("path", metavar="PATH", help="a record that Observer.save or a callback wrote, or its folder")
    diagnose.add_argument("--json", action="store_true", help="as JSON")
    diagnose.set_defaults(run=_diagnose)
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    """A converter that argparse reports by its message."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return value

    return convert


def _demo(arguments: argparse.Namespace) -> int:
    from thermoclaw.demo import run_demo

    return run_demo(
        num_seeds=arguments.seeds,
        out=arguments.out,
        steps=arguments.steps,
        quiet=arguments.quiet,
        no_color=arguments.no_color,
    )


def _validate(arguments: argparse.Namespace) -> int:
    from thermoclaw.validate import run_validation

    return run_validation(
        device=arguments.device,
        scale=arguments.scale,
        json_path=arguments.json,
        quiet=arguments.quiet,
        no_color=arguments.no_color,
    )


def _diagnose(arguments: argparse.Namespace) -> int:
    from thermoclaw.diagnosis.report import diagnose

    report = diagnose(arguments.path)
    print(json.dumps(report.to_json(), indent=2, ensure_ascii=False) if arguments.json else report)
    return OK if report.healthy else FOUND
