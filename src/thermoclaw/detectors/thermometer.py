"""The thermometer: how hot a run is, what it dissipates, how its weights wander, and whether it has come to rest."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from thermoclaw import checkpoint
from thermoclaw.detectors.equilibrium import Equilibrium, circulation, drifting_share, predicted, rotation
from thermoclaw.detectors.sampled import SampledPath
from thermoclaw.detectors.wordings import batch_below_noise_scale, come_to_rest
from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diffusion import LEAST_ROWS, Array, Diffusion, Estimate, describe, displacement_by_coordinate
from thermoclaw.motion import WIDE, Motion, norm_balance
from thermoclaw.observer import Observer, observer_for
from thermoclaw.record import Record
from thermoclaw.state import take

SIGNAL, NOISE = 0.5, 0.9  # noise shares below which gradients lead, and above which they shake
LEAST_STEPS, AT_REST = 200, 0.8  # recorded steps before it has findings, and the share of layers whose norms stay
RESTS = {"diffusive": "wander at random", "confined": "are held in a bowl", "stuck": "shake on the spot"}


class Thermometer:
    """Temperature, dissipation, noise scale, diffusion and the fluctuation–dissipation ratio of a run.

    Temperature T = (η/2)·tr Σ/N, dissipation σ = η‖g‖² and the noise come from the observer's record. A few hundred
    weights of each layer are copied every so many steps, on their device, for the displacement.

    Args:
        model: the model, or an `Observer` alone: `Thermometer(observer)`.
        optimizer: its optimizer; the observer already attached to it is shared.
        batch_size: examples a step, for the noise scale in examples.
        points: weights sampled in each layer, at most.
        rows: samples kept, at most; when they are full every other one goes.
        every: steps between two samples at first.
        observer: the observer to share.

    Raises:
        ValueError: a setting is out of range, or the parameters are spread over processes.

    Example:
        >>> import torch, thermoclaw
        >>> model = torch.nn.Linear(16, 4)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> thermometer = thermoclaw.Thermometer(model, optimizer, batch_size=8)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     (model(torch.randn(8, 16)) - torch.randn(8, 4)).square().mean().backward()
        ...     optimizer.step()
        ...     thermometer.step()
        >>> thermometer.summary()["sampled_steps"], thermometer.diffusion().motion != "unknown"
        (100, True)
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any = None,
        *,
        batch_size: int | None = None,
        points: int = 256,
        rows: int = 256,
        every: int = 1,
        observer: Observer | None = None,
    ) -> None:
        for name, value, least in (("points", points, 1), ("rows", rows, LEAST_ROWS), ("every", every, 1)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}={value!r}: give a whole number of at least {least}")
        if batch_size is not None and not batch_size > 0:
            raise ValueError(f"batch_size={batch_size!r}: give the examples of a step, or None")
        self.observer = observer_for(model, optimizer, observer, who="Thermometer")
        self.batch_size = batch_size
        self._path = SampledPath(self.observer.units(), points=points, rows=rows, stride=every)
        self._told: tuple[tuple[int, int], Diffusion, dict[int, Diffusion]] | None = None
        self.observer.hear(self)

    def step(self) -> None:
        """Take a sample if one is due; call it after `optimizer.step()`. Never waits for the device."""
        self.observer.listen(self)
        step = self.observer.global_step
        if step >= self._path.due:
            self._path.take(step)

    def record(self) -> Record:
        """The observer's record."""
        return self.observer.record()

    def state_dict(self) -> dict[str, Any]:
        """The samples taken so far, for a checkpoint; the observer's state is its own. Waits for the device."""
        return checkpoint.pack("Thermometer", {"path": self._path.state_dict()})

    def load_state_dict(self, state: Any) -> None:
        """Go on from what `state_dict` returned, before the first step.

        Raises:
            StateError: (a ValueError) it is damaged, from a newer version, or of another model or other settings.
        """
        self._path.load_state_dict(take(checkpoint.unpack("Thermometer", state), "path", dict))
        self._told = None

    # -- what it shows ----------------------------------------------------------------------------------------------

    def diffusion(self, layer: str | None = None) -> Diffusion:
        """Displacement of the sampled weights, of all layers or of one, over the second half of the samples. Waits.

        Raises:
            KeyError: there is no such layer.
        """
        whole, layers = self._motions()
        if layer is None:
            return whole
        names = self.observer.layer_names()
        if layer not in names:
            raise KeyError(f"no layer {layer!r}; there are {', '.join(names[:8])}")
        return layers[names.index(layer)]

    def _motions(self) -> tuple[Diffusion, dict[int, Diffusion]]:
        """Of all layers and of each that has samples; made anew when there are new samples."""
        state = (len(self._path.steps), self._path.due)
        if self._told is None or self._told[0] != state:
            rows = self._path.read()[1]
            half, stride = rows[len(rows) // 2 :], float(self._path.stride)
            lags, moved = displacement_by_coordinate(half)
            places = np.array(self._path.layers)
            whole = describe(half, lags, moved, stride=stride)
            mine = {int(i): places == i for i in np.unique(places)}
            layers = {i: describe(half[:, m], lags, moved[:, m], stride=stride) for i, m in mine.items()}
            self._told = state, whole, layers
        return self._told[1:]

    def fdt_ratio(self, record: Record | None = None) -> dict[str, Estimate]:
        """X of every layer over the last half of the steps: 1 where its norm is stationary. Waits.

        Args:
            record: of the run; the observer's own by default.
        """
        record = self.record() if record is None else record
        return dict(zip(record.layer_names, norm_balance(record), strict=True))

    def equilibrium(self) -> dict[str, Equilibrium]:
        """Of every layer, whether norms stay, positions stand and nothing circulates: three things. Waits."""
        rows = self._path.read()[1]
        record, ratios = _unbroken(self.record()), self.fdt_ratio()
        if not len(record):
            return {}
        late = record.rows(start=int(record.steps[-max(len(record) // 4, 1)]))
        half, layers = rows[len(rows) // 2 :], np.array(self._path.layers)
        found = {}
        for i, layer in enumerate(record.layers):
            now = {name: float(late[name][-1, i]) for name in ("lr", "weight_decay", "momentum")}
            norm, turn = predicted(
                optimizer=record.optimizer,
                size=layer.num_params,
                grad_sq=float(late["grad_sq"][:, i].mean()),
                **now,
            )
            turns = circulation(half[:, layers == i])
            stride = float(self._path.stride)
            found[layer.name] = Equilibrium(
                ratios[layer.name],
                float(np.sqrt(late["param_sq"][:, i].mean())),
                norm,
                rotation(late["param_sq"][:, i], late["update_sq"][:, i]),
                turn,
                drifting_share(half[:, layers == i]),
                Estimate(turns.value / stride, turns.low / stride, turns.high / stride),
            )
        return found

    def noise_scale(self) -> dict[str, float | None]:
        """B_simple = B·tr Σ/(‖g‖² − tr Σ) of every layer, in examples (in batches without `batch_size`). Waits.

        None where the gradient does not stand out from its noise: then the batch is far below it.

        Source:
            McCandlish et al. 2018 (arXiv 1812.06162).
        """
        share = _late(self.record()["noise_share"])
        size = float(self.batch_size or 1)
        names = self.observer.layer_names()
        return {
            name: float(size * nu / (1.0 - nu)) if np.isfinite(nu) and nu < 1 else None
            for name, nu in zip(names, share, strict=True)
        }

    def verdict(self) -> str:
        """One line in plain words: hot or cold, how the weights move, and whether norms have come to rest. Waits."""
        record = self.record()
        shares = _late(record["noise_share"])
        share = float(np.median(shares[np.isfinite(shares)])) if np.isfinite(shares).any() else float("nan")
        heat = (
            "not known"
            if not np.isfinite(share)
            else "cold: gradients agree and lead"
            if share < SIGNAL
            else "hot: steps are shaken by batch noise"
            if share > NOISE
            else "warm: signal and noise are of one size"
        )
        ratios = [ratio for ratio in self.fdt_ratio().values() if np.isfinite(ratio.value)]
        told = [ratio for ratio in ratios if not ratio.holds(1.0) or ratio.high - ratio.low <= WIDE]
        still = sum(ratio.holds(1.0) for ratio in told)
        rest = f"{still} of {len(ratios)} layers have stationary norms" if told else "too short to tell of rest"
        if 0 < len(told) < len(ratios):
            rest += f", {len(ratios) - len(told)} cannot be told"
        words = {
            "ballistic": "weights go straight",
            "superdiffusive": "weights explore with a drift",
            "diffusive": "weights wander at random",
            "confined": "weights are held in a bowl",
            "stuck": "weights shake on the spot",
            "unknown": "too few samples to tell of motion",
        }
        return f"{heat}; {words[self.diffusion().motion]}; {rest}"

    def summary(self) -> dict[str, Any]:
        """Everything as plain data. Waits for the device."""
        record, all_layers = self.record(), self.diffusion()
        ratios, scales = self.fdt_ratio(), self.noise_scale()
        late = {name: _late(record[name]) for name in ("temperature", "sigma", "noise_share")}
        layers = {
            layer.name: {
                "temperature": float(late["temperature"][i]),
                "dissipation": float(late["sigma"][i]),
                "noise_share": float(late["noise_share"][i]),
                "noise_scale": scales[layer.name],
                "fdt_ratio": ratios[layer.name].value,
                "fdt_low": ratios[layer.name].low,
                "fdt_high": ratios[layer.name].high,
                "motion": self.diffusion(layer.name).motion,
            }
            for i, layer in enumerate(record.layers)
        }
        return {
            "verdict": self.verdict(),
            "sampled_steps": len(self._path.steps),
            "stride": self._path.stride,
            "diffusion_exponent": all_layers.exponent.value,
            "diffusion_exponent_low": all_layers.exponent.low,
            "diffusion_exponent_high": all_layers.exponent.high,
            "diffusion_coefficient": all_layers.coefficient,
            "diffusion_green_kubo": all_layers.green_kubo,
            "layers": layers,
        }

    def findings(self, record: Record | None = None) -> list[Finding]:
        """A batch far below the noise scale, a run at rest: of LOW confidence, and in every `diagnose` too. Waits.

        Args:
            record: of the run; the observer's own by default.
        """
        record = self.record() if record is None else record
        if len(record) < LEAST_STEPS:
            return []
        found, half = [], record["step"][len(record) // 2 :]
        shares = _late(record["noise_share"])
        share = float(np.median(shares[np.isfinite(shares)])) if np.isfinite(shares).any() else 0.0
        if self.batch_size is not None and share > NOISE:
            scale = self.batch_size * share / max(1.0 - share, 1e-3)
            found.append(batch_below_noise_scale(scale, self.batch_size, share, half))
        ratios = [ratio for ratio in self.fdt_ratio(record).values() if np.isfinite(ratio.value)]
        sure = (ratio.holds(1.0) and ratio.high - ratio.low <= WIDE for ratio in ratios)
        still, motion = sum(sure), self.diffusion().motion
        if ratios and still >= AT_REST * len(ratios) and motion in RESTS:
            found.append(come_to_rest(still, len(ratios), RESTS[motion], half))
        return found

    def measured(self, record: Record) -> dict[str, Any] | None:
        """How weights moved, for the record's events, from which reports draw; None before it can be told. Waits."""
        whole, layers = self._motions()
        if whole.motion == "unknown":
            return None
        return Motion(record.num_steps, whole, {i: one.exponent for i, one in layers.items()}).to_event()

    def get_recommendations(self) -> list[str]:
        """The findings as strings; `verdict` has the rest in words. Waits."""
        return [finding.recommendation for finding in self.findings()]

    def plot(self, save_path: str | os.PathLike[str] | None = None, *, show: bool | None = None) -> Any:
        """Draw temperature against dissipation, displacement, the ratio and a map (needs the extra `viz`). Waits."""
        from thermoclaw.report.thermometer import plot_thermometer

        motion = self.diffusion()
        return plot_thermometer(
            self.record(),
            lags=motion.lags,
            msd=motion.msd,
            exponent=(motion.exponent.value, motion.exponent.low, motion.exponent.high),
            ratios=[(r.value, r.low, r.high) for r in self.fdt_ratio().values()],
            save_path=save_path,
            show=show,
        )


def _late(values: Array) -> Array:
    """Median over the last fifth of the rows, [L]; NaN where nothing is known."""
    part = values[-max(len(values) // 5, 1) :]
    known = np.isfinite(part).any(axis=0) if len(part) else np.zeros(values.shape[1], dtype=bool)
    found = np.full(values.shape[1], np.nan)
    if known.any():
        found[known] = np.nanmedian(part[:, known], axis=0)
    return found


def _unbroken(record: Record) -> Record:
    """The last rows that follow one another step by step."""
    gaps = np.flatnonzero(np.diff(record.steps) != 1)
    return record.rows(start=int(record.steps[gaps[-1] + 1])) if len(gaps) else record
