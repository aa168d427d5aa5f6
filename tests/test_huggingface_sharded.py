"""The Trainer callback in several processes: DDP, FSDP2, DeepSpeed. tests/huggingface_programs.py has what they run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import transformers

from tests import huggingface_programs
from tests.conftest import assert_bitwise, needs_shards
from tests.sharded_programs import QUANTITIES, launch, several
from thermoclaw.integrations import outputs

pytestmark = [
    pytest.mark.slow,
    needs_shards,
    pytest.mark.skipif(int(transformers.__version__.split(".")[0]) < 5, reason="FSDP2 is set up in another way there"),
]


def runs(*calls: tuple[str, Path, dict[str, Any], dict[str, Any]], world: int = 2) -> list[list[dict[str, Any]]]:
    """By call, the answers of all processes."""
    programs = [(huggingface_programs.run, way, str(folder), *more) for way, folder, *more in calls]
    answers = launch(several, world, programs, seconds=300)
    for answer in answers:
        assert answer is not None, "a process died or hung"
        assert not isinstance(answer, Exception), answer
    return [list(call) for call in zip(*answers, strict=True)]


def assert_same(got: dict[str, Any], want: dict[str, Any], *, rtol: float) -> None:
    assert got["columns"]["layers"] == want["columns"]["layers"]
    for name in QUANTITIES:
        one, two = got["columns"][name], want["columns"][name]
        np.testing.assert_allclose(one, two, rtol=rtol, atol=rtol * np.nanmax(np.abs(two)), err_msg=name)


needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not there")


@pytest.mark.parametrize(
    "ways",
    [["ddp", "fsdp2"], pytest.param(["deepspeed1", "deepspeed2"], marks=needs_deepspeed)],
    ids=["torch", "deepspeed"],
)
def test_every_way_gives_the_run_of_one_process(ways: list[str], tmp_path: Path) -> None:
    exact = {"mode": "exact"}
    ((want,),) = runs(("one", tmp_path / "one", exact, {}), world=1)
    calls = [(way, tmp_path / way, exact, {}) for way in ways]
    calls += [(way, tmp_path / f"{way} alone", {"watched": False}, {}) for way in ways]
    found = runs(*calls)
    for way, (main, other), (alone, _) in zip(ways, found[:2], found[2:], strict=True):
        assert_same(main, want, rtol=2e-3)
        assert_bitwise(main["weights"], alone["weights"])
        assert outputs.RECORD_FILE in main["files"]
        assert "Thermoclaw: " in main["said"]
        assert "Thermoclaw" not in other["said"]
        if way == "ddp":
            assert other["columns"] is None, "one process is enough where gradients are the same on all"
        else:
            for name in QUANTITIES:
                assert_bitwise(main["columns"][name], other["columns"][name])
            mean = (main["loss"] + other["loss"]) / 2
            np.testing.assert_allclose(mean, want["loss"], rtol=1e-4)


def test_all_stop_at_the_same_step(tmp_path: Path) -> None:
    """The alarm is of step 16; they agree where the Trainer logs."""
    eroding = {"weight_decay": 5.0, "lr_scheduler_type": "constant", "optim": "sgd", "learning_rate": 0.01}
    given = {**eroding, "max_steps": 40}
    stop = {"early_stop": "HIGH"}
    for main, other in runs(("ddp", tmp_path / "1", stop, given), ("fsdp2", tmp_path / "2", stop, given)):
        assert main["steps"] == other["steps"] == 18
        assert [(event["kind"], event["step"]) for event in main["events"]] == [("alarm", 16), ("early_stop", 16)]
        assert main["said"].count("stops training, as early_stop") == 1
        assert other["said"].count("Thermoclaw") == 0


@pytest.mark.parametrize("fails", [0, 1])
def test_a_callback_that_fails_on_one_process_leaves_nobody_waiting(fails: int, tmp_path: Path) -> None:
    stop = {"early_stop": "HIGH"}
    ((good, bad), (_, alone)) = runs(
        ("fsdp2", tmp_path / "1", {**stop, "fails": fails}, {}),
        ("fsdp2", tmp_path / "2", {**stop, "watched": False}, {}),
    )
    good, bad = (good, bad) if fails == 1 else (bad, good)
    assert (good["off"], bad["off"]) == (False, True)
    assert good["steps"] == bad["steps"] == huggingface_programs.STEPS
    assert good["columns"]["steps"].tolist() == list(range(1, huggingface_programs.STEPS + 1))
    assert_bitwise(good["weights"], alone["weights"])


def test_a_resumed_sharded_run_is_the_whole_run(tmp_path: Path) -> None:
    step = huggingface_programs.SAVED
    saving = {"save_strategy": "steps", "save_steps": step}
    resume = {"resume": str(tmp_path / "1" / f"checkpoint-{step}")}
    whole, again = runs(("fsdp2", tmp_path / "1", {}, saving), ("fsdp2", tmp_path / "2", {}, resume))
    for one, two in zip(whole, again, strict=True):
        assert one["columns"]["steps"].tolist() == two["columns"]["steps"].tolist()
        for name in QUANTITIES:
            assert_bitwise(one["columns"][name], two["columns"][name])
