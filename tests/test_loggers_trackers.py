"""Each tracker has what was sent to it, read back from its own files; hostile words came out safe.

MLflow and Trackio are heavy, and Trackio does not fit the other pins: where they are not installed, fakes with the
signatures of the real ones take their place.
"""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from tests.logged_runs import EVERY, EVIL, POINTS, STEPS, Notes, Run, evil_finding, logged, wandb_items, wandb_records
from thermoclaw import log_to
from thermoclaw.diagnosis.finding import CONFIDENCES
from thermoclaw.integrations.loggers import as_logger
from thermoclaw.integrations.loggers.jsonl import JSONLines
from thermoclaw.integrations.loggers.mlflow import MLflow
from thermoclaw.integrations.loggers.prometheus import Prometheus
from thermoclaw.integrations.loggers.tensorboard import TensorBoard
from thermoclaw.integrations.loggers.trackio import Trackio
from thermoclaw.integrations.loggers.wandb import WandB
from thermoclaw.integrations.scalars import ALARMS, PREFIX, meanings, scalars

Digits = tuple[Tensor, Tensor]
R_IE, MAP = f"{PREFIX}R_ie", f"{PREFIX}r_map"


def printable(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


@pytest.mark.parametrize(
    ("package", "extra", "make"),
    [
        ("torch.utils.tensorboard", "tensorboard", lambda: TensorBoard("folder")),
        ("wandb", "wandb", WandB),
        ("mlflow", "mlflow", MLflow),
        ("trackio", "trackio", lambda: Trackio(object())),
    ],
)
def test_a_missing_package_names_its_extra(
    package: str, extra: str, make: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install 'thermoclaw\[{extra}\]'"):
        make()


# -- TensorBoard -------------------------------------------------------------------------------------------------------


def tensorboard_events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0, "scalars": 0}).Reload()


def test_tensorboard_has_numbers_text_and_image(digits: Digits, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("matplotlib")
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))
    observer = logged(digits, writer)
    writer.add_scalar("mine", 1.0, 99)  # it is still open
    writer.close()
    events = tensorboard_events(tmp_path)
    read = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    assert set(read) == {*meanings(), "mine"}
    assert list(read[R_IE]) == POINTS
    expected = scalars(observer.record().rows(stop=21), steps=EVERY)
    assert {name: read[name][20] for name in expected} == pytest.approx(expected, rel=1e-6)
    texts = events.Tensors(f"{PREFIX}findings/text_summary")
    assert [text.step for text in texts] == [alarm.raised_step for alarm in observer.alarms]
    assert "Weight decay is eroding all 3 layers" in texts[0].tensor_proto.string_val[0].decode()
    (image,) = events.Images(MAP)
    assert image.step == STEPS
    assert Image.open(io.BytesIO(image.encoded_image_string)).size == (image.width, image.height)


@pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")  # TensorBoard's own
def test_tensorboard_shows_hostile_words_as_words(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.plugin_util import markdowns_to_safe_html

    board = TensorBoard(tmp_path)
    board.finding(evil_finding())
    board.close()
    (event,) = tensorboard_events(tmp_path).Tensors(f"{PREFIX}findings/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert printable(text)
    assert len(text) < 30_000
    html = markdowns_to_safe_html([text], lambda parts: "".join(parts))
    assert {part.partition(">")[0].strip() for part in html.split("<")[1:]} <= {"p", "/p", "strong", "/strong"}
    assert "&lt;img" in html
    assert "http://x.test" in html  # as words, not as a link


def test_a_folder_makes_a_writer_of_its_own(digits: Digits, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    logged(digits, TensorBoard(tmp_path / "runs"), picture=False)
    assert [e.step for e in tensorboard_events(tmp_path / "runs").Scalars(ALARMS)] == POINTS


# -- Weights & Biases --------------------------------------------------------------------------------------------------


@pytest.fixture
def wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    wandb = pytest.importorskip("wandb")
    for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(project="test", dir=str(tmp_path), settings=wandb.Settings(x_disable_stats=True))
    yield run
    wandb.finish()


def end(run: Any) -> None:
    """Finish, and wait until the file is written: its writer is another process."""
    import wandb

    run.finish()
    wandb.teardown()


def test_wandb_has_rows_alerts_summary_and_image(digits: Digits, tmp_path: Path, wandb_run: Any) -> None:
    pytest.importorskip("matplotlib")
    run = Run(digits)
    assert run.observer is not None
    log_to(run.observer, wandb_run, every=EVERY)
    for step in range(STEPS):
        run.train(1)
        wandb_run.log({"loss": step}, step=step)  # the user's own rows, with steps of their own
    run.observer.close()
    end(wandb_run)
    records = list(wandb_records(tmp_path))
    rows = [wandb_items(record.history.item) for record in records if record.WhichOneof("record_type") == "history"]
    mine = {row[f"{PREFIX}step"]: row for row in rows if R_IE in row}
    assert list(mine) == POINTS
    expected = scalars(run.observer.record().rows(stop=21), steps=EVERY)
    assert {name: mine[20][name] for name in expected} == pytest.approx(expected)
    assert [row["loss"] for row in rows if "loss" in row] == list(range(STEPS))  # none of the user's was lost
    (picture,) = [row for row in rows if f"{MAP}/_type" in row or MAP in row]
    assert picture[f"{PREFIX}step"] == STEPS
    assert list(tmp_path.rglob("files/media/images/**/*.png"))
    alerts = [record.alert for record in records if record.WhichOneof("record_type") == "alert"]
    assert [alert.level for alert in alerts] == ["ERROR"] * len(run.observer.alarms)
    assert alerts[0].title == "step 16: weight decay erodes all 3 layers"
    metrics = [record.metric for record in records if record.WhichOneof("record_type") == "metric"]
    assert any(m.glob_name == f"{PREFIX}*" and m.step_metric == f"{PREFIX}step" for m in metrics)
    summaries = [record.summary.update for record in records if record.WhichOneof("record_type") == "summary"]
    kept = [
        wandb_items(update)[f"{PREFIX}findings"] for update in summaries if f"{PREFIX}findings" in wandb_items(update)
    ]
    assert kept[-1].split("\n") == [alarm.message for alarm in run.observer.alarms]


def test_wandb_gets_hostile_words_as_words(tmp_path: Path, wandb_run: Any) -> None:
    logger = WandB()
    for confidence in CONFIDENCES:
        logger.finding(evil_finding(confidence=confidence))
    end(wandb_run)
    records = list(wandb_records(tmp_path))
    alerts = [record.alert for record in records if record.WhichOneof("record_type") == "alert"]
    assert [alert.level for alert in alerts] == ["ERROR", "WARN", "INFO"]
    for alert in alerts:
        assert len(alert.title) < 64
        assert len(alert.text) <= 2000
        assert printable(alert.title + alert.text)
        assert not re.search(r"<!|@everyone|http://|\n", alert.title + alert.text)


def test_wandb_without_a_run_says_so() -> None:
    wandb = pytest.importorskip("wandb")
    assert wandb.run is None
    with pytest.raises(ValueError, match=r"call wandb\.init\(\) before"):
        WandB()


# -- Prometheus --------------------------------------------------------------------------------------------------------


def families(path: Path) -> dict[str, Any]:
    parser = pytest.importorskip("prometheus_client.parser")
    return {family.name: family for family in parser.text_string_to_metric_families(path.read_text(encoding="utf-8"))}


def test_prometheus_has_the_newest_numbers_and_all_findings(digits: Digits, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "mine.prom"
    run = Run(digits)
    assert run.observer is not None
    log_to(run.observer, path, every=EVERY)
    run.train()
    during = families(path)
    run.observer.close()
    read = families(path)
    assert [sample.value for sample in during["thermoclaw_running"].samples] == [1.0]
    assert [sample.value for sample in read["thermoclaw_running"].samples] == [0.0]
    assert read["thermoclaw_step"].samples[0].value == STEPS
    expected = scalars(run.observer.record(), steps=4)
    for name, value in expected.items():
        (sample,) = read[name.replace("/", "_")].samples
        assert (sample.value, sample.labels) == (pytest.approx(value), {"run": "mine"})
        assert read[sample.name].documentation == meanings()[name]
        assert read[sample.name].type == "gauge"
    found = read["thermoclaw_finding_raised_step"].samples
    assert [sample.value for sample in found] == [alarm.raised_step for alarm in run.observer.alarms]
    assert found[0].labels["code"] == "weight_decay_too_high"
    assert [file.name for file in path.parent.iterdir()] == ["mine.prom"]  # no half of a file is left
    assert path.stat().st_mode & 0o044  # node_exporter is another user


def test_prometheus_escapes_hostile_words_and_repeats_no_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.prom"
    logger = Prometheus(path, {"run": EVIL})
    for i in range(200):
        logger.finding(evil_finding(raised_step=i, title=EVIL if i < 9 else f"{i}"))
    text = path.read_text(encoding="utf-8")
    assert printable(text)
    read = families(path)
    assert set(read) == {"thermoclaw_step", "thermoclaw_running", "thermoclaw_finding_raised_step"}
    samples = read["thermoclaw_finding_raised_step"].samples
    assert len(samples) == len({tuple(sorted(sample.labels.items())) for sample in samples}) == 50
    assert samples[0].value == 0
    assert samples[0].labels["title"].startswith('a"b\\c # x·[31m')
    assert max(len(line) for line in text.splitlines()) < 2000


def test_prometheus_refuses_what_the_collector_would(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"only files whose name ends in \.prom"):
        Prometheus(tmp_path / "a.txt")
    for name in ("1a", "a-b", "__a", "", "a\n"):
        with pytest.raises(ValueError, match="a name has letters"):
            Prometheus(tmp_path / "a.prom", {name: "x"})


# -- JSON lines --------------------------------------------------------------------------------------------------------


def test_json_lines_have_points_and_findings(digits: Digits, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "deep" / "run.jsonl"
    observer = logged(digits, str(path))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    points = [line for line in lines if "finding" not in line]
    assert [line["step"] for line in points] == POINTS
    expected = scalars(observer.record().rows(stop=21), steps=EVERY)
    assert {name: points[1][name] for name in expected} == pytest.approx(expected)
    assert [line["finding"] for line in lines if "finding" in line] == [a.to_json() for a in observer.alarms]
    assert (tmp_path / "deep" / "run_r_map.png").read_bytes().startswith(b"\x89PNG")


def test_json_lines_stay_lines_and_are_added_to(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text('{"step": 1}\n')
    JSONLines(path).finding(evil_finding())
    first, second = path.read_text(encoding="utf-8").split("\n")[:-1]
    assert json.loads(first) == {"step": 1}
    assert json.loads(second)["finding"]["layers"][1] == EVIL
    assert json.loads(second, parse_constant=lambda _: 1 / 0)["finding"]["evidence"]["norm_drop"] is None


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
    assert parameters(FakeMetric) == parameters(mlflow.entities.Metric)


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
        logger.finding(evil_finding(code=EVIL if i else LONG_CODE))
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


LONG_CODE = "x" * 9999


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
    run = trackio.init(project="p", name="r", auto_log_cpu=False, auto_log_gpu=False, embed=False)
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
