"""Prometheus and JSON lines: what is written can be read by whom it is for, hostile words and all."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.logged_runs import EVERY, EVIL, POINTS, STEPS, Run, evil_finding, logged, printable
from thermoclaw import log_to
from thermoclaw.integrations.loggers.jsonl import JSONLines
from thermoclaw.integrations.loggers.prometheus import Prometheus
from thermoclaw.integrations.scalars import meanings, scalars

Digits = tuple[Tensor, Tensor]


# -- Prometheus --------------------------------------------------------------------------------------------------------


def families(path: Path) -> dict[str, Any]:
    parser = pytest.importorskip("prometheus_client.parser")
    return {family.name: family for family in parser.text_string_to_metric_families(path.read_text(encoding="utf-8"))}


def test_prometheus_has_the_newest_numbers_and_all_findings(digits: Digits, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "mine.prom"
    run = Run(digits)
    assert run.observer is not None
    log_to(run.observer, path, every=EVERY)
    run.train()
    during = families(path)
    run.observer.close()
    read = families(path)
    assert [sample.value for sample in during["thermoclaw_running"].samples] == [1.0]
    assert [sample.value for sample in read["thermoclaw_running"].samples] == [0.0]
    assert read["thermoclaw_step"].samples[0].value == STEPS
    expected = scalars(run.observer.record(), steps=4)
    for name, value in expected.items():
        (sample,) = read[name.replace("/", "_")].samples
        assert (sample.value, sample.labels) == (pytest.approx(value), {"run": "mine"})
        assert read[sample.name].documentation == meanings()[name]
        assert read[sample.name].type == "gauge"
    found = read["thermoclaw_finding_raised_step"].samples
    assert [sample.value for sample in found] == [alarm.raised_step for alarm in run.observer.alarms]
    assert found[0].labels["code"] == "weight_decay_too_high"
    assert [file.name for file in path.parent.iterdir()] == ["mine.prom"]  # no half of a file is left
    assert path.stat().st_mode & 0o044  # node_exporter is another user


def test_prometheus_escapes_hostile_words_and_repeats_no_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.prom"
    logger = Prometheus(path, {"run": EVIL})
    for i in range(200):
        logger.finding(evil_finding(raised_step=i, title=EVIL if i < 9 else f"{i}"))
    text = path.read_text(encoding="utf-8")
    assert printable(text)
    read = families(path)
    assert set(read) == {"thermoclaw_step", "thermoclaw_running", "thermoclaw_finding_raised_step"}
    samples = read["thermoclaw_finding_raised_step"].samples
    assert len(samples) == len({tuple(sorted(sample.labels.items())) for sample in samples}) == 50
    assert samples[0].value == 0
    assert samples[0].labels["title"].startswith('a"b\\c # x·[31m')
    assert max(len(line) for line in text.splitlines()) < 2000


def test_prometheus_refuses_what_the_collector_would(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"only files whose name ends in \.prom"):
        Prometheus(tmp_path / "a.txt")
    for name in ("1a", "a-b", "__a", "", "a\n"):
        with pytest.raises(ValueError, match="a name has letters"):
            Prometheus(tmp_path / "a.prom", {name: "x"})


# -- JSON lines --------------------------------------------------------------------------------------------------------


def test_json_lines_have_points_and_findings(digits: Digits, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "deep" / "run.jsonl"
    observer = logged(digits, str(path))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    points = [line for line in lines if "finding" not in line]
    assert [line["step"] for line in points] == POINTS
    expected = scalars(observer.record().rows(stop=21), steps=EVERY)
    assert {name: points[1][name] for name in expected} == pytest.approx(expected)
    assert [line["finding"] for line in lines if "finding" in line] == [a.to_json() for a in observer.alarms]
    assert (tmp_path / "deep" / "run_r_map.png").read_bytes().startswith(b"\x89PNG")


def test_json_lines_stay_lines_and_are_added_to(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text('{"step": 1}\n')
    JSONLines(path).finding(evil_finding())
    first, second = path.read_text(encoding="utf-8").split("\n")[:-1]
    assert json.loads(first) == {"step": 1}
    assert json.loads(second)["finding"]["layers"][1] == EVIL
    assert json.loads(second, parse_constant=lambda _: 1 / 0)["finding"]["evidence"]["norm_drop"] is None


# -- the example -------------------------------------------------------------------------------------------------------


def test_the_example_logs_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for package in ("sklearn", "matplotlib", "tensorboard"):
        pytest.importorskip(package)
    example = Path(__file__).resolve().parent.parent / "examples" / "loggers.py"
    targets = ["jsonl", "prometheus", "tensorboard"]
    options = ["--steps", "40", "--weight-decay", "2", "--folder", str(tmp_path), "--to", *targets]
    monkeypatch.setattr("sys.argv", [str(example), *options])
    runpy.run_path(str(example), run_name="__main__")
    assert "weight_decay_too_high" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "digits.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines if "finding" not in line] == [10, 20, 30, 40]
    assert next(line["finding"]["code"] for line in lines if "finding" in line) == "weight_decay_too_high"
    assert {path.name for path in tmp_path.iterdir()} == {
        "digits.jsonl",
        "digits.prom",
        "digits_r_map.png",
        "tensorboard",
    }
