"""The HTML report without a browser: what is left out and said, texts that stay texts, sizes, verdicts, the command."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from html_pages import HOSTILE, finding, grown, noisy, renamed
from synthetic import Synthetic

pytest.importorskip("jinja2", reason="the extra html is not installed")
pytest.importorskip("plotly", reason="the extra html is not installed")

from thermoclaw import Observer, cli, diagnose
from thermoclaw.diagnosis.finding import Finding
from thermoclaw.record import LayerInfo, Record
from thermoclaw.report.facts import run_facts
from thermoclaw.report.html import reduce, render_html, tables, words, write_html
from thermoclaw.report.html.groups import groups_of
from thermoclaw.report.html.needs import asset
from thermoclaw.report.html.quantities import SHOWN, Scale, of_finding
from thermoclaw.report.series import make_bins

LOG = next(shown for shown in SHOWN if shown.name == "grad_norm")


class Elements(HTMLParser):
    """Tags with the names of their attributes, and what the interesting ones hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.held: dict[str, str] = {}
        self.scripts: list[str] = []
        self._open: tuple[str, str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.tags.append(tag + "".join(f" {name}" for name, _ in sorted(attrs)))
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action", "srcset", "data")]
        if tag == "script":
            self._open = (tag, told.get("id") or "")
        if told.get("http-equiv") == "Content-Security-Policy":
            self.held["policy"] = told["content"] or ""

    def handle_data(self, data: str) -> None:
        if self._open:
            if self._open[1]:
                self.held[self._open[1]] = data
            else:
                self.scripts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._open = None


def data_of(text: str) -> tuple[dict[str, Any], bytes]:
    """The page's own data."""
    held = Elements(text).held
    return json.loads(held["data"]), gzip.decompress(base64.b64decode(held["numbers"]))


def array(data: bytes, place: dict[str, Any]) -> np.ndarray:
    kind = {"u2": "<u2", "f4": "<f4", "f8": "<f8"}[place["kind"]]
    return np.frombuffer(data, dtype=kind, count=place["length"], offset=place["at"])


# -- what is left out --------------------------------------------------------------------------------------------------


def made(values: np.ndarray, bins: int = 100) -> reduce.Map:
    return reduce.make_map(values, make_bins(np.arange(1.0, len(values) + 1), bins), LOG, Scale("log"))


def test_one_step_in_ten_thousand_is_still_seen() -> None:
    values = np.exp(0.1 * np.random.default_rng(0).standard_normal((10_000, 3)))
    values[5_432, 1], values[777, 2] = 1e4, 1e-4
    found = made(values)
    assert found.far is not None
    assert found.far[54, 1] == pytest.approx(4)
    assert found.far[7, 2] == pytest.approx(-4)
    assert np.abs(found.far[:, 0]).max() < 0.3
    assert found.usual[54, 1] == pytest.approx(0.04, abs=0.02)  # a hundredth of it, in a mean of logarithms


def test_a_cell_shows_the_mean_of_its_steps() -> None:
    values = np.exp(np.random.default_rng(0).standard_normal((1_000, 2)))
    found = made(values)
    np.testing.assert_allclose(found.usual, np.log10(values).reshape(100, 10, 2).mean(axis=1))


def test_a_short_run_is_shown_as_it_is() -> None:
    values = np.exp(np.random.default_rng(0).standard_normal((40, 2)))
    found = made(values)
    assert found.far is None
    np.testing.assert_allclose(found.usual, np.log10(values))


@pytest.mark.parametrize("rows", [40, 4_000])
def test_what_is_not_a_number_is_marked(rows: int) -> None:
    values = np.ones((rows, 4))
    tenth = slice(rows // 2, rows // 2 + rows // 10)
    values[rows // 2, 0] = np.inf  # one step
    values[rows // 2, 1] = np.nan  # of a quantity that always has a value
    values[tenth, 2] = 0.0
    found = made(values, bins=40)
    at = 20
    assert found.flags[at].tolist() == [reduce.NOT_FINITE, reduce.NOT_FINITE, reduce.NOT_POSITIVE, reduce.FIRST_CODE]
    assert (found.flags[:at] == reduce.FIRST_CODE).all()
    ratio = next(shown for shown in SHOWN if shown.name == "r")
    bins = make_bins(np.arange(1.0, rows + 1), 40)
    values[tenth, 3] = np.nan
    assert reduce.make_map(values, bins, ratio, Scale("log")).flags[at, 3] == reduce.UNDEFINED


@pytest.mark.parametrize("rows", [40, 400])
def test_what_is_looked_at_seldom_is_shown_until_the_next_look(rows: int) -> None:
    values = np.full((rows, 3), np.nan)
    every = rows // 10
    values[2::every, 0] = np.linspace(0.0, 1.0, len(values[2::every]))
    values[2 : rows // 2 : every, 1] = 0.5  # the layer is gone in the second half
    dead = next(shown for shown in SHOWN if shown.name == "dead_rows")
    bins = make_bins(np.arange(1.0, rows + 1), 40)
    found = reduce.make_map(values, bins, dead, Scale("linear"))
    first = int(np.argmax(found.flags[:, 0]))
    assert (found.flags[first:, 0] == reduce.FIRST_CODE).all()
    assert (found.flags[:first, 0] == reduce.UNDEFINED).all()
    assert (np.diff(found.usual[first:, 0]) >= 0).all()
    assert found.flags[15, 1] == reduce.FIRST_CODE
    assert (found.flags[25:, 1] == reduce.UNDEFINED).all()
    assert (found.flags[:, 2] == reduce.UNDEFINED).all()


def test_codes_give_back_what_they_were_made_of() -> None:
    places = np.random.default_rng(0).uniform(-6, 3, size=(50, 4))
    flags = np.full(places.shape, reduce.FIRST_CODE)
    flags[3, 1] = reduce.NOT_FINITE
    low, high = reduce.ends(places)
    found = reduce.codes(places, flags, low, high)
    assert found.dtype == np.uint16
    assert found[3, 1] == reduce.NOT_FINITE
    back = low + (high - low) * (found.astype(float) - reduce.FIRST_CODE) / (reduce.LAST_CODE - reduce.FIRST_CODE)
    keep = flags == reduce.FIRST_CODE
    assert np.abs(back - places)[keep].max() < 1e-4


def test_layers_that_findings_name_are_never_left_out() -> None:
    plain = Synthetic(steps=2, layers=2_000).record()
    rows = reduce.rows_of(plain, ["blocks.1234.fc", "blocks.7.fc"])
    assert len(rows) == reduce.MAX_LAYERS
    assert {7, 1234} <= set(rows)
    assert rows == sorted(set(rows))
    assert np.diff(rows).max() <= 5


def test_the_page_says_what_it_left_out() -> None:
    text = render_html(Synthetic(steps=700, layers=800).record(), findings=[])
    assert "Of 800 layers 750 are shown" in text
    assert re.search(r"a column gathers up to 1\d recorded steps", text)
    short = render_html(Synthetic(steps=50, layers=3).record(), findings=[])
    assert "a column is a recorded step" in short
    assert "are shown" not in short


def test_the_loss_keeps_its_extremes() -> None:
    run = Synthetic(steps=20_000, layers=1)
    run.loss[12_345] = 99.0
    data, numbers = data_of(render_html(run.record(), findings=[]))
    x, y = array(numbers, data["loss"]["x"]), array(numbers, data["loss"]["y"])
    assert len(x) <= 2_400
    assert y.max() == 99.0
    assert x[y.argmax()] == 12_346
    assert data["loss"]["thinned"] is True


def test_the_numbers_of_the_page_are_those_of_the_record() -> None:
    record = grown()
    data, numbers = data_of(render_html(record, findings=[]))
    quantity = next(q for q in data["quantities"] if q["name"] == "update_ratio")
    code = array(numbers, quantity["usual"]).reshape(12, 120).astype(float)
    low, high = quantity["ends"]
    value = 10 ** (low + (high - low) * (code - 3) / 65532)
    np.testing.assert_allclose(value, record["update_ratio"].T, rtol=1e-3)
    shares = [array(numbers, part["share"]) for part in data["split"]["parts"]]
    np.testing.assert_allclose(np.sum(shares, axis=0), 100.0, rtol=1e-5)
    np.testing.assert_allclose(shares[0], 100 * record["d_eS"].sum(axis=1) / record["sigma"].sum(axis=1), rtol=1e-4)


# -- size --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_thousand_steps_of_two_hundred_layers_fit_in_8_mb() -> None:
    """Of noise in every quantity, which compresses worst."""
    assert len(render_html(noisy(10_000, 200), findings=[])) < 8e6


def test_many_layers_cost_no_more_than_few() -> None:
    wide = len(render_html(noisy(300, 1_500), findings=[]))
    assert wide < 8e6


# -- texts that stay texts ---------------------------------------------------------------------------------------------


def page(names: tuple[str, ...], title: str, word: str) -> str:
    plain = Synthetic(steps=12, layers=len(HOSTILE)).record()
    record = renamed(
        plain,
        names,
        ltype=word,
        meta={"optimizer": word, "note": word, "devices": [word], "settings": {"mode": word}},
        events=({"kind": word, "step": 3, "what": word}, {"kind": "alarm", "step": 4, "finding": {"title": word}}),
    )
    told = finding(record, layers=tuple(record.layer_names), title=word, seen=word, meaning=word, advice=word)
    return render_html(record, findings=[told], title=title)


@pytest.mark.parametrize("word", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_becomes_an_element(word: str) -> None:
    tame = tuple(f"a.{i}" if name else "" for i, name in enumerate(HOSTILE))
    hostile, plain = Elements(page(HOSTILE, word, word)), Elements(page(tame, "tame", "tame" if word else ""))
    assert hostile.tags == plain.tags
    assert hostile.links == plain.links
    assert not set("<>&") & set(hostile.held["data"])  # no script element can be left through its own text
    assert len(hostile.scripts) == 1


def test_the_page_links_to_nothing_outside() -> None:
    text = render_html(grown(), findings=[finding(grown())])
    found = Elements(text)
    assert all(link.startswith("#") for link in found.links)
    assert found.links
    assert "url(" not in asset("page.css")
    assert "@import" not in asset("page.css")


def test_only_the_scripts_of_the_page_may_run() -> None:
    found = Elements(render_html(grown(), findings=[]))
    (script,) = found.scripts
    plotly = gzip.decompress(base64.b64decode(found.held["plotly"]))
    sums = [base64.b64encode(hashlib.sha256(part).digest()).decode() for part in (script.encode(), plotly)]
    policy = dict(part.strip().split(" ", 1) for part in found.held["policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == " ".join(f"'sha256-{s}'" for s in sums)
    assert policy["img-src"] == "data:"
    assert "<!--" not in script
    assert "innerHTML" not in script


def test_names_lose_their_middle_and_keep_their_ends() -> None:
    name = "first." + "x" * 10_000 + ".last"
    record = renamed(Synthetic(steps=5, layers=2).record(), (name,))
    text = render_html(record, findings=[finding(record, layers=(name,))])
    assert "x" * 500 not in text
    assert re.search(r">first\.x+…x+\.last<", text)


# -- contrast ----------------------------------------------------------------------------------------------------------


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1, 2, 3], ids=["light", "dark by itself", "dark by choice", "paper"])
def test_texts_stand_out_from_what_is_behind_them(theme: int) -> None:
    blocks = re.findall(r"\{([^{}]*--bg:[^{}]*)\}", asset("page.css"))
    assert len(blocks) == 4
    colors = dict(re.findall(r"--([\w-]+):\s*(#\w{3,6})", blocks[theme]))
    colors = {n: c if len(c) == 7 else "#" + "".join(2 * letter for letter in c[1:]) for n, c in colors.items()}

    def contrast(one: str, other: str) -> float:
        high, low = sorted((luminance(colors[one]), luminance(colors[other])), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for ink in ("ink", "soft", "accent", "high", "medium", "low", "good"):
        for back in ("bg", "surface", "sunk"):
            assert contrast(ink, back) >= 4.5, (ink, back)
    for tone in ("high", "medium", "low", "good"):
        assert contrast("on-badge", tone) >= 4.5, tone


def test_both_ways_to_dark_are_the_same() -> None:
    blocks = re.findall(r"\{([^{}]*--bg:[^{}]*)\}", asset("page.css"))
    assert blocks[1].split() == blocks[2].split()


# -- the verdict -------------------------------------------------------------------------------------------------------


def verdict(findings: list[Finding], record: Record | None = None) -> words.Verdict:
    return words.verdict(grown() if record is None else record, findings)


def test_a_failing_run_says_what_where_since_when_and_what_to_do() -> None:
    record = grown()
    found = verdict([finding(record), finding(record, confidence="MEDIUM", first_step=20, layers=("blocks.7.fc",))])
    assert found.state == "bad"
    assert found.headline == "The learning rate is too high, and 1 more finding to act on"
    assert found.where == "4 mlp layers (blocks, blocks 2 to 4, 7)"
    assert found.since == "Step 20 of 120, certain by step 48"
    assert found.action == "Lower lr from 0.1 to 0.01. Then go on."


def test_verdicts_by_what_was_found() -> None:
    record = grown()
    assert verdict([]).state == "good"
    assert verdict([finding(record, confidence="LOW")]).state == "good"
    assert "1 note" in verdict([finding(record, confidence="LOW")]).headline
    assert verdict([finding(record, confidence="MEDIUM")]).state == "doubtful"
    assert verdict([finding(record, layers=())]).where == "The whole run"
    assert verdict([], record.rows(start=10_000)).state == "unknown"
    stopped = Synthetic(steps=9).record(failed=True)
    assert verdict([], stopped).state == "unknown"
    assert "stopped early" in verdict([], stopped).headline


def test_all_reports_give_the_same_ends_of_the_loss() -> None:
    run = Synthetic(300, 3)
    run.loss = np.where(np.arange(300) % 7 == 5, 9.0, np.linspace(5.0, 1.0, 300))  # 300 rows are smoothed when drawn
    run.loss[0] = np.nan
    record = run.record()
    ends = f"loss {run.loss[1]:.3g} → {run.loss[-1]:.3g}"
    assert run_facts(record).endswith(ends)
    assert ends in record._repr_html_()
    assert f"loss {run.loss[1]:.4g} → {run.loss[-1]:.4g}" in diagnose(record).summary


def test_the_rules_are_asked_unless_findings_are_given() -> None:
    run = Synthetic(steps=200, layers=4)
    run.set(rows=slice(100, None), grad_sq=np.nan, param_sq=np.nan, loss=np.nan)
    assert "non_finite" in render_html(run.record())
    assert "non_finite" not in render_html(run.record(), findings=[])


def test_every_code_leads_to_a_quantity_that_is_shown() -> None:
    from thermoclaw.diagnosis.rules import RULES

    names = {shown.name for shown in SHOWN}
    assert {of_finding(rule.code) for rule in RULES} <= names
    assert of_finding("weight_decay_too_high") == "param_growth"


def test_findings_are_numbered_in_the_table_of_layers() -> None:
    record = grown()
    heads, rows = tables.layer_table(record, [finding(record), finding(record, layers=(record.layer_names[4],))])
    assert heads[-1] == "findings"
    assert [row[-1] for row in rows[1:6]] == ["", "1", "1", "1, 2", ""]
    assert rows[0][0] == "blocks.0.fc"


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["0", "2", "4"], []),
        (["a", "b"], []),
        ([f"h.{i}.{part}" for i in range(3) for part in "ab"], ["h.0", "h.1", "h.2"]),
        (["e", *(f"h.{i}.{part}" for i in range(2) for part in "abc"), "n", "o", "p"], ["e", "h.0", "h.1", "n … p"]),
    ],
)
def test_layers_are_grouped_as_a_model_is_built(names: list[str], labels: list[str]) -> None:
    found = groups_of(names)
    assert [group.label for group in found] == labels
    assert not found or sum(group.count for group in found) == len(names)


# -- files and the command ---------------------------------------------------------------------------------------------


def test_the_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = grown()
    assert write_html(record, tmp_path / "deep" / "page", findings=[]).name == "page.html"
    with pytest.raises(OSError, match="it is a folder"):
        write_html(record, tmp_path)
    with pytest.raises(TypeError, match=r"pass observer.record\(\)"):
        write_html("run.npz", tmp_path / "x.html")  # type: ignore[arg-type]
    monkeypatch.setattr("thermoclaw.report.html.page.render_html", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_html(record, tmp_path / "broken.html")
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_the_same_record_gives_the_same_page() -> None:
    assert render_html(grown(), findings=[]) == render_html(grown(), findings=[])


def test_the_command_writes_the_page_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = grown().save(tmp_path / "my run.npz")
    out = tmp_path / "page.html"
    assert cli.main(["report", str(record), "-o", str(out)]) == 0
    assert f"Written to {out}" in capsys.readouterr().out
    assert "<title>" in out.read_text(encoding="utf-8")
    assert ": my run</title>" in out.read_text(encoding="utf-8")
    assert cli.main(["report", str(record), "-o", str(out), "--title", "<b>", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == str(out)
    assert isinstance(told["healthy"], bool)
    assert ": &lt;b&gt;</title>" in out.read_text(encoding="utf-8")


def test_the_command_reads_a_run_that_still_grows(tmp_path: Path) -> None:
    import torch

    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer = Observer(model, optimizer, run_dir=tmp_path / "run")
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).square().mean()
        loss.backward()
        optimizer.step()
        observer.step(loss=loss)
    observer.close()
    assert cli.main(["report", str(tmp_path / "run"), "-o", str(tmp_path / "page.html")]) == 0
    assert observer.report_html(tmp_path / "same.html").stat().st_size > 1e6


def test_a_run_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path / "no.npz"), "-o", str(tmp_path / "x.html")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "no.npz" in err
    assert not (tmp_path / "x.html").exists()


def test_without_the_extra_the_message_names_it(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['plotly'] = None\n"
        "from thermoclaw import cli\n"
        f"sys.exit(cli.main(['report', {str(grown().save(tmp_path / 'r.npz'))!r}, '-o', {str(tmp_path / 'p.html')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'thermoclaw[html]'" in done.stderr


def test_layer_infos_of_any_kind_have_a_row() -> None:
    record = Synthetic(steps=5, layers=2).record()
    odd = Record(record.steps, (LayerInfo("", "", 0), LayerInfo("a", "b", 1)), record.layer_values, record.run_values)
    assert tables.layer_table(odd, [])[1][0][0] == "(unnamed)"
    assert "(unnamed)" in render_html(odd, findings=[])
