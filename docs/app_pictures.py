"""Make the pictures of the page on the app: two trainings on digits, and what the app shows of them.

    python docs/app_pictures.py                 # into docs/images
    python docs/app_pictures.py --all FOLDER    # every tab, wide and narrow, light and dark, to look at

Needs the extras `app` and `dev` and a Chromium on the machine. Two minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from thermoclaw.train import train

IMAGES = Path(__file__).resolve().parent / "images"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
RUNS = {
    "strong-decay": {"epochs": 8, "batch_size": 64, "lr": 0.1, "weight_decay": 0.5, "schedule": "none"},
    "healthy": {"epochs": 8, "batch_size": 64},
}
TABS = ("Train", "Dynamics", "Data", "Export")
WIDE, NARROW = 1280, 390


@contextmanager
def app(runs: Path) -> Iterator[str]:
    """The app over a folder of runs; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "thermoclaw", "app", "--runs", str(runs), "--port", str(port)]
    process = subprocess.Popen(command, cwd=runs.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def shoot(browser: Any, address: str, target: Path, *, tab: str | None, width: int, scheme: str, most: int) -> None:
    """One picture of one tab, as high as it is, or at most `most` pixels."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(90_000)
    page.goto(address)
    page.locator("[role=tab], [data-testid=stForm]").first.wait_for()
    if tab:
        page.get_by_role("tab", name=tab).click()
    page.wait_for_timeout(4000)
    bottom = """Math.max(...[...document.querySelectorAll('[data-testid=stMain] [data-testid=stElementContainer]')]
        .map(e => e.getBoundingClientRect().bottom)) + document.querySelector('[data-testid=stMain]').scrollTop"""
    height = min(int(page.evaluate(bottom)) + 30, most)
    page.set_viewport_size({"width": width, "height": max(height, 500)})
    page.wait_for_timeout(1500)
    page.screenshot(path=str(target))
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        for name, settings in RUNS.items():
            train({"data": "digits", **settings}, runs / name)
        with app(runs) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
            if arguments.all:
                arguments.all.mkdir(parents=True, exist_ok=True)
                for width, scheme in ((WIDE, "light"), (NARROW, "light"), (WIDE, "dark"), (NARROW, "dark")):
                    shots = [(f"{address}/?run={run}", tab, f"{run}-{tab}") for run in RUNS for tab in TABS]
                    for url, tab, name in [(address, None, "new"), *shots]:
                        target = arguments.all / f"{name}-{width}-{scheme}.png"
                        shoot(browser, url, target, tab=tab, width=width, scheme=scheme, most=4000)
            else:
                for tab, width, name in (
                    ("Train", WIDE, "app_train"),
                    ("Dynamics", WIDE, "app_dynamics"),
                    ("Train", NARROW, "app_phone"),
                ):
                    url, target = f"{address}/?run=strong-decay", IMAGES / f"{name}.png"
                    shoot(browser, url, target, tab=tab, width=width, scheme="light", most=1800)
            browser.close()


if __name__ == "__main__":
    main()
