"""What preflight hands back: findings, and forecasts that say as much when nothing is wrong."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diagnosis.remedies import Remedy


@dataclass(frozen=True)
class LayerForecast:
    """Where a layer starts, where decay will take its norm and how fast, and how long its first step is.

    Attributes:
        name: the layer.
        param_norm: ‖θ‖ today.
        equilibrium_norm: √(ηN/2λ) for decoupled decay with updates of unit size per weight (Adam); NaN where the
            optimizer does not fix the size of an update, or without decay.
        decay_steps: steps in which decay alone takes a factor e: 1/(ηλ), (1 − β₁)/(ηλ) through SGD's momentum.
        gain: rms · √fan_in of the layer's largest matrix, about 1 for the usual initializations; NaN without a matrix.
        grad_norm: ‖g‖ on the first batch; NaN without batches.
        update_ratio: ‖Δ‖/‖θ‖ of the first step at the rate tested; NaN without batches.
    """

    name: str
    param_norm: float
    equilibrium_norm: float
    decay_steps: float
    gain: float = math.nan
    grad_norm: float = math.nan
    update_ratio: float = math.nan


@dataclass(frozen=True)
class ScheduleForecast:
    """What the scheduler will do, simulated.

    Attributes:
        start: its factor on the first step, as a share of the peak.
        peak_step: the first step at the highest rate.
        mean: of all steps, as a share of the peak.
        idle_share: share of the steps after the peak at less than a thousandth of it.
        first: factors of the first steps, as shares of the peak.
        peak_lrs: the highest rate of each parameter group.
    """

    start: float
    peak_step: int
    mean: float
    idle_share: float
    first: tuple[float, ...]
    peak_lrs: tuple[float, ...]


@dataclass(frozen=True)
class NoiseForecast:
    """Batch against noise, from the gradients of several batches (McCandlish et al. 2018, arXiv 1812.06162).

    Attributes:
        noise_scale: tr Σ/‖G‖² in batches: how many batches of this size would have a gradient of which half is signal.
        low, high: from a standard error on ‖G‖² to both sides; infinite where no signal was seen.
        num_batches: how many gradients went in.
    """

    noise_scale: float
    low: float
    high: float
    num_batches: int


@dataclass(frozen=True)
class RateForecast:
    """The loss along the optimizer's own first step, stretched and shortened.

    Attributes:
        scales: multiples of the step at the rate tested.
        losses: mean loss at each on batches that did not shape the step (or on the one batch there is).
        own_losses: on the batch that did.
        loss: where it starts, on the same batches as `losses`.
        own_loss: where it starts, on the batch of the step.
        largest: the longest step tried that still lowers the loss; 0 where none did.
        best: the multiple with the lowest loss.
    """

    scales: tuple[float, ...]
    losses: tuple[float, ...]
    own_losses: tuple[float, ...]
    loss: float
    own_loss: float
    largest: float
    best: float


@dataclass(frozen=True)
class Rehearsal:
    """A few real steps that were taken back.

    Attributes:
        steps: how many.
        loss: mean over the batches before them.
        final_loss: and after them.
        worst: the highest loss of a batch on the way, as a multiple of what it was before.
        run_over: how many rehearsals long the run is, each step counted by its rate; 1 where its length is not known.
        others: (factor on the rate, mean loss after as many steps), where other rates were tried.
    """

    steps: int
    loss: float
    final_loss: float
    worst: float
    run_over: float
    others: tuple[tuple[float, float], ...] = ()

    @property
    def gain(self) -> float:
        """Share of the loss that the steps took away."""
        return self.gain_of(self.final_loss)

    def gain_of(self, loss: float) -> float:
        """Share of the first loss that is gone at another."""
        return (self.loss - loss) / max(abs(self.loss), 1e-30) if math.isfinite(loss) else -math.inf


@dataclass(frozen=True)
class Preflight:
    """What `preflight` found.

    Attributes:
        findings: ranked, the surest first.
        forecasts: one for each layer.
        schedule: what the scheduler will do, where one was given.
        loss: mean of the first loss over the batches; NaN without.
        noise: batch against noise, from four batches on.
        rate: the loss along the first step, with batches.
        rehearsal: the rehearsed steps, where they were asked for.
        memory_bytes: the most that preflight held at a time beyond the model, activations aside.
        skipped: checks that could not be made, and why.
    """

    findings: list[Finding]
    forecasts: list[LayerForecast] = field(default_factory=list)
    schedule: ScheduleForecast | None = None
    loss: float = math.nan
    noise: NoiseForecast | None = None
    rate: RateForecast | None = None
    rehearsal: Rehearsal | None = None
    memory_bytes: int = 0
    skipped: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether nothing of HIGH or MEDIUM confidence was foretold."""
        return not any(f.confidence in ("HIGH", "MEDIUM") for f in self.findings)

    @property
    def recommendations(self) -> list[str]:
        """The findings as strings."""
        return [f.recommendation for f in self.findings]

    def to_json(self) -> dict[str, Any]:
        """Plain data that every JSON reader takes: what is not a finite number is None."""
        told = asdict(self) | {"findings": [f.to_json() for f in self.findings], "healthy": self.healthy}
        return dict(_plain(told))

    def __str__(self) -> str:
        lines = [f"  {text}" for text in self.recommendations]
        if not lines:
            what = "the hyper-parameters foretell" if math.isnan(self.loss) else "hyper-parameters and batches foretell"
            lines = [f"Preflight: {what} nothing that would hurt."]
        else:
            lines = ["Preflight:", *lines]
        lines += [f"  Not checked: {why}" for why in self.skipped]
        return "\n".join([*lines, *self._forecast_lines()])

    def _forecast_lines(self) -> list[str]:
        lines = []
        if self.rate is not None and self.rate.largest > 0:
            lines.append(f"  Longest first step that lowers the loss: about {self.rate.largest:.3g}× the one tried.")
        if self.noise is not None and math.isfinite(self.noise.noise_scale):
            lines.append(
                f"  Noise scale: {self.noise.noise_scale:.3g} batches ({self.noise.low:.3g} to {self.noise.high:.3g})."
            )
        if self.rehearsal is not None:
            told = self.rehearsal
            lines.append(
                f"  Rehearsal: {told.steps} steps took the loss from {told.loss:.4g} to {told.final_loss:.4g}."
            )
        return lines


def make_finding(
    code: str,
    confidence: str,
    title: str,
    *,
    seen: str,
    meaning: str,
    advice: str,
    source: str,
    layers: tuple[str, ...] = (),
    evidence: dict[str, float] | None = None,
    remedy: Remedy | None = None,
) -> Finding:
    """A finding about the time before the first step."""
    return Finding(code, confidence, title, seen, meaning, advice, source, 0, 0, layers, evidence or {}, remedy)


def two_digits(value: float) -> float:
    """Two significant digits, which is all that a suggestion deserves."""
    return float(f"{value:.1e}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
