"""TensorBoard and W&B have what was sent to them, read back from their own files; hostile words came out safe."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.logged_runs import EVERY, POINTS, STEPS, Run, evil_finding, logged, printable, wandb_items, wandb_records
from thermoclaw import log_to
from thermoclaw.diagnosis.finding import CONFIDENCES
from thermoclaw.integrations.loggers.mlflow import MLflow
from thermoclaw.integrations.loggers.tensorboard import TensorBoard
from thermoclaw.integrations.loggers.trackio import Trackio
from thermoclaw.integrations.loggers.wandb import WandB
from thermoclaw.integrations.scalars import ALARMS, PREFIX, meanings, scalars

Digits = tuple[Tensor, Tensor]
R_IE, MAP = f"{PREFIX}R_ie", f"{PREFIX}r_map"


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
    writer.add_scalar("mine", 1.0, 99)
    writer.close()
    assert len(list(tmp_path.iterdir())) == 1  # it had stayed open: a closed writer begins another file
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
    monkeypatch.setenv("WANDB_X_DISABLE_STATS", "true")
    monkeypatch.setenv("WANDB__DISABLE_STATS", "true")  # its name in 0.18.0
    run = wandb.init(project="test", dir=str(tmp_path))
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
