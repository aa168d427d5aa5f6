"""The app in a real browser: a training begins, comes on, outlives a reload, and stops; nothing is asked elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("streamlit")
sync_api = pytest.importorskip("playwright.sync_api")
Image = pytest.importorskip("PIL.Image")

from thermoclaw.app.jobs import arguments  # noqa: E402  (after the packages that it is skipped without)
from thermoclaw.runs import load  # noqa: E402
from thermoclaw.train.status import ask_to_stop, is_running, read_status  # noqa: E402

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP evil.example 127.0.0.1"]
PATIENCE_MS = 180_000  # where other tests and a training share two cores
AGAIN_MS = 5_000
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
    pytest.mark.skipif(sys.platform == "win32", reason="processes end otherwise there"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a data set, and one for runs."""
    root = tmp_path_factory.mktemp("app")
    rng = np.random.default_rng(0)
    for number, name in enumerate(("dark", "light")):
        (root / "data" / "squares" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 100, (8, 8, 3), dtype=np.uint8) + 120 * number
            Image.fromarray(pixels.astype(np.uint8)).save(root / "data" / "squares" / name / f"{i:02}.png")
    shutil.make_archive(str(root / "mine"), "zip", root / "data" / "squares")
    (root / "runs").mkdir()
    yield root
    for run in (root / "runs").iterdir():
        if is_running(run):  # after a failure
            ask_to_stop(run)


@pytest.fixture(scope="module")
def address(folders: Path) -> Iterator[str]:
    """The app, as a person starts it."""
    port = free_port()
    command = [sys.executable, "-m", "thermoclaw", "app", "--runs", str(folders / "runs"), "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--data", str(folders / "data")],
        env=ENVIRONMENT,
        cwd=folders,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5):
                    break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A page on which nothing may fail and no other host be asked."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE_MS)
    strange: list[str] = []
    page.on(
        "request", lambda asked: None if address in asked.url.replace("ws:", "http:") else strange.append(asked.url)
    )
    page.on("pageerror", lambda error: strange.append(str(error)))
    yield page
    assert [url for url in strange if not url.startswith(("data:", "blob:"))] == []
    if not page.is_closed():
        assert page.locator("[data-testid=stException]").count() == 0
        page.close()


def wait_for(what: Callable[[], object], patience_ms: int = PATIENCE_MS) -> None:
    until = time.monotonic() + patience_ms / 1000
    while not what():
        assert time.monotonic() < until
        time.sleep(0.2)


def click_until(page: Any, button: Any, done: Callable[[], object], *, twice: bool = False) -> None:
    """Click, and once more where nothing came of it: a page that is being drawn anew swallows clicks."""
    until = time.monotonic() + PATIENCE_MS / 1000
    while not done():
        assert time.monotonic() < until, page.locator("body").inner_text()
        with contextlib.suppress(sync_api.TimeoutError):  # it is gone, or disabled: what was asked for is on its way
            (button.dblclick if twice else button.click)(timeout=AGAIN_MS)
        for _ in range(AGAIN_MS // 200):
            if done():
                return
            page.wait_for_timeout(200)


def begin(page: Any, address: str, name: str, *, data: str, steps: int | None = None) -> None:
    """Fill in the form and send it."""
    page.goto(address)
    page.get_by_label("Name").fill(name)
    page.get_by_label("Name").press("Tab")
    page.get_by_role("combobox", name="Data").click()
    page.get_by_role("option", name=data).click()
    page.get_by_label("Epochs").fill("9999")
    page.get_by_label("Batch size").fill("4")
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Image size").fill("8")
    if steps is not None:
        page.get_by_label("Steps at most").fill(str(steps))
    page.get_by_label("Seed").fill("3")
    page.get_by_label("Seed").press("Tab")


def send(page: Any) -> None:
    dynamics = page.get_by_role("tab", name="Dynamics")
    click_until(page, page.get_by_role("button", name="Start training"), dynamics.is_visible)


def shown_step(page: Any) -> int:
    found = re.search(r"step ([\d,]+) of", page.locator("[data-testid=stMain]").inner_text())
    return int(found[1].replace(",", "")) if found else 0


def test_a_training_begins_comes_on_outlives_its_page_and_is_stopped(page: Any, address: str, folders: Path) -> None:
    run = folders / "runs" / "first"
    begin(page, address, "first", data="squares")
    send(page)
    assert "run=first" in page.url
    wait_for(lambda: shown_step(page) > 0)
    before = shown_step(page)
    wait_for(lambda: shown_step(page) > before)  # without anybody touching the page
    page.reload()
    wait_for(lambda: shown_step(page) > before)
    page.get_by_text("Test accuracy").first.wait_for()
    wait_for(lambda: page.locator(".js-plotly-plot").count() >= 2)
    page.goto("about:blank")  # nobody looks
    assert is_running(run)
    step = read_status(run)["step"]  # type: ignore[index]
    wait_for(lambda: read_status(run)["step"] > step)  # type: ignore[index]

    page.goto(f"{address}/?run=first")  # it is found again
    click_until(page, page.get_by_role("button", name="Stop"), lambda: not is_running(run))
    page.get_by_text("stopped: step").wait_for()
    told = read_status(run)
    assert told is not None
    assert told["state"] == "stopped"
    page.get_by_role("tab", name="Export").click()
    got: list[Any] = []
    page.on("download", lambda one: got.append(one))
    click_until(page, page.locator("[data-testid=stDownloadButton] button").first, lambda: got)
    assert got[0].suggested_filename == "first-model.pt"
    assert Path(got[0].path()).read_bytes() == (run / "export" / "model.pt").read_bytes()
    page.get_by_role("tab", name="Data").click()
    page.get_by_text("20 images to learn from, 4 to test on").wait_for()
    page.get_by_role("tab", name="Dynamics").click()
    page.get_by_text("Temperature against dissipation").first.wait_for()


LONG = 500  # steps, so that even a fast machine is still at it when Stop is clicked


def test_it_goes_on_and_is_the_run_that_was_never_stopped(page: Any, address: str, folders: Path) -> None:
    begin(page, address, "parts", data="squares", steps=LONG)
    send(page)
    wait_for(lambda: shown_step(page) > 0)
    click_until(page, page.get_by_role("button", name="Stop"), page.get_by_text("stopped: step").is_visible)
    stopped = shown_step(page)
    assert 0 < stopped < LONG
    stop, go_on = (page.get_by_role("button", name=name) for name in ("Stop", "Go on"))
    assert stop.is_disabled()
    is_on = lambda: not stop.is_disabled() or shown_step(page) == LONG  # noqa: E731
    click_until(page, go_on, is_on, twice=True)  # a second click in the same place does no harm
    assert shown_step(page) >= stopped  # while it starts, too
    page.get_by_text(f"finished: step {LONG} of {LONG}").wait_for()
    wait_for(lambda: page.get_by_role("button", name="Go on").count() == 0)  # buttons go after the words have come

    run, whole = folders / "runs" / "parts", folders / "whole"
    settings = json.loads((run / "config.json").read_text())
    subprocess.run(
        [
            sys.executable,
            "-m",
            "thermoclaw",
            "train",
            f"--out={whole}",
            "--quiet",
            "--export=state",
            *arguments(settings),
        ],
        env=ENVIRONMENT,
        cwd=folders,
        check=True,
    )
    mine, theirs = load(run), load(whole)
    assert mine.num_steps == LONG
    assert mine.layer_values.tobytes() == theirs.layer_values.tobytes()
    assert mine.run_values.tobytes() == theirs.run_values.tobytes()
    assert [(e["kind"], e["step"]) for e in mine.events] == [(e["kind"], e["step"]) for e in theirs.events]


def test_a_zip_file_is_sent_trained_on_and_finished(page: Any, address: str, folders: Path) -> None:
    begin(page, address, "second", data="A ZIP file of my own", steps=12)
    page.locator("input[type=file]").set_input_files(str(folders / "mine.zip"))
    page.get_by_text("mine.zip").wait_for()
    send(page)
    page.get_by_text("finished: step 12 of 12").wait_for()
    config = (folders / "runs" / "second" / "config.json").read_text()
    assert '"data": "zip:' in config
    assert str(folders / "runs" / ".uploads") in config


@pytest.fixture(scope="module")
def trained(folders: Path) -> str:
    """The name of a run that has ended."""
    settings = {
        "data": f"folder:{folders / 'data' / 'squares'}",
        "epochs": 9999,
        "batch_size": 4,
        "image_size": 8,
        "steps": 12,
    }
    out = f"--out={folders / 'runs' / 'trained'}"
    command = [sys.executable, "-m", "thermoclaw", "train", out, "--quiet", "--export=state", *arguments(settings)]
    subprocess.run(command, env=ENVIRONMENT, cwd=folders, check=True)
    return "trained"


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_screen(page: Any, address: str, trained: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{address}/?run={trained}")
    for name in ("Train", "Dynamics", "Data", "Export"):
        page.get_by_role("tab", name=name).click()
        page.wait_for_timeout(1500)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="this system does not say who listens where")
def test_it_listens_on_the_loopback_alone(address: str) -> None:
    wanted = f":{int(address.rpartition(':')[2]):04X}"
    rows = [
        line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    listening = {row[1].removesuffix(wanted) for row in rows if row[1].endswith(wanted) and row[3] == "0A"}
    assert listening == {"0100007F"}


def test_a_name_in_the_address_leads_nowhere(page: Any, address: str, folders: Path) -> None:
    secret = folders / "secret"
    secret.mkdir(exist_ok=True)
    (secret / "status.json").write_text('{"state": "running", "error": "hidden words"}')
    for name in ("..%2Fsecret", "%2Fetc", "first%2F..%2F..%2Fsecret", "%00"):
        page.goto(f"{address}/?run={name}")
        page.get_by_text("There is no run of that name").first.wait_for()
        assert "hidden words" not in page.content()


def test_another_name_that_leads_here_shows_nothing(browser: Any, address: str, folders: Path) -> None:
    """DNS rebinding: a stranger's name is made to lead to this machine."""
    (folders / "runs" / "secret-name").mkdir(exist_ok=True)
    (folders / "runs" / "secret-name" / "status.json").write_text('{"state": "finished"}')
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(address.replace("127.0.0.1", "evil.example") + "/?run=secret-name")
    page.get_by_text("for this machine alone: open it as").wait_for()
    assert page.locator("[data-testid=stForm], [role=tab]").count() == 0
    assert "secret-name" not in page.locator("[data-testid=stApp]").inner_text()
    page.close()
