"""What each reporter of transformers makes of the numbers: each one's own code, with a client that takes notes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

pytest.importorskip("transformers")

from transformers import TrainerControl, TrainerState
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from thermoclaw.integrations.feed import report, reporters

VALUES, STEP = {"thermoclaw/R_ie": 0.5, "thermoclaw/sigma": 2.0}, 20
TRAIN = {f"train/{name}": value for name, value in VALUES.items()}


class Notes:
    """A client: any call on it, however deep, is noted with its arguments."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.run = self

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Notes:
            self.calls.append((name, args, kwargs))
            return self

        return call

    def __getitem__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(log=lambda value, step: self.calls.append(("log", (name, value), {"step": step})))


def of(calls: list[Any], method: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    return [(args, kwargs) for name, args, kwargs in calls if name == method]


# By integration: what stands for its client, and what must have been called; None for those that carry no numbers.

EACH: dict[str, tuple[tuple[str, ...], str, Any] | None] = {
    "azure_ml": (("azureml_run",), "log", [((k, v), {"description": k}) for k, v in VALUES.items()]),
    "clearml": (
        (
            "_clearml_task",
            "_clearml",
        ),
        "report_scalar",
        [((), {"title": k, "series": "train", "value": v, "iteration": STEP}) for k, v in VALUES.items()],
    ),
    "comet_ml": (
        ("_experiment",),
        "__internal_api__log_metrics__",
        [((TRAIN,), {"step": STEP, "epoch": 1.5, "framework": "transformers"})],
    ),
    "codecarbon": None,
    "dagshub": (("_ml_flow",), "log_metrics", [((), {"metrics": VALUES, "step": STEP})]),
    "dvclive": None,
    "flyte": None,
    "kubeflow": ((), "", VALUES),
    "mlflow": (("_ml_flow",), "log_metrics", [((), {"metrics": VALUES, "step": STEP})]),
    "neptune": (("_metadata_namespace",), "log", [((k, v), {"step": STEP}) for k, v in TRAIN.items()]),
    "swanlab": (("_swanlab",), "log", [((VALUES,), {"step": STEP})]),
    "tensorboard": (("tb_writer",), "add_scalar", [((k, v, STEP), {}) for k, v in VALUES.items()]),
    "trackio": (("_trackio",), "log", [(({**VALUES, "train/global_step": STEP},), {})]),
    "wandb": (("_wandb",), "log", [(({**VALUES, "train/global_step": STEP},), {})]),
}


@pytest.mark.parametrize("name", sorted(INTEGRATION_TO_CALLBACK))
def test_every_integration_of_transformers(name: str) -> None:
    kind, expected = INTEGRATION_TO_CALLBACK[name], EACH[name]
    notes = Notes()
    attributes = dict.fromkeys(expected[0], notes) if expected is not None else {}
    reporter = type(
        kind.__name__, (kind,), {**attributes, "_initialized": True, "_async_log": False, "__del__": lambda self: None}
    )
    reporter = reporter.__new__(reporter)
    reporter._metrics = {}
    trainer = SimpleNamespace(callback_handler=SimpleNamespace(callbacks=[reporter]))
    found = reporters(trainer)
    assert found == ([reporter] if expected is not None else [])
    if expected is None:
        return
    state = TrainerState(global_step=27, epoch=1.5, is_world_process_zero=True)
    control = TrainerControl(should_log=True)
    report(reporter, VALUES, STEP, MagicMock(), state, control, model=None)
    _, method, calls = expected
    assert (of(notes.calls, method) if method else reporter._metrics) == calls
    assert (state.global_step, control.should_log) == (27, True)
