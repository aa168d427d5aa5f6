"""The phase monitor: how the weights of a model are arranged while it trains. It describes, and accuses nobody."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.observer import Observer
from thermoclaw.phase.config import PhaseConfig
from thermoclaw.phase.gather import array_entries, model_entries
from thermoclaw.phase.measure import Entry
from thermoclaw.phase.phases import Phase, get_phase_description
from thermoclaw.phase.readings import full_reading, group_reading, row_phase, row_reading
from thermoclaw.phase.result import NOTHING, MetricsResult
from thermoclaw.phase.rows import Tally
from thermoclaw.phase.text import summary_text
from thermoclaw.phase.told import on_a_lattice
from thermoclaw.phase.track import Track, signature
from thermoclaw.record import Record

logger = logging.getLogger("thermoclaw")

Array = NDArray[np.float64]


class PhaseMonitor:
    """Tells how weights are arranged: on a lattice (CRYSTAL), on none (GLASS), in between, and what goes with it.

    It is Neurothermo's monitor with its metrics and names, and a better founded counterpart beside each that is ill
    defined; see the page "Phase of the weights" for what each can say. In ordinary floating-point training every phase
    is GLASS, whether the model learned or memorized.

    Args:
        model: whose parameters are looked at by `step`, or an `Observer` of it; None for arrays given to `step_manual`.
        config: all settings; by default `PhaseConfig()`.
        window_size: steps that are remembered, instead of the one in `config`.
        mode: "structure" or "seed" instead of the one in `config`. "seed" computes Neurothermo's literal numbers and
            nothing else, and remembers whole weights and gradients for it: 2 · `window_size` copies of the model.
        strict: raise errors of the measurement instead of logging them once and switching off.

    Raises:
        TypeError: the model is no module, or the config no `PhaseConfig`.
        ValueError: the model has no parameters, or they are spread over processes; or a setting is out of range.

    `step` never waits for the device, and reads a parameter a few times: call it every few steps where that counts.
    Reading a result waits.

    Example:
        >>> model = nn.Linear(64, 64)
        >>> monitor = PhaseMonitor(model)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> for _ in range(5):
        ...     loss = model(torch.randn(8, 64)).square().mean()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     result = monitor.step(loss=loss)
        ...     optimizer.step()
        >>> result.phase.name, result.get("lattice_order") < 0.2, monitor.compute_all_metrics()["delta"] < 0.2
        ('GLASS', True, True)
    """

    def __init__(
        self,
        model: nn.Module | Observer | None = None,
        config: PhaseConfig | None = None,
        *,
        window_size: int | None = None,
        mode: str | None = None,
        strict: bool = False,
    ) -> None:
        if isinstance(model, Observer):
            model.hear(self)
            model = _observed(model)
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(
                f"the first argument is the model (an nn.Module), an Observer of it or None, not {type(model).__name__}"
            )
        if config is not None and not isinstance(config, PhaseConfig):
            raise TypeError(f"config is a {type(config).__name__}: give a PhaseConfig, or PhaseConfig.from_toml(path)")
        config = config if config is not None else PhaseConfig()
        core = config.core
        core = core if window_size is None else replace(core, window_size=window_size)
        core = core if mode is None else replace(core, mode=mode)
        self.config = replace(config, core=core)
        self.model = model
        self._strict = strict
        self.reset()
        if model is not None and self._track is None:
            raise ValueError("the model has no parameters with elements: make the monitor after the model's weights")

    def reset(self) -> None:
        """Forget everything that was seen."""
        self._entries: list[Entry] = []
        entries = model_entries(self.model) if self.model is not None else []
        self._track = Track(entries, self.config) if entries else None
        self._losses: deque[float | Tensor] = deque(maxlen=self.config.core.window_size)
        self._tally = Tally()
        self._off = False
        self._logged: Phase | None = None
        self.step_count = 0
        self.epoch_count = 0
        self.last_result: MetricsResult | None = None

    # -- in the loop ------------------------------------------------------------------------------------------------

    def step(self, loss: float | Tensor | None = None) -> MetricsResult:
        """Look at the model's weights and gradients as they are, before or after the optimizer's step. Never waits.

        Args:
            loss: of this step, a number or a one-element tensor, which is not waited for.

        Returns:
            `delta`, `alpha`, `health` and, but in the mode "seed", `lattice_order`, with the phase; read when looked
            at. Between steps lattice order is estimated from at most 2048 values of each parameter.

        Raises:
            ValueError: there is no model.
        """
        if self.model is None:
            raise ValueError("this monitor has no model: use step_manual(weights, gradients), or PhaseMonitor(model)")
        return self._step(None, loss)

    def step_manual(self, weights: Any, gradients: Any = None, loss: float | Tensor | None = None) -> MetricsResult:
        """The same for arrays of any framework.

        Args:
            weights: an array that NumPy can read, or a mapping of layers' names to arrays. It is not copied: a summary
                looks at the arrays given last, as they are then.
            gradients: the same, or None; where a shape differs from the weights' only the norm is used.
            loss: of this step.

        Raises:
            TypeError: one of weights and gradients is a mapping and the other is not.
            ValueError: there are no numbers in them.
        """
        return self._step(array_entries(weights, gradients), loss)

    def epoch_end(self) -> None:
        """Count an epoch."""
        self.epoch_count += 1

    def _step(self, entries: list[Entry] | None, loss: float | Tensor | None) -> MetricsResult:
        self.step_count += 1
        result = MetricsResult(lambda: NOTHING)
        if not self._off:
            try:
                result = self._measure(model_entries(self.model) if entries is None else entries, loss)  # type: ignore[arg-type]
            except Exception:
                if self._strict:
                    raise
                self._off = True
                logger.exception("the phase monitor failed at step %d and is off from now on", self.step_count)
        self.last_result = result
        return result

    def _measure(self, entries: list[Entry], loss: float | Tensor | None) -> MetricsResult:
        if self._track is None or self._track.signature != signature(entries):
            if self._track is not None and self._track.num_steps:
                logger.info("phase monitor: the parameters changed at step %d: its window starts anew", self.step_count)
                self._arrive(everything=True)
            self._track = Track(entries, self.config)
        track = self._track
        rows = track.step(entries)
        self._entries = [replace(entry, grad=None) for entry in entries]  # a gradient kept would not be freed
        if isinstance(loss, Tensor):
            self._losses.append(loss.detach().mean() if loss.numel() > 1 else loss.detach().reshape(()).clone())
        elif loss is not None:
            self._losses.append(float(loss))
        self._arrive(everything=False)
        config = self.config
        return MetricsResult(lambda: row_reading(track, np.concatenate([_host(row) for row in rows]), config))

    def _arrive(self, *, everything: bool) -> None:
        """Take what reached the host; of a track that ended, too."""
        if self._track is None:
            return
        for row in self._track.arrived(everything=everything):
            reading = group_reading(self._track, row, 0, self.config)
            self._tally.add(reading["delta"], row_phase(reading, self.config))

    # -- afterwards -------------------------------------------------------------------------------------------------

    def read(self) -> MetricsResult:
        """All metrics, of the model and of each layer, and the phase. Waits for the device.

        δ, norms and paths are those of the last step, spectra those of the steps in the window, and the shape of the
        weights is that of the weights as they are now.
        """
        if self._track is None or not self._track.num_steps:
            return MetricsResult(lambda: NOTHING)
        self._arrive(everything=True)
        losses = np.array([float(loss) for loss in self._losses])
        with np.errstate(all="ignore"):  # numbers near the ends of their range become NaN or Inf, without a word
            reading = full_reading(self._track, self._entries, losses[np.isfinite(losses)], self.config)
        if self.config.core.enable_logging and reading.phase is not self._logged:
            logger.info("phase monitor, step %d: %s", self.step_count, reading.phase.name)
            self._logged = reading.phase
        return MetricsResult(lambda: reading)

    def findings(self, record: Record) -> list[Finding]:
        """Layers on a lattice, at LOW confidence; every `diagnose` of the observer it was made with has it. Waits.

        Args:
            record: of the run.
        """
        if self.config.core.mode == "seed" or self._off:
            return []
        result = self.read()
        orders = {name: metrics["lattice_order"] for name, metrics in result.layers.items()}
        found = on_a_lattice(record, result.layer_phases, orders)
        return [found] if found is not None else []

    def compute_all_metrics(self) -> dict[str, float]:
        """All metrics of the model by name, NaN where one is not defined; empty before the first step. Waits."""
        return self.read().to_dict()

    def compute_layer_metrics(self) -> dict[str, dict[str, float]]:
        """All metrics of each layer. Waits."""
        return self.read().layers

    def summary(self) -> str:
        """Everything in words: metrics, phase, layers, δ and phases over the run. Waits."""
        result = self.read()
        phases = result.layer_phases
        return summary_text(
            result.to_dict(),
            result.phase,
            self._tally,
            steps=self.step_count,
            epochs=self.epoch_count,
            layers={name: (metrics, phases[name]) for name, metrics in result.layers.items()},
        )

    @staticmethod
    def get_phase_description(phase: Phase) -> str:
        """What a phase means, in a sentence."""
        return get_phase_description(phase)

    def num_bytes(self) -> int:
        """Bytes that are held between steps; it does not grow once the window is full."""
        return self._track.num_bytes() if self._track is not None else 0


def create_monitor(model: nn.Module | None = None, window_size: int = 50) -> PhaseMonitor:
    """A `PhaseMonitor` of the model, or of arrays given to `step_manual`.

    Args:
        model: whose parameters are looked at.
        window_size: steps that are remembered.

    Example:
        >>> monitor = create_monitor()
        >>> monitor.step_manual(np.random.default_rng(0).integers(-1, 2, 1000) * 0.07).phase.name
        'CRYSTAL'
    """
    return PhaseMonitor(model, window_size=window_size)


def _observed(observer: Observer) -> nn.Module:
    """What an observer looks at; several models as one, their layers numbered."""
    model = observer.model
    return model if isinstance(model, nn.Module) else nn.ModuleList(model)


def _host(row: Tensor) -> Array:
    return row.cpu().to(torch.float64).numpy()
