"""Where rules must keep silent though their signal is there, and where they must speak though it is weak."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.synthetic import DRAWN, TRAINED, Synthetic
from tests.test_rule_by_rule import heard, silent
from thermoclaw.diagnosis.engine import rank, run_rules
from thermoclaw.record import Record

STEPS = np.arange(200)


def confidences(record: Record) -> dict[str, str]:
    return {finding.code: finding.confidence for finding in run_rules(record)}


def test_a_dead_layer_of_a_model_that_learns_is_for_information() -> None:
    def record(layers: int, left: float, share: float = 0.8, rises: float = 0.0) -> Record:
        made = Synthetic(layers=4).probe(silent_rows=0.1, grad_zeros=0.1, dead_rows=0.0)
        for name in ("silent_rows", "grad_zeros", "dead_rows"):
            made.columns[name][60::4, :layers] = share
        made.set(loss=2.5 * (left + (1 - left) * np.exp(-STEPS / 20.0)) + rises * (STEPS > 60))
        return made.record()

    def run(*shape: Any, **more: float) -> dict[str, str]:
        return confidences(record(*shape, **more))

    assert run(1, 0.0)["dead_units"] == "LOW"
    assert run(1, 0.6, 0.9)["dead_units"] == "HIGH"
    assert run(1, 0.6, 0.88)["dead_units"] == "LOW"
    assert run(1, 0.6)["dead_units"] == "LOW"  # one of several layers, not quite gone, and the loss is no worse for it
    assert run(1, 0.6, rises=2.0)["dead_units"] == "HIGH"
    told = {
        left: dead.meaning for left in (0.0, 0.6) for dead in run_rules(record(1, left)) if dead.code == "dead_units"
    }
    assert ["learns all the same" in told[left] for left in (0.0, 0.6)] == [True, False]
    assert run(2, 0.0)["dead_units"] == "HIGH"
    assert run(1, 0.0, 1.0)["dead_units"] == "HIGH"


def test_a_bottleneck_of_a_few_units_may_die() -> None:
    def run(units: int, left: float) -> str:
        made = Synthetic(layers=4).probe(silent_rows=0.1, grad_zeros=0.1, dead_rows=0.0)
        for name in ("silent_rows", "grad_zeros", "dead_rows"):
            made.columns[name][60::4, 1] = 1.0
        record = made.set(loss=2.5 * (left + (1 - left) * np.exp(-STEPS / 20.0))).record()
        small = replace(record.layers[1], num_params=units)
        return confidences(replace(record, layers=(record.layers[0], small, *record.layers[2:])))["dead_units"]

    assert run(68, 0.3) == "LOW"
    assert run(68, 0.9) == "HIGH"  # nothing is learned
    assert run(4096, 0.3) == "HIGH"


def test_one_batch_that_lifts_the_mean_of_losses() -> None:
    def run(last: int) -> dict[str, str]:
        made = Synthetic(optimizer="SGD").set(loss=0.1 - 0.5 * (1 - np.exp(-STEPS / 20.0)), coherence=-0.3)
        made.set(overshoot=0.01, update_sq=(0.05 * 10.0) ** 2).set(slice(120, 120 + last), loss=20.0)
        return confidences(made.record())

    assert "lr_too_high" not in run(1)
    assert run(30)["lr_too_high"] == "HIGH"


def test_validation_that_still_improves_is_no_overfitting() -> None:
    def run(values: list[float], sign: float = 1.0) -> Record:
        made = Synthetic().set(loss=sign * (2.5 * np.exp(-STEPS / 10.0) + 0.001))
        made.events = [{"kind": "epoch", "step": 20 * (i + 1), "val_loss": v} for i, v in enumerate(values)]
        return made.record()

    late = [2.4 * 0.96**i for i in range(10)]  # what is understood late, after it was learned by heart
    silent(run(late), "overfitting")
    heard(run([2.4, 2.2, 2.1, 2.1, 2.1, 2.15, 2.2, 2.25, 2.3, 2.35]), "overfitting")
    silent(run([2.4, 2.2, 2.1, 2.1, 2.1, 2.15, 2.2, 2.25, 2.3, 2.35], -1.0), "overfitting")  # not of one kind


def test_a_gap_that_costs_nothing_is_no_overfitting() -> None:
    def run(best: float, rises: float = 0.0) -> Record:
        made = Synthetic().set(loss=2.5 * np.exp(-STEPS / 10.0) + 0.001)
        values = [best + rises * i + 0.5 * np.exp(-2.0 * i) for i in range(10)]
        made.events = [{"kind": "epoch", "step": 20 * (i + 1), "val_loss": v} for i, v in enumerate(values)]
        return made.record()

    silent(run(0.65), "overfitting")  # as good as it ever was, and three quarters of the way
    heard(run(0.65, rises=0.02), "overfitting")
    heard(run(1.2), "overfitting")


def test_rounding_of_a_gradient_that_is_gone_is_no_drift_of_logits() -> None:
    def run(left: float) -> Record:
        made = Synthetic().set(coherence=0.3).probe(output_drift=np.where(np.arange(50) < 10, 1e-9, 0.02))
        made.columns["grad_sq"][40:] *= left**2
        return made.record()

    assert "output_logit_divergence" in confidences(run(0.5))
    assert "output_logit_divergence" not in confidences(run(0.01))


def test_a_gradient_that_is_gone_where_the_loss_is_not() -> None:
    def run(left: float, loss: float) -> Record:
        made = Synthetic().set(loss=2.5 + 0.01 * np.sin(STEPS))
        made.set(slice(50, None), loss=loss)
        made.columns["grad_sq"][50:] *= left**2
        made.columns["overshoot"][:] = 0.0
        return made.record()

    told = heard(run(1e-4, 2.5), "vanishing_gradients")
    assert told.confidence == "HIGH"
    assert 50 < told.first_step < 65
    assert confidences(run(5e-3, 2.5))["vanishing_gradients"] == "MEDIUM"
    for other in (run(0.1, 2.5), run(1e-4, 0.5)):  # noise of its own size; a loss that is gone as well
        silent(other, "vanishing_gradients")


def test_tables_that_start_at_zero_and_stay() -> None:
    def run(gradient: float) -> Record:
        made = Synthetic(layers=4).set(layers=slice(0, 2), grad_sq=gradient, update_sq=gradient, param_sq=0.0)
        made.columns["start_gain"] = np.full((200, 4), np.nan)
        made.columns["start_gain"][0] = [0.0, 0.0, np.nan, np.nan]
        record = made.record(layer_shapes={f"blocks.{i}.fc": [64, 64] for i in range(4)})
        layers = tuple(replace(layer, ltype="embedding") if i < 2 else layer for i, layer in enumerate(record.layers))
        return Record(record.steps, layers, record.layer_values, record.run_values, record.meta)

    heard(run(0.0), "bad_init")
    silent(run(0.09), "bad_init")  # one of two tables at zero is usual, and learns


def test_a_loss_that_falls_straight_on_below_zero() -> None:
    def run(pace: float, *, coherence: float = 0.99, reach: float = -1.0) -> Record:
        made = Synthetic(optimizer="Adam").set(loss=3.0 - pace * STEPS, coherence=coherence)
        made.columns["grad_sq"][20:] *= 1.2
        work = made.columns["alignment"] * np.sqrt(made.columns["grad_sq"] * made.columns["update_sq"])
        made.columns["overshoot"] = reach * np.concatenate([work[:1], work[:-1]])
        return made.record()

    assert heard(run(0.5), "unbounded_loss").confidence == "MEDIUM"
    for other in (run(0.05), run(0.5, coherence=0.8), run(0.5, reach=-0.5)):
        silent(other, "unbounded_loss")


def test_the_negative_of_a_cross_entropy_is_known_by_where_it_begins() -> None:
    def run(start: float) -> Record:
        made = Synthetic().set(loss=start - 0.05 * STEPS)
        made.columns["output_drift"] = np.full((200, 8), np.nan)
        made.columns["output_drift"][::4, 7] = 1e-9
        return made.record(layer_shapes={"blocks.7.fc": [10, 64]})

    told = heard(run(-np.log(10.0)), "wrong_sign")
    assert (told.confidence, told.first_step) == ("HIGH", 1)
    assert told.evidence["chance"] == pytest.approx(np.log(10.0))
    silent(run(-8.0), "wrong_sign")
    silent(run(np.log(10.0)), "wrong_sign")


def test_slopes_that_wander_must_fall_further() -> None:
    def run(*, shuffled: bool, odd: float = 1.0) -> Record:
        swing = 0.16 * np.sin(2 * np.pi * STEPS / 50.0)
        if shuffled:
            swing = np.random.default_rng(1).permutation(swing)
        alignment = np.where(STEPS < 120, 0.4, 0.12) + swing
        made = Synthetic(layers=4).set(loss=2.0, alignment=alignment[:, None])
        made.columns["grad_sq"][118:121] *= odd**2
        return made.record()

    heard(run(shuffled=True), "incoherent_update")
    silent(run(shuffled=True, odd=10.0), "incoherent_update")  # momentum remembers what was no fault of the optimizer
    silent(run(shuffled=False), "incoherent_update")


@pytest.mark.parametrize(("rows", "confidence"), [(5, "LOW"), (60, "MEDIUM")])
def test_a_loss_that_is_not_a_number_while_all_else_is_sound(rows: int, confidence: str) -> None:
    made = Synthetic().set(slice(100, 100 + rows), loss=np.nan)
    assert confidences(made.record())["non_finite"] == confidence
    at_the_end = Synthetic().set(slice(200 - rows, None), loss=np.nan)
    assert confidences(at_the_end.record(last_loss_step=200))["non_finite"] == confidence
    assert "non_finite" not in confidences(at_the_end.record(last_loss_step=200 - rows))  # no longer given


def test_steps_of_a_new_model_that_never_leave_the_straight_line() -> None:
    def run(
        gain: Any = DRAWN,
        reach: float = -0.9,
        ratio: float = 1e-4,
        falls: float = 3e-3,
        noise: float = 0.1,
        slope: float = 0.1,
    ) -> Record:
        made = Synthetic(optimizer="SGD").set(loss=2.5 * np.exp(-falls * STEPS)).probe(start_gain=gain)
        made.set(noise_share=noise)
        size = slope * np.exp(0.1 * np.random.default_rng(0).standard_normal((200, 8)))
        made.set(update_sq=(ratio * 10.0) ** 2, grad_sq=size**2, alignment=1.0, overshoot=reach * slope * ratio * 10.0)
        return made.record()

    assert heard(run(), "lr_too_low").confidence == "MEDIUM"
    silent(run(gain=TRAINED), "lr_too_low")  # it was trained before: slow may be meant
    silent(run(reach=-0.6), "lr_too_low")
    silent(run(reach=-0.45, ratio=8e-5), "lr_too_low")
    heard(run(reach=-0.45, ratio=8e-5, noise=0.5), "lr_too_low")  # of another batch only the signal is there
    silent(run(reach=-0.45, ratio=1.2e-4, noise=0.5), "lr_too_low")
    silent(run(ratio=1e-3), "lr_too_low")
    silent(run(falls=1e-2), "lr_too_low")  # it learns
    usual = {"reach": -0.97, "ratio": 2e-3, "falls": 1e-3, "slope": 0.02}  # steps that could be far longer
    heard(run(**usual), "lr_too_low")
    silent(run(**{**usual, "reach": -0.9}), "lr_too_low")
    silent(run(**{**usual, "ratio": 5e-3, "slope": 0.008}), "lr_too_low")
    silent(run(**{**usual, "falls": 7e-3}), "lr_too_low")
    silent(run(**{**usual, "slope": 0.03}), "lr_too_low")  # fifty steps bring a tenth of the loss


def test_gradients_that_never_were() -> None:
    def run(size: float, optimizer: str = "SGD", ratio: float = 1e-10) -> dict[str, str]:
        made = Synthetic(optimizer=optimizer).set(loss=2.5).set(grad_sq=size**2 * 4096, update_sq=(ratio * 10.0) ** 2)
        return confidences(made.record())

    assert run(1e-10)["vanishing_gradients"] == "HIGH"
    assert "vanishing_gradients" not in run(1e-10, "AdamW")
    assert "vanishing_gradients" not in run(1e-6)
    assert "vanishing_gradients" not in run(1e-10, ratio=1e-6)


def test_a_sum_of_gradients_that_is_clipped_before_each_step() -> None:
    def run(told: bool | None) -> dict[str, str]:
        random = np.random.default_rng(0)
        made = Synthetic().set(loss=2.0 + 0.3 * random.standard_normal(200), coherence=0.95, noise_share=0.0)
        made.set(grad_sq=0.09 * np.exp(0.1 * random.standard_normal((200, 8))), update_sq=0.04)
        return confidences(made.record(gradients_are_new=told))

    assert run(False)["gradient_accumulation_bug"] == "HIGH"
    assert "gradient_accumulation_bug" not in run(None)
    assert "gradient_accumulation_bug" not in run(True)


def test_targets_that_move_with_the_model_are_restless() -> None:
    """A loss without progress and with much noise tells nothing where nobody knows what chance would be."""
    made = Synthetic().set(loss=2.5 + 0.5 * np.random.default_rng(0).standard_normal(200), coherence=0.02)
    made.set(noise_share=0.97).probe(start_gain=DRAWN, grad_zeros=0.3)
    silent(made.record(), "gradient_noise")


def test_small_steps_on_noise_tell_the_same_later() -> None:
    def run(ratio: float) -> dict[str, str]:
        made = Synthetic(300).set(loss=2.5 + 0.02 * np.sin(np.arange(300)), coherence=0.02, noise_share=0.97)
        made.set(update_sq=(ratio * 10.0) ** 2).probe(start_gain=DRAWN, grad_zeros=0.3)
        return confidences(made.record())

    assert run(2e-3)["label_noise"] == "MEDIUM"
    assert run(8e-4)["label_noise"] == "MEDIUM"
    assert "label_noise" not in run(3e-4)


def test_a_loss_that_stays_at_chance_needs_no_further_proof() -> None:
    def run(level: float, coherence: float = 0.02) -> dict[str, str]:
        fast = np.exp(-STEPS / 3.0)  # thrown there by the first steps, which then become short
        made = Synthetic().set(loss=level + fast, coherence=coherence, noise_share=0.2)
        made.set(update_sq=(10.0 * (2e-4 + 0.2 * fast[:, None])) ** 2)
        made.columns["output_drift"] = np.full((200, 8), np.nan)
        made.columns["output_drift"][::4, 7] = 1e-9
        return confidences(made.record())

    chance = float(np.log(64))
    assert run(chance)["label_noise"] == "MEDIUM"
    assert "label_noise" not in run(0.8 * chance)
    assert "label_noise" not in run(chance, coherence=0.3)


def test_weights_that_have_gone_nowhere() -> None:
    def run(ratio: float, steps: int = 200) -> dict[str, str]:
        made = Synthetic(steps).set(loss=2.5 + 0.01 * np.sin(np.arange(steps)), update_sq=(ratio * 10.0) ** 2)
        made.set(overshoot=-0.05 * 0.4 * 0.3 * ratio * 10.0)
        return confidences(made.record())

    assert "lr_too_low" in run(2e-6)
    assert "lr_too_low" not in run(2e-6, 150)
    assert "lr_too_low" not in run(2e-4)


def test_a_loss_that_pays_for_growing_weights() -> None:
    def run(growth: float, falls: float, asked: float = 0.8) -> Record:
        made = Synthetic().set(loss=2.5 - falls * STEPS, alignment=asked)
        norm = 10.0 * np.exp(growth * STEPS)[:, None]
        return made.set(param_sq=norm**2, update_sq=(norm * max(growth, 1e-3) * 1.02) ** 2).record()

    finding = heard(run(0.01, 0.2), "weight_blow_up")
    assert finding.evidence["growth_per_step"] == pytest.approx(0.01, rel=0.05)
    silent(run(0.01, 0.01), "weight_blow_up")  # the loss is not far below zero
    critic = replace(run(0.01, 0.2), meta={**run(0.01, 0.2).meta, "is_game": True})
    silent(critic, "weight_blow_up")  # what is good for it depends on the other player
    assert "weight_blow_up" not in confidences(run(1e-4, 0.2))  # nothing grows


def test_layers_that_all_grow_by_one_share() -> None:
    def run(apart: float = 0.0, asked: float = 0.25, falls: float = 0.0, **meta: Any) -> dict[str, str]:
        pace = 0.01 * (1.0 + apart * np.linspace(-1.0, 1.0, 8))
        norm = 10.0 * np.exp(pace * STEPS[:, None])
        made = Synthetic(**meta).set(loss=2.5 - falls * STEPS, alignment=asked)
        return confidences(made.set(param_sq=norm**2, update_sq=(norm * pace / 0.75) ** 2).record())

    assert run()["weight_blow_up"] == "HIGH"  # three quarters of each step go along the weights
    assert "weight_blow_up" not in run(apart=0.5)
    assert "weight_blow_up" not in run(asked=0.5)
    assert "weight_blow_up" not in run(falls=0.01)  # the loss pays for it
    assert "weight_blow_up" not in run(optimizer="Lion")  # steps of signs


def test_vectors_of_a_table_that_start_far_too_large() -> None:
    def run(size: float, falls: float, gain: float = DRAWN) -> dict[str, str]:
        made = Synthetic(meta={"fresh": True}).set(0, start_gain=gain).set(0, 0, start_gain=size)
        record = made.set(loss=2.5 + falls * np.exp(-STEPS / 10.0)).record()
        tables = replace(record.layers[0], ltype="embedding")
        return confidences(replace(record, layers=(tables, *record.layers[1:])))

    assert run(10.0, 20.0)["bad_init"] == "HIGH"
    assert "bad_init" not in run(1.0, 20.0)
    assert "bad_init" not in run(10.0, 0.5)  # the first loss is no worse for it
    assert "bad_init" not in run(10.0, 20.0, TRAINED)  # a trained model's table may be of any size


def test_a_gradient_that_is_flushed_from_the_first_step_on() -> None:
    def run(
        last: list[float], silent_rows: float, typical: float = 0.99, size: float = 1e-6, last_size: float = 1e-6
    ) -> dict[str, str]:
        made = Synthetic().probe(grad_zeros=typical, silent_rows=1.0, dead_rows=0.0).set(grad_sq=4096.0 * size**2)
        made.set(layers=7, grad_sq=4096.0 * max(size, last_size) ** 2)
        made.columns["grad_zeros"][::4, 7] = np.resize(last, 50)
        made.columns["silent_rows"][::4, 7] = silent_rows
        return confidences(made.record())

    assert run([0.9], 0.4)["underflow"] == "HIGH"  # some outputs' errors are zero, others' are not
    assert run([0.85, 0.97], 0.0)["underflow"] == "HIGH"
    assert "underflow" not in run([0.82, 0.87, 0.97, 0.95, *[0.99] * 46], 0.0)  # units that die one after another
    assert "underflow" not in run([0.9], 1.0)  # behind dead units only the bias has a gradient
    assert "underflow" not in run([0.9], 0.0)
    assert "underflow" not in run([0.5, 0.7], 0.0)  # half of the units of a ReLU layer
    assert run([0.984, 0.988], 1.0, 0.995)["underflow"] == "HIGH"  # fewer than the bias has
    assert "underflow" not in run([0.984], 1.0, 0.995)
    assert "underflow" not in run([0.9], 0.4, 0.6)
    assert "underflow" not in run([0.9], 0.4, last_size=1e-2)  # errors of ordinary size: units are off
    assert "underflow" not in run([0.9], 0.4, size=1e-3)  # of ordinary size: the few units that are on


def test_gradients_that_are_clipped_to_nothing() -> None:
    def run(norm: float, optimizer: str) -> str:
        made = Synthetic(optimizer=optimizer).set(loss=2.5 + 0.001 * np.sin(STEPS), update_sq=1e-12)
        made.set(grad_sq=norm**2 / 8, overshoot=-0.9 * norm / 8**0.5 * 1e-6, alignment=1.0)
        return run_rules_first(made.record())

    assert run(1e-10, "RMSprop") == "over_clipping"
    assert run(1e-10, "NAdam") == "over_clipping"
    assert run(0.1, "RMSprop") == "lr_too_low"  # the size of its steps does not depend on the gradient's


def run_rules_first(record: Record) -> str:
    return rank(run_rules(record))[0].code


def test_gradients_that_point_anywhere() -> None:
    def run(
        size: float, share: float = 0.95, mean: float = 0.0, zero: bool = False, rate: float = 1e-3
    ) -> dict[str, str]:
        random = np.random.default_rng(0).standard_normal((200, 8))
        made = Synthetic().set(coherence=mean + size * random / 64.0, noise_share=share)  # 64 is √n
        made.set(slice(20, None), lr=rate)
        if zero:
            made.set(slice(None, None, 20), grad_sq=0.0)
        return confidences(made.record())

    assert run(1.0)["gradient_noise"] == "HIGH"
    assert "gradient_noise" not in run(4.0)  # what batches differ in lies in few directions
    assert "gradient_noise" not in run(1.0, share=0.7)
    assert "gradient_noise" not in run(1.0, mean=0.05)
    assert "gradient_noise" not in run(1.0, zero=True)  # a margin that was reached
    assert "gradient_noise" not in run(1.0, rate=1e-4)  # at a schedule's end nothing else may be left


def test_a_model_that_bursts_at_its_second_step() -> None:
    made = Synthetic().set(slice(0, 3), grad_sq=1e2).set(1, loss=1e12).set(2, loss=np.nan)
    assert heard(made.record(), "exploding_gradients").first_step == 1  # 40 times the first loss, which did not stay
    small = Synthetic().set(slice(0, 3), grad_sq=1e2).set(0, loss=0.1).set(1, loss=2.5)  # a lucky first batch
    silent(small.record(), "exploding_gradients")


def test_a_loss_that_gives_back_all_it_had_gained() -> None:
    def run(level: float, best: float, ratio: float = 0.05) -> dict[str, str]:
        made = Synthetic().set(loss=2.5).set(slice(20, 60), loss=best).set(slice(60, None), loss=level)
        return confidences(made.set(update_sq=(10.0 * ratio) ** 2).record())

    assert run(2.5, 1.0)["lr_too_high"] == "MEDIUM"
    assert "lr_too_high" not in run(2.2, 1.0)
    assert "lr_too_high" not in run(2.5, 2.0)
    assert "lr_too_high" not in run(2.5, 1.0, ratio=1e-3)


def test_labels_are_not_blamed_where_something_was_learned() -> None:
    def run(best: float) -> dict[str, str]:
        made = Synthetic(300).set(loss=2.5 + 0.02 * np.sin(np.arange(300)), coherence=0.02, noise_share=0.97)
        made.set(slice(10, 60), loss=best).probe(start_gain=DRAWN, grad_zeros=0.3)
        return confidences(made.record())

    assert "label_noise" in run(2.4)
    assert "label_noise" not in run(1.0)


def test_weights_that_decay_throws_about() -> None:
    def run(decay: float) -> dict[str, str]:
        late = np.where(STEPS < 10, 2.5, 1.5) + 0.01 * np.sin(STEPS)
        made = Synthetic(optimizer="SGD").set(loss=late, distance=900.0, weight_decay=decay, lr=0.1)
        made.set(slice(0, 20), update_sq=25.0)
        return confidences(made.record(param_groups=[{"momentum": 0.9, "decoupled": 0.0}]))

    assert "lr_too_high" in run(0.0)
    assert "lr_too_high" not in run(1.0)


def test_what_is_read_from_random_gradients_is_no_cause() -> None:
    random = np.random.default_rng(0).standard_normal((200, 8))
    made = Synthetic().set(coherence=random / 64.0, noise_share=0.95).set(slice(0, 3), grad_sq=1e6)
    assert [f.confidence for f in rank(run_rules(made.record())) if f.code == "exploding_gradients"] == ["LOW"]
    assert rank(run_rules(made.record()))[0].code == "gradient_noise"


def test_momentum_of_hundreds_of_steps_that_leads_uphill() -> None:
    def run(beta: float, uphill: float) -> dict[str, str]:
        made = Synthetic(optimizer="SGD").set(momentum=beta, coherence=0.02, alignment=0.4)
        return confidences(made.set(overshoot=uphill * 0.4 * 0.3 * 0.02).record())

    assert "momentum_too_high" in run(0.999, 0.4)
    assert "momentum_too_high" not in run(0.99, 0.4)
    assert "momentum_too_high" not in run(0.999, -0.4)


def test_a_sum_that_turns_a_little_is_one_where_nobody_cleared_it() -> None:
    def run(told: bool | None, coherence: float, noise: float = 0.0) -> dict[str, str]:
        random = np.random.default_rng(0)
        made = Synthetic().set(loss=2.0 + 0.3 * random.standard_normal(200), coherence=coherence, noise_share=noise)
        return confidences(made.set(grad_sq=0.125, update_sq=0.04).record(gradients_are_new=told))

    assert "gradient_accumulation_bug" in run(False, 0.8)
    assert "gradient_accumulation_bug" not in run(None, 0.8)
    assert "gradient_accumulation_bug" in run(False, 0.7, 0.04)  # clipping shortens what it was added to
    assert "gradient_accumulation_bug" not in run(False, 0.6)
    assert "gradient_accumulation_bug" not in run(False, 0.7, 0.1)
    assert "gradient_accumulation_bug" not in run(None, 0.9, 0.04)


def test_early_layers_without_a_gradient_move_under_adam_and_learn_nothing() -> None:
    def run(loss: float, least: float) -> dict[str, str]:
        made = Synthetic().set(loss=2.5 * (loss + (1.0 - loss) * np.exp(-STEPS / 20.0)))
        fades = np.geomspace(least, 1.0, 8) * 0.3
        return confidences(made.set(grad_sq=fades**2).record())

    assert run(1.0, 1e-6)["vanishing_gradients"] == "HIGH"
    assert "vanishing_gradients" not in run(0.3, 1e-6)  # it learns
    assert "vanishing_gradients" not in run(1.0, 1e-2)


def test_first_steps_that_break_the_loss_at_once() -> None:
    def run(ratio: float, last: int = 3, first: float = 2.5) -> list[str]:
        made = Synthetic(optimizer="SGD", meta={"fresh": True}).set(slice(0, last), update_sq=(ratio * 10.0) ** 2)
        made.set(slice(last, None), grad_sq=np.nan, update_sq=np.nan, param_sq=np.nan)
        made.loss[:] = np.nan
        made.loss[:last] = first * 30.0 ** np.arange(last)
        return [f.code for f in rank(run_rules(made.record())) if f.confidence == "HIGH"]

    assert run(0.9)[0] == "lr_too_high"
    assert run(0.01) == ["non_finite"]
    assert run(0.9, first=np.nan) == ["non_finite"]  # no loss was told


def test_a_trained_model_may_begin_slowly() -> None:
    def run(gain: Any, rows: int, ratio: float = 1.6e-4) -> dict[str, str]:
        made = Synthetic(rows, optimizer="AdamW").set(loss=2.5 - 1e-6 * np.arange(rows)).probe(start_gain=gain)
        size = 0.01 * np.exp(0.1 * np.random.default_rng(0).standard_normal((rows, 8)))
        made.set(update_sq=(ratio * 10.0) ** 2, grad_sq=size**2, alignment=1.0, overshoot=-0.1 * ratio)
        return confidences(made.record())

    assert "lr_too_low" in run(DRAWN, 60)
    assert "lr_too_low" not in run(TRAINED, 140)  # as fine-tuning at a usual rate
    assert "lr_too_low" not in run(TRAINED, 60, 8e-5)
    assert "lr_too_low" in run(TRAINED, 140, 8e-5)


def test_a_rate_that_sharpens_attention_from_the_first_step() -> None:
    def run(ratio: float, first: int = 0) -> str:
        gain = np.where(
            np.arange(50) < first, 2.0, np.minimum(2.0 * 2.2 ** np.maximum(np.arange(50.0) - first, 0), 900.0)
        )
        made = Synthetic().probe(attention_gain=gain)
        return run_rules_first(made.set(slice(0, 30), update_sq=(10.0 * ratio) ** 2).set(lr=0.05).record())

    assert run(0.1) == "lr_too_high"
    assert run(0.01) == "attention_logit_growth"
    assert run(0.1, first=20) == "attention_logit_growth"


def test_a_momentum_of_a_hundred_steps_that_learns() -> None:
    def run(beta: float, left: float) -> dict[str, str]:
        made = Synthetic(optimizer="SGD").set(loss=2.5 * (left + (1.0 - left) * np.exp(-STEPS / 15.0)))
        return confidences(made.set(momentum=beta, coherence=0.35, alignment=0.1, overshoot=-1e-4).record())

    assert run(0.99, 0.8)["momentum_too_high"] == "HIGH"
    assert "momentum_too_high" not in run(0.99, 0.1)
    assert run(0.999, 0.1)["momentum_too_high"] == "HIGH"


def test_tables_that_few_batches_ask_for_shrink() -> None:
    def run(ltype: str) -> dict[str, str]:
        norm = 10.0 * np.exp(-2e-3 * STEPS)[:, None] * np.ones((200, 8))
        made = Synthetic().set(weight_decay=0.4, lr=5e-3, param_sq=norm**2, update_sq=(norm * 2.1e-3) ** 2)
        record = made.record(param_groups=[{"decoupled": 1.0, "weight_decay": 0.4}])
        layers = tuple(replace(layer, ltype=ltype) for layer in record.layers)
        return confidences(replace(record, layers=layers))

    assert run("mlp")["weight_decay_too_high"] == "MEDIUM"
    assert "weight_decay_too_high" not in run("embedding")


def test_a_sum_of_losses_that_passes_chance_is_no_noise() -> None:
    def run(first: float) -> dict[str, str]:
        fast = (first - 1.0) * np.exp(-STEPS / 30.0)
        loss = np.log(64) * (1.0 + fast) + 0.8 * np.random.default_rng(0).standard_normal(200)
        made = Synthetic().set(loss=loss, coherence=0.02, noise_share=0.95)
        made.columns["output_drift"] = np.full((200, 8), np.nan)
        made.columns["output_drift"][::4, 7] = 1e-9
        return confidences(made.record())

    assert run(1.1)["gradient_noise"] == "LOW"
    assert "gradient_noise" not in run(2.5)


@pytest.mark.parametrize(("tables", "told"), [(0, True), (1, True), (2, False), (3, False)])
def test_first_steps_that_rewrite_tables(tables: int, told: bool) -> None:
    made = Synthetic(layers=3).set(slice(0, 8), update_sq=30.0)
    made.set(loss=2.5 + 0.01 * np.sin(STEPS))
    record = made.record()
    kinds = ["embedding"] * tables + ["mlp"] * (3 - tables)
    layers = tuple(replace(layer, ltype=kind) for layer, kind in zip(record.layers, kinds, strict=True))
    assert ("lr_too_high" in confidences(replace(record, layers=layers))) == told


def test_first_steps_that_rewrite_weights_and_learn() -> None:
    def run(later: float = 2.5, steps: int = 200, **more: Any) -> dict[str, str]:
        made = Synthetic(steps).set(slice(0, 8), update_sq=9.0).set(loss=2.5 + 0.01 * np.sin(np.arange(steps)))
        made.set(slice(10, None), loss=later).set(**more)
        return confidences(made.probe(start_gain=1.0, grad_zeros=0.3).record())

    def ended(row: int) -> dict[str, str]:
        made = Synthetic().set(slice(0, 8), update_sq=9.0).set(slice(3, None), loss=1.5 + 0.1 * np.sin(STEPS[3:]))
        return confidences(made.set(slice(row, None), grad_sq=0.0).record())

    assert ended(10)["lr_too_high"] == "HIGH"  # a loss that fell to where no gradient is left
    assert "lr_too_high" not in ended(100)
    assert run()["lr_too_high"] == "HIGH"
    assert "lr_too_high" not in run(later=1.2)  # RMSprop's first steps are its longest
    assert "lr_too_high" not in run(steps=12)  # too soon to tell
    assert run(steps=12, later=np.nan)["lr_too_high"] == "HIGH"
    once = Synthetic().set(0, update_sq=9.0 * 10.0).set(1, loss=150.0)
    assert "lr_too_high" not in confidences(once.record())  # a write
    lost = dict.fromkeys(("update_sq", "param_sq", "grad_sq"), np.nan)
    assert (
        confidences(once.set(slice(2, None), loss=np.nan).set(slice(1, None), **lost).record())["lr_too_high"] == "HIGH"
    )


def test_first_steps_that_rewrite_what_began_too_small() -> None:
    def run(gain: float) -> dict[str, str]:
        norm = gain * np.sqrt(4096.0 / 64.0)  # of rows of 64 inputs
        made = Synthetic().set(slice(0, 10), param_sq=norm**2).set(slice(0, 10), update_sq=(0.4 * norm) ** 2)
        made.set(loss=2.5 + 0.01 * np.sin(STEPS)).probe(start_gain=gain, grad_zeros=0.3)
        return confidences(made.record())

    assert run(3**-0.5)["lr_too_high"] == "HIGH"
    assert "lr_too_high" not in run(0.1)  # GPT's 0.02 in a narrow layer: there is nothing to lose


def test_a_loss_that_soon_stands_still_far_from_its_first_level() -> None:
    steps = np.arange(300)

    def run(level: float, wobble: float = 0.01, slope: float = 0.0, gain: Any = DRAWN, **more: Any) -> dict[str, str]:
        shape = level + (1.0 - level) * np.exp(-steps / 5.0) - slope * steps / 300.0
        noise = wobble * np.random.default_rng(0).standard_normal(300)
        made = Synthetic(300).set(loss=2.5 * (shape + noise), coherence=0.2, noise_share=0.5)
        made.probe(start_gain=gain, grad_zeros=0.3).set(**more)
        return confidences(made.record())

    assert run(0.75)["label_noise"] == "MEDIUM"
    assert run(0.97, wobble=0.1)["label_noise"] == "MEDIUM"
    assert "label_noise" not in run(0.4)  # much was learned
    assert run(0.6)["label_noise"] == "MEDIUM"
    assert "label_noise" not in run(0.6, wobble=0.1)  # too noisy to tell a small fall from none
    assert "label_noise" not in run(0.75, slope=0.08)  # slow, but it goes on
    assert "label_noise" not in run(0.75, gain=TRAINED)  # a trained model has little to learn
    assert "label_noise" not in run(0.75, update_sq=(10.0 * 1e-4) ** 2)
    fallen = np.where(steps < 40, 1e-3, 1e-4)[:, None]
    assert "label_noise" not in run(0.75, lr=fallen)
    assert "label_noise" not in run(0.75, lr=1e-3 * (1.0 + steps / 100.0)[:, None])  # a warm-up that goes on
    assert "label_noise" not in run(0.75, coherence=0.4)  # a saddle: gradients agree on the way out
    noisy = 0.3 * np.random.default_rng(1).standard_normal((300, 1))
    assert run(0.75, noise_share=0.95, coherence=noisy)["label_noise"] == "MEDIUM"
    assert "label_noise" not in run(0.75, noise_share=0.95, coherence=noisy / 3.0 + 0.05)  # little in much noise


def test_gradients_that_fade_while_the_loss_stands_still_above_its_mean() -> None:
    def run(level: float, fades: float = 10.0) -> Record:
        loss = 2.5 * (level + (1.0 - level) * np.exp(-STEPS / 5.0)) + 0.01 * np.sin(STEPS)
        size = 0.1 * fades ** (np.arange(8.0) - 7.0)  # each layer's is a tenth of the next one's
        made = Synthetic(optimizer="Adam").set(loss=loss, grad_sq=size**2).probe(start_gain=DRAWN, grad_zeros=0.3)
        return made.set(overshoot=0.0).record()

    assert heard(run(0.75), "vanishing_gradients").explains == ("label_noise",)
    silent(run(0.3), "vanishing_gradients")  # Adam's steps do not depend on the size of gradients
    silent(run(0.75, fades=2.0), "vanishing_gradients")


def test_outputs_that_begin_far_too_large() -> None:
    def run(fall: float, gradient: float, gain: Any = DRAWN) -> dict[str, str]:
        loss = 1e4 / fall * (1.0 + (fall - 1.0) * np.exp(-STEPS / 2.0))
        made = Synthetic(optimizer="Adam").set(loss=loss).set(0, grad_sq=gradient**2)
        return confidences(made.probe(start_gain=gain, grad_zeros=0.3).record())

    steep = 20.0 * 1e4 / 10.0  # ‖g‖‖θ‖ is twenty times the loss
    assert run(300.0, steep)["exploding_gradients"] == "MEDIUM"
    assert "exploding_gradients" not in run(50.0, steep)
    assert "exploding_gradients" not in run(1e5, steep)  # solved: a margin, a few examples
    assert "exploding_gradients" not in run(300.0, steep / 10.0)  # a simple problem, solved at once
    assert "exploding_gradients" not in run(300.0, steep, gain=TRAINED)


def test_a_short_run_on_shuffled_targets() -> None:
    loss = 2.5 * (0.75 + 0.25 * np.exp(-np.arange(100) / 5.0))
    run = Synthetic(100).set(loss=loss, coherence=0.2, noise_share=0.5).probe(start_gain=DRAWN, grad_zeros=0.3)
    assert confidences(run.record())["label_noise"] == "MEDIUM"


def test_a_batch_whose_loss_scatters_more_than_was_gained() -> None:
    steps = np.arange(300)

    def run(wobble: float, gained: float = 0.2, gain: Any = DRAWN, **more: Any) -> dict[str, str]:
        loss = 2.5 - gained * steps / 300.0 + wobble * np.random.default_rng(0).standard_normal(300)
        agreement = 0.02 + 0.1 * np.random.default_rng(1).standard_normal((300, 8))
        made = Synthetic(300).set(loss=loss, coherence=agreement, noise_share=0.97, overshoot=0.0)
        return confidences(made.probe(start_gain=gain, grad_zeros=0.3).set(**more).record())

    assert run(1.0)["gradient_noise"] == "LOW"
    assert "gradient_noise" not in run(1.0, gain=TRAINED)  # it gains little, whatever the batch
    assert "gradient_noise" not in run(0.4)
    assert "gradient_noise" not in run(1.0, gained=2.0)
    assert "gradient_noise" not in run(1.0, noise_share=0.85)
    assert "gradient_noise" not in run(1.0, overshoot=-0.0005)  # what a step does for its batch it does for the next
    assert "gradient_noise" not in run(1.0, coherence=0.2)
    hard = np.where(np.random.default_rng(0).random(300) < 0.2, 10.0, 0.5)  # a few batches in sixty
    assert "gradient_noise" not in run(1.0, loss=np.where(steps < 5, 2.5, hard))
    few = 0.05 + 0.1 * np.random.default_rng(1).standard_normal((300, 1))
    assert "gradient_noise" not in run(1.0, coherence=few)  # successive gradients share more than by chance


def test_a_turned_sign_that_breaks_the_run_at_once() -> None:
    def run(slope: float = -0.15, fell: float = 0.0, grows: float = 4.0) -> list[str]:
        t = np.arange(40)
        loss = 2.1 - fell * np.exp(-np.abs(t - 8) / 2.0) + 0.1 * grows ** np.maximum(t - 17.0, 0.0) * (t >= 17)
        made = Synthetic(40).set(loss=loss, coherence=0.5)
        made.set(overshoot=slope * 0.3 * 0.02).set(5, overshoot=0.001).set(slice(24, None), loss=np.nan)
        return [f.code for f in rank(run_rules(made.record())) if f.confidence != "LOW"]

    assert run()[0] == "wrong_sign"
    assert "wrong_sign" not in run(slope=0.15)  # steps that are too long
    assert "wrong_sign" not in run(fell=1.5)  # it was right for a while
    assert "wrong_sign" not in run(grows=1.3)


def test_steps_of_signs_lengthen_the_weights_that_they_agree_on() -> None:
    def run(optimizer: str, layers: int) -> dict[str, str]:
        made = Synthetic(layers=2, optimizer=optimizer).set(alignment=0.05)
        for layer in range(layers):
            norm = 10.0 * np.exp(0.004 * STEPS)
            made.set(layers=layer, param_sq=norm**2, update_sq=(0.0042 * norm) ** 2)
        return confidences(made.record())

    assert run("AdamW", 1)["weight_blow_up"] == "HIGH"
    assert run("Lion", 2)["weight_blow_up"] == "HIGH"
    assert "weight_blow_up" not in run("PagedLion8bit", 1)
    assert "weight_blow_up" not in run("Lion", 1)


def test_a_loss_that_explodes_at_once_is_the_cause_of_what_dies_later() -> None:
    made = Synthetic().set(slice(103, None), lr=0.1).set(slice(104, None), loss=30.0)
    told = next(finding for finding in run_rules(made.record()) if finding.code == "lr_too_high")
    steep = replace(told, first_step=8, raised_step=10, evidence={"loss": 30.0, "loss_at_start": 2.5})
    dead = replace(steep, code="dead_units", first_step=17, raised_step=29, evidence={})
    assert [finding.code for finding in rank([dead, steep])] == ["lr_too_high", "dead_units"]
    decay = replace(dead, code="weight_decay_too_high", first_step=9, evidence={"decay_over_gradient": 400.0})
    assert rank([steep, decay])[0].code == "weight_decay_too_high"  # the steps are the decay's
    assert rank([steep, replace(decay, evidence={"decay_over_gradient": 3.0})])[0].code == "lr_too_high"
    later = replace(steep, first_step=100, raised_step=110)
    assert rank([replace(dead, first_step=109), later])[0].code == "dead_units"


def test_a_rate_that_was_set_comes_before_what_probes_saw_begin() -> None:
    made = Synthetic().set(slice(103, None), lr=0.1).set(slice(104, None), loss=30.0)
    jump = next(finding for finding in run_rules(made.record()) if finding.code == "lr_too_high")
    seen = replace(
        jump, code="underflow", first_step=jump.first_step - 10, raised_step=jump.raised_step + 20, evidence={}
    )
    assert [finding.code for finding in rank([seen, jump])] == ["lr_too_high", "underflow"]
    before = replace(seen, first_step=jump.first_step - 40)
    assert rank([before, jump])[0].code == "underflow"


def test_one_loud_layer_does_not_hide_steps_that_no_longer_follow() -> None:
    random = np.random.default_rng(0)

    def run(after: float, odd: float = 1.0) -> dict[str, str]:
        made = Synthetic().set(loss=2.0 + 0.02 * random.standard_normal(200))
        made.set(slice(120, None), alignment=after + 0.02 * random.standard_normal((80, 8)))
        made.set(layers=0, grad_sq=1e4, alignment=0.05 + 0.1 * random.standard_normal(200))  # it speaks for all
        made.columns["grad_sq"][118:121] *= odd**2
        return confidences(made.record())

    assert run(0.0)["incoherent_update"] == "HIGH"
    assert "incoherent_update" not in run(0.25)
    assert "incoherent_update" not in run(0.0, odd=10.0)  # momentum remembers


def test_gradients_that_vanish_while_a_loss_that_overshot_is_what_guessing_gives() -> None:
    fading = np.geomspace(1e-8, 1.0, 8) * np.ones((200, 8))

    def run(loss: float, drift: float = 1e-6) -> Record:
        made = Synthetic().set(loss=np.where(STEPS < 5, 6.0, loss), grad_sq=0.09 * fading**2)
        drifts = np.where(np.arange(8) == 7, drift, np.nan)
        made.probe(start_gain=3**-0.5, grad_zeros=0.3, output_drift=drifts)
        return made.record(layer_shapes={f"blocks.{i}.fc": [10, 64] for i in range(8)})

    assert "vanishing_gradients" in confidences(run(2.29))  # of ten classes: ln 10
    assert "vanishing_gradients" not in confidences(run(1.9))
    assert "vanishing_gradients" not in confidences(run(2.29, drift=1.0))  # nobody knows what guessing gives


def test_a_new_classifier_that_is_sure_and_wrong_before_it_has_learned() -> None:
    shapes = {f"blocks.{i}.fc": [10, 64] for i in range(8)}

    def run(first: float, left: float, gain: Any = 3**-0.5, drift: float = 1e-6) -> Record:
        loss = np.where(STEPS < 8, first, left - 0.002 * STEPS)
        drifts = np.where(np.arange(8) == 7, drift, np.nan)
        made = Synthetic().set(loss=loss, grad_sq=1e-6).probe(start_gain=gain, grad_zeros=0.3, output_drift=drifts)
        return made.record(layer_shapes=shapes)

    told = heard(run(50.0, 2.4), "exploding_gradients")
    assert (told.raised_step, told.evidence["chance"]) == (20, pytest.approx(np.log(10.0)))
    for other in (
        run(9.0, 0.8),  # four times ln C
        run(50.0, 20.0),  # a sum over a batch stays many times ln C
        run(15.0, 2.0),
        run(50.0, 2.4, gain=TRAINED),
        run(50.0, 2.4, drift=1.0),  # no cross-entropy
    ):
        silent(other, "exploding_gradients")


def test_a_loss_that_jumps_and_stays_lost_is_no_spike_but_other_data() -> None:
    def run(stays: float, jump: float = 8.0) -> Record:
        made = Synthetic()
        fallen = float(np.median(made.loss[130:150]))
        made.set(slice(150, None), loss=fallen + stays * (1.0 + 0.02 * np.sin(STEPS[150:])))
        made.set(150, loss=fallen + jump).set(151, loss=fallen + 0.4 * jump)
        return made.record()

    heard(run(1.8), "distribution_shift")  # all that was gained is lost again
    heard(run(0.05), "loss_spike")
    heard(run(1.8, jump=60.0), "loss_spike")  # such a gradient may throw weights so far


def test_a_loss_thrown_up_by_the_first_steps_that_is_back_at_once_is_no_alarm() -> None:
    def run(high: list[float]) -> dict[str, int]:
        made = Synthetic().set(update_sq=1.0)
        made.set(slice(6, 6 + len(high)), loss=2.5 * np.array(high))
        return {f.code: f.raised_step for f in run_rules(made.record())}

    assert "lr_too_high" not in run([6.0, 12.0, 7.0])
    assert run([6.0, 7.0, 8.0, 12.0])["lr_too_high"] == 9
    assert run([6.0, 12.0, 7.0, 8.0, 13.0, 6.0, 14.0, 8.0, 9.0, 6.0])["lr_too_high"] == 15  # it lasts


def test_gradients_that_agree_for_forty_short_steps_say_that_these_are_too_short() -> None:
    def run(
        coherence: float = 0.9, ratio: float = 4e-4, reach: float = -0.96, left: float = 0.95, noise: float = 0.0
    ) -> Record:
        made = Synthetic(100).set(loss=2.5 * np.linspace(1.0, left, 100), coherence=coherence, noise_share=noise)
        gradient = 1e-3 * np.exp(0.1 * np.random.default_rng(0).standard_normal((100, 8)))
        size = 10.0 * ratio
        made.set(update_sq=size**2, grad_sq=gradient**2, alignment=1.0, overshoot=reach * gradient * size)
        return made.probe(start_gain=DRAWN).record()

    told = heard(run(), "lr_too_low")
    assert 40 < told.raised_step < 80
    for other in (run(coherence=0.5), run(ratio=1e-3), run(reach=-0.85), run(left=0.3)):
        silent(other, "lr_too_low")
    assert heard(run(reach=-0.85, noise=0.15), "lr_too_low")  # of another batch only the signal is there


def test_a_noisy_loss_that_has_fallen_must_rest_for_longer() -> None:
    def run(level: float, rows: int) -> set[str]:
        noise = 0.2 * np.random.default_rng(1).standard_normal(rows)
        loss = 2.5 * (level + (1.0 - level) * np.exp(-np.arange(rows) / 4.0)) + noise
        made = Synthetic(rows).set(loss=loss, coherence=0.3 * np.random.default_rng(2).standard_normal((rows, 8)))
        return {f.code for f in run_rules(made.probe(start_gain=DRAWN).record())}

    assert "label_noise" in run(0.97, 160)
    assert "label_noise" not in run(0.85, 160)  # the thirds of eighty steps tell a fall of 5 %, and no less
    assert "label_noise" in run(0.85, 600)


def test_noise_that_comes_suddenly_is_told_although_the_loss_was_restless_before() -> None:
    random = np.random.default_rng(0)
    size = np.where(np.arange(300) < 200, 0.15, 0.005)[:, None]
    made = Synthetic(300).set(loss=2.3 + 0.5 * random.standard_normal(300), noise_share=0.95, overshoot=0.0)
    made.set(coherence=size * random.standard_normal((300, 8))).probe(output_drift=1e-9)
    record = made.record(layer_shapes={f"blocks.{i}.fc": [10, 64] for i in range(8)})
    assert confidences(record.rows(stop=200))["gradient_noise"] == "LOW"
    assert confidences(record)["gradient_noise"] == "HIGH"


def test_gradients_of_a_model_that_has_not_moved_may_be_as_random_as_noise() -> None:
    random = np.random.default_rng(0)

    def run(ratio: float) -> dict[str, str]:
        made = Synthetic(120).set(loss=2.3 + 0.1 * random.standard_normal(120), noise_share=0.99)
        made.set(coherence=64**-1 * random.standard_normal((120, 8)), update_sq=(10.0 * ratio) ** 2)
        return confidences(made.record())

    assert run(1e-3)["gradient_noise"] == "HIGH"
    assert "gradient_noise" not in run(1e-4)
