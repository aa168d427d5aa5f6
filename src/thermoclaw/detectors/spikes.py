"""The spike detector: which gradients stand out, what clipping does to the run, and where to clip."""

from __future__ import annotations

import os
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thermoclaw import checkpoint
from thermoclaw.detectors.norms import (
    Array,
    Clipping,
    Spike,
    clipping,
    find_spikes,
    norm_stability,
    recommended_max_norm,
)
from thermoclaw.detectors.wordings import outliers, steps_of_one_length
from thermoclaw.diagnosis.finding import Finding
from thermoclaw.observer import Observer, observer_for
from thermoclaw.record import Record
from thermoclaw.state import array

CHUNK, KEPT = 256, 400  # norms that are stacked on their device, and stacks that are kept


class SpikeDetector:
    """Spikes of the gradient norm, the share of clipped steps, and a bound that would cut outliers alone.

    The record holds gradients as the optimizer used them, after clipping. Give `step` what `clip_grad_norm_` returned,
    the norm before clipping, and `clip_fraction` and `recommended_max_norm` are known; without it spikes are those that
    clipping let through.

    Args:
        model: the model, or an `Observer` alone: `SpikeDetector(observer)`.
        optimizer: its optimizer; the observer already attached to it is shared.
        max_norm: the bound of the loop's clipping, if it clips.
        window: steps that a norm is compared with.
        observer: the observer to share.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> import torch, thermoclaw
        >>> model = torch.nn.Linear(16, 16)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> detector = thermoclaw.SpikeDetector(model, optimizer, max_norm=1.0)
        >>> for step in range(1, 61):
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(4, 16)).square().mean() * (30.0 if step == 50 else 0.1)
        ...     loss.backward()
        ...     norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        ...     optimizer.step()
        ...     detector.step(norm)
        >>> [spike.step for spike in detector.spikes], round(detector.clip_fraction * 60)
        ([50], 1)
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any = None,
        *,
        max_norm: float | None = None,
        window: int = 200,
        observer: Observer | None = None,
    ) -> None:
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"max_norm={max_norm!r}: give a number above 0, or None where the loop does not clip")
        if not isinstance(window, int) or window < 30:
            raise ValueError(f"window={window!r}: give a whole number of at least 30")
        self.observer = observer_for(model, optimizer, observer, who="SpikeDetector")
        self.max_norm, self.window = max_norm, window
        self._waiting: list[tuple[int, Tensor]] = []
        self._stacks: deque[tuple[Array, Tensor]] = deque(maxlen=KEPT)
        self.observer.hear(self)

    def step(self, pre_clip_norm: float | Tensor | None = None) -> None:
        """Take the norm before clipping of the step just made; never waits for the device.

        Args:
            pre_clip_norm: what `clip_grad_norm_` returned, a number or a one-element tensor, which stays on its device.

        Raises:
            TypeError: it is neither.
        """
        self.observer.listen(self)
        if pre_clip_norm is None:
            return
        if isinstance(pre_clip_norm, Tensor) and pre_clip_norm.numel() == 1 and not pre_clip_norm.is_complex():
            norm = pre_clip_norm.detach().reshape(()).float()
        elif isinstance(pre_clip_norm, (int, float)) and not isinstance(pre_clip_norm, bool):
            norm = torch.tensor(float(pre_clip_norm))
        else:
            raise TypeError(
                f"step(pre_clip_norm) takes a number or a tensor with one element, not {type(pre_clip_norm).__name__}: "
                "give it what clip_grad_norm_ returned"
            )
        if self._waiting and norm.device != self._waiting[0][1].device:
            self._stack()
        self._waiting.append((self.observer.global_step, norm.clone()))
        if len(self._waiting) == CHUNK:
            self._stack()

    def _stack(self) -> None:
        if self._waiting:
            steps, norms = zip(*self._waiting, strict=True)
            self._stacks.append((np.array(steps, dtype=np.float64), torch.stack(norms)))
            self._waiting = []

    def state_dict(self) -> dict[str, Any]:
        """The norms given so far, for a checkpoint; the observer's state is its own. Waits for the device."""
        steps, norms = self.pre_clip_norms()
        return checkpoint.pack("SpikeDetector", {"steps": steps, "norms": norms})

    def load_state_dict(self, state: Any) -> None:
        """Go on from what `state_dict` returned, before the first step.

        Raises:
            StateError: (a ValueError) it is damaged, or from a newer version.
        """
        whole = checkpoint.unpack("SpikeDetector", state)
        steps = array(whole, "steps", None, dtype=np.float64)
        norms = array(whole, "norms", len(steps), dtype=np.float64)
        self._waiting = []
        self._stacks.clear()
        for start in range(0, len(steps), CHUNK):
            chunk = slice(start, start + CHUNK)
            self._stacks.append((steps[chunk], torch.from_numpy(norms[chunk]).float()))

    # -- what was seen ----------------------------------------------------------------------------------------------

    def pre_clip_norms(self) -> tuple[Array, Array]:
        """Steps and norms before clipping that were given, [T] each. Waits for the device."""
        self._stack()
        if not self._stacks:
            return np.zeros(0), np.zeros(0)
        steps = np.concatenate([steps for steps, _ in self._stacks])
        return steps, np.concatenate([stack.cpu().double().numpy() for _, stack in self._stacks])

    def norms(self, record: Record | None = None) -> tuple[Array, Array]:
        """Steps and norms that spikes are looked for in: those before clipping where they were given. Waits.

        Args:
            record: whose norms to take otherwise; the observer's own by default.
        """
        steps, norms = self.pre_clip_norms()
        if len(norms):
            return steps, norms
        record = self.record() if record is None else record
        return record["step"], np.sqrt(np.nansum(record["grad_sq"], axis=1))

    @property
    def spikes(self) -> list[Spike]:
        """Norms that stand out against the steps before them. Waits for the device."""
        steps, norms = self.norms()
        return find_spikes(norms, steps, window=self.window)

    @property
    def clipping(self) -> Clipping | None:
        """What clipping does to the run; None where bound or norms before clipping are not known. Waits."""
        norms = self.pre_clip_norms()[1]
        return clipping(norms, self.max_norm) if self.max_norm is not None and len(norms) else None

    @property
    def clip_fraction(self) -> float | None:
        """Share of the steps that were clipped; None where nobody knows. Waits."""
        told = self.clipping
        return told.fraction if told is not None else None

    @property
    def recommended_max_norm(self) -> float | None:
        """A bound that cuts outliers alone; None where no spike was seen. Waits."""
        return recommended_max_norm(self.norms()[1], window=self.window)

    def record(self) -> Record:
        """The observer's record."""
        return self.observer.record()

    def summary(self) -> dict[str, Any]:
        """Spikes, clipping, the bound, and how steady the weights' norm is, as plain data. Waits."""
        told, spikes, steps = self.clipping, self.spikes, self.norms()[0]
        param = np.sqrt(np.nansum(self.record()["param_sq"], axis=1))
        spread, jump = norm_stability(param)
        return {
            "steps": len(steps),
            "spikes": [vars(spike) for spike in spikes],
            "spike_rate": len(spikes) / len(steps) if len(steps) else None,
            "max_norm": self.max_norm,
            "clip_fraction": told.fraction if told is not None else None,
            "clip_coefficient": told.coefficient if told is not None else None,
            "clip_band": told.band if told is not None else "unknown",
            "recommended_max_norm": self.recommended_max_norm,
            "weight_norm_spread": spread,
            "weight_norm_largest_jump": jump,
        }

    def findings(self, record: Record | None = None) -> list[Finding]:
        """What clipping and spikes ask for, at LOW confidence; every `diagnose` of the observer has it too. Waits.

        Args:
            record: of the run; the observer's own by default.
        """
        steps, norms = self.norms(record)
        told, spikes = self.clipping, find_spikes(norms, steps, window=self.window)
        found = []
        if told is not None and told.band == "normalizing":
            found.append(steps_of_one_length(told, steps))
        bound = recommended_max_norm(norms, window=self.window)
        if bound is not None and (self.max_norm is None or self.max_norm > 2 * bound):
            found.append(outliers(spikes, bound, int(steps[-1])))
        return found

    def get_recommendations(self) -> list[str]:
        """What to do about clipping, in words; empty where nothing asks for a change. Waits."""
        told = self.clipping
        texts = [finding.recommendation for finding in self.findings()]
        if told is not None and told.band == "inactive" and not self.spikes:
            texts.append(f"[LOW] Clipping at {told.max_norm:g} cut nothing in {told.steps:,} steps: it is not needed.")
        return texts

    def plot(self, save_path: str | os.PathLike[str] | None = None, *, show: bool | None = None) -> Any:
        """Draw norms, spikes and bounds over the steps (needs the extra `viz`). Waits."""
        from thermoclaw.report.norms import plot_norms

        steps, norms = self.norms()
        return plot_norms(
            steps,
            norms,
            spikes=[(spike.step, spike.norm) for spike in self.spikes],
            max_norm=self.max_norm,
            recommended=self.recommended_max_norm,
            pre_clip=bool(len(self.pre_clip_norms()[0])),
            save_path=save_path,
            show=show,
        )
