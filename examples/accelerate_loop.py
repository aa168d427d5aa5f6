"""Watch a loop of one's own under Accelerate with one line: a small network on handwritten digits.

    python examples/accelerate_loop.py                        # a healthy run
    python examples/accelerate_loop.py --lr 2                 # a rate that is too high
    accelerate launch --cpu --num_processes 2 examples/accelerate_loop.py

It needs the extras `accelerate` and `viz`, scikit-learn for the digits, and nothing from a network. A few seconds on
one core.
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from thermoclaw.integrations.accelerate import observe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--log-with", choices=["tensorboard", "wandb"])
    parser.add_argument("--folder", default="thermoclaw_accelerate_run")
    choice = parser.parse_args()

    set_seed(0)
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=choice.lr, momentum=0.9)
    data = DataLoader(TensorDataset(images[:1500], labels[:1500]), batch_size=25, shuffle=True)

    accelerator = Accelerator(gradient_accumulation_steps=2, log_with=choice.log_with, project_dir=choice.folder)
    accelerator.init_trackers("digits")
    model, optimizer, data = accelerator.prepare(model, optimizer, data)
    observed = observe(accelerator, model, optimizer)  # the one line

    for epoch in range(choice.epochs):
        for x, y in data:
            with accelerator.accumulate(model):
                loss = functional.cross_entropy(model(x), y)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        accelerator.log({"loss": loss.item()}, step=(epoch + 1) * len(data) // 2)
        with torch.no_grad():
            x, y = (part[1500:].to(accelerator.device) for part in (images, labels))
            held_out = functional.cross_entropy(accelerator.unwrap_model(model)(x), y)
        observed.epoch_end(val_loss=held_out.item())  # for the rule that looks for overfitting
    accelerator.end_training()


if __name__ == "__main__":
    main()
