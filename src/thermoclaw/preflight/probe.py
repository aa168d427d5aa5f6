"""What a few batches tell: losses, gradients, which modules were used, at what scale their inputs came.

Legend: B batches, P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from thermoclaw.preflight.guard import Guard
from thermoclaw.preflight.result import NoiseForecast
from thermoclaw.preflight.setup import Setup, Weight
from thermoclaw.preflight.watch import Seen, num_classes, watched

MAX_BATCHES = 8
LossFn = Callable[[Any, Any], Tensor]
Tell = Callable[[str], None]
Grads = list[Tensor | None]


@dataclass(eq=False)
class Probe:
    """What the batches told at the initial weights.

    Attributes:
        weights: the parameters that require a gradient, [P].
        losses: of each batch, [B].
        grads: of the first batch, [P].
        norms: ‖g‖ by batch and parameter, NaN where there was none, [B][P].
        states: the random state before each batch, [B].
        seen: which modules ran, and what the first of them was given.
        num_classes: C, where the loss is the cross-entropy of the output with integer targets; 0 otherwise.
        noise: batch against noise, from four batches on.
        peak_bytes: held at most, beside the guard's copies.
    """

    weights: list[Weight]
    losses: list[float] = field(default_factory=list)
    grads: Grads = field(default_factory=list)
    norms: list[list[float]] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)
    seen: Seen = field(default_factory=Seen)
    num_classes: int = 0
    noise: NoiseForecast | None = None
    peak_bytes: int = 0

    @property
    def loss(self) -> float:
        """Mean over the batches."""
        return sum(self.losses) / len(self.losses)


def loss_function(loss_fn: Any) -> LossFn:
    """A function of model and batch, from what the user gave."""
    if loss_fn is None:
        return _own_loss
    module = getattr(loss_fn, "__module__", "") or ""
    if isinstance(loss_fn, nn.Module) or module.startswith("torch.nn.functional"):
        return lambda model, batch: loss_fn(model(batch[0]), batch[1])
    return loss_fn


def _own_loss(model: Any, batch: Any) -> Tensor:
    """For models that compute their loss themselves, as those of transformers do."""
    if not isinstance(batch, Mapping):
        raise TypeError(
            "preflight(batches=...) needs loss_fn: a function of (model, batch), or a criterion of (output, target)"
        )
    return model(**batch).loss


def take(batches: Any) -> list[Any]:
    """The first few batches."""
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise TypeError(f"batches must be a list of batches or a loader, not {type(batches).__name__}")
    taken = list(islice(batches, MAX_BATCHES))
    if not taken:
        raise ValueError("batches is empty: give at least one batch, better four to eight")
    return taken


def moved(batch: Any, device: torch.device) -> Any:
    """A batch on the model's device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: moved(part, device) for key, part in batch.items()}
    if isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields"):
        return type(batch)(moved(part, device) for part in batch)
    return batch


def gradients_of(loss: Tensor, weights: Sequence[Weight]) -> Grads:
    """Gradients without touching `.grad`; None where the loss does not depend on a parameter."""
    if not loss.requires_grad:
        return [None] * len(weights)
    return list(torch.autograd.grad(loss, [w.param for w in weights], allow_unused=True))


def probe(setup: Setup, model: Any, loss_fn: LossFn, batches: Sequence[Any], guard: Guard, tell: Tell) -> Probe:
    """Loss and gradient of every batch at the initial weights.

    Args:
        setup: the training to be.
        model: what the loss function is called with.
        loss_fn: model and batch → scalar.
        batches: on the model's device.
        guard: holds what must not change.
        tell: shows progress.

    Returns:
        The probe, with the gradient of the first batch.
    """
    found = Probe([w for w in setup.weights if w.param.requires_grad])
    start = guard.random.read()
    for _ in batches:
        found.states.append(start)
    total: Grads = []
    along: list[float] = []
    squares: list[float] = []
    for number in reversed(range(len(batches))):  # the first comes last, so that its gradient is the one kept
        tell(f"gradient {len(batches) - number}/{len(batches)}")
        guard.rewind_modules()
        found.states[number] = guard.random.read()
        with watched(setup, found.seen, model) as outputs:
            loss = loss_fn(model, batches[number])
        grads = gradients_of(_scalar(loss), found.weights)
        found.losses.insert(0, float(loss.detach()))
        norms = [math.nan if g is None else float(g.detach().norm(dtype=_wide(g))) for g in grads]
        found.norms.insert(0, norms)
        squares.append(sum(n * n for n in norms if not math.isnan(n)))
        if total:
            along.append(_inner(grads, total) / len(squares[:-1]))
        if number:
            total = _added(total, grads)
        found.peak_bytes = max(found.peak_bytes, _bytes(grads) + _bytes(total))
        if number == 0:
            found.num_classes = num_classes(outputs, batches[number], float(loss.detach()))
        del loss, outputs
        found.grads = grads
    found.noise = noise_forecast(squares, along)
    return found


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(f"loss_fn(model, batch) must return a scalar tensor, not {what}")
    return loss


def _wide(g: Tensor) -> torch.dtype | None:
    return torch.float32 if g.dtype in (torch.float16, torch.bfloat16) else None


def _real(g: Tensor) -> Tensor:
    """In single precision; complex numbers as pairs."""
    g = g.detach()
    return (torch.view_as_real(g) if g.is_complex() else g).float()


def _inner(grads: Grads, total: Grads) -> float:
    pairs = [(g, t) for g, t in zip(grads, total, strict=True) if g is not None and t is not None]
    return sum(float((_real(g) * t).sum()) for g, t in pairs if not g.is_sparse)


def _added(total: Grads, grads: Grads) -> Grads:
    """The sum in single precision."""
    if not total:
        return [None if g is None else _real(g).clone() for g in grads]
    for place, g in enumerate(grads):
        if g is not None:
            mine = total[place]
            total[place] = _real(g).clone() if mine is None else mine.add_(_real(g))
    return total


def _bytes(tensors: Iterable[Tensor | None]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def noise_forecast(squares: Sequence[float], along: Sequence[float]) -> NoiseForecast | None:
    """tr Σ/‖G‖² from ‖gᵢ‖² and from ⟨gᵢ, mean of the gradients before⟩, each of which estimates ‖G‖² without bias."""
    n = len(squares)
    if n < 4 or not all(math.isfinite(v) for v in (*squares, *along)) or sum(squares) <= 0:
        return None
    weights = [2.0 * (i + 1) / (n * (n - 1)) for i in range(n - 1)]
    signal = sum(w * x for w, x in zip(weights, along, strict=True))
    spread = sum(w * w * (x - signal) ** 2 for w, x in zip(weights, along, strict=True))
    error = math.sqrt(spread * (n - 1) / (n - 2))
    size = sum(squares) / n

    def scale(part: float) -> float:
        return math.inf if part <= 0 else max(size - part, 0.0) / part

    return NoiseForecast(scale(signal), scale(signal + error), scale(signal - error), n)
