"""What must hold for any input, tried on inputs that nobody thought of."""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import itertools
import json
import logging
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn

from tests.conftest import assert_bitwise
from tests.synthetic import Synthetic
from thermoclaw import Observer, Record, RecordError, diagnose
from thermoclaw.detectors.equilibrium import circulation, drifting_share
from thermoclaw.detectors.norms import clipping, find_spikes, norm_stability, recommended_max_norm
from thermoclaw.diagnosis.finding import CONFIDENCES, Finding
from thermoclaw.diffusion import batch_means, fluctuation_dissipation, green_kubo, mean_squared_displacement
from thermoclaw.quantities import LAYER_COLUMNS, RUN_COLUMNS
from thermoclaw.wording import one_line, sentence, short_name

settings.register_profile(
    "here",
    derandomize=True,  # the same inputs at every run: a check that fails now and then is no check
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("here")

NUMBERS = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)
NAMES = st.text(min_size=1, max_size=60) | st.sampled_from(
    ["</script><script>alert(1)</script>", "=1+1", "../../etc/passwd", "a\x00b", "\x1b[31m", "\ud800", "x" * 10_000, "‮"]
)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """A record that fits together, whatever is in it: a healthy run with pieces overwritten by anything."""
    steps, num_layers = draw(st.integers(0, 60)), draw(st.integers(1, 4))
    made = Synthetic(steps=max(steps, 1), layers=num_layers, optimizer=draw(st.sampled_from(["SGD", "AdamW", "X"])))
    record = made.record()
    layer_values, run_values = record.layer_values[:steps].copy(), record.run_values[:steps].copy()
    for values, columns in ((layer_values, LAYER_COLUMNS), (run_values, RUN_COLUMNS)):
        for name in draw(st.lists(st.sampled_from(columns), max_size=4, unique=True)):
            if steps:
                start = draw(st.integers(0, steps - 1))
                place = values[start:, ..., columns.index(name)]
                place[...] = draw(hnp.arrays(np.float32, place.shape, elements=NUMBERS))
    layers = tuple(replace(layer, name=draw(NAMES)) for layer in record.layers)
    gaps = np.array(draw(st.lists(st.integers(1, 900), min_size=steps, max_size=steps)), dtype=np.int64)
    return Record(np.cumsum(gaps), layers, layer_values, run_values, dict(record.meta))


@given(records())
@settings(max_examples=150)
def test_no_rule_breaks_and_every_report_can_be_shown(record: Record) -> None:
    told: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = told.append  # type: ignore[method-assign]
    logging.getLogger("thermoclaw").addHandler(handler)
    try:
        report = diagnose(record)  # warnings are errors here
    finally:
        logging.getLogger("thermoclaw").removeHandler(handler)
    assert [message.getMessage() for message in told] == []
    json.dumps(report.to_json(), allow_nan=True)
    assert all(c.isprintable() or c == "\n" for c in str(report))
    assert report.healthy == all(finding.confidence == "LOW" for finding in report.findings)
    steps = {int(step) for step in record.steps}
    for finding in report.findings:
        assert {finding.first_step, finding.raised_step} <= steps
        assert set(finding.layers) <= set(record.layer_names)


@given(records())
@settings(max_examples=60)
def test_a_record_is_the_same_from_a_file(record: Record) -> None:
    with tempfile.TemporaryDirectory() as folder:
        there = Record.load(record.save(Path(folder) / "run"))
    assert np.array_equal(there.steps, record.steps)
    assert np.array_equal(there.layer_values, record.layer_values, equal_nan=True)
    assert np.array_equal(there.run_values, record.run_values, equal_nan=True)
    assert there.layers == record.layers
    assert there.optimizer == record.optimizer


@given(records())
@settings(max_examples=40)
def test_a_csv_has_a_row_for_each_layer_and_step_and_no_formula(record: Record) -> None:
    with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"):
        text = record.to_csv(Path(folder) / "run.csv").read_bytes().decode()
    head, *rows = list(csv.reader(io.StringIO(text, newline="")))
    assert len(rows) == len(record) * len(record.layers)
    at = head.index("layer_name")
    assert all(len(row) == len(head) for row in rows)
    assert not any(row[at].startswith(("=", "+", "-", "@", "\t", "\r")) or "\x00" in row[at] for row in rows)


@given(records(), st.data())
@settings(max_examples=60)
def test_a_damaged_file_is_called_damaged(record: Record, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = record.save(Path(folder) / "run.npz")
        whole = bytearray(path.read_bytes())
        if data.draw(st.booleans()):
            whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
        else:
            for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=8)):
                whole[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(bytes(whole))
        with contextlib.suppress(RecordError):  # and no other; a bit in a name or a time stamp may pass
            Record.load(path)


@given(st.text(), st.integers(5, 300))
def test_whatever_is_shown_is_one_printable_line(text: str, limit: int) -> None:
    for shown in (one_line(text, limit), short_name(text, limit)):
        assert len(shown) <= limit
        assert shown.isprintable() or shown == ""
    assert sentence(text).isprintable() or sentence(text) == ""
    assert max((len(word) for word in sentence(text).split()), default=0) < 150
    assert sentence(sentence(text)) == sentence(text)


@given(
    st.text(max_size=20), st.sampled_from(CONFIDENCES), st.text(), st.lists(NAMES, max_size=4),
    st.dictionaries(st.text(max_size=9), st.floats(allow_nan=False), max_size=4),
)  # fmt: skip
def test_a_finding_is_the_same_from_json(
    code: str, level: str, text: str, layers: list[str], evidence: dict[str, float]
) -> None:
    finding = Finding(code, level, text, text, text, text, text, 1, 9, layers=tuple(layers), evidence=evidence)
    assert Finding.from_json(json.loads(json.dumps(finding.to_json()))) == finding


SERIES = hnp.arrays(np.float64, st.integers(0, 300), elements=st.floats(allow_nan=True, allow_infinity=True))


@given(SERIES)
def test_measures_of_series_take_anything(values: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        spikes = find_spikes(values)
        assert all(math.isfinite(spike.norm) and spike.norm > 0 for spike in spikes)
        bound = recommended_max_norm(values)
        assert bound is None or bound > 0
        told = clipping(values, 1.0)
        assert 0 <= told.fraction <= 1 or told.steps == 0
        norm_stability(values)
        batch_means(values)
        fluctuation_dissipation(values, np.abs(values))


@given(hnp.arrays(np.float64, st.tuples(st.integers(0, 60), st.integers(0, 5)), elements=st.floats(-1e9, 1e9)))
def test_measures_of_paths_take_anything(rows: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        lags, msd = mean_squared_displacement(rows) if rows.shape[1] else (np.zeros(0), np.zeros(0))
        assert len(lags) == len(msd)
        assert (msd >= 0).all()
        if rows.shape[1]:
            green_kubo(rows)
        drift = drifting_share(rows)
        assert math.isnan(drift) or 0 <= drift <= 1
        circulation(rows)


# -- a training loop in which anything may happen -------------------------------------------------------------------

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda params, lr, decay: torch.optim.SGD(params, lr=lr, weight_decay=decay),
    "momentum": lambda params, lr, decay: torch.optim.SGD(params, lr=lr, momentum=0.9, weight_decay=decay),
    "adamw": lambda params, lr, decay: torch.optim.AdamW(params, lr=lr, weight_decay=decay),
    "rmsprop": lambda params, lr, decay: torch.optim.RMSprop(params, lr=lr, weight_decay=decay),
}
ACTS = st.sampled_from(
    ["step"] * 6
    + ["twice", "nan", "inf", "none", "zero", "huge", "paused", "group", "rate", "silent", "freeze", "text"]
)


class Wide(nn.Module):
    """Layers of given widths, and one that is used only when it was added to the optimizer."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        sizes = [3, *widths, 1]
        self.parts = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.late = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.late
        for part in self.parts:
            x = torch.tanh(part(x))
        return x


def act(model: Wide, optimizer: Any, what: str, observer: Observer | None) -> None:
    """One act of the loop; with an observer it is told, too."""
    loss = (model(torch.randn(4, 3)) - 0.5).square().mean()
    if what != "silent":
        loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    for grad in grads:
        if what in ("nan", "inf", "huge", "zero"):
            grad.mul_({"nan": math.nan, "inf": math.inf, "huge": 1e30, "zero": 0.0}[what])
    if what == "none":
        model.parts[0].weight.grad = None
    if what == "group" and len(optimizer.param_groups) == 1:
        optimizer.add_param_group({"params": [model.late]})
    if what == "rate":
        optimizer.param_groups[0]["lr"] *= 0.5
    if what == "freeze":
        model.parts[-1].bias.requires_grad_(False)
    if what == "paused" and observer is not None:
        with observer.paused():
            optimizer.step()
    else:
        optimizer.step()
    if what == "twice":
        optimizer.step()
    if observer is not None:
        observer.step(loss="no number" if what == "text" else loss)
    optimizer.zero_grad()


@given(
    widths=st.lists(st.integers(1, 9), max_size=3), kind=st.sampled_from(sorted(OPTIMIZERS)),
    lr=st.sampled_from([0.0, 1e-3, 0.5, 1e6]), decay=st.sampled_from([0.0, 0.1, 10.0]),
    acts=st.lists(ACTS, min_size=1, max_size=40), every=st.integers(1, 5), history=st.sampled_from([0, 0, 8, 16]),
)  # fmt: skip
@settings(max_examples=60)
def test_training_is_the_same_whatever_happens_in_it(
    widths: list[int], kind: str, lr: float, decay: float, acts: list[str], every: int, history: int
) -> None:
    torch.manual_seed(0)
    plain = Wide(widths)
    watched = copy.deepcopy(plain)
    ends = []
    for model in (plain, watched):
        torch.manual_seed(1)
        own = [p for name, p in model.named_parameters() if name != "late"]
        optimizer = OPTIMIZERS[kind](own, lr, decay)
        more = {"history_bytes": 4000 * history} if history else {}
        observer = Observer(model, optimizer, every=every, **more) if model is watched else None
        for what in acts:
            act(model, optimizer, what, observer)
        ends.append((model.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    assert_bitwise(*ends)
    assert observer is not None
    assert "off after an error" not in repr(observer)
    record = observer.record()
    assert (np.diff(record.steps) > 0).all()
    with np.errstate(all="ignore"):
        total, parts = record["sigma"], sum(record[name] for name in ("d_eS", "d_iS"))
        sound = np.isfinite(total) & np.isfinite(parts)
        assert np.allclose(parts[sound], total[sound], rtol=1e-5)
        assert (record["d_iS"][sound] >= 0).all()
        str(diagnose(observer))
    observer.close()


@pytest.mark.parametrize("seed", range(3))
def test_the_check_can_fail(seed: int) -> None:
    torch.manual_seed(seed)
    plain = Wide([4])
    other = copy.deepcopy(plain)
    for model in (plain, other):
        torch.manual_seed(1)
        act(model, torch.optim.SGD(model.parameters(), lr=0.1 if model is plain else 0.2), "step", None)
    with pytest.raises(AssertionError):
        assert_bitwise(plain.state_dict(), other.state_dict())
