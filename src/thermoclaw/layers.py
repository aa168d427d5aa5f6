"""Parameters → named layers. A layer is a module that owns parameters, whatever the optimizer's groups are.

Within a layer, parameters that sit in different optimizer groups (weights with decay, biases without) form *units*, and
so do those on different devices or sharded over different processes; inner products are taken per unit, so that each
parameter counts with its own learning rate, decay and momentum, and summed to the layer on the host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from thermoclaw.partition import Fragment, Partition
from thermoclaw.record import LayerInfo

ROOT = "(root)"
OUTSIDE = "(not in the model)"

_TYPE_BY_CLASS: tuple[tuple[str, str], ...] = (
    (r"Embedding(Bag)?$", "embedding"),
    (r"(Layer|RMS|Batch|Group|Instance)_?Norm|Norm\dd$|Norm$", "layernorm"),
    (r"MultiheadAttention$", "attention"),
)
# Tried in this order. Of attention and mlp the innermost word counts; words that both kinds use come last.
_TYPE_BY_NAME: tuple[tuple[str, str], ...] = (
    (r"lm_head|embed_out|output_projection|head|classifier|score|unembed", "lm_head"),
    (
        r"ln(_?[a-z0-9]+)?|(layer|rms|batch|group|instance)?_?norms?(\d+|_\w+)?|bn\d*|\w*_?layernorm|\w*_norm",
        "layernorm",
    ),
    (r"\w*embed\w*|wte|wpe|tok_emb|pos_emb|emb", "embedding"),
)
_INNERMOST: tuple[tuple[str, str], ...] = (
    (r"\w*attn\w*|\w*attention\w*|qkv\w*|[qkvo]_proj|query|key|value|to_[qkv]|to_out", "attention"),
    (r"\w*mlp\w*|ffn?|feed_?forward|c_fc|(up|down|gate)_proj", "mlp"),
)
_WEAK = r"fc\d*|dense\w*|w[123]|lin\d*"


def _last_match(words: str, name: str) -> int:
    """Where the last part of a dotted or underscored name that is one of the words begins; −1 without one."""
    return max((m.start() for m in re.finditer(rf"(?:^|(?<=[._]))(?:{words})(?=[._]|$)", name)), default=-1)


def detect_layer_type(name: str) -> str:
    """The kind of layer a module or parameter name points to.

    Returns:
        "embedding", "layernorm", "attention", "mlp", "lm_head" or "generic". The innermost telling part of the name
        decides between attention and mlp; norms and embeddings inside a block are still norms and embeddings.

    Example:
        >>> detect_layer_type("transformer.h.3.attn.c_attn.weight"), detect_layer_type("blocks.0.mlp.up_proj")
        ('attention', 'mlp')
    """
    lowered = name.lower()
    for words, kind in _TYPE_BY_NAME:
        if _last_match(words, lowered) >= 0:
            return kind
    place, kind = max((_last_match(words, lowered), kind) for words, kind in _INNERMOST)
    if place < 0:
        return "mlp" if _last_match(_WEAK, lowered) >= 0 else "generic"
    return kind


def _module_type(name: str, module: nn.Module | None) -> str:
    """Layer type from the module's class where that tells, from its name otherwise."""
    if module is not None:
        for pattern, kind in _TYPE_BY_CLASS:
            if re.search(pattern, type(module).__name__):
                return kind
    return detect_layer_type(name)


def make_param_groups(model: nn.Module, **settings: Any) -> list[dict[str, Any]]:
    """One optimizer group a layer: a convenience for per-layer settings, never a condition of measuring.

    Args:
        model: module whose trainable parameters are grouped; tied parameters appear once, with the first owner.
        **settings: copied into every group, for instance `lr=3e-4, weight_decay=0.01`.

    Returns:
        Groups with the keys "params", "name" and the settings, in model order.

    Raises:
        ValueError: the model has no trainable parameter.

    Example:
        >>> groups = make_param_groups(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), lr=0.1)
        >>> [(group["name"], len(group["params"]), group["lr"]) for group in groups]
        [('0', 2, 0.1), ('1', 2, 0.1)]
    """
    groups = []
    for name, module_params in owned_parameters(model):
        params = [p for _, p in module_params if p.requires_grad]
        if params:
            groups.append({"params": params, "name": name, **settings})
    if not groups:
        raise ValueError("the model has no trainable parameters: nothing to put into parameter groups")
    return groups


def owned_parameters(model: nn.Module) -> list[tuple[str, list[tuple[str, nn.Parameter]]]]:
    """(module name, [(parameter name, parameter)]) of each module that owns parameters, each parameter once."""
    seen: set[int] = set()
    owned = []
    for module_name, module in model.named_modules():
        mine = []
        for param_name, param in module.named_parameters(recurse=False):
            if id(param) not in seen:
                seen.add(id(param))
                mine.append((f"{module_name}.{param_name}" if module_name else param_name, param))
        if mine:
            owned.append((module_name or ROOT, mine))
    return owned


@dataclass(frozen=True)
class Unit:
    """The parameters of one layer in one optimizer group, on one device, sharded alike."""

    layer: int
    group: int
    device: torch.device
    params: tuple[Tensor, ...] = field(repr=False)
    mesh: Any = field(default=None, repr=False)  # the device mesh, or the sharers, of sharded parameters
    names: tuple[str, ...] = ()  # of the parameters

    @property
    def key(self) -> tuple[int, ...]:
        """Identity of the unit across re-bindings: the parameters it holds."""
        return tuple(id(p) for p in self.params)


@dataclass(frozen=True)
class Layout:
    """Which parameters make which layers and units, and who is missing."""

    layers: tuple[LayerInfo, ...]
    units: tuple[Unit, ...]
    unoptimized: Mapping[str, Tensor]
    signature: tuple[int, ...]


def mesh_of(x: Any) -> Any:
    """What a parameter is spread over: a DTensor's device mesh, a fragment's sharers; None for a plain tensor."""
    if isinstance(x, Fragment):
        return x.flat.sharers
    mesh = getattr(x, "device_mesh", None)
    return mesh if mesh is not None and hasattr(x, "placements") else None


def signature(optimizer: Any) -> tuple[int, ...]:
    """Identity of everything in the optimizer's groups; changes when a group or parameter is added or replaced."""
    return tuple(id(p) for group in optimizer.param_groups for p in group["params"])


def lay_out(
    model: nn.Module | Iterable[nn.Module],
    optimizer: Any,
    *,
    order: tuple[str, ...] = (),
    partition: Partition | None = None,
) -> Layout:
    """Match a model with an optimizer's groups.

    Args:
        model: the module, or several that one optimizer trains.
        optimizer: anything with torch's `param_groups`.
        order: layer names that must keep their places (those of an earlier layout); new layers follow.
        partition: what the optimizer holds instead of the model's parameters, if it does.

    Raises:
        ValueError: no parameter at all, none in common, or flattened ones; the message says what to do.
    """
    group_of = _held_by(optimizer, partition)
    usable = {k: v for k, v in group_of.items() if v[1].numel() and v[1].device.type != "meta"}
    if not usable:
        raise ValueError(
            "the optimizer holds no parameters with elements: build it from model.parameters() after the model is on "
            "its device"
        )
    if any(getattr(p, "_fsdp_flattened", False) or type(p).__name__ == "FlatParameter" for _, p in usable.values()):
        raise ValueError(
            "the parameters were flattened by FullyShardedDataParallel (the first FSDP), which mixes the layers: shard "
            "with torch.distributed.fsdp.fully_shard (FSDP2), which is measured"
        )
    rows: dict[str, _Row] = {}
    unoptimized: dict[str, Tensor] = {}
    known: set[int] = set()
    shared = 0
    models = [model] if isinstance(model, nn.Module) else list(model)
    for number, part in enumerate(models):
        modules = dict(part.named_modules())
        for name, mine in owned_parameters(part):
            label = name if number == 0 or name not in rows else f"{name} (model {number + 1})"
            held = [(n, *usable[id(p)]) for n, p in mine if id(p) in usable]
            known.update(id(p) for _, p in mine)
            unoptimized.update({n: p for n, p in mine if id(p) not in group_of and p.requires_grad})
            if held:
                shared += len(held)
                ltype = _module_type(name, modules.get("" if name == ROOT else name))
                rows[label] = _row(label, ltype, held, depth=len(rows))
    if not shared:
        raise ValueError(
            "model and optimizer share no parameter: pass the model whose parameters the optimizer was built from "
            "(a model that was re-created, copied or moved after the optimizer was built has new parameters); under "
            "DeepSpeed, the optimizer that deepspeed.initialize returned"
        )
    strays = [held for key, held in usable.items() if key not in known]
    if strays:
        names = [(f"stray.{i}", *held) for i, held in enumerate(strays)]
        rows[OUTSIDE] = _row(OUTSIDE, "generic", names, depth=len(rows))
    return _assemble(rows, unoptimized, order, signature(optimizer))


_Held = tuple[int, Any]  # the number of a group, and a parameter in it or a fragment of one
_Row = tuple[LayerInfo, list[tuple[str, int, Any]]]


def _held_by(optimizer: Any, partition: Partition | None) -> dict[int, _Held]:
    """By identity of the model's parameter, where it is in the optimizer."""
    if partition is not None:
        return {id(f.param): (i, f) for i, held in enumerate(partition.fragments) for f in held}
    return {id(p): (i, p) for i, group in enumerate(optimizer.param_groups) for p in group["params"]}


def _row(label: str, ltype: str, held: Sequence[tuple[str, int, Any]], *, depth: int) -> _Row:
    num_params = sum(p.numel() for _, _, p in held)
    return LayerInfo(label, ltype, num_params, depth, tuple(n for n, _, _ in held)), list(held)


def _assemble(
    rows: dict[str, _Row],
    unoptimized: dict[str, Tensor],
    order: tuple[str, ...],
    sign: tuple[int, ...],
) -> Layout:
    """Fix the order of layers and cut each into units."""
    names = [*order, *(name for name in rows if name not in order)]
    layers: list[LayerInfo] = []
    units: list[Unit] = []
    for index, name in enumerate(names):
        if name not in rows:  # a layer that left the optimizer keeps its column
            layers.append(LayerInfo(name, detect_layer_type(name), 0, index))
            continue
        info, held = rows[name]
        layers.append(LayerInfo(info.name, info.ltype, info.num_params, index, info.param_names))
        split: dict[tuple[int, torch.device, Any], dict[str, Any]] = {}
        for param_name, group, p in held:
            split.setdefault((group, p.device, mesh_of(p)), {})[param_name] = p
        units += [
            Unit(index, group, device, tuple(params.values()), mesh, tuple(params))
            for (group, device, mesh), params in split.items()
        ]
    return Layout(tuple(layers), tuple(units), unoptimized, sign)
