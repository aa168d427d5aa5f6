"""Arms: a model, its optimizer, its data and its observer, trained a step at a time; and workloads to train them on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from thermoclaw.lab.corpus import Batches, Corpus, english_text, make_corpus, python_source
from thermoclaw.lab.models import GPT, GPTShape, make_gpt
from thermoclaw.observer import Observer

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class Workload:
    """A model's shape, a text, and how much of both a step takes.

    Attributes:
        shape: the GPT; its vocabulary is also the tokenizer's.
        text: which corpus.
        batch_size: sequences in a batch.
        length: tokens in a sequence.
        steps: optimizer steps of an arm.
        device: where it trains.
        autocast: compute in bfloat16; parameters and optimizer state stay in float32.
        validation_tokens: at most so many tokens decide a validation perplexity.
    """

    shape: GPTShape
    text: Literal["english", "python"] = "english"
    batch_size: int = 8
    length: int = 64
    steps: int = 400
    device: str = "cpu"
    autocast: bool = False
    validation_tokens: int = 16_384

    def with_steps(self, steps: int) -> Workload:
        """The same workload, longer or shorter."""
        return replace(self, steps=steps)

    def corpus(self) -> Corpus:
        """The tokenized text, on the workload's device; built once in a process."""
        return _corpus(self.text, self.shape.vocab_size).to(self.device)

    def precision(self) -> AbstractContextManager[object]:
        """The context that a forward pass runs in."""
        if not self.autocast:
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16)


@lru_cache(maxsize=4)
def _corpus(text: str, vocab_size: int) -> Corpus:
    read = {"english": english_text, "python": python_source}[text]
    return make_corpus(read(), vocab_size=vocab_size, name=text)


@dataclass(eq=False)
class Arm:
    """One training run of an experiment.

    Attributes:
        name: what tables call it.
        workload: what it trains on.
        model: the model.
        optimizer: its optimizer.
        batches: its data; batch number `step` is next.
        observer: watches it.
        scheduler: learning-rate schedule, or None.
        step: optimizer steps taken.
        loss: the last training loss, on the device.
        begun_at: the step at which its observer began to count.
    """

    name: str
    workload: Workload
    model: GPT
    optimizer: Optimizer
    batches: Batches
    observer: Observer
    scheduler: LambdaLR | None = None
    step: int = 0
    loss: Tensor = field(default_factory=lambda: torch.tensor(math.nan))
    begun_at: int = 0

    @property
    def settings(self) -> str:
        """The optimizer and its hyper-parameters, in words."""
        group, lr = self.optimizer.param_groups[0], self.optimizer.defaults["lr"]
        momentum = group["betas"][0] if "betas" in group else group["momentum"]
        name = type(self.optimizer).__name__
        return f"{name}, lr {lr:g}, momentum {momentum:g}, weight_decay {group['weight_decay']:g}"

    def train_step(self) -> None:
        """Take one optimizer step and show it to the observer."""
        inputs, targets = self.batches[self.step]
        with self.workload.precision():
            loss = self.model(inputs, targets)
        loss.backward()
        self.optimizer.step()
        self.observer.step(loss=loss)
        if self.scheduler is not None:
            self.scheduler.step()
        self.optimizer.zero_grad()
        self.loss = loss.detach()
        self.step += 1

    def perplexity(self) -> float:
        """exp of the mean cross-entropy per token on the held-out text (inf where it overflows)."""
        tokens = self.workload.corpus().validation[: self.workload.validation_tokens]
        length = self.workload.length
        windows = tokens.unfold(0, length + 1, length)
        total = 0.0
        self.model.eval()
        with torch.no_grad(), self.workload.precision():
            for part in windows.split(self.workload.batch_size):
                total += float(self.model(part[:, :-1], part[:, 1:])) * len(part)
        self.model.train()
        mean = total / len(windows)
        return math.exp(mean) if mean < 700 else math.inf if mean == mean else math.nan


def start_arm(
    name: str, workload: Workload, make_optimizer: MakeOptimizer, *, seed: int, warmup_steps: int | None = None
) -> Arm:
    """Create a model from its seed and everything that trains it.

    Args:
        name: what tables call it.
        workload: model, text and sizes.
        make_optimizer: parameters → optimizer.
        seed: seed of the weights and of the data order.
        warmup_steps: if given, the learning rate warms up over so many steps and falls to a tenth by a cosine.

    Returns:
        The arm, before its first step.
    """
    model = make_gpt(workload.shape, seed=seed, device=workload.device)
    optimizer = make_optimizer(model.parameters())
    observer = Observer(model, optimizer, strict=True)
    batches = Batches(workload.corpus().train, workload.batch_size, workload.length, seed)
    scheduler = None
    if warmup_steps is not None:
        scheduler = LambdaLR(optimizer, partial(_warm_cosine, warmup_steps=warmup_steps, total_steps=workload.steps))
    return Arm(name, workload, model, optimizer, batches, observer, scheduler)


def branch(arm: Arm, name: str, make_optimizer: MakeOptimizer) -> Arm:
    """Copy an arm as it stands: weights, optimizer state and data order; its observer begins anew.

    Args:
        arm: the arm to copy; it is not touched.
        name: name of the copy.
        make_optimizer: parameters → optimizer of the arm's kind, whose state is then replaced.

    Returns:
        The copy, which shares no tensor with the original but the corpus.
    """
    model = make_gpt(arm.workload.shape, seed=0, device=arm.workload.device)
    model.load_state_dict(arm.model.state_dict())
    optimizer = make_optimizer(model.parameters())
    optimizer.load_state_dict(copy.deepcopy(arm.optimizer.state_dict()))
    observer = Observer(model, optimizer, strict=True)
    copied = Arm(name, arm.workload, model, optimizer, arm.batches, observer)
    copied.step = copied.begun_at = arm.step
    copied.loss = arm.loss
    return copied


def _warm_cosine(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Factor on the learning rate: linear up to one, then a cosine down to a tenth."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    return 0.1 + 0.45 * (1.0 + math.cos(math.pi * done))
