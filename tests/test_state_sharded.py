"""A sharded run goes on from a state with any number of processes: what was summed over them is stored as the sum.

Real processes over gloo; tests/state_programs.py has what they run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.conftest import assert_bitwise, needs_shards
from tests.sharded_programs import QUANTITIES, launch, several
from tests.state_programs import NUM_STEPS, STOP, packed, part, unpacked
from tests.test_sharded import assert_same, results

pytestmark = [
    pytest.mark.slow,
    needs_shards,
]

SKETCH: dict[str, Any] = {}
EXACT, SOME = {"mode": "exact"}, {"every": 6}


def on(world: int, *calls: tuple[Any, ...]) -> list[list[Any]]:
    """The answers of several parts of runs, by call and process."""
    return list(zip(*results(launch(several, world, [(part, *call) for call in calls])), strict=True))


def alone(settings: dict[str, Any], saved: bytes | None = None, until: int = NUM_STEPS) -> dict[str, Any]:
    return part(0, 1, "plain", settings, saved, until)


def check(answers: list[Any], want: dict[str, Any]) -> None:
    """Every process has the numbers of the whole run in one process."""
    still = {"d_iS_momentum": want["d_iS_momentum"]}  # there is none, and rounding has no relative size
    for answer in answers:
        assert answer["told"] == ""
        assert_same({**answer, **still}, {**want, **still}, rtol=1e-9)
        np.testing.assert_allclose(answer["d_iS_momentum"], 0.0, atol=1e-12)
        assert answer["on_host"] == want["on_host"]
        for name in QUANTITIES:
            assert_bitwise(answer[name], answers[0][name], name)


def test_with_another_number_of_processes() -> None:
    first_of_2 = on(2, *((way, s, None, STOP) for way, s in (("fully", SKETCH), ("zero", SOME), ("tensor", SKETCH))))
    fully_2, zero_2, tensor_2 = (answers[0]["saved"] for answers in first_of_2)
    for answers in first_of_2:
        zero, one = (packed(unpacked(answer["saved"])["observer"]) for answer in answers)
        assert zero == one, "two processes have the same state"

    first_of_1 = on(1, ("fully", SKETCH, None, STOP), ("zero", SOME, None, STOP), ("zero", SOME, None, NUM_STEPS))
    whole, (whole_zero,) = alone(SKETCH), first_of_1[2]
    then_1 = on(1, ("fully", SKETCH, fully_2, NUM_STEPS), ("zero", SOME, zero_2, NUM_STEPS))
    check(then_1[0], whole)
    check(then_1[1], whole_zero)

    fully_1, zero_1 = (answers[0]["saved"] for answers in first_of_1[:2])
    never_sharded = alone(SKETCH, until=STOP)["saved"]
    then_2 = on(
        2,
        ("zero", SOME, zero_1, NUM_STEPS),
        ("fully", SKETCH, None, NUM_STEPS),
        ("fully", SKETCH, fully_2, NUM_STEPS),
        ("fully", SKETCH, fully_1, NUM_STEPS),
        ("fully", SKETCH, never_sharded, NUM_STEPS),
        ("tensor", SKETCH, tensor_2, NUM_STEPS),
        ("tensor", SKETCH, fully_1, NUM_STEPS),
    )
    check(then_2[0], whole_zero)
    for answers in then_2[1:]:
        check(answers, whole)
    for name in QUANTITIES:
        assert_bitwise(then_2[2][0][name], then_2[1][0][name], f"{name} of as many processes as before")
    check([alone(SKETCH, fully_2)], whole)


def test_exact_parts_of_each_process_fit_that_process_only() -> None:
    (first,) = on(2, ("fully", EXACT, None, STOP))
    zero, one = (answer["saved"] for answer in first)
    assert first[0]["steps"].tolist() == list(range(1, STOP + 1))
    (then,) = results_of_two(zero, one)
    check(then, alone(EXACT))
    (wrong,) = on(2, ("fully", EXACT, zero, NUM_STEPS))
    assert wrong[0]["told"] == ""
    alone_again = alone(EXACT, zero)
    for told in (wrong[1]["told"], alone_again["told"]):
        assert "each process keeps its own part in mode='exact'" in told
    assert np.isfinite(alone_again["sigma"]).all()
    assert alone_again["steps"].tolist() == list(range(1, NUM_STEPS - STOP + 1)), "refused, and usable"


def results_of_two(zero: bytes, one: bytes) -> list[list[Any]]:
    return list(zip(*results(launch(own_part, 2, zero, one)), strict=True))


def own_part(rank: int, world: int, *saved: bytes) -> list[Any]:
    """Each process goes on from what it saved itself."""
    return [part(rank, world, "fully", EXACT, saved[rank], NUM_STEPS)]
