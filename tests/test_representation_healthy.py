"""Encoders of many kinds that are healthy: nothing is said of their representations. Two that are not: something is."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from tests.conftest import seed_everything
from thermoclaw import Observer, diagnose
from thermoclaw.diagnosis.checks import checks_of
from thermoclaw.diagnosis.rules.representation import CODES

digits = load_digits()
X, Y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
Loss = Callable[[Tensor], Tensor]
Case = tuple[nn.Module, dict[str, nn.Module], Loss]


def mlp(
    act: Callable[[], nn.Module] = nn.ReLU, *, depth: int = 3, out: int = 10, norm: type[nn.Module] | None = None
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(64 if i == 0 else 128, 128), *([norm(128)] if norm else []), act()]
    return nn.Sequential(nn.Sequential(*layers), nn.Linear(128, out))


def classifier(model: nn.Sequential, labels: Tensor = Y) -> Case:
    return model, {"encoder": model[0], "out": model}, lambda i: functional.cross_entropy(model(X[i]), labels[i])


def regression(targets: Tensor, act: Callable[[], nn.Module] = nn.ReLU) -> Case:
    model = mlp(act, out=targets.shape[1])
    return model, {"encoder": model[0], "out": model}, lambda i: functional.mse_loss(model(X[i]), targets[i])


def probabilities() -> Case:
    model = nn.Sequential(mlp(out=40), nn.Softmax(dim=1))  # 30 of them are never right
    return model, {"out": model}, lambda i: functional.nll_loss((model(X[i]) + 1e-9).log(), Y[i])


def image() -> Case:
    encoder = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
    model = nn.Sequential(encoder, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))
    return model, {"encoder": encoder}, lambda i: functional.cross_entropy(model(X[i].view(-1, 1, 8, 8)), Y[i])


def sequence() -> Case:
    layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True, norm_first=True)
    encoder = nn.Sequential(nn.Linear(8, 32), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    model = nn.Sequential(encoder, nn.Flatten(), nn.Linear(256, 10))
    return model, {"encoder": encoder}, lambda i: functional.cross_entropy(model(X[i].view(-1, 8, 8)), Y[i])


def autoencoder(width: int, act: type[nn.Module] = nn.Identity, penalty: float = 0.0) -> Case:
    encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, width), act())
    decoder = nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 64))

    def loss(i: Tensor) -> Tensor:
        z = encoder(X[i])
        return functional.mse_loss(decoder(z), X[i]) + penalty * z.abs().mean()

    return nn.Sequential(encoder, decoder), {"encoder": encoder}, loss


def zero_start() -> Case:
    model = mlp()
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    return classifier(model)


SUPERVISED: dict[str, Callable[[], Case]] = {
    "shallow": lambda: classifier(mlp(depth=2)),
    "deep": lambda: classifier(mlp(depth=8)),
    "deep tanh": lambda: classifier(mlp(nn.Tanh, depth=8)),
    "batch norm": lambda: classifier(mlp(norm=nn.BatchNorm1d)),
    "two classes, to the end": lambda: classifier(mlp(out=2), (Y > 4).long()),
    "random labels": lambda: classifier(mlp(), torch.randint(10, (len(Y),))),
    "probabilities": probabilities,
    "image": image,
    "sequence": sequence,
    "zero start": zero_start,
    "offset": lambda: regression(X[:, :12] + 300),
    "one number": lambda: regression(Y[:, None].float() + 1000),
    "small signal": lambda: regression(5 + 0.05 * Y[:, None].float(), nn.Tanh),
    "autoencoder": lambda: autoencoder(16),
    "ReLU code": lambda: autoencoder(8, nn.ReLU),
    "sparse code": lambda: autoencoder(512, nn.ReLU, penalty=0.3),
}


def run(case: Case, *, joint: bool = False, steps: int = 300, batch: int = 64, lr: float = 2e-3) -> Observer:
    model, watched, loss_of = case
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    observer = Observer(model, optimizer, strict=True)
    for name, module in watched.items():
        observer.watch(module, name, every=25, joint_embedding=joint)
    for _ in range(steps):
        loss = loss_of(torch.randint(len(X), (batch,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        observer.step(loss=loss)
    return observer


def told(observer: Observer) -> list[tuple[str, str]]:
    record = observer.record()
    assert all(len(checks) >= 8 for checks in checks_of(record))
    assert checks_of(record)
    return [(f.code, f.confidence) for f in diagnose(record).findings if f.code in CODES]


@pytest.mark.parametrize("name", SUPERVISED)
def test_healthy_encoders(name: str) -> None:
    seed_everything(1)
    assert told(run(SUPERVISED[name]())) == []


@pytest.mark.parametrize("batch", [1, 4])
def test_small_batches(batch: int) -> None:
    assert told(run(classifier(mlp()), batch=batch, steps=600, lr=1e-3)) == []


def two_views(x: Tensor) -> tuple[Tensor, Tensor]:
    return x + 0.2 * torch.randn_like(x), x + 0.2 * torch.randn_like(x)


def joint(kind: str) -> Case:
    encoder = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64))
    predictor = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 64))
    teacher = copy.deepcopy(encoder)

    def simclr(i: Tensor) -> Tensor:
        a, b = (functional.normalize(encoder(x), dim=1) for x in two_views(X[i]))
        return functional.cross_entropy(a @ b.T / 0.2, torch.arange(len(a)))

    def vicreg(i: Tensor) -> Tensor:
        a, b = (encoder(x) for x in two_views(X[i]))
        hinge = sum(functional.relu(1 - z.var(0).add(1e-4).sqrt()).mean() for z in (a, b))
        off = sum((torch.cov(z.T) - torch.diag(z.var(0))).square().sum() / 64 for z in (a, b))
        return 25 * functional.mse_loss(a, b) + 25 * hinge + off

    def pulled(i: Tensor) -> Tensor:
        a, b = two_views(X[i])
        za, zb = encoder(a), encoder(b)
        if kind == "byol":
            with torch.no_grad():
                for p, q in zip(teacher.parameters(), encoder.parameters(), strict=True):
                    p.lerp_(q, 0.02)
                ta, tb = teacher(a), teacher(b)
        else:
            ta, tb = (za.detach(), zb.detach()) if kind == "simsiam" else (za, zb)
        near = (
            functional.cosine_similarity(predictor(za), tb).mean()
            + functional.cosine_similarity(predictor(zb), ta).mean()
        )
        return 2 - near

    loss = {"simclr": simclr, "vicreg": vicreg}.get(kind, pulled)
    return nn.ModuleList([encoder, predictor]), {"encoder": encoder}, loss


@pytest.mark.parametrize("kind", ["simclr", "vicreg", "byol", "simsiam"])
def test_healthy_joint_embeddings(kind: str) -> None:
    assert told(run(joint(kind), joint=True)) == []


def test_without_stop_gradient_it_is_told() -> None:
    observer = run(joint("no stop-gradient"), joint=True)
    assert told(observer) == [("representation_collapse", "MEDIUM")]


def test_an_encoder_that_dies_is_told_whatever_it_is_trained_for() -> None:
    observer = run(classifier(mlp()), lr=3.0)
    assert told(observer)[0][0] == "representation_collapse"
