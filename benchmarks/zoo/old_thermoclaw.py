"""The published thermoclaw 0.1.6 on the same cases, in an environment of its own.

    PYTHON_WITH_0.1.6 -m benchmarks.zoo.old_thermoclaw FOLDER CASE...

Each case is trained again, bit for bit the same, with 0.1.6's three instruments attached as its README does it (a named
parameter group for each module). What its report recommends is kept beside the trace. It speaks after the run only, so
the step of its sayings is the run's last; recommendations marked LOW are no alarms, as here.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MEANS = (
    ("layers at equilibrium", "lr_too_high loss_spike distribution_shift"),
    ("inter-layer dispersion", "layer_lr_mismatch label_noise"),
    ("Negative gradient alignment", "lr_too_high"),
    ("Entropy production", "lr_too_high exploding_gradients weight_blow_up"),
    ("Network-wide entropy ratio", "lr_too_high momentum_too_high gradient_noise"),
    ("Weight decay", "weight_decay_too_high"),
    ("weight decay", "weight_decay_too_high"),
    ("gradient noise", "gradient_noise"),
)


class Watching:
    """0.1.6's observer, entropy split and collapse detector."""

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        import thermoclaw

        self.observer = thermoclaw.Observer(model, optimizer)
        self.splitter = thermoclaw.EntropySplit(model, optimizer, self.observer)
        self.detector = thermoclaw.CollapseDetector(model, optimizer)

    def step(self, loss: Tensor) -> None:
        self.observer.step(loss=float(loss))
        self.splitter.step()
        self.detector.step()

    def validated(self, loss: float) -> None:
        pass

    def recommendations(self) -> list[str]:
        """What its report says in the end."""
        import thermoclaw

        return [str(r) for r in thermoclaw.diagnose(self.observer, self.splitter, self.detector).recommendations]


def sayings(recommendations: list[str], step: int) -> list[dict[str, Any]]:
    """Recommendations, HIGH before MEDIUM, with the codes that they may mean."""
    urgent = [r for mark in ("[HIGH]", "[MEDIUM]") for r in recommendations if r.startswith(mark)]
    told = []
    for text in urgent:
        codes = next((codes for words, codes in MEANS if words in text), "weight_decay_too_high momentum_too_high")
        told.append({"said": text[:120], "codes": codes.split(), "step": step})
    return told


def main(folder: str, names: list[str]) -> None:
    """Train the named cases and write what 0.1.6 says of each."""
    import json

    from benchmarks.zoo.cases import all_cases
    from benchmarks.zoo.training import train

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    wanted = set(names)
    for case in all_cases():
        path = Path(folder) / "traces" / f"{case.name}.old.json"
        if case.name not in wanted or path.exists():
            continue
        recipe, _ = case.recipe()
        watching = Watching()
        try:
            train(recipe, watching, by_layer=True)
            said = watching.recommendations()
            told = {"recommendations": said, "sayings": sayings(said, recipe.steps)}
        except Exception as error:  # it is not made for every optimizer and every NaN: then it says nothing
            told = {"error": f"{type(error).__name__}: {error}", "sayings": []}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told, indent=1) + "\n")
        print(case.name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
