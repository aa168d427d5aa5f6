"""Make the pictures of `thermoclaw watch`: a small GPT that decay erodes, looked at while it trains.

    python docs/terminal_pictures.py

Writes docs/images/terminal/*.png. Needs the extra `terminal`, playwright and a Chromium on the machine; takes about two
minutes.
"""

from __future__ import annotations

import io
import shutil
import tempfile
import time
from pathlib import Path

import torch
from pages import shrink  # beside this script
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.terminal_theme import TerminalTheme

from thermoclaw import Observer, diagnose
from thermoclaw.lab.models import GPTShape
from thermoclaw.lab.training import Workload, start_arm
from thermoclaw.report.terminal.glance import glance
from thermoclaw.report.terminal.rich_frame import frame
from thermoclaw.runs import Run, RunReader

IMAGES = Path(__file__).resolve().parent / "images" / "terminal"
WORKLOAD = Workload(GPTShape(vocab_size=1024, width=64, num_layers=4, num_heads=4), steps=400)
STOP, WRITTEN_S = 330, 6.0  # steps, and as long as it takes until all is written
WIDTHS = {"watch.png": 92, "watch_narrow.png": 46}
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
DARK = TerminalTheme(
    (24, 26, 31),
    (214, 217, 224),
    [(40, 44, 52), (240, 113, 120), (145, 207, 124), (235, 200, 110), (110, 160, 245), (190, 140, 230), (86, 190, 205),
     (214, 217, 224)],
    [(110, 116, 128), (240, 113, 120), (145, 207, 124), (235, 200, 110), (110, 160, 245), (190, 140, 230),
     (86, 190, 205), (255, 255, 255)],
)  # fmt: skip
PAGE = """<!DOCTYPE html><meta charset="utf-8">
<body style="margin:0;background:white"><pre id="frame" style="display:inline-block;margin:0;padding:18px 22px;
background:{background};color:{foreground};font:14px/1.28 'DejaVu Sans Mono'">{code}</pre>"""


def watched(folder: Path) -> Run:
    """The run as a reader finds it while it goes on."""
    torch.set_num_threads(1)
    arm = start_arm("decayed", WORKLOAD, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=5.0), seed=42)
    with Observer(arm.model, arm.optimizer, strict=True, run_dir=folder):
        for step in range(STOP):
            arm.train_step()
            if step + 1 == STOP:
                time.sleep(WRITTEN_S)
        return RunReader(folder).read()


def html_of(run: Run, *, width: int) -> str:
    """A frame as a page."""
    console = Console(record=True, width=width, force_terminal=True, color_system="truecolor", file=io.StringIO())
    seen = glance(run.record, diagnose(run.record), is_closed=run.is_closed, marks=run.marks, now_s=time.time())
    console.print(frame(seen, name="runs/gpt", width=width, hint="Ctrl-C ends this view, not the run"))
    return console.export_html(theme=DARK, inline_styles=True, code_format=PAGE)


def main() -> None:
    """Train, look, draw."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("no Chromium on this machine")
    with tempfile.TemporaryDirectory() as work:
        run = watched(Path(work) / "gpt")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
            page = browser.new_page(viewport={"width": 1280, "height": 900}, device_scale_factor=2)
            for name, width in WIDTHS.items():
                page.set_content(html_of(run, width=width))
                page.locator("#frame").screenshot(path=f"{work}/{name}", omit_background=True)
                shrink(Path(work) / name, IMAGES / name)
            browser.close()


if __name__ == "__main__":
    main()
