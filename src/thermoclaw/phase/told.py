"""What the arrangement of weights adds to a diagnosis: for information only. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from thermoclaw.diagnosis.finding import Finding, describe_layers
from thermoclaw.phase.phases import Phase
from thermoclaw.record import Record


def on_a_lattice(record: Record, phases: Mapping[str, Phase], orders: Mapping[str, float]) -> Finding | None:
    """Layers whose weights are evenly spaced points, which ordinary training does not make.

    Args:
        record: of the run.
        phases: of each layer, by its name in the record.
        orders: the layers' lattice orders.

    Returns:
        A finding of LOW confidence, or None where no layer of the record is a crystal.
    """
    found = [layer for layer in record.layers if phases.get(layer.name) is Phase.CRYSTAL]
    if not found or not len(record):
        return None
    least = min(orders[layer.name] for layer in found)
    return Finding(
        code="lost_updates",
        confidence="LOW",
        title="weights lie on a lattice",
        seen=f"The weights of {describe_layers(found, len(record.layers))} are evenly spaced: lattice order "
        f"{least:.2f} and more, where 1 is a perfect lattice and ordinary weights have next to 0.",
        meaning="Something rounds them: quantization-aware training, a regularizer, or a number format too coarse for "
        "the steps.",
        advice="If it is meant, nothing. Otherwise keep float32 weights beside the rounded ones: a step below half the "
        "spacing is lost.",
        source="docs: phase of the weights, lattice order",
        first_step=int(record.steps[0]),
        raised_step=int(record.steps[-1]),
        layers=tuple(layer.name for layer in found),
        evidence={"layers": float(len(found)), "lattice_order": least},
    )
