"""Does gradient clipping keep a run steady, or does it only take shorter steps? One old experiment, and a better one.

    python examples/gradient_clipping.py                 # the better one: five seeds, three arms, a picture, verdicts
    python examples/gradient_clipping.py --replicate     # the old one, figure for figure
    python examples/gradient_clipping.py --seeds 2 --steps 800    # a look
    python examples/gradient_clipping.py --results clipping.json --picture clipping.png    # keep them

The old experiment trains a four-word model one example at a time, with and without clipping, on labels that its inputs
do not tell. It compares one run with one run, and clipping with nothing instead of with a smaller learning rate.

Here the rare class can be learned: the rare word means it, with a little noise. Three arms start from the same weights
and see the same examples: no clipping, clipping at 1, and no clipping at the learning rate whose steps add up to the
same path as those of the clipped run. What differs between the last two is clipping itself.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from thermoclaw import SpikeDetector
from thermoclaw.representation import effective_dimension

WORDS, WIDTH, BOUND, RATE = 4, 16, 1.0, 0.1
RARE = WORDS - 1
T_95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}  # two-sided, by freedom
PUBLISHED = {
    ("extreme", "none"): {"dimension_spread": 0.0085, "largest_change": 0.131, "largest_norm": 7.35},
    ("extreme", "clip"): {"dimension_spread": 0.0003, "largest_change": 0.022},
    ("moderate", "none"): {"dimension_spread": 0.336, "largest_change": 0.102, "largest_norm": 6.62},
    ("moderate", "clip"): {"dimension_spread": 0.023, "largest_change": 0.017},
}


def new_model() -> nn.Sequential:
    """A word's row of an embedding, and a linear map of it to four classes."""
    return nn.Sequential(nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS))


@dataclass
class Trace:
    """What a run leaves behind."""

    norms: list[float]
    weights: list[float]
    dimensions: list[float]
    path: float
    rare_loss: float
    rare_accuracy: float
    common_loss: float
    auc: float
    spikes: int
    clip_fraction: float | None


def train(
    model: nn.Module, words: Tensor, classes: Tensor, *, rate: float, bound: float | None, look_every: int = 100
) -> Trace:
    """One example a step, in their order; plain SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    detector = SpikeDetector(model, optimizer, max_norm=bound)
    parameters = list(model.parameters())
    before: list[Tensor] = []
    weights: list[Tensor] = []
    dimensions: list[float] = []
    path = torch.zeros(())
    for step in range(len(words)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(words[step : step + 1]), classes[step : step + 1]).backward()
        norm = nn.utils.clip_grad_norm_(parameters, bound if bound is not None else math.inf)
        used = norm if bound is None else torch.minimum(norm, torch.tensor(bound))
        path = path + rate * used
        optimizer.step()
        detector.step(norm)
        before.append(norm)
        weights.append(torch.cat([p.detach().reshape(-1) for p in parameters]).norm())
        if step % look_every == 0:
            dimensions.append(effective_dimension(parameters[0].detach().numpy()))
    told = _tell(model, words, classes)
    return Trace(
        torch.stack(before).tolist(),
        torch.stack(weights).tolist(),
        dimensions,
        float(path),
        *told,
        len(detector.spikes),
        detector.clip_fraction,
    )


def _tell(model: nn.Module, words: Tensor, classes: Tensor) -> tuple[float, float, float, float]:
    """Loss and accuracy on the rare class, loss on the others, and the area under the curve of rare against common."""
    with torch.no_grad():
        logits = model(words)
        losses = nn.functional.cross_entropy(logits, classes, reduction="none")
        rare = classes == 1
        score = (logits[:, 1] - torch.logsumexp(logits[:, [0, 2, 3]], 1)).numpy()
        hits = (logits.argmax(1) == classes)[rare].float().mean()
    order = np.argsort(np.argsort(score, kind="stable")) + 1.0
    for value in np.unique(score):  # equal scores share their rank
        order[score == value] = order[score == value].mean()
    mask = rare.numpy()
    pairs = mask.sum() * (~mask).sum()
    auc = float((order[mask].sum() - mask.sum() * (mask.sum() + 1) / 2) / pairs) if pairs else float("nan")
    return float(losses[rare].mean()), float(hits), float(losses[~rare].mean()), auc


# -- the old experiment -----------------------------------------------------------------------------------------------


CASES = {"extreme": (10, 5), "moderate": (200, 10)}  # rare examples of a thousand, and epochs


def _seeded(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)


def replicate(cases: Sequence[str] = tuple(CASES), log: Callable[[str], None] = print) -> dict[str, dict[str, float]]:
    """The runs of the old experiment, and each figure beside the published one."""
    _seeded(42)
    start = {name: value.clone() for name, value in new_model().state_dict().items()}
    found: dict[str, dict[str, float]] = {}
    for case in cases:
        num_rare, epochs = CASES[case]
        _seeded(42)
        words, classes = torch.randint(0, WORDS, (1000,)), torch.zeros(1000, dtype=torch.long)
        classes[random.sample(range(1000), num_rare)] = 1
        for arm, bound in (("none", None), ("clip", BOUND)):
            model = new_model()
            model.load_state_dict(start)
            trace = train(model, words.repeat(epochs), classes.repeat(epochs), rate=RATE, bound=bound)
            told = {
                "dimension_spread": float(np.std(trace.dimensions)),
                "largest_change": float(np.abs(np.diff(trace.weights)).max()),
                "largest_norm": max(trace.norms),
                "rare_accuracy": trace.rare_accuracy,
            }
            found[f"{case} {arm}"] = told
            published = PUBLISHED[case, arm]
            log(
                f"{case:>8} {arm:>4}: "
                + ", ".join(f"{name} {told[name]:.4f} (published {value:g})" for name, value in published.items())
                + f", rare accuracy {told['rare_accuracy']:.0%}"
            )
    log(
        "The labels of this experiment do not depend on its inputs, so the rare class cannot be learned: 0 % in every "
        "arm is no support for either side."
    )
    return found


# -- the better one ---------------------------------------------------------------------------------------------------


def rare_word(steps: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Words of which one is rare, and classes that it tells: 1 nine times in ten, with other words once in fifty."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, RARE, (steps,), generator=generator)
    words[torch.rand(steps, generator=generator) < share] = RARE
    chance = torch.where(words == RARE, 0.9, 0.02)
    return words, (torch.rand(steps, generator=generator) < chance).long()


def _detrended_spread(values: Sequence[float]) -> float:
    """Standard deviation about a straight line: a trend is no unsteadiness."""
    t = np.arange(len(values), dtype=float)
    line = np.polynomial.Polynomial.fit(t, values, 1)
    return float(np.std(np.asarray(values) - line(t)))


def experiment(seed: int, *, steps: int, share: float) -> dict[str, Trace]:
    """The three arms of one seed."""
    words, classes = rare_word(steps, share, seed)
    torch.manual_seed(seed)
    start = {name: value.clone() for name, value in new_model().state_dict().items()}

    def arm(rate: float, bound: float | None) -> Trace:
        model = new_model()
        model.load_state_dict(start)
        return train(model, words, classes, rate=rate, bound=bound)

    arms = {"none": arm(RATE, None), "clip": arm(RATE, BOUND)}
    rate, goal = RATE, arms["clip"].path
    matched = arms["none"]
    for _ in range(4):  # the path grows less than in proportion to the rate
        rate *= goal / matched.path
        matched = arm(rate, None)
        if abs(matched.path / goal - 1) < 0.01:
            break
    return {**arms, "matched": matched}


MEASURES: dict[str, tuple[str, Callable[[Trace], float]]] = {
    "unsteadiness": ("spread of the effective dimension", lambda t: _detrended_spread(t.dimensions)),
    "largest jump": (
        "largest jump of ‖θ‖ in a step",
        lambda t: float(np.abs(np.diff(t.weights)).max()),
    ),
    "rare loss": ("loss on the rare class, nats", lambda t: t.rare_loss),
    "common loss": ("loss on the others, nats", lambda t: t.common_loss),
}


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of paired differences, from Student's t."""
    values = np.asarray(differences)
    mean, freedom = float(values.mean()), len(values) - 1
    if freedom < 1:
        return mean, -math.inf, math.inf
    half = T_95.get(freedom, 2.0) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def compare(runs: list[dict[str, Trace]], log: Callable[[str], None] = print) -> list[dict[str, object]]:
    """Clipping against either other arm, measure by measure, with a verdict each."""
    rows: list[dict[str, object]] = []
    for other, words in (("none", "no clipping"), ("matched", "a learning rate of the same path")):
        log(f"\nclipping against {words}, {len(runs)} seeds, 95 % intervals of the paired difference")
        for name, (meaning, of) in MEASURES.items():
            mean, low, high = interval([of(run["clip"]) - of(run[other]) for run in runs])
            verdict = (
                "lower with clipping" if high < 0 else "higher with clipping" if low > 0 else "no difference shown"
            )
            log(f"  {meaning:<46} {mean:+9.4f}  [{low:+.4f}, {high:+.4f}]  {verdict}")
            rows.append({"against": other, "measure": name, "mean": mean, "low": low, "high": high, "verdict": verdict})
    return rows


def draw(runs: list[dict[str, Trace]], path: Path) -> None:
    """Each measure of each seed, by arm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    arms = {
        "none": ("no clipping", "#D55E00"),
        "clip": ("clipping at 1", "#0072B2"),
        "matched": ("same path", "#009E73"),
    }
    figure, axes = pyplot.subplots(1, len(MEASURES), figsize=(11.0, 3.1), layout="constrained")
    for ax, (meaning, of) in zip(axes, MEASURES.values(), strict=True):
        values = np.array([[of(run[arm]) for arm in arms] for run in runs])
        ax.plot(range(len(arms)), values.T, color="#C4C4C4", lw=0.8, zorder=1)
        for i, (_, color) in enumerate(arms.values()):
            ax.plot(np.full(len(runs), i), values[:, i], "o", ms=5, color=color, zorder=2)
            ax.plot([i - 0.22, i + 0.22], [values[:, i].mean()] * 2, color=color, lw=2.5, zorder=3)
        ax.set_title(meaning, fontsize=9)
        ax.set_xticks(range(len(arms)), [name for name, _ in arms.values()], fontsize=8)
        ax.set_xlim(-0.5, len(arms) - 0.5)
        ax.set_ylim(bottom=0)
        ax.tick_params(axis="y", labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("a dot a seed, a bar their mean", fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicate", action="store_true", help="the old experiment instead")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--share", type=float, default=0.01, help="share of the rare word")
    parser.add_argument("--results", type=Path, default=None, help="a JSON file to write")
    parser.add_argument("--picture", type=Path, default=None, help="a PNG file to write (needs matplotlib)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.replicate:
        replicate()
        return
    runs = []
    for seed in range(arguments.seeds):
        print(f"\rseed {seed + 1} of {arguments.seeds}", end="", file=sys.stderr, flush=True)
        runs.append(experiment(seed, steps=arguments.steps, share=arguments.share))
    print(file=sys.stderr)
    rows = compare(runs)
    fraction = np.mean([run["clip"].clip_fraction or 0.0 for run in runs])
    print(f"\n{fraction:.1%} of the steps were clipped; the rare word is {arguments.share:.0%} of the words.")
    if arguments.results is not None:
        short = [{arm: {**asdict(trace), "norms": [], "weights": []} for arm, trace in run.items()} for run in runs]
        document = {
            "environment": {"python": platform.python_version(), "torch": torch.__version__, "date": str(date.today())},
            "settings": {"seeds": arguments.seeds, "steps": arguments.steps, "share": arguments.share, "bound": BOUND},
            "clip_fraction": float(fraction),
            "comparison": rows,
            "runs": short,
        }
        arguments.results.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {arguments.results}")
    if arguments.picture is not None:
        draw(runs, arguments.picture)
        print(f"wrote {arguments.picture}")


if __name__ == "__main__":
    main()
