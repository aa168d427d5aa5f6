"""Watch a Lightning Trainer with one line: a small network on handwritten digits, healthy or with too high a rate.

    python examples/lightning_trainer.py                                      # a healthy run
    python examples/lightning_trainer.py --lr 0.5 --early-stop HIGH             # fails, and is stopped for it

It needs the extras `lightning` and `viz`, scikit-learn for the digits, and nothing from a network. A few seconds on one
core.
"""

from __future__ import annotations

import argparse

import torch
from lightning import pytorch as pl
from lightning.pytorch.loggers import CSVLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from thermoclaw.integrations.lightning import ThermoclawLightning


class Digits(pl.LightningModule):
    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        self.head = nn.Linear(128, 10)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = functional.cross_entropy(self.head(self.encoder(batch[0])), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        scores = self.head(self.encoder(batch[0]))
        self.log("val_loss", functional.cross_entropy(scores, batch[1]), prog_bar=True)
        self.log("val_acc", (scores.argmax(1) == batch[1]).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def loaders() -> tuple[DataLoader, DataLoader]:
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    train, held_out = TensorDataset(images[:1500], labels[:1500]), TensorDataset(images[1500:], labels[1500:])
    return DataLoader(train, batch_size=50, shuffle=True), DataLoader(held_out, batch_size=99)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--early-stop", choices=["HIGH", "MEDIUM"], help="stop at such an alarm")
    parser.add_argument("--folder", default="thermoclaw_lightning_run")
    choice = parser.parse_args()

    pl.seed_everything(0)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=choice.epochs,
        log_every_n_steps=10,
        logger=CSVLogger(choice.folder),
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[ThermoclawLightning(early_stop=choice.early_stop)],  # the one line
    )
    trainer.fit(Digits(choice.lr), *loaders())


if __name__ == "__main__":
    main()
