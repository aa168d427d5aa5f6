"""A run that is kept on disk: what is kept is what was measured, training knows nothing of it, and nothing grows."""

from __future__ import annotations

import contextlib
import copy
import errno
import logging
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import thermoclaw
from kept_runs import Training, assert_holds, assert_same_record, assert_same_rows, program, run_program, size_of
from thermoclaw import Finding, Observer, Record, load
from thermoclaw.runs import RunReader, store, writer
from thermoclaw.runs import claim as claims
from thermoclaw.runs.claim import claim
from thermoclaw.runs.names import parts_in
from thermoclaw.runs.rows import Rows
from thermoclaw.runs.store import Store


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write as often as possible."""
    for name in ("FLUSH_S", "FIRST_FLUSH_S", "RETRY_S", "DESCRIBE_S"):
        monkeypatch.setattr(writer, name, 0.005)


def until(condition, timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


# -- what is kept is what was measured ---------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"mode": "exact"}, {"every": 3}, {"lag": 1}, {"lag": 50}])
def test_what_is_loaded_is_the_observers_record(settings: dict, tmp_path: Path, quick: None) -> None:
    run = Training(run_dir=tmp_path / "a", **settings)
    run.observer.note_event("data", text="second shard begins\nhere")
    run.go(120)
    run.observer.epoch_end(val_loss=0.5)
    run.go(83).observer.close()
    assert_same_record(load(tmp_path / "a"), run.observer.record())
    assert len(load(tmp_path / "a")) > 60


def test_what_is_loaded_meanwhile_is_what_has_reached_the_host(tmp_path: Path, quick: None) -> None:
    run = Training(run_dir=tmp_path / "a").go(100)
    until(lambda: (tmp_path / "a" / "meta.json").exists() and load(tmp_path / "a").num_steps == 96)
    on_host = run.observer.record_on_host()
    assert on_host.num_steps == 96  # of 100, in blocks of 8
    assert_same_rows(load(tmp_path / "a"), on_host)


def test_a_loss_given_late_is_kept(tmp_path: Path, quick: None) -> None:
    """Reading the record brings a row to the host before its loss is there."""
    run = Training(run_dir=tmp_path / "a").go(30)
    loss = run.model(torch.randn(8, 6)).square().mean()
    loss.backward()
    run.optimizer.step()
    assert np.isnan(run.observer.record().loss[-1])
    run.observer.step(loss=0.125)
    run.go(40).observer.close()
    assert load(tmp_path / "a").loss[30] == 0.125
    assert_same_record(load(tmp_path / "a"), run.observer.record())


def test_the_diagnosis_of_the_directory_is_that_of_the_observer(tmp_path: Path) -> None:
    run = Training(run_dir=tmp_path / "a").go(70)
    run.observer.close()
    assert str(thermoclaw.diagnose(tmp_path / "a")) == str(thermoclaw.diagnose(run.observer))


def test_what_detectors_testify_is_kept_at_the_end(tmp_path: Path) -> None:
    """As `observer.record()` has it."""

    class Witness:
        def findings(self, record: Record | None = None) -> list[Finding]:
            words = {name: name for name in ("code", "title", "seen", "meaning", "advice", "source")}
            return [Finding(**words, confidence="LOW", first_step=3, raised_step=5)]

    run, witness = Training(run_dir=tmp_path / "a").go(40), Witness()
    run.observer.hear(witness)
    run.observer.close()
    assert len(load(tmp_path / "a").events) == 1
    assert_same_record(load(tmp_path / "a"), run.observer.record())


def test_layers_that_join_later(tmp_path: Path, quick: None) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    optimizer = torch.optim.AdamW(model[0].parameters(), lr=1e-3)
    observer = Observer(model, optimizer, run_dir=tmp_path / "a")
    for step in range(200):
        if step == 100:
            optimizer.add_param_group({"params": list(model[2].parameters())})
        loss = model(torch.randn(8, 6)).square().mean()
        loss.backward()
        optimizer.step()
        observer.step(loss=loss.detach())
        optimizer.zero_grad()
        if step % 20 == 0:
            time.sleep(0.03)
    observer.close()
    assert len(load(tmp_path / "a").layers) == 2
    assert_same_record(load(tmp_path / "a"), observer.record())


def test_hostile_names_of_layers(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    for name in ('a\n"b', "/etc/passwd", "\x1b[31mσ", "\ud800", "x" * 5000, "=1+1"):
        model.add_module(name, nn.Linear(3, 3))
    run = Training(model, run_dir=tmp_path / "a").go(20)
    run.observer.close()
    assert_same_record(load(tmp_path / "a"), run.observer.record())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_two_observers(tmp_path: Path) -> None:
    """Of two optimizers in directories of their own, and two of one optimizer."""
    runs = [Training(run_dir=tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    second = Observer(runs[0].model, runs[0].optimizer, run_dir=tmp_path / "c")
    for run in runs:
        run.go(50)
    for run in runs:
        run.observer.close()
    for run, name in zip(runs, "ab", strict=True):
        assert_same_record(load(tmp_path / name), run.observer.record())
    assert_same_record(load(tmp_path / "c"), second.record())


# -- training knows nothing of it --------------------------------------------------------------------------------------


def test_training_is_bitwise_the_same(tmp_path: Path, quick: None) -> None:
    def train(**settings) -> tuple[dict, dict, torch.Tensor]:
        torch.manual_seed(0)
        run = Training(nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.3), nn.Linear(5, 3)), **settings).go(150)
        return copy.deepcopy(run.model.state_dict()), run.optimizer.state_dict(), torch.get_rng_state()

    bare, kept = train(), train(run_dir=tmp_path / "a")
    assert all(torch.equal(bare[0][name], kept[0][name]) for name in bare[0])
    for key, state in bare[1]["state"].items():
        assert all(torch.equal(state[name], kept[1]["state"][key][name]) for name in state)
    assert torch.equal(bare[2], kept[2])


def test_a_disk_that_hangs_holds_nobody_up_and_nothing_grows(tmp_path: Path, quick: None, monkeypatch) -> None:
    answers, waits = threading.Event(), threading.Event()
    write_part = store.write_part

    def hanging(path: Path, rows: Rows) -> None:
        waits.set()
        assert answers.wait(30)
        write_part(path, rows)

    monkeypatch.setattr(store, "write_part", hanging)
    monkeypatch.setattr(writer, "MOST_WAITING", 20_000)
    run = Training(run_dir=tmp_path / "a").go(16)
    until(waits.is_set)
    began = time.monotonic()
    run.go(400)
    assert time.monotonic() - began < 15
    held = run.observer._keeper._writer
    assert held._waiting < 20_000 + 8 * 3000
    assert held.is_full
    answers.set()
    until(lambda: not held.is_full)
    run.go(16).observer.close()
    assert_same_record(load(tmp_path / "a"), run.observer.record())


def test_a_full_disk_is_told_once_and_nothing_is_lost(tmp_path: Path, quick: None, monkeypatch, caplog) -> None:
    is_full, attempts = [False], []
    write_part = store.write_part

    def writes(path: Path, rows: Rows) -> None:
        attempts.append(is_full[0])
        if is_full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_part(path, rows)

    monkeypatch.setattr(store, "write_part", writes)
    run = Training(run_dir=tmp_path / "a").go(64)
    until(lambda: len(attempts) > 0)
    is_full[0] = True
    with caplog.at_level(logging.WARNING, logger="thermoclaw"):
        run.go(64)
        until(lambda: attempts.count(True) > 3)
        run.go(64)
    assert [record.message for record in caplog.records if "No space left" in record.message] == [
        f"thermoclaw: {tmp_path / 'a'} cannot be written: [Errno 28] No space left on device. Training goes on; "
        "rows wait in memory, to be tried again"
    ]
    is_full[0] = False
    run.go(20).observer.close()
    assert_same_record(load(tmp_path / "a"), run.observer.record())


def test_a_disk_that_is_really_full(tmp_path: Path, quick: None, caplog) -> None:
    """A file system of 2 MiB with next to no room left; at the end there is room again."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a file system here")
    try:
        ballast = disk / "ballast"
        run = Training(run_dir=disk / "a").go(40)
        until(lambda: (disk / "a" / "meta.json").exists() and load(disk / "a").num_steps == 40)
        with open(ballast, "wb", buffering=0) as handle, contextlib.suppress(OSError):
            while True:
                handle.write(bytes(4096))
        with caplog.at_level(logging.WARNING, logger="thermoclaw"):
            run.go(200)
            until(lambda: "No space left" in caplog.text)
            assert load(disk / "a").num_steps >= 40  # what was there still is
        until(lambda: list((disk / "a").glob(".*")) == [])  # nothing half written stays; another try may be under way
        ballast.unlink()
        run.go(20).observer.close()
        assert_same_record(load(disk / "a"), run.observer.record())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_error_of_ours_ends_the_writing_and_not_the_training(tmp_path: Path, quick: None, monkeypatch, caplog):
    monkeypatch.setattr(Store, "add", lambda *_: 1 / 0)
    run = Training(run_dir=tmp_path / "a").go(40)
    until(lambda: "ZeroDivisionError" in caplog.text)
    run.go(40).observer.close()
    assert caplog.text.count("ZeroDivisionError") == 1
    assert run.observer.global_step == 80


def test_a_directory_that_is_removed_is_told_once(tmp_path: Path, quick: None, caplog) -> None:
    run = Training(run_dir=tmp_path / "a").go(40)
    until(lambda: (tmp_path / "a" / "meta.json").exists())
    (tmp_path / "a").rename(tmp_path / "b")
    run.go(40)
    until(lambda: "was removed" in caplog.text)
    run.go(40).observer.close()
    assert caplog.text.count("was removed") == 1  # rows that were being merged just then may be told lost, too


def test_a_directory_that_is_removed_while_parts_are_merged_is_lost(tmp_path: Path) -> None:
    Training(run_dir=tmp_path / "a").go(40).observer.close()
    kept = Store(tmp_path / "a", max_bytes=1 << 20)
    kept.go_on(last_step=40)
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(claims.Lost, match="was removed"):
        kept._read(0)


# -- nothing grows -----------------------------------------------------------------------------------------------------


def made_up(first: int, count: int, *, num_layers: int = 3) -> Rows:
    order = np.arange(first, first + count)
    values = np.broadcast_to(order[:, None, None], (count, num_layers, 28)).astype(np.float32)
    return Rows(order, order + 1, values, np.stack([order, order], axis=1).astype(np.float64))


def test_a_long_run_stays_within_its_bytes(tmp_path: Path) -> None:
    """Whatever the pieces: thinned in the middle, few files, never above the bound, not even while parts are merged."""
    bound, largest, files = 1 << 20, 0, 0
    kept = Store(tmp_path, max_bytes=bound)
    original = store.write_part

    def weighed(path: Path, rows: Rows) -> None:
        nonlocal largest, files
        original(path, rows)
        largest, files = max(largest, size_of(tmp_path)), max(files, len(list(tmp_path.iterdir())))

    patch = pytest.MonkeyPatch()
    patch.setattr(store, "write_part", weighed)
    first, sizes = 0, [1, 8, 40, 8, 8, 300, 8, 8, 8, 700]
    while first < 60_000:
        size = sizes[first % len(sizes)]
        kept.add(made_up(first, size))
        first += size
    patch.undo()
    assert 0.4 * bound < largest <= bound - store.RESERVE
    assert files < 40
    rows = np.concatenate([part.steps for part in kept._parts])
    assert rows[-1] == first
    assert rows[:200].tolist() == list(range(1, 201))
    assert np.diff(rows[-600:]).max() == 1
    gaps = np.diff(rows)
    stride = int(gaps.max())
    assert set(np.unique(gaps)) <= {1, *range(2, stride + 1)}
    assert stride & (stride - 1) == 0


def test_many_small_writes_leave_few_files(tmp_path: Path) -> None:
    kept, most = Store(tmp_path, max_bytes=32 << 20), 0
    for first in range(0, 6000, 8):
        kept.add(made_up(first, 8))
        most = max(most, len(list(tmp_path.iterdir())))
    assert kept.num_rows == 6000
    assert most < 20


def test_the_directory_holds_what_the_history_holds(tmp_path: Path, quick: None) -> None:
    """Both thin; the directory, which has more room, has every row that memory has."""
    run = Training(run_dir=tmp_path / "a", history_bytes=0, run_bytes=store.least_bytes(2, np.dtype("f4")) * 2)
    for _ in range(40):
        run.go(50)
        time.sleep(0.01)
    run.observer.close()
    memory, disk = run.observer.record(), load(tmp_path / "a")
    assert len(memory) < 300
    assert len(memory) < len(disk) < 1000
    assert_holds(disk, memory)
    assert size_of(tmp_path / "a") < store.least_bytes(2, np.dtype("f4")) * 2


def test_too_few_bytes_are_refused_with_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run_bytes=1000 is room for 0 rows of these 2 layers: give at least (\d+)"):
        Training(run_dir=tmp_path / "a", run_bytes=1000)
    assert list(tmp_path.iterdir()) == []


# -- killed, read, ended -----------------------------------------------------------------------------------------------

FOREVER = """
from thermoclaw.runs import store, writer
run = Training(run_dir=sys.argv[1], run_bytes=int(sys.argv[2]))
while True:
    run.go(8)
    print(run.observer.global_step, flush=True)
"""


@pytest.mark.slow
def test_a_killed_run_loses_at_most_the_last_write(tmp_path: Path) -> None:
    child = subprocess.Popen(program(FOREVER, str(tmp_path / "a"), "200000"), stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    seen = []
    for line in child.stdout:
        seen.append((time.monotonic(), int(line)))
        if seen[-1][0] - seen[0][0] > 4:
            break
    os.kill(child.pid, signal.SIGKILL)
    killed_s = time.monotonic()
    child.wait()
    child.stdout.close()
    record = load(tmp_path / "a")
    assert "unreadable" not in record.meta
    written_by_then = max(step for when, step in seen if when < killed_s - 2 * writer.FIRST_FLUSH_S - 0.5)
    assert record.num_steps >= written_by_then
    assert not RunReader(tmp_path / "a").read().is_closed
    assert thermoclaw.diagnose(tmp_path / "a").raw_stats["num_steps"] == record.num_steps


@pytest.mark.slow
def test_reading_while_another_process_writes(tmp_path: Path) -> None:
    """Parts are written, merged, thinned and removed under the reader's hands: each look is a whole run."""
    fast = FOREVER.replace("run =", "writer.FLUSH_S = writer.FIRST_FLUSH_S = 0.002\nrun =", 1)
    child = subprocess.Popen(program(fast, str(tmp_path / "a"), "180000"), stdout=subprocess.DEVNULL)
    try:
        until(lambda: (tmp_path / "a" / "meta.json").exists(), timeout_s=60)
        again, looks, last, numbers = RunReader(tmp_path / "a"), 0, 0, set()
        began, seen_enough = time.monotonic(), False
        while time.monotonic() < began + 6 or (not seen_enough and time.monotonic() < began + 60):
            record = again.read().record if looks % 2 else load(tmp_path / "a")
            assert "unreadable" not in record.meta
            assert record.num_steps >= last
            head = record.steps[: min(len(record), 20)]
            assert head.tolist() == list(range(1, len(head) + 1))
            assert np.isfinite(record.loss).all()
            last, looks = record.num_steps, looks + 1
            numbers |= set(parts_in(tmp_path / "a"))
            seen_enough = looks > 20 and len(numbers) > 20 and last > 600
    finally:
        child.kill()
        child.wait()
    assert seen_enough, (looks, len(numbers), last)
    assert len(load(tmp_path / "a")) < 600


@pytest.mark.parametrize("ends", ["", "raise RuntimeError('over')", "del run", "run.observer.close(); run.go(5)"])
def test_a_process_that_ends_without_closing_keeps_everything(ends: str, tmp_path: Path) -> None:
    body = f"run = Training(run_dir=sys.argv[1])\nrun.go(53)\n{ends}"
    done = subprocess.run(program(body, str(tmp_path / "a")), capture_output=True, text=True, timeout=120)
    assert ("over" in done.stderr) == (done.returncode == 1)
    record = load(tmp_path / "a")
    assert record.num_steps == (48 if ends.startswith("del") else 53)  # of an observer that is gone, what was due
    assert RunReader(tmp_path / "a").read().is_closed


def test_a_thread_that_cannot_be_started_at_the_end_is_not_needed(tmp_path: Path) -> None:
    """As at the end of the interpreter from Python 3.12 on, of a run too short to have been written before."""
    body = """
    import threading
    def refuse(thread):
        raise RuntimeError("can't create new thread at interpreter shutdown")
    run = Training(run_dir=sys.argv[1]).go(5)
    threading.Thread.start = refuse
    """
    assert run_program(body, str(tmp_path / "a")) == ""
    assert load(tmp_path / "a").num_steps == 5
    assert RunReader(tmp_path / "a").read().is_closed


def test_an_observer_that_is_gone_is_written_before_the_process_ends(tmp_path: Path) -> None:
    body = """
    from thermoclaw.runs import store
    write_part = store.write_part
    def slow(path, rows):
        time.sleep(1.0)
        write_part(path, rows)
    store.write_part = slow
    run = Training(run_dir=sys.argv[1]).go(40)
    del run
    """
    assert run_program(body, str(tmp_path / "a")) == ""
    assert load(tmp_path / "a").num_steps == 40


def test_a_forked_child_writes_nothing(tmp_path: Path) -> None:
    body = """
    import os, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on: of a fork beside threads
    run = Training(run_dir=sys.argv[1]).go(30)
    child = os.fork()
    if not child:
        run.go(64)
        sys.exit(0)  # with everything that is done at exit
    os.waitpid(child, 0)
    run.go(10)
    """
    assert run_program(body, str(tmp_path / "a")) == ""
    assert load(tmp_path / "a").num_steps == 40


# -- whose directory it is ---------------------------------------------------------------------------------------------


def test_a_directory_that_holds_another_run_is_left_alone(tmp_path: Path, caplog) -> None:
    first = Training(run_dir=tmp_path / "a").go(20)
    first.observer.close()
    (tmp_path / "a" / "owner.json").unlink()  # as of one that was copied from elsewhere
    second = Training(run_dir=tmp_path / "a", seed=1).go(30)
    assert second.observer.run_dir == tmp_path / "a-2"
    second.observer.close()
    assert f"{tmp_path / 'a'} holds another run: this one is kept in {tmp_path / 'a-2'}" in caplog.text
    assert_same_record(load(tmp_path / "a"), first.observer.record())
    assert_same_record(load(tmp_path / "a-2"), second.observer.record())
    assert first.observer.record().meta["run_id"] != second.observer.record().meta["run_id"]


def test_two_runs_at_once_do_not_share_a_directory(tmp_path: Path, monkeypatch) -> None:
    """Many claims at the same moment: each gets a directory of its own."""
    start, got = threading.Barrier(8), []
    monkeypatch.setattr(claims, "is_run", lambda folder: False)  # all look before any has claimed

    def ask(number: int) -> None:
        start.wait()
        got.append(claim(tmp_path / "a", run_id=str(number)).folder.name)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == ["a", "a-2", "a-3", "a-4", "a-5", "a-6", "a-7", "a-8"]


def test_a_folder_with_other_things_in_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    run = Training(run_dir=tmp_path / "a").go(20)
    run.observer.close()
    assert run.observer.run_dir == tmp_path / "a"
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"
    assert load(tmp_path / "a").num_steps == 20


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file: give a folder"):
        Training(run_dir=tmp_path / "a")
    with pytest.raises(OSError, match="cannot be written"):
        Training(run_dir=tmp_path / "a" / "b")


def test_a_run_without_a_step_leaves_nothing(tmp_path: Path) -> None:
    run = Training(run_dir=tmp_path / "runs" / "a")
    assert (tmp_path / "runs" / "a").is_dir()
    run.observer.close()
    assert not (tmp_path / "runs" / "a").exists()


def test_other_processes_of_a_run_write_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    run = Training(run_dir=tmp_path / "a").go(20)
    run.observer.close()
    assert run.observer.run_dir is None
    assert list(tmp_path.iterdir()) == []
    assert "run_id" not in run.observer.record().meta


# -- a run that goes on ------------------------------------------------------------------------------------------------


def test_a_resumed_run_goes_on_in_its_directory(tmp_path: Path, quick: None, caplog) -> None:
    """What came after the checkpoint is made again, and stands once."""
    whole = Training(seed=3, run_dir=tmp_path / "whole").go(60)
    rng = torch.get_rng_state()
    whole.go(90).observer.close()
    run = Training(seed=3, run_dir=tmp_path / "a").go(60)
    saved = copy.deepcopy([run.model.state_dict(), run.optimizer.state_dict(), run.observer.state_dict()])
    run.go(40)
    run.observer.note_event("data", text="of a life that is over")
    run.observer.close()
    assert load(tmp_path / "a").num_steps == 100

    later = Training(seed=3, run_dir=tmp_path / "a")
    later.model.load_state_dict(saved[0])
    later.optimizer.load_state_dict(saved[1])
    later.observer.load_state_dict(saved[2])
    assert later.observer.run_dir == tmp_path / "a"
    torch.set_rng_state(rng)
    later.go(90).observer.close()
    assert_same_record(load(tmp_path / "a"), later.observer.record())
    assert_same_rows(load(tmp_path / "a"), load(tmp_path / "whole"))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("a")] == ["a"]
    assert caplog.records == []


def test_a_resumed_run_that_makes_no_step_leaves_its_directory_alone(tmp_path: Path) -> None:
    run = Training(run_dir=tmp_path / "a").go(20)
    state = run.observer.state_dict()
    run.go(20).observer.close()
    later = Training(run_dir=tmp_path / "a")
    later.observer.load_state_dict(state)
    later.observer.close()
    assert load(tmp_path / "a").num_steps == 40


def test_a_run_that_had_to_give_way_is_found_again(tmp_path: Path) -> None:
    Training(run_dir=tmp_path / "a").go(8).observer.close()
    run = Training(run_dir=tmp_path / "a").go(20)
    state = run.observer.state_dict()
    run.observer.close()
    later = Training(run_dir=tmp_path / "a")
    later.observer.load_state_dict(state)
    assert later.observer.run_dir == tmp_path / "a-2"
    later.go(10).observer.close()
    assert load(tmp_path / "a-2").num_steps == 30
    assert not (tmp_path / "a-3").exists()


def test_a_state_without_its_directory_brings_its_rows(tmp_path: Path) -> None:
    run = Training(run_dir=tmp_path / "a").go(40)
    state = run.observer.state_dict()
    run.observer.close()
    later = Training(run_dir=tmp_path / "elsewhere")
    later.observer.load_state_dict(state)
    later.go(20).observer.close()
    assert load(tmp_path / "elsewhere").steps.tolist() == list(range(1, 61))
    assert load(tmp_path / "elsewhere").meta["run_id"] == load(tmp_path / "a").meta["run_id"]


def test_a_record_continues_its_directory(tmp_path: Path) -> None:
    """Where only the directory of a killed run was kept."""
    Training(run_dir=tmp_path / "a").go(40).observer.close()
    later = Training(run_dir=tmp_path / "a")
    assert later.observer.resume(load(tmp_path / "a"), step=24)
    later.go(10).observer.close()
    assert load(tmp_path / "a").steps.tolist() == list(range(1, 35))


def test_the_earlier_process_stops_when_another_goes_on(tmp_path: Path, quick: None, caplog) -> None:
    run = Training(run_dir=tmp_path / "a").go(24)
    state = run.observer.state_dict()
    until(lambda: (tmp_path / "a" / "meta.json").exists())
    later = Training(run_dir=tmp_path / "a")
    later.observer.load_state_dict(state)
    later.go(24)
    run.go(40)
    until(lambda: "another process" in caplog.text)
    run.go(40).observer.close()
    later.observer.close()
    assert caplog.text.count("goes on with") == 1
    assert_same_record(load(tmp_path / "a"), later.observer.record())


@pytest.mark.parametrize("last_step", [0, 1, 45, 60, 61, 119, 120, 500])
def test_a_store_goes_on_wherever_its_parts_end(last_step: int, tmp_path: Path, monkeypatch) -> None:
    """Of parts that overlap, as after a kill while they were merged, each step stays once; later ones go."""
    monkeypatch.setattr(Store, "_merge_last", lambda self: None)
    before = Store(tmp_path, max_bytes=1 << 20)
    for first in range(0, 120, 20):
        before.add(made_up(first, 20))
    store.write_part(tmp_path / "part-00000009.npz", made_up(30, 40))
    monkeypatch.undo()
    later = Store(tmp_path, max_bytes=1 << 20)
    later.go_on(last_step=last_step)
    kept = min(last_step, 120)
    assert later.num_rows == kept
    later.add(made_up(kept, 30))
    assert later.num_rows == kept + 30
    rows = np.sort(np.concatenate([store.read_part(path).steps for path in parts_in(tmp_path).values()]))
    assert rows.tolist() == list(range(1, kept + 31))


def test_what_a_killed_process_left_half_written_is_swept_up(tmp_path: Path) -> None:
    run = Training(run_dir=tmp_path / "a").go(40)
    state = run.observer.state_dict()
    run.observer.close()
    (tmp_path / "a" / ".part-00000009.npz.abc.part").write_bytes(b"PK")
    newest = max(parts_in(tmp_path / "a").items())[1]
    newest.write_bytes(newest.read_bytes()[:-300])
    later = Training(run_dir=tmp_path / "a")
    later.observer.load_state_dict(state)
    later.go(8).observer.close()
    assert load(tmp_path / "a").steps.tolist() == list(range(1, 49))
    assert list((tmp_path / "a").glob(".*")) == []


def test_the_keeper_does_not_keep_an_observer_alive(tmp_path: Path) -> None:
    import gc
    import weakref

    run = Training(run_dir=tmp_path / "a").go(20)
    ref = weakref.ref(run.observer._attachment)
    del run
    gc.collect()
    assert ref() is None
