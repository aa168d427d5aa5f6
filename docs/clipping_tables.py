"""The comparison of the gradient-clipping example, from the file that it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable

from cost_tables import RESULTS
from markdown_tables import table

NAMES = {
    "unsteadiness": "spread of the effective dimension",
    "largest jump": "largest jump of ‖θ‖ in a step",
    "rare loss": "loss on the rare class",
    "common loss": "loss on the others",
}
AGAINST = {"none": "no clipping", "matched": "a learning rate of the same path"}


def gradient_clipping() -> str:
    """Paired differences of the clipped arm against either other one, with their intervals and verdicts."""
    measured = json.loads((RESULTS / "gradient_clipping.json").read_text(encoding="utf-8"))
    settings = measured["settings"]
    rows = [
        (NAMES[row["measure"]], AGAINST[row["against"]], f"{row['mean']:+.4f}", interval(row), row["verdict"])
        for row in measured["comparison"]
    ]
    heads = ("measure", "clipping against", "difference", "95 % interval", "verdict")
    share = f"{settings['share']:.0%}"
    words = (
        f"{settings['seeds']} seeds, {settings['steps']:,} steps of one example, a rare word in {share} "
        f"of them; {measured['clip_fraction']:.1%} of the steps were clipped. Intervals are Student's, of paired "
        "differences."
    )
    return "\n".join([words, "", *table(heads, rows)])


def interval(row: dict[str, float]) -> str:
    """Both ends."""
    return f"{row['low']:+.4f} to {row['high']:+.4f}"


PARTS: dict[str, Callable[[], str]] = {"gradient-clipping": gradient_clipping}
