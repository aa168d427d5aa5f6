"""What the rules read: a Record with the causal signals that several of them share, each computed once.

A value at a row depends on that row and earlier ones only. Which layers count (`big`, `trained`) depends on the record
as far as it goes: a layer that is thawed late joins them then.

Legend: T rows, L layers.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cached_property
from math import inf, prod
from typing import Any

import numpy as np

from thermoclaw.diagnosis.initialization import LEAST_SIZE, are_usual
from thermoclaw.diagnosis.signals import (
    LossView,
    Mask,
    first_known,
    median_over,
    middle,
    over,
    step_gaps,
    trailing_mean,
    weights_of,
)
from thermoclaw.quantities import Array
from thermoclaw.record import Record

CLIP_SPREAD = 1e-3  # of norms that clipping makes equal

_views: weakref.WeakKeyDictionary[Record, View] = weakref.WeakKeyDictionary()


def view_of(record: Record) -> View:
    """The view of a record, made once."""
    found = _views.get(record)
    if found is None:
        found = _views[record] = View(weakref.proxy(record))
    return found


def _total(values: Array) -> Array:
    """Sum over layers, NaN where no layer has a value, Inf kept."""
    known = ~np.isnan(values)
    return np.where(known.any(axis=1), np.where(known, values, 0.0).sum(axis=1), np.nan)


@dataclass(frozen=True, eq=False)
class View:
    """See the module's docstring."""

    record: Record

    # -- what the run is --------------------------------------------------------------------------------------------

    @cached_property
    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups at the end of the record."""
        return list(self.record.meta.get("param_groups") or [{}])

    @cached_property
    def is_unit_size(self) -> bool:
        """Whether a step's size does not follow the gradient's: Adam and what resembles it."""
        name = self.record.optimizer.lower()
        words = ("adam", "lion", "lamb", "rmsprop", "muon", "adafactor", "adagrad", "adadelta", "sophia", "shampoo")
        return any(word in name for word in (*words, "soap", "prodigy", "adopt", "came", "signsgd", "rprop"))

    @cached_property
    def is_adam(self) -> bool:
        """Whether a step is a mean gradient over the root of a mean square, of size near one a weight."""
        return any(word in self.record.optimizer.lower() for word in ("adam", "adopt", "lamb")) and not any(
            word in self.record.optimizer.lower() for word in ("adamax", "adadelta")
        )

    @cached_property
    def is_signed(self) -> bool:
        """Whether a step is the sign of a mean gradient, of one size in every weight."""
        return any(word in self.record.optimizer.lower() for word in ("lion", "signsgd", "signum"))

    @cached_property
    def sizes(self) -> Array:
        """Parameters of each layer, [L]."""
        return np.array([max(layer.num_params, 1) for layer in self.record.layers], dtype=float)

    @cached_property
    def big(self) -> Mask:
        """Layers with real weight matrices that are trained, [L]; all with matrices where none is."""
        real = weights_of(self.record)
        return real & self.trained if (real & self.trained).any() else real

    @cached_property
    def tables(self) -> Mask:
        """Embeddings: rows that batches pick, without a fan-in, [L]."""
        return np.array([layer.ltype == "embedding" for layer in self.record.layers], dtype=bool)

    @cached_property
    def trained(self) -> Mask:
        """Layers that were stepped with a learning rate above zero at some row, [L]."""
        return np.asarray(
            (np.nan_to_num(self.record["lr"]) > 0).any(axis=0) & (self.record["has_grad"] > 0).any(axis=0)
        )

    @cached_property
    def chance(self) -> float:
        """ln C where the loss is a cross-entropy over the C outputs of the last layer; infinite where nobody knows."""
        drift = self.optional("output_drift")
        layer = int(np.argmax(np.isfinite(drift).any(axis=0))) if np.isfinite(drift).any() else -1
        shapes = self.record.meta.get("layer_shapes") or {}
        shape = shapes.get(self.record.layers[layer].name) if layer >= 0 else None
        told = drift[np.isfinite(drift[:, layer]), layer][:3] if shape else np.zeros(0)
        return float(np.log(shape[0])) if shape and len(told) and told.max() < 1e-4 and shape[0] > 1 else float("inf")

    @cached_property
    def began_with_weights(self) -> Mask:
        """Layers that did not start at zero (a new head, the second half of an adapter), [L]."""
        first = first_known(self.optional("start_gain"))
        new = self.record["distance"][:1] > 0.99 * self.record["param_sq"][:1]  # all there is came with the first step
        return np.where(np.isfinite(first), first > 1e-3, ~new.any(axis=0))

    @cached_property
    def newly_initialised(self) -> bool:
        """Whether weight matrices began at the scales of usual initializations; see `initialization.are_usual`."""
        return self._at_usual_scales(np.ones(len(self.record.layers), dtype=bool), 2)

    @cached_property
    def matrices_are_new(self) -> bool:
        """The same of all but the tables; there need not be any."""
        return self._at_usual_scales(~self.tables, 0)

    def _at_usual_scales(self, among: Mask, least: int) -> bool:
        if not len(self.record):
            return False
        gain, shapes = first_known(self.optional("start_gain")), self.record.meta.get("layer_shapes") or {}
        found = [
            (float(value), shapes[layer.name], layer.ltype)
            for layer, value, counts in zip(self.record.layers, gain.tolist(), among.tolist(), strict=True)
            if counts and len(shape := shapes.get(layer.name, ())) > 1 and prod(shape) >= LEAST_SIZE and 0 < value < inf
        ]
        return self.fresh and len(found) >= least and are_usual(found)

    @cached_property
    def is_game(self) -> bool:
        """Whether the loss runs through a model that another optimizer moves: it says little by itself then."""
        return bool(self.record.meta.get("is_game"))

    @cached_property
    def fresh(self) -> bool:
        """Whether the record begins with the run."""
        return len(self.record) > 0 and int(self.record.steps[0]) == 1

    # -- signals of the whole run, [T] ------------------------------------------------------------------------------

    @cached_property
    def loss(self) -> LossView | None:
        """The loss and what it gained; None where too few were given."""
        return LossView.of(self.record)

    @cached_property
    def grad(self) -> Array:
        """‖g‖ of all layers."""
        return np.sqrt(_total(self.record["grad_sq"]))

    @cached_property
    def update(self) -> Array:
        """‖Δ‖ of all layers."""
        return np.sqrt(_total(self.record["update_sq"]))

    @cached_property
    def lr(self) -> Array:
        """The largest learning rate of any layer."""
        values = np.nan_to_num(self.record["lr"])
        return values.max(axis=1) if values.shape[1] else np.zeros(len(values))

    @cached_property
    def rate_rises(self) -> Mask:
        """Where the learning rate is above that of twenty rows before: a warm-up, [T]."""
        return np.asarray(self.lr > 1.02 * np.concatenate([self.lr[:1].repeat(20), self.lr])[: len(self.lr)])

    @cached_property
    def update_ratio(self) -> Array:
        """Median over weight layers of ‖Δ‖/‖θ‖."""
        return median_over(self.record["update_ratio"], self.big)

    @cached_property
    def coherence(self) -> Array:
        """Median over weight layers of cos(g_t, g_{t−1})."""
        return median_over(self.record["coherence"], self.big)

    @cached_property
    def noise_share(self) -> Array:
        """Median over weight layers of the share of the squared gradient that is noise."""
        return median_over(self.record["noise_share"], self.big)

    @cached_property
    def alignment(self) -> Array:
        """Median over weight layers of cos(−g, Δ)."""
        return median_over(self.record["alignment"], self.big)

    @cached_property
    def own_slope(self) -> Array:
        """cos(−g_t, Δ_t) of all layers together."""
        return np.where(np.isfinite(self.alignment), over(self.work, self.grad * self.update), np.nan)

    @cached_property
    def overshoot(self) -> Array:
        """⟨g_t, Δ_{t−1}⟩ of all layers: what the new batch's loss does along the last step."""
        return _total(self.record["overshoot"])

    @cached_property
    def work(self) -> Array:
        """−⟨g_t, Δ_t⟩ of all layers."""
        return _total(self.record["work"])

    @cached_property
    def reach(self) -> Array:
        """⟨g_t, Δ_{t−1}⟩ / −⟨g_{t−1}, Δ_{t−1}⟩, smoothed: −1 where steps are short against curvature, > 0 past it."""
        work = np.concatenate([[np.nan], self.work[:-1]])
        return over(trailing_mean(self.overshoot, 20), np.abs(trailing_mean(work, 20)))

    @cached_property
    def unit_update(self) -> Array:
        """Root mean square of Δ/η of each layer, [T, L]: about 0.1 to 1 under Adam."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.sqrt(self.record["update_sq"] / self.sizes) / np.where(
                self.record["lr"] > 0, self.record["lr"], np.nan
            )

    @cached_property
    def radial(self) -> tuple[Array, Array]:
        """Growth of ln ‖θ‖ in a step and its share of the step's length, [T, L] each: 1 is growth along θ itself."""
        norm = np.log(np.where(self.record["param_norm"] > 0, self.record["param_norm"], np.nan))
        rate = np.diff(norm, axis=0, prepend=np.full((1, norm.shape[1]), np.nan)) / step_gaps(self.record)[:, None]
        return rate, np.clip(over(rate, self.record["update_ratio"]), -1.5, 1.5)

    @cached_property
    def radial_share(self) -> Array:
        """Median over weight layers of the share of a step that lengthens the weights, [T]."""
        return np.nan_to_num(median_over(self.radial[1], self.big))

    def is_clipped(self, rows: int) -> Mask:
        """Where the gradient norm has been one and the same number for some rows, as clipping makes it, [T]."""
        same = np.concatenate([[False], np.abs(over(self.grad[1:], self.grad[:-1]) - 1.0) < CLIP_SPREAD])
        return np.asarray(trailing_mean(same.astype(float), rows) > 1.0 - 2.0 / rows)

    def update_is_usual(self, row: int) -> bool:
        """Whether the step at a row is about as long as those of the fifty rows before it."""
        before = self.update[max(row - 50, 0) : row]
        usual = middle(before) if np.isfinite(before).any() else np.nan
        return bool(self.update[row] > 0.2 * usual)

    def optional(self, name: str) -> Array:
        """A layer quantity that older records may lack, [T, L]: NaN there."""
        try:
            return self.record[name]
        except KeyError:
            return np.full((len(self.record), len(self.record.layers)), np.nan)
