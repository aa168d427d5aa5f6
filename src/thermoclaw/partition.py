"""Flat partitions: optimizers that hold, instead of a model's parameters, this process's part of their concatenation.

DeepSpeed's ZeRO of stages 1 and 2 concatenates the parameters of each group, of which the model's are views from then
on, cuts the result into one equal part a process, and hands the torch optimizer this process's part, a flat tensor of
float32 master weights, as the group's only parameter. The torch optimizer is stepped once for each group, with
`param_groups` swapped to that group and `.grad` of its flat tensor there for just as long, averaged, unscaled and
clipped. DeepSpeed's BF16_Optimizer keeps the same flat tensors and steps all groups at once. (What both note in the
parameters' `_hp_mapping` is wrong under `round_robin_gradients`, so places are taken from the views.)

Here such an optimizer is described in terms of the model's own parameters: a `Fragment` stands for one of them, has its
shape, and knows which of its elements lie where in the flat tensor; a `Partition` counts the steps of single groups
together until they are a whole one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SUPPORTED = (
    "of DeepSpeed's optimizers, ZeRO stages 1 and 2 and BF16_Optimizer are measured, with the optimizer's state on the "
    "device of the model, for data parallelism without expert or model parallelism"
)

# where DeepSpeedZeroOptimizer and BF16_Optimizer keep, by group, the model's parameters, the flat tensor that these are
# views of, and the flat tensor of this process
_NAMES = (
    ("bit16_groups", "bit16_groups_flat", "single_partition_of_fp32_groups"),
    ("bf16_groups", "bf16_groups_flat", "fp32_groups_flat_partition"),
)


@dataclass(frozen=True)
class Sharers:
    """The processes that hold the parts of flat tensors: their process group, and their ranks in the world."""

    group: Any
    ranks: tuple[int, ...]


@dataclass(eq=False)
class Flat:
    """This process's part of a group's parameters."""

    tensor: Tensor
    group: int
    sharers: Sharers
    is_stepping: bool = False  # its gradient is the one of this step


@dataclass(frozen=True, eq=False)
class Fragment:
    """A parameter of which this process holds a run of elements in a flat tensor, or nothing.

    Args:
        param: the model's parameter.
        flat: of its group.
        start: index in the parameter, row by row, of the first element held.
        count: elements held.
        at: index in the flat tensor of the first element held.
    """

    param: Tensor
    flat: Flat
    start: int = 0
    count: int = 0
    at: int = 0

    layout = torch.strided

    @property
    def shape(self) -> torch.Size:
        """Of the whole parameter."""
        return self.param.shape

    def numel(self) -> int:
        """Elements of the whole parameter."""
        return self.param.numel()

    @property
    def dtype(self) -> torch.dtype:
        """Of the elements that the optimizer moves."""
        return self.flat.tensor.dtype

    @property
    def device(self) -> torch.device:
        """Of the elements that the optimizer moves."""
        return self.flat.tensor.device

    def is_complex(self) -> bool:
        """Flat tensors of complex numbers are not made."""
        return False

    def is_contiguous(self) -> bool:
        """Runs of a flat tensor are."""
        return True

    def stride(self) -> tuple[int, ...]:
        """Of the elements held."""
        return (1,)

    @property
    def _version(self) -> int:
        return self.flat.tensor._version

    def detach(self) -> Tensor:
        """The elements held."""
        return self.flat.tensor.detach()[self.at : self.at + self.count]

    @property
    def grad(self) -> Tensor | None:
        """The gradient of the elements held, while their group is stepping; all processes agree on whether it is."""
        grad = self.flat.tensor.grad if self.flat.is_stepping else None
        return None if grad is None else grad[self.at : self.at + self.count]


class Partition:
    """The flat tensors that a torch optimizer holds, and how far it is in a step of all of them.

    Args:
        fragments: by group, a fragment of each of its parameters.
        flats: by group.
    """

    def __init__(self, fragments: list[list[Fragment]], flats: list[Flat]) -> None:
        self.fragments = fragments
        self.stepping: list[int] = []  # the groups that the optimizer is stepping now, in its order
        self._flats = flats
        self._number = {id(flat.tensor): flat.group for flat in flats}
        self._now: set[int] = set()  # what is stepped now, and what was before in this step, by identity
        self._done: set[int] = set()

    @property
    def num_groups(self) -> int:
        """Groups of the optimizer."""
        return len(self._flats)

    def begin(self, optimizer: Any) -> bool:
        """The optimizer steps what is in its groups now; whether a step of the whole begins with it."""
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        self._now = set(held)
        if not self._done.isdisjoint(held):
            self._done.clear()  # the step before broke off
        self.stepping = [self._number[key] for key in held if key in self._number]
        for flat in self._flats:
            flat.is_stepping = flat.group in self.stepping
        return not self._done

    def end(self) -> bool:
        """What was begun is done; whether a step of the whole is."""
        self._done |= self._now
        for flat in self._flats:
            flat.is_stepping = False
        if len(self._done) < self.num_groups:
            return False
        self._done.clear()
        return True

    def check(self) -> None:
        """Raise RuntimeError where the optimizer steps anything but the flat tensors, with their gradients."""
        without = [flat.group for flat in self._flats if flat.is_stepping and flat.tensor.grad is None]
        if without or len(self.stepping) != len(self._now):
            raise RuntimeError("the optimizer stepped without the flat tensors, or without the gradients, of ZeRO")


def find_partition(optimizer: Any) -> Partition | None:
    """How a wrapper spreads parameters over processes; None for optimizers that hold the model's own.

    Args:
        optimizer: what the user has: DeepSpeed's optimizer, its engine, or what Accelerate puts around it.

    Raises:
        ValueError: it spreads them in a way that is not measured.
    """
    for wrapper in _wrappers(optimizer):
        for names in _NAMES:
            if all(getattr(wrapper, name, None) for name in names):
                _refuse_unless_plain(wrapper)
                return _describe(wrapper, *(getattr(wrapper, name) for name in names))
        if type(wrapper).__module__.startswith("deepspeed.") and not isinstance(wrapper, torch.nn.Module):
            stage_3 = " (ZeRO stage 3)" if "stage3" in type(wrapper).__name__.lower() else ""
            raise ValueError(f"{type(wrapper).__name__}{stage_3} is not measured: {SUPPORTED}")
    return None


def _wrappers(optimizer: Any) -> Iterator[Any]:
    """What lies around the innermost optimizer, from the outside."""
    seen: set[int] = set()
    while id(optimizer) not in seen:
        seen.add(id(optimizer))
        inner = getattr(optimizer, "optimizer", None)
        if inner is None or not hasattr(inner, "param_groups"):
            return
        yield optimizer
        optimizer = inner


def _refuse_unless_plain(wrapper: Any) -> None:
    """Raise ValueError for what is kept elsewhere, or stepped in another way."""
    mpu = getattr(wrapper, "mpu", None)
    odd = {
        "the optimizer's state is offloaded": getattr(wrapper, "cpu_offload", False),
        "ZenFlow is on": getattr(wrapper, "zenflow", False),
        "there are expert layers": getattr(wrapper, "has_moe_layers", False),
        "the model is spread over processes too": mpu is not None and not hasattr(mpu, "initialize_sequence_parallel"),
        "gradients are scaled by torch.amp": getattr(wrapper, "torch_autocast_gradscaler", None) is not None,
        "Muon's update stands in for the gradient": any(g.get("use_muon") for g in wrapper.optimizer.param_groups),
        "the optimizer has no step hooks": not hasattr(wrapper.optimizer, "register_step_pre_hook"),
    }
    reasons = [reason for reason, found in odd.items() if found]
    if reasons:
        raise ValueError(f"{type(wrapper).__name__} is not measured here ({'; '.join(reasons)}): {SUPPORTED}")


def _describe(wrapper: Any, groups: list[list[Tensor]], wholes: list[Tensor], tensors: list[Tensor]) -> Partition:
    from torch.distributed import get_process_group_ranks, get_rank

    shared: dict[Any, Sharers] = {}
    flats, fragments = [], []
    for i, (params, whole, tensor) in enumerate(zip(groups, wholes, tensors, strict=True)):
        group = wrapper.real_dp_process_group[i]
        sharers = shared.setdefault(group, Sharers(group, tuple(get_process_group_ranks(group))))
        flat = Flat(tensor, i, sharers)
        if whole.numel() != tensor.numel() * len(sharers.ranks) or whole.device != tensor.device:
            raise ValueError(
                f"group {i} has {whole.numel()} elements on {whole.device}, which do not make {len(sharers.ranks)} "
                f"partitions of {tensor.numel()} on {tensor.device}: make the Observer where nothing is offloaded; "
                f"{SUPPORTED}"
            )
        flats.append(flat)
        fragments.append([_fragment(p, whole, flat, first=get_rank(group) * tensor.numel()) for p in params])
    return Partition(fragments, flats)


def _fragment(param: Tensor, whole: Tensor, flat: Flat, *, first: int) -> Fragment:
    """What the flat tensor, which begins at element `first` of the whole group, has of a parameter."""
    place, rest = divmod(param.data_ptr() - whole.data_ptr(), whole.element_size())
    count = param.numel()
    if count and (rest or not 0 <= place <= whole.numel() - count or not param.is_contiguous()):
        raise ValueError(
            f"a parameter of shape {tuple(param.shape)} does not lie in the flat tensor of its group: make the "
            f"Observer where nothing is offloaded; {SUPPORTED}"
        )
    start, stop = max(place, first), min(place + count, first + flat.tensor.numel())
    if start >= stop:
        return Fragment(param, flat)
    return Fragment(param, flat, start=start - place, count=stop - start, at=start - first)
