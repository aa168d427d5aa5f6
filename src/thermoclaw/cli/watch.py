"""`thermoclaw watch`."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thermoclaw.cli.arguments import RUN, add_output, positive
from thermoclaw.cli.exits import FOUND, OK

if TYPE_CHECKING:
    from thermoclaw.diagnosis.report import Report
    from thermoclaw.report.terminal.glance import Glance

DIAGNOSE_SHARE = 5  # of the time, rules take a fifth at most


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    watch = commands.add_parser(
        "watch",
        help="a run in the terminal, live while it grows",
        description="Shows loss, verdict, findings, worst layers and how the main quantities went, and follows the run "
        "while it grows. Ends when the run ends, or with Ctrl-C; the run is never touched. Exits 0 for a healthy run, "
        "1 for one with findings to act on. Needs the extra `terminal`, except with --json.",
    )
    watch.add_argument("path", metavar="RUN", help=RUN)
    watch.add_argument("--once", action="store_true", help="show the run as it is now, and exit")
    watch.add_argument("--every", type=positive, default=2.0, metavar="SECONDS", help="between looks (default 2)")
    watch.add_argument("--width", type=int, metavar="COLUMNS", help="by default that of the terminal")
    add_output(watch, json_help="one line of JSON for each look instead of pictures", quiet_help=None)
    watch.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    follower = Follower(Path(arguments.path), waits=not arguments.once)
    if arguments.json:
        return _tell(follower, once=arguments.once, every_s=arguments.every)
    return _show(follower, arguments)


class Follower:
    """Looks at a run again and again.

    Args:
        path: of the run.
        waits: for a run that is not there yet.
    """

    def __init__(self, path: Path, *, waits: bool) -> None:
        self.path, self._waits = path, waits
        self._reader: Any = None
        self._report: Report | None = None
        self._seen_rows, self._next_s = -1, -math.inf

    def look(self) -> Glance | None:
        """The run now; None while there is nothing yet."""
        from thermoclaw.record import RecordError

        try:
            return self._look()
        except (FileNotFoundError, RecordError) as error:
            if self._waits and (isinstance(error, FileNotFoundError) or "holds no rows yet" in str(error)):
                return None
            raise

    def _look(self) -> Glance:
        from thermoclaw.report.terminal.glance import glance
        from thermoclaw.runs.reader import Run, RunReader, find_run, load

        if self._reader is None:
            found = find_run(self.path)
            self._reader = RunReader(found) if found.is_dir() else None
        run = self._reader.read() if self._reader is not None else Run(load(self.path), is_closed=True)
        report = self._diagnosed(run.record, is_last=run.is_closed)
        return glance(run.record, report, is_closed=run.is_closed, marks=run.marks, now_s=time.time())

    def _diagnosed(self, record: Any, *, is_last: bool) -> Report:
        """The diagnosis, or the last one where asking the rules again would take too much of the time."""
        from thermoclaw.diagnosis.report import diagnose

        began = time.monotonic()
        is_new = record.num_steps != self._seen_rows
        if self._report is None or (is_new and (is_last or began >= self._next_s)):
            self._report, self._seen_rows = diagnose(record), record.num_steps
            self._next_s = time.monotonic() + DIAGNOSE_SHARE * (time.monotonic() - began)
        return self._report


def _looks(follower: Follower, *, once: bool, every_s: float) -> Iterator[Glance | None]:
    """What is there, until the run has ended."""
    while True:
        seen = follower.look()
        yield seen
        if once or (seen is not None and seen.state == "ended"):
            return
        time.sleep(every_s)


def _exit_of(seen: Glance | None) -> int:
    return OK if seen is None or seen.report.healthy else FOUND


def _tell(follower: Follower, *, once: bool, every_s: float) -> int:
    last = None
    with contextlib.suppress(KeyboardInterrupt):
        for seen in _looks(follower, once=once, every_s=every_s):
            if seen is not None:
                print(json.dumps(seen.to_json(), ensure_ascii=False), flush=True)
            last = seen or last
    return _exit_of(last)


def _show(follower: Follower, arguments: argparse.Namespace) -> int:
    from thermoclaw.report.terminal.rich_frame import Live, console, frame, message

    out = console(no_color=arguments.no_color, width=arguments.width)
    plain = not (sys.stdout.encoding or "").lower().startswith("utf")
    name = str(follower.path)
    if arguments.once:
        seen = follower.look()
        assert seen is not None
        out.print(frame(seen, name=name, width=out.width, plain=plain))
        return _exit_of(seen)
    last = None
    hint = "Ctrl-C ends this view, not the run"
    live = Live(console=out, auto_refresh=False, vertical_overflow="crop")
    with contextlib.suppress(KeyboardInterrupt), live:
        for seen in _looks(follower, once=False, every_s=arguments.every):
            last = seen or last
            if seen is None:
                live.update(message(f"waiting for {name} …"), refresh=True)
            else:
                told = "" if seen.state == "ended" else hint
                live.update(frame(seen, name=name, width=out.width, plain=plain, hint=told), refresh=True)
    return _exit_of(last)
