"""The entropy split: how much of σ = η‖g‖² buys descent (d_eS) and how much is overhead (d_iS), and of which kind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from thermoclaw.observer import Observer, observer_for
from thermoclaw.quantities import R_IE_CAP
from thermoclaw.record import Record
from thermoclaw.record.tables import SPLIT_CSV_COLUMNS
from thermoclaw.snapshot import StepHistory

_PARTS = {"d_iS_wd": "weight decay", "d_iS_momentum": "momentum and preconditioning", "d_iS_noise": "batch noise"}
_KNOBS = {
    "d_iS_wd": "Lower weight_decay there, or exclude them from it.",
    "d_iS_momentum": "Lower β₁ (momentum).",
    "d_iS_noise": "Use larger batches, or a lower learning rate.",
}


class _Fields:
    """Attribute access and key access alike."""

    def __getitem__(self, key: str) -> Any:
        try:
            return getattr(self, key)
        except AttributeError:
            raise KeyError(key) from None

    def keys(self) -> Iterator[str]:
        """Names of the fields."""
        return iter(self.__dataclass_fields__)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class LayerSplit(_Fields):
    """One layer's split at one step."""

    name: str
    ltype: str
    sigma_total: float
    d_eS: float
    d_iS: float
    d_iS_wd: float
    d_iS_momentum: float
    d_iS_noise: float
    R_ie: float
    lr: float
    gnorm_sq: float


@dataclass(frozen=True)
class SplitSnapshot(_Fields):
    """All layers' splits at one step."""

    step: int
    layers: list[LayerSplit]
    total_d_eS: float
    total_d_iS: float
    R_ie_median: float
    R_ie_max: float
    worst_layer: str
    worst_ltype: str


def split_snapshot(record: Record, row: int) -> SplitSnapshot:
    """One row of a record as a split snapshot."""
    columns = {key: record[name][row] for key, name in SPLIT_CSV_COLUMNS.items()}
    layers = [
        LayerSplit(name=layer.name, ltype=layer.ltype, **{key: float(values[i]) for key, values in columns.items()})
        for i, layer in enumerate(record.layers)
    ]
    ratios = np.nan_to_num(columns["R_ie"], nan=-1.0)
    worst = record.layers[int(np.argmax(ratios))]
    return SplitSnapshot(
        step=int(record.steps[row]),
        layers=layers,
        total_d_eS=float(record["total_d_eS"][row]),
        total_d_iS=float(record["total_d_iS"][row]),
        R_ie_median=float(record["R_ie_median"][row]),
        R_ie_max=float(record["R_ie_max"][row]),
        worst_layer=worst.name,
        worst_ltype=worst.ltype,
    )


class LazySplit(_Fields):
    """A `SplitSnapshot` that is read from the device when a field is looked at."""

    def __init__(self, splitter: EntropySplit, row: int) -> None:
        self._splitter, self._row = splitter, row
        self._value: SplitSnapshot | None = None

    def _read(self) -> SplitSnapshot:
        if self._value is None:
            record, place = self._splitter.observer.row_record(self._row)
            self._value = split_snapshot(record, place)
        return self._value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._read(), name)

    def keys(self) -> Iterator[str]:
        """Names of the fields."""
        return self._read().keys()

    def __repr__(self) -> str:
        return repr(self._read())


class EntropySplit:
    """Decomposes each layer's entropy production into productive work and overhead.

    σ = d_eS + d_iS and d_iS = d_iS_wd + d_iS_momentum + d_iS_noise, every term ≥ 0; see the theory page for the
    definitions, what each law says and where the split is blind.

    Args:
        model: the model, or an `Observer` alone: `EntropySplit(observer)`.
        optimizer: its optimizer; the observer already attached to it is shared.
        observer: the observer to share.
        noise_window, min_steps_for_noise_rec: taken for compatibility with thermoclaw 0.1.6; the noise is smoothed over
            the observer's own horizon of 39 steps.

    Example:
        >>> import torch, thermoclaw
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> splitter = thermoclaw.EntropySplit(model, optimizer)
        >>> model(torch.ones(8, 4)).square().mean().backward(); optimizer.step()
        >>> split = splitter.step()
        >>> round(split.layers[0].R_ie, 6)
        0.0
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any = None,
        observer: Observer | None = None,
        noise_window: int = 20,
        min_steps_for_noise_rec: int = 100,
    ) -> None:
        for name, value in (("noise_window", noise_window), ("min_steps_for_noise_rec", min_steps_for_noise_rec)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: give a whole number of at least 1")
        self.observer = observer_for(model, optimizer, observer, who="EntropySplit")

    def step(self) -> LazySplit:
        """The split of the step just made, read when it is looked at; never waits."""
        row = self.observer.listen(self)
        return LazySplit(self, row)

    def record(self) -> Record:
        """The observer's record, which holds the split's columns."""
        return self.observer.record()

    @property
    def step_history(self) -> StepHistory:
        """A `SplitSnapshot` for each recorded step."""
        return StepHistory(self.record(), split_snapshot)

    def summary(self) -> dict[str, Any]:
        """Totals over the run; R_ie is a ratio of sums."""
        record = self.record()
        totals = {name: float(np.nansum(record[name])) for name in ("sigma", "d_eS", "d_iS", *_PARTS)}
        return {"n_steps": record.num_steps, **totals, "R_ie": _ratio(totals["d_iS"], totals["d_eS"])}

    def report(self, top_k: int = 10) -> str:
        """The layers with the most overhead, as a table in text."""
        record = self.record()
        total = self.summary()
        lines = [
            "Entropy split",
            f"  {record.num_steps} steps, {len(record.layers)} layers, R_ie = {total['R_ie']:.3g} "
            f"(decay {total['d_iS_wd']:.3g}, momentum {total['d_iS_momentum']:.3g}, noise {total['d_iS_noise']:.3g} "
            f"against {total['d_eS']:.3g} productive)",
            "",
            f"  {'layer':<40} {'type':<10} {'R_ie':>8} {'sigma':>10} {'decay':>7} {'mom.':>7} {'noise':>7}",
        ]
        for name, ltype, ratio, sigma, shares in self._layers()[:top_k]:
            cells = " ".join(f"{share:>6.1%} " for share in shares)
            lines.append(f"  {name[-40:]:<40} {ltype:<10} {ratio:>8.3g} {sigma:>10.3g} {cells}")
        recommendations = self.get_recommendations() or ["Nothing to act on."]
        return "\n".join([*lines, "", *(f"  {text}" for text in recommendations)])

    def _layers(self) -> list[tuple[str, str, float, float, list[float]]]:
        """(name, type, R_ie, σ, shares of decay, momentum and noise in d_iS) over the run, worst first."""
        record = self.record()
        sums = {name: np.nansum(record[name], axis=0) for name in ("sigma", "d_eS", "d_iS", *_PARTS)}
        rows = []
        for i, layer in enumerate(record.layers):
            overhead = sums["d_iS"][i]
            shares = [float(sums[part][i] / overhead) if overhead > 0 else 0.0 for part in _PARTS]
            rows.append((layer.name, layer.ltype, _ratio(overhead, sums["d_eS"][i]), float(sums["sigma"][i]), shares))
        return sorted(rows, key=lambda row: -row[2])

    def get_recommendations(self) -> list[str]:
        """Layer types whose overhead exceeds twice their productive work, with its dominant source.

        HIGH: one source makes more than 60 % of the overhead, R_ie > 5, and both halves of the run agree. MEDIUM: the
        same with R_ie of 2 to 5. LOW: several sources. Only decay, which has one sure remedy, is ever above LOW.
        """
        record = self.record()
        if len(record) < 20:
            return []
        texts = []
        for ltype in dict.fromkeys(layer.ltype for layer in record.layers):
            mask = np.array([layer.ltype == ltype for layer in record.layers])
            text = self._recommend(record, ltype, mask)
            if text:
                texts.append(text)
        return sorted(texts, key=lambda t: ("[HIGH]", "[MEDIUM]", "[LOW]").index(t.split()[0]))

    @staticmethod
    def _recommend(record: Record, ltype: str, mask: np.ndarray) -> str | None:
        def over(part: slice) -> tuple[float, str, float]:
            sums = {name: float(np.nansum(record[name][part][:, mask])) for name in ("d_eS", "d_iS", *_PARTS)}
            top = max(_PARTS, key=lambda name: sums[name])
            return _ratio(sums["d_iS"], sums["d_eS"]), top, sums[top] / max(sums["d_iS"], 1e-300)

        half = len(record) // 2
        ratio, source, share = over(slice(None))
        first, second = over(slice(half)), over(slice(half, None))
        if min(ratio, second[0]) <= 2:
            return None
        steady = share > 0.6 and first[1] == second[1] == source and min(first[0], second[0]) > 2
        confidence = "LOW"
        if source == "d_iS_wd" and steady:
            confidence = "HIGH" if min(ratio, second[0]) > 5 else "MEDIUM"
        count = int(mask.sum())
        layers = f"{count} {ltype} layer{'s' if count != 1 else ''}"
        name = _PARTS[source].capitalize()
        word = "the dominant" if share > 0.6 else "the largest"
        return f"[{confidence}] {name} is {word} entropy source for {layers} (R_ie={ratio:.1f}). {_KNOBS[source]}"

    def plot_entropy_split(self, save_path: str | os.PathLike[str] | None = None, show: bool | None = None) -> Any:
        """Draw the split over time and by layer (needs the extra `viz`); no window with `save_path`."""
        from thermoclaw.report.plots import plot_entropy_split

        return plot_entropy_split(self.record(), save_path=save_path, show=show)

    def export_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a row per step and layer in the columns of thermoclaw 0.1.6."""
        self.record().split_to_csv(path)

    to_csv = export_csv


def _ratio(internal: float, external: float) -> float:
    if internal <= 0:
        return 0.0
    return min(internal / external, R_IE_CAP) if external > 0 else R_IE_CAP
