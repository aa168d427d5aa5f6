"""`thermoclaw train`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from thermoclaw.cli.arguments import at_least
from thermoclaw.cli.exits import FOUND, INTERRUPTED, OK


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    train = commands.add_parser(
        "train",
        help="train a ResNet on images, watched",
        description="Train a ResNet on images, with live thermodynamics, findings, checkpoints, a report and an "
        "exported model in the folder --out. Ctrl-C leaves a checkpoint; --resume goes on from it, bitwise as if it "
        "had not been stopped.",
    )
    what = train.add_argument_group("what to train")
    what.add_argument("--data", metavar="DATA", help="digits (default), cifar10:PATH, folder:PATH or zip:FILE")
    what.add_argument("--model", help="small (default), resnet18 or resnet50")
    what.add_argument("--image-size", type=at_least(8), metavar="N", help="side of a folder's or a ZIP's images (32)")
    how = train.add_argument_group("how")
    how.add_argument("--epochs", type=at_least(1), metavar="N", help="passes over the training images (10)")
    how.add_argument("--steps", type=at_least(1), metavar="N", help="end after so many optimizer steps")
    how.add_argument("--batch-size", type=at_least(2), metavar="N", help="images a step (128)")
    how.add_argument("--optimizer", help="sgd (default) or adamw")
    how.add_argument("--lr", type=float, metavar="X", help="learning rate (0.05 for sgd, 0.001 for adamw)")
    how.add_argument("--momentum", type=float, metavar="X", help="of sgd (0.9)")
    how.add_argument("--weight-decay", type=float, metavar="X", help="(0.0005)")
    how.add_argument("--schedule", help="cosine (default) or none")
    how.add_argument("--augment", action=argparse.BooleanOptionalAction, help="crop and flip (for cifar10 by default)")
    how.add_argument("--amp", action=argparse.BooleanOptionalAction, help="compute in bfloat16")
    how.add_argument("--device", help="auto (default), cpu, cuda or cuda:N")
    how.add_argument("--seed", type=at_least(0), metavar="N", help="of weights, order and crops (0)")
    files = train.add_argument_group("files")
    files.add_argument("--out", default="runs/train", metavar="DIR", help="the run's folder (default %(default)s)")
    files.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    files.add_argument("--config", metavar="FILE", help="a TOML file with any of these; options given here win")
    files.add_argument("--keep", type=at_least(1), metavar="N", help="checkpoints kept, beside the best (2)")
    files.add_argument("--checkpoint-every", type=at_least(1), metavar="N", help="and one every N steps")
    files.add_argument(
        "--export", action="append", metavar="FORM", help="state, program or onnx; repeat it (default: all that can be)"
    )
    train.add_argument("--json", action="store_true", help="print the outcome as JSON, and nothing else")
    train.add_argument("--quiet", action="store_true", help="print nothing")
    train.add_argument("--no-color", action="store_true", help="no color, even on a terminal")
    train.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from thermoclaw.train.run import train
    from thermoclaw.train.settings import FIELDS, read_toml, settings_of
    from thermoclaw.train.telling import Silent, Terminal

    given = read_toml(arguments.config) if arguments.config else {}
    given = {str(key).replace("-", "_"): value for key, value in given.items()}
    given |= {name: value for name in FIELDS if (value := getattr(arguments, name)) is not None}
    settings = settings_of(given, source=arguments.config or "the command line")
    wanted: Any = {name: getattr(settings, name) for name in given} if arguments.resume else settings
    quiet = arguments.quiet or arguments.json
    outcome = train(
        wanted,
        Path(arguments.out),
        resume=arguments.resume,
        teller=Silent() if quiet else Terminal(no_color=arguments.no_color),
    )
    if arguments.json:
        print(json.dumps(outcome.to_json(), indent=2, ensure_ascii=False))
    if outcome.state == "stopped":
        return INTERRUPTED
    return OK if outcome.report.healthy else FOUND
