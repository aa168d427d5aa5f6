"""The tables of the representation page: the example's runs, from the file that it wrote, nulls, thresholds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from markdown_tables import table

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
RESULTS, HEALTHY = FOLDER / "representation_collapse.json", FOLDER / "detectors.json"


def runs() -> str:
    """What the example found, run by run."""
    rows = [
        (
            str(run["seed"]),
            "yes" if run["stop_gradient"] else "no",
            f"{run['loss']:.3f}",
            f"{run['spread']:.2f}",
            f"{run['effective_rank']:.1f}",
            f"{run['neighbors_before']:.0%} → {run['neighbors']:.0%}",
            "; ".join(run["alarms"]).replace("representation_collapse", "`representation_collapse`") or "none",
        )
        for run in json.loads(RESULTS.read_text())["runs"]
    ]
    heads = ("seed", "stop-gradient", "loss", "spread", "effective rank", "nearest neighbors right", "alarms")
    return "\n".join(table(heads, rows))


def nulls() -> str:
    """Ranks of isotropic noise with 128 features."""
    from thermoclaw.representation import expected_rank

    names = ("effective_rank", "effective_dimension", "participation_ratio", "rankme")
    rows = [(f"{n:,}", *(f"{expected_rank(n, 128, name):.0f}" for name in names)) for n in (64, 256, 1024, 25_600)]
    return "\n".join(table(("rows", *(f"`{name}`" for name in names)), rows))


def thresholds() -> str:
    """When each finding is made."""
    from thermoclaw.diagnosis import checks
    from thermoclaw.diagnosis.rules import representation as rule

    rows = [
        (
            "any",
            "`representation_collapse` HIGH",
            f"`spread` and `scale` both below {rule.COLLAPSED:g} of the baseline, or `scale` below {rule.GONE:g} of it",
        ),
        (
            "`joint_embedding=True`",
            "`representation_collapse` MEDIUM, HIGH",
            f"`spread` below {rule.ALIKE:g} of the baseline, HIGH below {rule.ALIKE_HIGH:g}",
        ),
        (
            "`joint_embedding=True`",
            "`representation_collapse` MEDIUM",
            f"`rank_share` below {rule.FEW:g} of the baseline, times the factor by which `scale` grew, where it did",
        ),
        (
            "any",
            "`representation_collapse` LOW",
            f"`spread` below {checks.FLOOR:g} at every check so far, {rule.FROM_START_CHECKS} of them over "
            f"{rule.FROM_START_STEPS} steps, with inputs that differ",
        ),
        (
            "any",
            "`dead_features` LOW",
            f"`dead_share` above {rule.DEAD:.0%} at {rule.DEAD_CHECKS} checks of {rule.DEAD_ROWS} rows, after a "
            f"baseline below {rule.DEAD_BEFORE:.0%}",
        ),
        (
            "any",
            "`non_finite_features` HIGH",
            f"NaN or Inf in rows of two checks in a row, or in more than {rule.NON_FINITE:.0%} of the rows of one",
        ),
    ]
    return "\n".join(table(("what is trained", "finding", "where"), rows))


def healthy() -> str:
    """What detectors beside the observer said of healthy runs."""
    told = json.loads(HEALTHY.read_text())
    names = {"dev": "development", "held_out": "held out"}
    rows = [
        (
            name,
            f"{told[part]['accused']['of']}",
            f"{told[part]['watched_modules']:,}",
            f"{told[part]['checks']:,}",
            f"{told[part]['accused']['hits']}",
            f"{told[part]['bitwise']['hits']}",
        )
        for part, name in names.items()
        if part in told
    ]
    heads = ("programs", "healthy runs", "modules watched", "checks", "runs accused", "losses the same to the bit")
    return "\n".join(table(heads, rows))


PARTS: dict[str, Callable[[], str]] = {
    "representation-runs": runs,
    "representation-nulls": nulls,
    "representation-thresholds": thresholds,
    "representation-healthy": healthy,
}
