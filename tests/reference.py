"""A slow reference in double precision: a run of which everything is kept, and every definition written out once more.

Nothing here calls the library, and nothing is shared with it: constants are repeated, layers are told by hand, and all
sums run over whole vectors. The equations are those of the documentation's pages "Quantities" and "Theory".

Legend: T steps, L layers, N elements of a parameter. For one layer at step t: g gradient, θ⁻ and θ the parameters
before and after, Δ = θ − θ⁻, η λ β of each parameter's group at that step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

SMOOTHING = 0.95  # weight of the past in an exponential mean
HORIZON = 39  # W = (1 + 0.95) / (1 − 0.95), its effective number of steps
MEDIAN_EVERY, MEDIAN_SAMPLES = 4, 50  # the running median looks at every fourth row, at most 50 of them
R_IE_CAP = 1000.0
BAND = 0.15
EQ_WINDOW = 50


@dataclass(frozen=True)
class Hyper:
    """One parameter's settings at one step."""

    group: int
    lr: float
    weight_decay: float
    momentum: float
    dampening: float
    nesterov: bool
    maximize: bool


@dataclass(frozen=True)
class Parameter:
    """One parameter at one step, flat and in double precision."""

    g: Array
    before: Array
    after: Array
    hyper: Hyper
    has_grad: bool

    @property
    def step(self) -> Array:
        return self.after - self.before


Layer = list[Parameter]


@dataclass
class Trace:
    """A whole run, kept by hand: call `before` and `after` around each optimizer step.

    `layers` names each layer's parameters; `decay` says how the optimizer applies weight decay: "decoupled", "sgd" or
    "adaptive".
    """

    layers: dict[str, list[Tensor]]
    optimizer: Any
    decay: str = "decoupled"
    steps: list[list[Layer]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    _before: list[list[Array]] = field(default_factory=list)
    _grads: list[list[Array | None]] | None = None
    _hyper: dict[int, Hyper] = field(default_factory=dict)

    def before(self, *, grads: bool = True) -> None:
        """Keep θ⁻, the settings and, unless a closure has yet to make them, the gradients."""
        self._before = [[flatten(p) for p in params] for params in self.layers.values()]
        self._grads = self._read_grads() if grads else None
        self._hyper = {}
        for i, group in enumerate(self.optimizer.param_groups):
            betas = group.get("betas")
            for p in group["params"]:
                self._hyper[id(p)] = Hyper(
                    group=i,
                    lr=float(group["lr"]),
                    weight_decay=float(group.get("weight_decay", 0.0)),
                    momentum=float(betas[0] if betas else group.get("momentum", 0.0)),
                    dampening=float(group.get("dampening", 0.0)),
                    nesterov=bool(group.get("nesterov", False)),
                    maximize=bool(group.get("maximize", False)),
                )

    def after(self, loss: float | Tensor = float("nan")) -> None:
        """Keep θ and close the row."""
        grads = self._grads if self._grads is not None else self._read_grads()
        row: list[Layer] = []
        for params, before, found in zip(self.layers.values(), self._before, grads, strict=True):
            row.append(
                [
                    Parameter(np.zeros_like(x) if g is None else g, x, flatten(p), self._hyper[id(p)], g is not None)
                    for p, x, g in zip(params, before, found, strict=True)
                ]
            )
        self.steps.append(row)
        self.losses.append(float(torch.as_tensor(loss).detach()))

    def _read_grads(self) -> list[list[Array | None]]:
        return [[None if p.grad is None else flatten(p.grad) for p in params] for params in self.layers.values()]


def flatten(x: Tensor) -> Array:
    x = x.detach()
    x = x.to_dense() if x.is_sparse else x
    x = torch.view_as_real(x) if x.is_complex() else x
    return x.double().reshape(-1).numpy().copy()


# -- sums over a layer ------------------------------------------------------------------------------------------------


def over(layer: Layer, value: Callable[[Parameter], Array]) -> Array:
    """The layer's vector of `value`."""
    return np.concatenate([value(p) for p in layer])


def g_of(layer: Layer) -> Array:
    return over(layer, lambda p: p.g)


def descent_of(layer: Layer) -> Array:
    """−g, or g where the optimizer maximizes: the direction in which the step should go."""
    return over(layer, lambda p: p.g if p.hyper.maximize else -p.g)


def step_of(layer: Layer) -> Array:
    return over(layer, lambda p: p.step)


def cos(x: Array, y: Array) -> float:
    with np.errstate(invalid="ignore"):
        return float(np.dot(x, y) / np.sqrt(np.dot(x, x) * np.dot(y, y)))


def mean_over(layer: Layer, value: Callable[[Hyper], float], weight: Callable[[Parameter], float]) -> float:
    """Mean of a setting over the layer's parameters."""
    weights = np.array([weight(p) for p in layer])
    values = np.array([value(p.hyper) for p in layer])
    return float((weights * values).sum() / weights.sum())


# -- smoothing --------------------------------------------------------------------------------------------------------


def smoothed(values: Iterable[float]) -> Array:
    """⟨x⟩_t = Σ_k 0.95^k x_{t−k} / Σ_k 0.95^k over the rows at which x was defined."""
    seen: list[float] = []
    out = []
    for value in values:
        if np.isfinite(value):
            seen.append(value)
        weights = SMOOTHING ** np.arange(len(seen))[::-1]
        out.append(float((weights * np.array(seen)).sum() / weights.sum()) if seen else np.nan)
    return np.array(out)


def running_median(values: Array) -> Array:
    """Median of every fourth value up to now, the last fifty of them; renewed every fourth row."""
    out = []
    for t in range(len(values)):
        last = t - t % MEDIAN_EVERY
        samples = values[: last + 1][::MEDIAN_EVERY][-MEDIAN_SAMPLES:]
        known = samples[np.isfinite(samples)]
        out.append(float(np.median(known)) if len(known) else np.nan)
    return np.array(out)


# -- the decay part of a step -----------------------------------------------------------------------------------------


def without_decay(layer: Layer, *, decay: str, carried: dict[int, float]) -> Array:
    """Δ′, the step without what weight decay did: Δ + κ λ θ⁻, κ by the way in which the optimizer applies decay."""
    parts = []
    for p in layer:
        h = p.hyper
        if h.weight_decay == 0:
            parts.append(p.step)
            continue
        if decay == "decoupled":  # θ ← θ − ηλθ⁻
            kappa = h.lr
        elif decay == "sgd":  # what momentum carries of earlier decay, along today's θ⁻
            norm = float(np.linalg.norm(over([q for q in layer if q.hyper.group == h.group], lambda q: q.before)))
            kappa = h.lr * carried[h.group] / (h.weight_decay * norm)
        else:  # the step's length in proportion, over the parameters of the layer that share a group
            unit = [q for q in layer if q.hyper.group == h.group]
            force = over(unit, lambda q: (-q.g if q.hyper.maximize else q.g) + q.hyper.weight_decay * q.before)
            kappa = float(np.sqrt(np.dot(step_of(unit), step_of(unit)) / np.dot(force, force)))
        parts.append(p.step + kappa * h.weight_decay * p.before)
    return np.concatenate(parts)


def carry_decay(layer: Layer, carried: tuple[dict[int, float], dict[int, float]], *, first: bool) -> None:
    """SGD's own recursion on the lengths of λθ⁻: (length in this step, length in the buffer), by group."""
    in_step, in_buffer = carried
    for group in {p.hyper.group for p in layer}:
        unit = [p for p in layer if p.hyper.group == group]
        h = unit[0].hyper
        force = h.weight_decay * float(np.linalg.norm(over(unit, lambda p: p.before)))
        if first:
            in_buffer[group] = force  # the first gradient enters undampened
        elif any(p.has_grad for p in unit):
            in_buffer[group] = h.momentum * in_buffer[group] + (1.0 - h.dampening) * force
        buffer = in_buffer[group]
        in_step[group] = force if h.momentum == 0 else force + h.momentum * buffer if h.nesterov else buffer


# -- one layer --------------------------------------------------------------------------------------------------------


def layer_quantities(rows: list[Layer], *, decay: str) -> dict[str, Array]:
    """Every stored and derived quantity of one layer, [T] each."""
    num_steps = len(rows)
    grads, steps = [g_of(r) for r in rows], [step_of(r) for r in rows]
    size = grads[0].size
    origin = over(rows[0], lambda p: p.before)

    def lagged(name: str, t: int, lag: int) -> Array | None:
        return {"g": grads, "step": steps}[name][t - lag] if t >= lag else None

    q: dict[str, list[float]] = {}

    def put(name: str, value: float) -> None:
        q.setdefault(name, []).append(float(value))

    raw_noise, raw_free, raw_change = [], [], []
    carried: tuple[dict[int, float], dict[int, float]] = ({}, {})
    for t, row in enumerate(rows):
        g, d, down = grads[t], steps[t], descent_of(row)
        before, after = over(row, lambda p: p.before), over(row, lambda p: p.after)
        put("grad_sq", np.dot(g, g))
        put("param_sq", np.dot(after, after))
        put("update_sq", np.dot(d, d))
        put("sigma", sum(p.hyper.lr * np.dot(p.g, p.g) for p in row))  # σ = Σ_p η_p ‖g_p‖²
        put("distance", np.dot(after - origin, after - origin))  # E = ‖θ − θ₀‖²
        g1, g3 = lagged("g", t, 1), lagged("g", t, 3)
        put("coherence", np.nan if g1 is None else cos(g, g1))  # ρ = cos(g_t, g_{t−1})
        put("alignment", cos(down, d))  # c = cos(−g, Δ)
        d1 = lagged("step", t, 1)
        put("overshoot", np.nan if d1 is None else -np.dot(down, d1))  # ⟨g_t, Δ_{t−1}⟩
        put("work", np.dot(down, d))  # −⟨g, Δ⟩
        put("lr", mean_over(row, lambda h: h.lr, lambda p: p.g.size))
        put("momentum", mean_over(row, lambda h: h.momentum, lambda p: p.g.size))
        put("weight_decay", mean_over(row, lambda h: h.weight_decay, lambda p: np.dot(p.after, p.after)))
        put("has_grad", any(p.has_grad for p in row))
        carry_decay(row, carried, first=t == 0)
        put("free", cos(down, without_decay(row, decay=decay, carried=carried[0])))  # c′
        raw_noise.append(np.nan if g1 is None else 0.5 * np.dot(g - g1, g - g1))
        raw_free.append(np.nan if g3 is None or g1 is None else np.dot(g - g1, g3 - g1))
        raw_change.append(np.dot(after, after) - np.dot(before, before))

    x = {name: np.array(values) for name, values in q.items()}
    x["grad_sq_smooth"] = smoothed(x["grad_sq"])
    x["grad_sq_baseline"] = running_median(x["grad_sq_smooth"])
    x["noise"] = smoothed(raw_noise)  # tr Σ = ½⟨‖g_t − g_{t−1}‖²⟩
    with np.errstate(invalid="ignore", divide="ignore"):
        # ν = ⟨⟨g_t − g_{t−1}, g_{t−3} − g_{t−1}⟩⟩₊ / ⟨‖g‖²⟩
        x["noise_share"] = np.clip(smoothed(raw_free) / x["grad_sq_smooth"], 0.0, 1.0)
        half = 0.5 * smoothed(x["update_sq"])
        x["norm_budget"] = half / (half - 0.5 * smoothed(raw_change))  # ½‖Δ‖² / −⟨θ⁻, Δ⟩

    # the entropy split: σ (c′₊ − c₊)₊, σ (1 − max(c₊, c′₊)), σ (c₊ − (1 − h(ν)))₊; a layer that stands still has c = 0
    still = (x["update_sq"] == 0) & np.isfinite(x["grad_sq"])
    c = np.where(still, 0.0, np.maximum(x["alignment"], 0.0))
    free = np.where(still, 0.0, np.maximum(x.pop("free"), 0.0))
    free = np.where(np.isfinite(free), free, c)
    h = np.array([noise_overhead(nu) for nu in x["noise_share"]])
    quiet = x["sigma"] == 0
    x["d_iS_wd"] = np.where(quiet, 0.0, x["sigma"] * np.maximum(free - c, 0.0))
    x["d_iS_momentum"] = np.where(quiet, 0.0, x["sigma"] * (1.0 - np.maximum(free, c)))
    x["d_iS_noise"] = np.where(quiet, 0.0, x["sigma"] * np.maximum(c - (1.0 - h), 0.0))
    x["d_iS"] = x["d_iS_wd"] + x["d_iS_momentum"] + x["d_iS_noise"]
    x["d_eS"] = np.where(quiet, 0.0, x["sigma"] * np.minimum(c, 1.0 - h))
    x["R_ie"] = np.array([capped(a, b) for a, b in zip(x["d_iS"], x["d_eS"], strict=True)])

    x["grad_norm"], x["param_norm"], x["update_norm"] = (np.sqrt(x[f"{n}_sq"]) for n in ("grad", "param", "update"))
    x["sigma_ema"] = x["lr"] * x["grad_sq_smooth"]
    x["sigma_star"] = x["lr"] * x["grad_sq_baseline"]
    with np.errstate(invalid="ignore", divide="ignore"):
        x["r"] = x["grad_sq_smooth"] / x["grad_sq_baseline"]
        x["grad_param_ratio"] = x["grad_norm"] / x["param_norm"]
        x["update_ratio"] = x["update_norm"] / x["param_norm"]
    x["temperature"] = 0.5 * x["lr"] * x["noise"] / size  # T = (η/2) tr Σ / N
    assert all(len(values) == num_steps for values in x.values())
    return x


def noise_overhead(nu: float) -> float:
    """h(ν) = 1 − √(Wx / (Wx + 1 − x)), x = max(1 − ν, 2/W), and 0 where there is no noise."""
    if not nu > 0:
        return 0.0
    x = max(1.0 - nu, 2.0 / HORIZON)
    return float(1.0 - np.sqrt(HORIZON * x / (HORIZON * x + 1.0 - x)))


def capped(internal: float, external: float) -> float:
    """d_iS / d_eS, at most 1000, and 0 where there is no overhead."""
    if np.isnan(internal):
        return np.nan
    if not internal > 0:
        return 0.0
    return min(internal / external, R_IE_CAP) if external > 0 else R_IE_CAP


# -- the run ----------------------------------------------------------------------------------------------------------


def quantities(trace: Trace) -> dict[str, Array]:
    """Every quantity of the table but `epoch`: [T, L] for a layer's, [T] for the run's."""
    num_layers = len(trace.layers)
    per_layer = [layer_quantities([row[i] for row in trace.steps], decay=trace.decay) for i in range(num_layers)]
    x = {name: np.stack([layer[name] for layer in per_layer], axis=1) for name in per_layer[0]}

    def reduce(how: Callable[[Array], float], name: str) -> Array:
        rows = [row[np.isfinite(row)] for row in x[name]]
        return np.array([how(row) if len(row) else np.nan for row in rows])

    x["loss"] = np.array(trace.losses)
    x["D"] = reduce(lambda r: float(((r - r.mean()) ** 2).mean()), "r")  # D = Var_l(r)
    x["rho_mean"] = reduce(lambda r: float(r.mean()), "coherence")
    x["R_median"] = reduce(lambda r: float(np.median(r)), "r")
    x["E_param_dist"] = reduce(lambda r: float(r.sum()), "distance")
    x["eq_now"] = reduce(lambda r: float((np.abs(r - 1.0) <= BAND).mean()), "r")
    x["eq_frac"] = np.array([x["eq_now"][max(0, t - EQ_WINDOW + 1) : t + 1].mean() for t in range(len(x["eq_now"]))])
    x["total_d_eS"] = reduce(lambda r: float(r.sum()), "d_eS")
    x["total_d_iS"] = reduce(lambda r: float(r.sum()), "d_iS")
    x["R_ie_total"] = np.array([capped(a, b) for a, b in zip(x["total_d_iS"], x["total_d_eS"], strict=True)])
    x["R_ie_median"] = reduce(lambda r: float(np.median(r)), "R_ie")
    x["R_ie_max"] = reduce(lambda r: float(r.max()), "R_ie")
    return x
