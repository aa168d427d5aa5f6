"""What a probe looks at, told by modules, names and shapes alone: rows of matrices, fan-ins, pairs of query and key."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

LEAST_SIDE = 3  # of a gradient whose rank tells anything: errors of two classes are one number
MOST_NUMBERS = 2**22  # in it: a larger last layer is that of a vocabulary

# weight and bias of what a recurrent layer or cell does with its inputs
_OF_INPUTS = (("weight_ih_l0", "bias_ih_l0"), ("weight_ih", "bias_ih"))
# names of siblings that map to queries and to keys, and of maps whose output is queries, keys and values in a row
_KEY_OF = {
    "q_proj": "k_proj",
    "q_proj_weight": "k_proj_weight",
    "query": "key",
    "query_proj": "key_proj",
    "to_q": "to_k",
    "q_lin": "k_lin",
    "w_q": "w_k",
    "wq": "wk",
    "q": "k",
}
_FUSED = ("in_proj_weight", "qkv", "qkv_proj", "attn_qkv", "to_qkv", "wqkv", "c_attn")


class Sheet(NamedTuple):
    """A parameter as a stack of rows, one for each output: [outer, rows, inner] in logical order."""

    outer: int
    rows: int
    inner: int  # counted in real numbers
    axis: int  # the dimension of outputs; −1 for a vector, which counts as one row
    is_watched: bool  # its rows are outputs that should all learn; those of an embedding are not
    fan_in: int  # inputs that an output adds up; 0 for a vector

    @property
    def size(self) -> int:
        """Real numbers in it."""
        return self.outer * self.rows * self.inner


class Matrix(NamedTuple):
    """A parameter that is probed."""

    p: Tensor
    sheet: Sheet
    unit: int
    first: int  # of its rows, among all


class QueryKey(NamedTuple):
    """The maps W_Q and W_K of an attention: two parameters, or the first two thirds of one."""

    query: Tensor
    key: Tensor
    is_transposed: bool  # inputs come first
    head: int  # width of a head where several of queries share one of keys; 0 where each has its own


@dataclass(frozen=True)
class Anatomy:
    """By identity of the parameter: how it is cut in rows, and whether it maps to queries."""

    sheets: Mapping[int, Sheet]
    queries: Mapping[int, QueryKey]
    entry: tuple[int, ...] | None = None  # weight and bias of the map that takes the model's inputs
    exit: tuple[int, ...] | None = None  # weight, and bias where there is one, of the last map
    ranked: int | None = None  # weight of the last map, or of the first, whose gradient has a rank that tells anything

    def sheet(self, p: Tensor) -> Sheet:
        """Of any parameter, also one that is not in the model."""
        return self.sheets.get(id(p)) or sheet_of(p, None)


class _Owned(NamedTuple):
    parent: str
    name: str
    p: Tensor
    module: nn.Module


def survey(model: nn.Module | Sequence[nn.Module]) -> Anatomy:
    """Look through a model, or several."""
    sheets: dict[int, Sheet] = {}
    queries: dict[int, QueryKey] = {}
    for part in [model] if isinstance(model, nn.Module) else model:
        modules = dict(part.named_modules())
        owned = list(_owned(modules))
        for _, _, p, module in owned:
            sheets.setdefault(id(p), sheet_of(p, module))
        by_place = {(parent, name): (p, module) for parent, name, p, module in owned if p.dim() == 2}
        for (parent, name), (p, module) in by_place.items():
            found = None
            if name in _FUSED:
                found = _fused(p, module)
            elif name in _KEY_OF and (parent, _KEY_OF[name]) in by_place:
                found = _pair(p, by_place[parent, _KEY_OF[name]][0], module, modules[parent])
            if found is not None:
                queries.setdefault(id(p), found)
    first = model if isinstance(model, nn.Module) else next(iter(model), None)
    entry, last = _ends(first) if first is not None else (None, None)
    weights = {id(p): p for p in first.parameters()} if first is not None else {}
    ranked = next((end[0] for end in (last, entry) if end is not None and _has_rank(weights[end[0]])), None)
    return Anatomy(sheets, queries, entry, last, ranked)


def _has_rank(p: Tensor) -> bool:
    sides = (p.shape[0], p.numel() // p.shape[0]) if p.dim() > 1 and p.numel() else (0, 0)
    return min(sides) >= LEAST_SIDE and p.numel() <= MOST_NUMBERS and not p.is_complex()


def _owned(modules: Mapping[str, nn.Module]) -> Iterator[_Owned]:
    for path, module in modules.items():
        for name, p in module.named_parameters(recurse=False):
            if isinstance(p, UninitializedParameter):
                continue
            if name == "weight":
                parent, _, last = path.rpartition(".")
                yield _Owned(parent, last.lower(), p, module)
            else:
                yield _Owned(path, name.lower(), p, module)


def _ends(model: nn.Module) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """Weights and biases of the first and the last module with a matrix; None for tables, and a first without bias."""
    maps: list[tuple[int, ...] | None] = []
    entry: tuple[int, ...] | None = None
    centered = _centered(model)
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        weight, bias = own.get("weight"), own.get("bias")
        if weight is not None and not isinstance(weight, UninitializedParameter) and weight.dim() > 1:
            ids = (id(weight),) if bias is None or module in centered else (id(weight), id(bias))
            maps.append(ids if sheet_of(weight, module).is_watched else None)
        elif any(_maps(name, p, module) for name, p in own.items()):
            if not maps:
                entry = next(((id(own[w]), id(own[b])) for w, b in _OF_INPUTS if w in own and b in own), None)
            maps.append(None)  # a recurrent cell, say, whose outputs are more than one product
    first, last = (maps[0] or entry, maps[-1]) if maps else (None, None)
    return first if first is not None and len(first) == 2 else None, last


def _centered(model: nn.Module) -> set[nn.Module]:
    """Modules with a norm right behind that takes each output's mean away, and with it the gradient of the bias."""
    leaves = (module for module in model.modules() if next(module.children(), None) is None)
    return {module for module, behind in pairwise(leaves) if isinstance(behind, nn.modules.batchnorm._NormBase)}


def _maps(name: str, p: Tensor, module: nn.Module) -> bool:
    """Whether a parameter is a matrix that is applied to something, and not positions that a container adds."""
    if isinstance(p, UninitializedParameter) or p.dim() < 2:
        return False
    return "weight" in name or next(module.children(), None) is None


def _is_transposed(module: nn.Module | None) -> bool:
    """Whether a linear map's weight is [inputs, outputs], as transformers' Conv1D has it."""
    return type(module).__name__ == "Conv1D"


def sheet_of(p: Tensor, module: nn.Module | None) -> Sheet:
    """How a parameter of a module is cut in rows."""
    width = 2 if p.is_complex() else 1
    shape = tuple(p.shape)
    if len(shape) < 2 or 0 in shape:
        return Sheet(1, 1, p.numel() * width, -1, is_watched=False, fan_in=0)
    is_deconvolution = isinstance(module, nn.modules.conv._ConvTransposeNd)
    axis = 1 if is_deconvolution or (_is_transposed(module) and len(shape) == 2) else 0
    rows = shape[axis]
    fan_in = p.numel() // rows
    if is_deconvolution:
        fan_in //= int(getattr(module, "groups", 1))
    is_table = re.search(r"Embedding(Bag)?$", type(module).__name__) is not None
    return Sheet(
        math.prod(shape[:axis]),
        rows,
        math.prod(shape[axis + 1 :]) * width,
        axis,
        is_watched=not is_table,
        fan_in=1 if is_table else fan_in,
    )


def _fused(p: Tensor, module: nn.Module) -> QueryKey | None:
    is_transposed = _is_transposed(module)
    inputs, outputs = p.shape if is_transposed else reversed(p.shape)
    return QueryKey(p, p, is_transposed, head=0) if outputs == 3 * inputs else None


def _pair(p: Tensor, key: Tensor, module: nn.Module, parent: nn.Module) -> QueryKey | None:
    is_transposed = _is_transposed(module)
    wide, narrow = (x.shape[1 if is_transposed else 0] for x in (p, key))
    if wide == narrow:
        return QueryKey(p, key, is_transposed, head=0)
    head = getattr(parent, "head_dim", None)
    if not isinstance(head, int) or head < 1 or wide % narrow or narrow % head:
        return None
    return QueryKey(p, key, is_transposed, head)
