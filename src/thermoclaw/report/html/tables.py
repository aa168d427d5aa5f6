"""What the run was, in tables: parameter groups, environment, what happened, every layer. Numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.record import Record
from thermoclaw.report.series import bin_mean, make_bins
from thermoclaw.wording import number, one_line, short_name

LATE_ROWS = 50
MAX_EVENTS, MAX_GROUPS, MAX_LAYERS = 200, 64, 2000
LAYER_COLUMNS = ("r", "update_ratio", "grad_norm", "param_norm", "coherence", "R_ie", "temperature")
_KNOBS = ("lr", "weight_decay", "momentum", "beta2", "eps", "dampening")
_SETTINGS = ("mode", "sketch_size", "lag", "budget", "history_bytes", "baseline_steps")
_NAMES = {
    "thermoclaw_version": "Thermoclaw",
    "torch_version": "PyTorch",
    "python_version": "Python",
    "devices": "devices",
    "dtypes": "number formats",
    "num_skipped": "steps refused by a loss scaler",
    "unoptimized": "parameters with gradients that no optimizer has",
    "outside_optimizer": "parameters outside the optimizer",
    "failed": "measuring failed",
}
_SEEN = {*_NAMES, "optimizer", "param_groups", "layer_groups", "settings", "every", "num_params"}
_SEEN |= {"layer_dtypes", "layer_shapes", "parameter_order"}

Table = tuple[list[str], list[list[str]]]


def parameter_groups(record: Record) -> Table:
    """A row for each parameter group: how many layers are in it, and its numbers."""
    groups = [_dict(group) for group in _list(record.meta.get("param_groups"))]
    owners: dict[Any, set[str]] = {}
    for name, held in _dict(record.meta.get("layer_groups")).items():
        for group in _list(held):
            owners.setdefault(group, set()).add(str(name))
    knobs = [knob for knob in _KNOBS if any(_is_set(group, knob) for group in groups)]
    rows = []
    for place, group in enumerate(groups[:MAX_GROUPS]):
        label = f"{place} {short_name(group.get('name', ''), 40)}".strip()
        rows.append([label, f"{len(owners.get(place, ())):,}", *(_value(group.get(knob)) for knob in knobs)])
    return ["group", "layers", *knobs], rows


def _is_set(group: Any, knob: str) -> bool:
    value = group.get(knob)
    return isinstance(value, (int, float)) and value == value and (knob != "dampening" or value != 0)


def environment(record: Record) -> list[tuple[str, str]]:
    """Versions, devices, formats, and how it was measured."""
    meta = record.meta
    found = [("optimizer", one_line(record.optimizer, 200))]
    found += [(label, _value(meta[name])) for name, label in _NAMES.items() if _says_something(meta.get(name))]
    found.append(("steps", f"{record.num_steps:,}"))
    found.append(("rows kept", f"{len(record):,}" + _thinning(record)))
    settings = meta.get("settings")
    if isinstance(settings, dict):
        found += [(name, _value(settings[name])) for name in _SETTINGS if _says_something(settings.get(name))]
    for name, value in meta.items():
        if name not in _SEEN and isinstance(value, (str, int, float)) and _says_something(value):
            found.append((one_line(name, 60), _value(value)))
    return found


def _thinning(record: Record) -> str:
    steps = np.diff(np.asarray(record.steps)) if len(record) > 1 else np.ones(1)
    return f", every step to every {int(steps.max()):,}" if steps.max() > 1 else ", every step"


def _says_something(value: Any) -> bool:
    return value not in (None, "", False, [], ()) and value != 0


def happenings(record: Record) -> list[tuple[str, str, str]]:
    """Events in their order: step, kind, words."""
    found = []
    for event in record.events[:MAX_EVENTS]:
        kind = one_line(event.get("kind", ""), 40)
        if kind == "epoch":
            parts = [f"epoch {event.get('epoch')}"]
            parts += [
                f"{name} {number(event[name])}" for name in ("val_loss", "val_acc") if _is_number(event.get(name))
            ]
            words = ", ".join(parts)
        elif kind in ("alarm", "testimony"):
            told = _dict(event.get("finding"))
            by = f", by {event['by']}" if "by" in event else ""
            words = f"[{told.get('confidence')}] {told.get('title')}{by}"
        elif kind == "diffusion":
            words = f"how sampled weights moved, by {event.get('by', 'a detector')}: drawn above"
        elif kind == "remedy":
            change = _dict(event.get("change")).get("text", "")
            words = f"{event.get('by') or 'by hand'}{' took back' if event.get('undo') else ''}: {change}"
        else:
            rest = {name: value for name, value in event.items() if name not in ("kind", "step")}
            words = ", ".join(f"{name} {_value(value)}" for name, value in rest.items())
        step = event.get("step", 0)
        found.append((f"{step:,}" if isinstance(step, int) else "", kind, one_line(words, 300)))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def layer_table(record: Record, findings: Sequence[Finding]) -> Table:
    """A row for each layer with its late means; the numbers of the findings that name it."""
    late = record.rows(start=int(record.steps[-min(LATE_ROWS, len(record))])) if len(record) else record
    columns = [(name, _late(late, name)) for name in LAYER_COLUMNS]
    named: dict[str, list[str]] = {}
    for place, finding in enumerate(findings, start=1):
        for name in dict.fromkeys(finding.layers):
            named.setdefault(name, []).append(str(place))
    rows = []
    for i, layer in enumerate(record.layers[:MAX_LAYERS]):
        cells = [number(float(values[i])) for _, values in columns]
        rows.append([short_name(layer.name, 400) or "(unnamed)", layer.ltype, f"{layer.num_params:,}", *cells])
        rows[-1].append(", ".join(named.get(layer.name, ())))
    return ["layer", "type", "parameters", *LAYER_COLUMNS, "findings"], rows


def _late(record: Record, name: str) -> Any:
    if not len(record):
        return np.full(len(record.layers), np.nan)
    return bin_mean(record[name], make_bins(np.asarray(record.steps, dtype=float), 1))[0]


def _dict(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _value(value: Any) -> str:
    """Anything as a short line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, (list, tuple)):
        shown = ", ".join(short_name(item, 60) for item in value[:12])
        return one_line(shown + (f" and {len(value) - 12:,} more" if len(value) > 12 else ""), 600)
    if value is None:
        return "–"
    return one_line(value, 200)
