"""What a run left behind: frozen columns [step, layer, quantity], the layers' names and what the run was. No torch.

Everything right of the buffer (detectors, diagnosis, plots, files) reads a `Record` and nothing else, so a live run, a
finished one and one loaded from disk are the same thing.

Legend: T recorded steps, L layers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermoclaw.quantities import LAYER_COLUMNS, RUN_COLUMNS, Array, canonical
from thermoclaw.record import npz, tables
from thermoclaw.record.card import card
from thermoclaw.record.columns import Columns, RecordError
from thermoclaw.record.layer import LayerInfo


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
    _columns: Columns = field(init=False, repr=False)

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
        object.__setattr__(self, "_columns", Columns(steps, self.layer_values, self.run_values, num_params))

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
        """For notebooks."""
        return card(self)

    # -- files ------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the record to one `.npz` file, whole or not at all; missing folders are made.

        Returns:
            The path written (".npz" is added when the name has no suffix).

        Raises:
            OSError: the folder cannot be written; the message names it.
        """
        return npz.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Record:
        """Read a record that `save` wrote; the ".npz" may be left out, and a folder with one record stands for it.

        Raises:
            FileNotFoundError: there is no such file.
            PermissionError: the file may not be read.
            RecordError: the file is no record, is damaged, or was written by a newer version.
        """
        return npz.load(cls, path)

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write a row per step and layer, the columns of thermoclaw 0.1.6 first, new ones after them."""
        return tables.write_csv(self, path)

    def split_to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the entropy split, a row per step and layer, in the columns of thermoclaw 0.1.6."""
        return tables.write_split_csv(self, path)

    def to_pandas(self) -> Any:
        """A pandas DataFrame with a row per step and layer and a column per quantity (needs pandas)."""
        return tables.data_frame(self)
