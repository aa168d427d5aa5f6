"""How hot is a run? The same network at three learning rates, seen by the thermometer.

    python examples/thermometer.py                           # a table
    python examples/thermometer.py --picture thermometer.png # and the page of the middle run (needs matplotlib)

Scikit-learn's digits, plain SGD with a little decay. A higher rate is a higher temperature; whether the weights wander,
are held in a bowl, or have come to rest is measured, not assumed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from thermoclaw import Thermometer

BATCH = 32


def train(rate: float, steps: int) -> Thermometer:
    """A small network on digits under plain SGD."""
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16.0, dtype=torch.float32), torch.tensor(labels)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, weight_decay=5e-3)
    thermometer = Thermometer(model, optimizer, batch_size=BATCH)
    for _ in range(steps):
        chosen = torch.randint(len(x), (BATCH,))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
        loss.backward()
        optimizer.step()
        thermometer.observer.step(loss=loss)
        thermometer.step()
    return thermometer


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--picture", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'rate':>6} {'T of the last layer':>20} {'MSD ~ lag^':>12}  verdict")
    for rate in (0.02, 0.1, 0.5):
        thermometer = train(rate, arguments.steps)
        told = thermometer.summary()
        heat = list(told["layers"].values())[-1]["temperature"]
        print(f"{rate:>6g} {heat:>20.2e} {told['diffusion_exponent']:>12.2f}  {told['verdict']}")
        if rate == 0.1 and arguments.picture is not None:
            thermometer.plot(arguments.picture)
            print(f"       wrote {arguments.picture}")


if __name__ == "__main__":
    main()
