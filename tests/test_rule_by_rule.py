"""Each rule on a synthetic run: silent on a healthy one, heard on a failing one, with its step and layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.synthetic import Synthetic
from thermoclaw import Finding, diagnose
from thermoclaw.diagnosis.engine import find, run_rules
from thermoclaw.diagnosis.refutations import REFUTED_BY
from thermoclaw.diagnosis.rules import RULES
from thermoclaw.record import Record


def heard(record: Record, code: str) -> Finding:
    """The one urgent finding with that code, first in the ranking."""
    findings = find(record)
    assert findings, "nothing was said"
    first = findings[0]
    assert first.code == code, [(f.code, f.confidence) for f in findings]
    assert first.confidence in ("HIGH", "MEDIUM")
    return first


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
    discriminative = Synthetic().set(layers=7, lr=1e-2, update_sq=0.04)
    silent(discriminative.record(param_groups=[{"lr": 1e-3}, {"lr": 1e-2}], layer_groups=names), "layer_lr_mismatch")
    cold = Synthetic().set(layers=slice(0, 7), lr=1e-8, update_sq=4e-14).set(layers=7, lr=1e-3)
    finding = heard(cold.record(param_groups=[{"lr": 1e-8}, {"lr": 1e-3}], layer_groups=names), "layer_lr_mismatch")
    assert len(finding.layers) == 7


def test_updates_lost_to_short_numbers() -> None:
    coarse = {"dtypes": ["torch.bfloat16"]}
    small = Synthetic().set(lr=1e-6, update_sq=1e-12)  # weights of 0.16, whose half spacing is 2e-4
    assert heard(small.record(**coarse), "lost_updates").confidence == "HIGH"
    silent(small.record(), "lost_updates")
    silent(Synthetic().set(lr=2e-3).record(**coarse), "lost_updates")


def test_underflow() -> None:
    zeros = np.clip(np.linspace(-0.5, 1.0, 50), 0.05, 0.95)
    finding = heard(Synthetic().probe(grad_zeros=zeros, silent_rows=0.0).record(), "underflow")
    assert 60 < finding.first_step < 140
    silent(Synthetic().probe(grad_zeros=0.6, silent_rows=0.0).record(), "underflow")


def test_epsilon_above_the_gradient() -> None:
    group = [{"lr": 1e-3, "eps": 1.0, "beta2": 0.999, "decoupled": 1.0}]
    weak = Synthetic().set(update_sq=4096 * (1e-3 * 5e-3) ** 2)
    finding = heard(weak.record(param_groups=group), "epsilon_dominates")
    assert finding.remedy is not None
    assert (finding.remedy.knob, finding.remedy.value) == ("eps", 1e-8)
    silent(weak.record(), "epsilon_dominates")
    silent(weak.record(param_groups=group, optimizer="SGD"), "epsilon_dominates")


@pytest.mark.parametrize(("gain", "known"), [(0.0, "zero"), (9.0, "9.0"), (1e-4, "1.0e-04")])
def test_weights_at_a_wrong_scale(gain: float, known: str) -> None:
    run = Synthetic().set(0, start_gain=gain)
    record = run.set(0, slice(0, 7), grad_sq=0.0).record() if gain == 0 else run.record()
    assert known in heard(record, "bad_init").seen
    silent(Synthetic().set(0, start_gain=0.58).set(0, slice(0, 3), start_gain=0.0).record(), "bad_init")


def test_rows_that_start_alike() -> None:
    assert "same weights" in heard(Synthetic().set(0, start_gain=0.6).probe(row_likeness=1.0).record(), "bad_init").seen


def test_inputs_at_a_wrong_scale() -> None:
    finding = heard(Synthetic().set(slice(0, 9), 0, input_scale=250.0).record(), "unnormalised_input")
    assert finding.layers == ("blocks.0.fc",)
    silent(Synthetic().set(slice(0, 9), 0, input_scale=3.0).record(), "unnormalised_input")


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


def test_a_spike_of_the_gradient() -> None:
    finding = heard(Synthetic().set(120, grad_sq=1e4).record(), "gradient_spike")
    assert finding.first_step == finding.raised_step == 121
    assert finding.remedy is not None
    assert finding.remedy.knob == "clip"
    silent(Synthetic().set(120, grad_sq=4.0).record(), "gradient_spike")
    silent(Synthetic().set(119, update_sq=9.0).set(120, grad_sq=1e4).record(), "gradient_spike")  # a long step made it


def test_a_spike_of_the_loss_and_a_shift() -> None:
    assert heard(Synthetic().set(slice(120, 123), loss=9.0).record(), "loss_spike").first_step == 121
    shifted = Synthetic()
    shifted.loss[120:] += 1.5
    finding = heard(shifted.record(), "distribution_shift")
    assert (finding.first_step, finding.raised_step) == (121, 126)
    silent(
        Synthetic().set(slice(119, 121), update_sq=4.0).set(slice(120, None), loss=3.0).record(), "distribution_shift"
    )


def test_noise_that_drowns_the_gradient() -> None:
    run = Synthetic()
    run.set(slice(100, None), coherence=0.005 * np.random.default_rng(2).standard_normal((100, 8)), noise_share=0.97)
    run.set(slice(100, None), loss=0.9 + 0.05 * np.random.default_rng(3).standard_normal(100))
    assert 95 <= heard(run.record(), "gradient_noise").first_step <= 105


@pytest.mark.parametrize(("wobble", "code"), [(0.02, "label_noise"), (0.5, "gradient_noise")])
def test_a_loss_that_stands_near_its_start(wobble: float, code: str) -> None:
    random = np.random.default_rng(4)
    run = Synthetic(loss_seed := 300).set(loss=2.3 + wobble * random.standard_normal(loss_seed))
    run.set(coherence=0.05 * random.standard_normal((300, 8)), noise_share=0.95)
    run.set(overshoot=0.0).probe(output_drift=1e-9)
    ten = {"layer_shapes": {f"blocks.{i}.fc": [10, 64] for i in range(8)}}
    heard(run.record(**ten), code)
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
    silent(Synthetic().set(slice(0, 3), grad_sq=1e4).record(), "exploding_gradients")  # a loss that stays calm


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
