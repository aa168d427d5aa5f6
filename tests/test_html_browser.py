"""The HTML report in a real browser: nothing is fetched, nothing runs that was not ours, everything can be reached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from html_pages import HOSTILE, Opened, chromium, finding, grown, opened, renamed, sampled
from synthetic import Synthetic

pytest.importorskip("jinja2", reason="the extra html is not installed")
pytest.importorskip("plotly", reason="the extra html is not installed")

from thermoclaw.quantities import LAYER_COLUMNS
from thermoclaw.record import LayerInfo, Record
from thermoclaw.report.html import write_html


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three findings."""
    record = sampled(grown())
    found = [
        finding(record),
        finding(record, confidence="MEDIUM", code="dead_units", first_step=42, layers=(record.layer_names[7],)),
        finding(record, confidence="LOW", code="plateau", first_step=100, layers=()),
    ]
    return write_html(record, tmp_path_factory.mktemp("page") / "failing.html", findings=found, title="a run")


def state(seen: Opened, expression: str) -> Any:
    """What plotly holds of a picture."""
    return seen.value(expression)


RANGE = "document.getElementById('plot-{}')._fullLayout.xaxis.range"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_the_page_draws_everything_quietly(browser: Any, failing: Path, width: int, dark: bool) -> None:
    with opened(browser, failing, width=width, dark=dark) as seen:
        drawn = seen.value("[...document.querySelectorAll('.plot')].filter(p => p.querySelector('.main-svg')).length")
        assert drawn == seen.value("document.querySelectorAll('.plot').length") == 10
        assert seen.value("document.documentElement.scrollWidth") <= width  # a phone widens its window to what is wide
        assert "learning rate is too high" in seen.page.inner_text("h1")
        backdrop = seen.value("getComputedStyle(document.body).backgroundColor")
        assert (sum(int(part) for part in backdrop[4:-1].split(",")) < 200) == dark
        assert seen.page.locator("h1").bounding_box()["y"] < 300  # the verdict is on the first screen
        assert seen.page.get_by_text("Lower lr from 0.1 to 0.01").first.bounding_box()["y"] < 700
        seen.is_clean()


def test_where_the_weights_go(browser: Any, failing: Path, tmp_path: Path) -> None:
    with opened(browser, failing) as seen:
        assert seen.value("document.getElementById('plot-displacement').data[0].x") == [8, 16, 32]
        assert "the power 1.00 (95 % interval 0.90 to 1.20) of the lag" in seen.page.inner_text("#caption-displacement")
        assert "wander at random" in seen.page.inner_text("#caption-displacement")
        drawn = "document.getElementById('plot-balance').data.map(t => t.x.length).reduce((a, b) => a + b)"
        assert seen.value(drawn) == 12
        assert "Of 12 layers " in seen.page.inner_text("#caption-balance")
        seen.is_clean()
    alone = write_html(grown(), tmp_path / "alone.html", findings=[])
    with opened(browser, alone, width=390) as seen:
        note = seen.page.locator("#plot-displacement .empty")
        assert "thermoclaw.Thermometer(observer)" in note.inner_text()
        below = seen.page.locator("details[data-table=displacement]").bounding_box()["y"]
        assert note.bounding_box()["y"] + note.bounding_box()["height"] <= below  # they do not lie on each other
        seen.is_clean()


def test_a_quantity_can_be_picked(browser: Any, failing: Path) -> None:
    with opened(browser, failing) as seen:
        assert "Overshoot" in seen.value("quantity.selectedOptions[0].textContent")  # where the first finding shows
        before = seen.value("Array.from(document.getElementById('plot-heat').data[0].z[2])")
        seen.page.select_option("#quantity", label="Relative step (‖Δ‖/‖θ‖)")
        after = seen.value("Array.from(document.getElementById('plot-heat').data[0].z[2])")
        assert before != after
        assert np.mean(after[50:]) - np.mean(after[:30]) > 2  # decades: the third layer's steps grew
        assert "Relative size of a step" in seen.page.inner_text("#explain")
        assert "Relative step" in seen.page.inner_text("#lines-head")
        seen.is_clean()


def test_a_finding_leads_to_its_steps_and_layers(browser: Any, failing: Path) -> None:
    with opened(browser, failing) as seen:
        seen.page.click("#finding-1 .show")
        for name in ("loss", "heat", "lines", "split"):
            low, high = seen.value(RANGE.format(name))
            assert 1 < low < 40 < high < 110
        boxes = seen.value("document.getElementById('plot-heat').layout.shapes.filter(s => s.type === 'rect')")
        assert [(box["y0"], box["y1"], box["x0"]) for box in boxes] == [(1.5, 4.5, 40)]
        seen.until("loss.getBoundingClientRect().top < innerHeight")  # it scrolls there smoothly
        seen.page.focus("#plot-heat")
        seen.page.keyboard.press("ArrowDown")  # the cursor begins where one looks
        assert int(seen.page.inner_text("#readout").split("step ")[1].split(":")[0]) > 1
        seen.page.select_option("#quantity", label="Learning rate (η)")
        seen.page.locator("#finding-1 .chip").first.click()
        assert "Learning rate" in seen.page.inner_text("#lines-head")  # what was chosen stays
        seen.page.click("#loss .whole")
        assert seen.value(RANGE.format("heat")) == [0.5, 120.5]
        seen.is_clean()


def test_a_layer_of_a_finding_is_kept(browser: Any, failing: Path) -> None:
    with opened(browser, failing) as seen:
        lines = "document.getElementById('plot-lines').data.length"
        before = seen.value(lines)
        chip = seen.page.locator("#finding-1 .chip").nth(1)
        chip.click()
        assert chip.get_attribute("aria-pressed") == "true"
        assert seen.value(lines) == before + 1
        assert "blocks.3.fc" in seen.page.inner_text("#caption-lines")
        seen.is_clean()


def test_zooming_one_picture_zooms_all(browser: Any, failing: Path) -> None:
    with opened(browser, failing) as seen:
        seen.value("Plotly.relayout('plot-loss', {'xaxis.range[0]': 20, 'xaxis.range[1]': 60})")
        assert seen.value(RANGE.format("heat")) == [20, 60]
        assert seen.value(RANGE.format("temperature") + " || [20, 60]") == [20, 60]
        seen.is_clean()


def test_the_keyboard_reaches_the_picker_and_the_map(browser: Any, failing: Path) -> None:
    with opened(browser, failing) as seen:
        seen.page.keyboard.press("Tab")
        assert seen.value("document.activeElement.className") == "skip"
        met = []
        for _ in range(80):
            seen.page.keyboard.press("Tab")
            met.append(seen.value("document.activeElement.id || document.activeElement.className"))
            assert seen.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            if met[-1] == "quantity":
                break
        assert met[-1] == "quantity"
        chosen = seen.value("quantity.value")
        seen.page.keyboard.press("ArrowDown")
        assert seen.value("quantity.value") != chosen
        while met[-1] != "plot-heat":
            seen.page.keyboard.press("Tab")
            met.append(seen.value("document.activeElement.id || ''"))
            assert len(met) < 100
        for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
            seen.page.keyboard.press(key)
        assert seen.page.inner_text("#readout").startswith("blocks.1.fc, step 2: ")
        seen.page.keyboard.press("+")
        low, high = seen.value(RANGE.format("loss"))
        assert low <= 2 <= high <= 65
        seen.page.keyboard.press("-")
        seen.page.keyboard.press("-")
        assert seen.value(RANGE.format("loss")) == [0.5, 120.5]
        seen.page.keyboard.press("Enter")
        assert "blocks.1.fc" in seen.page.inner_text("#caption-lines")
        seen.page.keyboard.press("Escape")
        assert "blocks.1.fc" not in seen.page.inner_text("#caption-lines")
        seen.is_clean()


def test_every_picture_has_its_numbers_as_a_table(browser: Any, failing: Path) -> None:
    with opened(browser, failing) as seen:
        seen.value("document.querySelectorAll('details.data').forEach(d => d.open = true)")
        seen.until("document.querySelectorAll('details.data table').length === 10")
        assert seen.value("[...document.querySelectorAll('details.data table')].every(t => t.rows.length > 2)")
        labels = seen.value("[...document.querySelectorAll('.plot')].map(p => p.getAttribute('aria-label'))")
        assert all(labels)
        unlabeled = "[...document.querySelectorAll('select, input')].filter(e => !e.labels.length).length"
        assert seen.value(unlabeled) == 0
        seen.is_clean()


def test_colors_can_be_chosen_and_are_kept(browser: Any, failing: Path) -> None:
    with opened(browser, failing) as seen:
        backdrop = "getComputedStyle(document.body).backgroundColor"
        light = seen.value(backdrop)
        title = "document.getElementById('plot-loss')._fullLayout.font.color"
        ink = seen.value(title)
        seen.page.click(".theme [data-theme=dark]")
        assert seen.value(backdrop) != light
        assert seen.value(title) != ink
        seen.page.reload()
        seen.page.wait_for_selector("html[data-ready]")
        assert seen.value(backdrop) != light
        assert seen.page.get_attribute(".theme [data-theme=dark]", "aria-pressed") == "true"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_can_be_printed(browser: Any, failing: Path, dark: bool) -> None:
    with opened(browser, failing, dark=dark) as seen:
        seen.value(
            "addEventListener('beforeprint', () => { window.paper = [isPaperLight(), plotWidth()] })".replace(
                "isPaperLight()", "document.documentElement.dataset.theme"
            ).replace("plotWidth()", "document.getElementById('plot-loss')._fullLayout.width")
        )
        paper = seen.page.pdf(format="A4")
        assert paper.startswith(b"%PDF")
        assert len(paper) > 50_000
        assert seen.value("window.paper") == ["light", 680]
        seen.until("document.documentElement.dataset.theme === undefined")
        assert seen.value("document.getElementById('plot-loss')._fullLayout.width") > 1000
        seen.is_clean()


# -- what is hostile, broken or missing --------------------------------------------------------------------------------

CENSUS = """() => {
  const count = {};
  for (const e of document.querySelectorAll('main *, footer, script')) {
    if (e.closest('.plot')) continue;
    const word = e.tagName + [...e.attributes].map(a => ' ' + a.name).sort().join('');
    count[word] = (count[word] || 0) + 1;
  }
  return count;
}"""


def page_of(record: Record, path: Path, title: str) -> Path:
    told = finding(record, layers=tuple(record.layer_names), title=title, seen=title, advice=title, source=title)
    return write_html(record, path, findings=[told], title=title)


def test_hostile_names_change_nothing_but_texts(browser: Any, tmp_path: Path) -> None:
    """With names that want to break out the page has the same elements as with plain ones, and nothing happens."""
    plain = Synthetic(steps=60, layers=len(HOSTILE)).record()
    bad = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1>"
    events = ({"kind": bad, "step": 3, bad: bad}, {"kind": "alarm", "step": 4, "finding": {"title": bad}})
    hostile = renamed(plain, HOSTILE, ltype=bad, meta={"optimizer": bad, bad: bad, "devices": [bad]}, events=events)
    tame = tuple(f"a.{i}" if name else "" for i, name in enumerate(HOSTILE))
    quiet = ({"kind": "x", "step": 3, "y": "y"}, {"kind": "alarm", "step": 4, "finding": {"title": "y"}})
    same = renamed(plain, tame, ltype="mlp2", meta={"optimizer": "o", "y": "y", "devices": ["cpu"]}, events=quiet)
    seen_elements = []
    for record, name, title in ((hostile, "hostile", bad), (same, "tame", "tame")):
        with opened(browser, page_of(record, tmp_path / f"{name}.html", title)) as seen:
            seen.value("document.querySelectorAll('details').forEach(d => d.open = true)")
            seen.page.click("#finding-1 .show")
            seen.page.hover("#plot-heat .nsewdrag", position={"x": 200, "y": 20})
            seen.page.wait_for_selector("#tip:not([hidden])")
            seen.page.click("#plot-heat .nsewdrag", position={"x": 200, "y": 60})
            seen.page.hover("#plot-plane .nsewdrag") if seen.value("!!document.querySelector('#plot-plane svg')") else 0
            seen.until("document.querySelectorAll('details.data table').length >= 5")
            seen_elements.append(seen.value(CENSUS))
            assert seen.value("document.querySelectorAll('.plot a, .plot img, .plot script').length") == 0
            assert seen.value("document.querySelectorAll('[onerror],[onload],[href^=\"javascript\"]').length") == 0
            seen.is_clean()
    assert seen_elements[0] == seen_elements[1]


def test_the_policy_lets_nothing_else_run_or_load(browser: Any, failing: Path) -> None:
    with opened(browser, failing) as seen:
        seen.value("""() => {
          const script = document.createElement('script');
          script.textContent = 'window.pwned = 1';
          document.body.append(script);
          const picture = document.createElement('img');
          picture.src = 'https://example.invalid/x.png';
          document.body.append(picture);
        }""")
        assert seen.value("fetch('https://example.invalid/').then(() => 'sent', () => 'refused')") == "refused"
        assert seen.value("window.pwned === undefined")
        assert seen.refused == ["https://example.invalid/x.png: csp"]
        assert any("Content Security Policy" in error for error in seen.errors)


def test_without_javascript_everything_in_words_is_there(browser: Any, failing: Path) -> None:
    with opened(browser, failing, ready=False, java_script_enabled=False) as seen:
        text = seen.page.inner_text("main")
        for words in ("the learning rate is too high", "Lower lr", "Pictures need JavaScript", "Step 40 of 120"):
            assert words.lower() in text.lower()
        assert seen.page.locator(".glance svg path").count() >= 2


def test_an_old_browser_is_told_so(browser: Any, failing: Path) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(failing.as_uri())
    page.wait_for_selector("#trouble:not([hidden])")
    assert "too old" in page.inner_text("#trouble")
    assert "Lower lr" in page.inner_text("#findings")
    context.close()


def unusual() -> list[Any]:
    """Runs with nothing, or too little, or nothing finite in them."""
    one = Synthetic(steps=1, layers=1).record()
    empty = one.rows(start=5)
    no_layers = Record(one.steps, (), one.layer_values[:, :0], one.run_values, {})
    lost = Synthetic(steps=50, layers=3)
    lost.set(rows=slice(20, None), loss=np.nan, grad_sq=np.nan, param_sq=np.inf, update_sq=0.0)
    silent = Synthetic(steps=30, layers=3).set(loss=np.nan).record()
    nothing = Record(silent.steps, silent.layers, np.full_like(silent.layer_values, np.nan), silent.run_values, {})
    huge = Synthetic(steps=30, layers=3).set(rows=slice(10, 20), grad_sq=1e300, update_sq=1e-300, loss=1e300).record()
    odd = Record(one.steps, one.layers, one.layer_values, one.run_values, {"param_groups": "no", "layer_groups": [1]})
    events = ({}, {"kind": "epoch", "step": "x", "val_loss": "y"}, {"kind": "remedy", "change": 3, "step": None})
    strange = Record(silent.steps, silent.layers, silent.layer_values, silent.run_values, {"settings": 3}, events)
    runs = {"one row": one, "empty": empty, "no layers": no_layers, "lost": lost.record(), "no loss": silent}
    runs |= {"nothing defined": nothing, "huge": huge, "odd meta": odd, "strange events": strange}
    return [pytest.param(record, id=name) for name, record in runs.items()]


@pytest.mark.parametrize("record", unusual())
def test_unusual_runs_have_a_page(browser: Any, tmp_path: Path, record: Record) -> None:
    path = write_html(record, tmp_path / "page.html", findings=[])
    with opened(browser, path, ready=bool(len(record) and record.layers)) as seen:
        assert seen.page.inner_text("h1")
        seen.is_clean()


def test_what_is_not_finite_is_seen(browser: Any, tmp_path: Path) -> None:
    run = Synthetic(steps=50, layers=3)
    run.set(rows=slice(20, None), grad_sq=np.nan, loss=np.nan)
    with opened(browser, write_html(run.record(), tmp_path / "lost.html", findings=[])) as seen:
        seen.page.select_option("#quantity", label="Gradient norm (‖g‖)")
        assert "not finite" in seen.page.inner_text("#key")
        marked = seen.value("document.getElementById('plot-heat').data[1].z.map(r => r.filter(v => v === 1).length)")
        assert marked == [30, 30, 30]
        assert "30 rows without a finite loss, the first at step 21" in seen.page.inner_text("#caption-loss")
        seen.is_clean()


def test_many_layers_are_grouped_by_block(browser: Any, tmp_path: Path) -> None:
    plain = Synthetic(steps=40, layers=200).record()
    layers = tuple(LayerInfo(f"model.layers.{i // 10}.part{i % 10}", "mlp", 10, i) for i in range(200))
    record = Record(plain.steps, layers, plain.layer_values, plain.run_values, dict(plain.meta))
    assert record.layer_values.shape[2] == len(LAYER_COLUMNS)
    with opened(browser, write_html(record, tmp_path / "wide.html", findings=[])) as seen:
        rows = "document.getElementById('plot-heat').data[0].z.length"
        assert seen.value(rows) == 200
        ticks = seen.value("document.getElementById('plot-heat').layout.yaxis.ticktext")
        assert ticks[0] == "model.layers.0"
        assert len(ticks) == 20
        seen.page.select_option("#group", label="model.layers.7 (10)")
        assert seen.value(rows) == 10
        assert seen.value("document.getElementById('plot-heat').layout.yaxis.ticktext")[3] == "model.layers.7.part3"
        seen.is_clean()
