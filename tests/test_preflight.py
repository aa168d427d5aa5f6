"""What preflight says before the first step: each failure by name, silence on what is meant."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from thermoclaw import Preflight, preflight
from thermoclaw.preflight.probe import noise_forecast

Data = list[tuple[Tensor, Tensor]]


def net(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def data(num: int = 6, *, batch: int = 64, width: int = 16, classes: int = 4, scale: float = 1.0) -> Data:
    """Batches that can be learned: classes are directions."""
    place = torch.randn(classes, width, generator=torch.Generator().manual_seed(1))
    found = []
    for _ in range(num):
        y = torch.randint(classes, (batch,))
        found.append(((place[y] + 0.3 * torch.randn(batch, width)) * scale, y))
    return found


def look(model: nn.Module, optimizer: Any, batches: Data | None = None, **more: Any) -> Preflight:
    return preflight(model, optimizer, loss_fn=functional.cross_entropy, batches=batches or data(), **more)


def urgent(told: Preflight) -> list[str]:
    return [f.code for f in told.findings if f.confidence in ("HIGH", "MEDIUM")]


def adam(model: nn.Module, **settings: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), **{"lr": 1e-3, "weight_decay": 0.01, **settings})


# -- silence ----------------------------------------------------------------------------------------------------------


class ZeroEnded(nn.Module):
    """A residual branch whose last matrix starts at zero, and a head that does, too."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.rise, self.fall, self.head = (nn.Linear(16, n) for n in (16, 16, 16, 4))
        nn.init.zeros_(self.fall.weight)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.head(x + self.fall(torch.relu(self.rise(x))))


class Adapted(nn.Module):
    """A frozen map with a low-rank one beside it, whose second half starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(16, 4).requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(2, 16) / 4)
        self.lora_b = nn.Parameter(torch.zeros(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.lora_a.T @ self.lora_b.T


HEALTHY: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: net(16, 64, 64, 4),
    "residual branch and head of zeros": ZeroEnded,
    "LoRA": Adapted,
    "one matrix of zeros": lambda: _zeroed(nn.Linear(16, 4)),
    "batch norm first, raw inputs": lambda: nn.Sequential(nn.BatchNorm1d(16), net(16, 32, 4)),
    "frozen trunk": lambda: nn.Sequential(net(16, 32, 32).requires_grad_(False), nn.ReLU(), nn.Linear(32, 4)),
}


def _zeroed(module: nn.Module) -> nn.Module:
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


@pytest.mark.parametrize("rehearse", [0, 10])
@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_models_are_left_alone(name: str, rehearse: int) -> None:
    model = HEALTHY[name]()
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.01)
    batches = data(scale=100.0) if "raw inputs" in name else data()
    told = look(model, optimizer, batches, total_steps=1000, rehearse=rehearse)
    assert told.healthy, str(told)
    assert "nothing that would hurt" in str(told) or told.findings


def test_a_rate_for_fine_tuning_is_not_too_low() -> None:
    """A trained model, a rate fifty times lower than that which trained it."""
    model = net(16, 64, 4)
    optimizer = adam(model)
    for x, y in data(150):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    told = look(model, adam(model, lr=2e-5), total_steps=500, rehearse=20)
    assert told.healthy, str(told)


# -- each failure -----------------------------------------------------------------------------------------------------


def test_zeros_everywhere() -> None:
    told = preflight(model := _zeroed(net(16, 32, 4)), adam(model))
    assert urgent(told) == ["bad_init"]
    assert "All 2 weight matrices start at zero" in str(told)


@pytest.mark.parametrize(("factor", "words"), [(30.0, "far too large"), (1e-4, "far too small")])
def test_weights_of_the_wrong_size(factor: float, words: str) -> None:
    model = net(16, 64, 64, 4)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(factor)
    (finding,) = preflight(model, adam(model)).findings
    assert finding.code == "bad_init"
    assert finding.title == f"initial weights {words}"
    assert finding.evidence["gain"] == pytest.approx(factor / math.sqrt(3), rel=0.1)


def test_units_that_start_alike() -> None:
    model = net(16, 64, 64, 4)
    for p in model.parameters():
        nn.init.constant_(p, 0.05)
    assert urgent(preflight(model, adam(model))) == ["bad_init"]


def test_weights_that_are_not_finite() -> None:
    model = net(16, 64, 4)
    with torch.no_grad():
        model[2].weight[0, 0] = math.nan
    told = look(model, adam(model))
    assert urgent(told) == ["non_finite"]
    assert told.findings[0].layers == ("2",)


def test_layers_that_amplify() -> None:
    """Weights of the usual size, activations that multiply by four, ten times."""

    class Loud(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 4.0 * torch.relu(x)

    model = net(16, *[64] * 10, 4)
    for place, module in enumerate(model):
        if isinstance(module, nn.ReLU):
            model[place] = Loud()
    assert "exploding_gradients" in urgent(look(model, adam(model)))


def test_gradients_that_vanish() -> None:
    model = net(16, *[64] * 10, 4)
    for place, module in enumerate(model):
        if isinstance(module, nn.ReLU):
            model[place] = nn.Sigmoid()
    assert urgent(look(model, adam(model))) == ["vanishing_gradients"]


def test_recurrent_weights_that_are_too_large() -> None:
    model = nn.LSTM(8, 16)
    with torch.no_grad():
        model.weight_hh_l0.mul_(20.0)
    assert urgent(preflight(model, adam(model))) == ["exploding_gradients"]


def test_causes_come_before_what_follows_from_them() -> None:
    """A hot layer's decay is the rate's doing; tiny weights' tiny gradients are not ε's."""
    model = net(16, 64, 64, 4)
    groups = [{"params": model[:4].parameters()}, {"params": model[4].parameters(), "lr": 10.0}]
    told = preflight(model, torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=5e-3))
    assert urgent(told) == ["layer_lr_mismatch"]
    assert [f.confidence for f in told.findings] == ["MEDIUM", "LOW"]
    model = net(16, 64, 64, 64, 4)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1e-4)
    told = look(model, adam(model))
    assert told.findings[0].code == "bad_init"
    assert "epsilon_dominates" not in urgent(told)


def test_parameters_that_were_forgotten() -> None:
    model = net(16, 64, 64, 4)
    optimizer = torch.optim.Adam([*model[0].parameters(), *model[4].parameters()], lr=1e-3)
    told = preflight(model, optimizer)
    assert [(f.code, f.confidence, f.layers) for f in told.findings] == [("frozen_layers", "MEDIUM", ("2",))]
    other = torch.optim.SGD(model[2].parameters(), lr=0.1)
    assert not preflight(model, optimizer, other_optimizers=[other]).findings


def test_a_head_that_was_made_anew() -> None:
    model = net(16, 64, 4)
    optimizer = adam(model)
    model[2] = nn.Linear(64, 4)
    told = preflight(model, optimizer)
    assert [(f.code, f.confidence) for f in told.findings] == [("frozen_layers", "HIGH")]
    assert "Build the optimizer after the model is complete" in str(told)


def test_nothing_to_train() -> None:
    model = net(16, 64, 4)
    optimizer = adam(model)
    model.requires_grad_(False)
    assert urgent(preflight(model, optimizer)) == ["no_gradient"]


def test_a_loss_that_was_detached() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0]).detach(), batch[1]).requires_grad_()

    model = net(16, 64, 4)
    told = preflight(model, adam(model), loss_fn=loss, batches=data())
    assert urgent(told) == ["no_gradient"]
    assert "detach()" in told.findings[0].advice


def test_a_graph_that_is_cut() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x)).detach())

    told = look(model := Cut(), adam(model))
    assert [(f.code, f.confidence, f.layers) for f in told.findings] == [("frozen_layers", "HIGH", ("first",))]


def test_a_branch_that_is_not_used_is_only_mentioned() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.spare = net(16, 32, 4), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    told = look(model := Spare(), adam(model))
    assert told.healthy
    assert [(f.code, f.confidence, f.layers) for f in told.findings] == [("frozen_layers", "LOW", ("spare",))]


def test_units_that_never_fire() -> None:
    model = net(16, 64, 64, 4)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.bias[:60].sub_(50.0)
    assert "dead_units" in urgent(look(model, adam(model)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_that_are_rounded_away(dtype: torch.dtype) -> None:
    model = net(16, 64, 64, 4).to(dtype)
    assert urgent(preflight(model, adam(model, lr=1e-6))) == ["lost_updates"]
    assert not urgent(preflight(model, adam(model, lr=3e-2)))
    assert not urgent(preflight(model.float(), adam(model, lr=1e-6)))


def test_steps_that_are_rounded_away_as_a_trial_step_shows() -> None:
    """SGD's steps have no size of their own; a trial step has."""
    model = net(16, 64, 64, 4).to(torch.bfloat16)
    batches = [(x.to(torch.bfloat16), y) for x, y in data()]
    told = look(model, torch.optim.SGD(model.parameters(), lr=1e-4), batches)
    (finding,) = [f for f in told.findings if f.code == "lost_updates"]
    assert "in a trial step" in finding.seen
    assert not urgent(look(model, torch.optim.SGD(model.parameters(), lr=0.5), batches))


def test_an_epsilon_that_hides_the_gradient() -> None:
    model = net(16, 64, 4)
    optimizer = adam(model, eps=1.0)
    told = look(model, optimizer)
    assert urgent(told) == ["epsilon_dominates"]
    assert told.findings[0].remedy is not None
    told.findings[0].remedy.apply(optimizer)
    assert optimizer.param_groups[0]["eps"] == 1e-8
    assert look(model, optimizer).healthy


def test_a_penalty_that_outweighs_the_gradient() -> None:
    model = net(16, 64, 4)
    told = look(model, torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=3.0))
    assert urgent(told) == ["weight_decay_too_high"]
    assert told.findings[0].remedy is not None
    assert look(model, torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)).healthy


def test_the_usual_decay_at_an_impossible_rate_is_the_rates_fault() -> None:
    model = net(16, 64, 4)
    told = preflight(model, torch.optim.SGD(model.parameters(), lr=10.0, momentum=0.9, weight_decay=5e-4))
    assert urgent(told) == ["lr_too_high"]
    assert told.findings[0].remedy is not None
    assert told.findings[0].remedy.knob == "lr"


def test_inputs_as_they_come() -> None:
    model = net(16, 64, 4)
    told = look(model, adam(model), data(scale=300.0))
    assert urgent(told) == ["unnormalised_input"]
    assert told.findings[0].layers == ("0",)


def test_a_first_loss_far_above_chance() -> None:
    model = net(16, 64, 4)
    with torch.no_grad():
        model[2].weight.mul_(60.0)
    told = look(model, adam(model))
    assert "bad_init" in urgent(told)
    assert "ln 4 = 1.39" in str(told)


def test_a_loss_that_is_not_finite() -> None:
    model = net(16, 64, 4)
    batches = data()
    batches[2][0][0, 0] = math.nan
    told = look(model, adam(model), batches)
    assert urgent(told) == ["non_finite"]
    assert "on 1 of 6 batches" in str(told)


@pytest.mark.parametrize("rehearse", [0, 20])
def test_a_rate_that_is_too_high(rehearse: int) -> None:
    model = net(16, 64, 64, 4)
    told = look(model, adam(model, lr=1.0), rehearse=rehearse)
    assert urgent(told) == ["lr_too_high"]
    remedy = told.findings[0].remedy
    assert remedy is not None
    optimizer = adam(model, lr=1.0)
    remedy.apply(optimizer)
    assert look(model, optimizer, rehearse=rehearse).healthy


@pytest.mark.parametrize("rehearse", [0, 20])
def test_a_rate_that_is_too_low(rehearse: int) -> None:
    model = net(16, 64, 64, 4)
    told = look(model, adam(model, lr=1e-8), total_steps=300, rehearse=rehearse)
    assert urgent(told) == ["lr_too_low"]
    assert look(model, adam(model, lr=1e-8)).healthy, "without the length of the run nobody knows"
    remedy = told.findings[0].remedy
    assert remedy is not None
    optimizer = adam(model, lr=1e-8)
    remedy.apply(optimizer)
    assert look(model, optimizer, total_steps=300, rehearse=rehearse).healthy


def test_rates_worlds_apart() -> None:
    model = net(16, 64, 64, 4)
    groups = [{"params": model[:4].parameters()}, {"params": model[4].parameters(), "lr": 1.0}]
    told = preflight(model, torch.optim.AdamW(groups, lr=1e-3))
    assert urgent(told) == ["layer_lr_mismatch"]
    assert told.findings[0].layers == ("4",)
    assert told.findings[0].remedy is not None
    assert told.findings[0].remedy.groups == (1,)


def test_momentum_with_too_long_a_memory() -> None:
    model = net(16, 64, 4)
    assert urgent(preflight(model, adam(model, betas=(0.999, 0.9999)))) == ["momentum_too_high"]


def test_clipping_that_leaves_nothing() -> None:
    model = net(16, 64, 4)
    told = look(model, torch.optim.SGD(model.parameters(), lr=0.1), max_grad_norm=1e-4)
    assert urgent(told) == ["over_clipping"]
    assert look(model, torch.optim.SGD(model.parameters(), lr=0.1), max_grad_norm=1.0).healthy


# -- schedules --------------------------------------------------------------------------------------------------------


def test_a_schedule_that_ends_early() -> None:
    model = net(16, 64, 4)
    optimizer = adam(model)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=100)
    told = preflight(model, optimizer, total_steps=1000, scheduler=scheduler)
    assert urgent(told) == ["lr_schedule_zero"]
    assert told.schedule is not None
    assert told.schedule.idle_share == pytest.approx(0.9, abs=0.01)
    assert scheduler.last_epoch == 0
    assert not preflight(model, optimizer, total_steps=100, scheduler=scheduler).findings


def test_the_peak_of_a_warm_up_is_what_counts() -> None:
    """The rate of the first step is a 25th of the peak, which decay at the peak is judged by."""
    model = net(16, 64, 64, 4)
    optimizer = adam(model, lr=1.0, weight_decay=5.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=5000)
    told = preflight(model, optimizer, total_steps=5000, scheduler=scheduler)
    assert told.schedule is not None
    assert told.schedule.peak_lrs == pytest.approx((3e-3,), rel=1e-3)
    assert told.schedule.start == pytest.approx(0.04, rel=0.01)
    assert told.forecasts[0].decay_steps == pytest.approx(1 / (3e-3 * 5.0), rel=1e-3)


def test_a_scheduler_that_waits_for_a_metric_is_left_out() -> None:
    model = net(16, 64, 4)
    optimizer = adam(model)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    assert preflight(model, optimizer, total_steps=100, scheduler=scheduler).schedule is None


# -- forecasts, shapes of input, refusals -----------------------------------------------------------------------------


def test_the_noise_scale_of_known_gradients() -> None:
    """Gradients G + noise: tr Σ/‖G‖² comes back, and the interval covers it."""
    random = torch.Generator().manual_seed(0)
    signal = torch.full((2000,), 0.1)
    truth = 2000 * 0.5**2 / float(signal.square().sum())
    covered, found = 0, []
    for _ in range(40):
        total, along, squares = torch.zeros(2000), [], []
        for i in range(8):
            g = signal + 0.5 * torch.randn(2000, generator=random)
            if i:
                along.append(float(g @ total) / i)
            total += g
            squares.append(float(g @ g))
        told = noise_forecast(squares, along)
        assert told is not None
        found.append(told.noise_scale)
        covered += told.low <= truth <= told.high
    assert statistics.median(found) == pytest.approx(truth, rel=0.1)
    assert 18 <= covered <= 38  # one standard error to both sides: two of three


def test_noise_without_signal_is_infinite() -> None:
    told = noise_forecast([1.0, 1.0, 1.0, 1.0], [-0.1, 0.05, -0.1])
    assert told is not None
    assert told.noise_scale == math.inf
    assert noise_forecast([1.0, 1.0], [0.5]) is None


def test_the_loss_along_the_first_step() -> None:
    """On ½‖θ‖² plain SGD at η shrinks θ by 1 − cη: best near c = 1/η, no gain beyond 2/η."""

    class Bowl(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.ones(10))

    model = Bowl()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    told = preflight(model, optimizer, loss_fn=lambda m, _: 0.5 * m.x.square().sum(), batches=[0, 0])
    assert told.rate is not None
    assert told.rate.best == pytest.approx(100.0)
    assert told.rate.largest == pytest.approx(100.0)  # the next multiple tried is 316
    assert told.rate.losses[told.rate.scales.index(1.0)] == pytest.approx(0.5 * 10 * 0.99**2, rel=1e-5)


def test_losses_along_a_step_have_the_same_random_numbers() -> None:
    """Dropout alone changes a loss by percents; a step of a billionth does not."""
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 4))
    told = look(model, torch.optim.SGD(model.parameters(), lr=1e-9))
    assert told.rate is not None
    place = told.rate.scales.index(1.0)
    assert told.rate.losses[place] == pytest.approx(told.rate.loss, rel=1e-5)
    assert told.rate.own_losses[place] == pytest.approx(told.rate.own_loss, rel=1e-5)


def test_the_trial_step_is_clipped_as_the_run_will_be() -> None:
    model, batches = net(16, 64, 4), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    functional.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
    norm = float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm())
    free = look(model, optimizer, batches).forecasts[0].update_ratio
    clipped = look(model, optimizer, batches, max_grad_norm=0.1 * norm).forecasts[0].update_ratio
    assert clipped == pytest.approx(0.1 * free, rel=1e-4)


def test_plain_data() -> None:
    model = net(16, 64, 4)
    told = look(model, adam(model, lr=1.0), rehearse=5)
    plain = json.loads(json.dumps(told.to_json(), allow_nan=False))
    assert plain["findings"][0]["code"] == told.findings[0].code
    assert plain["rehearsal"]["steps"] == 5
    assert plain["healthy"] is False
    assert all(math.isfinite(f.grad_norm) and f.update_ratio > 0 for f in told.forecasts)


def test_a_model_that_computes_its_own_loss() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net(16, 64, 4)

        def forward(self, x: Tensor, labels: Tensor) -> Any:
            logits = self.body(x)
            return type("Output", (), {"loss": functional.cross_entropy(logits, labels), "logits": logits})()

    model = Own()
    told = preflight(model, adam(model), batches=[{"x": x, "labels": y} for x, y in data()])
    assert told.healthy
    assert told.loss == pytest.approx(math.log(4), rel=0.3)
    with pytest.raises(TypeError, match=r"preflight\(batches=\.\.\.\) needs loss_fn"):
        preflight(model, adam(model), batches=data())


def test_an_optimizer_that_needs_a_closure_is_not_stepped() -> None:
    model = net(16, 64, 4)
    told = look(model, torch.optim.LBFGS(model.parameters()))
    assert told.rate is None
    assert told.healthy
    assert "Not checked: trial steps, because LBFGS" in str(told)


def test_complex_parameters() -> None:
    model = nn.Linear(16, 4, dtype=torch.complex64)
    told = preflight(
        model,
        torch.optim.Adam(model.parameters(), lr=1e-3),
        loss_fn=lambda m, b: (m(b[0].to(torch.complex64)).abs() - 1.0).square().mean(),
        batches=data(),
        rehearse=3,
    )
    assert told.healthy
    assert told.noise is not None


def test_an_optimizer_without_a_rate() -> None:
    class Fixed(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"length": 0.1})

        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.data.sub_(group["length"] * p.grad)

    model = net(16, 64, 4)
    told = look(model, Fixed(model.parameters()), total_steps=100, rehearse=3)
    assert told.healthy
    assert told.rate is not None
    assert told.rate.largest > 0


def test_several_models() -> None:
    models = [nn.Linear(16, 32), nn.Linear(32, 4)]
    optimizer = torch.optim.Adam([p for m in models for p in m.parameters()], lr=1e-3)

    def loss(parts: list[nn.Module], batch: Any) -> Tensor:
        return functional.cross_entropy(parts[1](torch.relu(parts[0](batch[0]))), batch[1])

    assert preflight(models, optimizer, loss_fn=loss, batches=data(), rehearse=3).healthy


def test_sparse_gradients() -> None:
    model = nn.Sequential(nn.EmbeddingBag(50, 16, sparse=True), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [(torch.randint(50, (32, 5)), torch.randint(4, (32,))) for _ in range(5)]
    assert look(model, optimizer, batches, rehearse=3).healthy


def test_wrong_use() -> None:
    model = net(16, 64, 4)
    with pytest.raises(ValueError, match="batches is empty"):
        preflight(model, adam(model), loss_fn=functional.cross_entropy, batches=[])
    with pytest.raises(TypeError, match="must return a scalar tensor, not a tensor of shape"):
        preflight(model, adam(model), loss_fn=lambda m, b: m(b[0]), batches=data())
    with pytest.raises(ValueError, match="rehearse=5: give a number of steps, and batches"):
        preflight(model, adam(model), rehearse=5)
