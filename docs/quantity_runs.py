"""The runs that the pictures of quantities are drawn from: healthy ones, and the same with one fault each.

A small GPT reads the English of Python's own documentation, and a perceptron scikit-learn's handwritten digits. Each
run takes a few seconds on one core.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from thermoclaw import Observer, Record
from thermoclaw.lab.corpus import Batches, Corpus, english_text, make_corpus
from thermoclaw.lab.models import GPTShape, make_gpt

STEPS = 240


class Run(NamedTuple):
    """What a run is called in a picture, and how it is made."""

    label: str
    make: Callable[[], Record]


# -- a small GPT on English text ---------------------------------------------------------------------------------------

_CORPUS: list[Corpus] = []


def gpt(*, lr: float = 3e-3, decay: float = 0.1, batch: int = 16, length: int = 32, sgd: float | None = None) -> Record:
    """A GPT of two blocks under AdamW, or under SGD with this momentum; warmed up, then a cosine to a tenth."""
    if not _CORPUS:
        _CORPUS.append(make_corpus(english_text(), vocab_size=512, name="english"))
    shape = GPTShape(vocab_size=512, context=32, width=64, num_layers=2, num_heads=4)
    model = make_gpt(shape, seed=0)
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay)
    if sgd is not None:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=sgd, weight_decay=decay)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=20)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS - 20, eta_min=lr / 10)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, fall], [20])
    batches = Batches(_CORPUS[0].train, batch, length, seed=0)
    with Observer(model, optimizer) as observer:
        for step in range(STEPS):
            if step == STEPS // 2:
                observer.epoch_end()
            loss = model(*batches[step])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            observer.step(loss=loss)
        return observer.record()


# -- a perceptron on handwritten digits --------------------------------------------------------------------------------


def digits(
    *,
    lr: float = 0.05,
    momentum: float = 0.9,
    batch: int = 64,
    scale: float = 1.0,
    prepare: Callable[[nn.Sequential], Any] = lambda model: None,
    loss_of: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
    detached: bool = False,
) -> Record:
    """A perceptron with ReLU under SGD."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16 - 0.3, dtype=torch.float32) * 2.6 * scale, torch.tensor(labels)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    with torch.no_grad():
        prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    with Observer(model, optimizer) as observer:
        for _ in range(STEPS):
            rows = torch.randperm(len(x))[:batch]
            inner = model[:2](x[rows])
            loss = loss_of(model[2:](inner.detach() if detached else inner), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            observer.step(loss=loss)
        return observer.record()


def alike(model: nn.Sequential) -> None:
    """Every row of the hidden layer starts the same."""
    model[2].weight.copy_(model[2].weight[:1].expand_as(model[2].weight))


def large(model: nn.Sequential) -> None:
    """Every matrix starts five times too large."""
    for layer in model[::2]:
        layer.weight.mul_(5)


def raw_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """The negative log-likelihood of what are no log-probabilities: log_softmax was forgotten."""
    return functional.nll_loss(logits, labels)


RUNS: dict[str, Run] = {
    "gpt": Run("GPT, AdamW, lr 0.003", gpt),
    "gpt_rate": Run("the same, lr 0.1", lambda: gpt(lr=0.1)),
    "gpt_decay": Run("the same, weight decay 20", lambda: gpt(decay=20.0)),
    "gpt_batch": Run("the same, 8 tokens a batch", lambda: gpt(batch=1, length=8)),
    "gpt_momentum": Run("GPT, SGD, momentum 0.99", lambda: gpt(sgd=0.99, lr=0.1, decay=0.0)),
    "digits": Run("perceptron, SGD, lr 0.05", digits),
    "digits_rate": Run("the same, lr 2", lambda: digits(lr=2.0)),
    "digits_full": Run("perceptron, full batches", lambda: digits(momentum=0.0, batch=9999)),
    "digits_few": Run("the same, batches of 4", lambda: digits(momentum=0.0, batch=4)),
    "digits_one": Run("the same, one digit a batch", lambda: digits(batch=1)),
    "digits_input": Run("inputs 100 times too large", lambda: digits(scale=100.0, lr=1e-5)),
    "digits_alike": Run("hidden rows start alike", lambda: digits(prepare=alike)),
    "digits_large": Run("weights start 5 times too large", lambda: digits(prepare=large)),
    "digits_nll": Run("log_softmax forgotten, lr 1e-4", lambda: digits(lr=1e-4, loss_of=raw_nll)),
    "digits_cut": Run("first layer cut off by detach()", lambda: digits(detached=True)),
}
