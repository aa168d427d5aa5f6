"""Writes a long table as Parquet, the one module that imports pyarrow."""

from __future__ import annotations

import json
from pathlib import Path

from thermoclaw.files import atomic_file
from thermoclaw.report.export.table import LongTable

try:
    import pyarrow as pa
    from pyarrow import parquet
except ImportError as error:
    raise ImportError("Parquet files need pyarrow: pip install 'thermoclaw[parquet]'") from error

META = b"thermoclaw"  # the key of the record's meta, layers and events in the file's own


def write_parquet(table: LongTable, target: Path) -> None:
    """Write the table, a row group for each of its pieces; undefined values are null."""
    words = pa.dictionary(pa.int32(), pa.string())
    fields = [pa.field("step", pa.int64()), pa.field("layer", words), pa.field("ltype", words)]
    schema = pa.schema([*fields, *(pa.field(name, pa.float64()) for name in table.names)], metadata=_meta(table))
    names = pa.array([_text(layer.name) for layer in table.layers], pa.string())
    types = pa.array([_text(layer.ltype) for layer in table.layers], pa.string())
    with atomic_file(target, "wb") as handle, parquet.ParquetWriter(handle, schema) as writer:
        for piece in table.pieces():
            places = pa.array(piece.places, pa.int32())
            columns = [pa.array(piece.steps), *(pa.DictionaryArray.from_arrays(places, x) for x in (names, types))]
            columns += [pa.array(piece.columns[name], from_pandas=True) for name in table.names]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def _meta(table: LongTable) -> dict[bytes, bytes]:
    data = {"meta": table.record.meta, "events": table.record.events}
    return {META: json.dumps(data, default=str).encode()}


def _text(name: str) -> str:
    """A name as UTF-8 can hold it."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
