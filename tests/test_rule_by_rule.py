"""Each rule on a synthetic run: silent on a healthy one, heard on a failing one, with its step and layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.synthetic import DRAWN, TRAINED, Synthetic
from thermoclaw import Finding, diagnose
from thermoclaw.diagnosis.engine import find, run_rules
from thermoclaw.diagnosis.refutations import REFUTED_BY
from thermoclaw.diagnosis.rules import RULES, outside
from thermoclaw.diagnosis.view import view_of
from thermoclaw.quantities import LAYER_COLUMNS
from thermoclaw.record import Record


def heard(record: Record, code: str) -> Finding:
    """The one urgent finding with that code, first in the ranking."""
    findings = find(record)
    assert findings, "nothing was said"
    first = findings[0]
    assert first.code == code, [(f.code, f.confidence) for f in findings]
    assert first.confidence in ("HIGH", "MEDIUM")
    return first


def codes(record: Record) -> set[str]:
    """All that is said, urgent or not."""
    return {finding.code for finding in run_rules(record)}


def silent(record: Record, code: str) -> None:
    assert not [f for f in run_rules(record) if f.code == code and f.confidence != "LOW"]


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("steps", [5, 30, 200, 700])
def test_a_healthy_run_is_silent(seed: int, steps: int) -> None:
    record = Synthetic(steps, seed=seed).probe(grad_zeros=0.3, silent_rows=0.1, row_likeness=0.02).record()
    assert [f.code for f in run_rules(record)] == []


def test_every_rule_of_the_table_is_tested_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    elsewhere = {"non_finite", "no_gradient", "vanishing_gradients", "plateau", "lr_too_high", "momentum_too_high"}
    elsewhere |= {"representation_collapse", "dead_features", "non_finite_features"}  # test_representation_monitor.py
    assert [rule.code for rule in RULES if f'"{rule.code}"' not in text and rule.code not in elsewhere] == []


def test_every_finding_says_what_would_refute_it() -> None:
    assert set(REFUTED_BY) == {rule.code for rule in RULES}
    finding = heard(Synthetic().set(slice(100, None), lr=0.0).record(), "lr_schedule_zero")
    assert "above zero" in finding.refuted_by
    assert "Wrong if:" in str(diagnose(Synthetic().set(slice(100, None), lr=0.0).record()))


def test_a_later_failure_from_outside_is_told_beside_an_earlier_one() -> None:
    run = Synthetic(700).set(0, start_gain=9.0)
    run.loss[600:] += 1.5
    urgent = [f.code for f in find(run.record()) if f.confidence != "LOW"]
    assert urgent == ["bad_init", "distribution_shift"]


def test_a_symptom_stands_with_its_cause() -> None:
    run = Synthetic().set(0, start_gain=9.0).set(120, grad_sq=1e4)
    first, second = find(run.record())
    assert (first.code, first.explains) == ("bad_init", ("gradient_spike",))
    assert second.confidence == "LOW"


def test_schedule_at_zero() -> None:
    run = Synthetic().set(slice(100, None), lr=0.0)
    finding = heard(run.record(), "lr_schedule_zero")
    assert (finding.first_step, finding.raised_step) == (101, 110)
    silent(Synthetic().set(slice(195, None), lr=0.0).record(), "lr_schedule_zero")
    silent(Synthetic().set(lr=0.0).record(), "lr_schedule_zero")


def test_hot_and_cold_groups() -> None:
    groups = [{"lr": 1e-3}, {"lr": 0.5}]
    names = {f"blocks.{i}.fc": [int(i == 7)] for i in range(8)}
    hot = Synthetic().set(layers=7, lr=0.5, update_sq=4.0)
    finding = heard(hot.record(param_groups=groups, layer_groups=names), "layer_lr_mismatch")
    assert finding.layers == ("blocks.7.fc",)
    assert finding.remedy is not None
    assert finding.remedy.groups == (1,)
    record = hot.record(param_groups=groups, layer_groups=names)
    small = tuple(replace(layer, num_params=48) if layer.depth == 7 else layer for layer in record.layers)
    heard(replace(record, layers=small), "layer_lr_mismatch")  # a head of a few outputs
    discriminative = Synthetic().set(layers=7, lr=1e-2, update_sq=0.04)
    silent(discriminative.record(param_groups=[{"lr": 1e-3}, {"lr": 1e-2}], layer_groups=names), "layer_lr_mismatch")
    cold = Synthetic().set(layers=slice(0, 7), lr=1e-8, update_sq=4e-14).set(layers=7, lr=1e-3)
    finding = heard(cold.record(param_groups=[{"lr": 1e-8}, {"lr": 1e-3}], layer_groups=names), "layer_lr_mismatch")
    assert len(finding.layers) == 7
    shared = {f"blocks.{i}.fc": [0, 1] for i in range(7)} | {"blocks.7.fc": [1]}  # weights here, biases there
    mean = (4096 * 1e-8 + 64 * 1e-3) / 4160
    mixed = Synthetic().set(layers=slice(0, 7), lr=mean).set(layers=7, lr=1e-3)
    record = mixed.record(param_groups=[{"lr": 0.0}, {"lr": 0.0}], layer_groups=shared)
    layers = tuple(replace(layer, num_params=4160) for layer in record.layers)
    heard(replace(record, layers=layers), "layer_lr_mismatch")  # a schedule has ended: rates are read from the means
    silent(record, "layer_lr_mismatch")
    alone = {f"blocks.{i}.fc": [0] for i in range(8)}  # as a Trainer groups adapters: nothing is without decay
    fast = Synthetic().set(lr=0.5, update_sq=4.0)
    silent(fast.record(param_groups=[{"lr": 0.5}, {"lr": 1e-5}], layer_groups=alone), "layer_lr_mismatch")


def test_updates_lost_to_short_numbers() -> None:
    coarse = {"dtypes": ["torch.bfloat16"]}
    small = Synthetic().set(lr=1e-6, update_sq=1e-12)  # weights of 0.16, whose half spacing is 2e-4
    assert heard(small.record(**coarse), "lost_updates").confidence == "HIGH"
    silent(small.record(), "lost_updates")
    silent(Synthetic().set(lr=2e-3).record(**coarse), "lost_updates")


def test_underflow() -> None:
    zeros = np.clip(np.linspace(-0.5, 1.0, 50), 0.05, 0.95)
    run = Synthetic().set(grad_sq=4e-9).probe(grad_zeros=zeros, silent_rows=0.0)
    finding = heard(run.record(), "underflow")
    assert 60 < finding.first_step < 140
    large = run.set(grad_sq=0.09).probe(grad_zeros=np.minimum(zeros, 0.55), silent_rows=0.0)
    silent(large.record(), "underflow")  # gradients of ordinary size: fewer examples reach the units
    sudden = np.where(zeros > 0.5, 0.95, 0.05)
    silent(large.probe(grad_zeros=sudden).record(), "underflow")  # however few
    silent(large.set(grad_sq=4e-9).record(), "underflow")  # always the same ones: units that are off
    others = np.where(zeros > 0.5, 0.93 + 0.04 * np.cos(np.arange(50)), 0.05)
    assert heard(large.probe(grad_zeros=others).record(), "underflow")
    silent(Synthetic().probe(grad_zeros=0.6, silent_rows=0.0).record(), "underflow")


def test_epsilon_above_the_gradient() -> None:
    group = [{"lr": 1e-3, "eps": 1.0, "beta2": 0.999, "decoupled": 1.0}]
    weak = Synthetic().set(update_sq=4096 * (1e-3 * 5e-3) ** 2)
    finding = heard(weak.record(param_groups=group), "epsilon_dominates")
    assert finding.remedy is not None
    assert (finding.remedy.knob, finding.remedy.value) == ("eps", 1e-8)
    silent(weak.record(), "epsilon_dominates")
    silent(weak.record(param_groups=group, optimizer="SGD"), "epsilon_dominates")


def test_epsilon_a_few_times_above_the_gradient_of_a_model_that_does_not_learn() -> None:
    def run(rms: float, step: float, loss: float = 2.5, first: int = 0) -> Record:
        made = Synthetic().set(loss=loss * (0.1 + 0.9 * np.exp(-np.arange(200) / (2.0 if loss < 1 else 400.0))))
        wobble = np.exp(0.1 * np.random.default_rng(0).standard_normal((200, 8)))[first:]
        made.set(slice(first, None), update_sq=4096 * (step * 1e-3) ** 2, grad_sq_smooth=4096 * rms**2)
        return made.set(slice(first, None), grad_sq=4096 * rms**2 * wobble).record()

    assert heard(run(2e-9, 0.1), "epsilon_dominates").raised_step < 60
    silent(run(8e-9, 0.1), "epsilon_dominates")
    silent(run(2e-9, 0.3), "epsilon_dominates")  # steps of ordinary length
    silent(run(2e-9, 0.1, loss=0.5), "epsilon_dominates")  # with the loss gone, so are gradients
    silent(run(2e-9, 0.1, first=90), "epsilon_dominates")


@pytest.mark.parametrize(("gain", "known"), [(0.0, "zero"), (9.0, "9.0"), (1e-4, "1.0e-04")])
def test_weights_at_a_wrong_scale(gain: float, known: str) -> None:
    run = Synthetic().set(0, start_gain=gain)
    record = run.set(0, slice(0, 7), grad_sq=0.0).record() if gain == 0 else run.record()
    assert known in heard(record, "bad_init").seen
    silent(Synthetic().set(0, start_gain=0.58).set(0, slice(0, 3), start_gain=0.0).record(), "bad_init")


def test_half_of_the_weights_at_zero() -> None:
    def run(zero: int, stuck: int) -> Record:
        made = Synthetic().set(0, start_gain=0.58).set(0, slice(0, zero), start_gain=0.0)
        return made.set(0, slice(0, stuck), grad_sq=0.0).record()

    heard(run(4, 4), "bad_init")
    silent(run(3, 3), "bad_init")
    silent(run(4, 0), "bad_init")  # a branch that starts at zero and gets its gradient
    silent(run(4, 8), "bad_init")  # nothing has a gradient: it is not the weights that stop it


def test_rows_that_start_alike() -> None:
    assert "same weights" in heard(Synthetic().set(0, start_gain=0.6).probe(row_likeness=1.0).record(), "bad_init").seen


def test_inputs_at_a_wrong_scale() -> None:
    finding = heard(Synthetic().set(slice(0, 9), 0, input_scale=250.0).record(), "unnormalised_input")
    assert finding.layers == ("blocks.0.fc",)
    heard(Synthetic().set(slice(0, 9), 0, input_scale=57.0).record(), "unnormalised_input")
    silent(Synthetic().set(slice(0, 9), 0, input_scale=12.0).record(), "unnormalised_input")
    coarse = Synthetic().set(slice(0, 9), 0, input_scale=250.0).record(dtypes=["torch.bfloat16"])
    silent(coarse, "unnormalised_input")  # a bias in that format has lost part of its gradient
    scales = 250.0 * np.exp(0.8 * np.random.default_rng(0).standard_normal(9))
    record = Synthetic().set(slice(0, 9), 0, input_scale=scales).record()
    heard(record, "unnormalised_input")
    norm = replace(record.layers[1], ltype="layernorm")
    normed = replace(record, layers=(record.layers[0], norm, *record.layers[2:]))
    silent(normed, "unnormalised_input")  # it has cancelled the bias's gradient, what is left is rounding


def test_gradients_that_pile_up() -> None:
    run = Synthetic()
    t = np.arange(1.0, run.steps + 1)[:, None]
    run.set(grad_sq=(0.3 * t) ** 2, coherence=1.0 - 0.5 / t**2)
    assert heard(run.record(), "gradient_accumulation_bug").raised_step <= 16
    full_batch = Synthetic().set(grad_sq=(0.3 * np.exp(0.04 * np.minimum(t, 40))) ** 2, coherence=0.995)
    full_batch.set(loss=2.5 * np.exp(-t[:, 0] / 50), noise_share=0.0)
    silent(full_batch.record(), "gradient_accumulation_bug")


def test_a_clipped_sum_is_known_by_its_missing_noise() -> None:
    run = Synthetic().set(grad_sq=0.125, coherence=0.96, noise_share=0.0)
    falling = Synthetic().set(grad_sq=0.125, coherence=0.96, noise_share=0.0)
    silent(falling.record(), "gradient_accumulation_bug")  # the loss falls as the gradients promise: a large batch
    run.set(loss=2.3 + 0.05 * np.random.default_rng(5).standard_normal(200))
    assert heard(run.record(), "gradient_accumulation_bug").confidence == "HIGH"


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_steps_that_get_nowhere(optimizer: str) -> None:
    run = Synthetic(optimizer=optimizer).set(loss=2.5 + 0.01 * np.sin(np.arange(200)))
    run.set(update_sq=(1e-5 * 10) ** 2, overshoot=-0.35 * 0.3 * 1e-4, alignment=0.4)
    finding = heard(run.record(), "lr_too_low")
    assert finding.remedy is not None
    assert finding.remedy.value > 10 * finding.remedy.was
    silent(Synthetic(optimizer=optimizer).set(update_sq=1e-8).record(), "lr_too_low")  # slow steps, and it learns


def test_clipping_that_holds_every_step_back() -> None:
    run = Synthetic(optimizer="SGD").set(loss=2.5 + 0.01 * np.sin(np.arange(200)))
    run.set(grad_sq=1.25e-7, update_sq=(1e-5 * 10) ** 2, overshoot=-0.35 * 3.5e-4 * 1e-4, alignment=0.4)
    assert "max_norm" in heard(run.record(), "over_clipping").evidence


def test_a_bound_that_holds_back_a_new_model_all_the_way() -> None:
    def run(bound: float, gain: Any = DRAWN) -> Record:
        made = Synthetic(250, optimizer="SGD").set(loss=2.5 * np.exp(-np.arange(250) / 100.0)).probe(start_gain=gain)
        made.set(grad_sq=bound**2 / 8, update_sq=(1e-5 * 10) ** 2, overshoot=-bound / 8**0.5 * 1e-4, alignment=1.0)
        return made.record()

    assert "over_clipping" in codes(run(1e-3))  # it learns, and never leaves the straight line
    assert "over_clipping" not in codes(run(0.05))
    assert "over_clipping" not in codes(run(1e-3, TRAINED))


def test_gradients_that_fade_within_branches() -> None:
    def run(fades: float, falls: float = 0.0, gain: Any = DRAWN) -> Record:
        size = np.array([1e-12, 1e-10, 1e-9, 1.0, fades * 1e-12, fades * 1e-10, fades * 1e-9, 1.0])
        made = Synthetic(optimizer="RMSprop").set(loss=2.5 - falls * np.arange(200)).probe(start_gain=gain)
        return made.set(grad_sq=(0.1 * size) ** 2 * np.ones((200, 8))).record()

    assert "vanishing_gradients" in codes(run(1.0))
    assert "vanishing_gradients" not in codes(run(1e7))  # few are that small
    assert "vanishing_gradients" not in codes(run(1.0, falls=0.01))
    assert "vanishing_gradients" not in codes(run(1.0, gain=TRAINED))


def test_nothing_is_said_of_what_an_overflow_stops() -> None:
    def run(size: float) -> set[str]:
        return codes(Synthetic(optimizer="Adam").set(slice(100, None), grad_sq=size, update_sq=0.0).record())

    assert "frozen_layers" in run(1.0)
    assert "frozen_layers" not in run(1e37)


def test_clipping_below_epsilon() -> None:
    def run(spread: float) -> Record:
        size = 5e-11 * np.exp(spread * np.random.default_rng(0).standard_normal((200, 8)))
        made = Synthetic(optimizer="Adam").set(grad_sq=4096 * size**2, grad_sq_smooth=4096 * 2.5e-21)
        return made.set(update_sq=4096 * (5e-3 * 1e-3) ** 2).record()

    assert heard(run(0.0), "over_clipping").evidence["max_norm"] == pytest.approx(5e-11 * np.sqrt(8 * 4096))
    silent(run(0.0), "epsilon_dominates")
    assert heard(run(0.3), "epsilon_dominates").evidence["eps"] == 1e-8  # other norms at each step: nobody clips
    silent(run(0.3), "over_clipping")


def test_clipping_at_a_usual_bound_is_not_what_holds_back() -> None:
    run = Synthetic(optimizer="SGD").set(loss=2.5 + 0.01 * np.sin(np.arange(200)), alignment=0.4)
    run.set(grad_sq=0.125, update_sq=(1e-5 * 10) ** 2, overshoot=-0.35 * 0.35 * 1e-4)
    run.loss *= 1000.0
    silent(run.record(), "over_clipping")
    assert heard(run.record(), "lr_too_low").confidence == "HIGH"


def test_zeros_after_a_divergence_are_no_underflow() -> None:
    zeros = np.clip(np.linspace(-0.5, 1.0, 50), 0.05, 0.95)
    run = Synthetic().set(grad_sq=4e-9).probe(grad_zeros=zeros, silent_rows=0.0)
    assert heard(run.record(), "underflow")
    run.loss[40:] = 50.0
    silent(run.record(), "underflow")


def test_a_gradient_among_zeros_is_no_spike() -> None:
    loud = Synthetic().set(150, grad_sq=400.0)
    assert heard(loud.record(), "gradient_spike").first_step == 151
    mostly = np.where(np.arange(200) % 5 == 0, 1.0, 0.0)[:, None] * loud.columns["grad_sq"]
    silent(Synthetic().set(grad_sq=mostly).record(), "gradient_spike")


def test_a_change_of_the_data_that_was_announced() -> None:
    def run(*steps: int) -> Synthetic:
        made = Synthetic(events=[{"kind": "data", "step": step} for step in steps])
        made.loss[120:] += 3.0
        return made

    assert heard(run().record(), "distribution_shift").first_step == 121
    assert heard(run(60).record(), "distribution_shift").first_step == 121
    silent(run(120).record(), "distribution_shift")
    swing = run().set(slice(110, 120), coherence=-0.8, overshoot=0.01)
    silent(swing.record(), "distribution_shift")  # a rate at the edge, whose swing breaks out
    joined = run().set(slice(0, 120), 7, grad_sq=0.0)  # a new head, and its loss with it
    silent(joined.record(), "distribution_shift")


def test_a_full_batch_that_stands_still_is_not_clipped() -> None:
    def run(agree: float) -> Record:
        made = Synthetic(optimizer="SGD").set(loss=2.5 + 1e-6 * np.arange(200), coherence=agree)
        made.set(grad_sq=1.25e-7, update_sq=(1e-5 * 10) ** 2, overshoot=-0.35 * 3.5e-4 * 1e-4, alignment=0.4)
        return made.record()

    silent(run(1.0), "over_clipping")
    assert heard(run(1.0), "lr_too_low").confidence == "HIGH"
    assert heard(run(0.5), "over_clipping").code == "over_clipping"


def test_an_expert_that_nobody_chooses() -> None:
    def run(*idle: int) -> Record:
        names = ("stem", "ex.0.up", "ex.0.down", "ex.1.up", "ex.1.down", "mid", "last", "head")
        made = Synthetic().probe(silent_rows=0.0, dead_rows=0.0, grad_zeros=0.0)
        for layer in idle:
            made.set(slice(100, None), layer, grad_sq=0.0)
            for name, value in (("silent_rows", 1.0), ("grad_zeros", 1.0)):
                made.columns[name][100::4, layer] = value
        record = made.record()
        layers = tuple(replace(layer, name=name) for layer, name in zip(record.layers, names, strict=True))
        return Record(record.steps, layers, record.layer_values, record.run_values, record.meta)

    unused = next(f for f in run_rules(run(3, 4)) if f.code == "dead_units")
    assert (unused.confidence, unused.layers) == ("LOW", ("ex.1.up", "ex.1.down"))
    dead = heard(run(3), "dead_units")  # the layer after it has a gradient in its bias
    assert (dead.confidence, dead.layers) == ("HIGH", ("ex.1.up",))
    both = heard(run(3, 4, 5), "dead_units")
    assert (both.confidence, both.layers) == ("HIGH", ("mid",))


def test_layers_that_begin_at_zero_hold_gradients_back_for_a_while() -> None:
    fading = np.geomspace(1e-6, 1.0, 8) * np.ones((200, 8))
    assert heard(Synthetic(optimizer="SGD").set(grad_sq=0.09 * fading**2).record(), "vanishing_gradients")
    size = np.array([1.0, 1.0, 1.0, 1.0, 8.0, 64.0, 512.0, 4096.0])
    gates = Synthetic(optimizer="SGD").set(grad_sq=(1e-4 * size) ** 2 * np.ones((200, 8)))
    assert heard(gates.record(), "vanishing_gradients")
    off = (
        Synthetic(optimizer="SGD").set(grad_sq=0.09 * fading**2).probe(grad_zeros=np.where(np.arange(8) < 2, 0.99, 0.1))
    )
    assert "vanishing_gradients" not in [f.code for f in run_rules(off.record())]  # units there are off
    broken = Synthetic(optimizer="SGD").set(grad_sq=0.09 * fading**2).set(slice(10, None), loss=50.0)
    assert "vanishing_gradients" not in [f.code for f in run_rules(broken.record())]  # steps broke what gradients pass
    gates.columns["start_gain"] = np.where(np.arange(8) < 4, 0.58, 0.0) * np.ones((200, 8))
    silent(gates.record(), "vanishing_gradients")
    apart = np.where(np.arange(8) < 4, 1e-4, 1.0)  # two branches: a policy and a value, say
    silent(Synthetic(optimizer="SGD").set(grad_sq=apart**2 * np.ones((200, 8))).record(), "vanishing_gradients")


def test_a_weight_that_a_tiny_rate_cannot_move_is_not_frozen() -> None:
    stuck = Synthetic(optimizer="Adam").set(layers=2, update_sq=0.0)
    assert heard(stuck.record(), "frozen_layers").confidence == "HIGH"
    assert heard(stuck.set(weight_decay=0.01).record(), "frozen_layers").confidence == "HIGH"
    size = float(np.sqrt(stuck.columns["param_sq"].mean() / 4096))
    silent(stuck.set(weight_decay=1.0 / size).record(), "frozen_layers")  # where signed steps and decay meet
    silent(stuck.set(lr=1e-9, weight_decay=0.01).record(), "frozen_layers")


def test_weights_that_grow_along_themselves() -> None:
    run = Synthetic()
    norm = 10.0 * np.exp(0.02 * np.maximum(np.arange(200) - 100, 0))[:, None] * np.ones((200, 8))
    growth = np.diff(norm, axis=0, prepend=norm[:1])
    run.set(param_sq=norm**2, update_sq=growth**2 + 0.02**2)
    silent(run.record(), "weight_blow_up")  # the gradient asks for it, as on separable data
    run.set(slice(100, None), alignment=0.02)
    finding = heard(run.record(), "weight_blow_up")
    assert 95 <= finding.first_step <= 110
    assert finding.evidence["growth_per_step"] == pytest.approx(0.02, rel=0.1)


def test_coupled_decay_that_takes_the_step_over() -> None:
    run = Synthetic(optimizer="Adam")
    norm = 10.0 * np.exp(-0.01 * np.arange(200))[:, None] * np.ones((200, 8))
    run.set(param_sq=norm**2, update_sq=(0.011 * norm) ** 2, weight_decay=1.0)
    group = [{"lr": 1e-3, "weight_decay": 1.0, "adaptive": 1.0, "decoupled": 0.0, "beta2": 0.999, "eps": 1e-8}]
    finding = heard(run.record(param_groups=group), "weight_decay_too_high")
    assert finding.remedy is not None
    assert finding.remedy.value < 0.1


def test_second_moment_that_lags() -> None:
    run = Synthetic().set(slice(120, None), grad_sq=400.0).set(slice(120, 130), update_sq=4096 * (6e-3) ** 2)
    finding = heard(run.record(), "second_moment_lag")
    assert finding.first_step == 121
    silent(Synthetic(optimizer="SGD").set(slice(120, 130), update_sq=0.15).record(), "second_moment_lag")


def test_steps_that_lose_the_gradient() -> None:
    run = Synthetic().set(slice(100, None), alignment=0.01 * np.random.default_rng(1).standard_normal((100, 8)))
    run.set(slice(90, None), loss=run.loss[90:] + 0.8 * (1.0 - np.exp(-np.arange(110) / 40)))
    finding = heard(run.record(), "incoherent_update")
    assert 96 <= finding.first_step <= 106
    run.set(slice(100, None), grad_sq=0.03**2)
    silent(run.record(), "incoherent_update")  # momentum goes on where the gradient has gone
    gradual = Synthetic(400)
    gradual.set(alignment=np.linspace(0.6, 0.05, 400)[:, None] * np.ones((400, 8)))
    silent(gradual.record(), "incoherent_update")


def test_dead_units() -> None:
    def run(silent: Any, dead: Any = np.nan) -> Record:
        made = Synthetic().probe(silent_rows=silent, grad_zeros=silent, dead_rows=dead)
        for name in ("silent_rows", "grad_zeros", "dead_rows"):
            made.columns[name][:, 7] *= 0.1  # the last layer, which no activation silences
        return made.record()

    fell = np.where(np.arange(50) < 25, 0.05, 0.9)
    assert 88 <= heard(run(fell), "dead_units").first_step <= 104
    assert heard(run(0.8, 0.8), "dead_units").confidence == "HIGH"
    silent(run(0.4, 0.3), "dead_units")
    silent(run(np.linspace(0.05, 0.95, 50)), "dead_units")  # not at once


def test_units_that_are_dead_from_the_start_are_no_gradient_that_vanishes() -> None:
    fading = np.geomspace(1e-6, 1.0, 8) * np.ones((200, 8))

    def run(first: float) -> list[str]:
        off = np.where(np.arange(8) < 4, 0.9, 0.05)
        made = Synthetic(optimizer="SGD").set(grad_sq=0.09 * fading**2)
        made.probe(silent_rows=off, dead_rows=off, grad_zeros=off).set(0, grad_zeros=first)
        made.set(slice(0, 44), dead_rows=np.nan)  # told after twelve probes
        return [f.code for f in find(made.record())]

    assert run(0.9)[0] == "dead_units"
    assert run(0.4)[0] == "vanishing_gradients"  # they died of something


def test_units_behind_a_layer_norm() -> None:
    """A norm mixes them: the rows in front of it have a gradient, its own elements that are off have none."""

    def run(zeros: Any, ltype: str = "layernorm") -> Record:
        made = Synthetic().set(slice(100, None), loss=2.0).probe(silent_rows=0.0, dead_rows=0.0, grad_zeros=0.0)
        for name in ("silent_rows", "dead_rows"):
            made.set(layers=3, **{name: np.nan})
        made.columns["grad_zeros"][::4, 3] = zeros
        record = made.record()
        norm = replace(record.layers[3], ltype=ltype)
        return replace(record, layers=(*record.layers[:3], norm, *record.layers[4:]))

    fell = np.where(np.arange(50) < 25, 0.05, 0.9)
    told = heard(run(fell), "dead_units")
    assert (told.confidence, told.layers) == ("HIGH", ("blocks.3.fc",))
    silent(run(fell, "mlp"), "dead_units")
    silent(run(np.where(np.arange(50) < 25, 0.05, 0.8 + 0.1 * np.cos(np.arange(50)))), "dead_units")  # never the same
    assert heard(run(0.9), "dead_units").first_step == 1
    both = run(fell)  # a batch norm behind a convolution: its elements are the rows'
    values = both.layer_values.copy()
    values[::4, 2, LAYER_COLUMNS.index("grad_zeros")] = fell
    values[::4, 2, LAYER_COLUMNS.index("silent_rows")] = np.roll(fell, 2)  # told two probes later
    assert heard(replace(both, layer_values=values), "dead_units").layers == ("blocks.2.fc",)


def test_dead_units_before_the_last_layer() -> None:
    fell = np.where(np.arange(50) < 25, 0.05, 0.97)

    def run(zeros: float, size: float, rows: float) -> Record:
        made = Synthetic().probe(silent_rows=fell, grad_zeros=fell).set(grad_sq=4096.0 * size**2)
        made.columns["grad_zeros"][100::4, 7] = zeros
        made.columns["silent_rows"][::4, 7] = rows
        return made.record()

    assert heard(run(0.97, 1e-3, 0.0), "dead_units")  # its inputs are zero, its errors are not
    silent(run(0.97, 1e-6, 0.0), "dead_units")  # flushed
    silent(run(0.5, 1e-3, 0.6), "dead_units")
    record = run(0.9, 1e-3, 0.0)
    head = replace(record.layers[7], num_params=32)  # of one output, too small to be a weight matrix
    shapes = {**record.meta["layer_shapes"], head.name: [1, 32]}
    small = replace(record, layers=(*record.layers[:7], head), meta={**record.meta, "layer_shapes": shapes})
    assert heard(small, "dead_units")


def test_a_spike_of_the_gradient() -> None:
    finding = heard(Synthetic().set(120, grad_sq=1e4).record(), "gradient_spike")
    assert finding.first_step == finding.raised_step == 121
    assert finding.remedy is not None
    assert finding.remedy.knob == "clip"
    silent(Synthetic().set(120, grad_sq=4.0).record(), "gradient_spike")
    silent(Synthetic().set(119, update_sq=9.0).set(120, grad_sq=1e4).record(), "gradient_spike")  # a long step made it
    longer = Synthetic().set(119, update_sq=0.01)  # five times as long as others
    silent(longer.set(120, grad_sq=1e4).record(), "gradient_spike")
    assert heard(
        longer.set(120, grad_sq=1e6).record(), "gradient_spike"
    )  # no such step makes a gradient thousands-fold


def test_a_spike_of_the_loss_and_a_shift() -> None:
    assert heard(Synthetic().set(slice(120, 123), loss=9.0).record(), "loss_spike").first_step == 121
    shifted = Synthetic()
    shifted.loss[120:] += 1.5
    finding = heard(shifted.record(), "distribution_shift")
    assert (finding.first_step, finding.raised_step) == (121, 126)
    shifted.loss[110] += 3.0  # one odd batch before
    assert heard(shifted.record(), "distribution_shift").first_step == 121
    shifted.loss[112] += 3.0
    silent(shifted.record(), "distribution_shift")
    silent(
        Synthetic().set(slice(119, 121), update_sq=4.0).set(slice(120, None), loss=3.0).record(), "distribution_shift"
    )


def test_a_shift_that_throws_the_loss_up_before_it_stays() -> None:
    thrown = Synthetic().set(120, loss=9.0).set(slice(121, None), loss=3.0)
    assert heard(thrown.record(), "distribution_shift").first_step == 121  # though 3.0 is less than a half of 9.0
    assert "loss_spike" not in [
        f.code for f in run_rules(thrown.record())
    ]  # nor is it back, as high as the loss was at the start
    silent(Synthetic().set(slice(120, 123), loss=9.0).record(), "distribution_shift")


def test_a_shift_of_a_short_run() -> None:
    assert heard(Synthetic(100).set(slice(36, None), loss=4.0).record(), "distribution_shift").first_step == 37


def test_steps_of_one_example() -> None:
    def run(rank: float = 1.0, scatter: float = 0.5, left: float = 0.9, noise: float = 0.95) -> Record:
        random = np.random.default_rng(0)
        t = np.arange(200)
        level = 2.3 * (left + (1 - left) * np.exp(-t / 20.0))
        made = Synthetic().set(loss=level * (1.0 + scatter * random.standard_normal(200)), noise_share=noise)
        made.columns["stable_rank"] = np.full((200, 8), np.nan)
        return made.set(slice(0, 200, 4), 7, stable_rank=rank).record()

    finding = heard(run(), "gradient_noise")
    assert (finding.confidence, finding.evidence["stable_rank"]) == ("MEDIUM", 1.0)
    assert "blocks.7.fc" in finding.seen
    silent(run(rank=1.001), "gradient_noise")  # of two
    silent(run(scatter=0.1), "gradient_noise")  # all inputs of that layer have become alike
    silent(run(left=0.1), "gradient_noise")  # it learns
    silent(run(noise=0.5), "gradient_noise")


def test_noise_that_drowns_the_gradient() -> None:
    run = Synthetic()
    run.set(slice(100, None), coherence=0.005 * np.random.default_rng(2).standard_normal((100, 8)), noise_share=0.97)
    run.set(slice(100, None), loss=0.9 + 0.05 * np.random.default_rng(3).standard_normal(100))
    assert 95 <= heard(run.record(), "gradient_noise").first_step <= 105

    def small(record: Record) -> Record:  # too small to tell noise from the cosines of random directions
        return replace(record, layers=tuple(replace(layer, num_params=100) for layer in record.layers))

    heard(small(run.record()), "gradient_noise")
    thrown = run.set(slice(100, None), loss=90.0).record()
    assert "gradient_noise" not in [f.code for f in run_rules(small(thrown))]  # weights that were thrown far


@pytest.mark.parametrize(
    ("wobble", "code", "confidence"), [(0.02, "label_noise", "MEDIUM"), (0.5, "gradient_noise", "LOW")]
)
def test_a_loss_that_stands_near_its_start(wobble: float, code: str, confidence: str) -> None:
    """A batch that is too small cannot be told from one that is as small as it should be: for information only."""
    random = np.random.default_rng(4)
    run = Synthetic(loss_seed := 300).set(loss=2.3 + wobble * random.standard_normal(loss_seed))
    run.set(coherence=0.05 * random.standard_normal((300, 8)), noise_share=0.95)
    run.set(overshoot=0.0).probe(output_drift=1e-9)
    ten = {"layer_shapes": {f"blocks.{i}.fc": [10, 64] for i in range(8)}}

    def said() -> list[tuple[str, str]]:
        return [(f.code, f.confidence) for f in find(run.record(**ten))]

    assert said() == [(code, confidence)]
    run.optimizer = "SGD"
    assert said() == [(code, confidence)]
    drawn = run.columns["grad_sq"].copy()
    silent(run.set(grad_sq=0.09).record(**ten), code)  # every gradient is cut: it is the bound that holds it back
    run.columns["grad_sq"], run.optimizer = drawn, "AdamW"
    silent(run.record(), code)  # far below chance for 64 classes: a run that goes on from a checkpoint
    silent(run.set(update_sq=1e-6).record(**ten), code)  # steps too short to tell


def test_validation_that_no_longer_follows() -> None:
    def run(values: list[float]) -> Record:
        made = Synthetic(300).set(loss=2.3 * np.exp(-np.arange(300) / 30))
        made.events = [{"kind": "epoch", "step": 30 * (i + 1), "val_loss": v} for i, v in enumerate(values)]
        return made.record()

    assert heard(run([2.0, 1.6, 1.5, 1.5, 1.55, 1.6, 1.7, 1.8, 1.9, 2.0]), "overfitting").confidence == "HIGH"
    silent(run([1.2, 0.5, 0.2, 0.1, 0.1, 0.08, 0.08, 0.07, 0.07, 0.07]), "overfitting")
    silent(run([2.0, 14.0, 3.0, 0.5, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1]), "overfitting")  # running means that lag


def test_a_model_that_multiplies_its_signal() -> None:
    run = Synthetic().set(slice(0, 3), grad_sq=1e6).set(0, loss=60.0)
    assert "steepness" in heard(run.record(), "exploding_gradients").evidence


@pytest.mark.parametrize(("size", "is_told"), [(1.0, True), (1e-3, False)])
def test_outputs_that_begin_far_too_large(size: float, is_told: bool) -> None:
    t = np.arange(200)
    run = Synthetic().set(loss=size * (1000.0 * np.exp(-t / 2.0) + 2.0)).probe(start_gain=DRAWN)
    run.set(slice(0, 3), grad_sq=(1000.0 * size) ** 2)
    told = [f.evidence for f in run_rules(run.record()) if f.code == "exploding_gradients"]
    assert bool(told) == is_told  # a loss of about 1 that is soon gone is an easy task
    assert all(evidence["steepness"] == pytest.approx(10.0, rel=0.01) for evidence in told)


@pytest.mark.parametrize(("gain", "is_new"), [(3**-0.5, True), (9.0, True), (0.7, False)])
def test_a_model_that_multiplies_its_signal_while_the_loss_stays(gain: float, is_new: bool) -> None:
    def told(grad_sq: float) -> list[str]:
        made = Synthetic().probe(start_gain=DRAWN if gain < 0.6 else TRAINED).set(slice(0, 3), grad_sq=grad_sq)
        if gain > 1.0:
            made.set(0, 0, start_gain=gain)
        return [f.confidence for f in run_rules(made.record()) if f.code == "exploding_gradients"]

    assert told(4e2) == (["MEDIUM"] if is_new else [])  # 80 times the loss: of a trained model, it may be a small loss
    assert told(1e2) == []
    assert told(1e6) == ["HIGH"]


def test_a_cut_graph_and_missing_parameters() -> None:
    cut = Synthetic().set(layers=slice(0, 3), has_grad=0.0, grad_sq=0.0, update_sq=0.0, coherence=np.nan)
    finding = heard(cut.record(), "frozen_layers")
    assert len(finding.layers) == 3
    meant = Synthetic().set(layers=slice(0, 3), has_grad=np.nan, grad_sq=0.0, update_sq=0.0, coherence=np.nan)
    silent(meant.record(), "frozen_layers")


def test_attention_that_sharpens() -> None:
    run = Synthetic(300)
    rows = np.arange(0, 300, 16)
    run.set(0, 2, attention_gain=np.nan).columns["attention_gain"][rows, 2] = 0.2 * np.exp(0.05 * rows)
    finding = heard(run.record(), "attention_logit_growth")
    assert finding.layers == ("blocks.2.fc",)
    slow = Synthetic(300)
    slow.set(0, 2, attention_gain=np.nan).columns["attention_gain"][rows, 2] = 0.2 * np.exp(0.02 * rows)
    silent(slow.record(), "attention_logit_growth")


def test_logits_that_run_away_together() -> None:
    run = Synthetic()
    run.probe(output_drift=np.where(np.arange(50) < 25, 1e-9, 0.5))
    assert 97 <= heard(run.record(), "output_logit_divergence").first_step <= 105
    silent(Synthetic().probe(output_drift=0.5).record(), "output_logit_divergence")  # no cross-entropy, or a z-loss


def test_logits_that_run_away_at_once() -> None:
    def run(drift: float, after: float, calm: float = 1e-9) -> Record:
        made = (
            Synthetic().probe(output_drift=np.where(np.arange(50) == 25, drift, calm)).set(slice(100, 104), grad_sq=1.0)
        )
        return made.set(slice(101, 104), grad_sq=after**2).record()

    finding = heard(run(0.7, 1.0), "output_logit_divergence")
    assert (finding.first_step, finding.raised_step) == (98, 101)  # after the last probe that was calm
    silent(run(0.4, 1.0), "output_logit_divergence")  # one broken number makes as much common
    silent(run(0.7, 0.1), "output_logit_divergence")  # it was one batch
    silent(run(0.7, 1.0, calm=1e-3), "output_logit_divergence")


def test_a_layer_that_joins_later_is_not_broken_before() -> None:
    run = Synthetic().set(slice(0, 50), 7, **dict.fromkeys(("lr", "param_sq", "grad_sq", "update_sq"), np.nan))
    silent(run.record(), "non_finite")
    assert heard(run.set(slice(60, None), 7, param_sq=np.nan).record(), "non_finite").first_step == 61


def test_what_is_solved_has_no_gradient() -> None:
    zeros = np.where(np.arange(50) < 15, 0.1, 1.0)
    run = Synthetic().probe(grad_zeros=zeros, silent_rows=zeros).set(slice(60, None), grad_sq=0.0, loss=0.0)
    silent(run.record(), "underflow")
    silent(run.record(), "dead_units")


def test_a_shallow_model_may_rewrite_its_weights() -> None:
    def run(layers: int, loss: float) -> Record:
        made = Synthetic(layers=layers).set(slice(0, 10), update_sq=25.0).set(slice(3, 8), loss=loss)
        return made.record()

    assert heard(run(8, 9.0), "lr_too_high").first_step == 1
    silent(run(1, 2.4), "lr_too_high")
    silent(run(8, 1.0), "lr_too_high")  # the loss falls for it


# -- what the optimizer cannot have done ----------------------------------------------------------------------------


def _longest_adam_step(lr: float = 1e-3, size: int = 4096) -> float:
    return float(lr * np.sqrt(size) * 0.1 / np.sqrt(1e-3) / np.sqrt(1 - 0.9**2 / 0.999))  # β = 0.9, 0.999


def test_the_longest_step_of_adam_is_the_largest_there_is() -> None:
    random, worst = np.random.default_rng(0), np.zeros(60)
    for _ in range(3000):
        g = random.standard_normal(60) * np.exp(random.standard_normal() * np.linspace(-4, 4, 60))
        m = v = 0.0
        for t, value in enumerate(np.abs(g), start=1):
            m, v = 0.9 * m + 0.1 * value, 0.99 * v + 0.01 * value**2
            worst[t - 1] = max(worst[t - 1], m / (1 - 0.9**t) / np.sqrt(v / (1 - 0.99**t)))
    run = Synthetic(60).probe(grad_zeros=0.0).set(0, update_sq=4096 * 1e-6)
    record = run.record(param_groups=[{"beta2": 0.99, "decoupled": 1.0}])
    bound = outside._worst_history(view_of(record))
    assert bound is not None
    assert (worst <= bound[:, 0] * (1 + 1e-9)).all()
    assert worst[-1] > 0.9 * bound[-1, 0]
    assert bound[0, 0] == pytest.approx(1.0)


def test_a_layer_that_something_writes_at_every_step() -> None:
    def run(times: float, last: int, optimizer: str = "AdamW") -> Record:
        made = Synthetic(optimizer=optimizer).set(slice(100, last), 3, update_sq=(times * _longest_adam_step()) ** 2)
        return made.record(param_groups=[{"beta2": 0.999, "decoupled": 1.0}])

    finding = heard(run(1.5, 120), "external_update")
    assert (finding.first_step, finding.raised_step, finding.layers) == (101, 110, ("blocks.3.fc",))
    assert finding.confidence == "HIGH"
    silent(run(1.2, 120), "external_update")
    silent(run(1.5, 109), "external_update")
    loaded = Synthetic().set(slice(0, 10), 3, update_sq=(1.5 * _longest_adam_step()) ** 2)
    silent(loaded.record(param_groups=[{"beta2": 0.999}]), "external_update")  # the first row may be a checkpoint's
    silent(run(1.5, 120, "Lion"), "external_update")  # whose longest step nobody told
    rates = [{"lr": 1e-3, "beta2": 0.999}, {"lr": 1.0, "beta2": 0.999}]
    made = Synthetic().set(slice(100, 120), 3, update_sq=(1.5 * _longest_adam_step()) ** 2)
    mixed = made.record(param_groups=rates, layer_groups={f"blocks.{i}.fc": [0, 1] for i in range(8)})
    silent(mixed, "external_update")  # a bias with a rate of its own moves further than the mean rate allows
    ended = [{"lr": 0.0, "beta2": 0.999}, {"lr": 0.0, "beta2": 0.999}]
    ended_mixed = made.record(param_groups=ended, layer_groups={f"blocks.{i}.fc": [0, 1] for i in range(8)})
    silent(ended_mixed, "external_update")  # at a schedule's end nobody knows whether the rates were the same
    heard(
        made.record(param_groups=[ended[0]], layer_groups={f"blocks.{i}.fc": [0] for i in range(8)}), "external_update"
    )
    made.set(slice(100, 120), grad_sq=9.0)
    silent(made.record(param_groups=rates[:1]), "external_update")  # a gradient that jumps has an answer


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_longest_step_of_sgd(momentum: float) -> None:
    def run(times: float) -> Record:
        made = Synthetic(optimizer="SGD").set(grad_sq=0.09, momentum=momentum, weight_decay=0.0, lr=0.1)
        length = 0.3 * 0.1 / (1.0 - momentum)  # gradients that all point one way
        growth = times ** np.maximum(np.arange(200) - 100, 0)
        for row in range(200):
            made.set(row, update_sq=(length * growth[row]) ** 2)
        return made.record()

    silent(run(1.0), "external_update")
    finding = next(f for f in run_rules(run(1.5)) if f.code == "external_update")
    assert 101 <= finding.first_step <= 106


def test_decay_reads_the_weights_before_the_step() -> None:
    made = Synthetic(optimizer="SGD").set(momentum=0.0, weight_decay=0.8, lr=1.0, alignment=0.9)
    norm = 10.0 * 0.2 ** np.arange(200)[:, None] * np.ones((200, 8))  # after the step; five times that before it
    made.set(param_sq=norm**2, update_sq=(4.0 * norm) ** 2, grad_sq=(0.01 * norm) ** 2)
    silent(made.record(param_groups=[{"lr": 1.0, "weight_decay": 0.8, "decoupled": 0.0}]), "external_update")


def test_weights_that_are_put_back_again_and_again() -> None:
    def run(loss: float, times: int) -> Record:
        made = Synthetic().set(coherence=0.05, loss=loss + 0.01 * np.sin(np.arange(200)))
        made.set(slice(0, 10), loss=2.5)
        for row in range(40, 40 + 20 * times, 20):
            made.set(row, update_sq=(1.6 * _longest_adam_step()) ** 2)
        return made.record(param_groups=[{"beta2": 0.999, "decoupled": 1.0}])

    finding = heard(run(2.5, 3), "external_update")
    assert (finding.first_step, finding.raised_step, finding.confidence) == (41, 81, "MEDIUM")
    silent(run(2.5, 2), "external_update")
    silent(run(1.0, 5), "external_update")  # it learns all the same: averaging with other models does that


def test_weights_that_shrink_without_decay() -> None:
    def run(decay: float, alignment: float) -> Record:
        made = Synthetic().set(weight_decay=decay, alignment=alignment)
        norm = 10.0 * np.exp(-0.02 * np.arange(200))[:, None] * np.ones((200, 8))
        made.set(param_sq=norm**2, update_sq=(0.0202 * norm) ** 2)
        return made.record()

    finding = [f for f in run_rules(run(0.0, 0.02)) if f.code == "external_update"]
    assert finding
    assert finding[0].evidence["shrinking_per_step"] == pytest.approx(0.02, rel=0.05)
    silent(run(20.0, 0.02), "external_update")  # lr × decay is 2 % a step
    silent(run(0.0, 0.5), "external_update")  # the gradient asks for it


def test_adam_whose_state_is_lost_at_every_step() -> None:
    def run(size: float, coherence: float, zeros: float = 0.3) -> Record:
        made = Synthetic().probe(grad_zeros=zeros, silent_rows=0.1)
        made.set(update_sq=4096 * (1 - zeros) * (size * 1e-3) ** 2, coherence=coherence)
        return made.record(param_groups=[{"beta2": 0.999, "decoupled": 1.0}])

    assert heard(run(1.0, 0.1), "optimizer_state_reset").raised_step < 60
    silent(run(1.0, 0.9), "optimizer_state_reset")  # gradients that agree make such steps with any state
    silent(run(0.9, 0.1), "optimizer_state_reset")


def test_adam_whose_state_is_lost_again_and_again() -> None:
    def run(every: int, coherence: float = 0.1, size: float = 1.0) -> Record:
        made = Synthetic().set(coherence=coherence, update_sq=4096 * (0.4e-3) ** 2)
        made.columns["update_sq"][::every] = 4096 * (size * 0.9e-3) ** 2
        made.columns["update_sq"][0] = 4096 * (0.9e-3) ** 2
        return made.record()

    finding = heard(run(7), "optimizer_state_reset")
    assert "every 7 steps" in finding.title
    assert finding.raised_step < 60
    silent(run(7, coherence=0.9), "optimizer_state_reset")
    silent(run(7, size=0.9), "optimizer_state_reset")  # long, but not as the first
    silent(run(40), "optimizer_state_reset")  # now and then it may be meant


def test_steps_that_are_taken_back() -> None:
    def run(share: float, *, coherence: float = 0.3, learned: bool = False) -> Record:
        made = Synthetic(optimizer="SGD").set(coherence=coherence, update_sq=1e-4)
        made.set(distance=share * 1e-4 * np.arange(1, 201)[:, None] * np.ones((200, 8)))
        if not learned:
            made.set(loss=2.3 + 0.01 * np.sin(np.arange(200)))
        return made.record()

    finding = heard(run(0.1), "external_update")
    assert (finding.confidence, finding.first_step) == ("MEDIUM", 1)
    assert finding.evidence["distance_over_walk"] == pytest.approx(0.1)
    for other in (run(1.0), run(0.1, coherence=-0.2), run(0.1, learned=True)):
        silent(other, "external_update")


def test_a_loss_without_a_floor() -> None:
    def run(sign: float, agree: float) -> Record:
        t = np.arange(200)
        made = Synthetic(optimizer="SGD").set(loss=sign * 2.3 * np.exp(t / 25.0), coherence=agree)
        made.set(grad_sq=(0.3 * np.exp(t / 25.0)[:, None] * np.ones((200, 8))) ** 2)
        return made.record()

    assert heard(run(-1.0, 0.95), "unbounded_loss").confidence == "HIGH"
    even = Synthetic(optimizer="SGD").set(loss=-2.3 * np.exp(np.arange(200) / 25.0), coherence=0.95, grad_sq=0.09)
    silent(even.record(), "unbounded_loss")  # gradients that do not grow will be stopped by something
    silent(run(1.0, 0.95), "unbounded_loss")
    silent(run(-1.0, 0.2), "unbounded_loss")


def test_a_loss_that_rises_as_the_steps_say_it_should_fall() -> None:
    def run(share: float, *, start: float = 2.0, noise: float = 0.0, clipped: bool = False, known: int = 0) -> Record:
        t, random = np.arange(200), np.random.default_rng(0)
        loss = start + 0.02 * t + noise * random.standard_normal(200)
        made = Synthetic(optimizer="SGD").set(loss=loss, overshoot=0.02 / 8 / share, grad_sq=0.5, update_sq=1e-4)
        if not clipped:
            made.set(grad_sq=0.5 * np.exp(0.1 * random.standard_normal((200, 8))))
        if known:
            made.set(output_drift=1e-9)
        return made.record(layer_shapes={"blocks.0.fc": [known, 64]})

    assert heard(run(-1.0), "wrong_sign").confidence == "MEDIUM"
    told = heard(run(-1.0, start=0.5), "wrong_sign")
    assert (told.confidence, told.first_step) == ("HIGH", 1)
    assert told.evidence["rise_over_slopes"] == pytest.approx(-1.0, abs=0.1)
    heard(run(-1.0, noise=0.02), "wrong_sign")
    heard(run(-20.0, clipped=True, known=8), "wrong_sign")
    silent(run(-20.0, clipped=True), "wrong_sign")  # it may be a target that moves
    silent(run(-20.0, clipped=True, known=100), "wrong_sign")
    for other in (run(1.0), run(-0.3), run(-20.0), run(-1.0, noise=4.0), run(-1.0, start=-5.0)):
        silent(other, "wrong_sign")
    heard(run(-20.0, start=0.3, clipped=True), "wrong_sign")  # nor does a target move as far in one line
    fell = run(-1.0)
    falling = Synthetic(optimizer="SGD").set(loss=fell.loss.copy(), overshoot=-0.02 / 8, grad_sq=0.5)
    falling.set(slice(10, 60), loss=0.5)  # it was minimized for a while
    silent(falling.record(), "wrong_sign")


def test_a_loss_that_runs_away_along_steps_that_batches_fall_along() -> None:
    def run(slope: float, pace: float = 10.0, learned: float = 0.0) -> Record:
        loss = 1.2 * np.exp((np.arange(200) - 60 * (learned > 0)) / pace)
        made = Synthetic().set(loss=np.maximum(loss, 1.2 - learned), overshoot=slope, coherence=0.9)
        return made.set(slice(0, 10), loss=1.2).record()

    told = heard(run(-0.01), "wrong_sign")  # far more than foretold: a straight-through estimator
    assert told.confidence == "HIGH"
    assert "slopes are of another size" in told.seen
    assert "clipped" not in told.seen
    silent(run(0.01), "wrong_sign")  # steps that are too long
    silent(run(-0.01, 100.0), "wrong_sign")  # a target that moves
    heard(run(-0.01, learned=0.1), "wrong_sign")
    fast = Synthetic().set(loss=3.6 * np.exp(20.0 * (1.0 - np.exp(-np.arange(200) / 15.0))), overshoot=-0.01)
    heard(fast.record(), "wrong_sign")
    silent(run(-0.01, learned=0.6), "wrong_sign")  # the loss was learned before


def test_gradients_of_ordinary_size_that_are_gone() -> None:
    run = Synthetic().set(slice(120, None), grad_sq=0.0)
    run.set(loss=2.0 + 0.01 * np.sin(np.arange(200)))
    finding = heard(run.record(), "no_gradient")
    assert (finding.first_step, finding.raised_step) == (121, 125)
    silent(run.record(), "underflow")
    zeros = (np.arange(0, 200, 4) >= 120).astype(float)
    silent(run.probe(grad_zeros=zeros, silent_rows=0.0).record(), "underflow")  # an activation at the end has died
    tiny = Synthetic().set(slice(100, 120), grad_sq=4096 * 1e-14).set(slice(120, None), grad_sq=0.0)
    silent(tiny.record(), "no_gradient")
    assert "underflow" in [f.code for f in run_rules(tiny.record())]


def test_sgd_in_half_precision() -> None:
    half = {"dtypes": ["torch.bfloat16"], "layer_dtypes": {f"blocks.{i}.fc": "torch.bfloat16" for i in range(8)}}
    run = Synthetic(optimizer="SGD").set(momentum=0.0, lr=1e-3, loss=2.5)  # 5e-6 a weight, of 0.16
    assert heard(run.record(**half), "lost_updates").confidence == "HIGH"
    silent(run.record(), "lost_updates")
    silent(Synthetic(optimizer="SGD").set(momentum=0.0, lr=1.0, loss=2.5).record(**half), "lost_updates")
    learned = Synthetic(optimizer="SGD").set(momentum=0.0, lr=1e-3).set(slice(0, 120), lr=1.0)
    silent(learned.record(**half), "lost_updates")


def test_clipping_by_value_that_holds_every_step_back() -> None:
    def run(sizes: float) -> Record:
        made = Synthetic(optimizer="SGD").set(loss=2.5 + 0.01 * np.sin(np.arange(200))).probe(grad_zeros=0.25)
        made.set(grad_sq=4096 * 0.75 * 1e-12, update_sq=(1e-5 * 10) ** 2, alignment=0.4)
        made.set(layers=2, grad_sq=4096 * 0.75 * 1e-12 * sizes).set(overshoot=-0.35 * 5.5e-5 * 1e-4)
        return made.record()

    assert heard(run(1.0), "over_clipping").evidence["clip_value"] == pytest.approx(1e-6)
    told = [f for f in run_rules(run(1.2)) if f.code == "over_clipping"]
    assert ["clip_value" in f.evidence for f in told] == [False]  # the norm is one and the same all the same


def test_a_rate_that_gains_nothing_in_a_hundred_steps() -> None:
    def run(reach: float) -> Record:
        made = Synthetic(optimizer="SGD").set(loss=2.5 + 0.003 * np.sin(np.arange(200)))
        gradient = 1e-3 * np.exp(0.1 * np.random.default_rng(0).standard_normal((200, 8)))
        made.set(update_sq=(4e-4 * 10) ** 2, grad_sq=gradient**2, alignment=1.0, overshoot=reach * 1e-3 * 4e-3)
        return made.probe(start_gain=DRAWN).record()

    finding = heard(run(-0.35), "lr_too_low")
    assert finding.confidence == "MEDIUM"
    assert "softmax" in finding.advice
    silent(run(-0.1), "lr_too_low")


def test_a_usual_initialization_is_known() -> None:
    shape = {f"blocks.{i}.fc": [64, 64] for i in range(8)}

    def began(gain: float, each: list[int] = shape["blocks.0.fc"], layers: int = 8) -> bool:
        made = Synthetic(layers=layers).probe(start_gain=gain, grad_zeros=0.3)
        record = made.record(layer_shapes=dict.fromkeys(shape, each))
        return view_of(record).newly_initialised

    assert began(3**-0.5)
    assert began(2**0.5)
    assert began(0.16)  # 0.02·√64
    assert not began(0.7, layers=3)
    assert began(0.7)  # eight matrices of one standard deviation, whichever it is
    uneven = (
        Synthetic()
        .probe(grad_zeros=0.3)
        .set(0, start_gain=0.7 * np.exp(0.1 * np.arange(8.0)))
        .record(layer_shapes=shape)
    )
    assert not view_of(uneven).newly_initialised
    assert began((24 / 144) ** 0.5, [144, 24])  # the three gates of a recurrent cell as one matrix
    assert not began(1.04 * 3**-0.5, [16, 16], 2)  # two small matrices may be at it by chance
    assert began(1.04 * 3**-0.5, [16, 16], 4)
    assert began(1.0, [144, 48], 2)  # orthogonal, gate by gate: known exactly
    assert began(0.75**0.5, [64, 48], 2)
    assert not began(1.002, [144, 48], 2)
    assert began(1.0, [12, 12, 3, 3], 3)  # He, by the fan-out of a layer that doubles its channels
    assert began((2 * 16 / 64) ** 0.5, [64, 16, 3, 3], 2)
    assert not began(0.45, [64, 16, 3, 3], 2)
    assert began((32 / (3 * 16)) ** 0.5, [32, 16, 4, 4], 2)  # a transposed convolution
    assert not view_of(kept := Synthetic().record(layer_shapes=shape)).newly_initialised, kept  # nobody looked

    def begin(gains: Any) -> bool:
        record = Synthetic().probe(grad_zeros=0.3).set(0, start_gain=np.array(gains)).record(layer_shapes=shape)
        return view_of(record).newly_initialised

    assert begin([0.4, 0.4, 0.4, 0.16 / 6**0.5] * 2)  # residual branches begin smaller, by the depth
    assert begin([0.4, 0.4, 0.23, 0.23] * 2)
    assert not begin([0.4, 0.4, 0.23, 0.31] * 2)  # three sizes
    assert not begin([0.4, 0.4, 0.23, 0.23, 0.5, 0.62, 0.7, 0.9])
    table = Synthetic(layers=2).probe(grad_zeros=0.3).set(0, start_gain=np.array([12**-0.5, 3**-0.5]))
    bag = table.record(layer_shapes={"blocks.0.fc": [1000, 64], "blocks.1.fc": [9, 64]})
    assert not view_of(bag).newly_initialised
    assert view_of(
        of_words := replace(bag, layers=(replace(bag.layers[0], ltype="embedding"), bag.layers[1]))
    ).newly_initialised, of_words
    large = {**shape, "blocks.7.fc": [640, 640]}  # most of all numbers are at no usual scale
    uneven = Synthetic().probe(grad_zeros=0.3).set(0, start_gain=np.array([*np.sqrt([1 / 3, 2] * 3), 3**-0.5, 0.8]))
    assert not view_of(was := uneven.record(layer_shapes=large)).newly_initialised, was
    assert view_of(was := uneven.record(layer_shapes=shape)).newly_initialised, was


def test_contrastive_losses_have_no_known_chance() -> None:
    def run(gain: Any) -> Record:
        made = Synthetic().set(loss=4.16 + 0.01 * np.sin(np.arange(200)), coherence=0.02, noise_share=0.95)
        return made.probe(start_gain=gain, grad_zeros=0.3).record()

    heard(run(3**-0.5), "label_noise")
    silent(run(TRAINED), "label_noise")  # it may stand where it ended


def test_a_small_model_may_learn_to_attend_fast() -> None:
    gains = np.concatenate([np.full(20, 2.0), np.linspace(4, 24, 4), np.full(26, 24.0)])
    silent(Synthetic().probe(attention_gain=gains).record(), "attention_logit_growth")
    longer = np.concatenate([np.full(20, 2.0), [4.0, 8.0, 16.0], np.full(27, 26.0)])  # at two probes in a row
    silent(Synthetic().probe(attention_gain=longer).record(), "attention_logit_growth")
    faster = np.where(longer > 10.0, 1.5 * longer, longer)
    assert heard(Synthetic().probe(attention_gain=faster).record(), "attention_logit_growth").confidence == "HIGH"
    lost = Synthetic().probe(attention_gain=gains)
    lost.set(slice(80, None), loss=lost.loss[80:] + 1.0)
    assert heard(lost.record(), "attention_logit_growth").confidence == "MEDIUM"


def test_a_margin_that_is_reached_at_once() -> None:
    def run(second: float) -> Record:
        return Synthetic().set(0, loss=2.5e-3, grad_sq=0.09).set(slice(1, None), loss=second).record()

    silent(run(0.0), "exploding_gradients")
    silent(run(-0.1), "exploding_gradients")
    assert heard(run(1e-9), "exploding_gradients").raised_step == 3


def test_a_gradient_that_shrinks_before_it_grows_is_no_sum() -> None:
    def run(early: float) -> Record:
        t, random = np.arange(200), np.random.default_rng(0)
        size = 0.3 * np.where(t < 2, 1.0, np.where(t < 12, early, 0.25 * t))[:, None] * np.ones((200, 8))
        made = Synthetic().set(loss=2.5 + 0.2 * random.standard_normal(200), grad_sq=size**2, noise_share=0.01)
        return made.set(coherence=0.97).record()

    assert heard(run(2.0), "gradient_accumulation_bug").first_step == 1
    silent(run(0.7), "gradient_accumulation_bug")


def test_a_gradient_that_jumps_with_the_data_is_no_spike() -> None:
    def run(loud: int, first_loss: int, fades: float = 1.0) -> list[tuple[str, str]]:
        made = (
            Synthetic().set(slice(100, 100 + loud), grad_sq=(0.3 * 40 / fades) ** 2).set(100, grad_sq=(0.3 * 40) ** 2)
        )
        made.set(slice(first_loss, None), loss=made.loss[first_loss:] + 3.0)
        return [(f.code, f.confidence) for f in find(made.record())]

    assert run(100, 100) == [("distribution_shift", "HIGH"), ("gradient_spike", "LOW")]
    assert run(1, 101)[0][0] == "gradient_spike"  # the loss moved after the step, and by it
    assert run(100, 100, fades=8.0) == [("distribution_shift", "HIGH"), ("gradient_spike", "LOW")]
    assert run(100, 100, fades=40.0) == [("distribution_shift", "HIGH"), ("gradient_spike", "LOW")]
    one = [("gradient_spike", "LOW")]  # an odd example: its loss stood out as well, and the next batch is ordinary
    made = Synthetic().set(100, grad_sq=(0.3 * 40) ** 2, loss=9.0)
    assert [(f.code, f.confidence) for f in find(made.record())] == one
    assert find(made.set(100, grad_sq=(0.3 * 4000) ** 2).record())[0].confidence == "HIGH"


def test_where_there_is_nothing_to_learn() -> None:
    silent(Synthetic(30).set(loss=0.0, grad_sq=0.0).record(), "no_gradient")
    never = heard(Synthetic().set(loss=0.0, grad_sq=0.0).record(), "no_gradient")  # a loss that hides its infinities
    assert (never.confidence, never.raised_step) == ("MEDIUM", 40)
    assert heard(Synthetic().set(grad_sq=0.0).record(), "no_gradient").raised_step == 3
    gone = np.concatenate([np.full(5, 0.1), np.full(45, 0.95)])
    silent(Synthetic().probe(silent_rows=gone, dead_rows=gone).set(loss=0.0).record(), "dead_units")
    assert "dead_units" in [f.code for f in find(Synthetic().probe(silent_rows=gone, dead_rows=gone).record())]


def test_the_inputs_of_a_linear_model_are_not_told_by_its_bias() -> None:
    def run(layers: int) -> Record:
        return Synthetic(layers=layers).set(slice(0, 9, 2), 0, input_scale=282.0).record()

    assert heard(run(2), "unnormalised_input").raised_step == 9
    silent(run(1), "unnormalised_input")
