"""After preflight everything is bitwise what it was: parameters, buffers, gradients, optimizer, random states."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from thermoclaw import Observer, preflight


class Forgetful(nn.Module):
    """A module that changes what it can on every call."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(8, 8)
        self.calls, self.seen, self.cache = 0, [], {"last": None}
        self.kept = torch.zeros(3)
        self.register_buffer("mean", torch.full((8,), float("nan")))
        self.register_buffer("count", torch.tensor(0), persistent=False)
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(self.calls)
        self.cache["last"] = x.detach()
        self.kept += 1.0
        self.mean = x.detach().mean(0)  # a new tensor under the old name
        self.count.add_(1)
        self.added = True
        noise = torch.rand(x.shape, generator=self.generator) + float(np.random.rand()) + random.random()  # noqa: NPY002
        return self.map(x + 0.01 * noise)


def spectral(x: nn.Module) -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(x)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4)),
    "batch norm": lambda: nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)),
    "spectral norm": lambda: nn.Sequential(spectral(nn.Linear(8, 16)), nn.ReLU(), spectral(nn.Linear(16, 4))),
    "old spectral norm": lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, 4)),
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 16)), nn.Linear(16, 4)),
    "attributes": lambda: nn.Sequential(Forgetful(), nn.ReLU(), nn.Linear(8, 4)),
    "frozen": lambda: nn.Sequential(nn.Linear(8, 16).requires_grad_(False), nn.BatchNorm1d(16), nn.Linear(16, 4)),
}


def bits(x: Any) -> Any:
    """A value by which two states are compared bit by bit."""
    if isinstance(x, Tensor):
        return (
            str(x.dtype),
            tuple(x.shape),
            x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes(),
        )
    if isinstance(x, dict):
        return {key: bits(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [bits(value) for value in x]
    if isinstance(x, torch.Generator):
        return bits(x.get_state())
    return x


def everything(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    numpy_state = np.random.get_state()  # noqa: NPY002
    plain = [
        {k: v for k, v in vars(m).items() if not k.startswith("_") and not isinstance(v, nn.Module)}
        for m in model.modules()
    ]
    return bits(
        {
            "state": dict(model.state_dict()),
            "buffers": dict(model.named_buffers()),
            "grads": [p.grad for p in model.parameters()],
            "optimizer": copy.deepcopy(optimizer.state_dict()),
            "plain": plain,
            "training": [m.training for m in model.modules()],
            "requires": [p.requires_grad for p in model.parameters()],
            "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
            "torch": torch.get_rng_state(),
            "numpy": (numpy_state[1].tobytes(), numpy_state[2]),
            "python": hash(random.getstate()),
        }
    )


def identities(model: nn.Module, optimizer: Any) -> list[int]:
    held = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
    held += [v for state in optimizer.state.values() for v in state.values()]
    return [id(x) for x in held]


def batches(num: int = 5) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(16, 8), torch.randint(4, (16,))) for _ in range(num)]


def warm_up(model: nn.Module, optimizer: Any, steps: int) -> None:
    for x, y in batches(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("rehearse", [0, 5])
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_changed(name: str, steps: int, rehearse: int) -> None:
    """Before the first step (gradients None, no state) and after some (gradients and state there)."""
    model = MODELS[name]()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.5)
    data = batches()
    warm_up(model, optimizer, steps)
    before, ids = everything(model, optimizer), identities(model, optimizer)
    told = preflight(model, optimizer, loss_fn=functional.cross_entropy, batches=data, rehearse=rehearse)
    assert told.rate is not None
    assert everything(model, optimizer) == before
    assert identities(model, optimizer) == ids


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1), foreach=False, capturable=False),
        lambda p: torch.optim.RMSprop(p, lr=0.1),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
        lambda p: torch.optim.Adafactor(p, lr=0.1),
        lambda p: torch.optim.NAdam(p, lr=0.1),
    ],
)
def test_no_optimizer_is_changed(make: Callable[[Any], Any]) -> None:
    model = MODELS["batch norm"]()
    optimizer = make(model.parameters())
    warm_up(model, optimizer, 2)
    before, data = everything(model, optimizer), batches()
    before["torch"] = bits(torch.get_rng_state())
    preflight(model, optimizer, loss_fn=nn.CrossEntropyLoss(), batches=data, rehearse=4, max_grad_norm=0.1)
    assert everything(model, optimizer) == before


def test_training_goes_on_as_if_nothing_had_been() -> None:
    """The same run with and without, with a scheduler, a loader that shuffles, and dropout."""

    def run(*, looked: bool) -> list[Tensor]:
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 4))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=30)
        loader = DataLoader(TensorDataset(torch.randn(96, 8), torch.randint(4, (96,))), batch_size=16, shuffle=True)
        if looked:
            told = preflight(
                model,
                optimizer,
                total_steps=30,
                loss_fn=nn.CrossEntropyLoss(),
                batches=loader,
                scheduler=scheduler,
                rehearse=6,
            )
            assert told.schedule is not None
        for _ in range(3):
            for x, y in loader:
                optimizer.zero_grad()
                functional.cross_entropy(model(x), y).backward()
                optimizer.step()
                scheduler.step()
        return [p.detach().clone() for p in model.parameters()]

    for a, b in zip(run(looked=False), run(looked=True), strict=True):
        assert torch.equal(a, b)


def test_a_loader_with_a_generator_of_its_own() -> None:
    model = MODELS["dropout"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = TensorDataset(torch.randn(96, 8), torch.randint(4, (96,)))
    own = torch.Generator().manual_seed(7)
    loader = DataLoader(data, batch_size=16, shuffle=True, generator=own)
    before = own.get_state()
    preflight(model, optimizer, loss_fn=functional.cross_entropy, batches=loader)
    assert torch.equal(own.get_state(), before)


def test_an_observer_hears_nothing_of_trial_steps() -> None:
    model = MODELS["dropout"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    observer = Observer(model, optimizer, strict=True)
    fired = []
    optimizer.register_step_post_hook(lambda *_: fired.append(1))
    preflight(model, optimizer, loss_fn=functional.cross_entropy, batches=batches(), rehearse=5)
    assert observer.global_step == 0
    assert not fired
    warm_up(model, optimizer, 2)
    assert observer.global_step == 2


def test_a_loss_that_breaks_leaves_nothing_behind() -> None:
    model = MODELS["batch norm"]()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    warm_up(model, optimizer, 1)
    data, calls = batches(), []
    before = everything(model, optimizer)

    def breaks(net: nn.Module, batch: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 9:  # in the middle of the line search
            raise RuntimeError("out of data")
        return functional.cross_entropy(net(batch[0]), batch[1])

    with pytest.raises(RuntimeError, match="out of data"):
        preflight(model, optimizer, loss_fn=breaks, batches=data)
    assert len(calls) == 9
    assert everything(model, optimizer) == before


def test_an_embedding_that_renormalizes_itself() -> None:
    """`max_norm` writes to the weights in the forward pass, frozen ones too."""
    model = nn.Sequential(nn.Embedding(10, 8, max_norm=0.1).requires_grad_(False), nn.Flatten(), nn.Linear(24, 4))
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    data = [(torch.randint(10, (16, 3)), torch.randint(4, (16,))) for _ in range(4)]
    before = everything(model, optimizer)
    preflight(model, optimizer, loss_fn=functional.cross_entropy, batches=data)
    assert everything(model, optimizer) == before


def test_memory_is_told_and_bounded() -> None:
    """Copies of the trained parameters, gradients and Adam's state: a handful of times the parameters."""
    model = nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 256), nn.Linear(256, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    told = preflight(model, optimizer, loss_fn=functional.cross_entropy, batches=batches(), rehearse=3)
    assert 3 * size < told.memory_bytes < 6 * size


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_nothing_is_changed_on_a_gpu() -> None:
    """The device's generator included, with batches that lie on the host."""
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 4)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5, fused=True)
    data = batches()
    warm_up_on = [(x.cuda(), y.cuda()) for x, y in data]
    for x, y in warm_up_on:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    before, random_before = everything(model, optimizer), torch.cuda.get_rng_state_all()
    preflight(model, optimizer, loss_fn=functional.cross_entropy, batches=data, rehearse=4)
    assert everything(model, optimizer) == before
    assert all(torch.equal(a, b) for a, b in zip(random_before, torch.cuda.get_rng_state_all(), strict=True))
