"""RECORD on disk: a directory that holds a run's record while it grows, its writer and its readers. No torch.

meta.json             what the run is: format, schema version, layers, columns, settings
events.jsonl          what happened at a step: alarms, epochs, remedies, notes, a line each
part-00000001.npz …   rows, written whole and renamed
owner.json            the process that writes
"""

from thermoclaw.runs.reader import Run, RunReader, load

__all__ = ["Run", "RunReader", "load"]
