"""What a run left behind: frozen columns [step, layer, quantity], the layers' names and what the run was. No torch.

Everything right of the buffer (detectors, diagnosis, plots, files) reads a `Record` and nothing else, so a live run, a
finished one and one loaded from disk are the same thing. A record file is a NumPy `.npz` with a JSON header; loading
one executes nothing.

Legend: T recorded steps, L layers.
"""

from __future__ import annotations

import csv
import functools
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermoclaw import markup
from thermoclaw.files import atomic_file
from thermoclaw.quantities import LAYER_COLUMNS, RUN_COLUMNS, TABLE, Array, canonical
from thermoclaw.wording import number, short_name

SCHEMA_VERSION = 1
MOST_NUMBERS = 100_000  # of hyper-parameters that are told in as few digits as they have

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
_NOTEBOOK_COLUMNS = ("r", "update_ratio", "grad_norm", "param_norm")
_NOTEBOOK_LAYERS = 100

_LAYER_PLACE = {name: i for i, name in enumerate(LAYER_COLUMNS)}
_RUN_PLACE = {name: i for i, name in enumerate(RUN_COLUMNS)}


class RecordError(ValueError):
    """A file is not a record, or is damaged."""


@dataclass(frozen=True)
class LayerInfo:
    """A module that owns parameters, as the record names it."""

    name: str
    ltype: str
    num_params: int
    depth: int = 0
    param_names: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerInfo:
        """Rebuild from `dataclasses.asdict`."""
        return cls(
            name=str(data["name"]),
            ltype=str(data["ltype"]),
            num_params=int(data["num_params"]),
            depth=int(data.get("depth", 0)),
            param_names=tuple(str(n) for n in data.get("param_names", ())),
        )


class _Columns(Mapping[str, Array]):
    """Stored and derived columns under one roof, each taken out or computed when it is first asked for."""

    def __init__(self, steps: Array, layer_values: Array, run_values: Array, num_params: Array) -> None:
        self._layer_values, self._run_values = layer_values, run_values
        self._have = {"step": steps, "num_params": num_params}

    def __getitem__(self, name: str) -> Array:
        if name not in self._have:
            values = self._stored(name)
            if values is None:
                quantity = TABLE[canonical(name)]
                if quantity.derive is None:
                    raise KeyError(name)
                values = np.asarray(quantity.derive(self), dtype=np.float64)
            values.flags.writeable = False
            self._have[name] = values
        return self._have[name]

    def _stored(self, name: str) -> Array | None:
        """A column of the record, in double precision."""
        if name in _LAYER_PLACE:
            values = np.array(self._layer_values[:, :, _LAYER_PLACE[name]], dtype=np.float64)
            single = self._layer_values.dtype == np.float32 and name in ("lr", "weight_decay", "momentum")
            return _shortest(values) if single else values
        if name in _RUN_PLACE:
            return np.array(self._run_values[:, _RUN_PLACE[name]], dtype=np.float64)
        return None

    def __iter__(self) -> Iterator[str]:
        return iter(TABLE)

    def __len__(self) -> int:
        return len(TABLE)


@dataclass(frozen=True, eq=False)
class Record:
    """The frozen measurements of a run.

    Attributes:
        steps: recorded step numbers, counted from 1, increasing, [T]. Long runs are thinned, never cut short.
        layers: the L layers, in model order.
        layer_values: stored layer columns, [T, L, Q] in the order of `LAYER_COLUMNS`.
        run_values: stored run columns, [T, R] in the order of `RUN_COLUMNS`.
        meta: what the run was: optimizer, hyper-parameters, versions, settings, parameters that nobody optimizes.
        events: what happened at a step: alarms raised while training, epochs, remedies.

    `record["sigma"]` is a float64 array [T, L] for a layer quantity, [T] for a run quantity, by any name or alias of
    `thermoclaw.quantities`. NaN means "not defined at that step".

    Example:
        >>> import torch, thermoclaw
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> observer = thermoclaw.Observer(model, optimizer)
        >>> loss = model(torch.ones(3, 4)).square().mean(); loss.backward(); optimizer.step()
        >>> _ = observer.step(loss=loss)
        >>> record = observer.record()
        >>> record["sigma"].shape, record.layers[0].name
        ((1, 1), '(root)')
    """

    steps: NDArray[Any]
    layers: tuple[LayerInfo, ...]
    layer_values: Array
    run_values: Array
    meta: dict[str, Any] = field(default_factory=dict)
    events: tuple[dict[str, Any], ...] = ()
    _columns: _Columns = field(init=False, repr=False)

    def __post_init__(self) -> None:
        num_steps, num_layers = len(self.steps), len(self.layers)
        want_layer = (num_steps, num_layers, len(LAYER_COLUMNS))
        want_run = (num_steps, len(RUN_COLUMNS))
        if self.layer_values.shape != want_layer or self.run_values.shape != want_run:
            raise RecordError(
                f"columns do not fit: layer values {self.layer_values.shape} should be {want_layer}, "
                f"run values {self.run_values.shape} should be {want_run}"
            )
        if num_steps > 1 and not np.all(np.diff(self.steps) > 0):
            raise RecordError("step numbers must increase")
        steps = np.array(self.steps, dtype=np.float64)
        steps.flags.writeable = False
        num_params = np.array([max(layer.num_params, 1) for layer in self.layers], dtype=np.float64)
        object.__setattr__(self, "_columns", _Columns(steps, self.layer_values, self.run_values, num_params))

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, name: str) -> Array:
        if name in ("step", "steps"):
            return self._columns["step"]
        return self._columns[canonical(name)]

    def __repr__(self) -> str:
        span = f"steps {int(self.steps[0])}–{int(self.steps[-1])}" if len(self) else "no steps"
        return f"Record({span}, {len(self)} rows, {len(self.layers)} layers, {self.optimizer})"

    @property
    def loss(self) -> Array:
        """Training loss, [T]; NaN where none was given."""
        return self["loss"]

    @property
    def optimizer(self) -> str:
        """Class name of the optimizer."""
        return str(self.meta.get("optimizer", "unknown"))

    @property
    def layer_names(self) -> list[str]:
        """Names of the layers, in model order."""
        return [layer.name for layer in self.layers]

    @property
    def num_steps(self) -> int:
        """Optimizer steps that the run took, whether or not their rows were kept."""
        return int(self.steps[-1]) if len(self) else 0

    def rows(self, start: int | None = None, stop: int | None = None) -> Record:
        """The part with start ≤ step < stop, as a record of its own."""
        keep = np.ones(len(self), dtype=bool)
        if start is not None:
            keep &= self.steps >= start
        if stop is not None:
            keep &= self.steps < stop
        return Record(
            self.steps[keep],
            self.layers,
            self.layer_values[keep],
            self.run_values[keep],
            dict(self.meta),
            tuple(e for e in self.events if stop is None or e.get("step", 0) < stop),
        )

    def _repr_html_(self) -> str:
        """For notebooks: what the run was, how its loss went, and its layers."""
        head = markup.line(f"<b>{markup.escape(repr(self))}</b>")
        if not len(self):
            return markup.box(head, markup.line("No optimizer step was measured yet.", soft=True))
        alarms = [(float(e["step"]), "HIGH") for e in self.events if e.get("kind") == "alarm"]
        drawn = markup.spark(self["step"], self.loss, alarms)
        known = self.loss[np.isfinite(self.loss)]
        ends = f"loss {number(float(known[0]))} → {number(float(known[-1]))}" if len(known) else "no loss was given"
        heads = ("layer", "type", "parameters", *_NOTEBOOK_COLUMNS)
        last = [self[name][-1] for name in _NOTEBOOK_COLUMNS]
        rows = [
            (short_name(layer.name, 60), layer.ltype, f"{layer.num_params:,}", *(number(float(c[i])) for c in last))
            for i, layer in enumerate(self.layers[:_NOTEBOOK_LAYERS])
        ]
        more = len(self.layers) - len(rows)
        rest = markup.line(f"and {more:,} more layers", soft=True) if more > 0 else ""
        told = markup.folded("Layers, at the last step", markup.table(heads, rows) + rest)
        hint = markup.line("<code>thermoclaw.diagnose(record)</code> says whether it is healthy.", soft=True)
        return markup.box(head, markup.line(ends, soft=True), drawn, told, hint)

    # -- files ------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the record to one `.npz` file, whole or not at all; missing folders are made.

        Returns:
            The path written (".npz" is added when the name has no suffix).

        Raises:
            OSError: the folder cannot be written; the message names it.
        """
        target = Path(path)
        if target.suffix != ".npz":
            target = target.with_name(target.name + ".npz")
        header = {
            "schema_version": SCHEMA_VERSION,
            "layers": [asdict(layer) for layer in self.layers],
            "layer_columns": LAYER_COLUMNS,
            "run_columns": RUN_COLUMNS,
            "meta": self.meta,
            "events": self.events,
        }
        text = json.dumps(header, default=str, allow_nan=True)
        with atomic_file(target, "wb") as handle:
            np.savez_compressed(
                handle,
                header=np.frombuffer(text.encode(), dtype=np.uint8),
                steps=np.asarray(self.steps, dtype=np.int64),
                layer_values=self.layer_values,
                run_values=self.run_values,
            )
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Record:
        """Read a record that `save` wrote; the ".npz" may be left out, and a folder with one record stands for it.

        Raises:
            FileNotFoundError: there is no such file.
            PermissionError: the file may not be read.
            RecordError: the file is no record, is damaged, or was written by a newer version.
        """
        source = Path(path)
        if not source.exists() and source.with_name(source.name + ".npz").exists():
            source = source.with_name(source.name + ".npz")
        if source.is_dir():
            inside = sorted(source.glob("*.npz"))
            if len(inside) != 1:
                raise RecordError(f"{source} is a folder with {len(inside)} .npz files; name one record file")
            source = inside[0]
        if not source.exists():
            raise FileNotFoundError(f"no record at {source}")
        try:
            with open(source, "rb") as handle, np.load(handle, allow_pickle=False) as parts:
                header = json.loads(bytes(parts["header"]).decode())
                steps, layer_values, run_values = parts["steps"], parts["layer_values"], parts["run_values"]
            if int(header["schema_version"]) > SCHEMA_VERSION:
                raise RecordError(
                    f"{source} has schema version {header['schema_version']}, this thermoclaw reads up to "
                    f"{SCHEMA_VERSION}: upgrade thermoclaw"
                )
            return cls(
                steps,
                tuple(LayerInfo.from_json(layer) for layer in header["layers"]),
                fit_columns(layer_values, header["layer_columns"], LAYER_COLUMNS),
                fit_columns(run_values, header["run_columns"], RUN_COLUMNS),
                dict(header["meta"]),
                tuple(dict(event) for event in header["events"]),
            )
        except (RecordError, PermissionError):
            raise
        except Exception as error:  # damage shows in zipfile, zlib, struct, json or numpy, as it happens
            raise RecordError(
                f"{source} is not a readable thermoclaw record ({type(error).__name__}: {error}); it may be damaged or "
                "cut short: use another copy"
            ) from error

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write a row per step and layer, the columns of thermoclaw 0.1.6 first, new ones after them."""
        heads = ["step", "epoch", "optimizer", "D", "rho_mean", "R_median", "E_param_dist", "loss"]
        heads += ["layer_name", "layer_type", *SEED_CSV_COLUMNS, *EXTRA_CSV_COLUMNS]
        per_step = [self[name] for name in ("D", "rho_mean", "R_median", "E_param_dist", "loss")]
        per_layer = [self[name] for name in (*SEED_CSV_COLUMNS.values(), *EXTRA_CSV_COLUMNS)]
        epochs = self["epoch"]

        def lines() -> Iterator[list[Any]]:
            for t, step in enumerate(self.steps):
                left = [int(step), _whole(epochs[t]), self.optimizer, *(_cell(values[t]) for values in per_step)]
                for i, layer in enumerate(self.layers):
                    yield [*left, name_cell(layer.name), layer.ltype, *(_cell(values[t, i]) for values in per_layer)]

        return _write_csv(path, heads, lines())

    def split_to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the entropy split, a row per step and layer, in the columns of thermoclaw 0.1.6."""
        per_layer = [self[name] for name in SPLIT_CSV_COLUMNS.values()]

        def lines() -> Iterator[list[Any]]:
            for t, step in enumerate(self.steps):
                for i, layer in enumerate(self.layers):
                    yield [
                        int(step),
                        name_cell(layer.name),
                        layer.ltype,
                        *(_cell(values[t, i]) for values in per_layer),
                    ]

        return _write_csv(path, ["step", "layer", "ltype", *SPLIT_CSV_COLUMNS], lines())

    def to_pandas(self) -> Any:
        """A pandas DataFrame with a row per step and layer and a column per quantity (needs pandas)."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("Record.to_pandas needs pandas: pip install pandas") from error
        num_steps, num_layers = len(self), len(self.layers)
        data: dict[str, Any] = {"step": np.repeat(self.steps.astype(np.int64), num_layers)}
        for name in ("layer", "ltype"):
            labels = [layer.name if name == "layer" else layer.ltype for layer in self.layers]
            data[name] = np.tile(np.array(labels, dtype=object), num_steps)
        for quantity in TABLE.values():
            values = self[quantity.name]
            data[quantity.name] = values.ravel() if quantity.scope == "layer" else np.repeat(values, num_layers)
        return pandas.DataFrame(data)


def _shortest(values: Array) -> Array:
    """Single-precision hyper-parameters as they were written: 0.01, not 0.009999999776482582."""
    lines = (values.ravel(), values.T.ravel())  # they change from row to row, or from layer to layer
    starts = [np.flatnonzero(np.append(True, line[1:] != line[:-1])[: len(line)]) for line in lines]
    by_row = len(starts[0]) <= len(starts[1])
    line, first = (lines[0], starts[0]) if by_row else (lines[1], starts[1])
    if len(first) > MOST_NUMBERS:
        return _seven_digits(values)
    numbers = [_shortest_number(x) if math.isfinite(x) else x for x in line[first].tolist()]
    found = np.repeat(np.array(numbers, dtype=np.float64), np.diff(first, append=len(line)))
    return found.reshape(values.shape) if by_row else found.reshape(values.T.shape).T


def _seven_digits(values: Array) -> Array:
    """All at once, rounded to what single precision holds: for rates that differ in every layer and step."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = 10.0 ** (6.0 - np.floor(np.log10(np.abs(values))))
        rounded = np.round(values * scale) / scale
    return np.where(np.isfinite(rounded), rounded, values)


@functools.lru_cache(maxsize=1 << 14)
def _shortest_number(value: float) -> float:
    return float(np.format_float_positional(np.float32(value)))


def fit_columns(values: Array, have: list[str], want: tuple[str, ...]) -> Array:
    """Reorder a file's columns to this version's; columns the file lacks are NaN, unknown ones are dropped."""
    if list(have) == list(want):
        return values
    if values.shape[-1] != len(have):
        raise RecordError(f"{values.shape[-1]} columns of values, {len(have)} names")
    place = {name: i for i, name in enumerate(have)}
    missing = np.full(values.shape[:-1], np.nan, dtype=values.dtype)
    return np.stack([values[..., place[name]] if name in place else missing for name in want], axis=-1)


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
