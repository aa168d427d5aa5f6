"""Raw inner products → the stored quantities of `thermoclaw.quantities`, row by row, with bounded memory. No torch.

Everything that remembers earlier steps (smoothing, baselines) lives here, on every row in order, so that thinning the
history later changes no value. Definitions and derivations: docs, theory.

Legend: B rows, U units, L layers, K raw columns, Q stored layer quantities.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thermoclaw.quantities import LAYER_COLUMNS, Array
from thermoclaw.state import StateError, array, count, maybe_array, take

SMOOTHING = 0.95
"""Weight of the past in every exponential mean."""

HORIZON = round((1 + SMOOTHING) / (1 - SMOOTHING))
"""Effective number of steps in such a mean: 39."""

RESOLUTION = 1e-6
"""‖Δ‖/‖θ⁻‖ below which single-precision sketches no longer tell Δ from rounding."""

BASELINE_STEPS = 200
BASELINE_EVERY = 4

_SMOOTHED = ("grad_sq", "noise", "noise_free", "grad_sketch", "update_sq", "param_change")


@dataclass(frozen=True)
class HyperRows:
    """Hyper-parameters by row and unit, each [B, U]."""

    lr: Array
    weight_decay: Array
    momentum: Array
    dampening: Array
    sign: Array
    decoupled: Array  # bool
    adaptive: Array  # bool
    nesterov: Array  # bool
    has_grad: Array  # 1 or 0; NaN where no parameter is to be trained


def noise_overhead(noise_share: Array) -> Array:
    """h(ν): what batch noise of share ν takes from alignment once it is averaged over HORIZON steps.

    h = 1 − √(W x / (W x + 1 − x)) with x = max(1 − ν, 2/W): the mean of W gradients of signal share x has that cosine
    with the true gradient. A signal below 2/W of the power cannot be told from none, so h saturates there.
    """
    signal = np.maximum(1.0 - noise_share, 2.0 / HORIZON)
    overhead = 1.0 - np.sqrt(HORIZON * signal / (HORIZON * signal + 1.0 - signal))
    return np.where(noise_share > 0, overhead, 0.0)


class LayerSums:
    """Adds units up to layers."""

    def __init__(self, unit_layer: Sequence[int], num_layers: int) -> None:
        self.num_layers = num_layers
        seen: dict[int, int] = {}
        rounds: dict[int, list[tuple[int, int]]] = {}
        for unit, layer in enumerate(unit_layer):
            turn = seen.get(layer, 0)
            seen[layer] = turn + 1
            rounds.setdefault(turn, []).append((unit, layer))
        self._rounds = [tuple(np.array(column) for column in zip(*pairs, strict=True)) for pairs in rounds.values()]
        self._is_one_to_one = list(unit_layer) == list(range(num_layers))

    def __call__(self, values: Array) -> Array:
        """[B, U] → [B, L]; layers without units are 0."""
        if self._is_one_to_one:
            return values + 0.0
        total = np.zeros((len(values), self.num_layers))
        for units, layers in self._rounds:
            total[:, layers] += values[:, units]
        return total


class _Lagged:
    """The last rows of a series, put before the next block."""

    def __init__(self, depth: int) -> None:
        self._rows: deque[Array] = deque(maxlen=depth)
        self.depth = depth

    def extend(self, values: Array) -> Array:
        """[B, L] → [depth + B, L] with NaN where nothing was seen yet; remembers the tail."""
        width = values.shape[1]
        joined = np.full((self.depth + len(values), width), np.nan)
        for place, row in enumerate(self._rows, self.depth - len(self._rows)):
            joined[place, : len(row)] = row[:width]
        joined[self.depth :] = values
        for row in joined[-self.depth :]:
            self._rows.append(row)
        return joined

    def state(self, width: int) -> Array:
        """The rows [≤ depth, L]."""
        return np.array(self._rows).reshape(len(self._rows), -1 if self._rows else width)

    def load(self, rows: Array) -> None:
        """Go on from `state`."""
        self._rows = deque(rows.copy(), maxlen=self.depth)


class _Smoother:
    """Bias-corrected exponential means of several series; a value that is not finite leaves its mean as it was."""

    def __init__(self, num_series: int, num_layers: int) -> None:
        self._sum = np.zeros((num_series, num_layers))
        self._weight = np.zeros((num_series, num_layers))

    def widen(self, num_layers: int) -> None:
        extra = ((0, 0), (0, num_layers - self._sum.shape[1]))
        self._sum, self._weight = np.pad(self._sum, extra), np.pad(self._weight, extra)

    def state_dict(self) -> dict[str, Any]:
        """Sums and weights [S, L]."""
        return {"series": list(_SMOOTHED), "sum": self._sum, "weight": self._weight}

    def load_state_dict(self, state: Any) -> None:
        """Go on from `state_dict`."""
        if take(state, "series", list) != list(_SMOOTHED):
            raise StateError(f"it smooths {state['series']}, and this version {list(_SMOOTHED)}")
        self._sum, self._weight = (array(state, name, *self._sum.shape) for name in ("sum", "weight"))

    def push(self, values: Array) -> Array:
        """[S, L] → the means [S, L], NaN before the first finite value."""
        good = np.isfinite(values)
        old, new = SMOOTHING, 1.0 - SMOOTHING
        if good.all():
            self._sum = old * self._sum + new * values
            self._weight = old * self._weight + new
            return self._sum / self._weight
        self._sum = np.where(good, old * self._sum + new * np.where(good, values, 0.0), self._sum)
        self._weight = np.where(good, old * self._weight + new, self._weight)
        return np.where(self._weight > 0, self._sum / np.maximum(self._weight, 1e-300), np.nan)


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
        self._samples: deque[Array] = deque(maxlen=max(baseline_steps // BASELINE_EVERY, 1))
        self._baseline: Array | None = None
        self._num_rows = 0
        self._started = started
        self._before_sq: Array | None = None  # ‖θ⁻‖² of the units before the next row
        self._carried: Array | None = None  # length of the decay in SGD's momentum, by unit
        self._lag = {
            "grad_sq": _Lagged(3),
            "grad_sketch": _Lagged(3),
            "g_g2": _Lagged(1),
            "param_sq": _Lagged(1),
            "lost": _Lagged(1),
        }
        self._smoother: _Smoother | None = None
        self._sums: LayerSums | None = None
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
        self._sums = LayerSums(unit_layer, num_layers)
        if self._carried is not None and len(self._carried) != len(unit_layer):
            self._carried, self._started = None, True  # which unit carried what is not known any more
        self._before_sq = None
        self._unit_size = np.maximum(np.asarray(unit_size, dtype=np.float64), 1.0)
        if self._smoother is None:
            self._smoother = _Smoother(len(_SMOOTHED), num_layers)
        else:
            self._smoother.widen(num_layers)

    def start_from(self, param_sq: Array) -> None:
        """Tell the squared norms [U] before the next step."""
        assert self._sums is not None
        self._lag["param_sq"].extend(self._sums(param_sq[None]))
        self._before_sq = param_sq

    def gap(self) -> None:
        """Tell that steps were left out before the next row: what is made of neighboring rows is undefined there."""
        for name, lagged in self._lag.items():
            self._lag[name] = _Lagged(lagged.depth)
        self._before_sq = self._carried = None
        self._started = True

    def state_dict(self) -> dict[str, Any]:
        """What is remembered of earlier rows."""
        assert self._sums is not None
        assert self._smoother is not None
        num_layers = self._sums.num_layers
        samples = [np.pad(s, (0, num_layers - len(s)), constant_values=np.nan) for s in self._samples]
        return {
            "smoother": self._smoother.state_dict(),
            "lags": {name: lagged.state(num_layers) for name, lagged in self._lag.items()},
            "samples": np.array(samples).reshape(len(samples), num_layers),
            "baseline": self._baseline,
            "num_rows": self._num_rows,
            "started": self._started,
            "before_sq": self._before_sq,
            "carried": self._carried,
        }

    def load_state_dict(self, state: Any) -> None:
        """Go on from `state_dict`, with the units that are bound."""
        assert self._sums is not None
        assert self._smoother is not None
        num_layers, num_units = self._sums.num_layers, len(self._unit_size)
        self._smoother.load_state_dict(take(state, "smoother", dict))
        lags = take(state, "lags", dict)
        for name, lagged in self._lag.items():
            width = num_units if name == "lost" else num_layers
            lagged.load(array(lags, name, None, None)[:, :width])  # those from before others joined may be narrower
        self._samples = deque(array(state, "samples", None, num_layers), maxlen=self._samples.maxlen)
        baseline = maybe_array(state, "baseline", None)
        self._baseline = None if baseline is None else baseline[:num_layers]
        self._num_rows, self._started = count(state, "num_rows"), take(state, "started", bool)
        self._before_sq = maybe_array(state, "before_sq", num_units)
        self._carried = maybe_array(state, "carried", num_units)

    def rows(self, raw: Array, hyper: HyperRows, probed: Mapping[str, Array]) -> Array:
        """Stored quantities [B, L, Q] of raw rows [B, U, K]; `probed`: those that a probe measured [B, L]."""
        assert self._sums is not None
        assert self._smoother is not None
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            columns = {name: raw[:, :, i] for name, i in self._columns.items()}
            now = self._instant(self._without_the_lost(columns), hyper)
            smooth = self._smooth(now)
            now.update(smooth)
            now.update(self._split(now))
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
        assert add is not None
        lr = np.where(np.isnan(hyper.lr), raw["lr"], hyper.lr)
        sign = hyper.sign
        size = np.broadcast_to(self._unit_size, lr.shape)
        now = {
            "grad_sq": add(raw["g_g"]),
            "param_sq": add(raw["p_p"]),
            "update_sq": add(raw["d_d"]),
            "distance": add(raw["f_f"]),
            "sigma": add(np.where(raw["g_g"] == 0, 0.0, lr * raw["g_g"])),
            "has_grad": _any(add, hyper.has_grad),
            "lr": _mean(add, lr, size),
            "momentum": _mean(add, hyper.momentum, size),
            "weight_decay": _mean(add, hyper.weight_decay, raw["p_p"]),
        }
        sketch = add(raw["gs_gs"])
        norm = self._lag["grad_sketch"].extend(sketch)
        exact = self._lag["grad_sq"].extend(now["grad_sq"])
        products = {lag: add(raw[f"g_g{lag}"]) for lag in (1, 2, 3)}
        cosine = products[1] / np.sqrt(norm[3:] * norm[2:-1])
        now["coherence"] = np.clip(cosine, -1.0, 1.0)
        both = np.sqrt(exact[3:] * exact[2:-1])
        now["noise"] = 0.5 * (exact[3:] + exact[2:-1]) - np.where(both == 0, 0.0, now["coherence"] * both)
        earlier = self._lag["g_g2"].extend(products[2])[:-1]
        now["noise_free"] = products[3] - products[1] - earlier + norm[2:-1]
        now["grad_sketch"] = sketch
        now["param_change"] = np.diff(self._lag["param_sq"].extend(now["param_sq"]), axis=0)

        scale = np.sqrt(now["grad_sq"] / sketch)  # exact over sketched norm: calibrates products with g
        now["overshoot"] = add(sign * raw["g_d1"]) * np.where(sketch > 0, scale, 1.0)
        along = add(sign * raw["g_d"])
        now["alignment"] = np.clip(-along / np.sqrt(sketch * now["update_sq"]), -1.0, 1.0)
        now["alignment_free"] = self._without_decay(raw, hyper, lr, sketch)
        return now

    def _without_decay(self, raw: Mapping[str, Array], hyper: HyperRows, lr: Array, sketch: Array) -> Array:
        """cos(−g, Δ′), Δ′ the step without its decay part κλθ⁻."""
        add = self._sums
        assert add is not None
        gradient_and_decay = (
            raw["gs_gs"] + 2 * hyper.sign * hyper.weight_decay * raw["g_p"] + hyper.weight_decay**2 * raw["ps_ps"]
        )
        pull = np.where(hyper.decoupled, lr * hyper.weight_decay, lr * self._carried_decay(raw, hyper))
        pull = np.where(hyper.adaptive, hyper.weight_decay * np.sqrt(raw["d_d"] / gradient_and_decay), pull)
        pull = np.where(np.isfinite(pull) & (pull > 0), pull, 0.0)
        along = add(hyper.sign * (raw["g_d"] + pull * raw["g_p"]))
        length_sq = add(raw["d_d"] + 2 * pull * raw["d_p"] + pull**2 * raw["ps_ps"])
        return np.clip(-along / np.sqrt(sketch * np.maximum(length_sq, 0.0)), -1.0, 1.0)

    def _carried_decay(self, raw: Mapping[str, Array], hyper: HyperRows) -> Array:
        """Decay in an SGD step of rate 1 over ‖θ⁻‖, [B, U]: b ← βb + (1 − dampening)λ‖θ⁻‖, the first undampened.

        Lengths are carried instead of vectors, which is exact while θ keeps its direction.
        """
        first = raw["ps_ps"][:1] if self._before_sq is None else self._before_sq[None]
        before = np.sqrt(np.concatenate([first, raw["p_p"][:-1]]))
        self._before_sq = raw["p_p"][-1]
        step = np.empty_like(before)
        for b, length in enumerate(before):
            beta, gain = hyper.momentum[b], 1.0 - hyper.dampening[b]
            force = hyper.weight_decay[b] * length
            if self._carried is None:
                carried = gain * force / (1.0 - beta) if self._started else force
            else:
                carried = np.where(hyper.has_grad[b] == 1, beta * self._carried + gain * force, self._carried)
            self._carried = np.where(beta > 0, carried, force)
            step[b] = np.where(hyper.nesterov[b] & (beta > 0), force + beta * self._carried, self._carried) / length
        return step

    def _smooth(self, now: dict[str, Array]) -> dict[str, Array]:
        """Exponential means, the running-median baseline, and what is made of them."""
        assert self._smoother is not None
        series = np.stack([now[name] for name in _SMOOTHED], axis=1)  # [B, S, L]
        means = np.empty_like(series)
        baseline = np.empty_like(now["grad_sq"])
        for b, values in enumerate(series):
            means[b] = self._smoother.push(values)
            baseline[b] = self._rebase(means[b, 0])
            self._num_rows += 1
        mean = dict(zip(_SMOOTHED, np.moveaxis(means, 1, 0), strict=True))
        half = 0.5 * mean["update_sq"]
        return {
            "grad_sq_smooth": mean["grad_sq"],
            "grad_sq_baseline": baseline,
            "noise": mean["noise"],
            "noise_share": np.clip(mean["noise_free"] / mean["grad_sketch"], 0.0, 1.0),
            "norm_budget": half / (half - 0.5 * mean["param_change"]),
        }

    def _rebase(self, smooth: Array) -> Array:
        """Running median of the smoothed squared gradient, renewed every few rows."""
        if self._num_rows % BASELINE_EVERY == 0 or self._baseline is None:
            if self._samples and len(self._samples[0]) != len(smooth):
                wide = [np.pad(s, (0, len(smooth) - len(s)), constant_values=np.nan) for s in self._samples]
                self._samples = deque(wide, maxlen=self._samples.maxlen)
            self._samples.append(smooth.copy())  # not a view, which would keep its whole block
            window = np.array(self._samples)
            bad = np.isnan(window)
            self._baseline = _nanmedian(window, bad) if bad.any() else np.median(window, axis=0)
        elif len(self._baseline) != len(smooth):
            extra = len(smooth) - len(self._baseline)
            self._baseline = np.pad(self._baseline, (0, extra), constant_values=np.nan)
        return self._baseline

    @staticmethod
    def _split(now: Mapping[str, Array]) -> dict[str, Array]:
        """The entropy split: shares of σ that sum to one by construction."""
        sigma = now["sigma"]
        still = (now["update_sq"] == 0) & np.isfinite(now["grad_sq"])
        aligned = np.where(still, 0.0, np.maximum(now["alignment"], 0.0))
        free = np.where(still, 0.0, np.maximum(now["alignment_free"], 0.0))
        free = np.where(np.isfinite(free), free, aligned)
        overhead = noise_overhead(np.nan_to_num(now["noise_share"], nan=0.0))
        parts = {
            "d_iS_wd": np.maximum(free - aligned, 0.0),
            "d_iS_momentum": 1.0 - np.maximum(free, aligned),
            "d_iS_noise": np.maximum(aligned - (1.0 - overhead), 0.0),
        }
        return {name: np.where(sigma == 0, 0.0, sigma * share) for name, share in parts.items()}


def _any(add: LayerSums, values: Array) -> Array:
    """Whether any of a layer's units has a 1; NaN where all of them are NaN."""
    known = add((~np.isnan(values)).astype(float)) > 0
    return np.where(known, (add(np.nan_to_num(values)) > 0).astype(float), np.nan)


def _mean(add: LayerSums, values: Array, weight: Array) -> Array:
    """Weighted mean over a layer's units."""
    weight = np.where(np.isfinite(weight) & (weight > 0), weight, 1e-300)
    known = np.isfinite(values)
    total = add(np.where(known, weight, 0.0))
    return np.where(total > 0, add(np.where(known, values * weight, 0.0)) / np.where(total > 0, total, 1.0), np.nan)


def _nanmedian(window: Array, bad: Array) -> Array:
    """Median over rows that ignores NaN; NaN where there is nothing else."""
    empty = bad.all(axis=0)
    return np.where(empty, np.nan, np.nanmedian(np.where(empty, 0.0, window), axis=0))
