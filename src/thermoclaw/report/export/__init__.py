"""SHOW to other programs: a record as CSV, JSON, Parquet or NumPy. Only `parquet` needs pyarrow."""

from thermoclaw.report.export.write import FORMATS, export

__all__ = ["FORMATS", "export"]
