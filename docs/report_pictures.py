"""Make the pictures of the pages on the report and the notebook, of the run that the demo lets die.

    python docs/report_pictures.py                        # runs the demo once (a minute and a half on two cores)
    python docs/report_pictures.py --record FILE          # takes the record of its unmodified arm from an earlier demo
    python docs/report_pictures.py --record FILE --all FOLDER   # the whole page, wide and narrow, light and dark

Writes docs/images/report_*.png and docs/images/notebook.png. Needs the extras `html` and `dev` and a Chromium on the
machine.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image
from playwright.sync_api import sync_playwright

from thermoclaw.record import Record
from thermoclaw.report.html import write_html

IMAGES = Path(__file__).resolve().parent / "images"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
TRAINING = """
import torch, thermoclaw
from thermoclaw.notebook import LivePlot

torch.manual_seed(0)
model = torch.nn.Sequential(*[part for i in range(4) for part in (torch.nn.Linear(32, 32), torch.nn.Tanh())])
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.5)
observer = thermoclaw.Observer(model, optimizer)
plot = LivePlot(observer)
for step in range(300):
    x = torch.randn(64, 32)
    loss = (model(x) - torch.sin(3 * x)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    observer.step(loss=loss)
observer.close()
"""


@contextmanager
def browser() -> Iterator[Any]:
    """The Chromium of this machine."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        raise SystemExit("no Chromium on this machine")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield opened
        opened.close()


@contextmanager
def opened(chromium: Any, page: Path, *, width: int, scheme: str) -> Iterator[Any]:
    """A page of the report with its pictures drawn."""
    phone = width < 600
    viewport = {"width": width, "height": 844 if phone else 900}
    context = chromium.new_context(viewport=viewport, color_scheme=scheme, is_mobile=phone, has_touch=phone)
    tab = context.new_page()
    tab.goto(page.as_uri())
    tab.wait_for_selector("html[data-ready]")
    yield tab
    context.close()


def demo() -> Record:
    """The unmodified arm of the demo."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "thermoclaw", "demo", "--quiet", "--out", folder], check=True)
        return Record.load(Path(folder) / "unmodified.npz")


def keep(tab: Any, name: str, **options: Any) -> None:
    """A picture of a page, small enough for the documentation."""
    with Image.open(io.BytesIO(tab.screenshot(**options))) as picture:
        small = picture.convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        small.save(IMAGES / name, optimize=True)


def draw_report(chromium: Any, page: Path) -> None:
    """The first screen, the map with a finding followed, and a phone."""
    with opened(chromium, page, width=1280, scheme="light") as tab:
        keep(tab, "report_page.png", clip={"x": 0, "y": 0, "width": 1280, "height": 800})
    with opened(chromium, page, width=1280, scheme="dark") as tab:
        tab.click("#finding-1 .show")
        tab.wait_for_timeout(1000)  # it scrolls
        tab.evaluate("document.querySelector('.top').style.position = 'static'")  # it would lie over the picture
        top = tab.evaluate("scrollY") + tab.locator("#layers").bounding_box()["y"]
        keep(tab, "report_layers.png", full_page=True, clip={"x": 60, "y": top - 16, "width": 1160, "height": 830})
    with opened(chromium, page, width=390, scheme="light") as tab:
        keep(tab, "report_phone.png")


def draw_notebook(chromium: Any) -> None:
    """A notebook that trained, as its cells show it."""
    sources = (TRAINING.strip(), "thermoclaw.diagnose(observer)")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(book, timeout=240, kernel_name="python3").execute(cwd=folder)
    shown = [out["data"]["text/html"] for cell in book.cells for out in cell["outputs"] if "data" in out]
    tab = chromium.new_page(viewport={"width": 920, "height": 700})
    tab.set_content(f'<body style="margin:12px;background:#fff;color:#222;font:14px sans-serif">{"".join(shown)}')
    keep(tab, "notebook.png", full_page=True)


def draw_all(chromium: Any, page: Path, folder: Path) -> None:
    """The whole page, to look at."""
    folder.mkdir(parents=True, exist_ok=True)
    for width in (1280, 390):
        for scheme in ("light", "dark"):
            with opened(chromium, page, width=width, scheme=scheme) as tab:
                tab.screenshot(path=str(folder / f"report_{width}_{scheme}.png"), full_page=True)


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, help="of the unmodified arm of a demo that was run before")
    parser.add_argument("--all", type=Path, metavar="FOLDER", help="the whole page into this folder, and nothing else")
    args = parser.parse_args()
    record = Record.load(args.record) if args.record else demo()
    with tempfile.TemporaryDirectory() as folder, browser() as chromium:
        page = write_html(record, Path(folder) / "report.html", title="demo: SGD with weight_decay=5")
        if args.all:
            draw_all(chromium, page, args.all)
            return
        draw_report(chromium, page)
        draw_notebook(chromium)


if __name__ == "__main__":
    main()
