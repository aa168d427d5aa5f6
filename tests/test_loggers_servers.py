"""MLflow and Trackio get what is documented, and have it afterwards; hostile words came out safe.

Both are heavy, and Trackio does not fit the other pins: where they are not installed, fakes with the signatures of the
real ones take their place.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sqlite3
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from tests.logged_runs import EVERY, EVIL, POINTS, STEPS, Notes, Run, evil_finding, logged, printable
from thermoclaw import log_to
from thermoclaw.diagnosis.finding import CONFIDENCES
from thermoclaw.integrations.loggers import as_logger
from thermoclaw.integrations.loggers.mlflow import MLflow
from thermoclaw.integrations.loggers.trackio import Trackio
from thermoclaw.integrations.scalars import ALARMS, PREFIX, meanings, scalars

Digits = tuple[Tensor, Tensor]
R_IE, MAP = f"{PREFIX}R_ie", f"{PREFIX}r_map"


# -- MLflow and Trackio: fakes that take what the real ones take -------------------------------------------------------


class FakeClient:
    """The part of `mlflow.MlflowClient` that is used, as MLflow 3.17 has it."""

    def __init__(self) -> None:
        self.made: list[tuple[Any, ...]] = []
        self.threads: set[str] = set()

    def _note(self, *what: Any) -> None:
        self.made.append(what)
        self.threads.add(threading.current_thread().name)

    def log_batch(
        self, run_id: Any, metrics: Any = (), params: Any = (), tags: Any = (), synchronous: Any = None
    ) -> None:
        self._note("batch", run_id, {m.key: (m.value, m.step) for m in metrics})

    def set_tag(self, run_id: Any, key: Any, value: Any, synchronous: Any = None) -> None:
        self._note("tag", run_id, key, value)

    def log_text(self, run_id: Any, text: Any, artifact_file: Any) -> None:
        self._note("text", run_id, text, artifact_file)

    def log_image(
        self,
        run_id: Any,
        image: Any,
        artifact_file: Any = None,
        key: Any = None,
        step: Any = None,
        timestamp: Any = None,
        synchronous: Any = None,
    ) -> None:
        self._note("image", run_id, image.size, artifact_file)


class FakeMetric:
    """`mlflow.entities.Metric`, as far as it is used."""

    def __init__(
        self,
        key: Any,
        value: Any,
        timestamp: Any,
        step: Any,
        model_id: Any = None,
        dataset_name: Any = None,
        dataset_digest: Any = None,
        run_id: Any = None,
    ) -> None:
        assert isinstance(timestamp, int)
        assert abs(timestamp / 1000 - time.time()) < 3600
        self.key, self.value, self.step = key, value, step


class FakeTrackioRun:
    """`trackio.Run`, as Trackio 0.43 has it."""

    def __init__(self) -> None:
        self.made: list[tuple[Any, ...]] = []

    def log(self, metrics: Any, step: Any = None) -> None:
        self.made.append(("log", step, metrics))

    def alert(
        self, title: Any, text: Any = None, level: Any = "warn", step: Any = None, webhook_url: Any = None
    ) -> None:
        self.made.append(("alert", step, level, title, text))


def parameters(call: Any) -> list[tuple[str, Any]]:
    """Names and kinds, and whether there is a default."""
    return [(p.name, p.kind, p.default is p.empty) for p in inspect.signature(call).parameters.values()]


def test_the_fake_of_mlflow_takes_what_mlflow_takes() -> None:
    mlflow = pytest.importorskip("mlflow")
    for name in ("log_batch", "set_tag", "log_text", "log_image"):
        assert parameters(getattr(FakeClient, name)) == parameters(getattr(mlflow.MlflowClient, name)), name
    newer = {"model_id", "dataset_name", "dataset_digest", "run_id"} if mlflow.__version__.startswith("2.") else set()
    mine = [parameter for parameter in parameters(FakeMetric) if parameter[0] not in newer]
    assert mine == parameters(mlflow.entities.Metric)


@pytest.fixture(scope="session")
def trackio(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The package, with its files in a folder of the tests; it looks for the folder when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield pytest.importorskip("trackio")


def test_the_fake_of_trackio_takes_what_trackio_takes(trackio: Any) -> None:
    for name in ("log", "alert"):
        assert parameters(getattr(FakeTrackioRun, name)) == parameters(getattr(trackio.Run, name)), name
    assert [level.name for level in trackio.AlertLevel] == ["INFO", "WARN", "ERROR"]
    assert next(iter(inspect.signature(trackio.Image).parameters)) == "value"


@pytest.fixture
def mlflow_client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    client, run = FakeClient(), SimpleNamespace(info=SimpleNamespace(run_id="r1"))
    fake, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    fake.MlflowClient, fake.active_run = lambda: client, lambda: run  # type: ignore[attr-defined]
    fake.entities, entities.Metric = entities, FakeMetric  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return client


def test_mlflow_is_called_as_documented(digits: Digits, mlflow_client: FakeClient) -> None:
    pytest.importorskip("matplotlib")
    observer = logged(digits, MLflow())
    assert mlflow_client.threads == {"thermoclaw-mlflow"}
    assert {what[1] for what in mlflow_client.made} == {"r1"}
    batches = [what[2] for what in mlflow_client.made if what[0] == "batch"]
    assert [batch[ALARMS][1] for batch in batches] == POINTS
    expected = scalars(observer.record().rows(stop=21), steps=EVERY)
    assert {name: batches[1][name] for name in expected} == {name: (value, 20) for name, value in expected.items()}
    tags = [what[2:] for what in mlflow_client.made if what[0] == "tag"]
    assert tags == [(f"thermoclaw.{alarm.code}", alarm.message) for alarm in observer.alarms]
    texts = [what[2:] for what in mlflow_client.made if what[0] == "text"]
    assert texts[-1] == ("".join(f"{alarm.message}\n" for alarm in observer.alarms), "thermoclaw/findings.txt")
    (image,) = [what[2:] for what in mlflow_client.made if what[0] == "image"]
    assert image[1] == f"{MAP}.png"


def test_mlflow_gets_hostile_words_within_its_limits(mlflow_client: FakeClient) -> None:
    logger = MLflow("r2")
    for i in range(80):
        logger.finding(evil_finding(code=EVIL if i else "x" * 9999))
    logger.close()
    for kind, run_id, *what in mlflow_client.made:
        assert run_id == "r2"
        if kind == "tag":
            assert re.fullmatch(r"[A-Za-z0-9_.-]{1,250}", what[0])
            assert len(what[1].encode()) <= 5000
            assert printable(what[1])
            assert "\n" not in what[1]
        else:
            assert printable(what[0])
            assert what[0].count("\n") <= 50


def test_a_server_of_mlflow_that_fails_or_hangs_does_not_hold_training_up(
    digits: Digits, mlflow_client: FakeClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    go = threading.Event()
    monkeypatch.setattr(mlflow_client, "log_batch", lambda *_, **__: go.wait() and 1 / 0)
    run, notes = Run(digits), Notes()
    assert run.observer is not None
    log_to(run.observer, MLflow(), notes, every=EVERY, picture=False)
    run.train()
    assert "failed" not in caplog.text
    go.set()
    run.observer.close()
    assert len(re.findall(r"MLflow failed in (scalars|close)\(\); it gets nothing from here on", caplog.text)) == 1
    assert "ZeroDivisionError" in caplog.text
    assert [step for step, _ in notes.calls("scalars")] == POINTS


def test_closing_waits_for_a_slow_server_of_mlflow(mlflow_client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    log_text = mlflow_client.log_text
    monkeypatch.setattr(mlflow_client, "log_text", lambda *what: (time.sleep(0.3), log_text(*what)))
    logger = MLflow()
    began_s = time.monotonic()
    logger.finding(evil_finding())
    assert time.monotonic() - began_s < 0.2
    logger.close()
    assert [what[0] for what in mlflow_client.made] == ["tag", "text"]


@pytest.mark.parametrize("module", ["mlflow.tracking.fluent", "mlflow.entities.run"])
def test_a_run_of_mlflow_is_known_by_its_type(mlflow_client: FakeClient, module: str) -> None:
    run = type("Run", (), {"__module__": module, "info": SimpleNamespace(run_id="r7")})()
    logger = as_logger(run)
    assert isinstance(logger, MLflow)
    logger.scalars(3, {R_IE: 0.5})
    logger.close()
    assert mlflow_client.made == [("batch", "r7", {R_IE: (0.5, 3)})]


def test_a_run_of_trackio_is_known_by_its_type(trackio_run: FakeTrackioRun) -> None:
    run = type("Run", (FakeTrackioRun,), {"__module__": "trackio.run"})()
    logger = as_logger(run)
    assert isinstance(logger, Trackio)
    logger.scalars(3, {R_IE: 0.5})
    assert run.made == [("log", 3, {R_IE: 0.5})]


def test_mlflow_without_a_run_says_so(mlflow_client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["mlflow"], "active_run", lambda: None)
    with pytest.raises(ValueError, match=r"call mlflow\.start_run\(\) before"):
        MLflow()


@pytest.fixture
def trackio_run(monkeypatch: pytest.MonkeyPatch) -> FakeTrackioRun:
    fake = ModuleType("trackio")
    fake.Image = lambda value, caption=None: ("image", value.size)  # type: ignore[attr-defined]
    fake.AlertLevel = {"INFO": "info", "WARN": "warn", "ERROR": "error"}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", fake)
    return FakeTrackioRun()


def test_trackio_is_called_as_documented(digits: Digits, trackio_run: FakeTrackioRun) -> None:
    pytest.importorskip("matplotlib")
    observer = logged(digits, Trackio(trackio_run))
    *points, (_, at, picture) = [what for what in trackio_run.made if what[0] == "log"]
    assert [step for _, step, _ in points] == POINTS
    assert points[1][2] == pytest.approx({**scalars(observer.record().rows(stop=21), steps=EVERY), ALARMS: 1.0})
    assert at == STEPS
    assert picture[MAP][0] == "image"
    alerts = [what[1:4] for what in trackio_run.made if what[0] == "alert"]
    assert alerts == [(alarm.raised_step, "error", alarm.title) for alarm in observer.alarms]


def test_trackio_gets_hostile_words_as_words(trackio_run: FakeTrackioRun) -> None:
    for confidence in CONFIDENCES:
        Trackio(trackio_run).finding(evil_finding(confidence=confidence))
    assert [what[2] for what in trackio_run.made] == ["error", "warn", "info"]
    for _, _, _, title, text in trackio_run.made:
        assert printable(title + text)
        assert len(title) <= 200
        assert len(text) <= 2000
        assert not re.search(r"<!|@everyone|http://|\n", title + text)


# -- MLflow and Trackio themselves, where they are installed -----------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # MLflow's own
def test_mlflow_has_metrics_tags_and_artifacts(digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    with mlflow.start_run() as run:
        assert isinstance(as_logger(run), MLflow)
        logger = as_logger(run)
        observer = logged(digits, logger)
        evil = MLflow(run)
        evil.finding(evil_finding(code=EVIL))
        evil.close()
    client = mlflow.MlflowClient()
    kept = client.get_run(run.info.run_id)
    assert set(kept.data.metrics) == set(meanings())
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, R_IE)] == POINTS
    assert kept.data.tags["thermoclaw.weight_decay_too_high"] == observer.alarms[0].message
    files = [file.path for file in client.list_artifacts(run.info.run_id, "thermoclaw")]
    assert files == ["thermoclaw/findings.txt", "thermoclaw/r_map.png"]


def test_trackio_has_numbers_alerts_and_image(digits: Digits, trackio: Any) -> None:
    quiet = {"auto_log_cpu", "auto_log_gpu"} & set(inspect.signature(trackio.init).parameters)  # 0.18 has one of them
    run = trackio.init(project="p", name="r", embed=False, **dict.fromkeys(quiet, False))
    assert isinstance(as_logger(run), Trackio)
    observer = logged(digits, run)
    Trackio(run).finding(evil_finding(raised_step=50))
    trackio.finish()
    base = sqlite3.connect(Path(os.environ["TRACKIO_DIR"]) / "p.db")
    rows = [(step, json.loads(row)) for step, row in base.execute("select step, metrics from metrics order by id")]
    alerts = base.execute("select step, level, title from alerts order by id").fetchall()
    base.close()
    assert [step for step, row in rows if R_IE in row] == POINTS
    assert rows[-1][0] == STEPS
    assert rows[-1][1][MAP]["_type"] == "trackio.image"
    assert alerts[:-1] == [(alarm.raised_step, "error", alarm.title) for alarm in observer.alarms]
