"""Records of runs that never happened: a healthy one whose columns a test then bends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermoclaw.quantities import LAYER_COLUMNS, RUN_COLUMNS
from thermoclaw.record import LayerInfo, Record

Array = NDArray[np.float64]


DRAWN = 3**-0.5  # gain of a PyTorch layer that was never trained
TRAINED = 0.7 * np.exp(0.1 * np.arange(8.0))  # gains of eight layers that were: none at a usual scale, no two alike


@dataclass
class Synthetic:
    """Columns of a healthy run under AdamW, free to be changed before `record` makes a Record of them."""

    steps: int = 200
    layers: int = 8
    seed: int = 0
    optimizer: str = "AdamW"
    meta: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        shape, t = (self.steps, self.layers), np.arange(self.steps)
        self.loss: Array = 0.5 + 2.0 * np.exp(-t / 60.0) + 0.05 * random.standard_normal(self.steps)
        norm = 10.0 * np.exp(0.0005 * t)[:, None] * np.ones(shape)
        step = 0.02 * np.exp(0.05 * random.standard_normal(shape))
        gradient = 0.3 * np.exp(0.1 * random.standard_normal(shape))
        coherence = np.clip(0.15 + 0.15 * random.standard_normal(shape), -0.9, 0.9)
        alignment = np.clip(0.4 + 0.1 * random.standard_normal(shape), 0.0, 1.0)
        slope = -0.15 + 0.15 * random.standard_normal(shape)
        self.columns: dict[str, Array] = {
            "grad_sq": gradient**2,
            "param_sq": norm**2,
            "update_sq": step**2,
            "grad_sq_smooth": np.full(shape, 0.09),
            "grad_sq_baseline": np.full(shape, 0.09),
            "coherence": coherence,
            "distance": (step * np.sqrt(t + 1.0)[:, None]) ** 2,
            "alignment": alignment,
            "overshoot": slope * gradient * step,
            "norm_budget": np.full(shape, -0.02),
            "noise_share": np.clip(0.7 + 0.1 * random.standard_normal(shape), 0.0, 1.0),
            "lr": np.full(shape, 1e-3),
            "weight_decay": np.full(shape, 0.01),
            "momentum": np.full(shape, 0.9),
            "has_grad": np.ones(shape),
        }
        self.columns["sigma"] = self.columns["lr"] * self.columns["grad_sq"]
        self.columns["coherence"][0] = self.columns["overshoot"][0] = np.nan

    def probe(self, **values: Any) -> Synthetic:
        """Fill probe columns at every fourth row: a number, one for each probe, or one for each layer."""
        rows = np.arange(0, self.steps, 4)
        for name, value in values.items():
            column = self.columns.setdefault(name, np.full((self.steps, self.layers), np.nan))
            each = np.asarray(value, dtype=float)
            of_layers = each.ndim == 1 and len(each) == self.layers
            column[rows] = np.broadcast_to(each if of_layers else each.reshape(-1, 1), (len(rows), self.layers))
        return self

    def set(self, rows: slice | int = slice(None), layers: slice | int = slice(None), **values: Any) -> Synthetic:
        """Write columns; `loss` too."""
        for name, value in values.items():
            if name == "loss":
                self.loss[rows] = value
            else:
                column = self.columns.setdefault(name, np.full((self.steps, self.layers), np.nan))
                column[rows, layers] = value
        return self

    def record(self, **meta: Any) -> Record:
        """The record, with a plain set-up unless `meta` says otherwise."""
        infos = tuple(
            LayerInfo(f"blocks.{i}.fc", "mlp", 4096, i, (f"blocks.{i}.fc.weight",)) for i in range(self.layers)
        )
        values = np.full((self.steps, self.layers, len(LAYER_COLUMNS)), np.nan)
        for name, column in self.columns.items():
            values[:, :, LAYER_COLUMNS.index(name)] = column
        run = np.full((self.steps, len(RUN_COLUMNS)), 0.0)
        run[:, RUN_COLUMNS.index("loss")] = self.loss
        group: Mapping[str, Any] = {
            "lr": float(self.columns["lr"][-1, 0]),
            "weight_decay": 0.01,
            "momentum": 0.9,
            "decoupled": 1.0,
            "adaptive": 0.0,
            "beta2": 0.999,
            "eps": 1e-8,
        }
        told = {
            "optimizer": self.optimizer,
            "param_groups": [dict(group)],
            "layer_groups": {info.name: [0] for info in infos},
            "layer_shapes": {info.name: [64, 64] for info in infos},
            "dtypes": ["torch.float32"],
            **self.meta,
            **meta,
        }
        return Record(np.arange(1, self.steps + 1), infos, values, run, told, tuple(self.events))
