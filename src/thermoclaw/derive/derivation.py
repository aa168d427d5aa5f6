"""Raw inner products → the stored quantities of `thermoclaw.quantities`, row by row, with bounded memory. No torch.

Everything that remembers earlier steps (smoothing, baselines) lives here, on every row in order, so that thinning the
history later changes no value. Definitions and derivations: docs, theory.

Legend: B rows, U units, L layers, K raw columns, Q stored layer quantities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from thermoclaw.derive.carried_decay import CarriedDecay
from thermoclaw.derive.hyper import HyperRows
from thermoclaw.derive.layer_sums import LayerSums
from thermoclaw.derive.memory import Baseline, Lagged, Smoother
from thermoclaw.derive.split import split
from thermoclaw.quantities import LAYER_COLUMNS, Array
from thermoclaw.state import array, take

RESOLUTION = 1e-6
"""‖Δ‖/‖θ⁻‖ below which single-precision sketches no longer tell Δ from rounding."""

BASELINE_STEPS = 200

_SMOOTHED = ("grad_sq", "noise", "noise_free", "grad_sketch", "update_sq", "param_change")
_LAGS = {"grad_sq": 3, "grad_sketch": 3, "g_g2": 1, "param_sq": 1, "lost": 1}


class Derivation:
    """Turns blocks of raw rows into blocks of stored layer quantities; remembers what it must between blocks.

    Args:
        columns: raw column name → index.
        baseline_steps: window of the running median behind `r`.
        started: the optimizer has made steps before the first row, so its momentum is built up.
    """

    def __init__(
        self, columns: Mapping[str, int], *, baseline_steps: int = BASELINE_STEPS, started: bool = False
    ) -> None:
        self._columns = columns
        self._lag = {name: Lagged(depth) for name, depth in _LAGS.items()}
        self._smoother = Smoother(_SMOOTHED)
        self._baseline = Baseline(baseline_steps)
        self._decay = CarriedDecay(started=started)
        self._sums = LayerSums((), 0)
        self._unit_size = np.ones(0)
        self._resolution_sq = np.zeros(0)

    def bind(
        self,
        unit_layer: Sequence[int],
        unit_size: Sequence[int],
        num_layers: int,
        *,
        is_estimated: Sequence[bool] | None = None,
    ) -> None:
        """Set the units that the next rows are made of; layers may only be added.

        Args:
            unit_layer: the layer of each unit.
            unit_size: its number of elements.
            num_layers: L.
            is_estimated: units whose Δ is a difference of single-precision sketches, and is lost when it is too small.
        """
        resolution = RESOLUTION**2 * np.ones(len(unit_layer))
        self._resolution_sq = np.where(is_estimated, resolution, 0.0) if is_estimated is not None else 0.0 * resolution
        self._unit_size = np.maximum(np.asarray(unit_size, dtype=np.float64), 1.0)
        self._sums = LayerSums(unit_layer, num_layers)
        self._smoother.widen(num_layers)
        self._decay.bind(len(unit_layer))

    def start_from(self, param_sq: Array) -> None:
        """Tell the squared norms [U] before the next step."""
        self._lag["param_sq"].extend(self._sums(param_sq[None]))
        self._decay.start_from(param_sq)

    def gap(self) -> None:
        """Tell that steps were left out before the next row: what is made of neighboring rows is undefined there."""
        self._lag = {name: Lagged(depth) for name, depth in _LAGS.items()}
        self._decay.gap()

    def state_dict(self) -> dict[str, Any]:
        """What is remembered of earlier rows."""
        num_layers = self._sums.num_layers
        return {
            "smoother": self._smoother.state_dict(),
            "lags": {name: lagged.state(num_layers) for name, lagged in self._lag.items()},
            **self._baseline.state_dict(num_layers),
            **self._decay.state_dict(),
        }

    def load_state_dict(self, state: Any) -> None:
        """Go on from `state_dict`, with the units that are bound."""
        num_layers, num_units = self._sums.num_layers, len(self._unit_size)
        self._smoother.load_state_dict(take(state, "smoother", dict))
        lags = take(state, "lags", dict)
        for name, lagged in self._lag.items():
            width = num_units if name == "lost" else num_layers
            lagged.load(array(lags, name, None, None)[:, :width])  # those from before others joined may be narrower
        self._baseline.load_state_dict(state, num_layers)
        self._decay.load_state_dict(state, num_units)

    def rows(self, raw: Array, hyper: HyperRows, probed: Mapping[str, Array]) -> Array:
        """Stored quantities [B, L, Q] of raw rows [B, U, K]; `probed`: those that a probe measured [B, L]."""
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            columns = {name: raw[:, :, i] for name, i in self._columns.items()}
            now = self._instant(self._without_the_lost(columns), hyper)
            now.update(self._smooth(now))
            now.update(split(now))
        now.update(probed)
        return np.stack([now[name] for name in LAYER_COLUMNS], axis=-1)

    def _without_the_lost(self, raw: dict[str, Array]) -> dict[str, Array]:
        """Products with steps that sketches cannot resolve become undefined; ‖Δ‖² stays, as an upper estimate."""
        lost = (raw["d_d"] > 0) & (raw["d_d"] < self._resolution_sq * raw["ps_ps"])
        earlier = self._lag["lost"].extend(lost.astype(float))[:-1] > 0
        if lost.any() or earlier.any():
            raw = {**raw, **{name: np.where(lost, np.nan, raw[name]) for name in ("g_d", "d_p")}}
            raw["g_d1"] = np.where(earlier, np.nan, raw["g_d1"])
        return raw

    def _instant(self, raw: Mapping[str, Array], hyper: HyperRows) -> dict[str, Array]:
        """Quantities that need no memory beyond a few rows."""
        add = self._sums
        lr = np.where(np.isnan(hyper.lr), raw["lr"], hyper.lr)
        size = np.broadcast_to(self._unit_size, lr.shape)
        now = {
            "grad_sq": add(raw["g_g"]),
            "grad_sketch": add(raw["gs_gs"]),
            "param_sq": add(raw["p_p"]),
            "update_sq": add(raw["d_d"]),
            "distance": add(raw["f_f"]),
            "sigma": add(np.where(raw["g_g"] == 0, 0.0, lr * raw["g_g"])),
            "has_grad": add.any(hyper.has_grad),
            "lr": add.mean(lr, size),
            "momentum": add.mean(hyper.momentum, size),
            "weight_decay": add.mean(hyper.weight_decay, raw["p_p"]),
        }
        now["param_change"] = np.diff(self._lag["param_sq"].extend(now["param_sq"]), axis=0)
        now.update(self._neighbors(raw, now["grad_sq"], now["grad_sketch"]))
        now.update(self._along_the_step(raw, hyper, lr, now))
        return now

    def _neighbors(self, raw: Mapping[str, Array], grad_sq: Array, sketch: Array) -> dict[str, Array]:
        """What gradients of neighboring steps, and their sketches, tell of one another."""
        norm = self._lag["grad_sketch"].extend(sketch)
        exact = self._lag["grad_sq"].extend(grad_sq)
        products = {lag: self._sums(raw[f"g_g{lag}"]) for lag in (1, 2, 3)}
        coherence = np.clip(products[1] / np.sqrt(norm[3:] * norm[2:-1]), -1.0, 1.0)
        both = np.sqrt(exact[3:] * exact[2:-1])
        earlier = self._lag["g_g2"].extend(products[2])[:-1]
        return {
            "coherence": coherence,
            "noise": 0.5 * (exact[3:] + exact[2:-1]) - np.where(both == 0, 0.0, coherence * both),
            "noise_free": products[3] - products[1] - earlier + norm[2:-1],
        }

    def _along_the_step(
        self, raw: Mapping[str, Array], hyper: HyperRows, lr: Array, now: Mapping[str, Array]
    ) -> dict[str, Array]:
        """What gradients tell of the step."""
        add, sketch = self._sums, now["grad_sketch"]
        scale = np.sqrt(now["grad_sq"] / sketch)  # exact over sketched norm: calibrates products with g
        along = add(hyper.sign * raw["g_d"])
        return {
            "overshoot": add(hyper.sign * raw["g_d1"]) * np.where(sketch > 0, scale, 1.0),
            "alignment": np.clip(-along / np.sqrt(sketch * now["update_sq"]), -1.0, 1.0),
            "alignment_free": self._without_decay(raw, hyper, lr, sketch),
        }

    def _without_decay(self, raw: Mapping[str, Array], hyper: HyperRows, lr: Array, sketch: Array) -> Array:
        """cos(−g, Δ′), Δ′ the step without its decay part κλθ⁻."""
        add = self._sums
        gradient_and_decay = (
            raw["gs_gs"] + 2 * hyper.sign * hyper.weight_decay * raw["g_p"] + hyper.weight_decay**2 * raw["ps_ps"]
        )
        pull = np.where(hyper.decoupled, lr * hyper.weight_decay, lr * self._decay.rows(raw, hyper))
        pull = np.where(hyper.adaptive, hyper.weight_decay * np.sqrt(raw["d_d"] / gradient_and_decay), pull)
        pull = np.where(np.isfinite(pull) & (pull > 0), pull, 0.0)
        along = add(hyper.sign * (raw["g_d"] + pull * raw["g_p"]))
        length_sq = add(raw["d_d"] + 2 * pull * raw["d_p"] + pull**2 * raw["ps_ps"])
        return np.clip(-along / np.sqrt(sketch * np.maximum(length_sq, 0.0)), -1.0, 1.0)

    def _smooth(self, now: dict[str, Array]) -> dict[str, Array]:
        """Exponential means, the running-median baseline, and what is made of them."""
        series = np.stack([now[name] for name in _SMOOTHED], axis=1)  # [B, S, L]
        means = np.empty_like(series)
        baseline = np.empty_like(now["grad_sq"])
        for b, values in enumerate(series):
            means[b] = self._smoother.push(values)
            baseline[b] = self._baseline.push(means[b, 0])
        mean = dict(zip(_SMOOTHED, np.moveaxis(means, 1, 0), strict=True))
        half = 0.5 * mean["update_sq"]
        return {
            "grad_sq_smooth": mean["grad_sq"],
            "grad_sq_baseline": baseline,
            "noise": mean["noise"],
            "noise_share": np.clip(mean["noise_free"] / mean["grad_sketch"], 0.0, 1.0),
            "norm_budget": half / (half - 0.5 * mean["param_change"]),
        }
