"""Optimizers that hold flat partitions, as DeepSpeed's ZeRO of stages 1 and 2 do, give the unsharded run's numbers.

Real processes over gloo; tests/zero_programs.py has what they run. A stand-in of our own partitions and steps in the
way of DeepSpeed, so that the path is tested without it; where DeepSpeed is installed, it is run too.
"""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests import zero_programs as programs
from tests.conftest import assert_bitwise
from tests.sharded_programs import QUANTITIES, launch, several
from tests.test_sharded import assert_same, results
from thermoclaw import Observer
from thermoclaw.layers import lay_out
from thermoclaw.measure.columns import RAW, RAW_COLUMNS
from thermoclaw.measure.sketched import SketchBackend
from thermoclaw.partition import Flat, Fragment, Partition, Sharers, find_partition

gloo = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="torch without gloo"
)
deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")

F64, F32 = torch.float64, torch.float32
UNITS = 3 * 2 + 2  # matrix and bias of three layers, the norm, the scale


def check_cuts(by_rank: list[dict[str, Any]]) -> None:
    """The model was cut so that the test means something."""
    held = np.array([[count for group in answer["held"] for _, count in group] for answer in by_rank])
    sizes = np.array([size for group in by_rank[0]["held"] for size, _ in group])
    assert held.sum(0).tolist() == sizes.tolist(), "the fragments of all processes make the model"
    assert ((held > 0) & (held < sizes)).any(), "a parameter must be cut by the border of a partition"
    assert (held[0] != held[-1]).any(), "cuts must be uneven"
    assert (held == 0).any(), "a process must have nothing of some parameter"
    assert min(by_rank[0]["padding"]) > 0, "partitions must be padded"


def well_conditioned(answer: dict[str, Any]) -> dict[str, Any]:
    """With 1 / norm budget: what it is divided by, −⟨θ, Δ⟩, changes its sign in these runs."""
    return {**answer, "norm_budget": 1.0 / answer["norm_budget"]}


def check_run(by_rank: list[dict[str, Any]], want: dict[str, Any], *, rtol: float) -> None:
    check_cuts(by_rank)
    for answer in by_rank:
        assert_same(well_conditioned(answer), well_conditioned(want), rtol=rtol)
        assert answer["num_steps"] == programs.NUM_STEPS, "a row a step of all groups; none where a step was refused"
        for name in QUANTITIES:
            assert_bitwise(answer[name], by_rank[0][name])
        assert_bitwise(answer["has_grad"], want["has_grad"])


# -- the stand-in -----------------------------------------------------------------------------------------------------

WAYS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"dtype": F64}, {}),
    ({"dtype": F64, "align": 50}, {"mode": "exact"}),
    ({"dtype": F64, "at_once": True}, {}),
    ({"dtype": F32}, {}),
    ({"dtype": F64}, {"every": 8}),
]


@gloo
@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_partitioned_is_unsharded_with_one_all_reduce_a_step(world: int) -> None:
    ways = WAYS if world == 2 else WAYS[:2]
    by_rank = results(launch(several, world, [(programs.watched_run, "stand-in", *way) for way in ways]))
    for i, (given, settings) in enumerate(ways):
        want = programs.plain(given["dtype"], **settings)
        check_run([answers[i] for answers in by_rank], want, rtol=1e-9 if given["dtype"] == F64 else 2e-3)
        for answers in by_rank:
            per_unit = 13 if settings.get("mode") == "exact" else 2 * (1021 + 1)
            assert set(answers[i]["sent"]) == {UNITS * per_unit + 1}
            assert len(answers[i]["sent"]) == (1 + 2 * 4 if "every" in settings else programs.NUM_STEPS)


@gloo
@pytest.mark.slow
def test_training_is_bitwise_the_same() -> None:
    calls = [
        (programs.law_1, "stand-in", {"dtype": F32}),
        (programs.law_1, "stand-in", {"dtype": F32, "at_once": True}),
    ]
    for answers in results(launch(several, 2, calls)):
        for plain, watched in answers:
            assert_bitwise(plain, watched)


@gloo
@pytest.mark.slow
def test_measuring_that_fails_on_one_process_stops_on_all_and_training_goes_on() -> None:
    stages = [("read_gradients", 0, {}), ("read_gradients", 1, {}), ("read_parameters", 0, {})]
    spaced = ("read_gradients", 1, {"every": 8})  # steps must be counted on, to know which the others measure
    calls = [(programs.one_fails, *stage) for stage in (*stages, spaced)]
    answers = results(launch(several, 2, [(programs.law_1, "stand-in", {"dtype": F32}), *calls]))
    for (plain, _), *failures in answers:
        for failed, (_, _, settings) in zip(failures, (*stages, spaced), strict=True):
            assert_bitwise(failed["params"], plain)
            assert failed["steps"] == ([1] if settings else [1, 2, 3, 4, 5]), "what was measured before stays"
        assert all(failed["failed"] for failed in failures[:-1]), "the others must hear of it"


@gloo
@pytest.mark.slow
def test_who_listens_and_who_forecasts() -> None:
    for listened, said in results(launch(several, 2, [(programs.consumers,), (programs.wrong_optimizer,)])):
        assert listened
        assert "the optimizer that deepspeed.initialize returned" in said


# -- steps of single groups -------------------------------------------------------------------------------------------


class Groups:
    """An optimizer whose groups are swapped from outside."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        self.param_groups = [{"params": [x]} for x in tensors]


def partition_of(*sizes: int) -> tuple[Partition, list[torch.Tensor]]:
    tensors = [torch.arange(float(n)) for n in sizes]
    flats = [Flat(x, i, Sharers(None, (0,))) for i, x in enumerate(tensors)]
    params = [torch.zeros(n + 3) for n in sizes]
    fragments = [
        [Fragment(p, flat, start=2, count=len(flat.tensor) - 1, at=1)] for p, flat in zip(params, flats, strict=True)
    ]
    return Partition(fragments, flats), tensors


def test_steps_of_single_groups_make_a_step() -> None:
    partition, (a, b, c) = partition_of(4, 5, 6)
    for _ in range(2):
        for held, begins, ends in (([a], True, False), ([b], False, False), ([c], False, True)):
            assert partition.begin(Groups(*held)) == begins
            assert partition.end() == ends
        assert partition.begin(Groups(a, b, c))
        assert partition.stepping == [0, 1, 2]
        assert partition.end()


def test_a_step_that_broke_off_is_begun_anew() -> None:
    partition, (a, b) = partition_of(4, 5)
    assert partition.begin(Groups(a))
    assert not partition.end()
    assert partition.begin(Groups(a)), "the first group again: the second never came"
    assert not partition.end()
    assert not partition.begin(Groups(b))
    assert partition.end()


def test_a_gradient_is_there_while_its_group_steps() -> None:
    partition, (a, b) = partition_of(4, 5)
    (first,), (second,) = partition.fragments
    a.grad, b.grad = a + 1, b + 1
    assert first.grad is None
    partition.begin(Groups(b))
    partition.check()
    assert first.grad is None, "left over from another step"
    assert second.grad is not None
    assert second.grad.tolist() == [2, 3, 4, 5]
    assert second.detach().tolist() == [1, 2, 3, 4]
    assert second.numel() == 8
    partition.end()
    assert second.grad is None


def test_tensors_and_gradients_that_nobody_knows_are_noticed() -> None:
    partition, (a, _) = partition_of(4, 5)
    partition.begin(Groups(a))
    with pytest.raises(RuntimeError, match="without the gradients"):
        partition.check()
    for _ in range(2):
        others = [torch.ones(4), torch.ones(5)]
        assert partition.begin(Groups(others[0]))
        with pytest.raises(RuntimeError, match="without the flat tensors"):
            partition.check()
        assert not partition.end()
        assert not partition.begin(Groups(others[1]))
        assert partition.end(), "steps are counted even then: the other processes count on this one"


# -- what is refused --------------------------------------------------------------------------------------------------


def wrapper(**given: Any) -> SimpleNamespace:
    model = torch.nn.Linear(3, 3)
    params = list(model.parameters())
    whole = torch.zeros(12)
    inner = torch.optim.SGD([torch.zeros(12, requires_grad=True)], lr=0.1)
    names = {"bit16_groups": [params], "bit16_groups_flat": [whole], "single_partition_of_fp32_groups": [whole]}
    return SimpleNamespace(
        optimizer=inner, param_groups=inner.param_groups, step=inner.step, model=model, **names, **given
    )


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"cpu_offload": True}, "offloaded"),
        ({"zenflow": True}, "ZenFlow"),
        ({"has_moe_layers": True}, "expert layers"),
        ({"mpu": object()}, "the model is spread"),
        ({"torch_autocast_gradscaler": object()}, r"torch\.amp"),
    ],
)
def test_what_is_not_measured_is_refused(given: dict[str, Any], reason: str) -> None:
    odd = wrapper(**given)
    with pytest.raises(ValueError, match=f"{reason}.*ZeRO stages 1 and 2"):
        Observer(odd.model, odd)


def test_muon_is_refused() -> None:
    odd = wrapper()
    odd.param_groups[0]["use_muon"] = True
    with pytest.raises(ValueError, match="Muon's update"):
        Observer(odd.model, odd)


def test_other_optimizers_of_deepspeed_are_refused_by_their_names() -> None:
    kind = type("DeepSpeedZeroOptimizer_Stage3", (), {"__module__": "deepspeed.runtime.zero.stage3"})
    odd = kind()
    model = torch.nn.Linear(3, 3)
    odd.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    odd.param_groups = odd.optimizer.param_groups
    with pytest.raises(ValueError, match=r"DeepSpeedZeroOptimizer_Stage3 \(ZeRO stage 3\) is not measured"):
        find_partition(SimpleNamespace(optimizer=odd, param_groups=[]))
    assert find_partition(SimpleNamespace(optimizer=odd.optimizer)) is None
    assert find_partition(odd.optimizer) is None


def in_one_process(call: Any) -> Any:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        return call()
    finally:
        torch.distributed.destroy_process_group()


@gloo
@pytest.mark.parametrize("where", ["too few", "elsewhere"])
def test_flat_tensors_without_the_parameters_are_refused(where: str) -> None:
    def attempt() -> None:
        odd = wrapper(real_dp_process_group=[torch.distributed.group.WORLD])
        if where == "too few":
            odd.single_partition_of_fp32_groups = [torch.zeros(7)]
        with pytest.raises(
            ValueError, match="do not make" if where == "too few" else "does not lie in the flat tensor"
        ):
            find_partition(odd)

    in_one_process(attempt)


# -- the fused backend ------------------------------------------------------------------------------------------------


@gloo
def test_the_fused_backend_reads_flat_tensors_group_by_group() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from thermoclaw.measure.fused import FusedBackend

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # or in Triton's interpreter

    def rows() -> list[torch.Tensor]:
        model = torch.nn.Sequential(torch.nn.Linear(12, 57), torch.nn.Linear(57, 33)).to(device)
        zero = programs.FlatZero(programs.make_optimizer(model))
        partition = find_partition(zero)
        units = list(lay_out(model, zero.optimizer, partition=partition).units)
        backends = [FusedBackend(units, size=251), SketchBackend(units, size=251)]
        for backend in backends:
            backend.peers.start(block=8)
        found = [torch.zeros(len(units), len(RAW_COLUMNS), dtype=F64, device=device) for _ in backends]
        for _ in range(2):
            for flat in zero.single_partition_of_fp32_groups:
                flat.grad = torch.randn_like(flat)
                begins = partition.begin(Groups(flat))
                for backend in backends:
                    backend.read_gradients(more=not begins)
                partition.end()
            for backend, row in zip(backends, found, strict=True):
                backend.read_parameters(row, lrs={})
        return found

    with torch.no_grad():
        fused, sketched = in_one_process(rows)
    torch.testing.assert_close(fused, sketched, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert (fused[:, RAW["g_g"]] > 0).all()


# -- DeepSpeed itself -------------------------------------------------------------------------------------------------

ROUND_ROBIN = {"zero_optimization": {"stage": 2, "round_robin_gradients": True}}
DEEPSPEED_WAYS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"stage": 1}, {}),
    ({"stage": 1}, {"mode": "exact"}),
    ({"stage": 2}, {}),
    ({"stage": 2}, {"mode": "exact"}),
    ({"stage": 2, "config": ROUND_ROBIN}, {"mode": "exact"}),
]
BF16 = {"stage": 1, "config": {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}}


@gloo
@deepspeed
@pytest.mark.slow
def test_deepspeed_is_unsharded_with_one_all_reduce_a_step() -> None:
    calls = [(programs.watched_run, "deepspeed", *way) for way in [*DEEPSPEED_WAYS, (BF16, {})]]
    *by_way, bf16 = zip(*results(launch(several, 2, calls, seconds=400)), strict=True)
    for (_, settings), answers in zip(DEEPSPEED_WAYS, by_way, strict=True):
        is_exact = settings.get("mode") == "exact"
        check_run(list(answers), programs.plain(F32, **settings), rtol=2e-5 if is_exact else 2e-3)
        for answer in answers:
            assert answer["kind"] == "DeepSpeedZeroOptimizer"
            assert answer["sent"] == [UNITS * (13 if is_exact else 2 * (1021 + 1)) + 1] * programs.NUM_STEPS
    want = programs.plain(F32)
    for answer in bf16:  # the model's copy of the weights, and its gradients, are rounded
        assert answer["kind"] == "BF16_Optimizer"
        assert len(answer["sent"]) == answer["num_steps"] == programs.NUM_STEPS
        assert answer["layers"] == want["layers"]
        for name in ("sigma", "grad_sq", "param_sq", "update_sq", "distance", "lr", "weight_decay"):
            np.testing.assert_allclose(answer[name], want[name], rtol=0.02, atol=0.02 * want[name].max(), err_msg=name)


@gloo
@deepspeed
@pytest.mark.slow
def test_training_with_deepspeed_is_bitwise_the_same_and_the_rest_is_refused() -> None:
    offloaded = {
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
        "zero_force_ds_cpu_optimizer": False,
    }
    calls = [
        *((programs.law_1, "deepspeed", given) for given in ({"stage": 1}, {"stage": 2}, BF16)),
        (programs.refused, {"zero_optimization": {"stage": 3}}),
        (programs.refused, offloaded),
    ]
    for *runs, stage_3, offload in results(launch(several, 2, calls, seconds=400)):
        for plain, watched in runs:
            assert_bitwise(plain, watched)
        assert "ZeRO stage 3" in stage_3
        assert "offloaded" in offload
