"""What the tests of HTML pages share: runs to show, names that want to break out, a browser, what a page may not do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthetic import Synthetic
from thermoclaw.diagnosis.finding import Finding
from thermoclaw.diffusion import Diffusion, Estimate
from thermoclaw.motion import Motion
from thermoclaw.record import LayerInfo, Record

HOSTILE = (
    "</script><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    '"><svg onload=window.pwned=1>',
    "'--><!--<script>window.pwned=1</script>",
    "javascript:window.pwned=1",
    '<a href="javascript:window.pwned=1">x</a>',
    "{{ 7 * 7 }}{% raw %}${window.pwned=1}",
    "../../../etc/passwd\x00.html",
    "\x1b[31mred\r\n\x07",
    "abc\u202etxt.exe\u2066\u200b",
    "\ud800 alone",
    "\u2028\u2029]]>&lt;b&gt;",
    "w" * 10_240,
    "<b>" * 3_000,
    "%{x}%{customdata}<extra>e</extra><br>",
    "",
)


def renamed(record: Record, names: tuple[str, ...], **changes: Any) -> Record:
    """The same run with other names of its first layers."""
    layers = [
        LayerInfo(names[i] if i < len(names) else layer.name, changes.get("ltype", layer.ltype), layer.num_params, i)
        for i, layer in enumerate(record.layers)
    ]
    meta = {**record.meta, "layer_groups": {layer.name: [0] for layer in layers}, **changes.get("meta", {})}
    events = changes.get("events", record.events)
    return Record(record.steps, tuple(layers), record.layer_values, record.run_values, meta, events)


def finding(record: Record, **changes: Any) -> Finding:
    """A finding about the layers of a record from the third on."""
    told = {
        "code": "lr_too_high",
        "confidence": "HIGH",
        "title": "the learning rate is too high",
        "seen": "The loss rose.",
        "meaning": "Steps are too long.",
        "advice": "Lower lr from 0.1 to 0.01. Then go on.",
        "source": "docs",
        "first_step": 40,
        "raised_step": 48,
        "layers": tuple(record.layer_names[2:5]),
        "evidence": {"update_ratio": 0.3},
    }
    return Finding(**{**told, **changes})


def grown(*, steps: int = 120, layers: int = 12) -> Record:
    """A run whose third layer steps ever further."""
    run = Synthetic(steps=steps, layers=layers)
    run.set(rows=slice(40, None), layers=2, update_sq=1e4)
    run.set(noise=0.05, d_iS_wd=1e-6, d_iS_momentum=2e-5, d_iS_noise=1e-5)
    return run.record()


def sampled(record: Record) -> Record:
    """The same run with what a thermometer leaves in it."""
    lags = np.array([8.0, 16.0, 32.0])
    whole = Diffusion(lags, 1e-6 * lags, Estimate(1.0, 0.9, 1.2), 5e-7, 4e-7, "diffusive")
    return replace(record, events=(*record.events, Motion(record.num_steps, whole).to_event()))


def noisy(steps: int, layers: int) -> Record:
    """A long and wide run in which nothing repeats itself."""
    random = np.random.default_rng(0)
    whole = Synthetic(steps=2, layers=layers).record()
    values = random.lognormal(size=(steps, layers, whole.layer_values.shape[2])).astype(np.float32)
    plain = Synthetic(steps=2, layers=1).record()
    from thermoclaw.quantities import LAYER_COLUMNS

    for name in ("lr", "weight_decay", "momentum"):
        values[:, :, LAYER_COLUMNS.index(name)] = plain[name][0, 0]
    run = random.lognormal(size=(steps, whole.run_values.shape[1]))
    return Record(np.arange(1, steps + 1), whole.layers, values, run, whole.meta)


# -- the browser -------------------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser that is on the machine; the test is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page in the browser, and everything that it did which it should not do."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def is_clean(self) -> None:
        """No error, no request but for the file itself, no dialog, nothing that ran."""
        assert self.errors == []
        assert [url for url in self.requests[1:] if not url.startswith("data:")] == []
        assert self.dialogs == []
        assert self.page.evaluate("window.pwned === undefined")

    def until(self, script: str) -> None:
        """Wait for an expression to hold. (The browser's own waiting evaluates texts, which the page forbids.)"""
        for _ in range(200):
            if self.value(script):
                return
            self.page.wait_for_timeout(50)
        pytest.fail(f"never true: {script}")

    def value(self, script: str) -> Any:
        """What an expression gives in the page."""
        return self.page.evaluate(script)


@contextmanager
def opened(
    browser: Any, path: Path, *, width: int = 1280, dark: bool = False, ready: bool = True, **settings: Any
) -> Iterator[Opened]:
    """Open a file, as on a desktop or (390 pixels wide) as on a phone, and wait until its pictures are drawn."""
    phone = {"is_mobile": True, "has_touch": True} if width < 600 else {}
    viewport = {"width": width, "height": 844 if phone else 900}
    scheme = "dark" if dark else "light"
    context = browser.new_context(viewport=viewport, color_scheme=scheme, **phone, **settings)
    page = context.new_page()
    seen = Opened(page)

    def dismiss(dialog: Any) -> None:
        seen.dialogs.append(dialog.message)
        dialog.dismiss()

    page.on("console", lambda line: seen.errors.append(line.text) if line.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("requestfailed", lambda request: seen.refused.append(f"{request.url}: {request.failure}"))
    page.on("dialog", dismiss)
    page.goto(path.as_uri())
    if ready:
        page.wait_for_selector("html[data-ready]", timeout=60_000)
    yield seen
    context.close()
