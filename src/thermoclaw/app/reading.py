"""What a run holds now, read as seldom as possible."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from thermoclaw.app.needs import st
from thermoclaw.diagnosis.report import Report, diagnose
from thermoclaw.diffusion import Estimate
from thermoclaw.motion import motion_of, norm_balance
from thermoclaw.quantities import Array
from thermoclaw.record import Record, RecordError
from thermoclaw.runs import RunReader, load
from thermoclaw.runs.names import META
from thermoclaw.train.results import DATA_FILE, SAMPLES_FILE, THERMO_FILE

_MOST_BYTES = 64 << 20


@st.cache_resource(max_entries=4, show_spinner=False)
def _reader(folder: str) -> RunReader:
    return RunReader(folder)


def read_record(run: Path) -> Record | str:
    """The record so far, or why there is none."""
    try:
        record = _reader(str(run)).read().record if (run / META).is_file() else load(run)
    except (OSError, RecordError) as error:
        return str(error)
    return record if len(record) else "no step was recorded yet"


def report_of(run: Path, record: Record, *, live: bool) -> Report:
    """The diagnosis; of a run that goes on at most forty times while it doubles its length."""
    steps = record.num_steps
    every = max(10, (1 << max(steps.bit_length() - 1, 0)) // 40) if live else 1
    return _report(str(run), steps // every, live, record)


@st.cache_data(max_entries=16, show_spinner=False)
def _report(run: str, key: int, live: bool, _record: Record) -> Report:
    return diagnose(_record)


def read_heat(run: Path, record: Record) -> dict[str, Any]:
    """What a thermometer left, in a file or in the record; the ratio of each layer, any record tells."""
    told = _json(run / THERMO_FILE)
    if told:
        return told
    found = {layer.name: one for layer, one in zip(record.layers, norm_balance(record), strict=True)}
    layers = {name: _ends("fdt", one, middle="_ratio") for name, one in found.items()}
    motion = motion_of(record)
    if motion is None:
        return {"layers": layers}
    whole = motion.whole
    power = _ends("diffusion_exponent", whole.exponent)
    return {"layers": layers, "lags": whole.lags.tolist(), "msd": whole.msd.tolist(), "step": motion.step, **power}


def _ends(name: str, estimate: Estimate, *, middle: str = "") -> dict[str, float | None]:
    ends = {middle: estimate.value, "_low": estimate.low, "_high": estimate.high}
    return {name + end: value if np.isfinite(value) else None for end, value in ends.items()}


def read_data(run: Path) -> tuple[dict[str, Any], Array, Array]:
    """Counts of the classes, and samples with their labels; all empty where there are none."""
    told, none = _json(run / DATA_FILE), np.zeros(0)
    path = run / SAMPLES_FILE
    if not told.get("classes") or not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return told, none, none
    try:
        with np.load(path, allow_pickle=False) as parts:
            images, labels = parts["images"], parts["labels"]
    except Exception:  # damage shows in many classes
        return told, none, none
    fits = (
        images.ndim == 4 and images.dtype == np.uint8 and images.shape[1] in (1, 3) and labels.shape == images.shape[:1]
    )
    inside = fits and labels.dtype.kind == "i" and bool(((labels >= 0) & (labels < len(told["classes"]))).all())
    return (told, images, labels) if inside else (told, none, none)


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            return {}
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
