"""In a notebook: what results look like, and a plot that follows the run without being in its way."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from html_pages import HOSTILE, chromium, finding, grown, opened, renamed
from synthetic import Synthetic
from thermoclaw import Observer, diagnose, notebook
from thermoclaw.diagnosis.finding import Finding
from thermoclaw.notebook import LivePlot
from thermoclaw.record import Record
from thermoclaw.report.live import live_html, worst_layers

VOID = {"path", "rect", "br"}


class Balanced(HTMLParser):
    """Every element that is opened is closed; no link, script or style element, nothing that acts or loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "style", "link", "img", "iframe", "a", "object", "form")
        assert not [name for name, _ in attrs if name.startswith("on") or name in ("href", "src", "id")]
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag


def failing() -> tuple[Record, list[Finding]]:
    record = grown()
    return record, [finding(record), finding(record, confidence="LOW", code="plateau", layers=())]


# -- results -----------------------------------------------------------------------------------------------------------


def test_a_finding_says_what_where_since_when_and_what_to_do() -> None:
    text = failing()[1][0]._repr_html_()
    Balanced(text)
    for words in (
        "HIGH",
        "the learning rate is too high",
        "since step 40, certain by step 48",
        "blocks.2.fc",
        "Lower lr",
    ):
        assert words in text


def test_a_report_shows_its_verdict_and_all_findings() -> None:
    run = Synthetic(steps=200, layers=4)
    run.set(rows=slice(100, None), grad_sq=np.nan, param_sq=np.nan, loss=np.nan)
    report = diagnose(run.record())
    text = report._repr_html_()
    Balanced(text)
    assert "Failing" in text
    assert all(found.code in text for found in report.findings)
    healthy = diagnose(Synthetic(steps=10).record())._repr_html_()
    assert "Healthy" in healthy
    assert "Nothing to report" in healthy


def test_a_record_shows_its_loss_and_layers() -> None:
    text = grown()._repr_html_()
    Balanced(text)
    assert "<svg" in text
    assert "blocks.11.fc" in text
    assert "120 rows" in text
    assert "No optimizer step" in grown().rows(start=10**9)._repr_html_()
    wide = Synthetic(steps=3, layers=300).record()._repr_html_()
    assert "and 200 more layers" in wide


@pytest.mark.parametrize("word", HOSTILE, ids=range(len(HOSTILE)))
def test_texts_stay_texts(word: str) -> None:
    record = renamed(Synthetic(steps=30, layers=len(HOSTILE)).record(), HOSTILE, ltype=word, meta={"optimizer": word})
    told = finding(record, title=word, seen=word, advice=word, code=word, layers=HOSTILE, evidence={word: 1.0})
    tame = finding(record, code="x", layers=("a",) * len(HOSTILE))
    assert Balanced(told._repr_html_()).tags == Balanced(tame._repr_html_()).tags
    Balanced(record._repr_html_())
    Balanced(live_html(record, [told], layers=20))


# -- the live plot, without a notebook ---------------------------------------------------------------------------------


class Handle:
    """What a notebook's `display` gives back."""

    def __init__(self, shown: list[str]) -> None:
        self.shown = shown

    def update(self, drawn: Any) -> None:
        self.shown.append(drawn.data)


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A notebook's cell: what was displayed in it, one after the other."""
    display = pytest.importorskip("IPython.display", reason="IPython is not installed")
    shown: list[str] = []

    def show(drawn: Any, *, display_id: bool) -> Handle:
        assert display_id
        shown.append(drawn.data)
        return Handle(shown)

    monkeypatch.setattr(notebook, "in_notebook", lambda: True)
    monkeypatch.setattr(notebook, "SHARE", float("inf"))  # as if drawing took no time
    monkeypatch.setattr(display, "display", show)
    return shown


def run(steps: int, *, lr: float = 0.1, **settings: Any) -> tuple[Observer, list[float], LivePlot]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    observer = Observer(model, optimizer, strict=True)
    plot = LivePlot(observer, **settings)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(torch.randn(16, 8)) - 1).square().mean()
        loss.backward()
        optimizer.step()
        observer.step(loss=loss)
        losses.append(float(loss.detach()))
    return observer, losses, plot


def test_it_draws_anew_in_its_place(cell: list[str]) -> None:
    observer, _, _ = run(61, seconds=0.0)
    assert "no step has reached the host" in cell[0]
    assert len(cell) > 4
    assert "step 56 " in cell[-1]  # what has reached the host
    observer.close()
    assert "step 61 " in cell[-1]
    assert "ended" in cell[-1]
    for drawn in cell:
        Balanced(drawn)


def test_steps_and_time_limit_it(cell: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run(64, seconds=0.0, every=32)
    assert len(cell) in (2, 3)
    cell.clear()
    run(64, seconds=1000.0)
    assert len(cell) == 1
    cell.clear()
    monkeypatch.setattr(notebook, "SHARE", 0.02)
    slow = notebook.live_html
    monkeypatch.setattr(notebook, "live_html", lambda *a, **k: (time.sleep(0.05), slow(*a, **k))[1])
    began = time.perf_counter()
    run(200, seconds=0.0)
    assert len(cell) <= 2 + (time.perf_counter() - began) / 2.5  # fifty times what a drawing takes lies between two


def test_drawing_waits_for_nothing(cell: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what waits for the device nor the rules are called."""

    def waits(*_: Any, **__: Any) -> None:
        pytest.fail("a drawing waited for the device")

    monkeypatch.setattr(Observer, "record", waits)
    _, _, plot = run(40, seconds=0.0)
    assert plot.update()
    assert len(cell) > 3


def test_it_changes_nothing_of_the_training(cell: list[str]) -> None:
    with_plot = run(50, seconds=0.0)[1]
    assert cell
    with_none = run(50, seconds=1e9)[1]
    assert with_plot == with_none


def test_an_error_turns_it_off_and_is_said_once(
    cell: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> str:
        raise RuntimeError("no ink")

    monkeypatch.setattr(notebook, "live_html", broken)
    with caplog.at_level(logging.WARNING, logger="thermoclaw"):
        observer, losses, plot = run(40, seconds=0.0)
    assert len(losses) == 40
    assert not plot.is_on
    assert not plot.update()
    assert len([r for r in caplog.records if "no ink" in str(r.exc_info)]) == 1
    assert observer.record().num_steps == 40


def test_outside_of_a_notebook_it_says_so_once_and_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="thermoclaw"):
        observer, _, plot = run(40)
    assert [r.message for r in caplog.records if "LivePlot" in r.message] == [caplog.records[0].message]
    assert "draws nothing" in caplog.records[0].message
    assert not plot.update()
    assert observer.record().num_steps == 40


def test_a_closed_plot_stays_as_it_is(cell: list[str]) -> None:
    _, _, plot = run(24, seconds=0.0)
    plot.close()
    drawn = len(cell)
    assert not plot.update()
    assert len(cell) == drawn


@pytest.mark.parametrize("wrong", [{"every": 0}, {"seconds": -1.0}, {"seconds": float("nan")}, {"layers": True}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        run(0, **wrong)


def test_only_an_observer_can_be_followed() -> None:
    with pytest.raises(TypeError, match="takes an Observer, not Linear"):
        LivePlot(torch.nn.Linear(1, 1))  # type: ignore[arg-type]


def test_layers_of_alarms_come_first_then_those_away_from_their_habit() -> None:
    plain = Synthetic(steps=40, layers=12)
    plain.set(rows=slice(30, None), layers=9, grad_sq_smooth=0.9)
    record = plain.record()
    alarm = finding(record, layers=("blocks.4.fc",))
    assert worst_layers(record, [alarm], 2) == [4, 9]
    text = live_html(record, [alarm], layers=2)
    assert "blocks.4.fc" in text
    assert "blocks.9.fc" in text
    assert "blocks.0.fc" not in text
    assert "#b2182b" in text  # ten times the habit
    assert "Lower lr" in text


# -- in a notebook that runs -------------------------------------------------------------------------------------------

CELLS = (
    """
import torch, thermoclaw
from thermoclaw.notebook import LivePlot
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=5.0)
observer = thermoclaw.Observer(model, optimizer)
plot = LivePlot(observer, seconds=0.1)
for _ in range(120):
    optimizer.zero_grad()
    loss = (model(torch.randn(16, 8)) - 1).square().mean()
    loss.backward()
    optimizer.step()
    observer.step(loss=loss)
observer.close()
""",
    "report = thermoclaw.diagnose(observer)\nreport",
    "report.findings[0]",
    "observer.record()",
)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """What each cell of a notebook shows after it was run."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    nbformat = pytest.importorskip("nbformat")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source.strip()) for source in CELLS])
    nbclient.NotebookClient(book, timeout=240, kernel_name="python3").execute(
        cwd=str(tmp_path_factory.mktemp("notebook"))
    )
    return [list(cell["outputs"]) for cell in book.cells]


def shown(cell: list[dict[str, Any]]) -> str:
    (html,) = [out["data"]["text/html"] for out in cell if "data" in out]
    return str(html)


def test_a_notebook_shows_one_plot_and_readable_results(outputs: list[list[dict[str, Any]]]) -> None:
    live = shown(outputs[0])
    assert "step 120" in live
    assert "ended" in live
    assert "Failing" in live
    assert "Weight decay" in shown(outputs[1])
    assert "remedy.apply" in shown(outputs[2])
    assert "<svg" in shown(outputs[3])
    for cell in outputs[1:]:
        assert any("text/plain" in out.get("data", {}) for out in cell)  # where there is no HTML


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_results_are_readable_in_a_browser(
    browser: Any, outputs: list[list[dict[str, Any]]], tmp_path: Path, dark: bool
) -> None:
    look = "background:#111;color:#ddd" if dark else "background:#fff;color:#222"
    page = tmp_path / "cells.html"
    body = "<hr>".join(shown(cell) for cell in outputs)
    page.write_text(f'<!doctype html><meta charset="utf-8"><body style="{look}">{body}', encoding="utf-8")
    with opened(browser, page, width=700, dark=dark, ready=False) as seen:
        assert seen.value("document.documentElement.scrollWidth") <= 700
        assert seen.page.locator("svg path").count() >= 2
        ink = "#ddd" if dark else "#222"
        texts = seen.value("[...document.querySelectorAll('.thermoclaw div')].map(e => getComputedStyle(e).color)")
        assert set(texts) == {"rgb(221, 221, 221)" if ink == "#ddd" else "rgb(34, 34, 34)"}
        seen.is_clean()
