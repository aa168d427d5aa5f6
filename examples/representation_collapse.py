"""See representations collapse: an encoder of digits trained without labels, with and without stop-gradient.

    python examples/representation_collapse.py                         # both, one seed, and the picture
    python examples/representation_collapse.py --seeds 3 --steps 600   # the table of the documentation

SimSiam (Chen and He 2021) pulls two views of a digit together. Where the gradient also flows through the target, one
output for all digits is the easiest answer. It needs the extra `viz`, scikit-learn for the digits, and nothing from a
network. Ten seconds a run on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import thermoclaw
from thermoclaw.report.representation import plot_representation

digits = load_digits()
images, labels = torch.tensor(digits.images, dtype=torch.float32) / 16, torch.tensor(digits.target)
NUM_TRAIN = 1200


class SimSiam(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU()),
            *(nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU()),
            *(nn.Linear(128, 64), nn.BatchNorm1d(64)),
        )
        self.predictor = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 64))


def view(x: Tensor, random: torch.Generator) -> Tensor:
    """Digits moved by up to a pixel, a fifth of the pixels gone, with noise."""
    down, right = (int(torch.randint(-1, 2, (), generator=random)) for _ in range(2))
    kept = torch.rand(x.shape, generator=random) > 0.2
    noise = 0.1 * torch.randn(x.shape, generator=random)
    return (torch.roll(x, (down, right), (1, 2)) * kept + noise).flatten(1)


def nearest_neighbors(encoder: nn.Module) -> float:
    """Share of held-out digits that the five nearest training digits, by cosine, name rightly."""
    with torch.no_grad():
        z = functional.normalize(encoder.eval()(images.flatten(1)), dim=1)
    nearest = (z[NUM_TRAIN:] @ z[:NUM_TRAIN].T).topk(5, dim=1).indices
    encoder.train()
    return float((labels[nearest].mode(dim=1).values == labels[NUM_TRAIN:]).float().mean())


def train(*, stop_gradient: bool, seed: int, steps: int) -> tuple[thermoclaw.Observer, dict[str, object]]:
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    model = SimSiam()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    observer = thermoclaw.Observer(model, optimizer)
    observer.watch(model.encoder, every=25, joint_embedding=True)  # the one line
    before = nearest_neighbors(model.encoder)
    for _ in range(steps):
        x = images[torch.randint(NUM_TRAIN, (128,), generator=random)]
        z1, z2 = (model.encoder(view(x, random)) for _ in range(2))
        t1, t2 = (z1.detach(), z2.detach()) if stop_gradient else (z1, z2)
        p1, p2 = model.predictor(z1), model.predictor(z2)
        loss = 1 - (functional.cosine_similarity(p1, t2).mean() + functional.cosine_similarity(p2, t1).mean()) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        observer.step(loss=loss)
    last = thermoclaw.RepresentationMonitor(observer).summary()["encoder"]["last"]
    alarms = [f"{f.confidence} {f.code} at step {f.raised_step}" for f in observer.alarms]
    return observer, {
        "stop_gradient": stop_gradient,
        "seed": seed,
        "steps": steps,
        "loss": round(float(loss.detach()), 3),
        "spread": round(last["spread"], 3),
        "effective_rank": round(last["effective_rank"], 1),
        "neighbors_before": round(before, 3),
        "neighbors": round(nearest_neighbors(model.encoder), 3),
        "alarms": alarms,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--picture", type=Path, default=Path("representation_collapse.png"))
    parser.add_argument("--results", type=Path, help="write the table as JSON")
    choice = parser.parse_args()

    rows, first = [], {}
    for seed in range(choice.seeds):
        for stop_gradient in (True, False):
            observer, row = train(stop_gradient=stop_gradient, seed=seed, steps=choice.steps)
            rows.append(row)
            print(json.dumps(row))
            if seed == 0:
                first["with stop-gradient" if stop_gradient else "without"] = observer.record()
                print(thermoclaw.diagnose(observer), end="\n\n")
    plot_representation(first, save_path=choice.picture)
    if choice.results is not None:
        choice.results.write_text(json.dumps({"runs": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
