"""A learning-rate schedule that listens: linear warm-up, cosine envelope, and feedback from the layers' r."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from thermoclaw.attach import unwrap
from thermoclaw.observer import Observer
from thermoclaw.registry import attached_to

FEEDBACK_LEAST = 0.25
_HOT, _CALM = 1.15, 1.0


class ThermoScheduler(LRScheduler):
    """Warm-up, then a cosine from the base rate to `eta_min`, cooled while the run overheats.

    At step t of T = total_steps − warmup_steps after warm-up, lr = eta_min + (base − eta_min) · ½(1 + cos(πt/T)) · φ.
    The feedback φ starts at 1, is multiplied by exp(−adapt_rate · ln(r/1.15)) for each step whose median r exceeds
    1.15, moves back towards 1 at `adapt_rate` otherwise, and stays within [0.25, 1]. With adapt_rate = 0 and no warm-up
    it is `torch.optim.lr_scheduler.CosineAnnealingLR` to the bit; after total_steps it holds eta_min.

    The rate is changed relative to what it is, so schedulers chain. φ depends on rows at their fixed lag, never on what
    happened to have arrived, so runs repeat.

    Args:
        optimizer: the optimizer; an `Observer` is taken too, and so is `ThermoScheduler(observer, optimizer)`.
        total_steps: length of the schedule in optimizer steps, warm-up included.
        warmup_steps: steps of linear warm-up; by default 500, or a tenth of a run shorter than 5000 steps.
        eta_min: lowest rate.
        adapt_rate: strength of the feedback, 0 to switch it off.
        last_epoch: as in torch: −1, or the last step of a run that is being resumed.
        observer: whose measurements to use; by default the one attached to the optimizer, or a new one.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> import torch, thermoclaw
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
        >>> scheduler = thermoclaw.ThermoScheduler(optimizer, total_steps=4, warmup_steps=0, eta_min=0.0, adapt_rate=0)
        >>> rates = []
        >>> for _ in range(4):
        ...     optimizer.step(); scheduler.step()
        ...     rates.append(round(scheduler.get_last_lr()[0], 4))
        >>> rates
        [0.8536, 0.5, 0.1464, 0.0]
    """

    def __init__(
        self,
        optimizer: Any,
        optimizer_or_total_steps: Any = None,
        total_steps: int = 10000,
        warmup_steps: int | None = None,
        eta_min: float = 1e-7,
        adapt_rate: float = 0.05,
        last_epoch: int = -1,
        *,
        observer: Observer | None = None,
    ) -> None:
        if isinstance(optimizer, Observer):
            observer, optimizer = optimizer, optimizer.optimizer
        if isinstance(optimizer_or_total_steps, int):
            total_steps = optimizer_or_total_steps
        elif optimizer_or_total_steps is not None:
            optimizer = optimizer_or_total_steps
        inner = unwrap(optimizer)
        if not isinstance(inner, Optimizer):
            raise TypeError(f"ThermoScheduler takes a torch optimizer, not {type(optimizer).__name__}")
        if not isinstance(total_steps, int) or total_steps < 1:
            raise ValueError(f"total_steps={total_steps!r}: give the number of optimizer steps of the whole run")
        if warmup_steps is None:
            warmup_steps = min(500, total_steps // 10)
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(f"warmup_steps={warmup_steps!r}: choose from 0 to total_steps − 1 = {total_steps - 1}")
        if not 0 <= adapt_rate <= 1:
            raise ValueError(f"adapt_rate={adapt_rate!r}: choose from 0 (no feedback) to 1")
        if not eta_min >= 0:
            raise ValueError(f"eta_min={eta_min!r}: give a rate of at least 0")
        self.total_steps, self.warmup_steps = total_steps, warmup_steps
        self.eta_min, self.adapt_rate = eta_min, adapt_rate
        self.feedback = 1.0
        self._applied = 1.0  # the feedback that is in the rates now
        self._seen_step = 0
        self._is_loaded = False  # and the observer may go on with the run's numbers, or count from its own start
        self.observer = observer
        if observer is None and adapt_rate > 0:
            self.observer = _observer_of(inner)
        super().__init__(inner, last_epoch)

    def step(self, snap: Any = None) -> None:
        """Advance one optimizer step. The argument of thermoclaw 0.1.6 (a snapshot) is accepted and not needed.

        A whole number is an epoch to jump to, as torch's own chaining schedulers ask for.
        """
        super().step(snap if type(snap) is int else None)

    def get_lr(self) -> list[Any]:
        """The rates of the groups for `last_epoch`."""
        self._listen()
        change = self.feedback / self._applied
        self._applied = self.feedback
        now = self.last_epoch
        rates = [_value(group["lr"]) for group in self.optimizer.param_groups]
        if self._step_count == 1 and now > 0:
            return rates  # resumed with last_epoch: the optimizer's state brought the rates along
        if now <= self.warmup_steps:
            before, after = _warm(now - 1, self.warmup_steps), _warm(now, self.warmup_steps)
            return [rate * after / (before if now > 0 else 1.0) * change for rate in rates]
        length = self.total_steps - self.warmup_steps
        t = now - self.warmup_steps
        if t > length:
            return [
                rate.clamp(max=self.eta_min) if hasattr(rate, "clamp") else min(rate, self.eta_min) for rate in rates
            ]
        shrink = (1 + math.cos(math.pi * t / length)) / (1 + math.cos(math.pi * (t - 1) / length))
        if change == 1.0:
            return [shrink * (rate - self.eta_min) + self.eta_min for rate in rates]
        return [shrink * change * (rate - self.eta_min) + self.eta_min for rate in rates]

    def _get_closed_form_lr(self) -> list[Any]:
        """The rates at `last_epoch` from the base rates: where a chaining scheduler jumps to an epoch."""
        self._listen()
        self._applied = self.feedback
        t, length = self.last_epoch - self.warmup_steps, self.total_steps - self.warmup_steps
        if t <= 0:
            return [base * _warm(self.last_epoch, self.warmup_steps) * self.feedback for base in self.base_lrs]
        share = (1 + math.cos(math.pi * min(t, length) / length)) / 2 * self.feedback
        return [self.eta_min + (base - self.eta_min) * share for base in self.base_lrs]

    def _listen(self) -> None:
        """Update φ from rows that reached the host since the last look."""
        if self.observer is None or self.adapt_rate == 0:
            return
        self.observer.listen(self)
        if self._is_loaded:
            self._seen_step, self._is_loaded = min(self._seen_step, self.observer.rows_on_host()), False
        if self.observer.rows_on_host() <= self._seen_step:
            return
        record = self.observer.record_on_host(start=self._seen_step + 1)
        self._seen_step = self.observer.rows_on_host()
        for r in record["R_median"]:
            if np.isfinite(r) and r > _HOT:
                self.feedback *= math.exp(-self.adapt_rate * min(math.log(r / _HOT), 1.0))
            else:
                self.feedback += self.adapt_rate * (_CALM - self.feedback)
            self.feedback = min(max(self.feedback, FEEDBACK_LEAST), 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer and the observer, which have states of their own."""
        return {key: value for key, value in super().state_dict().items() if key not in ("observer", "_is_loaded")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` stopped, before or after the observer goes on from its own state.

        The steps of an observer that does not are counted from its start.
        """
        observer = self.observer
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "observer"})
        self.observer = observer
        self._is_loaded = True


def _warm(step: int, warmup_steps: int) -> float:
    """Share of the base rate at a step of the warm-up, 1 at its end."""
    return (step + 1) / (warmup_steps + 1) if step < warmup_steps else 1.0


def _value(lr: Any) -> Any:
    return (
        float(lr) if hasattr(lr, "item") and getattr(lr, "device", None) is not None and lr.device.type == "cpu" else lr
    )


def _observer_of(optimizer: Optimizer) -> Observer:
    """The observer attached to an optimizer, or a new one that names layers by their place in the groups."""
    for attachment in attached_to(optimizer):
        return Observer.of(attachment.model, optimizer)
    bare = nn.Module()
    count = 0
    for group in optimizer.param_groups:
        for p in group["params"]:
            if isinstance(p, nn.Parameter):
                holder = nn.Module()
                holder.register_parameter("weight", p)
                bare.add_module(f"param{count}", holder)
            count += 1
    return Observer(bare, optimizer)
