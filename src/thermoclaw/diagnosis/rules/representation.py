"""Representations that become alike, features that die, values that are not finite: from checks of watched modules.

Legend: C checks of one name.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from thermoclaw.diagnosis.checks import FLOOR, Checks, checks_of
from thermoclaw.diagnosis.finding import CONFIDENCES, Finding
from thermoclaw.diagnosis.signals import Mask
from thermoclaw.record import Record
from thermoclaw.wording import short_name

CODES = ("representation_collapse", "dead_features", "non_finite_features")

COLLAPSED, GONE = 0.1, 1e-4  # spread and scale against their baselines; scale alone
ALIKE, ALIKE_HIGH = 0.3, 0.2  # spread against its baseline, of joint embeddings
FEW = 0.3  # rank share against its baseline, of joint embeddings
INPUTS_ALIKE = 0.2  # scale of the inputs against its baseline
APART = 32  # steps between the first and the last check of those in a row that tell
DEAD, DEAD_BEFORE, DEAD_CHECKS, DEAD_ROWS = 0.7, 0.3, 3, 128
NON_FINITE = 0.5
FROM_START_CHECKS, FROM_START_STEPS = 6, 200


def representation_collapse(record: Record) -> Finding | None:
    """Outputs of a watched module are alike whatever goes in, or keep to few directions."""
    after = _changed(record)
    kinds: tuple[Kind, ...] = (_complete, _direction, _rank, _from_start)
    found = [
        (kind, checks, hit)
        for kind in kinds
        for checks in checks_of(record)
        if (hit := kind(checks, after)) is not None
    ]
    return _tell_collapse(found) if found else None


Hit = tuple[int, int, str]
"""First and last check of the evidence, and the confidence."""

Kind = Callable[[Checks, int], Hit | None]


def _complete(checks: Checks, after: int) -> Hit | None:
    """Directions and sizes both: nothing is left of the differences between inputs."""
    spread, scale = checks.of_baseline("spread"), checks.of_baseline("scale")
    return _lasting(checks, ((spread < COLLAPSED) & (scale < COLLAPSED)) | (scale < GONE), "HIGH", after)


def _direction(checks: Checks, after: int) -> Hit | None:
    """Directions alone: what a loss of cosines must not do, and a common offset does elsewhere to no one's harm."""
    if not checks.joint_embedding:
        return None
    share = checks.of_baseline("spread")
    return _lasting(checks, share < ALIKE_HIGH, "HIGH", after) or _lasting(checks, share < ALIKE, "MEDIUM", after)


def _rank(checks: Checks, after: int) -> Hit | None:
    """Dimensional collapse; classifiers do so by themselves, so only of joint embeddings.

    Where the outputs have grown, a few directions rose above others that are as large as they ever were.
    """
    if not checks.joint_embedding:
        return None
    grown = np.maximum(checks.of_baseline("scale"), 1.0)
    return _lasting(checks, checks.of_baseline("rank_share") * grown < FEW, "MEDIUM", after)


def _from_start(checks: Checks, after: int) -> Hit | None:
    """Never apart since the first step, although the inputs are: for information, as it may be meant or pass."""
    alike = checks.usable() & (checks["spread"] < FLOOR) & (checks["input_spread"] > 10 * FLOOR)
    enough = len(checks) >= FROM_START_CHECKS and checks.steps[-1] >= FROM_START_STEPS
    if not enough or not alike.all() or checks.steps[0] <= after:
        return None
    return 0, len(checks) - 1, "LOW"


def _lasting(checks: Checks, hit: Mask, confidence: str, after: int) -> Hit | None:
    """The first run of checks that hit, long enough; inputs that became alike are no fault of the module."""
    alike = checks.of_baseline("input_scale") < INPUTS_ALIKE
    hit = hit & checks.usable() & ~alike & (checks.steps > after)
    start = -1
    for i, yes in enumerate(hit):
        if not yes:
            start = -1
            continue
        start = i if start < 0 else start
        if checks.steps[i] - checks.steps[start] >= APART:
            return start, i, confidence
    return None


def _tell_collapse(found: list[tuple[Kind, Checks, Hit]]) -> Finding:
    """The surest of them, and of those the earliest, with the names of all that are as sure."""
    kind, checks, hit = min(found, key=lambda one: (CONFIDENCES.index(one[2][2]), one[1].steps[one[2][1]]))
    start, row, confidence = hit
    name = short_name(checks.name)
    spread, rank = float(checks["spread"][row]), float(checks["effective_rank"][row])
    spread_before = float(checks.baseline("spread")[row])
    rank_before = float(checks.baseline("effective_rank")[row])
    scale = float(checks.of_baseline("scale")[row])
    step, width = int(checks.steps[row]), int(checks["features"][row])
    directions = f"{rank:.3g} of {width} directions"
    if kind is _rank:
        seen = f"At step {step} the outputs of {name} use {directions}, against {rank_before:.3g} at the start."
        meaning = (
            "Features have become copies of a few: dimensional collapse. The embeddings agree by leaving out what "
            "inputs differ in."
        )
    elif kind is _from_start:
        seen = f"In all checks up to step {step} the outputs of {name} point the same way (spread {spread:.2g})."
        meaning = "Different inputs have given nearly the same output since the first step; it may be meant, or pass."
    else:
        seen = (
            f"At step {step} the outputs of {name} are nearly the same whatever goes in: spread {spread:.2g}, against "
            f"{spread_before:.2g} at the start, at {scale:.2g} of their size; they use {directions}."
        )
        meaning = (
            "The representation has collapsed: one output for all inputs solves the objective, or units have died."
        )
    return Finding(
        code="representation_collapse",
        confidence=confidence,
        title="representations collapse",
        seen=seen,
        meaning=meaning,
        advice="Go back to before it and lower the learning rate; of two views, stop the gradient on the target branch "
        "and keep the predictor (SimSiam, BYOL), add negatives or a term for variance and covariance (SimCLR, VICReg), "
        "or put batch norm into the projector.",
        source="Chen and He 2021 (arXiv 2011.10566); Jing et al. 2022 (arXiv 2110.09348); RankMe (arXiv 2210.02885)",
        layers=tuple(dict.fromkeys(other.name for _, other, that in found if that[2] == confidence)),
        first_step=int(checks.steps[start]),
        raised_step=step,
        evidence={
            "spread": spread,
            "spread_before": spread_before,
            "effective_rank": rank,
            "effective_rank_before": rank_before,
            "scale_of_before": scale,
        },
    )


def dead_features(record: Record) -> Finding | None:
    """Most features of a watched module are zero for every row of check after check: for information."""
    after = _changed(record)
    for checks in checks_of(record):
        dead = checks["dead_share"]
        hit = checks.usable() & (dead > DEAD) & (checks.baseline("dead_share") < DEAD_BEFORE)
        hit &= (checks["rows"] >= DEAD_ROWS) & (checks.steps > after)
        lasting = np.flatnonzero(np.convolve(hit, np.ones(DEAD_CHECKS))[: len(hit)] >= DEAD_CHECKS)
        if not len(lasting):
            continue
        row = int(lasting[0])
        name, step, share = short_name(checks.name), int(checks.steps[row]), float(dead[row])
        return Finding(
            code="dead_features",
            confidence="LOW",
            title="features are dead",
            seen=f"At step {step} {share:.0%} of the features of {name} are zero in all rows of {DEAD_CHECKS} checks.",
            meaning="They never fire on what is fed in, so the representation is that much narrower than it was built; "
            "in sparse codes, and in experts that few inputs are sent to, it is meant.",
            advice="See whether dead_units is raised too; if so, lower the learning rate or use GELU, SiLU or "
            "LeakyReLU.",
            source="Sokar et al. 2023 (arXiv 2302.12902)",
            layers=(checks.name,),
            first_step=int(checks.steps[row - DEAD_CHECKS + 1]),
            raised_step=step,
            evidence={"dead_share": share, "dead_share_before": float(checks.baseline("dead_share")[row])},
        )
    return None


def non_finite_features(record: Record) -> Finding | None:
    """NaN or Inf in what a watched module puts out."""
    after = _changed(record)
    for checks in checks_of(record):
        nan, bad = checks["nan_rows"], checks["nan_rows"] + checks["inf_rows"]
        share = bad / np.maximum(checks["rows"], 1)
        if len(checks) and bad[0] > 0 and not nan[0]:  # infinities from the first check on: a mask, say
            bad = nan
        hit = (bad > 0) & (checks.steps > after)
        again = hit & np.append(False, hit[:-1])
        sure = np.flatnonzero(again | (hit & (share > NON_FINITE)))
        if not len(sure):
            continue
        row = int(sure[0])
        first = row - int(again[row])
        name, step, some = short_name(checks.name), int(checks.steps[row]), int(bad[row])
        of = int(checks["rows"][row])
        return Finding(
            code="non_finite_features",
            confidence="HIGH",
            title="features are not finite",
            seen=f"At step {step} {some} of {of} rows that {name} puts out hold NaN or Inf.",
            meaning="The forward pass breaks at this module or before it; whatever learns from it breaks next.",
            advice="Look for overflow in half precision, logarithms and roots of zero, and divisions before this "
            "module; lower the learning rate if it came while training.",
            source="IEEE 754",
            layers=(checks.name,),
            first_step=int(checks.steps[first]),
            raised_step=step,
            evidence={"nan_rows": float(nan[row]), "inf_rows": float(checks["inf_rows"][row]), "rows": float(of)},
        )
    return None


def _changed(record: Record) -> int:
    """The step of the last remedy: what came before it is no evidence against what is set now."""
    return max((int(event["step"]) for event in record.events if event.get("kind") == "remedy"), default=0)
