"""RECORD: what a run left behind, as frozen columns, and its files. No torch."""

from thermoclaw.record.columns import RecordError
from thermoclaw.record.layer import LayerInfo
from thermoclaw.record.record import Record

__all__ = ["LayerInfo", "Record", "RecordError"]
