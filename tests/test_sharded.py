"""Sharded runs give the numbers of the unsharded run, cost one all-reduce a step, and never leave a process waiting.

Real processes over gloo; tests/sharded_programs.py has what they run.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from tests import sharded_programs as programs
from tests.conftest import assert_bitwise, needs_shards
from tests.sharded_programs import QUANTITIES, launch
from thermoclaw import Observer
from thermoclaw.measure.place import Place, box, spread, whole
from thermoclaw.measure.sketch import Sketcher

pytestmark = needs_shards

F64, F32 = torch.float64, torch.float32


def assert_same(got: dict[str, Any], want: dict[str, Any], *, rtol: float) -> None:
    assert got["layers"] == want["layers"]
    assert got["steps"].tolist() == want["steps"].tolist()
    for name in QUANTITIES:
        scale = np.nanmax(np.abs(want[name]))
        np.testing.assert_allclose(got[name], want[name], rtol=rtol, atol=rtol * scale, err_msg=name)


def results(answers: list[Any]) -> list[Any]:
    """What the processes returned; a process that raised or did not return fails the test."""
    for rank, answer in enumerate(answers):
        assert answer is not None, f"process {rank} died or hung"
        if isinstance(answer, Exception):
            raise answer
    return answers


# -- the same numbers -------------------------------------------------------------------------------------------------

WAYS: dict[int, list[tuple[str, torch.dtype, dict[str, Any]]]] = {
    2: [
        ("fully", F64, {}),
        ("fully", F32, {}),
        ("fully", F64, {"mode": "exact"}),
        ("fully", F64, {"every": 8}),
        ("tensor", F64, {}),
        ("tensor", F64, {"mode": "exact"}),
        ("hybrid", F64, {}),
        ("ddp", F64, {}),
    ],
    3: [("fully", F64, {}), ("fully", F64, {"mode": "exact"}), ("tensor", F64, {}), ("ddp", F64, {})],
    4: [("both", F64, {}), ("hybrid", F64, {})],
}


@pytest.mark.slow
@pytest.mark.parametrize("world", WAYS)
def test_sharded_is_unsharded(world: int) -> None:
    calls = [(programs.watched_run, *way) for way in WAYS[world]]
    by_rank = results(launch(programs.several, world, calls))
    for i, (way, dtype, settings) in enumerate(WAYS[world]):
        want = programs.plain(dtype, **settings)
        for rank, answers in enumerate(by_rank):
            assert_same(answers[i], want, rtol=1e-9 if dtype == F64 else 2e-3)
            for name in QUANTITIES:
                assert_bitwise(answers[i][name], by_rank[0][i][name]), f"{way}: rank {rank} differs in {name}"
    uneven = by_rank[-1][0]["local"]
    if world == 3 and WAYS[world][0][0] == "fully":
        assert 0 in uneven, "no shard was empty"
        assert uneven != by_rank[0][0]["local"], "shards were even"


@pytest.mark.slow
def test_one_packed_all_reduce_a_measured_step() -> None:
    calls = [
        (programs.watched_run, "fully", F32, {}),
        (programs.watched_run, "fully", F32, {"every": 8}),
        (programs.watched_run, "ddp", F32, {}),
        (programs.local_reads,),
        (programs.budget_of,),
        (programs.ddp_on_one,),
        (programs.zero_redundancy,),
    ]
    answers = results(launch(programs.several, 2, calls))
    every_step, some, ddp, reads, budget, alone, zero = zip(*answers, strict=True)
    units = 3 * 2 + 2  # matrix and bias of three layers, the norm, the scale
    for answer in every_step:
        assert len(answer["sent"]) == 24
        assert set(answer["sent"]) == {units * 2 * (1021 + 1) + 1}
    for answer in some:
        assert len(answer["sent"]) == 1 + 2 * 4 + 3
    assert all(answer["sent"] == [] for answer in ddp), "gradients are the same on all processes already"
    assert reads == (24, 24)
    assert alone == (24, 24)
    assert budget[0] == budget[1], "every process must choose the same cadence"
    assert budget[0][0] == 15
    for answer in zero:
        assert_same(answer, programs.plain(F64), rtol=1e-9)


@pytest.mark.slow
def test_training_is_bitwise_the_same_when_sharded() -> None:
    for answers in results(launch(programs.several, 2, [(programs.law_1, "fully"), (programs.law_1, "ddp")])):
        for plain, watched in answers:
            assert_bitwise(plain, watched)


# -- nobody waits in vain ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["read_gradients", "read_parameters", "derivation"])
def test_measuring_that_fails_on_one_process_stops_on_all_and_training_goes_on(stage: str) -> None:
    calls = [(programs.one_fails, stage), (programs.law_1, "fully")]
    answers = results(launch(programs.several, 2, calls))
    for failed, (plain, _) in answers:
        assert failed["failed"], "the others must hear of it"
        assert len(failed["losses"]) == 24
        assert_bitwise(failed["params"], plain)
        want = [] if failed is answers[1][0] and stage == "derivation" else [1, 2, 3, 4, 5]
        assert failed["steps"][:5] == want, "what was measured before stays"
        assert len(failed["steps"]) == len(want) or stage == "derivation", "what came after was not the whole model"


@pytest.mark.slow
def test_a_process_that_dies_leaves_nobody_hanging() -> None:
    answers = launch(programs.one_dies, 2, seconds=60)
    assert isinstance(answers[0], RuntimeError), "the training's own communication tells"
    assert answers[1] is None


@pytest.mark.slow
def test_an_observer_on_one_process_of_a_sharded_model_is_refused_in_time() -> None:
    assert results(launch(programs.one_alone, 2, seconds=60)) == [True, True]


def test_flat_parameters_of_the_first_fsdp_are_refused() -> None:
    model = torch.nn.Linear(3, 3)
    for p in model.parameters():
        p._fsdp_flattened = True
    with pytest.raises(ValueError, match="fully_shard"):
        Observer(model, torch.optim.SGD(model.parameters(), lr=0.1))


# -- places -----------------------------------------------------------------------------------------------------------


def positions(place: Place) -> list[int]:
    return [place.start + r * place.stride + i for r in range(place.rows) for i in range(place.run)]


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("shape", [(7,), (4, 6), (3, 4, 5), (2, 3, 2, 4)])
def test_a_box_knows_the_flat_index_of_its_elements(shape: tuple[int, ...], width: int) -> None:
    index = np.arange(int(np.prod(shape)) * width).reshape(*shape, width)
    refused = 0
    for cuts in itertools.product(*[[(0, n), (1, n - 1), (0, n // 2), (n - 1, 1), (n, 0)] for n in shape]):
        offset, local = tuple(c[0] for c in cuts), tuple(c[1] for c in cuts)
        want = index[tuple(slice(a, a + n) for a, n in cuts)].reshape(-1).tolist()
        try:
            place = box(shape, local, offset, start=100, width=width)
        except ValueError:
            refused += 1
            continue
        assert [i - 100 for i in positions(place)] == want
        assert place.size == len(want)
        assert place.span == (want[-1] - want[0] + 1 if want else 0)
    assert refused == 0 or len(shape) > 2, "cut along one or two dimensions is always possible"


def test_sketches_of_shards_add_up() -> None:
    shape, start = (300, 41), 17
    x = torch.randn(shape, dtype=F64)
    n = x.numel()
    cuts = {
        "rows": [((0, 0), (100, 41)), ((100, 0), (200, 41)), ((300, 0), (0, 41))],
        "columns": [((0, 0), (300, 11)), ((0, 11), (300, 30))],
        "both": [((a, b), (150, c)) for a in (0, 150) for b, c in ((0, 20), (20, 21))],
    }

    def sketch(part: torch.Tensor | None, place: Place) -> torch.Tensor:
        sizes, places = [[start, n, 5]], [[whole(0, start), place, whole(start + n, 5)]]
        maker = Sketcher(sizes, size=251, device=torch.device("cpu"), dtype=F64, places=places)
        out = torch.empty(251, dtype=F64)
        maker.sketch(0, [None, part, None], out)
        return out

    want = sketch(x.reshape(-1), whole(start, n))
    for parts in cuts.values():
        total = torch.zeros(251, dtype=F64)
        for (r, c), (rows, columns) in parts:
            held = x[r : r + rows, c : c + columns].reshape(-1)
            place = box(shape, (rows, columns), (r, c), start=start, width=1)
            assert len(spread(held, place)) == place.span
            total += sketch(held if place.size else None, place)
        torch.testing.assert_close(total, want, rtol=0, atol=1e-10)
