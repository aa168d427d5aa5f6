"""What watching needs of an `Accelerator`: who measures, what is refused, its trackers, a tap on its methods."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from thermoclaw.integrations.say import say
from thermoclaw.integrations.scalars import PREFIX

try:
    import accelerate
except ImportError as error:
    raise ImportError("watching an Accelerator needs accelerate: pip install 'thermoclaw[accelerate]'") from error

ACCELERATE: Any = accelerate
logger = logging.getLogger("thermoclaw")

STEP = f"{PREFIX}step"
_COUNTS_CALLS = ("dvclive",)  # its steps are the calls that it gets, so it must get the user's alone
_REFUSED = {
    "DEEPSPEED": "DeepSpeed: make Observer(model, optimizer) on every process instead (docs: several processes)",
    "MEGATRON_LM": "Megatron-LM",
    "XLA": "XLA devices",
}


def check_supported(accelerator: Any) -> None:
    """Raise ValueError with the reason when a run cannot be observed."""
    kind = accelerator.distributed_type.name
    if kind in _REFUSED:
        raise ValueError(f"a run with Accelerate is not measured under {_REFUSED[kind]}")
    if kind == "FSDP" and not getattr(accelerator, "is_fsdp2", False):
        raise ValueError(
            "the first FSDP flattens the parameters, which mixes the layers: FullyShardedDataParallelPlugin("
            "fsdp_version=2) is measured"
        )


def measures(accelerator: Any, model: Any) -> bool:
    """Whether this process measures: the main one, and of a sharded model all."""
    models = [*accelerator._models, *(model if isinstance(model, (list, tuple)) else [model])]
    return accelerator.is_main_process or any(hasattr(p, "device_mesh") for m in models for p in m.parameters())


def bare(model: Any) -> Any:
    """The user's own module inside of what wraps it for several processes or compiles it; of a list, of each."""
    if isinstance(model, (list, tuple)):
        return [bare(part) for part in model]
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while True:
        inner = model.module if isinstance(model, wrappers) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


class Tap:
    """Calls something before and after a method of one object, with its arguments.

    Args:
        owner: the object.
        name: of its method.
        before: called without arguments.
        after: called with the method's arguments.
    """

    def __init__(
        self,
        owner: Any,
        name: str,
        *,
        before: Callable[[], None] | None = None,
        after: Callable[..., None] | None = None,
    ) -> None:
        self._owner, self._name, self._earlier = owner, name, vars(owner).get(name)
        original = getattr(owner, name)

        @functools.wraps(original)
        def tapped(*args: Any, **kwargs: Any) -> Any:
            if before is not None and not self._is_removed:
                before()
            result = original(*args, **kwargs)
            if after is not None and not self._is_removed:
                after(*args, **kwargs)
            return result

        self._is_removed, self._tapped = False, tapped
        setattr(owner, name, tapped)

    def remove(self) -> None:
        """Put the method back, unless somebody has wrapped it since: then only pass calls on."""
        self._is_removed = True
        if vars(self._owner).get(self._name) is self._tapped:
            delattr(self._owner, self._name)
            if self._earlier is not None:
                setattr(self._owner, self._name, self._earlier)


class Trackers:
    """Gives an accelerator's trackers numbers under the step at which they were measured."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self._muted: set[int] = set()

    def give(self, values: dict[str, float], step: int) -> None:
        """Give every tracker the numbers of a step; one that fails gets none from then on."""
        for tracker in self._accelerator.trackers:
            if id(tracker) in self._muted or tracker.name in _COUNTS_CALLS:
                continue
            try:
                _give(tracker, values, step)
            except Exception:
                self._muted.add(id(tracker))
                logger.exception(
                    "thermoclaw: %s did not take the numbers; it gets none from here on", type(tracker).__name__
                )


def _give(tracker: Any, values: dict[str, float], step: int) -> None:
    """W&B's steps never go back, so there the numbers ride on the row that is open, with a step axis of their own."""
    if tracker.name != "wandb":
        tracker.log(values, step=step)
        return
    run = tracker.tracker
    run.define_metric(STEP, hidden=True)
    run.define_metric(f"{PREFIX}*", step_metric=STEP)
    run.log({**values, STEP: step}, commit=False)


def say_above(text: str) -> None:
    """Print above a progress bar, if there is one."""
    say(text, getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "write", print))
