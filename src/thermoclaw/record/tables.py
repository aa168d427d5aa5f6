"""A record as tables, a row per step and layer: CSV files as thermoclaw 0.1.6 wrote them, and pandas."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thermoclaw.files import atomic_file
from thermoclaw.quantities import TABLE

if TYPE_CHECKING:
    from thermoclaw.record.record import Record

SEED_CSV_COLUMNS = {
    "layer_sigma": "sigma",
    "layer_sigma_ema": "sigma_ema",
    "layer_sigma_star": "sigma_star",
    "layer_r": "r",
    "layer_rho": "coherence",
    "layer_lr": "lr",
}
EXTRA_CSV_COLUMNS = (
    "grad_norm",
    "param_norm",
    "update_norm",
    "update_ratio",
    "grad_param_ratio",
    "alignment",
    "work",
    "overshoot",
    "norm_budget",
    "noise",
    "noise_share",
    "temperature",
    "distance",
    "d_eS",
    "d_iS",
    "d_iS_wd",
    "d_iS_momentum",
    "d_iS_noise",
    "R_ie",
    "weight_decay",
    "momentum",
)
SPLIT_CSV_COLUMNS = {
    "sigma_total": "sigma",
    "d_eS": "d_eS",
    "d_iS": "d_iS",
    "d_iS_wd": "d_iS_wd",
    "d_iS_momentum": "d_iS_momentum",
    "d_iS_noise": "d_iS_noise",
    "R_ie": "R_ie",
    "lr": "lr",
    "gnorm_sq": "grad_sq",
}


def write_csv(record: Record, path: str | os.PathLike[str]) -> Path:
    """The columns of thermoclaw 0.1.6 first, new ones after them."""
    heads = ["step", "epoch", "optimizer", "D", "rho_mean", "R_median", "E_param_dist", "loss"]
    heads += ["layer_name", "layer_type", *SEED_CSV_COLUMNS, *EXTRA_CSV_COLUMNS]
    per_step = [record[name] for name in ("D", "rho_mean", "R_median", "E_param_dist", "loss")]
    per_layer = [record[name] for name in (*SEED_CSV_COLUMNS.values(), *EXTRA_CSV_COLUMNS)]
    epochs = record["epoch"]

    def lines() -> Iterator[list[Any]]:
        for t, step in enumerate(record.steps):
            left = [int(step), _whole(epochs[t]), record.optimizer, *(_cell(values[t]) for values in per_step)]
            for i, layer in enumerate(record.layers):
                yield [*left, name_cell(layer.name), layer.ltype, *(_cell(values[t, i]) for values in per_layer)]

    return _write_csv(path, heads, lines())


def write_split_csv(record: Record, path: str | os.PathLike[str]) -> Path:
    """The entropy split, in the columns of thermoclaw 0.1.6."""
    per_layer = [record[name] for name in SPLIT_CSV_COLUMNS.values()]

    def lines() -> Iterator[list[Any]]:
        for t, step in enumerate(record.steps):
            for i, layer in enumerate(record.layers):
                yield [
                    int(step),
                    name_cell(layer.name),
                    layer.ltype,
                    *(_cell(values[t, i]) for values in per_layer),
                ]

    return _write_csv(path, ["step", "layer", "ltype", *SPLIT_CSV_COLUMNS], lines())


def data_frame(record: Record) -> Any:
    """A pandas DataFrame with a column per quantity."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("Record.to_pandas needs pandas: pip install pandas") from error
    num_steps, num_layers = len(record), len(record.layers)
    data: dict[str, Any] = {"step": np.repeat(record.steps.astype(np.int64), num_layers)}
    for name in ("layer", "ltype"):
        labels = [layer.name if name == "layer" else layer.ltype for layer in record.layers]
        data[name] = np.tile(np.array(labels, dtype=object), num_steps)
    for quantity in TABLE.values():
        values = record[quantity.name]
        data[quantity.name] = values.ravel() if quantity.scope == "layer" else np.repeat(values, num_layers)
    return pandas.DataFrame(data)


def _cell(value: float) -> Any:
    """A number for CSV: empty where it is not defined, and all the digits it has."""
    if value != value:
        return ""
    return float(value)


def _whole(value: float) -> Any:
    """A count for CSV: empty where it is not known."""
    return int(value) if math.isfinite(value) else ""


def name_cell(name: str) -> str:
    """A name as a spreadsheet may read it: what would be a formula there begins with an apostrophe."""
    cell = name.encode("utf-8", "backslashreplace").decode("utf-8").replace("\x00", "\\x00")
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _write_csv(path: str | os.PathLike[str], heads: list[str], lines: Iterator[list[Any]]) -> Path:
    target = Path(path)
    with atomic_file(target, "w") as handle:
        writer = csv.writer(handle)
        writer.writerow(heads)
        writer.writerows(lines)
    return target
