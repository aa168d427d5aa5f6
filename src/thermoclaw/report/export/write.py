"""Writes a record for other programs: one file, whole or not at all, a piece at a time."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from thermoclaw.files import atomic_file
from thermoclaw.record import Record
from thermoclaw.record.tables import name_cell
from thermoclaw.report.export.table import LongTable, Piece


def export(
    record: Record,
    path: str | os.PathLike[str],
    *,
    quantities: Sequence[str] = (),
    layers: Sequence[str] = (),
) -> Path:
    """Write a record in the format that the path's suffix names.

    `.csv`, `.parquet` and `.json` have a row for each step and layer and a column for each quantity, those of the run
    repeated for each layer; what is not defined is empty, or null. `.npz` is the record itself.

    Args:
        record: what to write.
        path: where to.
        quantities: names or aliases of `thermoclaw.quantities`; all by default.
        layers: names, in which * stands for anything; all by default.

    Returns:
        The path.

    Raises:
        ValueError: there is no such format, quantity or layer.
        ImportError: Parquet needs the extra `parquet`.
        OSError: the file cannot be written.
    """
    target = Path(path)
    if target.suffix not in FORMATS:
        raise ValueError(f"{target.name!r}: choose a name that ends in one of {', '.join(FORMATS)}")
    if target.suffix == ".npz" and (quantities or layers):
        raise ValueError("a .npz file holds the whole record: export to .csv or .parquet to choose from it")
    FORMATS[target.suffix](LongTable(record, quantities, layers), target)
    return target


def _to_csv(table: LongTable, target: Path) -> None:
    names = [name_cell(layer.name) for layer in table.layers]
    types = [layer.ltype for layer in table.layers]
    with atomic_file(target, "w") as handle:
        writer = csv.writer(handle)
        writer.writerow(table.heads)
        for piece in table.pieces():
            columns = [[_or(value, "") for value in piece.columns[name].tolist()] for name in table.names]
            for step, place, *values in zip(piece.steps.tolist(), piece.places.tolist(), *columns, strict=True):
                writer.writerow((step, names[place], types[place], *values))


def _to_json(table: LongTable, target: Path) -> None:
    head = {
        "meta": table.record.meta,
        "events": table.record.events,
        "layers": [asdict(layer) for layer in table.layers],
        "columns": table.heads,
    }
    text = json.dumps(_finite(head), default=str, allow_nan=False)
    with atomic_file(target, "w") as handle:
        handle.write(text[:-1] + ', "rows": [')
        before = "\n"
        for piece in table.pieces():
            for row in _json_rows(table, piece):
                handle.write(before + row)
                before = ",\n"
        handle.write("\n]}\n")


def _json_rows(table: LongTable, piece: Piece) -> list[str]:
    names = [layer.name for layer in table.layers]
    types = [layer.ltype for layer in table.layers]
    columns = [[_finite(value) for value in piece.columns[name].tolist()] for name in table.names]
    return [
        json.dumps((step, names[place], types[place], *values))
        for step, place, *values in zip(piece.steps.tolist(), piece.places.tolist(), *columns, strict=True)
    ]


def _to_parquet(table: LongTable, target: Path) -> None:
    from thermoclaw.report.export.parquet import write_parquet

    write_parquet(table, target)


def _or(value: float, other: Any) -> Any:
    return other if value != value else value


def _finite(value: Any) -> Any:
    """JSON has no numbers that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(held) for held in value]
    return value


def _to_npz(table: LongTable, target: Path) -> None:
    table.record.save(target)


FORMATS: dict[str, Callable[[LongTable, Path], None]] = {
    ".csv": _to_csv,
    ".parquet": _to_parquet,
    ".json": _to_json,
    ".npz": _to_npz,
}
"""What a path may end in."""
