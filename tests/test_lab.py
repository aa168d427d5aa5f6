"""The laboratory: text, tokenizer, batches, models, arms, progress and the slow reference."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from thermoclaw.diagnosis.report import diagnose
from thermoclaw.lab import analytic, console, intervention, training, truth
from thermoclaw.lab.corpus import Batches, CorpusError, Tokenizer, english_text, make_corpus, python_source
from thermoclaw.lab.models import GPT, GPT2_124M, PYTHIA_410M, Attention, GPTShape, _rotary_angles, _rotate, make_gpt
from thermoclaw.lab.progress import Progress
from thermoclaw.lab.training import Workload, branch, start_arm

TINY = GPTShape(vocab_size=300, context=16, width=32, num_layers=2, num_heads=2)
SMALL = Workload(TINY, batch_size=2, length=16, steps=40, validation_tokens=512)
SGD = partial(torch.optim.SGD, lr=1e-3, momentum=0.9, weight_decay=0.1)


# -- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "the cat", "naïve – 東京 \U0001f600\n\n\tend  ", "a_b __init__ 3.14 x=1;\r\n  \x00"]
)
def test_every_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = Tokenizer.build("the cat and the other cat = 3.14", vocab_size=262)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_whole_corpus_survives_the_tokenizer_within_its_vocabulary() -> None:
    text = english_text()
    tokenizer = Tokenizer.build(text, vocab_size=2048)
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < 2048
    assert len(tokenizer.pieces) == 2048 - 256
    assert len(tokens) < len(text) / 2  # it does compress


def test_the_most_frequent_pieces_make_the_vocabulary() -> None:
    assert Tokenizer.build("b b b aa aa cc", vocab_size=258).pieces == (" b", " aa")


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="must exceed 256"):
        Tokenizer.build("text", vocab_size=256)


def test_training_and_validation_text_share_no_block() -> None:
    text = " ".join(str(i) for i in range(100_000, 104_000))  # no two windows of it are alike
    corpus = make_corpus(text, vocab_size=257, name="numbers")
    whole = Tokenizer.build(text, vocab_size=257).encode(text)
    blocks = whole.split(512)
    assert torch.equal(corpus.validation, torch.cat([b for i, b in enumerate(blocks) if i % 10 == 9]))
    assert torch.equal(corpus.train, torch.cat([b for i, b in enumerate(blocks) if i % 10 != 9]))
    again = make_corpus(text, vocab_size=257, name="numbers")
    assert torch.equal(corpus.train, again.train)


def test_a_text_too_short_to_split_is_refused() -> None:
    with pytest.raises(ValueError, match="'scrap' has 1 tokens"):
        make_corpus("x", vocab_size=300, name="scrap")


def test_python_source_is_sorted_capped_and_leaves_packages_out(tmp_path) -> None:
    for name, text in {
        "b.py": "b = 2",
        "a.py": "a = 1",
        "site-packages/c.py": "c = 3",
        "z/d.py": "d = 4",
        "e.txt": "e",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert python_source(folder=str(tmp_path)) == "a = 1\nb = 2\nd = 4\n"
    assert python_source(folder=str(tmp_path), max_bytes=8) == "a = 1\nb "
    with pytest.raises(CorpusError, match="no Python source"):
        python_source(folder=str(tmp_path / "nowhere"))


def test_the_standard_library_yields_megabytes() -> None:
    assert 1_000_000 < len(python_source(max_bytes=3_000_000)) <= 3_000_000


def test_a_batch_is_a_function_of_seed_and_number_alone() -> None:
    tokens = torch.arange(1000)
    batches = Batches(tokens, 4, 8, seed=3)
    inputs, targets = batches[5]
    assert inputs.shape == targets.shape == (4, 8)
    assert torch.equal(targets, inputs + 1)
    _ = batches[9]
    assert torch.equal(batches[5][0], inputs)
    assert not torch.equal(batches[6][0], inputs)
    assert not torch.equal(Batches(tokens, 4, 8, seed=4)[5][0], inputs)
    with pytest.raises(ValueError, match="hold no window"):
        Batches(tokens[:8], 4, 8, seed=0)


# -- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "count"), [(GPT2_124M, 124_439_808), (PYTHIA_410M, 405_334_016)])
def test_the_published_shapes_have_the_published_sizes(shape: GPTShape, count: int) -> None:
    with torch.device("meta"):
        assert GPT(shape).num_params == count


NEOX = replace(TINY, rotary=0.5, parallel=True, tied=False)


@pytest.mark.parametrize("shape", [TINY, NEOX], ids=["gpt2", "neox"])
def test_a_token_depends_on_nothing_after_it(shape: GPTShape) -> None:
    model = make_gpt(shape, seed=0)
    tokens = torch.randint(300, (2, 16))
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 300
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9], rtol=0, atol=1e-5)
    assert (before[:, 9:] - after[:, 9:]).abs().max() > 1e-3


@pytest.mark.parametrize("shape", [TINY, NEOX], ids=["gpt2", "neox"])
def test_a_model_comes_from_its_seed_and_disturbs_no_other(shape: GPTShape) -> None:
    before = torch.get_rng_state()
    one, two, other = make_gpt(shape, seed=1), make_gpt(shape, seed=1), make_gpt(shape, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32
    for (name, a), b, c in zip(one.named_parameters(), two.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert torch.equal(a, c) == (a.dim() == 1), name
    assert (one.lm_head.weight is one.wte.weight) == shape.tied
    assert abs(float(one.wte.weight.detach().std()) - 0.02) < 0.001
    loss = one(torch.randint(300, (8, 16)), torch.randint(300, (8, 16)))
    assert abs(loss.item() - np.log(300)) < 0.2


def test_rotary_positions_act_by_their_distance_alone() -> None:
    angles = _rotary_angles(12, 4)
    q, k = torch.randn(2, 1, 1, 1, 8).unbind(0)
    turned = [_rotate(x.expand(1, 1, 12, 8), angles, 4)[0, 0] for x in (q, k)]
    scores = turned[0] @ turned[1].T
    for diagonal in (-3, 0, 5):
        line = torch.diagonal(scores, diagonal)
        torch.testing.assert_close(line, line[:1].expand_as(line), rtol=0, atol=1e-4)
    assert (scores[0, 0] - scores[0, 5]).abs() > 1e-3


def test_a_model_can_be_created_in_bfloat16() -> None:
    model = make_gpt(NEOX, seed=0, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    attention = next(m for m in model.modules() if isinstance(m, Attention))
    assert attention.angles.dtype == torch.float32
    assert model(torch.zeros(1, 4, dtype=torch.long)).isfinite().all()


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple"):
        GPTShape(vocab_size=300, width=33, num_heads=2)


# -- arms -------------------------------------------------------------------------------------------------------------


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity() -> None:
    arm = start_arm("dead", SMALL, SGD, seed=0)
    with torch.no_grad():
        for p in arm.model.parameters():
            p.zero_()
    assert arm.perplexity() == pytest.approx(300, rel=1e-5)
    assert arm.model.training


def test_a_branch_without_a_remedy_goes_the_same_way_to_the_last_bit() -> None:
    arm = start_arm("one", SMALL, SGD, seed=0)
    for _ in range(5):
        arm.train_step()
    copied = branch(arm, "two", SGD)
    storages = {p.untyped_storage().data_ptr() for p in arm.model.parameters()}
    buffers = {s["momentum_buffer"].untyped_storage().data_ptr() for s in arm.optimizer.state.values()}
    assert not storages & {p.untyped_storage().data_ptr() for p in copied.model.parameters()}
    assert not buffers & {s["momentum_buffer"].untyped_storage().data_ptr() for s in copied.optimizer.state.values()}
    for _ in range(5):
        arm.train_step()
        copied.train_step()
    for a, b in zip(arm.model.parameters(), copied.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert (copied.step, copied.begun_at, copied.observer.global_step) == (10, 5, 5)


def test_a_branch_with_another_decay_parts_from_its_origin() -> None:
    arm = start_arm("one", SMALL, SGD, seed=0)
    arm.train_step()
    copied = branch(arm, "two", SGD)
    copied.optimizer.param_groups[0]["weight_decay"] = 0.0
    arm.train_step()
    copied.train_step()
    assert arm.optimizer.param_groups[0]["weight_decay"] == 0.1
    assert not torch.equal(arm.model.wte.weight, copied.model.wte.weight)


def test_the_schedule_warms_up_and_ends_at_a_tenth() -> None:
    factors = [training._warm_cosine(i, warmup_steps=10, total_steps=100) for i in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == 1.0
    assert factors[-1] == pytest.approx(0.1)
    assert all(after <= before for before, after in pairwise(factors[10:]))


def test_settings_are_told_in_words() -> None:
    arm = start_arm("one", SMALL, SGD, seed=0)
    assert arm.settings == "SGD, lr 0.001, momentum 0.9, weight_decay 0.1"


@pytest.fixture
def _little_source(monkeypatch) -> Iterator[None]:
    """The first half megabyte of the standard library in place of all of it."""
    training._corpus.cache_clear()
    monkeypatch.setattr(training, "python_source", partial(python_source, max_bytes=500_000))
    yield
    training._corpus.cache_clear()


@pytest.mark.usefixtures("_little_source")
@pytest.mark.parametrize("shape", [TINY, NEOX], ids=["gpt2", "neox"])
def test_the_full_scale_code_runs_small(shape: GPTShape) -> None:
    """Autocast and the other corpus, as on a GPU, with a model that fits anywhere."""
    workload = replace(SMALL, shape=shape, text="python", autocast=True)
    arm = start_arm("small", workload, partial(torch.optim.AdamW, lr=1e-3), seed=0, warmup_steps=2)
    for _ in range(3):
        arm.train_step()
    assert arm.loss.dtype == torch.float32
    assert {p.dtype for p in arm.model.parameters()} == {torch.float32}
    assert 200 < arm.perplexity() < 400
    assert diagnose(arm.observer).healthy


def test_default_seeds_are_those_of_the_experiment_and_never_repeat() -> None:
    assert intervention.default_seeds(1) == (42,)
    assert intervention.default_seeds(3) == (42, 137, 2024)
    assert len(set(intervention.default_seeds(7))) == 7


# -- the reference ----------------------------------------------------------------------------------------------------


def test_all_analytic_checks_pass() -> None:
    checks = analytic.analytic_checks()
    assert len(checks) >= 20
    assert [f"{check.name}: {check.measured}" for check in checks if not check.passed] == []


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, _, value in truth.DEFINITIONS])
def test_the_reference_notices_a_measurement_that_is_off(name: str, value: truth.Definition) -> None:
    adamw = partial(torch.optim.AdamW, lr=truth.LR, weight_decay=truth.DECAY)
    run = truth.run_truth(partial(torch.optim.SGD, lr=truth.LR) if name == "d_iS_noise" else adamw, num_steps=12)
    true = truth.per_layer(run, value)
    measured = np.array(run.record[name])
    assert analytic._compare(name, measured, true).passed
    measured[-1, 0] *= 1 + 1e-6
    measured[-1, 0] += 1e-6 * np.nanmax(np.abs(true))
    assert not analytic._compare(name, measured, true).passed
    measured[-1, 0] = np.nan
    assert not analytic._compare(name, measured, true).passed


def test_pure_noise_under_momentum_reaches_its_floor() -> None:
    assert analytic.momentum_floor(0.0, num_steps=20) == pytest.approx(1.0, abs=1e-6)
    assert analytic.momentum_floor(0.9, num_steps=200) == pytest.approx(np.sqrt(1 - 0.81), rel=0.1)


# -- the terminal -----------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_that_is_no_terminal_writes_a_line_now_and_then() -> None:
    stream, now = io.StringIO(), [0.0]
    with Progress("work", 1000, stream=stream, clock=lambda: now[0]) as bar:
        for step in range(1, 1001):
            now[0] += 0.5
            bar.update(step, note=lambda: "loss 7.62")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "work ██······················ 100/1000  450 s left  loss 7.62"
    assert lines[-1].startswith("work " + "█" * 24 + " 1000/1000  500 s")


def test_a_bar_on_a_terminal_redraws_one_line_and_leaves_none() -> None:
    stream, now, asked = Terminal(), [0.0], []
    with Progress("work", 10, stream=stream, clock=lambda: now[0]) as bar:
        for step in range(1, 11):
            now[0] += 0.06  # every second one is due
            bar.update(step, note=lambda: asked.append(1) or "note")
    assert len(asked) == 5
    assert "\n" not in stream.getvalue()
    assert stream.getvalue().endswith("\r")


def test_a_message_does_not_tear_the_bar(capsys) -> None:
    stream, now = Terminal(), [0.0]
    with Progress("work", 10, stream=stream, clock=lambda: now[0]) as bar:
        now[0] += 1.0
        bar.update(1)
        bar.print("alarm")
        assert capsys.readouterr().out == "alarm\n"
        assert stream.getvalue().count("work") == 2  # wiped, then drawn again


def test_a_bar_that_is_off_writes_nothing() -> None:
    stream = Terminal()
    with Progress("work", 10, stream=stream, enabled=False) as bar:
        bar.update(10)
    assert stream.getvalue() == ""


def test_color_is_for_terminals_that_want_it(monkeypatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert console.wants_color(Terminal())
    assert not console.wants_color(io.StringIO())
    assert not console.wants_color(Terminal(), no_color=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not console.wants_color(Terminal())
    assert console.paint("x", "red", enabled=True) == "\x1b[31mx\x1b[0m"
