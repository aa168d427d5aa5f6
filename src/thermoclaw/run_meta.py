"""What a run is: versions, optimizer and hyper-parameters, layers and their number formats, settings."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Any

import torch

from thermoclaw.measure.hyper import describe_groups
from thermoclaw.measure.meter import Meter
from thermoclaw.version import __version__


def describe_run(meter: Meter, optimizer: Any) -> dict[str, Any]:
    """Plain data for the record's `meta`. Never waits.

    Args:
        meter: what measures the run.
        optimizer: whose groups are told as they are now.
    """
    layout = meter.layout
    groups: dict[str, list[int]] = {}
    dtypes: dict[str, list[str]] = {}
    shapes: dict[str, torch.Size] = {}
    for unit in layout.units:
        name = layout.layers[unit.layer].name
        groups.setdefault(name, []).append(unit.group)
        for p in unit.params:
            held = dtypes.setdefault(name, [])
            if str(p.dtype) not in held:
                held.append(str(p.dtype))
            if name not in shapes or p.numel() > shapes[name].numel():
                shapes[name] = p.shape
    return {
        "thermoclaw_version": __version__,
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
        "optimizer": type(optimizer).__name__,
        "param_groups": describe_groups(optimizer),
        "layer_groups": groups,
        "settings": asdict(meter.settings),
        "every": meter.cadence.every,
        "devices": sorted({str(unit.device) for unit in layout.units}),
        "layer_dtypes": {layer: ", ".join(kinds) for layer, kinds in dtypes.items()},
        "layer_shapes": {layer: list(shape) for layer, shape in shapes.items()},
        "dtypes": sorted({str(p.dtype) for unit in layout.units for p in unit.params}),
        "num_params": sum(layer.num_params for layer in layout.layers),
        "num_skipped": meter.intake.num_skipped,
        "outside_optimizer": sorted(layout.unoptimized),
    }
