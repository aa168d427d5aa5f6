"""`thermoclaw train`: the networks, a run and its folder, going on from a checkpoint, what is exported, the command."""

from __future__ import annotations

import csv
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from thermoclaw import Observer, Thermometer, cli
from thermoclaw.lab.progress import Progress
from thermoclaw.runs import load
from thermoclaw.train import MODELS, DataError, Outcome, ResNet, RunError, Settings, results, train
from thermoclaw.train.batches import Batches, shifted
from thermoclaw.train.checkpoints import newest_checkpoint, save_checkpoint
from thermoclaw.train.export import export_model
from thermoclaw.train.images import Labeled
from thermoclaw.train.log import Log, read_log
from thermoclaw.train.settings import read_toml, settings_of
from thermoclaw.train.status import Status, ask_to_stop, is_running, read_status
from thermoclaw.train.telling import Silent

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 8 × 8 images that a few steps tell apart."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number, name in enumerate(("dark", "light")):
        (root / name).mkdir()
        for i in range(30):
            pixels = rng.integers(0, 100, (8, 8, 3), dtype=np.uint8) + 120 * number
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i:02}.png")
    return root


@pytest.fixture
def drawn(images: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a run of a second: 48 images, 6 batches a pass."""
    monkeypatch.setitem(MODELS, "small", type(MODELS["small"])((1, 1), 4))
    return {"data": f"folder:{images}", "image_size": 8, "batch_size": 8, "epochs": 3, "export": ["state"]}


@pytest.fixture
def small(drawn: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The same without pictures, which take longer than the run."""
    for name in (results.DASHBOARD, results.HEAT_PICTURE):
        owner, method = {results.DASHBOARD: (Observer, "plot_dashboard")}.get(name, (Thermometer, "plot"))
        monkeypatch.setattr(owner, method, lambda self, path: None)
    return drawn


def state(folder: Path) -> dict[str, Any]:
    return newest_checkpoint(folder)


def differences(left: Any, right: Any, path: str = "") -> list[str]:
    """Where two states are not the same to the last bit."""
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        return [d for key in left for d in differences(left[key], right[key], f"{path}/{key}")]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return [d for i, pair in enumerate(zip(left, right, strict=True)) for d in differences(*pair, f"{path}/{i}")]
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        same = left.dtype == right.dtype and torch.equal(left.nan_to_num(7.0), right.nan_to_num(7.0))
        return [] if same else [path]
    return [] if repr(left) == repr(right) else [path]


def seen_later(found: list[str]) -> list[str]:
    """Less the name of the run, and a count of neighboring steps, of which a seam is none."""
    return [path for path in found if not path.endswith("run_id")]


# -- networks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count"), [("resnet18", 11_173_962), ("resnet50", 23_520_842)])
def test_parameters_are_as_many_as_the_papers_networks_have_with_this_stem(name: str, count: int) -> None:
    """ImageNet's 11,689,512 and 25,557,032, less 1000 classes and a 7×7 stem, with 10 classes and a 3×3 stem."""
    model = ResNet(MODELS[name], num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == count
    features = 512 if name == "resnet18" else 2048
    published = {"resnet18": 11_689_512, "resnet50": 25_557_032}[name]
    assert count == published - (features + 1) * 1000 + (features + 1) * 10 - 64 * 3 * 49 + 64 * 3 * 9


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 8)])
def test_every_network_takes_every_image(name: str, channels: int, side: int) -> None:
    model = ResNet(MODELS[name], num_classes=7, in_channels=channels)
    assert model(torch.rand(2, channels, side, side)).shape == (2, 7)


def test_a_picture_is_halved_between_stages_and_not_before() -> None:
    model = ResNet(MODELS["resnet18"], num_classes=2).eval()
    sides: list[int] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[-1]))
    model(torch.rand(1, 3, 32, 32))
    assert sides == [32, 32, 16, 16, 8, 8, 4, 4]


@pytest.mark.parametrize("name", MODELS)
def test_a_block_begins_as_its_shortcut(name: str) -> None:
    model = ResNet(MODELS[name], num_classes=2)
    for block in model.blocks:
        x = torch.rand(2, next(block.parameters()).shape[1], 8, 8)
        assert torch.equal(block(x), torch.relu(block.shortcut(x)))


def test_a_bottleneck_strides_in_its_wide_convolution() -> None:
    block = ResNet(MODELS["resnet50"], num_classes=2).blocks[3]
    assert [(conv.kernel_size[0], conv.stride[0]) for conv in block.convs] == [(1, 1), (3, 2), (1, 1)]
    assert block.outside == 512
    assert all(conv.bias is None for conv in block.convs)


def test_pixels_are_scaled_inside() -> None:
    torch.manual_seed(0)
    model = ResNet(MODELS["small"], num_classes=2, mean=[0.2, 0.4, 0.6], std=[0.5, 0.25, 2.0]).eval()
    seen: list[Tensor] = []
    model.stem.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    x = torch.rand(2, 3, 8, 8)
    model(x)
    want = torch.stack([(x[:, 0] - 0.2) / 0.5, (x[:, 1] - 0.4) / 0.25, (x[:, 2] - 0.6) / 2.0], dim=1)
    assert torch.allclose(seen[0], want)


# -- batches -----------------------------------------------------------------------------------------------------------


def numbered(count: int) -> Labeled:
    images = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1).repeat(8, axis=2).repeat(8, axis=3)
    return Labeled(images, np.arange(count, dtype=np.int64))


def test_an_epoch_has_each_image_once_in_an_order_of_its_own() -> None:
    batches = Batches(numbered(20), batch_size=6, seed=1, augment=False, device=torch.device("cpu"))
    orders = []
    for epoch in range(2):
        labels = torch.cat([labels for _, labels in batches.epoch(epoch)]).tolist()
        assert len(set(labels)) == len(labels) == 18
        orders.append(labels)
    assert orders[0] != orders[1]
    again = torch.cat([labels for _, labels in batches.epoch(1, start=2)]).tolist()
    assert again == orders[1][12:]
    images, labels = next(batches.epoch(0))
    assert torch.equal((images[:, 0, 0, 0] * 255).round().long(), labels)


def test_an_image_is_moved_and_mirrored_and_otherwise_left_alone() -> None:
    torch.manual_seed(0)
    image = torch.randint(1, 255, (1, 3, 8, 8), dtype=torch.uint8)
    moved = shifted(image.repeat(200, 1, 1, 1), torch.Generator().manual_seed(0))
    wide = nn.functional.pad(image[0], (1, 1, 1, 1))
    views = [wide[:, r : r + 8, c : c + 8] for r in range(3) for c in range(3)]
    views += [view.flip(-1) for view in views]
    found = [[i for i, view in enumerate(views) if torch.equal(one, view)] for one in moved]
    assert all(len(hits) == 1 for hits in found)
    assert {hits[0] for hits in found} == set(range(18))


# -- a run -------------------------------------------------------------------------------------------------------------


def test_a_run_learns_and_leaves_everything(drawn: dict[str, Any], tmp_path: Path) -> None:
    outcome = train({**drawn, "export": None}, tmp_path / "run")
    assert set(outcome.written) >= {
        "dashboard.png",
        "thermometer.png",
        "report.html",
        "export/model.pt",
        "export/model.pt2",
    }
    for name in outcome.written:
        assert (tmp_path / "run" / name).stat().st_size > 100
    assert (outcome.state, outcome.steps) == ("finished", 18)
    assert outcome.accuracy == 1.0
    told = read_status(tmp_path / "run")
    assert told is not None
    assert (told["state"], told["step"], told["steps"], told["epoch"]) == ("finished", 18, 18, 3)
    assert told["val_accuracy"] == 1.0
    assert told["loss"] > 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.json", "log.csv", "report.txt", "report.json", "data.json", "samples.npz"} <= names
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {
        "best.pt",
        "step-00000012.pt",
        "step-00000018.pt",
    }
    record = load(tmp_path / "run")
    assert record.num_steps == 18
    assert [event["val_acc"] for event in record.events if event["kind"] == "epoch"][-1] == 1.0
    heat = json.loads((tmp_path / "run" / "thermodynamics.json").read_text())
    assert set(heat["layers"]) == set(record.layer_names)
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert (data["classes"], data["train"], data["test"]) == (["dark", "light"], [24, 24], [6, 6])


def test_the_log_says_what_the_record_says(small: dict[str, Any], tmp_path: Path) -> None:
    train(small, tmp_path / "run")
    rows, record = read_log(tmp_path / "run"), load(tmp_path / "run")
    points = [row for row in rows if "lr" in row]
    assert [row["step"] for row in points] == list(range(1, 19))
    assert np.allclose([row["loss"] for row in points], record.loss)
    assert np.allclose([row["lr"] for row in points], record["lr"][:, 0])
    assert np.allclose([row["sigma"] for row in points], record["sigma"].sum(axis=1))
    assert [row["epoch"] for row in rows if "val_accuracy" in row] == [1, 2, 3]


def test_the_same_seed_is_the_same_run(small: dict[str, Any], tmp_path: Path) -> None:
    settings = {**small, "augment": True, "epochs": 1}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(name) + seed)  # whatever the process did before
        train({**settings, "seed": seed}, tmp_path / name)
    a, b, c = (state(tmp_path / name) for name in "abc")
    assert differences(a["model"], b["model"]) == []
    assert len(differences(a["model"], c["model"])) > 5


def test_the_callers_random_state_is_left_alone(small: dict[str, Any], tmp_path: Path) -> None:
    before = torch.get_rng_state()
    train({**small, "steps": 2}, tmp_path / "run")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("optimizer", "stop"), [("sgd", 4), ("sgd", 6), ("adamw", 11)])
def test_a_run_that_was_stopped_is_the_whole_run(
    small: dict[str, Any], tmp_path: Path, optimizer: str, stop: int
) -> None:
    settings = {**small, "augment": True, "optimizer": optimizer}
    train(settings, tmp_path / "whole")
    first = train(settings, tmp_path / "parts", stop=lambda step: step == stop)
    assert (first.state, first.steps) == ("stopped", stop)
    second = train({}, tmp_path / "parts", resume=True)
    assert (second.state, second.steps) == ("finished", 18)
    found = seen_later(differences(state(tmp_path / "whole"), state(tmp_path / "parts")))
    assert found == []
    whole, parts = load(tmp_path / "whole"), load(tmp_path / "parts")
    assert np.array_equal(whole.layer_values, parts.layer_values, equal_nan=True)
    order = sorted(read_log(tmp_path / "parts"), key=lambda row: (row["step"], "lr" not in row))
    assert order == sorted(read_log(tmp_path / "whole"), key=lambda row: (row["step"], "lr" not in row))


def test_a_killed_run_goes_on_from_its_last_checkpoint(small: dict[str, Any], tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(step: int) -> bool:
        if step == 11:
            raise Killed
        return False

    settings = {**small, "checkpoint_every": 4}
    train(settings, tmp_path / "whole")
    with pytest.raises(Killed):
        train(settings, tmp_path / "run", stop=kill)
    told = read_status(tmp_path / "run")
    assert told is not None
    assert told["state"] == "failed"
    assert state(tmp_path / "run")["step"] == 8
    assert train({}, tmp_path / "run", resume=True).steps == 18
    found = seen_later(differences(state(tmp_path / "whole"), state(tmp_path / "run")))
    assert found == []


def test_a_damaged_checkpoint_is_passed_over(small: dict[str, Any], tmp_path: Path) -> None:
    train({**small, "epochs": 2}, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-00000012.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert state(tmp_path / "run")["step"] == 6
    (tmp_path / "run" / "checkpoints" / "step-00000006.pt").write_bytes(b"")
    with pytest.raises(RunError, match="not a readable checkpoint"):
        state(tmp_path / "run")


def test_checkpoints_are_whole_few_and_execute_nothing(tmp_path: Path) -> None:
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, {"x": torch.ones(step)}, keep=2, best=step == 2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.pt", "step-00000004.pt", "step-00000005.pt"]
    assert state(tmp_path)["x"].tolist() == [1.0] * 5

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/made",)

    torch.save({"format": "thermoclaw.train", "version": 1, "x": Evil()}, tmp_path / "checkpoints" / "step-00000009.pt")
    assert state(tmp_path)["step"] == 5
    assert not (tmp_path / "made").exists()


def test_the_best_checkpoint_is_that_of_the_best_accuracy(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thermoclaw.train.loop import Trainer

    accuracies = iter([0.5, 0.9, 0.7])
    monkeypatch.setattr(Trainer, "evaluate", lambda self: (1.0, next(accuracies)))
    train(small, tmp_path / "run")
    assert torch.load(tmp_path / "run" / "checkpoints" / "best.pt", weights_only=True)["step"] == 12
    told = read_status(tmp_path / "run")
    assert told is not None
    assert (told["best_accuracy"], told["val_accuracy"]) == (0.9, 0.7)


def test_a_run_that_goes_on_is_the_same_run(small: dict[str, Any], tmp_path: Path, images: Path) -> None:
    train({**small, "epochs": 1}, tmp_path / "run")
    with pytest.raises(RunError, match=r"lr=None \(now 0\.5\)"):
        train({"lr": 0.5}, tmp_path / "run", resume=True)
    with pytest.raises(RunError, match="has a run already"):
        train(small, tmp_path / "run")
    assert train({"epochs": 2}, tmp_path / "run", resume=True).steps == 12
    with pytest.raises(RunError, match=r"has no config\.json"):
        train({}, tmp_path / "nothing", resume=True)


def test_other_images_are_another_run(small: dict[str, Any], tmp_path: Path, images: Path) -> None:
    import shutil

    copied = shutil.copytree(images, tmp_path / "images")
    train({**small, "data": f"folder:{copied}", "epochs": 1}, tmp_path / "run")
    Image.new("RGB", (8, 8), (1, 2, 3)).save(copied / "dark" / "00.png")
    with pytest.raises(RunError, match="another one"):
        train({"epochs": 2}, tmp_path / "run", resume=True)


def test_findings_are_told_at_once_and_counted(small: dict[str, Any], tmp_path: Path) -> None:
    raised: list[tuple[str, int]] = []

    class Listener(Silent):
        def alarm(self, finding: Any) -> None:
            raised.append((finding.code, finding.raised_step))

    settings = {**small, "epochs": 15, "weight_decay": 8.0, "lr": 0.02, "schedule": "none"}
    outcome = train(settings, tmp_path / "run", teller=Listener())
    assert raised
    assert raised[0][0] == "weight_decay_too_high"
    assert raised[0][1] < 60 < outcome.steps
    told = read_status(tmp_path / "run")
    assert told is not None
    assert (told["alarms"], told["healthy"]) == (len(raised), False)


def test_watching_changes_nothing(small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same loop with nothing that watches gives the same weights."""
    from thermoclaw.train import loop

    train({**small, "epochs": 1}, tmp_path / "run")
    settings = settings_of({**small, "epochs": 1}, source="")
    data = __import__("thermoclaw.train.data", fromlist=["load_data"]).load_data(settings.data, image_size=8)
    trainer = loop.Trainer(settings, data, device=torch.device("cpu"))
    trainer.observer.close()
    trainer.observer = type("Nobody", (), {"step": lambda self, loss: None})()  # type: ignore[assignment]
    trainer.thermometer = type("Nothing", (), {"step": lambda self: None})()  # type: ignore[assignment]
    assert len(list(trainer.steps())) == 6
    trainer.evaluate()
    assert differences(dict(trainer.model.state_dict()), state(tmp_path / "run")["model"]) == []


# -- status and stopping -----------------------------------------------------------------------------------------------


def test_status_is_written_at_most_twice_a_second(tmp_path: Path) -> None:
    now = [0.0]
    status = Status(tmp_path, clock=lambda: now[0])
    status.update(step=1)
    for now[0], step, seen in ((0.2, 2, 1), (0.6, 3, 3), (0.7, 4, 3)):
        status.update(step=step, loss=float("nan"))
        told = json.loads((tmp_path / "status.json").read_text())
        assert told["step"] == seen
    status.update(now=True, step=5)
    assert json.loads((tmp_path / "status.json").read_text())["step"] == 5
    assert json.loads((tmp_path / "status.json").read_text())["loss"] is None
    assert status.left_s(10, 40) == pytest.approx(0.7 * 3)
    assert status.left_s(10, 40, first=10) is None


def test_a_disk_that_is_away_for_a_moment_ends_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    status = Status(tmp_path / "run")
    assert status.lock()
    log = Log(tmp_path / "run")
    moved = (tmp_path / "run").rename(tmp_path / "away")
    (tmp_path / "run").write_text("in the way")
    for step in range(3):
        status.update(now=True, step=step)
        log.add(step=step, loss=1.0)
    assert caplog.text.count("is not written") == 1
    (tmp_path / "run").unlink()
    moved.rename(tmp_path / "run")
    status.update(now=True, step=3)
    log.add(step=3, loss=1.0)
    assert [row["step"] for row in read_log(tmp_path / "run")] == [0, 1, 2, 3]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["step"] == 3
    status.unlock()


def test_settings_that_are_not_known_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="learning_rate, which is no setting"):
        train({"learning_rate": 1.0}, tmp_path / "run")


def test_a_run_that_died_is_told_from_one_that_runs(tmp_path: Path) -> None:
    status = Status(tmp_path)
    assert status.lock()
    status.update(now=True)
    assert is_running(tmp_path)
    assert read_status(tmp_path)["state"] == "running"  # type: ignore[index]
    status.unlock()
    assert not is_running(tmp_path)
    told = read_status(tmp_path)
    assert told is not None
    assert told["state"] == "failed"
    assert "--resume" in told["error"]
    (tmp_path / "status.json").write_text("{")
    assert read_status(tmp_path) is None


def test_two_runs_do_not_share_a_folder(small: dict[str, Any], tmp_path: Path) -> None:
    status = Status(tmp_path / "run")
    assert status.lock()
    with pytest.raises(RunError, match="a run is going on"):
        train(small, tmp_path / "run")
    status.unlock()
    assert train({**small, "steps": 1}, tmp_path / "run").steps == 1


def test_the_stop_file_stops(small: dict[str, Any], tmp_path: Path) -> None:
    def ask(step: int) -> bool:
        if step == 3:
            ask_to_stop(tmp_path / "run")
        return False

    outcome = train(small, tmp_path / "run", stop=ask)
    assert (outcome.state, outcome.steps) == ("stopped", 4)
    assert not (tmp_path / "run" / "stop").exists()
    assert train({}, tmp_path / "run", resume=True).state == "finished"


def test_a_wrong_data_set_leaves_its_reason_in_the_status(small: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError):
        train({**small, "data": f"folder:{tmp_path / 'nowhere'}"}, tmp_path / "run")
    told = read_status(tmp_path / "run")
    assert told is not None
    assert told["state"] == "failed"
    assert "nowhere" in told["error"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_a_checkpoint_and_a_report(images: Path, tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "thermoclaw", "train", "--data", f"folder:{images}", "--image-size", "8"]
    command += ["--batch-size", "4", "--epochs", "100000", "--out", str(run), "--export", "state", "--no-color"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 60
        while (read_status(run) or {}).get("step", 0) < 3:
            assert time.monotonic() < until
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert f"Go on: thermoclaw train --out {run} --resume" in out
    told = read_status(run)
    assert told is not None
    assert told["state"] == "stopped"
    assert state(run)["step"] == told["step"] == load(run).num_steps
    assert (run / "report.txt").exists()
    assert (run / "export" / "model.pt").exists()


# -- what is exported --------------------------------------------------------------------------------------------------


def small_model() -> ResNet:
    torch.manual_seed(1)
    model = ResNet(type(MODELS["small"])((1, 1), 4), num_classes=3, in_channels=1, mean=[0.3], std=[0.2])
    model(torch.rand(16, 1, 8, 8))  # so that the normalizations have seen something
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model.eval()


def test_exported_files_give_the_models_scores(tmp_path: Path) -> None:
    model, pixels = small_model(), torch.rand(5, 1, 8, 8)
    want = model(pixels).detach()
    assert float(want.std()) > 0.05
    about = {"name": "small", "classes": ["a", "b", "c"]}
    export_model(model, torch.rand(2, 1, 8, 8), tmp_path, forms=("state", "program"), about=about)
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    other = ResNet(type(MODELS["small"])((1, 1), 4), num_classes=3, in_channels=1)
    other.load_state_dict(saved["model"])
    assert torch.equal(other.eval()(pixels), want)
    assert saved["classes"] == ["a", "b", "c"]
    assert torch.allclose(torch.export.load(tmp_path / "model.pt2").module()(pixels), want, atol=1e-5)


def test_the_onnx_file_gives_the_models_scores(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    model, pixels = small_model(), torch.rand(5, 1, 8, 8)
    export_model(model, torch.rand(2, 1, 8, 8), tmp_path, forms=("onnx",), about={})
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"))
    reader = ReferenceEvaluator(str(tmp_path / "model.onnx"))
    (scores,) = reader.run(None, {reader.input_names[0]: pixels.numpy()})
    assert np.allclose(scores, model(pixels).detach().numpy(), atol=1e-5)


class Moody(nn.Module):
    """Gives other scores each time, so no file can give the same."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3)) + torch.rand(1)


def test_a_file_that_gives_other_scores_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="other scores"):
        export_model(Moody(), torch.rand(2, 1, 8, 8), tmp_path, forms=("program",), about={})
    assert not (tmp_path / "model.pt2").exists()


def test_a_missing_extra_is_said_and_keeps_nothing_else_from_being_written(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    outcome = train({**small, "steps": 2, "export": ["state", "onnx"]}, tmp_path / "run")
    assert "export/model.pt" in outcome.written
    assert any("thermoclaw[onnx]" in text for text in outcome.missing)


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "vgg"}, "choose one of small, resnet18, resnet50"),
        ({"optimizer": "lion"}, "choose one of sgd, adamw"),
        ({"schedule": "step"}, "choose one of cosine, none"),
        ({"epochs": 0}, "epochs=0: give a whole number of at least 1"),
        ({"batch_size": 1}, "at least 2"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"momentum": 1.0}, "below 1"),
        ({"seed": True}, "seed=True"),
        ({"steps": 0}, "steps=0"),
        ({"amp": "yes"}, "amp='yes'"),
        ({"image_size": 4096}, "at most 512"),
        ({"export": ["pdf"]}, "choose among state, program, onnx"),
        ({"learning_rate": 1.0}, "learning_rate, which is no setting"),
    ],
)
def test_settings_that_cannot_be_meant(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        settings_of(given, source="it")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="TOML is read from Python 3.11 on")
def test_options_win_over_a_file(small: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.toml").write_text(
        f'[train]\ndata = "{small["data"]}"\nimage-size = 8\nbatch-size = 8\nlr = 0.01\nsteps = 5\nexport = ["state"]\n'
    )
    assert read_toml(tmp_path / "run.toml")["lr"] == 0.01
    arguments = ["train", "--config", str(tmp_path / "run.toml"), "--out", str(tmp_path / "run"), "--steps", "2"]
    assert cli.main([*arguments, "--json"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["lr"], config["steps"]) == (0.01, 2)
    (tmp_path / "bad.toml").write_text("lr = [")
    assert cli.main(["train", "--config", str(tmp_path / "bad.toml"), "--out", str(tmp_path / "x")]) == 2
    assert "cannot be read as TOML" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["tpu", "cuda:999", "mps", "nonsense:"])
def test_devices_that_are_not_there(small: dict[str, Any], tmp_path: Path, device: str) -> None:
    with pytest.raises(RunError, match="device="):
        train({**small, "device": device}, tmp_path / "run")


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_tells_progress_and_where_everything_is(
    small: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progress, "_is_due", lambda self, done, now: True)
    arguments = ["train", "--data", small["data"], "--image-size", "8", "--batch-size", "8", "--epochs", "2"]
    assert cli.main([*arguments, "--out", str(tmp_path / "run"), "--export", "state"]) == 0
    out, err = capsys.readouterr()
    assert "epoch 2: loss" in out
    assert "test accuracy" in out
    assert "typical layer: T " in out
    assert f"Written to {tmp_path / 'run'}/: report.txt" in out
    assert "training" in err
    assert "12/12" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "mnist"], "data 'mnist' is not known"),
        (["--model", "vgg"], "choose one of small"),
        (["--resume"], "has no config.json"),
        (["--device", "tpu"], "device='tpu'"),
        (["--config", "no.toml"], "no.toml cannot be read"),
    ],
)
def test_wrong_use_gets_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "--out", str(tmp_path / "run"), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("thermoclaw train: ")
    assert err.count("\n") == 1


def test_quiet_is_quiet_and_findings_are_the_exit_code(
    small: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from thermoclaw.train import run

    for healthy, ended, code in ((True, "finished", 0), (False, "finished", 1), (False, "stopped", 130)):
        report = type("Report", (), {"healthy": healthy})()
        outcome = Outcome(ended, tmp_path, 1, None, None, report, (), ())
        monkeypatch.setattr(run, "train", lambda *a, outcome=outcome, **k: outcome)
        assert cli.main(["train", "--quiet", "--out", str(tmp_path / "run")]) == code
    assert capsys.readouterr() == ("", "")


def test_a_log_is_cut_where_the_run_goes_on(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for step in range(1, 6):
        log.add(step=step, epoch=1, lr=0.1, loss=float(step), **{"thermoclaw/sigma": 0.5})
    with open(tmp_path / "log.csv", "a") as handle:
        handle.write("6,1,0.1")  # its writer was killed
    Log(tmp_path, step=3).add(step=4, loss=9.0)
    assert [(row["step"], row["loss"]) for row in read_log(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 9.0)]
    with open(tmp_path / "log.csv") as handle:
        assert next(csv.reader(handle))[:3] == ["step", "epoch", "lr"]


def test_settings_have_defaults_that_the_help_tells(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    plain = Settings()
    for told in (f"({plain.epochs})", f"({plain.batch_size})", f"({plain.momentum})", f"({plain.weight_decay})"):
        assert told in text
    assert f"({plain.rate} for sgd, {Settings(optimizer='adamw').rate} for adamw)" in text


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    example = Path(__file__).resolve().parent.parent / "examples" / "cifar_resnet.py"
    monkeypatch.setattr(sys, "argv", [str(example), "--epochs", "2"])
    runpy.run_path(str(example), run_name="__main__")
    out = capsys.readouterr().out
    assert "epoch 2: loss" in out
    assert float(out.split("accuracy ")[2].split("%")[0]) > 90
    assert "SGD, 50 steps" in out
