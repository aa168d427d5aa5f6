"""Puts everything back that a probe may change: parameters, buffers, module attributes, gradients, random states."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_ACCELERATORS = ("cuda", "xpu")


class RandomState:
    """The states of torch's generators, Python's and NumPy's, and of generators that modules or the loader own."""

    def __init__(self, models: list[nn.Module], loader: Any = None) -> None:
        owners: list[Any] = [module for model in models for module in model.modules()]
        owners += [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
        held = [value for owner in owners for value in getattr(owner, "__dict__", {}).values()]
        self._owned = list({id(v): v for v in held if isinstance(v, torch.Generator)}.values())

    def read(self) -> dict[str, Any]:
        """As it is now."""
        state: dict[str, Any] = {"cpu": torch.get_rng_state(), "python": random.getstate()}
        state["numpy"] = np.random.get_state()  # noqa: NPY002  (the global one, which user code may draw from)
        state["owned"] = [generator.get_state() for generator in self._owned]
        for name in _ACCELERATORS:
            module = getattr(torch, name, None)
            if module is not None and module.is_available() and module.is_initialized():
                state[name] = module.get_rng_state_all()
        if torch.backends.mps.is_available():
            state["mps"] = torch.mps.get_rng_state()
        return state

    def put(self, state: dict[str, Any]) -> None:
        """As it was then."""
        torch.set_rng_state(state["cpu"])
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])  # noqa: NPY002
        for generator, was in zip(self._owned, state["owned"], strict=True):
            generator.set_state(was)
        for name in _ACCELERATORS:
            if name in state:
                getattr(torch, name).set_rng_state_all(state[name])
        if "mps" in state:
            torch.mps.set_rng_state(state["mps"])


class _ModuleState:
    """One module's attributes, the contents of its containers, and copies of its buffers and other tensors."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._attributes = dict(vars(module))
        self._containers = {k: _copied(v) for k, v in self._attributes.items() if isinstance(v, (list, dict))}
        held = [v for v in self._attributes.values() if isinstance(v, Tensor)]
        held += [b for b in module._buffers.values() if b is not None]
        held = [t for t in held if not isinstance(t, nn.Parameter) and not _overlaps(t)]
        self._tensors = [(t, t.detach().clone()) for t in held]

    def tensors(self) -> Iterator[Tensor]:
        """The copies."""
        return (copy for _, copy in self._tensors)

    def put_back(self) -> None:
        attributes = vars(self._module)
        for name in [name for name in attributes if name not in self._attributes]:
            del attributes[name]
        attributes.update(self._attributes)
        for name, was in self._containers.items():
            _refill(attributes[name], was)
        for tensor, copy in self._tensors:
            tensor.data.copy_(copy)


def _overlaps(tensor: Tensor) -> bool:
    """Whether elements share memory, so that nothing can be written in place anyway."""
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _copied(container: Any) -> Any:
    return list(container) if isinstance(container, list) else dict(container)


def _refill(container: Any, was: Any) -> None:
    """A list or dictionary with its earlier elements, untouched where it has them."""
    if isinstance(container, list):
        if len(container) != len(was) or any(a is not b for a, b in zip(container, was, strict=True)):
            container[:] = was
    elif list(container) != list(was) or any(container[key] is not was[key] for key in was):
        container.clear()
        container.update(was)


class Guard:
    """Keeps what a probe may change and puts it back; `with Guard(...) as guard:`.

    Args:
        models: the modules.
        optimizer: whose parameters' gradients are set aside; its state is never touched.
        params: parameters that trial values will be written to, and those that a forward pass may renormalize.
        loader: what the batches are taken from.
    """

    def __init__(self, models: list[nn.Module], optimizer: Any, params: list[Tensor], loader: Any = None) -> None:
        self._models = models
        self._optimizer = optimizer
        self._params = params
        self.random = RandomState(models, loader)

    def __enter__(self) -> Guard:
        every = [p for model in self._models for p in model.parameters()]
        every += [p for group in self._optimizer.param_groups for p in group["params"]]
        self._start = self.random.read()
        self._modules = [_ModuleState(module) for model in self._models for module in model.modules()]
        self.kept = [p.detach().clone(memory_format=torch.preserve_format) for p in self._params]
        self._grads = [(p, p.grad) for p in {id(p): p for p in every}.values()]
        for p, _ in self._grads:
            p.grad = None
        return self

    def num_bytes(self) -> int:
        """Memory of the copies."""
        held = [*self.kept, *(t for state in self._modules for t in state.tensors())]
        return sum(t.numel() * t.element_size() for t in held)

    def rewind_modules(self) -> None:
        """Buffers and module attributes as they were."""
        for state in self._modules:
            state.put_back()

    def rewind_params(self) -> None:
        """Parameters as they were."""
        for p, was in zip(self._params, self.kept, strict=True):
            p.data.copy_(was)

    def __exit__(self, *_: object) -> None:
        for p, grad in self._grads:
            p.grad = grad
        self.random.put(self._start)
        self.rewind_params()
        self.rewind_modules()
