"""A residual network on CIFAR-10, watched: loss, accuracy, temperature and dissipation of every pass, and a diagnosis.

    python examples/cifar_resnet.py cifar-10-batches-py --model resnet50 --epochs 50   # the folder of the data set
    python examples/cifar_resnet.py                                                    # small images made on the spot

`thermoclaw train` does this with checkpoints, a report and an exported model; here is the loop by itself.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch.nn import functional

from thermoclaw import Observer, Thermometer, diagnose
from thermoclaw.train import MODELS, ResNet, load_data
from thermoclaw.train.batches import Batches, in_order, statistics
from thermoclaw.train.images import Labeled, Split


def stripes(count: int, seed: int) -> Labeled:
    """Images of 12 × 12 pixels with stripes in one of four directions, in noise."""
    rng = np.random.default_rng(seed)
    labels, shift = rng.integers(0, 4, count), rng.uniform(0, 2 * np.pi, (count, 1, 1))
    y, x = np.mgrid[:12, :12]
    angle = (labels * np.pi / 4)[:, None, None]
    waves = np.sin(1.5 * (np.cos(angle) * x + np.sin(angle) * y) + shift)
    noisy = 128 + 50 * waves[:, None] + rng.normal(0, 50, (count, 3, 12, 12))
    return Labeled(noisy.clip(0, 255).astype(np.uint8), labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="cifar-10-batches-py or cifar-10-batches-bin")
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    made = Split(stripes(1600, 0), stripes(400, 1), ("–", "/", "|", "\\"))
    data = load_data(f"cifar10:{arguments.folder}") if arguments.folder else made
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mean, std = statistics(data.train)
    model = ResNet(MODELS[arguments.model], num_classes=len(data.classes), mean=mean, std=std).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    batches = Batches(data.train, batch_size=64, seed=0, augment=bool(arguments.folder), device=device)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=arguments.epochs * len(batches))
    observer = Observer(model, optimizer)
    thermometer = Thermometer(observer, batch_size=64)
    for epoch in range(arguments.epochs):
        for images, labels in batches.epoch(epoch):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            schedule.step()
            observer.step(loss=loss)
            thermometer.step()
        model.eval()
        with torch.no_grad():
            pairs = in_order(data.test, batch_size=256, device=device)
            right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in pairs)
        model.train()
        accuracy = right / len(data.test)
        observer.epoch_end(val_acc=accuracy)
        record = observer.record().rows(start=observer.global_step - 20)
        heat, lost = np.nanmedian(record["temperature"]), np.nanmean(record["sigma"].sum(axis=1))
        print(f"epoch {epoch + 1}: loss {loss:.3f}, accuracy {accuracy:.1%}, T {heat:.1e}, dissipation {lost:.1e}")
    print(f"\n{thermometer.verdict()}\n\n{diagnose(observer)}")


if __name__ == "__main__":
    main()
