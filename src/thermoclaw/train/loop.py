"""What trains: model, optimizer, batches and what watches them. It writes no file and prints nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from thermoclaw.detectors.thermometer import Thermometer
from thermoclaw.observer import Observer
from thermoclaw.state import count, take
from thermoclaw.train.batches import Batches, in_order, statistics
from thermoclaw.train.errors import DataError, RunError
from thermoclaw.train.images import Split
from thermoclaw.train.resnet import MODELS, ResNet
from thermoclaw.train.settings import Settings

LEAST_IMAGES = 4


class Trainer:
    """A run between two steps. The same settings and data give the same run, whether or not it was stopped between.

    Args:
        settings: what to do.
        data: the images.
        device: where.
        observe: keywords for the `Observer`.

    Raises:
        DataError: there are too few images or classes.
    """

    def __init__(
        self, settings: Settings, data: Split, *, device: torch.device, observe: dict[str, Any] | None = None
    ) -> None:
        if len(data.train) < LEAST_IMAGES or not len(data.test) or len(data.classes) < 2:
            raise DataError(
                f"{len(data.train)} training images, {len(data.test)} test images and {len(data.classes)} classes: "
                f"at least {LEAST_IMAGES}, 1 and 2 are needed"
            )
        self.settings, self.data, self.device = settings, data, device
        self.model = make_model(settings, data).to(device)
        self.optimizer = _make_optimizer(settings, self.model)
        self.observer = Observer(self.model, self.optimizer, **(observe or {}))
        self.thermometer = Thermometer(self.observer, batch_size=settings.batch_size)
        self._batches = Batches(
            data.train,
            batch_size=settings.batch_size,
            seed=settings.seed,
            augment=settings.augmented,
            device=device,
        )
        self.steps_per_epoch = len(self._batches)
        whole = settings.epochs * self.steps_per_epoch
        self.total = whole if settings.steps is None else min(whole, settings.steps)
        self.step = 0
        self.best_accuracy = -1.0

    @property
    def epoch(self) -> int:
        """Passes that were completed."""
        return self.step // self.steps_per_epoch

    def rate(self, step: int) -> float:
        """The learning rate of the step after `step` steps."""
        if self.settings.schedule == "none":
            return self.settings.rate
        return 0.5 * self.settings.rate * (1.0 + math.cos(math.pi * step / self.total))

    def steps(self) -> Iterator[Tensor]:
        """Make the steps that are left of this pass; the loss of each comes out, on its device. Never waits."""
        self.model.train()
        start = self.step % self.steps_per_epoch
        for images, labels in self._batches.epoch(self.epoch, start=start):
            if self.step >= self.total:
                return
            rate = self.rate(self.step)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.zero_grad(set_to_none=True)
            with self._precision():
                loss = functional.cross_entropy(self.model(images).float(), labels)
            loss.backward()
            self.optimizer.step()
            self.observer.step(loss=loss)
            self.thermometer.step()
            self.step += 1
            yield loss.detach()

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Loss and accuracy on the test images. Waits for the device."""
        self.model.eval()
        loss = torch.zeros((), dtype=torch.float64, device="cpu")
        right = 0
        for images, labels in in_order(self.data.test, batch_size=256, device=self.device):
            with self._precision():
                scores = self.model(images).float()
            loss += functional.cross_entropy(scores, labels, reduction="sum").double().cpu()
            right += int((scores.argmax(dim=1) == labels).sum())
        self.model.train()
        return float(loss) / len(self.data.test), right / len(self.data.test)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on. Waits for the device."""
        return {
            "step": self.step,
            "best_accuracy": self.best_accuracy,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "observer": self.observer.state_dict(),
            "thermometer": self.thermometer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            StateError, RunError: it is not of this run.
        """
        step, best = count(state, "step"), take(state, "best_accuracy", float)
        try:
            self.model.load_state_dict(take(state, "model", dict))
            self.optimizer.load_state_dict(take(state, "optimizer", dict))
        except (RuntimeError, KeyError, TypeError, IndexError) as error:
            raise RunError(f"the checkpoint does not fit this model: {str(error).splitlines()[0]}") from None
        self.observer.load_state_dict(take(state, "observer", dict))
        self.thermometer.load_state_dict(take(state, "thermometer", dict))
        self.step, self.best_accuracy = step, best

    def host_model(self) -> nn.Module:
        """A copy of the model on the host, in evaluation mode. Waits for the device."""
        return copy.deepcopy(self.model).cpu().eval()

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.settings.amp else nullcontext()


def make_model(settings: Settings, data: Split) -> ResNet:
    """The model for these images, with weights that follow from the seed; the caller's random state is left alone."""
    mean, std = statistics(data.train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return ResNet(
            MODELS[settings.model],
            num_classes=len(data.classes),
            in_channels=int(data.train.images.shape[1]),
            mean=mean,
            std=std,
        )


def find_device(name: str) -> torch.device:
    """The device that a name means; `auto` is CUDA where there is one.

    Raises:
        RunError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RunError(f"device={name!r}: give auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise RunError(f"device={name!r}: give auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise RunError(f"device={name!r}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def _make_optimizer(settings: Settings, model: nn.Module) -> Optimizer:
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=settings.rate, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        model.parameters(), lr=settings.rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
