"""What every check looks at: model, optimizer, and which parameter belongs to which layer and group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from thermoclaw.diagnosis.finding import describe_layers
from thermoclaw.layers import ROOT, Layout, detect_layer_type
from thermoclaw.measure.hyper import GroupHyper
from thermoclaw.preflight.result import ScheduleForecast

_NORMS = ("Norm",)


@dataclass(frozen=True, eq=False)
class Weight:
    """One parameter of the model.

    Attributes:
        name: as `named_parameters` tells it.
        layer: the module that owns it.
        module: that module itself.
        param: the parameter.
        group: its place in the optimizer's groups; None where the optimizer does not hold it.
    """

    name: str
    layer: str
    module: nn.Module
    param: Tensor
    group: int | None

    @property
    def is_matrix(self) -> bool:
        """Whether it maps inputs to outputs: not a vector, an embedding or a norm."""
        kind = type(self.module).__name__
        if self.param.dim() < 2 or "Embedding" in kind or any(word in kind for word in _NORMS):
            return False
        return detect_layer_type(self.name) != "embedding" or hasattr(self.module, "in_features")

    @property
    def fan_in(self) -> int:
        """Inputs that an output sums over."""
        outputs = 1 if type(self.module).__name__.startswith("ConvTranspose") else 0
        return max(self.param.numel() // max(self.param.shape[outputs], 1), 1)


@dataclass(eq=False)
class Setup:
    """What is about to be trained, and how.

    Attributes:
        models: the model, or several.
        optimizer: the innermost one.
        layout: layers and units.
        hypers: of each group, with the highest rate that the schedule reaches.
        weights: every parameter of the models, once.
        total_steps: of the run, if known.
        schedule: what the scheduler will do, if one was given.
        max_grad_norm: what gradients are clipped to.
        others: parameters that other optimizers train, by identity.
    """

    models: list[nn.Module]
    optimizer: Any
    layout: Layout
    hypers: list[GroupHyper]
    weights: list[Weight]
    total_steps: int | None = None
    schedule: ScheduleForecast | None = None
    max_grad_norm: float | None = None
    others: frozenset[int] = field(default_factory=frozenset)

    @property
    def trained(self) -> list[Weight]:
        """Parameters that the optimizer holds and that take gradients."""
        return [w for w in self.weights if w.group is not None and w.param.requires_grad]

    @property
    def kind(self) -> str:
        """The optimizer's class."""
        return type(self.optimizer).__name__

    @property
    def fixes_step_size(self) -> bool:
        """Whether a first step moves every weight by about the rate, whatever the gradient's size."""
        return any(word in self.kind for word in ("Adam", "Lion", "Lamb"))

    def lr_of(self, weight: Weight) -> float:
        """Highest rate of a trained parameter."""
        return self.hypers[weight.group].lr if weight.group is not None else 0.0

    def top_lr(self) -> float:
        """Highest rate of all groups that train something."""
        return max((self.lr_of(w) for w in self.trained), default=0.0)

    def describe(self, layers: Sequence[str]) -> str:
        """Layers as a person groups them."""
        named = set(layers)
        return describe_layers([info for info in self.layout.layers if info.name in named], len(self.layout.layers))


def list_weights(models: Iterable[nn.Module], group_of: Callable[[Tensor], int | None]) -> list[Weight]:
    """Every parameter once, with its owner and its group."""
    seen: set[int] = set()
    found = []
    for model in models:
        for module_name, module in model.named_modules():
            for name, param in module.named_parameters(recurse=False):
                if id(param) not in seen:
                    seen.add(id(param))
                    full = f"{module_name}.{name}" if module_name else name
                    found.append(Weight(full, module_name or ROOT, module, param, group_of(param)))
    return found


def layers_of(weights: Iterable[Weight]) -> tuple[str, ...]:
    """Their layers, each once, in model order."""
    return tuple(dict.fromkeys(w.layer for w in weights))
