"""What a finished run leaves in its folder. One file that cannot be written does not keep the others from it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from thermoclaw.diagnosis.report import Report
from thermoclaw.record import Record

logger = logging.getLogger("thermoclaw")

RECORD_FILE = "thermoclaw_record.npz"
CSV_FILE = "thermoclaw.csv"
SPLIT_CSV_FILE = "thermoclaw_entropy_split.csv"
TEXT_FILE = "thermoclaw_report.txt"
JSON_FILE = "thermoclaw_report.json"
DASHBOARD_FILE = "thermoclaw_dashboard.png"
SPLIT_FILE = "thermoclaw_entropy_split.png"


def every_nth(record: Record, every: int) -> Record:
    """The rows of every n-th step, and the last row."""
    keep = record.steps % every == 0
    keep[-1:] = True
    return Record(
        record.steps[keep],
        record.layers,
        record.layer_values[keep],
        record.run_values[keep],
        record.meta,
        record.events,
    )


def write_outputs(
    record: Record,
    report: Report,
    folder: str | os.PathLike[str],
    *,
    csv_every: int = 1,
    split: bool = True,
    plots: bool = True,
) -> list[Path]:
    """Write record, tables, report and pictures of a run.

    Args:
        record: the run.
        report: its diagnosis.
        folder: where to; it is made if need be.
        csv_every: the tables have a row for every so many steps (the record has them all).
        split: whether to write the entropy split's own table and picture.
        plots: whether to draw; without matplotlib that is said once and left out.

    Returns:
        The files that were written. What could not be written is logged with its reason.
    """
    folder = Path(folder)
    table = every_nth(record, csv_every)
    jobs: dict[str, Callable[[Path], object]] = {
        RECORD_FILE: record.save,
        TEXT_FILE: report.save,
        JSON_FILE: report.save,
        CSV_FILE: table.to_csv,
    }
    if split:
        jobs[SPLIT_CSV_FILE] = table.split_to_csv
    if plots:
        jobs |= _pictures(record, report, split=split)
    written = []
    for name, write in jobs.items():
        try:
            write(folder / name)
        except OSError as error:
            logger.warning("thermoclaw: %s was not written: %s", name, error)
        except Exception:
            logger.exception("thermoclaw: %s was not written because of an internal error", name)
        else:
            written.append(folder / name)
    return written


def _pictures(record: Record, report: Report, *, split: bool) -> dict[str, Callable[[Path], object]]:
    try:
        from thermoclaw.report.plots import plot_dashboard, plot_entropy_split
    except ImportError as error:
        logger.warning("thermoclaw: no pictures: %s", error)
        return {}
    jobs: dict[str, Callable[[Path], object]] = {
        DASHBOARD_FILE: lambda path: plot_dashboard(record, findings=report.findings, save_path=path)
    }
    if split:
        jobs[SPLIT_FILE] = lambda path: plot_entropy_split(record, save_path=path)
    return jobs
