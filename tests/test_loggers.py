"""A run's numbers, findings and picture reach loggers by themselves, whatever those do; training does not notice.

The loggers of trackers have tests of their own, in `test_loggers_trackers.py`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import assert_bitwise, outcome
from tests.logged_runs import EVERY, EVIL, LONG, OFF, POINTS, STEPS, Notes, Run, evil_finding, logged
from tests.test_buffer import trapped
from thermoclaw import Observer, log_to
from thermoclaw.integrations.loggers import Logger, as_logger
from thermoclaw.integrations.loggers.background import Background
from thermoclaw.integrations.loggers.words import as_markdown, for_chat, for_markdown, one_line
from thermoclaw.integrations.points import Points
from thermoclaw.integrations.scalars import ALARMS, PREFIX, meanings, scalars
from thermoclaw.record import Record

Digits = tuple[Tensor, Tensor]


# -- what goes out, and when -------------------------------------------------------------------------------------------


def test_points_findings_and_picture_go_out_by_themselves(digits: Digits) -> None:
    pytest.importorskip("matplotlib")
    notes = Notes()
    observer = logged(digits, notes)
    record = observer.record()
    points = dict(notes.calls("scalars"))
    assert list(points) == POINTS
    for step, width in zip(POINTS, (10, 10, 10, 10, 4), strict=True):
        values = dict(points[step])
        assert values.pop(ALARMS) == sum(alarm.raised_step <= step for alarm in observer.alarms)
        assert values == pytest.approx(scalars(record.rows(stop=step + 1), steps=width), rel=1e-12)
    names = set().union(*points.values())
    assert 10 <= len(names) <= 30
    assert names == set(meanings())
    assert [finding for (finding,) in notes.calls("finding")] == observer.alarms != []
    ((name, step, png),) = notes.calls("picture")
    assert (name, step) == (f"{PREFIX}r_map", STEPS)
    assert png.startswith(b"\x89PNG")
    assert notes.got[-1] == ("close",)
    assert len(notes.calls("close")) == 1


def test_they_go_out_while_the_run_goes_on(digits: Digits) -> None:
    run = Run(digits)
    assert run.observer is not None
    notes = Notes(run.observer)
    log_to(run.observer, notes, every=EVERY)
    run.train(40)
    assert notes.calls("close") == []
    when = {what[1]: at for what, at in zip(notes.got, notes.when, strict=True) if what[0] == "scalars"}
    lag = 8
    assert list(when) == [10, 20, 30, 40]
    assert all(step <= at < step + lag for step, at in when.items()), when
    found = [(what[1].raised_step, at) for what, at in zip(notes.got, notes.when, strict=True) if what[0] == "finding"]
    assert found
    assert all(raised == at for raised, at in found)


def test_the_entropy_split_can_be_left_out(digits: Digits) -> None:
    notes = Notes()
    logged(digits, notes, split=False, picture=False)
    names = set().union(*(values for _, values in notes.calls("scalars")))
    assert not {f"{PREFIX}R_ie", f"{PREFIX}d_eS_share"} & names
    assert f"{PREFIX}sigma" in names
    assert notes.calls("picture") == []


@pytest.mark.parametrize("how", ["observer", "log", "with"])
def test_it_ends_once_however_it_is_ended(digits: Digits, how: str) -> None:
    run, notes = Run(digits, decay=0.0), Notes()
    assert run.observer is not None
    log = log_to(run.observer, notes, every=EVERY, picture=False)
    assert not log.closed
    run.train(13)
    if how == "with":
        with log:
            pass
    else:
        (run.observer if how == "observer" else log).close()
    assert log.closed
    assert [step for step, _ in notes.calls("scalars")] == [10, 13]
    run.observer.close()
    log.close()
    run.train(20)
    assert [what[0] for what in notes.got] == ["scalars", "scalars", "close"]


def test_after_the_log_is_closed_the_observer_goes_on(digits: Digits) -> None:
    run, notes = Run(digits), Notes()
    assert run.observer is not None
    log_to(run.observer, notes, every=4, picture=False).close()
    run.train(24)
    assert notes.got == [("close",)]
    assert run.observer.alarms
    assert run.observer.global_step == 24


def test_a_run_without_a_step_has_no_point_and_no_picture(digits: Digits) -> None:
    run, notes = Run(digits), Notes()
    assert run.observer is not None
    log_to(run.observer, notes)
    run.observer.close()
    assert notes.got == [("close",)]


@pytest.mark.parametrize("how", ["resume", "load_state_dict"])
def test_a_continued_run_sends_no_point_twice(digits: Digits, how: str) -> None:
    first, notes = Run(digits, decay=0.0), Notes()
    assert first.observer is not None
    first.train(25)
    again = Run(digits, decay=0.0)
    assert again.observer is not None
    if how == "resume":
        again.observer.resume(first.observer.record())
    else:
        again.observer.load_state_dict(first.observer.state_dict())
    log_to(again.observer, notes, every=EVERY, picture=False)
    again.train(20)
    again.observer.close()
    assert [step for step, _ in notes.calls("scalars")] == [30, 40, 45]


@pytest.mark.parametrize("stop", [30, 31, 37, 39])
def test_a_run_that_is_killed_and_continued_leaves_no_point_out(digits: Digits, stop: int) -> None:
    first, again, notes = Run(digits, decay=0.0), Run(digits, decay=0.0), Notes()
    assert first.observer is not None
    assert again.observer is not None
    log_to(first.observer, notes, every=EVERY, picture=False)
    first.train(stop)
    state = first.observer.state_dict()  # and nothing closes the log
    again.observer.load_state_dict(state)
    log_to(again.observer, notes, every=EVERY, picture=False)
    again.train(50 - stop)
    again.observer.close()
    sent = [step for step, _ in notes.calls("scalars")]
    assert sorted(set(sent)) == [10, 20, 30, 40, 50]
    assert len(sent) <= 6  # the one before the stop may come twice, with the same numbers


def test_where_rows_are_rare_no_row_is_sent_twice(digits: Digits) -> None:
    run, notes = Run(digits, decay=0.0, every=25, lag=1), Notes()
    assert run.observer is not None
    log_to(run.observer, notes, every=EVERY, picture=False)
    run.train(90)
    run.observer.close()
    rows = run.observer.record().steps.tolist()
    assert rows == [1, 26, 51, 76]
    assert [step for step, _ in notes.calls("scalars")] == [10, 30, 60, 76]


def test_closing_points_look_at_the_rows_behind_the_lag(digits: Digits) -> None:
    run = Run(digits, decay=0.0)
    assert run.observer is not None
    points = Points(run.observer, every=EVERY)
    run.train(13)
    assert [step for step, _ in points.due()] == []
    assert run.observer.rows_on_host() == 8
    assert [step for step, _ in points.due(closing=True)] == [10, 13]
    assert list(points.due(closing=True)) == []


# -- it never changes or stops training, and never waits ---------------------------------------------------------------


def test_training_is_bitwise_the_same(digits: Digits) -> None:
    ends = []
    for settings in (OFF, {}):
        run = Run(digits, **settings)
        if run.observer is not None:
            log_to(run.observer, Notes(), Notes(broken="scalars"), every=3)
        run.train(30)
        if run.observer is not None:
            run.observer.close()
        ends.append(outcome(run.model, run.optimizer, run.losses))
    assert_bitwise(ends[1], ends[0])


def test_no_tensor_is_read(digits: Digits, tmp_path: Path) -> None:
    run, found = Run(digits), list[str]()
    assert run.observer is not None
    log_to(run.observer, Notes(), tmp_path / "a.jsonl", tmp_path / "a.prom", every=3)
    step = run.observer.step

    def under_trap(**kwargs: Any) -> Any:
        with trapped(found):
            return step(**kwargs)

    run.observer.step = under_trap  # type: ignore[method-assign]
    run.train(40)
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) > 10
    assert not found, found[0]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("broken", ["scalars", "finding", "picture", "close"])
def test_a_logger_that_fails_is_reported_once_and_muted(
    digits: Digits, broken: str, strict: bool, caplog: pytest.LogCaptureFixture
) -> None:
    if broken == "picture":
        pytest.importorskip("matplotlib")
    run, bad, good = Run(digits, strict=strict), Notes(broken=broken), Notes()
    assert run.observer is not None
    log_to(run.observer, bad, good, every=EVERY)
    run.train()
    run.observer.close()
    assert caplog.text.count("it gets nothing from here on") == 1
    assert f"Notes failed in {broken}()" in caplog.text
    assert "ConnectionError: no network" in caplog.text
    at = [what[0] for what in bad.got].index(broken)
    assert [what[0] for what in bad.got[at + 1 :]] == ([] if broken == "close" else ["close"])
    assert [step for step, _ in good.calls("scalars")] == POINTS
    assert good.got[-1] == ("close",)
    assert run.observer.global_step == STEPS


def test_an_error_of_its_own_ends_logging_not_training(
    digits: Digits, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, notes = Run(digits), Notes()
    assert run.observer is not None
    monkeypatch.setattr(Points, "due", lambda *_, **__: 1 / 0)
    log = log_to(run.observer, notes, every=EVERY)
    run.train()
    run.observer.close()
    assert caplog.text.count("logging failed and is off") == 1
    assert log.closed
    assert [what[0] for what in notes.got if what[0] != "finding"] == ["close"]
    assert len(run.observer.record()) == STEPS


def test_without_matplotlib_there_is_no_picture(
    digits: Digits, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import thermoclaw.report

    monkeypatch.delattr(thermoclaw.report, "layer_map", raising=False)
    monkeypatch.setitem(sys.modules, "thermoclaw.report.layer_map", None)
    notes = Notes()
    logged(digits, notes)
    assert caplog.text.count("no picture") == 1
    assert notes.calls("picture") == []
    assert notes.got[-1] == ("close",)


def test_a_failing_callback_of_rows_is_said_to_be_one(digits: Digits, caplog: pytest.LogCaptureFixture) -> None:
    run, seen = Run(digits), list[bool]()
    assert run.observer is not None
    run.observer.on_rows(lambda closing: 1 / 0)
    run.observer.on_rows(seen.append)
    run.train(20)
    run.observer.close()
    assert seen == [False, False, True]
    assert "a callback given to on_rows failed; measuring goes on" in caplog.text
    assert len(run.observer.record()) == 20


@pytest.mark.parametrize("num_layers", [1, 300])
def test_the_map_is_drawn_whatever_layers_are_called(num_layers: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    evil = LONG.replace(".", "").encode("ascii", "replace").decode()
    model = nn.ModuleDict({f"{evil}{i}": nn.Linear(2, 2) for i in range(num_layers)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observer, notes = Observer(model, optimizer), Notes()
    with observer, log_to(observer, notes):
        for _ in range(3):
            sum(layer(torch.ones(1, 2)).sum() for layer in model.values()).backward()
            optimizer.step()
            observer.step()
        observer._attachment.alarms.append(evil_finding())
    (picture,) = notes.calls("picture")
    width, height = Image.open(io.BytesIO(picture[2])).size
    assert width == 1350
    assert 300 < height < 1300


# -- what can be logged to ---------------------------------------------------------------------------------------------


def test_what_is_no_logger_is_refused(digits: Digits, tmp_path: Path) -> None:
    run = Run(digits)
    with pytest.raises(TypeError, match=r"log_to takes an Observer first, not Sequential"):
        log_to(run.model, Notes())  # type: ignore[arg-type]
    assert run.observer is not None
    with pytest.raises(TypeError, match="needs something to log to"):
        log_to(run.observer)
    for target in (3, Notes, object(), type("Run", (), {"__module__": "wandb_tools.run"})()):
        with pytest.raises(TypeError, match="give a TensorBoard SummaryWriter, a W&B, MLflow or Trackio run"):
            log_to(run.observer, target)
    with pytest.raises(ValueError, match=r"ends in one of \.jsonl, \.prom"):
        log_to(run.observer, tmp_path / "a.csv")
    for every in (0, 2.5, True):
        with pytest.raises(ValueError, match="give a whole number of at least 1"):
            log_to(run.observer, Notes(), every=every)  # type: ignore[arg-type]
    run.train(20)
    assert run.observer._attachment.on_rows == []


def test_an_object_with_the_four_calls_is_a_logger() -> None:
    notes = Notes()
    assert isinstance(notes, Logger)
    assert as_logger(notes) is notes


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("safe", [one_line, for_chat, for_markdown])
@pytest.mark.parametrize("text", [EVIL, LONG, "", "\x00\x7f\x9b\u200b\ufeff", "\ud800\udfff"])
def test_a_line_is_one_line_of_printable_characters(safe: Any, text: str) -> None:
    line = safe(text, 300)
    assert all(c.isprintable() for c in line)
    assert len(line) <= (900 if safe is for_markdown else 300)
    line.encode()


def test_a_chat_finds_no_mention_tag_or_link() -> None:
    line = for_chat(EVIL)
    assert "<!channel>" not in line
    assert "@everyone" not in line
    assert "http://" not in line
    assert for_chat("p < 0.1, 5 <= x, mail@a") == "p < 0.1, 5 <= x, mail@ a"


def test_markdown_finds_nothing_to_do_in_a_name() -> None:
    markdown = pytest.importorskip("markdown")
    plain = 'a"b\\c _d_ **e** `f` [g](h) ![i](j) <k> &amp; #l |m| 1. n'
    for text in (plain, EVIL, "# head", "- item", "1. item", "    code", "http://x.test", "a|b\n-|-\nc|d"):
        html = markdown.markdown(for_markdown(text), extensions=["markdown.extensions.tables"])
        assert set(_tags(html)) == {"p", "/p"}, html
    assert "**HIGH" in as_markdown(evil_finding())
    assert len(as_markdown(evil_finding(layers=tuple(map(str, range(10_000)))))) < 30_000


def _tags(html: str) -> list[str]:
    return [part.partition(">")[0].split()[0] for part in html.split("<")[1:]]


# -- on a thread of its own --------------------------------------------------------------------------------------------


def test_calls_are_made_in_order_on_a_thread() -> None:
    made: list[tuple[int, str]] = []
    background = Background("mine")
    for i in range(20):
        background.submit(lambda i=i: made.append((i, threading.current_thread().name)))
    background.close()
    assert made == [(i, "mine") for i in range(20)]
    Background("idle").close()


def test_after_a_failed_call_no_more_are_made_and_the_error_comes_back_once() -> None:
    made, failed = list[int](), threading.Event()

    def fail() -> None:
        failed.set()
        raise ConnectionError("no network")

    background = Background("mine")
    background.submit(fail)
    background.submit(lambda: made.append(1))
    with pytest.raises(ConnectionError, match="no network"):
        background.close()
    background.close()
    assert failed.is_set()
    assert made == []


def test_a_call_that_hangs_holds_nobody_up() -> None:
    go = threading.Event()
    background = Background("mine", limit=3)
    background.submit(go.wait)  # type: ignore[arg-type]
    with contextlib.suppress(RuntimeError):  # the first may have been taken from the queue, or not
        for _ in range(5):
            background.submit(lambda: None)
    with pytest.raises(RuntimeError, match="3 calls wait for an answer"):
        background.submit(lambda: None)
    with pytest.raises(RuntimeError, match="no answer within"):
        background.close(timeout_s=0.05)
    go.set()
    background._thread.join(10)
    assert not background._thread.is_alive() or background._calls.empty()


# -- the table of names ------------------------------------------------------------------------------------------------


def test_points_need_no_more_rows_than_they_say(digits: Digits) -> None:
    """A point from the rows of its window is the point from the whole run."""
    run = Run(digits, decay=0.0)
    assert run.observer is not None
    run.train(100)
    record: Record = run.observer.record()
    assert np.array_equal(record.steps, np.arange(1, 101))
    whole = scalars(record, steps=5)
    part = scalars(record.rows(start=51), steps=5)
    assert part == pytest.approx(whole)


def test_failed_measuring_is_no_failed_logging(
    digits: Digits, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, notes = Run(digits), Notes()
    assert run.observer is not None
    log_to(run.observer, notes, every=EVERY, picture=False)
    run.train(20)
    monkeypatch.setattr(type(run.observer._attachment.meter), "after_step", lambda *_: 1 / 0)
    with caplog.at_level(logging.ERROR):
        run.train(20)
    run.observer.close()
    assert caplog.text.count("measuring failed and is off") == 1
    assert "logging failed" not in caplog.text
    assert [step for step, _ in notes.calls("scalars")] == [10, 20]
    assert notes.got[-1] == ("close",)
