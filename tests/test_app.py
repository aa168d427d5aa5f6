"""The app: what it lets a page look at, the trainings that it starts, and the page itself without a browser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("streamlit")
pytest.importorskip("plotly")

from streamlit.testing.v1 import AppTest

from synthetic import Synthetic
from tests.html_pages import HOSTILE, renamed, sampled
from thermoclaw import Observer, cli
from thermoclaw.app import charts, jobs, telling
from thermoclaw.app import folders as app_folders
from thermoclaw.app.folders import CONSOLE, UPLOADS, VARIABLE, Folders, PathError
from thermoclaw.app.reading import read_heat
from thermoclaw.cli import app as app_command
from thermoclaw.motion import norm_balance
from thermoclaw.quantities import TABLE
from thermoclaw.record import Record
from thermoclaw.train.errors import RunError
from thermoclaw.train.status import Status

PAGE = Path(app_folders.__file__).with_name("page.py")


def make_run(folder: Path, *, steps: int = 30, decay: float = 0.0) -> Path:
    """A run directory, as anybody's loop leaves it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=decay)
    with Observer(model, optimizer, run_dir=folder) as observer:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (model(torch.randn(32, 16)) - 1).square().mean()
            loss.backward()
            optimizer.step()
            observer.step(loss=loss)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    for name in ("runs", "data", "secret"):
        (tmp_path / name).mkdir()
    (tmp_path / "secret" / "status.json").write_text('{"state": "finished", "error": "hidden words"}')
    (tmp_path / "secret" / "images.zip").write_bytes(b"PK")
    return Folders(tmp_path / "runs", (tmp_path / "data",))


# -- what may be looked at ---------------------------------------------------------------------------------------------

BAD_NAMES = ["..", "../secret", "/etc", "a/../../secret", "a/b/c", "", ".", "./a", "a/", "/", "a\0b", "..\\secret", "~"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_out_are_no_runs(folders: Folders, name: str) -> None:
    make_run(folders.runs / "a")
    with pytest.raises(PathError, match="no run of that name"):
        folders.run(name)
    with pytest.raises(PathError):
        folders.new_run(name)
    assert folders.run("a") == folders.runs / "a"


def test_a_link_that_leads_out_is_no_run(folders: Folders, tmp_path: Path) -> None:
    (folders.runs / "out").symlink_to(tmp_path / "secret")
    (folders.runs / "loop").symlink_to(folders.runs / "loop")
    assert folders.list_runs() == []
    for name in ("out", "loop"):
        with pytest.raises(PathError):
            folders.run(name)
    with pytest.raises(PathError):
        folders.new_run("out")


@pytest.mark.parametrize("inside", ["status.json", "checkpoints/deep.pt", "report.txt"])
def test_a_run_with_a_link_that_leads_out_is_refused(folders: Folders, tmp_path: Path, inside: str) -> None:
    run = make_run(folders.runs / "a")
    (run / inside).parent.mkdir(exist_ok=True)
    (run / inside).symlink_to(tmp_path / "secret" / "status.json")
    with pytest.raises(PathError, match="link in it"):
        folders.run("a")
    with pytest.raises(PathError, match="elsewhere"):
        folders.file(run, inside)


def test_files_of_a_run(folders: Folders) -> None:
    run = make_run(folders.runs / "a")
    assert folders.file(run, "meta.json") == run / "meta.json"
    assert folders.file(run, "nothing.pt") is None
    with pytest.raises(PathError):
        folders.file(run, "../../secret/status.json")


def test_runs_are_found_two_folders_deep_the_last_touched_first(folders: Folders) -> None:
    for age, name in enumerate(("old", "group/inner", "new")):
        make_run(folders.runs / name)
        for path in (folders.runs / name).iterdir():
            os.utime(path, (1e9 + age, 1e9 + age))
    (folders.runs / "empty").mkdir()
    (folders.runs / ".hidden").mkdir()
    (folders.runs / ".hidden" / "status.json").write_text("{}")
    assert folders.list_runs() == ["new", "group/inner", "old"]
    assert folders.run("group/inner") == folders.runs / "group" / "inner"


def test_data_sets_are_those_of_the_folders_given(folders: Folders, tmp_path: Path) -> None:
    data = folders.data[0]
    (data / "cifar-10-batches-py").mkdir()
    (data / "cifar-10-batches-py" / "test_batch").write_bytes(b"")
    for name in ("a", "b"):
        (data / "pets" / name).mkdir(parents=True)
        (data / "pets" / name / "0.png").write_bytes(b"")
    (data / "mine.zip").write_bytes(b"PK")
    (data / "notes.txt").write_text("")
    (data / "out.zip").symlink_to(tmp_path / "secret" / "images.zip")
    (data / "outside").symlink_to(tmp_path / "secret")
    found = folders.data_sets()
    assert sorted(found.values()) == sorted(
        ["digits", f"cifar10:{data / 'cifar-10-batches-py'}", f"folder:{data / 'pets'}", f"zip:{data / 'mine.zip'}"]
    )
    for spec in found.values():
        assert folders.check_data(spec) == spec


@pytest.mark.parametrize(
    "spec",
    ["zip:{secret}/images.zip", "folder:{secret}", "folder:/etc", "zip:mine.zip", "folder:{data}/../secret",
     "zip:{data}/out.zip", "cifar10:/", "folder:{data}/nothing", "file:{data}", "", "digits:x"],
)  # fmt: skip
def test_data_sets_elsewhere_are_refused(folders: Folders, tmp_path: Path, spec: str) -> None:
    (folders.data[0] / "out.zip").symlink_to(tmp_path / "secret" / "images.zip")
    with pytest.raises(PathError, match="outside of the folders"):
        folders.check_data(spec.format(secret=tmp_path / "secret", data=folders.data[0]))


def test_a_data_set_with_a_link_that_leads_out_is_refused(folders: Folders, tmp_path: Path) -> None:
    inside = folders.data[0] / "pets" / "cat"
    inside.mkdir(parents=True)
    (inside / "0.png").symlink_to(tmp_path / "secret" / "status.json")
    with pytest.raises(PathError, match="link in it"):
        folders.check_data(f"folder:{folders.data[0] / 'pets'}")


def test_uploads_are_bounded_and_kept_once(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = folders.keep_upload(b"PK one")
    assert folders.keep_upload(b"PK one") == spec
    assert folders.check_data(spec) == spec
    assert len(list((folders.runs / UPLOADS).iterdir())) == 1
    assert folders.list_runs() == []
    monkeypatch.setattr(app_folders, "UPLOADS_BYTES", 10)
    with pytest.raises(PathError, match="remove what is no longer needed"):
        folders.keep_upload(b"PK another")
    monkeypatch.setattr(app_folders, "UPLOAD_MB", 0)
    with pytest.raises(PathError, match="may have 0 MB"):
        folders.keep_upload(b"PK")


def test_the_folder_for_uploads_may_not_be_a_link(folders: Folders, tmp_path: Path) -> None:
    (folders.runs / UPLOADS).symlink_to(tmp_path / "secret")
    with pytest.raises(PathError, match="lies elsewhere"):
        folders.keep_upload(b"PK")


# -- trainings ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, Any]]]:
    """What would have been started."""
    calls: list[tuple[list[str], dict[str, Any]]] = []
    monkeypatch.setattr(jobs.subprocess, "Popen", lambda words, **settings: calls.append((words, settings)))
    return calls


def test_a_training_is_a_list_of_words_in_a_session_of_its_own(
    folders: Folders, launched: list[tuple[list[str], dict[str, Any]]]
) -> None:
    run = jobs.start(folders, "x", {"lr": 0.1, "epochs": 2, "amp": True})
    ((words, settings),) = launched
    assert words[:4] == [sys.executable, "-m", "thermoclaw", "train"]
    assert {f"--out={run}", "--lr=0.1", "--epochs=2", "--amp", "--data=digits"} <= set(words)
    assert settings["start_new_session"] is True
    assert not settings.get("shell")
    assert settings["stdin"] == subprocess.DEVNULL
    assert jobs.state_of(run) == {"state": "starting"}
    parsed = cli.parser().parse_args(words[3:])  # the command takes them
    assert (parsed.lr, parsed.epochs, parsed.amp, parsed.out) == (0.1, 2, True, str(run))


@pytest.mark.parametrize(
    ("name", "given", "error"),
    [
        ("../x", {}, PathError),
        ("--help", {}, PathError),
        ("x y", {}, PathError),
        ("x;rm", {}, PathError),
        ("x", {"data": "folder:/etc"}, PathError),
        ("x", {"model": "small --out=/tmp"}, RunError),
        ("x", {"lr": "0.1; rm -rf /"}, RunError),
        ("x", {"device": 3}, RunError),
        ("x", {"out": "/tmp"}, RunError),
    ],
)
def test_what_is_not_a_training_is_not_started(
    folders: Folders, launched: list[Any], name: str, given: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        jobs.start(folders, name, given)
    assert launched == []
    assert list(folders.runs.iterdir()) == []


def test_every_setting_reaches_the_command_as_it_is(folders: Folders) -> None:
    from thermoclaw.train import Settings

    plain = Settings(steps=5, checkpoint_every=7, lr=1e-4, augment=False, export=("state",), weight_decay=0.0)
    parsed = vars(cli.parser().parse_args(["train", *jobs.arguments(plain.to_json())]))
    for name, value in plain.to_json().items():
        assert parsed[name] == (list(value) if name == "export" else value), name


def test_a_process_that_says_nothing_and_one_that_fails(folders: Folders) -> None:
    run = folders.runs / "x"
    run.mkdir()
    assert jobs.state_of(run) == {"state": ""}
    (run / CONSOLE).write_text("thermoclaw train: no such device\n")
    assert jobs.state_of(run) == {"state": "failed", "error": "thermoclaw train: no such device\n"}
    (run / CONSOLE).write_text("")
    assert jobs.state_of(run)["state"] == "starting"
    os.utime(run / CONSOLE, (1e9, 1e9))
    assert jobs.state_of(run)["state"] == "failed"


def test_a_run_that_goes_on_is_starting_until_it_says_more(folders: Folders, launched: list[Any]) -> None:
    run = folders.runs / "x"
    status = Status(run)
    assert status.lock()
    status.update(now=True, state="stopped")
    status.unlock()
    assert jobs.state_of(run)["state"] == "stopped"
    time.sleep(0.02)
    jobs.go_on(run)
    assert launched[0][0][-1] == "--resume"
    assert jobs.state_of(run)["state"] == "starting"
    jobs.go_on(run)  # asked again, by an impatient hand or another page
    assert len(launched) == 1


def test_what_was_reached_is_told_while_a_run_starts_again(folders: Folders, launched: list[Any]) -> None:
    run = folders.runs / "x"
    status = Status(run)
    assert status.lock()
    status.update(now=True, state="failed", step=181, steps=400, error="the disk was full", phase="writing", eta_s=5.0)
    status.unlock()
    time.sleep(0.02)
    jobs.go_on(run)
    told = jobs.state_of(run)
    assert (told["state"], told["step"], told["steps"]) == ("starting", 181, 400)
    assert not {"error", "phase", "eta_s"} & set(told)


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_page_is_for_this_machine_alone_and_sends_nothing() -> None:
    words = app_command.command(8600)
    assert "--server.address=127.0.0.1" in words
    assert "--server.port=8600" in words
    assert "--browser.gatherUsageStats=false" in words
    assert "--server.headless=true" in words
    assert "--server.enableXsrfProtection=true" in words
    assert "--server.enableCORS=true" in words
    assert f"--server.maxUploadSize={app_folders.UPLOAD_MB}" in words
    assert Path(words[4]) == PAGE


def test_streamlit_takes_every_setting() -> None:
    from streamlit import config

    known = set(config.get_config_options())
    for word in app_command.command(8600)[5:]:
        assert word.removeprefix("--").partition("=")[0] in known


def test_the_command_hands_its_folders_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    calls: list[dict[str, str]] = []
    monkeypatch.setattr(app_command.os, "execve", lambda path, words, environment: calls.append(environment))
    monkeypatch.setattr(app_command.subprocess, "run", lambda *a, env, **k: type("Done", (), {"returncode": 0})())
    (tmp_path / "data").mkdir()
    arguments = ["app", "--runs", str(tmp_path / "runs"), "--data", str(tmp_path / "data"), "--port", "8600"]
    assert cli.main(arguments) == 0
    assert "http://127.0.0.1:8600 (this machine alone" in capsys.readouterr().out
    monkeypatch.setenv(VARIABLE, calls[0][VARIABLE])
    assert Folders.from_environment() == Folders(tmp_path / "runs", (tmp_path / "data",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--data", "/no/such"], "there is no such folder"), (["--runs", __file__], "is a file: give a folder")],
)
def test_folders_that_are_none_get_one_line(arguments: list[str], message: str, capsys: Any) -> None:
    assert cli.main(["app", *arguments]) == 2
    assert message in capsys.readouterr().err


# -- the page ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def page(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppTest]:
    monkeypatch.setenv(VARIABLE, folders.to_environment())
    test = AppTest.from_file(str(PAGE), default_timeout=120)
    yield test
    assert [error.value for error in test.exception] == []


def words(page: AppTest) -> str:
    """Everything that is said."""
    kinds = ("markdown", "caption", "info", "error", "success", "warning", "title", "subheader")
    return "\n".join(str(element.value) for kind in kinds for element in getattr(page, kind))


def test_the_form_starts_a_training_and_shows_it(
    page: AppTest, folders: Folders, launched: list[tuple[list[str], dict[str, Any]]]
) -> None:
    page.run()
    page.text_input(key="name").set_value("mine")
    page.number_input(key="epochs").set_value(3)
    page.number_input(key="lr").set_value(0.25)
    page.selectbox(key="model").set_value("resnet18")
    page.button[0].click()
    page.run()
    assert len(launched) == 1
    assert {"--epochs=3", "--lr=0.25", "--model=resnet18", f"--out={folders.runs / 'mine'}"} <= set(launched[0][0])
    assert page.query_params["run"] in ("mine", ["mine"])  # newer and older Streamlit
    assert [metric.label for metric in page.metric] == ["Epoch", "Training loss", "Test accuracy", "Time left"]
    assert page.button(key="stop")


def test_the_form_says_what_is_wrong(page: AppTest, folders: Folders, launched: list[Any]) -> None:
    page.run()
    page.text_input(key="name").set_value("../mine")
    page.button[0].click()
    page.run()
    assert "letters, digits" in page.error[0].value.replace("\\", "")
    assert launched == []


def test_any_run_directory_is_shown(page: AppTest, folders: Folders) -> None:
    make_run(folders.runs / "healthy")
    page.query_params["run"] = "healthy"
    page.run()
    assert "Healthy" in words(page)
    assert [tab.label for tab in page.tabs] == ["Train", "Dynamics", "Data", "Export"]
    page.selectbox(key="quantity").set_value("dispersion" if "dispersion" in TABLE else "D").run()
    page.selectbox(key="quantity").set_value("coherence").run()
    page.multiselect(key="layers").set_value(["0"]).run()
    assert "thermoclaw train" in words(page)


def test_findings_come_first_with_their_advice(page: AppTest, folders: Folders) -> None:
    make_run(folders.runs / "eroded", steps=80, decay=5.0)
    page.query_params["run"] = "eroded"
    page.run()
    text = words(page).replace("\\", "")
    assert "Failing" in text
    assert "Lower weight_decay from 5" in text


@pytest.mark.parametrize("name", ["../secret", "/etc", "nothing", "<b>x</b>"])
def test_an_address_that_names_no_run_shows_none(page: AppTest, name: str) -> None:
    page.query_params["run"] = name
    page.run()
    assert "no run of that name" in words(page).replace("\\", "")
    assert "hidden words" not in str(page.main)
    assert not page.tabs


def test_a_damaged_run_says_so(page: AppTest, folders: Folders) -> None:
    run = make_run(folders.runs / "a")
    for path in run.glob("part-*.npz"):
        path.write_bytes(b"no part")
    (run / "data.json").write_text('{"classes": ["a"], "train": [1], "test": [1]}')
    (run / "samples.npz").write_bytes(b"no file")
    (run / "thermodynamics.json").write_text("[")
    (run / "log.csv").write_text("nothing")
    page.query_params["run"] = "a"
    page.run()
    assert page.tabs


# -- words and charts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_words(name: str) -> None:
    shown = telling.plain(f"{name} ![x](http://a.b/c) [y](http://a.b) :red[z] $x$ <img src=http://a.b>")
    for mark in ("](", "<img", "<script", "<b>", "<svg", "<a "):
        assert mark not in shown
    assert "://" not in shown
    chart = charts.label(name)
    assert "<" not in chart
    assert "\n" not in chart


def test_charts_of_a_hostile_record_hold_no_markup() -> None:
    record = renamed(Synthetic(60, len(HOSTILE)).record(), HOSTILE)
    for chart in (charts.quantity_chart(record, "temperature", record.layer_names[:3]), charts.plane_chart(record)):
        text = json.dumps(chart.to_plotly_json(), default=str)
        assert "<script" not in text
        assert "<img" not in text


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    from thermoclaw.runs import load

    return load(make_run(tmp_path_factory.mktemp("runs") / "a", steps=60))


def test_any_record_tells_its_ratio_and_a_sampled_one_its_displacement(tmp_path: Path) -> None:
    record = Synthetic(200, 3).record()
    heat = read_heat(tmp_path, record)
    assert "lags" not in heat
    assert heat["layers"]["blocks.2.fc"]["fdt_ratio"] == pytest.approx(norm_balance(record)[2].value)
    assert len(charts.ratio_chart(heat).data[0].x) == 3
    heat = read_heat(tmp_path, sampled(record))
    assert charts.displacement_chart(heat).data[0].x == (8.0, 16.0, 32.0)
    assert "τ^1.00 [0.90, 1.20]" in charts.displacement_chart(heat).data[1].name
    (tmp_path / "thermodynamics.json").write_text('{"lags": [1], "msd": [2]}')
    assert read_heat(tmp_path, record)["msd"] == [2]  # what `thermoclaw train` wrote is newer


@pytest.mark.parametrize("name", TABLE)
def test_every_quantity_has_a_chart(record: Record, name: str) -> None:
    chart = charts.quantity_chart(record, name, [])
    assert chart.data
    if TABLE[name].scope == "layer":
        picked = charts.quantity_chart(record, name, record.layer_names)
        assert len(picked.data) == 2
        heat = charts.heat_chart(record, name)
        assert np.shape(heat.data[0].z) == (2, 60)
    if name == "temperature":
        want = record["temperature"][:, 0]
        got = np.array([np.nan if y is None else y for y in picked.data[0].y])
        assert np.allclose(got, want, equal_nan=True)


def test_the_noise_line_is_half_the_dissipation(record: Record) -> None:
    chart = charts.plane_chart(record)
    line = next(trace for trace in chart.data if trace.mode == "lines")
    assert np.allclose(np.array(line.y), np.array(line.x) / 2)
    dots = [trace for trace in chart.data if trace.mode == "markers"]
    assert sum(len(dot.x) for dot in dots) == 2
    late = record.rows(start=48)
    want = np.median(late["sigma"], axis=0) / [layer.num_params for layer in record.layers]
    assert np.allclose(sorted(x for dot in dots for x in dot.x), sorted(want))


def test_a_power_law_is_drawn_through_its_points() -> None:
    lags = [1.0, 2.0, 4.0, 8.0]
    heat = {"lags": lags, "msd": [3.0 * lag**1.5 for lag in lags], "diffusion_exponent": 1.5}
    line = next(trace for trace in charts.displacement_chart(heat).data if trace.mode == "lines")
    assert np.allclose(line.y, heat["msd"])
    assert not charts.displacement_chart({}).data
    assert not charts.ratio_chart({"layers": {"a": {"fdt_ratio": None}}}).data
