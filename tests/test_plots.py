"""The pictures: what is on them, that nothing overlaps, that no window opens, and that odd records draw too.

Legend: T recorded steps, L layers.
"""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

import thermoclaw.report
from thermoclaw.markup import thin
from thermoclaw.quantities import EQUILIBRIUM_BAND, LAYER_COLUMNS, RUN_COLUMNS, TABLE
from thermoclaw.record import LayerInfo, Record
from thermoclaw.report import panels, series, style
from thermoclaw.report.lettering import clean, short_names, text_width
from thermoclaw.report.plots import compare, plot_dashboard, plot_entropy_split
from thermoclaw.wording import number

GPT = (
    LayerInfo("transformer.wte", "embedding", 3200),
    LayerInfo("transformer.h.0.ln_1", "layernorm", 128),
    LayerInfo("transformer.h.0.attn.c_attn", "attention", 12288),
    LayerInfo("transformer.h.0.mlp.c_fc", "mlp", 16384),
    LayerInfo("lm_head", "lm_head", 3200),
)
HOSTILE = (
    "w$_1$<b>&\x00\x07",
    "日本語レイヤ.attn",
    "a" * 300,
    "$\\frac{1}{2}$",
    "back\\slash\\$",
    "new\nline\ttab",
    "🙂.mlp",
    "\u202eevil",
    "",
    "model.layers.0.self_attn.q_proj",
    "x^2^3_",
)


@dataclass
class Finding:
    """The four attributes that a picture reads."""

    code: str
    confidence: str
    first_step: float | None
    title: str


def make_record(
    num_steps: int = 60, layers: tuple[LayerInfo, ...] = GPT, *, seed: int = 0, collapse: int | None = None
) -> Record:
    """A run as training makes them: warm-up and cosine, falling gradients, noise; decay takes over at `collapse`."""
    rng = np.random.default_rng(seed)
    shape = (num_steps, len(layers))
    t = np.arange(num_steps)[:, None]
    x = t / max(num_steps - 1, 1)
    late = np.clip((t - (np.inf if collapse is None else collapse)) / max(0.2 * num_steps, 1), 0, 1)
    lr = 1e-3 * np.minimum(1, (t + 1) / max(0.1 * num_steps, 1)) * (0.05 + 0.95 * np.cos(np.pi * x / 2) ** 2)
    grad_sq = rng.lognormal(0, 0.5, len(layers)) * np.exp(-2 * x - 3 * late) * rng.lognormal(0, 0.2, shape)
    smoothed = np.array([grad_sq[max(0, i - 9) : i + 1].mean(axis=0) for i in range(num_steps)]).reshape(shape)
    along = np.clip(0.6 + 0.05 * rng.normal(size=shape), 0.1, 1)
    column = {
        "grad_sq": grad_sq,
        "grad_sq_smooth": smoothed,
        "grad_sq_baseline": np.array([np.median(smoothed[: i + 1], axis=0) for i in range(num_steps)]).reshape(shape),
        "param_sq": 100 * np.exp(-2 * late) * np.ones(shape),
        "update_sq": lr**2 * rng.lognormal(0, 0.2, shape),
        "distance": np.cumsum(lr**2 * np.ones(shape), axis=0),
        "coherence": np.clip(0.3 * (1 - x) + rng.normal(0, 0.1, shape), -1, 1),
        "lr": lr * np.ones(shape),
        "sigma": lr * grad_sq,
        "d_iS_momentum": lr * grad_sq * (1 - along),
        "d_iS_wd": lr * grad_sq * along * 0.6 * late,
        "d_iS_noise": lr * grad_sq * along * 0.2,
        "weight_decay": np.full(shape, 0.1),
        "momentum": np.full(shape, 0.9),
        "has_grad": np.ones(shape),
    }
    run = {"loss": (2 + 8 * np.exp(-4 * x) + 4 * late + rng.normal(0, 0.1, t.shape))[:, 0]}
    undefined = np.full(shape, np.nan)
    return Record(
        t[:, 0] + 1.0,
        layers,
        np.stack([column.get(name, undefined) for name in LAYER_COLUMNS], axis=-1),
        np.stack([run.get(name, np.zeros(num_steps)) for name in RUN_COLUMNS], axis=-1),
        {"optimizer": "AdamW"},
    )


def changed(record: Record, **columns: Any) -> Record:
    """The record with some stored columns replaced, by a value or by a function of the old column."""
    layer_values, run_values = record.layer_values.copy(), record.run_values.copy()
    for name, new in columns.items():
        values, place = (layer_values, LAYER_COLUMNS) if name in LAYER_COLUMNS else (run_values, RUN_COLUMNS)
        old = values[..., place.index(name)]
        values[..., place.index(name)] = new(old) if callable(new) else new
    return Record(record.steps, record.layers, layer_values, run_values, dict(record.meta))


def after(step: int, value: float) -> Callable[[Any], Any]:
    """A column that takes a value after so many rows."""

    def replace(old: Any) -> Any:
        new = old.copy()
        new[step:] = value
        return new

    return replace


def layers_named(*names: str) -> tuple[LayerInfo, ...]:
    types = ("embedding", "attention", "mlp", "layernorm", "lm_head", "generic", "conv$x$", "r_n_n", "🙂")
    return tuple(LayerInfo(name, types[i % len(types)], 10) for i, name in enumerate(names))


MANY = tuple(
    LayerInfo(f"transformer.h.{i // 4}.{part}", ltype, 1000)
    for i in range(200)
    for part, ltype in [
        (("ln_1", "attn.c_attn", "mlp.c_fc", "mlp.c_proj")[i % 4], ("layernorm", "attention", "mlp")[i % 3])
    ]
)
EVERYTHING_UNDEFINED = dict.fromkeys((*LAYER_COLUMNS, *RUN_COLUMNS), np.nan)

CASES: dict[str, Callable[[], Record]] = {
    "usual": make_record,
    "collapse": lambda: make_record(120, collapse=50),
    "one layer": lambda: make_record(40, layers_named("(root)")),
    "two hundred layers": lambda: make_record(30, MANY),
    "one step": lambda: make_record(1),
    "three steps": lambda: make_record(3),
    "ten thousand steps": lambda: make_record(10_000, layers_named("fc1", "fc2")),
    "no step": lambda: make_record(10).rows(1000),
    "hostile names": lambda: make_record(30, layers_named(*HOSTILE)),
    "nothing defined": lambda: changed(make_record(10), **EVERYTHING_UNDEFINED),
    "no loss": lambda: changed(make_record(), loss=np.nan),
    "loss turns NaN": lambda: changed(make_record(), loss=after(40, np.nan), grad_sq=after(40, np.nan)),
    "loss turns infinite": lambda: changed(make_record(), loss=after(40, np.inf), sigma=after(40, np.inf)),
    "loss is infinite": lambda: changed(make_record(), loss=np.inf),
    "loss now and then": lambda: changed(make_record(), loss=lambda v: np.where(np.arange(len(v)) % 7, np.nan, v)),
    "loss explodes": lambda: changed(make_record(), loss=lambda v: v * 10.0 ** np.linspace(0, 30, len(v))),
    "loss below zero": lambda: changed(make_record(), loss=lambda v: -v * 10.0 ** np.linspace(0, 9, len(v))),
    "loss constant": lambda: changed(make_record(), loss=0.0),
    "plain gradient descent": lambda: changed(make_record(), d_iS_wd=0.0, d_iS_momentum=0.0, d_iS_noise=0.0),
    "all overhead": lambda: changed(make_record(), d_iS_momentum=make_record()["sigma"], d_iS_noise=0.0),
    "frozen": lambda: changed(make_record(), update_sq=0.0, distance=0.0, grad_sq=0.0, sigma=0.0, d_iS_momentum=0.0),
    "huge": lambda: changed(make_record(), grad_sq_smooth=lambda v: v * 10.0 ** np.linspace(-60, 60, len(v))[:, None]),
    "rates apart": lambda: changed(make_record(), lr=lambda v: v * np.array([1, 1, 1e-4, 1, 0])),
    "rate zero": lambda: changed(make_record(), lr=0.0, sigma=0.0),
}  # fmt: skip

PICTURES: dict[str, Callable[..., Any]] = {
    "dashboard": lambda record, **kw: plot_dashboard(
        record, findings=[Finding("x", "HIGH", 20, "Something fails"), Finding("y", "LOW", None, "And more")], **kw
    ),
    "entropy split": plot_entropy_split,
    "comparison": lambda record, **kw: compare([record, make_record(50), record], **kw).figure,
}


def texts(figure: Any) -> list[str]:
    """Every text of a figure as a reader sees it."""
    return [text.get_text().replace(r"\$", "$") for text in figure.findobj(Text) if text.get_visible()]


def shown_texts(figure: Any) -> Iterator[tuple[str, Any]]:
    """The texts that a drawn figure shows, with their boxes in pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    hidden = set()
    for ax in figure.findobj(matplotlib.axes.Axes):
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            margin = 1e-6 * (high - low)
            for tick in axis.get_major_ticks() + axis.get_minor_ticks():
                if not (ax.axison and low - margin <= tick.get_loc() <= high + margin and tick.label1.get_visible()):
                    hidden.add(tick.label1)
                hidden.add(tick.label2)
            hidden.add(axis.offsetText)
            if not ax.axison:
                hidden.add(axis.label)
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and text not in hidden:
            yield text.get_text(), text.get_window_extent(renderer)


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """No test may leave a pyplot figure, another backend, or other settings."""
    before, backend, settings = plt.get_fignums(), plt.get_backend(), dict(matplotlib.rcParams)
    yield
    assert plt.get_fignums() == before
    assert plt.get_backend() == backend
    assert dict(matplotlib.rcParams) == settings


def png_size(path: Path) -> tuple[int, int]:
    """Width and height from the head of a PNG file."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[-8:-4] == b"IEND"
    return struct.unpack(">II", data[16:24])


# -- every picture of every record -------------------------------------------------------------------------------------


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("case", CASES)
def test_every_record_draws_without_overlapping_text(case: str, picture: str) -> None:
    figure = PICTURES[picture](CASES[case](), show=False)
    page = figure.bbox.padded(0.5)
    boxes = list(shown_texts(figure))
    assert len(boxes) > 10
    for text, box in boxes:
        assert page.contains(box.x0, box.y0), f"off page: {text}"
        assert page.contains(box.x1, box.y1), f"off page: {text}"
    corners = np.array([box.extents for _, box in boxes])
    low = np.maximum(corners[:, None, :2], corners[None, :, :2])
    high = np.minimum(corners[:, None, 2:], corners[None, :, 2:])
    over = np.argwhere(np.triu(((high - low) > (1.0, 1.5)).all(axis=2), k=1))
    assert [(boxes[i][0], boxes[j][0]) for i, j in over] == []


def test_what_is_not_there_is_said() -> None:
    undefined = CASES["nothing defined"]()
    assert texts(plot_dashboard(undefined, show=False)).count("no data") == 9
    assert "no loss was given" in texts(plot_dashboard(undefined, show=False))
    assert texts(plot_entropy_split(undefined, show=False)).count("no data") == 5
    assert "the loss was never finite" in texts(plot_dashboard(CASES["loss is infinite"](), show=False))
    assert "no finite loss from step 41" in texts(plot_dashboard(CASES["loss turns NaN"](), show=False))
    assert not any("no finite loss" in text for text in texts(plot_dashboard(CASES["loss now and then"](), show=False)))
    assert "one layer: nothing to compare" in texts(plot_dashboard(CASES["one layer"](), show=False))
    assert texts(plot_dashboard(CASES["frozen"](), show=False)).count("nothing moves") == 2


# -- the dashboard -----------------------------------------------------------------------------------------------------


def vertical_lines(ax: Any, step: float) -> list[Any]:
    return [line for line in ax.lines if len(line.get_xdata()) == 2 and set(line.get_xdata()) == {step}]


def time_panels(figure: Any, record: Record) -> list[Any]:
    return [ax for ax in figure.axes if ax.get_xlim() == (record.steps[0] - 0.5, record.steps[-1] + 0.5)]


def test_findings_are_named_and_marked_in_all_panels() -> None:
    record = make_record(60)
    findings = [
        Finding("weight_decay_too_high", "HIGH", 12, "Decay erodes 4 layers"),
        Finding("plateau", "MEDIUM", 40, "The loss stands still"),
        Finding("preflight", "LOW", None, "The step is small"),
    ]
    figure = plot_dashboard(record, findings=findings, show=False)
    every = time_panels(figure, record)
    assert len(every) == 10
    for ax in every:
        assert [line.get_linestyle() for line in vertical_lines(ax, 12.0)] == ["-"]
        assert len(vertical_lines(ax, 40.0)) == 1
    said = texts(figure)
    assert {"HIGH", "MEDIUM", "LOW", "from step 12", "from step 40", "whole run"} <= set(said)
    assert {finding.title for finding in findings} <= set(said)
    assert "3 findings, the first from step 12" in said
    numbered = [text.get_text() for text in figure.findobj(Text) if text.get_bbox_patch() is not None]
    assert sorted(numbered) == ["1", "1", "1", "2", "2", "2", "3"]  # in the strip, and above both columns


def test_findings_at_the_same_step_share_a_box_in_the_surest_color() -> None:
    findings = [Finding("a", level, 30 + i / 10, "x") for i, level in enumerate(("LOW", "HIGH", "MEDIUM", "LOW"))]
    figure = plot_dashboard(make_record(60), findings=findings, show=False)
    boxes = [text for text in figure.findobj(Text) if text.get_text() == "1–4"]
    assert len(boxes) == 2
    assert boxes[0].get_bbox_patch().get_facecolor() == matplotlib.colors.to_rgba(style.CONFIDENCE["HIGH"][0])


def test_many_findings_are_counted_and_long_ones_cut() -> None:
    findings = [Finding("a", "odd", 5, f"number {i} " + "goes on " * 40) for i in range(11)]
    said = texts(plot_dashboard(make_record(20), findings=findings, show=False))
    assert "and 3 more in the report" in said
    assert sum(text.startswith("number ") and text.endswith("…") for text in said) == 8


def test_a_finding_outside_the_record_is_listed_but_not_drawn() -> None:
    figure = plot_dashboard(make_record(20), findings=[Finding("a", "HIGH", 500, "Later")], show=False)
    assert "Later" in texts(figure)
    assert not any(vertical_lines(ax, 500.0) for ax in figure.axes)


def test_the_title_tells_a_clean_bill_from_no_diagnosis() -> None:
    record = make_record(10)
    assert "No findings" in texts(plot_dashboard(record, findings=[], show=False))
    unknown = texts(plot_dashboard(record, show=False))
    assert "Training run" in unknown
    assert "No findings" not in unknown
    assert "mine $x$ _a" in texts(plot_dashboard(record, title="mine $x$\n_a", show=False))


def test_real_findings_fit() -> None:
    from thermoclaw.diagnosis.finding import Finding as RealFinding

    finding = RealFinding(
        code="plateau",
        confidence="MEDIUM",
        title="The loss stands still",
        seen="s",
        meaning="m",
        advice="a",
        source="s",
        first_step=7,
        raised_step=9,
    )
    assert "from step 7" in texts(plot_dashboard(make_record(20), findings=[finding], show=False))


def test_map_shows_every_layer_at_every_step() -> None:
    record = changed(make_record(20), grad_sq_smooth=2.0, grad_sq_baseline=1.0)
    figure = plot_dashboard(record, show=False)
    meshes = [m for ax in time_panels(figure, record) for m in ax.collections if hasattr(m, "norm")]
    (mesh,) = [mesh for mesh in meshes if mesh.get_array() is not None]
    assert mesh.get_array().size == len(GPT) * 20
    np.testing.assert_allclose(mesh.get_array(), 2.0, rtol=1e-12)  # exp(log 2) to rounding
    neutral = [mesh.cmap(mesh.norm(r)) for r in (1 - 0.99 * EQUILIBRIUM_BAND, 1.0, 1 + 0.99 * EQUILIBRIUM_BAND)]
    assert len(set(neutral)) == 1
    assert mesh.cmap(mesh.norm(1 + 1.01 * EQUILIBRIUM_BAND)) != neutral[0] != mesh.cmap(mesh.norm(0.84))


def test_shares_fill_the_panel_from_zero_to_one() -> None:
    record = changed(make_record(3), sigma=1.0, d_iS_momentum=0.5, d_iS_noise=0.1, d_iS_wd=0.15)
    figure = plot_dashboard(record, show=False)
    (ax,) = [ax for ax in figure.axes if ax.get_ylabel() == "share of σ"]
    tops = [area.get_paths()[0].vertices[:, 1].max() for area in ax.collections]
    np.testing.assert_allclose(tops, [0.25, 0.75, 0.85, 1.0], rtol=1e-12)
    assert ax.get_ylim() == (0, 1)


def test_a_change_of_weight_decay_is_told_with_its_step() -> None:
    said = texts(plot_dashboard(changed(make_record(20), weight_decay=after(11, 0.01)), show=False))
    assert "decay λ 0.1 → 0.01 · step 12" in said
    assert "decay λ 0.1" in texts(plot_dashboard(make_record(20), show=False))


def test_bands_are_those_of_the_table() -> None:
    def edges(name: str) -> set[float]:
        found = (re.findall(r"[−]?\d*\.?\d+", band.range) for band in TABLE[name].bands)
        return {float(end.replace("−", "-")) for ends in found for end in ends}

    assert set(panels.R_IE_BANDS) == edges("R_ie")
    assert set(panels.D_EDGES) <= edges("D")
    assert {0.85, 1.15} == edges("r") == {1 - EQUILIBRIUM_BAND, 1 + EQUILIBRIUM_BAND} <= set(panels.R_EDGES)
    assert {-0.1, 0.3} <= edges("coherence")
    assert 0.2 in edges("eq_frac")
    assert [panels.band_word("R_ie", r) for r in (0.3, 1.5, 3.0, 50.0)] == [
        "most of it is productive",
        "modest overhead",
        "overhead dominates",
        "mostly heat",
    ]
    assert panels.band_word("coherence", -0.5) == "oscillating"
    assert panels.band_word("D", 0.07) == ""


# -- the entropy split -------------------------------------------------------------------------------------------------


def test_worst_layers_come_first_with_their_share() -> None:
    worst = np.array([0.0, 0.5, 0.9, 0.2, 0.1])
    record = changed(make_record(40), sigma=1.0, d_iS_momentum=worst, d_iS_noise=0.0, d_iS_wd=0.0)
    figure = plot_entropy_split(record, show=False)
    (ax,) = [ax for ax in figure.axes if ax.get_title(loc="left") == "Worst layers by R_ie"]
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == [GPT[i].name for i in np.argsort(-worst)]
    widths = [bar.get_width() for bars in ax.containers for bar in bars]
    np.testing.assert_allclose(widths, np.sort(worst / (1 - worst))[::-1], rtol=1e-9)
    assert texts(figure).count(" 20 %") == 5
    assert "steps 31–40 · share of σ" in texts(figure)


def test_layer_types_add_up_to_one() -> None:
    figure = plot_entropy_split(make_record(40, collapse=10), show=False)
    (ax,) = [ax for ax in figure.axes if ax.get_title(loc="left") == "By layer type"]
    bars = [bar for group in ax.containers for bar in group]
    ends = np.array([bar.get_x() + bar.get_width() for bar in bars]).reshape(4, -1)
    np.testing.assert_allclose(ends[-1], 1.0, rtol=1e-12)
    assert (np.diff(ends, axis=0) > 0).all()


def test_late_rows_are_those_with_an_entropy_production() -> None:
    figure = plot_entropy_split(changed(make_record(40), sigma=after(20, np.nan)), show=False)
    assert "steps 16–20" in texts(figure)


# -- comparison --------------------------------------------------------------------------------------------------------


def test_compare_finds_where_runs_part() -> None:
    healthy, dying = make_record(200), make_record(200, collapse=100)
    result = compare([healthy, dying, make_record(200, seed=1)], labels=["a", "b $x$", "c"], show=False)
    table = result.table
    assert list(table) == ["a", "b $x$", "c"]
    assert 95 <= table["b $x$"]["parts_at"] <= 115
    assert np.isnan(table["a"]["parts_at"])
    assert np.isnan(table["c"]["parts_at"])  # another seed is noise, not another course
    assert table["a"]["steps"] == 200
    assert table["a"]["loss"] == pytest.approx(healthy.loss[-20:].mean())
    overhead, productive = dying["total_d_iS"][-20:].sum(), dying["total_d_eS"][-20:].sum()
    assert table["b $x$"]["R_ie_total"] == pytest.approx(overhead / productive)
    assert table["b $x$"]["loss"] > table["a"]["loss"] + 3
    said = texts(result.figure)
    assert {"a", "b $x$", "c", f"{table['b $x$']['parts_at']:,.0f}"} <= set(said)
    assert isinstance(result.figure, Figure)


def test_compare_labels_and_refusals() -> None:
    record = make_record(5)
    assert list(compare([record, record, record], show=False).table) == ["AdamW", "AdamW (2)", "AdamW (3)"]
    with pytest.raises(ValueError, match="2 labels for 1 records"):
        compare([record], labels=["a", "b"])
    with pytest.raises(ValueError, match="at least one record"):
        compare([])
    with pytest.raises(TypeError, match="compare draws a Record, not int"):
        compare([3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"plot_dashboard draws a Record, not str: pass observer.record\(\)"):
        plot_dashboard("run.npz")  # type: ignore[arg-type]


def test_compare_takes_many_runs_and_runs_with_other_steps() -> None:
    every = [make_record(40, seed=i) for i in range(14)]
    figure = compare(every, show=False).figure
    assert "and 2 more" in texts(figure)
    thinned = make_record(300)
    thinned = Record(thinned.steps[::3], GPT, thinned.layer_values[::3], thinned.run_values[::3])
    later = compare([make_record(300, collapse=150), thinned], show=False).table["unknown"]
    assert 140 <= later["parts_at"] <= 180


@pytest.mark.parametrize("log", [False, True])
def test_parting_is_lasting_and_beyond_noise(log: bool) -> None:
    rng = np.random.default_rng(0)
    steps = np.arange(1.0, 401.0)
    one, same = (np.exp(-steps / 200 + 0.05 * rng.normal(size=400)) for _ in range(2))
    split = same * np.where(steps > 250, 2.0, 1.0)
    visit = same * np.where((steps > 100) & (steps < 140), 2.0, 1.0)
    assert series.parting(steps, one, same, log=log) is None
    assert series.parting(steps, one, visit, log=log) is None
    found = series.parting(steps, one, split, log=log)
    assert found is not None
    assert 240 <= found <= 256
    assert series.parting(steps, one, np.where(steps > 300, np.nan, one), log=log) == pytest.approx(301, abs=6)
    assert series.parting(steps, one, np.full(400, np.nan)) is None


# -- files and windows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("picture", PICTURES)
def test_png_has_the_size_of_the_figure(picture: str, tmp_path: Path) -> None:
    figure = PICTURES[picture](make_record(5), save_path=tmp_path / "x.png")
    assert png_size(tmp_path / "x.png") == pytest.approx(figure.get_size_inches() * style.DPI, abs=1)
    assert png_size(tmp_path / "x.png")[0] == 1650


def test_formats_and_folders(tmp_path: Path) -> None:
    record = make_record(5)
    plot_dashboard(record, save_path=tmp_path / "new" / "folder" / "a.pdf")
    assert (tmp_path / "new" / "folder" / "a.pdf").read_bytes().startswith(b"%PDF")
    plot_dashboard(record, save_path=str(tmp_path / "a.svg"))
    assert "<svg" in (tmp_path / "a.svg").read_text(encoding="utf-8")
    plot_dashboard(record, save_path=tmp_path / "plain")
    png_size(tmp_path / "plain.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.svg", "new", "plain.png"]


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_a_picture_is_the_same_every_time(suffix: str, tmp_path: Path) -> None:
    record = make_record(5)
    for name in ("a", "b"):
        plot_entropy_split(record, save_path=tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_bad_paths_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = make_record(3)
    with pytest.raises(ValueError, match=r"as \.docx: choose one of \.png, \.pdf, \.svg"):
        plot_dashboard(record, save_path=tmp_path / "a.docx")
    with pytest.raises(OSError, match="it is a folder; add a file name"):
        plot_dashboard(record, save_path=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*a\.png.*choose"):
        plot_entropy_split(record, save_path=tmp_path / "file" / "a.png")

    def no_space(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", no_space)
    with pytest.raises(OSError, match=r"cannot write .*b\.png: No space left on device; choose"):
        plot_dashboard(record, save_path=tmp_path / "b.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]  # no part of a picture either


def test_the_users_settings_change_no_picture(tmp_path: Path) -> None:
    record = make_record(10, layers_named(*HOSTILE))
    plot_dashboard(record, save_path=tmp_path / "a.png")
    theirs = {"font.size": 30, "text.usetex": True, "axes.grid": False, "lines.linewidth": 9, "savefig.dpi": 20}
    with matplotlib.rc_context(theirs):
        plot_dashboard(record, save_path=tmp_path / "b.png")
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)


def test_saving_does_not_load_pyplot(tmp_path: Path) -> None:
    code = f"""
import sys, numpy as np
from thermoclaw.quantities import LAYER_COLUMNS, RUN_COLUMNS
from thermoclaw.record import LayerInfo, Record
import thermoclaw.report
assert "matplotlib" not in sys.modules
from thermoclaw.report.plots import plot_dashboard
values, run = np.full((5, 1, len(LAYER_COLUMNS)), 0.1), np.ones((5, len(RUN_COLUMNS)))
record = Record(np.arange(1, 6), (LayerInfo("fc", "mlp", 10),), values, run)
plot_dashboard(record, save_path={str(tmp_path / "a.png")!r}, show=True)
print("matplotlib.pyplot" in sys.modules)
plot_dashboard(record, show=None)
print("matplotlib.pyplot" in sys.modules)
"""
    done = run_python(code)
    assert done.stdout.split() == ["False", "True"], done.stderr  # the second shows that the first could fail


def test_missing_matplotlib_names_the_extra() -> None:
    done = run_python("import sys; sys.modules['matplotlib'] = None; import thermoclaw.report.plots")
    assert done.returncode == 1
    assert "ImportError: drawing needs matplotlib: pip install 'thermoclaw[viz]'" in done.stderr


def test_one_module_imports_matplotlib() -> None:
    folder = Path(thermoclaw.report.__file__).parent
    importing = [p.name for p in folder.glob("*.py") if re.search(r"^\s*(import|from) matplotlib", p.read_text(), re.M)]
    assert importing == ["style.py"]


def test_without_a_display_a_wish_for_a_window_is_a_warning() -> None:
    record = make_record(3)
    with pytest.warns(UserWarning, match="pass save_path= to write a file") as caught:
        figure = plot_dashboard(record, show=True)
    assert Path(caught[0].filename) == Path(__file__)
    assert isinstance(figure, Figure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_dashboard(record)  # a window by default, but only where one can open


@pytest.mark.parametrize("picture", PICTURES)
def test_a_window_is_opened_only_when_it_may(picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[int]] = []
    monkeypatch.setattr(plt, "get_backend", lambda: "qtagg")
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.get_fignums()))
    record = make_record(3)
    PICTURES[picture](record, show=False)
    PICTURES[picture](record, show=True, save_path=tmp_path / "a.png")
    assert shown == []
    for show in (True, None):
        figure = PICTURES[picture](record, show=show)
        assert shown.pop() == [figure.number]
        plt.close(figure)
    monkeypatch.undo()


# -- numbers and names -------------------------------------------------------------------------------------------------


def test_names_are_safe_and_fit() -> None:
    assert clean("a$b$") == r"a\$b\$"
    assert clean("a\x00b\u202e") == "a·b·"
    assert clean(" a\n\tb ") == "a b"
    assert clean("日x") == "·x"
    long = clean("transformer.h.11.attn.c_attn", width=80, size=8)
    assert long.startswith("tr")
    assert long.endswith("c_attn")
    assert "…" in long
    assert text_width(long, 8) <= 80
    assert clean("a" * 5000, width=50).count("…") == 1
    assert text_width(clean("word " * 50, width=60, cut_end=True), 9) <= 60


def test_measured_width_is_the_drawn_width() -> None:
    figure = Figure(dpi=72)
    with style.house_style():
        for text in ("transformer.h.11.attn.c_attn", "‖Δ‖/‖θ‖ 100 %", "WWiill"):
            drawn = figure.text(0, 0, text, size=40)
            box = drawn.get_window_extent(FigureCanvasAgg(figure).get_renderer())
            assert text_width(text, 40) == pytest.approx(box.width, rel=0.04)  # kerning and hinting


def test_short_names_drop_what_most_share() -> None:
    names = ["module.gpt.h.0.fc", "module.gpt.h.1.fc", "module.gpt.h.2.fc", "head"]
    assert short_names(names, width=1000, size=8) == names
    assert short_names(names, width=42, size=8) == ["…h.0.fc", "…h.1.fc", "…h.2.fc", "head"]
    assert short_names(["a.x", "b.x"], width=1, size=8) != ["…x", "…x"]  # two layers keep two names
    assert short_names(["", "$"], width=90, size=8) == ["(unnamed)", r"\$"]


def test_numbers_are_short() -> None:
    shown = [number(v) for v in (0.0, 1.0, -0.25, 1234.0, 1e-4, 1e-5, -3.2e-7, 12345.0, np.nan, np.inf, -np.inf, 1e300)]
    assert shown == ["0", "1", "−0.25", "1,234", "0.0001", "10⁻⁵", "−3.2·10⁻⁷", "1.2·10⁴", "–", "∞", "−∞", "10³⁰⁰"]


def test_log_ticks_are_few_and_inside() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        low = 10.0 ** rng.uniform(-299, 290)
        high = 10.0 ** min(np.log10(low) + rng.choice([rng.uniform(0.2, 3), rng.uniform(0.2, 500)]), 300.0)
        num = int(rng.integers(2, 9))
        ticks = panels.log_ticks(low, high, num)
        assert 2 <= len(ticks) <= num
        assert all(low * 0.998 <= tick <= high * 1.002 for tick in ticks)
        assert ticks == sorted(set(ticks))


def test_smoothing_keeps_level_and_ends() -> None:
    values = np.r_[np.full(20, 3.0), np.nan, np.inf, np.full(20, 3.0), np.nan, np.nan]
    mean = series.smooth(values, 5)
    np.testing.assert_allclose(mean[:42], 3.0, rtol=1e-12)
    assert np.isnan(mean[42:]).all()  # no value after the last finite one
    ramp = np.arange(30.0)
    np.testing.assert_allclose(series.smooth(ramp, 7)[3:-3], ramp[3:-3], rtol=1e-12)
    np.testing.assert_allclose(series.smooth(10.0**ramp, 7, log=True)[3:-3], 10.0 ** ramp[3:-3], rtol=1e-9)
    # A running sum would lose the small end behind the large one.
    np.testing.assert_allclose(series.smooth(np.r_[1e30, np.full(50, 1e-5)], 5)[10:], 1e-5, rtol=1e-9)
    np.testing.assert_array_equal(series.smooth(np.array([1.0, 5.0]), 1), [1.0, 5.0])


def test_thinning_keeps_spikes_and_gaps() -> None:
    y = np.zeros(10_000)
    y[[17, 5000]] = 9.0, -9.0
    y[7000:7200] = np.nan
    x, kept = thin(np.arange(10_000.0), y, limit=400)
    assert len(x) <= 400
    assert (np.diff(x) > 0).all()
    assert np.nanmax(kept) == 9.0
    assert np.nanmin(kept) == -9.0
    assert np.isnan(kept).any()


def test_reductions_ignore_what_is_not_finite() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(50, 6))
    values[rng.random(values.shape) < 0.3] = np.nan
    values[0] = np.nan
    values[1, 2] = np.inf
    finite = np.where(np.isfinite(values), values, np.nan)
    np.testing.assert_allclose(series.median_over_layers(values)[1:], np.nanmedian(finite[1:], axis=1), rtol=1e-12)
    np.testing.assert_allclose(series.sum_over_layers(values)[1:], np.nansum(finite[1:], axis=1), rtol=1e-12)
    assert np.isnan(series.median_over_layers(values)[0])
    assert np.isnan(series.sum_over_layers(values)[0])
    bins = series.make_bins(np.arange(1.0, 51.0), 8)
    assert bins.edges[0] == 0.5
    assert bins.edges[-1] == 50.5
    groups = np.split(finite, bins.starts[1:])
    np.testing.assert_allclose(series.bin_sum(values, bins), [np.nansum(g, axis=0) for g in groups], rtol=1e-12)
    np.testing.assert_allclose(series.bin_mean(values, bins), [np.nanmean(g, axis=0) for g in groups], rtol=1e-12)


# -- the real thing ----------------------------------------------------------------------------------------------------


def test_a_real_run_draws(tmp_path: Path) -> None:
    import torch

    from thermoclaw import Observer

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    observer = Observer(model, optimizer)
    inputs = torch.randn(64, 8)
    for _ in range(30):
        optimizer.zero_grad()
        loss = (model(inputs) - inputs[:, :1]).square().mean()
        loss.backward()
        optimizer.step()
        observer.step(loss=loss)
    record = observer.record()
    for i, draw in enumerate((plot_dashboard, plot_entropy_split)):
        figure = draw(record, save_path=tmp_path / f"{i}.png")
        assert "no data" not in texts(figure)
    assert compare([record], save_path=tmp_path / "c.png").table["AdamW"]["loss"] < 1.0
