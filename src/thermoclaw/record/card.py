"""How a notebook shows a record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from thermoclaw import markup
from thermoclaw.wording import number, short_name

if TYPE_CHECKING:
    from thermoclaw.record.record import Record

_COLUMNS = ("r", "update_ratio", "grad_norm", "param_norm")
_MOST_LAYERS = 100


def card(record: Record) -> str:
    """HTML: what the run was, how its loss went, and its layers."""
    head = markup.line(f"<b>{markup.escape(repr(record))}</b>")
    if not len(record):
        return markup.box(head, markup.line("No optimizer step was measured yet.", soft=True))
    alarms = [(float(e["step"]), "HIGH") for e in record.events if e.get("kind") == "alarm"]
    drawn = markup.spark(record["step"], record.loss, alarms)
    known = record.loss[np.isfinite(record.loss)]
    ends = f"loss {number(float(known[0]))} → {number(float(known[-1]))}" if len(known) else "no loss was given"
    heads = ("layer", "type", "parameters", *_COLUMNS)
    last = [record[name][-1] for name in _COLUMNS]
    rows = [
        (short_name(layer.name, 60), layer.ltype, f"{layer.num_params:,}", *(number(float(c[i])) for c in last))
        for i, layer in enumerate(record.layers[:_MOST_LAYERS])
    ]
    more = len(record.layers) - len(rows)
    rest = markup.line(f"and {more:,} more layers", soft=True) if more > 0 else ""
    told = markup.folded("Layers, at the last step", markup.table(heads, rows) + rest)
    hint = markup.line("<code>thermoclaw.diagnose(record)</code> says whether it is healthy.", soft=True)
    return markup.box(head, markup.line(ends, soft=True), drawn, told, hint)
