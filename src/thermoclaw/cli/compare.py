"""`thermoclaw compare`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thermoclaw.cli.arguments import RUN, add_output
from thermoclaw.cli.exits import FOUND, OK

if TYPE_CHECKING:
    from thermoclaw.report.terminal.differences import Differences

MOST_WIDTH = 26  # of a cell


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    compare = commands.add_parser(
        "compare",
        help="what differs between runs, where they part, which is healthier",
        description="Compares runs with the first of them. Exits 1 where a later run has a finding to act on that the "
        "first has not, 0 otherwise. The picture needs the extra `viz`.",
    )
    compare.add_argument("paths", metavar="RUN", nargs="+", help=f"{RUN}; the first is the reference")
    compare.add_argument("-o", "--output", metavar="FILE", help="also draw them side by side: .png, .pdf or .svg")
    add_output(compare)
    compare.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from thermoclaw.diagnosis.report import diagnose
    from thermoclaw.report.terminal.differences import differences
    from thermoclaw.runs import load

    if len(arguments.paths) < 2:
        raise ValueError("name at least two runs to compare: thermoclaw compare RUN RUN")
    records = [load(path) for path in arguments.paths]
    labels = labels_of(arguments.paths)
    found = differences(records, [diagnose(record) for record in records], labels)
    if arguments.output:
        from thermoclaw.report.comparison import compare

        compare(records, labels=labels, save_path=arguments.output, show=False)
    if arguments.json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
    elif arguments.quiet:
        print(found.healthier)
    else:
        print(told(found, color=_wants_color(arguments)))
    return FOUND if found.is_worse else OK


def _wants_color(arguments: argparse.Namespace) -> bool:
    from thermoclaw.lab.console import wants_color

    return wants_color(no_color=arguments.no_color)


def labels_of(paths: Sequence[str]) -> list[str]:
    """A short name for each path: its last part, or as many of its parts as tell it from the others.

    >>> labels_of(["runs/a", "runs/b.npz"]), labels_of(["old/a", "new/a"]), labels_of(["a", "a"])
    (['a', 'b'], ['old/a', 'new/a'], ['a', 'a (2)'])
    """
    parts = [Path(os.path.abspath(path)).with_suffix("").parts for path in paths]
    length = 1
    while len({one[-length:] for one in parts}) < len(set(parts)):
        length += 1
    labels: list[str] = []
    for one in parts:
        label, count = "/".join(one[-length:]), 2
        while label in labels:
            label, count = f"{'/'.join(one[-length:])} ({count})", count + 1
        labels.append(label)
    return labels


def told(found: Differences, *, color: bool = False) -> str:
    """The comparison for a terminal."""
    from thermoclaw.lab.console import paint
    from thermoclaw.wording import one_line

    parts = [_outcomes(found), _settings(found), "\n".join(found.layers), _partings(found)]
    worse = "red" if found.is_worse else "green"
    return "\n\n".join([*(part for part in parts if part), paint(one_line(found.healthier), worse, enabled=color)])


def _outcomes(found: Differences) -> str:
    from thermoclaw.lab.console import table
    from thermoclaw.wording import number

    rows = [
        [
            _cell(one.label),
            one.optimizer,
            f"{one.steps:,}",
            number(one.loss_first),
            number(one.loss_last),
            number(one.loss_least),
            "yes" if one.report.healthy else "no",
        ]
        for one in found.outcomes
    ]
    text = table(["run", "optimizer", "steps", "loss at first", "at the end", "lowest", "healthy"], rows)
    ill = [f"{_cell(one.label)}: {one.verdict}" for one in found.outcomes if not one.report.healthy]
    return "\n".join([text, *ill])


def _settings(found: Differences) -> str:
    from thermoclaw.lab.console import table

    if not found.settings:
        return "The settings are the same."
    heads = ["what differs", *(_cell(one.label) for one in found.outcomes)]
    return table(heads, [[_cell(name), *map(_cell, values)] for name, values in found.settings.items()])


def _partings(found: Differences) -> str:
    from thermoclaw.lab.console import table
    from thermoclaw.report.terminal.differences import QUANTITIES

    labels = [_cell(one.label) for one in found.outcomes]
    rows = [
        [name, *("–" if at is None else f"{at:,.0f}" for at in found.partings[key][1:])]
        for key, name, _ in QUANTITIES
        if any(at is not None for at in found.partings[key])
    ]
    if not rows:
        return f"No run parts from {labels[0]} by more than its noise."
    lines = [table([f"parts from {labels[0]} at step", *labels[1:]], rows)]
    for label, layers in zip(labels[1:], found.layer_partings, strict=True):
        if layers:
            where = ", ".join(f"{_cell(name)} (step {at:,.0f})" for name, at in layers)
            lines.append(f"First layers of {label} whose σ parts: {where}")
    return "\n".join(lines)


def _cell(text: str) -> str:
    from thermoclaw.wording import short_name

    return short_name(text, MOST_WIDTH)
