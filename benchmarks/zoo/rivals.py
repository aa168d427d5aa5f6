"""What others would have said of the same traces. No torch.

Each rival is a function of record and outcome that returns sayings: what was said, which of our codes would count as
right (generously), and when. Implemented from what is published:

- SageMaker Debugger: the built-in rules that need no activations, with the defaults of its documentation. A trace has
  norms of layers, not tensors: means of absolute values are taken from root mean squares (Gaussian, × 0.8), "all
  close" and "all zero" are asked of norms. LossNotDecreasing compares means over ten steps, where its documentation
  would compare single batches, and is also reported apart, as it speaks up on nearly every run.
- AutoTrainer (Zhang et al., ICSE 2021): its defaults, epochs being the twelve parts between validations. The traces
  have losses and no accuracies: "accuracy below Θ" is read as "less than Θ of the loss is gone".
- a watchdog: the loss is NaN, or its mean over 20 steps stands a fifth above its best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from thermoclaw.record import Record

Saying = dict[str, Any]


def saying(what: str, codes: str, step: float) -> Saying:
    """One thing said: its name there, our codes that it may mean, the step."""
    return {"said": what, "codes": codes.split(), "step": int(step)}


def _first(rows: Any, steps: Any) -> int | None:
    """The first step at which a condition holds."""
    rows = np.asarray(rows)
    return int(steps[int(np.argmax(rows))]) if rows.any() else None


def _lasting(condition: Any, rows: int) -> Any:
    """Whether a condition held for so many rows up to here."""
    held = np.cumsum(np.asarray(condition, dtype=int), axis=0)
    before = np.concatenate([np.zeros((rows, *held.shape[1:]), dtype=int), held[:-rows]]) if len(held) > rows else 0
    return held - before >= rows


def sagemaker(record: Record, outcome: Mapping[str, Any]) -> list[Saying]:
    """SageMaker Debugger's rules, LossNotDecreasing included."""
    return sorted([*sagemaker_tensors(record, outcome), *loss_not_decreasing(record)], key=lambda s: s["step"])


def sagemaker_tensors(record: Record, outcome: Mapping[str, Any]) -> list[Saying]:
    """SageMaker Debugger's rules on gradients, weights and the two losses."""
    steps = record.steps
    size = np.array([layer.num_params for layer in record.layers], dtype=float)
    gradient, weight, update = record["grad_norm"], record["param_norm"], record["update_norm"]
    ratio = update / (weight + 1e-9)
    mean_gradient = 0.8 * gradient / np.sqrt(size)
    still = update <= 1e-8 * np.sqrt(size) + 1e-5 * weight
    seen = record["has_grad"] > 0
    found = (
        ("VanishingGradient", (seen & (mean_gradient < 1e-7)).any(1), "vanishing_gradients no_gradient underflow"),
        (
            "ExplodingTensor",
            ~(np.isfinite(gradient) & np.isfinite(weight)).all(1) | np.isinf(record.loss),
            "non_finite exploding_gradients lr_too_high",
        ),
        ("WeightUpdateRatio, large", (ratio > 10.0).any(1), "lr_too_high layer_lr_mismatch bad_init"),
        ("WeightUpdateRatio, small", (ratio < 1e-8).any(1), "lr_too_low lr_schedule_zero frozen_layers lost_updates"),
        ("AllZero", ((weight == 0) | (seen & (gradient == 0))).any(1), "bad_init no_gradient dead_units underflow"),
        ("UnchangedTensor", _lasting(still, 3).any(1), "frozen_layers lost_updates lr_schedule_zero no_gradient"),
    )
    said = [saying(name, codes, at) for name, rows, codes in found if (at := _first(rows, steps)) is not None]
    return said + _overfit(record, outcome)


def _overfit(record: Record, outcome: Mapping[str, Any]) -> list[Saying]:
    """(validation − training) / training above 0.1, once (patience 1); training is the mean since the last one."""
    before = 0
    for step, value in outcome["validations"]:
        part = record.loss[(record.steps > before) & (record.steps <= step)]
        before = step
        train = float(np.mean(part)) if len(part) else float("nan")
        if value is not None and value - train > 0.1 * abs(train):
            return [saying("Overfit", "overfitting", step)]
    return []


def loss_not_decreasing(record: Record) -> list[Saying]:
    """The mean loss over ten steps is not below that of the ten before."""
    num = len(record) // 10
    means = record.loss[: num * 10].reshape(num, 10).mean(1)
    at = _first(~(np.diff(means) < 0), record.steps[19::10]) if num > 1 else None
    codes = "plateau lr_too_low lr_too_high lr_schedule_zero label_noise"
    return [] if at is None else [saying("LossNotDecreasing", codes, at)]


def autotrainer(record: Record, outcome: Mapping[str, Any]) -> list[Saying]:
    """AutoTrainer's conditions, checked at the end of each of twelve epochs, the first problem only."""
    beta1, beta2, beta3, gamma, zeta, eta, delta, theta = 1e-3, 1e-4, 70.0, 0.7, 0.03, 0.2, 0.01, 0.6
    names = [i for i, layer in enumerate(record.layers) if layer.ltype != "layernorm" and layer.num_params >= 16]
    loss, start = record.loss, float(np.nanmean(record.loss[:1]))
    gone: list[float] = []
    before = 0
    for epoch, (step, value) in enumerate(outcome["validations"], start=1):
        rows = (record.steps > before) & (record.steps <= step)
        before = step
        if not (np.isfinite(loss[rows]).all() and value is not None and np.isfinite(record["grad_sq"][rows]).all()):
            return [saying("explode", "non_finite exploding_gradients lr_too_high", step)]
        gone.append(1.0 - float(np.mean(loss[rows])) / start if start else 0.0)  # one example is no triplet
        if epoch < 0.3 * len(outcome["validations"]):
            continue
        gradient = record["grad_norm"][rows][-1][names]
        slow = max(np.diff([0.0, *gone])) < delta
        if max(gone) < theta or slow:
            ratio = gradient[0] / gradient[-1] if gradient[-1] > 0 else np.nan
            if np.mean(gradient == 0) >= gamma:
                return [saying("dying ReLU", "dead_units no_gradient bad_init underflow", step)]
            if ratio > beta3:
                return [saying("explode", "exploding_gradients lr_too_high bad_init unnormalised_input", step)]
            if ratio < beta1 and gradient[0] < beta2:
                return [saying("vanish", "vanishing_gradients no_gradient frozen_layers", step)]
            if slow:
                return [saying("slow convergence", "lr_too_low plateau lr_schedule_zero label_noise", step)]
        elif _swings(gone, zeta) >= eta * len(gone):
            return [saying("oscillating", "lr_too_high gradient_noise loss_spike", step)]
    return []


def _swings(values: list[float], least: float) -> int:
    """Pairs of a local maximum and a local minimum that lie apart."""
    tops = [b for a, b, c in zip(values, values[1:], values[2:], strict=False) if b >= a and b >= c]
    lows = [b for a, b, c in zip(values, values[1:], values[2:], strict=False) if b <= a and b <= c]
    return sum(top - low >= least for top, low in zip(tops, lows, strict=False))


def watchdog(record: Record, outcome: Mapping[str, Any]) -> list[Saying]:
    """The loss is not finite, or rises."""
    loss, steps = record.loss, record.steps
    bad = _first(~np.isfinite(loss), steps)
    said = [] if bad is None else [saying("NaN", "non_finite lr_too_high exploding_gradients", bad)]
    if len(loss) > 20:
        smooth = np.convolve(np.nan_to_num(loss, nan=0.0, posinf=1e30, neginf=0.0), np.full(20, 0.05), mode="valid")
        rising = _first(smooth > 1.2 * np.minimum.accumulate(smooth), steps[19:])
        if rising is not None:
            codes = "lr_too_high loss_spike distribution_shift label_noise exploding_gradients weight_blow_up"
            said.append(saying("rising", codes, rising))
    return sorted(said, key=lambda s: s["step"])


RIVALS: dict[str, Callable[[Record, Mapping[str, Any]], list[Saying]]] = {
    "SageMaker Debugger": sagemaker,
    "SageMaker Debugger without LossNotDecreasing": sagemaker_tensors,
    "AutoTrainer": autotrainer,
    "NaN or rising": watchdog,
}
