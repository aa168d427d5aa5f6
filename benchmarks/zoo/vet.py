"""Which runs count: a fault must hurt against its healthy control, a healthy run must learn. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

HURTS_GAIN = 0.03  # of what the control gained, or
HURTS_TWICE = 0.01  # of it, where what is left is also more than twice the control's
HURTS_SPREAD = 2.0  # times the spread of the plain program over its seeds
RISES = 0.15  # of what was gained, by which a healthy run may end above its best validation loss
PARTS = ("train", "validation")

Outcomes = Mapping[str, dict[str, Any]]


def verdict(name: str, outcomes: Outcomes) -> tuple[bool, str]:
    """Whether a run counts, and why.

    Args:
        name: of the case.
        outcomes: of all runs that there are, by name.

    Returns:
        True or False, and a reason with the numbers that decided.
    """
    told = outcomes[name]
    if not told["fault"]:
        return _learns(told)
    control = outcomes.get(told["control"])
    if control is None:
        return False, "its control was not run"
    if any(told["initial"][part] is None for part in PARTS):
        return False, "its loss is not finite before the first step, where no cause can be told"
    is_sound, why = _learns(control)
    if not is_sound:
        return False, f"its control does not count: {why}"
    return _hurts(told, control, outcomes)


def _learns(told: Mapping[str, Any]) -> tuple[bool, str]:
    """Both losses end low enough, and validation not far above its best."""
    first, last = told["initial"], told["final"]
    if any(last[part] is None for part in PARTS):
        return False, "its loss is not finite"
    share = last["train"] / first["train"]
    if share > told["learns"]:
        return False, f"it does not learn: {share:.2f} of the first loss is left, {told['learns']:.2f} is asked for"
    best = min(value for _, value in told["validations"] if value is not None)
    if last["validation"] - best > RISES * max(first["validation"] - best, 0.0):
        return False, f"its validation loss rose from {best:.3g} to {last['validation']:.3g}"
    return True, f"it learns: {share:.2f} of the first loss is left"


def _hurts(told: Mapping[str, Any], control: Mapping[str, Any], outcomes: Outcomes) -> tuple[bool, str]:
    """The faulty run ends worse, by a share of the gain and by more than seeds differ, on either part."""
    said = []
    for part in PARTS:
        value, usual = told["final"][part], control["final"][part]
        if value is None:
            return True, f"its {part} loss is not finite"
        gain = control["initial"][part] - usual
        share = HURTS_TWICE if value > 2.0 * usual > 0 else HURTS_GAIN
        least = max(share * gain, HURTS_SPREAD * _spread(control["program"], part, outcomes))
        if value - usual > least:
            return True, f"{part} loss {value:.3g} against {usual:.3g}"
        said.append(f"{part} {value:.3g} against {usual:.3g}")
    return False, f"it does not hurt: {', '.join(said)}"


def _spread(program: str, part: str, outcomes: Outcomes) -> float:
    """How far the plain program's final losses lie apart over its seeds."""
    finals = [o["final"][part] for o in outcomes.values() if _is_plain(o, program) and o["final"][part] is not None]
    spread = max(finals) - min(finals) if finals else math.inf
    return spread if len(finals) > 1 else 0.0


def _is_plain(told: Mapping[str, Any], program: str) -> bool:
    return told["program"] == program and told["variant"] == "plain" and not told["fault"]
