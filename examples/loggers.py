"""Send a run's numbers, findings and closing map to experiment trackers: a small network on handwritten digits.

    python examples/loggers.py                           # JSON lines and a picture, no tracker needed
    python examples/loggers.py --to tensorboard wandb    # any of tensorboard, wandb, mlflow, trackio, prometheus, jsonl
    python examples/loggers.py --weight-decay 0.5        # a run that fails, with a finding

It needs scikit-learn for the digits, the extra `viz` for the picture, and an extra for each tracker. Everything stays
in one folder, W&B offline; nothing is sent anywhere. A few seconds on one core.
"""

from __future__ import annotations

import argparse
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import thermoclaw

Open = Callable[[Path, ExitStack], Any]


# Each of these makes what `log_to` takes, and has it closed at the end.


def tensorboard(folder: Path, ends: ExitStack) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return ends.enter_context(SummaryWriter(str(folder / "tensorboard")))


def wandb(folder: Path, ends: ExitStack) -> Any:
    import wandb

    return ends.enter_context(wandb.init(project="digits", dir=str(folder), mode="offline"))


def mlflow(folder: Path, ends: ExitStack) -> Any:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder.resolve()}/mlflow.db")
    if mlflow.get_experiment_by_name("digits") is None:
        mlflow.create_experiment("digits", artifact_location=(folder.resolve() / "mlflow").as_uri())
    mlflow.set_experiment("digits")
    return ends.enter_context(mlflow.start_run())


def trackio(folder: Path, ends: ExitStack) -> Any:
    os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))  # before the import
    import trackio

    run = trackio.init(project="digits", embed=False)
    ends.callback(trackio.finish)
    return run


def prometheus(folder: Path, ends: ExitStack) -> Any:
    return folder / "digits.prom"


def jsonl(folder: Path, ends: ExitStack) -> Any:
    return folder / "digits.jsonl"


TARGETS: dict[str, Open] = {open_.__name__: open_ for open_ in (tensorboard, wandb, mlflow, trackio, prometheus, jsonl)}


def network() -> nn.Sequential:
    layers = OrderedDict(
        conv1=nn.Conv2d(1, 16, 3, padding=1),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(16, 32, 3, stride=2, padding=1),
        norm=nn.BatchNorm2d(32),
        relu2=nn.ReLU(),
        flat=nn.Flatten(),
        hidden=nn.Linear(512, 64),
        relu3=nn.ReLU(),
        head=nn.Linear(64, 10),
    )
    return nn.Sequential(layers)


def train(targets: list[Any], *, steps: int, lr: float, decay: float) -> thermoclaw.Report:
    """The loop. Logging is the one line with `log_to`."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the network is small
    digits = load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=decay)
    observer = thermoclaw.Observer(model, optimizer)
    with observer, thermoclaw.log_to(observer, *targets, every=10):
        for _ in range(steps):
            batch = torch.randint(len(images), (64,))
            loss = functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            observer.step(loss=loss)
    return thermoclaw.diagnose(observer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", nargs="+", choices=TARGETS, default=["jsonl"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--folder", type=Path, default=Path("thermoclaw_loggers"))
    choice = parser.parse_args()
    choice.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as ends:
        targets = [TARGETS[name](choice.folder, ends) for name in choice.to]
        print(train(targets, steps=choice.steps, lr=choice.lr, decay=choice.weight_decay))
    print(f"\nEverything is in {choice.folder}")


if __name__ == "__main__":
    main()
