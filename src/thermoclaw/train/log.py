"""The run's log: a row for each point and for each epoch, in a CSV file that a run that goes on continues. No torch."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from thermoclaw.files import atomic_file
from thermoclaw.integrations.scalars import PREFIX, meanings

FILE = "log.csv"
_MOST_LATE = 1 << 20  # characters that wait for a disk
HEADS = ("step", "epoch", "lr", "loss", "val_loss", "val_accuracy")
COLUMNS = (*HEADS, *(name.removeprefix(PREFIX) for name in meanings()))


class Log:
    """Appends rows; what stands after the step that a run goes on from is dropped.

    Args:
        folder: of the run.
        step: optimizer steps made before.
    """

    def __init__(self, folder: Path, *, step: int = 0) -> None:
        self._path, self._late = folder / FILE, ""
        kept = [row for row in read_log(folder) if step and row["step"] <= step]
        with atomic_file(self._path, "w") as handle:
            writer = csv.DictWriter(handle, COLUMNS)
            writer.writeheader()
            writer.writerows({name: _cell(value) for name, value in row.items()} for row in kept)

    def add(self, **values: Any) -> None:
        """Append a row; columns that are not given stay empty. On disk when this returns, if the disk is there."""
        text = io.StringIO()
        row = {name.removeprefix(PREFIX): _cell(value) for name, value in values.items()}
        csv.DictWriter(text, COLUMNS).writerow(row)
        self._late += text.getvalue()
        try:
            with open(self._path, "a", encoding="utf-8", newline="") as handle:
                handle.write(self._late)
        except OSError as error:  # a disk that is full or away for a moment ends no training
            if len(self._late) > _MOST_LATE:
                raise OSError(f"{self._path} cannot be written: {error.strerror or error}") from error
        else:
            self._late = ""


def read_log(folder: Path) -> list[dict[str, float]]:
    """The rows of a log, numbers alone; a line that is not whole is left out."""
    try:
        text = (folder / FILE).read_text(encoding="utf-8")
    except OSError:
        return []
    found = []
    for row in csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])):
        try:
            found.append({name: float(value) for name, value in row.items() if name and value})
        except (TypeError, ValueError):
            continue
    return [row for row in found if "step" in row]


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return value
