"""What the HTML report costs: seconds to build it, and its size, for records of several lengths and widths.

    python benchmarks/html_report.py              # half a minute; writes benchmarks/results/html_report.json

Records are of independent noise, which compresses worst. The findings are given: asking the rules is measured beside
it. Where a Chromium is found, the time from opening the file to the last picture is measured too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from cost.machine import environment

from thermoclaw.diagnosis.engine import find
from thermoclaw.diagnosis.finding import Finding
from thermoclaw.quantities import LAYER_COLUMNS, RUN_COLUMNS
from thermoclaw.record import LayerInfo, Record
from thermoclaw.report.html import write_html
from thermoclaw.report.html.page import _library

RESULTS = Path(__file__).resolve().parent / "results" / "html_report.json"
SIZES = ((300, 20), (2_000, 50), (10_000, 200), (10_000, 1_000), (100_000, 20))
KINDS = (
    ("attn.qkv", "attention"),
    ("attn.out", "attention"),
    ("mlp.up", "mlp"),
    ("mlp.down", "mlp"),
    ("norm", "layernorm"),
)


def record_of(steps: int, layers: int) -> Record:
    """A run in which nothing repeats itself."""
    random = np.random.default_rng(0)
    values = random.lognormal(size=(steps, layers, len(LAYER_COLUMNS))).astype(np.float32)
    for name in ("coherence", "alignment", "noise_share", "dead_rows", "silent_rows", "grad_zeros", "output_drift"):
        values[:, :, LAYER_COLUMNS.index(name)] = np.tanh(values[:, :, LAYER_COLUMNS.index(name)])
    values[:, :, LAYER_COLUMNS.index("lr")] = 1e-3 * np.cos(np.linspace(0.0, 1.5, steps))[:, None]
    values[:, :, LAYER_COLUMNS.index("weight_decay")] = 0.1
    values[:, :, LAYER_COLUMNS.index("momentum")] = 0.9
    run = random.lognormal(size=(steps, len(RUN_COLUMNS)))
    infos = []
    for i in range(layers):
        part, ltype = KINDS[i % len(KINDS)]
        infos.append(LayerInfo(f"transformer.layers.{i // len(KINDS)}.{part}", ltype, 1_000_000 + i, i))
    return Record(np.arange(1, steps + 1), tuple(infos), values, run, {"optimizer": "AdamW"})


def finding_of(record: Record) -> Finding:
    """One that names a third of the layers."""
    names = tuple(record.layer_names[::3])
    return Finding("lr_too_high", "HIGH", "the rate is too high", "Seen.", "Means.", "Try.", "source", 40, 50, names)


def measure(steps: int, layers: int, folder: Path, *, rounds: int) -> dict[str, Any]:
    """Build the page so many times; the median."""
    path = folder / f"{steps}x{layers}.html"
    seconds = []
    for _ in range(rounds):
        record = record_of(steps, layers)  # a new one: derived columns are kept once they were asked for
        findings = [finding_of(record)]
        _library.cache_clear()  # as in a process of its own
        began = time.perf_counter()
        write_html(record, path, findings=findings, title="benchmark")
        seconds.append(time.perf_counter() - began)
    began = time.perf_counter()
    find(record)
    rules_s = time.perf_counter() - began
    return {
        "steps": steps,
        "layers": layers,
        "build_s": round(statistics.median(seconds), 3),
        "build_s_all": [round(s, 3) for s in seconds],
        "rules_s": round(rules_s, 3),
        "megabytes": round(path.stat().st_size / 1e6, 2),
        "open_s": opened(path),
    }


def opened(path: Path) -> float | None:
    """Seconds from opening the file in Chromium to the last picture; None where there is none."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        began = time.perf_counter()
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", timeout=60_000)
        seconds = time.perf_counter() - began
        browser.close()
    return round(seconds, 2)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        measure(50, 4, Path(folder), rounds=1)  # imports
        for steps, layers in SIZES:
            rows.append(measure(steps, layers, Path(folder), rounds=args.rounds))
            print(rows[-1], file=sys.stderr)
    args.out.write_text(json.dumps({"environment": environment(), "pages": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
