"""The detectors on real runs: collapse acts once, then watches anew; the split reads as the seed's; preflight."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from tests.conftest import MODELS, TinyGPT, mlp, seed_everything, train_step
from thermoclaw import CollapseDetector, EntropySplit, Observer, Remedy, preflight
from thermoclaw.quantities import R_IE_CAP

CASE = MODELS[0]
GPT = next(case for case in MODELS if case.name == "tied_gpt")
Digits = tuple[Tensor, Tensor]

# -- collapse ---------------------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """A run on handwritten digits under a detector."""

    losses: list[float]
    acted: list[int]
    detector: CollapseDetector
    model: nn.Module
    optimizer: Optimizer


def digits_run(
    digits: Digits,
    make: Callable[[Any], Optimizer],
    *,
    factor: float | None = None,
    num_steps: int = 250,
    accumulate: int = 1,
    detect: Callable[[nn.Module, Optimizer], CollapseDetector] = CollapseDetector,
) -> Watched:
    """The seed's loop: `weight_decay *= factor` while `is_collapsing`."""
    seed_everything(11)
    x, y = digits
    model = mlp(64, 96, 96, 10)
    optimizer = make(model.parameters())
    detector = detect(model, optimizer)
    losses, acted = [], []
    for t in range(num_steps * accumulate):
        rows = torch.randint(len(x), (64,))
        loss = functional.cross_entropy(model(x[rows]), y[rows])
        (loss / accumulate).backward()
        if t % accumulate == accumulate - 1:
            optimizer.step()
        detector.step()
        if t % accumulate == accumulate - 1:
            optimizer.zero_grad()
        if detector.is_collapsing:
            acted.append(t // accumulate + 1)
            for group in optimizer.param_groups:
                if factor is not None:
                    group["weight_decay"] *= factor
        losses.append(loss.item())
    return Watched(losses, acted, detector, model, optimizer)


def dying(params: Any) -> Optimizer:
    """Decay takes 5 % of the weights a step."""
    return torch.optim.SGD(params, lr=0.1, weight_decay=0.5)


def test_the_seeds_loop_acts_once_a_collapse_and_saves_the_run(digits: Digits) -> None:
    """Decay kills a network; with a tenth of it, again while it still kills, the network learns."""
    dead, saved = digits_run(digits, dying, num_steps=350), digits_run(digits, dying, factor=0.1, num_steps=350)
    assert np.mean(dead.losses[-20:]) > 2.29, "ln 10 = 2.303: it has forgotten everything"
    assert np.mean(saved.losses[-20:]) < 1.2
    assert saved.acted[0] <= 24
    assert len(saved.acted) == 2, "0.5 → 0.05 → 0.005 is what it takes"
    assert saved.optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.005)
    assert len(saved.detector.findings) == len(saved.acted)


def test_a_collapse_is_reported_at_one_step_and_then_watched_anew(digits: Digits) -> None:
    """Nobody acts: it is said again, as the weights go on eroding, but never at two steps in a row."""
    run = digits_run(digits, dying, num_steps=120)
    assert len(run.acted) >= 2
    assert min(np.diff(run.acted)) >= 8
    raised = [finding.raised_step for finding in run.detector.findings]
    assert raised == sorted(raised)
    assert all(f.code == "weight_decay_too_high" for f in run.detector.findings)
    firsts = [finding.first_step for finding in run.detector.findings]
    assert all(first > before for first, before in zip(firsts[1:], raised, strict=False)), "from a new baseline"


def test_a_cure_is_recognized(digits: Digits) -> None:
    run = digits_run(digits, dying, factor=0.0)
    assert len(run.acted) == 1
    assert np.mean(run.losses[-20:]) < 1.2


def test_micro_batches_do_not_act_twice(digits: Digits) -> None:
    """The detector is stepped at every micro-batch: a collapse still acts once."""
    one = digits_run(digits, dying, factor=0.1, num_steps=100)
    four = digits_run(digits, dying, factor=0.1, num_steps=100, accumulate=4)
    assert len(set(four.acted)) == len(four.acted)
    assert abs(four.acted[0] - one.acted[0]) <= 8


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-4),
        lambda p: torch.optim.SGD(p, lr=0.1),
    ],
    ids=["adamw", "adamw_decay_0.1", "sgdm", "sgd"],
)
def test_it_is_silent_on_healthy_runs(digits: Digits, make: Callable[[Any], Optimizer]) -> None:
    run = digits_run(digits, make)
    assert run.losses[-1] < 0.5 * run.losses[0]
    assert run.acted == []
    assert run.detector.get_recommendations() == []
    assert run.detector.findings == []


def test_the_same_collapse_whoever_owns_the_observer(digits: Digits) -> None:
    alone = digits_run(digits, dying, num_steps=60)
    shared = digits_run(digits, dying, num_steps=60, detect=lambda m, o: CollapseDetector(Observer(m, o, strict=True)))
    keyword = digits_run(
        digits, dying, num_steps=60, detect=lambda m, o: CollapseDetector(m, o, observer=Observer(m, o))
    )
    assert alone.acted == shared.acted == keyword.acted


def test_what_a_detector_tells(digits: Digits) -> None:
    run = digits_run(digits, dying, num_steps=60)
    (first, *_) = run.detector.get_recommendations()[::-1]
    assert first.startswith("[HIGH] Weight decay is eroding")
    assert "param norms dropped" in first
    assert "Reduce weight_decay from 0.5 to about" in first
    summary = run.detector.summary()
    assert list(summary) == run.detector.record().layer_names
    one = next(iter(summary.values()))
    assert set(one) == {"ltype", "weight_decay", "ratio_mean", "ratio_early", "ratio_late", "n_steps"}
    assert one["weight_decay"] == 0.5
    assert one["n_steps"] == 60
    record = run.detector.record()
    ratio = record["grad_param_ratio"][:, 0]
    assert one["ratio_early"] == pytest.approx(ratio[:50].mean())
    assert one["ratio_late"] == pytest.approx(ratio[-50:].mean())
    ratios = run.detector.step()
    assert dict(ratios) == {n: record["grad_param_ratio"][-1, i] for i, n in enumerate(record.layer_names)}


def test_the_window_of_its_summary() -> None:
    model = mlp(6, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    detector = CollapseDetector(model, optimizer, window=2)
    assert detector.summary()["0"]["ratio_early"] is None
    for _ in range(10):
        train_step(model, optimizer, CASE)
        detector.step()
    ratio = detector.record()["grad_param_ratio"][:, 0]
    assert detector.summary()["0"]["ratio_early"] == pytest.approx(ratio[:2].mean())
    assert not detector.is_collapsing


def test_a_collapse_is_over_at_the_next_step_even_if_nobody_steps_the_detector() -> None:
    model = nn.Linear(20, 20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    detector = CollapseDetector(model, optimizer)
    said = []
    for _ in range(40):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        said.append(detector.is_collapsing)
        assert detector.is_collapsing is said[-1], "the answer does not change by asking"
    assert 1 <= sum(said) <= 3
    assert not any(a and b for a, b in itertools.pairwise(said))


def test_before_any_step_nothing_collapses() -> None:
    model = mlp(6, 4)
    detector = CollapseDetector(model, torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=50.0))
    assert not detector.is_collapsing
    detector.step()
    assert not detector.is_collapsing


# -- the entropy split ------------------------------------------------------------------------------------------------

SPLIT_KEYS = ["step", "layers", "total_d_eS", "total_d_iS", "R_ie_median", "R_ie_max", "worst_layer", "worst_ltype"]
LAYER_KEYS = [
    "name",
    "ltype",
    "sigma_total",
    "d_eS",
    "d_iS",
    "d_iS_wd",
    "d_iS_momentum",
    "d_iS_noise",
    "R_ie",
    "lr",
    "gnorm_sq",
]


def gpt_split(num_steps: int = 6, make: Callable[[Any], Optimizer] | None = None) -> tuple[EntropySplit, Any]:
    model = TinyGPT()
    optimizer = (make or (lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1)))(model.parameters())
    splitter = EntropySplit(model, optimizer, Observer(model, optimizer, strict=True))
    for _ in range(num_steps):
        train_step(model, optimizer, GPT)
        split = splitter.step()
    return splitter, split


def test_a_split_reads_like_the_seeds_snapshot() -> None:
    splitter, split = gpt_split()
    assert list(split.keys()) == SPLIT_KEYS
    assert list(split.layers[0].keys()) == LAYER_KEYS
    assert split["step"] == split.step == 6
    assert dict(split)["worst_layer"] == split.worst_layer
    layer = split.layers[3]
    assert (layer.name, layer.ltype) == ("attn.c_attn", "attention")
    assert layer["R_ie"] == layer.R_ie
    record = splitter.record()
    for key, name in {
        "sigma_total": "sigma",
        "d_eS": "d_eS",
        "d_iS_noise": "d_iS_noise",
        "gnorm_sq": "grad_sq",
    }.items():
        assert layer[key] == record[name][-1, 3]
    assert split.total_d_eS == pytest.approx(sum(x.d_eS for x in split.layers))
    assert split.total_d_iS == pytest.approx(sum(x.d_iS for x in split.layers))
    assert split.R_ie_median == pytest.approx(np.median([x.R_ie for x in split.layers]))
    assert split.R_ie_max == max(x.R_ie for x in split.layers)
    worst = max(split.layers, key=lambda x: x.R_ie)
    assert (split.worst_layer, split.worst_ltype) == (worst.name, worst.ltype)
    assert repr(split).startswith("SplitSnapshot(step=6")
    with pytest.raises(AttributeError, match="nothing"):
        _ = split.nothing
    with pytest.raises(KeyError, match="nothing"):
        layer["nothing"]


def test_a_history_of_splits() -> None:
    splitter, split = gpt_split()
    history = splitter.step_history
    assert [s.step for s in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1].layers == split.layers


def test_the_summary_is_a_ratio_of_sums() -> None:
    splitter, _ = gpt_split(30)
    record, summary = splitter.record(), splitter.summary()
    assert summary["n_steps"] == 30
    assert summary["R_ie"] == pytest.approx(record["d_iS"].sum() / record["d_eS"].sum())
    assert summary["sigma"] == pytest.approx(summary["d_eS"] + summary["d_iS"], rel=1e-6)
    assert summary["d_iS"] == pytest.approx(
        summary["d_iS_wd"] + summary["d_iS_momentum"] + summary["d_iS_noise"], rel=1e-6
    )


def test_the_report_names_the_worst_layers_first() -> None:
    splitter, _ = gpt_split(30)
    text = splitter.report(top_k=3)
    lines = text.splitlines()
    assert lines[0] == "Entropy split"
    assert "30 steps, 9 layers, R_ie = " in lines[1]
    rows = [line.split() for line in lines[4:7]]
    ratios = [float(row[2]) for row in rows]
    assert ratios == sorted(ratios, reverse=True)
    assert {row[0] for row in rows} < set(splitter.record().layer_names)
    assert len(splitter.report(top_k=1).splitlines()) == len(lines) - 2


def test_dominant_decay_is_recommended_against_with_high_confidence() -> None:
    """Steady gradients, no momentum, no noise, and a decay that outweighs them eight to one."""

    def run(decay: float, **settings: Any) -> EntropySplit:
        seed_everything(2)
        model = nn.ModuleDict({"mlp": nn.Linear(30, 30), "head": nn.Linear(30, 30)})
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, weight_decay=decay, **settings)
        splitter = EntropySplit(model, optimizer)
        steady = [torch.randn_like(p) for p in model.parameters()]
        for _ in range(60):
            for p, g in zip(model.parameters(), steady, strict=True):
                p.grad = g.clone()
            optimizer.step()
        return splitter

    texts = run(2000.0).get_recommendations()
    assert len(texts) == 2
    assert all(t.startswith("[HIGH] Weight decay is the dominant entropy source for 1 ") for t in texts)
    assert "Lower weight_decay there" in texts[0]
    assert "1 mlp layer" in " ".join(texts)
    assert "1 lm_head layer" in " ".join(texts)
    assert run(0.01).get_recommendations() == []
    assert "Nothing to act on." in run(0.01).report()
    assert "[HIGH]" in run(2000.0).report()


def test_momentum_is_only_for_information() -> None:
    """There is no sure remedy for overhead of momentum, so it is never above LOW."""
    model = nn.ModuleDict({"mlp": nn.Linear(30, 30)})
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.99)
    splitter = EntropySplit(model, optimizer)
    for _ in range(200):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    (text,) = splitter.get_recommendations()
    assert text.startswith("[LOW] Momentum and preconditioning is the dominant entropy source for 1 mlp layer")
    assert "Lower β₁" in text


def test_too_few_steps_say_nothing() -> None:
    splitter, _ = gpt_split(10, lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.999, weight_decay=100.0))
    assert splitter.get_recommendations() == []


def test_ratios_of_nothing() -> None:
    model = mlp(6, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    splitter = EntropySplit(model, optimizer)
    assert splitter.summary()["R_ie"] == 0.0
    assert "0 steps" in splitter.report()
    train_step(model, optimizer, CASE)
    split = splitter.step()
    assert split.R_ie_max == 0.0
    still = EntropySplit(model, optimizer)
    assert still.summary()["R_ie"] == 0.0
    assert math.isfinite(R_IE_CAP)


# -- preflight --------------------------------------------------------------------------------------------------------


def test_preflight_foretells_where_decay_and_steps_balance() -> None:
    """√(ηN/2λ) and 1/(ηλ), and what a run of AdamW on pure noise then does."""
    seed_everything(3)
    layer = nn.Linear(40, 40, bias=False)
    with torch.no_grad():
        layer.weight.normal_(0.0, 0.2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01, weight_decay=1.0, betas=(0.9, 0.999))
    (forecast,) = preflight(layer, optimizer).forecasts
    assert forecast.equilibrium_norm == pytest.approx(math.sqrt(0.01 * 1600 / 2.0))
    assert forecast.decay_steps == pytest.approx(100.0)
    assert forecast.param_norm == pytest.approx(float(layer.weight.detach().norm()))
    for _ in range(800):
        layer.weight.grad = torch.randn_like(layer.weight)
        optimizer.step()
    assert float(layer.weight.detach().norm()) == pytest.approx(forecast.equilibrium_norm, rel=0.15)


@pytest.mark.parametrize(
    ("make", "confidence"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=5.0), "HIGH"),
        (lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.5), "HIGH"),
        (lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=5.0), "HIGH"),
        (lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=5.0), "MEDIUM"),
    ],
)
def test_preflight_warns_of_erosion(make: Callable[[Any], Optimizer], confidence: str) -> None:
    model = mlp(64, 96, 96, 10)
    optimizer = make(model.parameters())
    result = preflight(model, optimizer, total_steps=5000)
    (finding,) = result.findings
    assert finding.code == "weight_decay_too_high"
    assert finding.confidence == confidence
    assert not result.healthy
    assert "shrink by a factor e every" in str(result)
    assert isinstance(finding.remedy, Remedy)
    finding.remedy.apply(optimizer)
    assert preflight(model, optimizer, total_steps=5000).healthy


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=3e-4, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4),
        lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=1e-4),
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.Adafactor(p, lr=1e-2),
    ],
)
def test_preflight_is_silent_on_the_usual_recipes(make: Callable[[Any], Optimizer]) -> None:
    model = mlp(64, 96, 96, 10)
    result = preflight(model, make(model.parameters()), total_steps=10_000)
    assert result.healthy
    assert result.findings == []
    assert "nothing that would hurt" in str(result)


def test_momentum_multiplies_coupled_decay() -> None:
    """1/(ηλ) steps for plain SGD, (1 − β)/(ηλ) through momentum, 1/(ηλ) for decoupled decay whatever β is."""
    layer = nn.Linear(10, 10)

    def steps(optimizer: Optimizer) -> float:
        return preflight(layer, optimizer).forecasts[0].decay_steps

    assert steps(torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.01)) == pytest.approx(1000.0)
    assert steps(torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.01, momentum=0.9)) == pytest.approx(100.0)
    assert steps(torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.01)) == pytest.approx(1000.0)
    assert steps(torch.optim.SGD(layer.parameters(), lr=0.1)) == math.inf


def test_preflight_leaves_short_runs_alone() -> None:
    """Erosion that takes longer than the run is not reported."""
    model = mlp(64, 96, 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=5.0)
    assert preflight(model, optimizer, total_steps=5000).findings
    assert not preflight(model, optimizer, total_steps=100).findings
    with pytest.raises(
        ValueError, match="total_steps=0: give the number of optimizer steps of the run, or leave it out"
    ):
        preflight(model, optimizer, total_steps=0)


def test_preflight_blames_the_group_that_decays() -> None:
    model = mlp(64, 96, 10)
    optimizer = torch.optim.AdamW(
        [
            {"params": model[0].parameters(), "weight_decay": 5.0},
            {"params": model[2].parameters(), "weight_decay": 0.01},
        ],
        lr=3e-3,
    )
    (finding,) = preflight(model, optimizer).findings
    assert finding.layers == ("0",)
    assert finding.remedy is not None
    assert finding.remedy.groups == (0,)
    finding.remedy.apply(optimizer)
    assert optimizer.param_groups[1]["weight_decay"] == 0.01
    assert optimizer.param_groups[0]["weight_decay"] < 0.1
