"""The record's file: a NumPy `.npz` with a JSON header. Loading one executes nothing."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thermoclaw.files import atomic_file
from thermoclaw.quantities import LAYER_COLUMNS, RUN_COLUMNS
from thermoclaw.record.columns import RecordError, fit_columns
from thermoclaw.record.layer import LayerInfo

if TYPE_CHECKING:
    from thermoclaw.record.record import Record

SCHEMA_VERSION = 1


def save(record: Record, path: str | os.PathLike[str]) -> Path:
    """Write a record, whole or not at all; returns the path, with ".npz" where it had no suffix."""
    target = Path(path)
    if target.suffix != ".npz":
        target = target.with_name(target.name + ".npz")
    header = {
        "schema_version": SCHEMA_VERSION,
        "layers": [asdict(layer) for layer in record.layers],
        "layer_columns": LAYER_COLUMNS,
        "run_columns": RUN_COLUMNS,
        "meta": record.meta,
        "events": record.events,
    }
    text = json.dumps(header, default=str, allow_nan=True)
    with atomic_file(target, "wb") as handle:
        np.savez_compressed(
            handle,
            header=np.frombuffer(text.encode(), dtype=np.uint8),
            steps=np.asarray(record.steps, dtype=np.int64),
            layer_values=record.layer_values,
            run_values=record.run_values,
        )
    return target


def load(kind: type[Record], path: str | os.PathLike[str]) -> Record:
    """Read what `save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: the file may not be read.
        RecordError: the file is no record, is damaged, or was written by a newer version.
    """
    source = _find(Path(path))
    try:
        with open(source, "rb") as handle, np.load(handle, allow_pickle=False) as parts:
            header = json.loads(bytes(parts["header"]).decode())
            return kind(*_fields(source, header, parts))
    except (RecordError, PermissionError):
        raise
    except Exception as error:  # damage shows in zipfile, zlib, struct, json or numpy, as it happens
        raise RecordError(
            f"{source} is not a readable thermoclaw record ({type(error).__name__}: {error}); it may be damaged or "
            "cut short: use another copy"
        ) from error


def _find(source: Path) -> Path:
    """The file that a path stands for: ".npz" may be left out, and a folder with one record stands for it."""
    if not source.exists() and source.with_name(source.name + ".npz").exists():
        return source.with_name(source.name + ".npz")
    if source.is_dir():
        inside = sorted(source.glob("*.npz"))
        if len(inside) != 1:
            raise RecordError(f"{source} is a folder with {len(inside)} .npz files; name one record file")
        return inside[0]
    if not source.exists():
        raise FileNotFoundError(f"no record at {source}")
    return source


def _fields(source: Path, header: Any, parts: Any) -> tuple[Any, ...]:
    """What a record is made of."""
    steps, layer_values, run_values = parts["steps"], parts["layer_values"], parts["run_values"]
    if int(header["schema_version"]) > SCHEMA_VERSION:
        raise RecordError(
            f"{source} has schema version {header['schema_version']}, this thermoclaw reads up to "
            f"{SCHEMA_VERSION}: upgrade thermoclaw"
        )
    return (
        steps,
        tuple(LayerInfo.from_json(layer) for layer in header["layers"]),
        fit_columns(layer_values, header["layer_columns"], LAYER_COLUMNS),
        fit_columns(run_values, header["run_columns"], RUN_COLUMNS),
        dict(header["meta"]),
        tuple(dict(event) for event in header["events"]),
    )
