"""Where an optimizer keeps each knob, whether turning it means anything there, and how it is turned. No torch."""

from __future__ import annotations

import math
from typing import Any

from thermoclaw.diagnosis.journal import Journal, is_tensor, plain

KNOBS = ("lr", "weight_decay", "momentum", "beta2", "eps", "clip")
STRAYED = 2.0  # a knob that is so many times what the finding saw was turned by somebody else

_BETAS = {"momentum": 0, "beta2": 1}
_KEYS = {"momentum": ("momentum", "beta1"), "beta2": ("beta2",)}
_RATES = ("initial_lr", "max_lr")  # what a schedule keeps in the groups
_CYCLED = ("base_momentum", "max_momentum")
_CORRECTED = ("Adam", "NAdam", "RAdam")  # their second moment is divided by 1 − β₂ᵗ

_MEANINGLESS = {
    ("LBFGS", "clip"): "computes its gradients inside step(), after the place where they would be clipped",
    ("Lion", "clip"): "steps by the sign of the gradient, whose length does not matter",
    ("SignSGD", "clip"): "steps by the sign of the gradient, whose length does not matter",
    ("Rprop", "lr"): "reads lr for its first step only",
}


class RemedyError(ValueError):
    """The remedy does not fit the optimizer it was given."""


def innermost(optimizer: Any) -> Any:
    """The optimizer inside wrappers that keep it as `.optimizer`.

    Raises:
        RemedyError: it has no parameter groups.
    """
    chain: list[Any] = []
    found = optimizer
    while found is not None and all(found is not one for one in chain):
        chain.append(found)
        found = getattr(found, "optimizer", None)
    held = [one for one in chain if hasattr(one, "param_groups")]
    if not held:
        raise RemedyError(f"apply takes the optimizer, not {type(optimizer).__name__}: it has no param_groups")
    return held[-1]


def check_kind(optimizer: Any, knob: str) -> None:
    """Refuse a knob that does nothing in this kind of optimizer."""
    for cls in type(optimizer).__mro__:
        why = _MEANINGLESS.get((cls.__name__, knob))
        if why is not None:
            raise RemedyError(f"{knob!r} is no remedy for {type(optimizer).__name__}: it {why}")


def find_key(group: dict[str, Any], knob: str, number: int) -> str:
    """The key of a group that holds the knob, "betas" included."""
    if knob in _BETAS and group.get("betas") is not None:
        return "betas"
    for key in _KEYS.get(knob, (knob,)):
        if key in group:
            return key
    if knob == "beta2" and "centered" in group and "alpha" in group:
        return "alpha"  # RMSprop
    has = ", ".join(sorted(set(group) - {"params", "param_names"}))
    raise RemedyError(f"parameter group {number} has no {knob!r}; it has {has}")


def read(group: dict[str, Any], knob: str, number: int) -> float:
    """The knob's value in a group; NaN where reading would wait for a device."""
    key = find_key(group, knob, number)
    value = group[key][_BETAS[knob]] if key == "betas" else group[key]
    try:
        return plain(value)
    except (TypeError, ValueError):
        raise RemedyError(f"{knob!r} of parameter group {number} is {value!r}, which is no number to change") from None


def write(journal: Journal, optimizer: Any, group: dict[str, Any], knob: str, value: float) -> None:
    """Set the knob in a group, and what a cycling schedule or a bias correction would undo or distort."""
    key = find_key(group, knob, -1)
    if key == "betas":
        place, betas = _BETAS[knob], group["betas"]
        was = plain(betas[place])
        if is_tensor(betas[place]):
            journal.put(list(betas), place, value)
        else:
            journal.put(group, "betas", (*betas[:place], value, *betas[place + 1 :]))
        if knob == "beta2":
            _keep_second_moment(journal, optimizer, group, was, value)
    else:
        journal.put(group, key, value)
    if knob == "momentum":
        for cycled in _CYCLED:
            if cycled in group:
                journal.put(group, cycled, min(group[cycled], value))


def _keep_second_moment(journal: Journal, optimizer: Any, group: dict[str, Any], was: float, now: float) -> None:
    """Rescale Adam's second moment so that, divided by the new 1 − β₂ᵗ, it is what it was: or steps would jump."""
    kinds = {cls.__name__ for cls in type(optimizer).__mro__}
    if kinds.isdisjoint(_CORRECTED) or not 0.0 < was < 1.0:
        return

    def rescale(old: float, new: float) -> None:
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            step = state.get("step")
            if "exp_avg_sq" not in state or step is None:
                continue
            known = plain(step)
            step = known if math.isfinite(known) else step  # a tensor on a device stays there
            if known == 0:  # the only step so far was refused by a loss scaler
                continue
            factor = (1.0 - new**step) / (1.0 - old**step)
            for name in ("exp_avg_sq", "max_exp_avg_sq"):
                if name in state:
                    state[name].mul_(factor)

    rescale(was, now)
    journal.later(lambda: rescale(now, was))


def scale_rates(journal: Journal, group: dict[str, Any], factor: float) -> None:
    """Multiply the rate of a group, and the rates that schedules keep in it."""
    for key in ("lr", *_RATES, "min_lr"):
        if group.get(key) is not None:
            journal.scale(group, key, factor)


def has_strayed(group: dict[str, Any], knob: str, now: float, was: float, value: float) -> bool:
    """Whether somebody turned the knob since the finding was made.

    A schedule moves the rate by itself; then only a rate whose base has gone the remedy's way already counts.
    """
    if not math.isfinite(now) or not math.isfinite(was):
        return False
    if knob == "lr" and "initial_lr" in group:
        if value < was:
            base = [plain(group[key]) for key in _RATES if key in group]
            return max([now, *(rate for rate in base if math.isfinite(rate))]) * STRAYED < was
        return now > STRAYED * was
    if knob in _BETAS:
        now, was = 1.0 - now, 1.0 - was
    return max(now, was) > STRAYED * min(now, was) * (1.0 + 1e-9)


def is_there(knob: str, now: float, value: float, was: float) -> bool:
    """Whether a group has nothing to change: it is at the value or beyond, or has no decay."""
    if knob == "weight_decay" and now == 0:
        return True
    return now <= value if value <= was else now >= value
