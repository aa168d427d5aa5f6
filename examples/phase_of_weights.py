"""Three small networks on handwritten digits: one that learns, one that memorizes, one whose weights crystallize.

    python examples/phase_of_weights.py

The first learns the digits; the second learns random labels by heart; the third learns the digits while its weights are
pulled, ever harder, to −s, 0 and s (s a scale for each matrix), until they are there. Draws lattice
order and δ over the steps, and the weights at the end, to FOLDER/phase_of_weights.png.

It needs Matplotlib (the extra `viz`), scikit-learn for the digits, and nothing from a network. Half a minute.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from thermoclaw import PhaseMonitor

STEPS, BATCH, NUM_TRAIN = 1200, 100, 1000
PULL_FROM, PULL_TO = 300, 1100  # steps between which the pull grows from nothing to all
COLORS = {"plain": "#0072B2", "memorizing": "#D55E00", "pulled": "#009E73"}
TITLES = {"plain": "digits", "memorizing": "random labels", "pulled": "digits, weights pulled to −s, 0, s"}

RESULTS: dict[str, dict[str, Any]] = {}


def matrices(model: nn.Module) -> Iterable[Tensor]:
    return [p for p in model.parameters() if p.dim() == 2]


@torch.no_grad()
def pull(model: nn.Module, share: float) -> None:
    """Move every weight by this share of the way to −s, 0 or s: the ternary code of Li, Zhang and Liu (2016)."""
    for w in matrices(model):
        is_large = w.abs() > 0.7 * w.abs().mean()
        s = w.abs()[is_large].mean()
        w.lerp_(s * torch.sign(w) * is_large, share)


def train(name: str, images: Tensor, labels: Tensor, held_out: tuple[Tensor, Tensor]) -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3 if name == "memorizing" else 1e-3)
    monitor = PhaseMonitor(model)
    results = []
    for step in range(STEPS):
        chosen = torch.randint(len(images), (BATCH,))
        loss = functional.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if name == "pulled" and step >= PULL_FROM:
            pull(model, min((step - PULL_FROM) / (PULL_TO - PULL_FROM), 1.0) ** 3)
        results.append(monitor.step(loss=loss))
    print(f"== {TITLES[name]}\n{monitor.summary()}\n")
    with torch.no_grad():
        train_accuracy = (model(images).argmax(1) == labels).float().mean()
        accuracy = (model(held_out[0]).argmax(1) == held_out[1]).float().mean()
    return {
        "order": [result.get("lattice_order") for result in results],
        "delta": [result.get("delta") for result in results],
        "weights": torch.cat([(w / w.abs().mean()).detach().flatten() for w in matrices(model)]).numpy(),
        "phase": monitor.read().phase.name,
        "metrics": monitor.compute_all_metrics(),
        "train_accuracy": float(train_accuracy),
        "accuracy": float(accuracy),
    }


def draw(target: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.15, 1])
    for ax, (key, title, glass, crystal) in zip(
        above.subplots(1, 2, width_ratios=[1.5, 1]),
        (
            ("order", "Lattice order: 1 is a crystal, whatever its scale", 0.4, 0.7),
            ("delta", "Neurothermo's δ: one weight decides", 0.4, 0.1),
        ),
        strict=True,
    ):
        for name, found in RESULTS.items():
            ax.plot(range(1, STEPS + 1), found[key], color=COLORS[name], label=TITLES[name], linewidth=1.4)
        for level, word, place in ((glass, "glass", min), (crystal, "crystal", max)):
            ax.axhline(level, color="#999999", linewidth=0.7, linestyle=(0, (4, 3)), zorder=0)
            arrow = "↓" if (place is min) == (glass < crystal) else "↑"
            ax.annotate(f"{word} {arrow}", (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom")
        ax.set(title=title, xlabel="step", ylim=(0, 1.3 if key == "order" else 0.7), xlim=(0, STEPS))
        ax.legend(frameon=False, loc="upper left", fontsize=8.5)
    for ax, (name, found) in zip(below.subplots(1, 3), RESULTS.items(), strict=True):
        ax.hist(found["weights"], bins=160, range=(-4, 4), color=COLORS[name])
        ax.set(xlabel="weights of all matrices, w / mean |w|", yticks=[])
        ax.set_title(
            f"{TITLES[name]}\n{found['phase']}: order {found['order'][-1]:.2f}, δ {found['delta'][-1]:.2f}\n"
            f"accuracy {found['train_accuracy']:.0%}, held out {found['accuracy']:.0%}",
            fontsize=9,
        )
    for ax in (*above.axes, *below.axes):
        ax.spines[["top", "right"]].set_visible(False)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("phase_run"))
    choice = parser.parse_args()
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    held_out = (images[NUM_TRAIN:], labels[NUM_TRAIN:])
    images, labels = images[:NUM_TRAIN], labels[:NUM_TRAIN]
    scrambled = torch.randint(10, labels.shape, generator=torch.Generator().manual_seed(1))
    for name in TITLES:
        RESULTS[name] = train(name, images, scrambled if name == "memorizing" else labels, held_out)
    draw(choice.folder / "phase_of_weights.png")
    print(f"wrote {choice.folder / 'phase_of_weights.png'}")


if __name__ == "__main__":
    main()
