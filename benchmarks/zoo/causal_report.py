"""Results of `causal` to figures: better, worse or a tie, beyond what seeds differ by. No torch.

A loss is the sum of the clean losses on training and validation data at the end. An arm is *better* than another when
its loss is lower by more than the spread (largest minus smallest) of the plain program's losses over its seeds, and by
more than 1 % of what the healthy control gained; less is a *tie*. A loss that is not finite is worse than any that is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.zoo.score import share
from benchmarks.zoo.vet import PARTS
from benchmarks.zoo.vet import verdict as vetted

LEAST_GAIN = 0.01
SELECTIONS = ("totals", "rolled_back", "named_right", "named_right_rolled_back")
EFFECTS = ("better", "tie", "worse", "refused", "as_control")
DEMO = Path(__file__).resolve().parents[1] / "results" / "demo.json"
Outcomes = Mapping[str, dict[str, Any]]
Row = dict[str, Any]


def total(losses: Mapping[str, float | None]) -> float:
    """Training and validation loss together; infinite where one is not finite."""
    values = [losses[part] for part in PARTS]
    return math.inf if any(value is None for value in values) else float(sum(values))  # type: ignore[arg-type]


def noise(told: Mapping[str, Any], control: Mapping[str, Any], outcomes: Outcomes) -> float:
    """The difference in loss that means nothing in this program."""
    plain = [
        total(o["final"])
        for o in outcomes.values()
        if o["program"] == told["program"] and o["variant"] == "plain" and not o["fault"]
    ]
    known = [value for value in plain if math.isfinite(value)]
    spread = max(known) - min(known) if len(known) > 1 else 0.0
    return max(spread, LEAST_GAIN * (total(control["initial"]) - total(control["final"])))


def compare(new: float, old: float, margin: float) -> str:
    """Whether a loss is "better", "worse" or a "tie"."""
    if not math.isfinite(new) or not math.isfinite(old):
        return "tie" if math.isfinite(new) == math.isfinite(old) else "better" if math.isfinite(new) else "worse"
    return "better" if old - new > margin else "worse" if new - old > margin else "tie"


def failing_row(told: Mapping[str, Any], outcomes: Outcomes) -> Row:
    """A failing case that took its advice, against the run that went on and the healthy one."""
    went_on = outcomes[told["name"]]
    control = outcomes[went_on["control"]]
    margin = noise(told, control, outcomes)
    continued, remedied, healthy = total(went_on["final"]), total(told["final"]), total(control["final"])
    act = told["acts"][0] if told["acts"] else None
    back, alarm = total(told["rollback"]["final"]), told["decision"]["alarm"]
    return {
        "name": told["name"],
        "program": told["program"],
        "fault": told["fault"],
        "truth": went_on["codes"],
        "code": act["code"] if act else alarm["code"],
        "confidence": alarm["confidence"],
        "knob": act["change"]["knob"] if act else told["decision"]["remedy"]["knob"],
        "as_on_trace": [alarm["code"], alarm["confidence"], alarm["step"]] in told["alarms"][:1],
        "step": act["step"] if act else None,
        "steps": went_on["steps"],
        "first_faulty_step": went_on["first_faulty_step"],
        "change": act["change"]["text"] if act else None,
        "refused": told["refused"],
        "continued": _finite(continued),
        "remedied": _finite(remedied),
        "rolled_back": _finite(back),
        "control": _finite(healthy),
        "margin": margin,
        "effect": compare(remedied, continued, margin) if act else "refused",
        "as_control": bool(act) and compare(remedied, healthy, margin) != "worse",
        "effect_rolled_back": compare(back, continued, margin) if act else "refused",
        "as_control_rolled_back": bool(act) and compare(back, healthy, margin) != "worse",
    }


def healthy_row(told: Mapping[str, Any], outcomes: Outcomes) -> Row:
    """A healthy case with a guard, against the same case without."""
    without = outcomes[told["name"]]
    margin = noise(told, without, outcomes)
    return {
        "name": told["name"],
        "bitwise": told["bitwise"],
        "acts": [f"step {act['step']}: {act['code']}: {act['change']['text']}" for act in told["acts"]],
        "without": _finite(total(without["final"])),
        "guarded": _finite(total(told["final"])),
        "effect": compare(total(told["final"]), total(without["final"]), margin),
    }


def figures(rows: Sequence[Row], arm: str = "") -> Row:
    """Totals of failing cases; `arm` is "_rolled_back" for those that also went back to earlier weights."""
    effects = [row["effect" + arm] for row in rows]
    ends = [(row["continued"], row[arm.lstrip("_") or "remedied"]) for row in rows]
    ratios = [after / before for before, after in ends if before is not None and after is not None and before > 0]
    return {
        **{effect: share(effects.count(effect), len(rows)) for effect in EFFECTS[:-1]},
        "as_control": share(sum(row["as_control" + arm] for row in rows), len(rows)),
        "median_loss_ratio": round(median(ratios), 3) if ratios else None,
    }


def document(results: Mapping[str, dict[str, Any]], outcomes: Outcomes) -> dict[str, Any]:
    """All figures, development and held-out programs apart.

    Args:
        results: of `causal`, by case.
        outcomes: of the traces, by case; controls and plain programs among them.

    Returns:
        Plain data: for each part `failing` and `healthy` figures and rows; `experiment`, the demo's three seeds.
    """
    told: dict[str, Any] = {}
    for part, is_held_out in (("dev", False), ("held_out", True)):
        here = [r for r in results.values() if r["held_out"] == is_held_out and vetted(r["name"], outcomes)[0]]
        if here:
            told[part] = _part(here, outcomes)
    told["experiment"] = experiment()
    return told


def _part(results: Sequence[dict[str, Any]], outcomes: Outcomes) -> dict[str, Any]:
    failing = [r for r in results if r["fault"]]
    rows = [failing_row(r, outcomes) for r in failing if r["decision"]["remedy"] is not None]
    healthy = [healthy_row(r, outcomes) for r in results if not r["fault"]]
    touched = [row for row in healthy if row["acts"]]
    codes = sorted({row["code"] for row in rows})
    return {
        "failing": len(failing),
        "silent": sum(r["decision"]["alarm"] is None for r in failing),
        "without_remedy": sum(r["decision"]["alarm"] is not None and r["decision"]["remedy"] is None for r in failing),
        "first_alarm_not_as_on_trace": [row["name"] for row in rows if not row["as_on_trace"]],
        "totals": figures(rows),
        "rolled_back": figures(rows, "_rolled_back"),
        "named_right": figures([row for row in rows if row["code"] in row["truth"]]),
        "named_right_rolled_back": figures([row for row in rows if row["code"] in row["truth"]], "_rolled_back"),
        "by_code": {code: figures([row for row in rows if row["code"] == code]) for code in codes},
        "by_code_rolled_back": {
            code: figures([row for row in rows if row["code"] == code], "_rolled_back") for code in codes
        },
        "healthy": {
            "bitwise_where_nothing_was_done": share(
                sum(row["bitwise"] for row in healthy if not row["acts"]), len(healthy) - len(touched)
            ),
            "touched": share(len(touched), len(healthy)),
            "touched_and_worse": share(sum(row["effect"] == "worse" for row in touched), len(touched)),
            "touched_rows": touched,
            "not_the_same": [row["name"] for row in healthy if not row["acts"] and not row["bitwise"]],
        },
        "rows": sorted(rows, key=lambda row: row["name"]),
    }


def experiment() -> list[Row]:
    """The demo's decaying language model: losses are logarithms of its perplexities."""
    if not DEMO.exists():
        return []
    rows = []
    for seed in json.loads(DEMO.read_text())["seeds"]:
        ends = {arm: math.log(value) for arm, value in seed["perplexity"].items()}
        rows.append(
            {
                "seed": seed["seed"],
                "code": seed["alarm"]["code"],
                "step": seed["alarm"]["raised_step"],
                "change": seed["remedy"],
                "continued": round(ends["unmodified"], 4),
                "remedied": round(ends["remedied"], 4),
                "control": round(ends["healthy AdamW"], 4),
            }
        )
    return rows


def as_text(told: Mapping[str, Any]) -> str:
    """A few lines for the console."""
    lines = []
    for part, title in (("held_out", "Held-out programs"), ("dev", "Development programs")):
        if part not in told:
            continue
        here, healthy = told[part], told[part]["healthy"]
        lines.append(f"{title}: {here['failing']} failing, {here['silent']} silent, {here['without_remedy']} untreated")
        for name, row in (*((key, here[key]) for key in SELECTIONS), *here["by_code"].items()):
            lines.append(f"  {name}: " + ", ".join(f"{key} {_short(row[key])}" for key in EFFECTS))
        if here["first_alarm_not_as_on_trace"]:
            names = ", ".join(here["first_alarm_not_as_on_trace"])
            lines.append(f"  the first alarm was another than on the trace, which is older than the code: {names}")
        same, touched = healthy["bitwise_where_nothing_was_done"], healthy["touched"]
        lines.append(f"  healthy: bitwise {_short(same)}, touched {_short(touched)}")
    return "\n".join(lines)


def _short(figure: Mapping[str, Any]) -> str:
    return f"{figure['hits']}/{figure['of']}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
