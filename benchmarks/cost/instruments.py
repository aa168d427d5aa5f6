"""What can be put around a training step, this package and its rivals, each as its users would do it.

An instrument's cost is timed where its work happens: in hooks (`Stopwatch`), before the optimizer's step and after it.
Cockpit computes inside the backward pass; its cost is the difference to the plain arm of the same round.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Stopwatch:
    """Adds up the time spent in wrapped callables; a wrapped call inside another counts once."""

    def __init__(self) -> None:
        self.total_s = 0.0
        self._depth = 0

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same callable, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.running():
                return call(*args, **kwargs)

        return timed

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of a block."""
        self._depth += 1
        start = time.perf_counter()
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self.total_s += time.perf_counter() - start

    def lap(self) -> float:
        """Time since the last lap."""
        total, self.total_s = self.total_s, 0.0
        return total


class Instrument:
    """No instrument: what the others are compared with."""

    cost_is = "timed"
    version = ""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.watch = Stopwatch()

    def attach(self, model: nn.Module, optimizer: Any) -> None:
        """Called once, before the first step."""

    def backward(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Forward and backward pass; the loss."""
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss.detach()

    def before_step(self) -> None:
        """Called with the gradients that the optimizer will use."""

    def after_step(self, loss: Tensor) -> None:
        """Called when the optimizer has stepped."""

    def held_bytes(self) -> int | None:
        """Bytes held, where the instrument can tell."""
        return None

    def chosen(self) -> dict[str, Any]:
        """What the instrument settled on by itself."""
        return {}


class Thermoclaw(Instrument):
    """Observer, entropy split and collapse detector: this version, or 0.1.6 where that is installed."""

    def attach(self, model: nn.Module, optimizer: Any) -> None:
        import thermoclaw

        self.version = thermoclaw.__version__
        self.old = self.version == "0.1.6"
        strict = {} if self.old else {"strict": True}  # an instrument that switched itself off would cost nothing
        self.observer = thermoclaw.Observer(model, optimizer, **strict, **self.settings)
        self.splitter = thermoclaw.EntropySplit(model, optimizer, self.observer)
        self.detector = thermoclaw.CollapseDetector(model, optimizer)
        self.attachment = getattr(self.observer, "_attachment", None)
        if self.attachment is not None:  # its hooks run inside optimizer.step(): time them apart from it
            self.attachment.before_step = self.watch.wrap(self.attachment.before_step)
            self.attachment.after_step = self.watch.wrap(self.attachment.after_step)

    def after_step(self, loss: Tensor) -> None:
        self.observer.step(loss=loss.item() if self.old else loss)  # 0.1.6 takes a number
        self.splitter.step()
        self.detector.step()

    def held_bytes(self) -> int | None:
        return None if self.attachment is None else sum(self.attachment.meter.num_bytes().values())

    def chosen(self) -> dict[str, Any]:
        cadence = getattr(getattr(self.attachment, "meter", None), "cadence", None)
        return {"every": cadence.every} if "budget" in self.settings and cadence is not None else {}


class ItemNorms(Instrument):
    """Two norms of every parameter, each read with `.item()`, as many training loops log them."""

    def attach(self, model: nn.Module, optimizer: Any) -> None:
        self.named = list(model.named_parameters())

    def before_step(self) -> None:
        self.row = {}
        for name, p in self.named:
            if p.grad is not None:
                self.row[f"grad/{name}"] = p.grad.norm().item()
                self.row[f"param/{name}"] = p.detach().norm().item()


class WandbWatch(Instrument):
    """`wandb.watch(model, log="all")` in an offline run: histograms of gradients and parameters."""

    def attach(self, model: nn.Module, optimizer: Any) -> None:
        import wandb

        self.version = wandb.__version__
        self.folder = tempfile.TemporaryDirectory(prefix="overhead-wandb-")
        settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
        self.run = wandb.init(project="overhead", mode="offline", dir=self.folder.name, settings=settings)
        self.pending = False
        self.run.watch(model, log="all", log_freq=self.settings["log_freq"])
        self.run._torch.log_tensor_stats = self.watch.wrap(self._noted(self.run._torch.log_tensor_stats))

    def _noted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any) -> None:
            self.pending = True
            call(*args)

        return noted

    def after_step(self, loss: Tensor) -> None:
        if self.pending:  # a step without histograms would be logged without wandb.watch as well
            self.run.log({})
            self.pending = False


class Cockpit(Instrument):
    """Cockpit with its least configuration, "economy", at every step."""

    cost_is = "difference"

    def attach(self, model: nn.Module, optimizer: Any) -> None:
        from importlib.metadata import version

        from backpack import extend
        from cockpit import Cockpit as Box
        from cockpit.utils.configuration import configuration

        self.version = version("cockpit-for-pytorch")
        extend(model)
        self.mean = extend(nn.CrossEntropyLoss())
        self.each = nn.CrossEntropyLoss(reduction="none")
        self.optimizer = optimizer
        self.box = Box(model.parameters(), quantities=configuration("economy"))
        self.count = 0

    def backward(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        logits = model(inputs)
        loss = self.mean(logits, targets)
        told = {
            "batch_size": len(targets),
            "individual_losses": self.each(logits, targets),
            "loss": loss,
            "optimizer": self.optimizer,
        }
        with self.box(self.count, info=told):
            loss.backward(create_graph=self.box.create_graph(self.count))
        self.count += 1
        return loss.detach()


INSTRUMENTS: dict[str, type[Instrument]] = {
    "plain": Instrument,
    "thermoclaw": Thermoclaw,
    "item norms": ItemNorms,
    "wandb.watch": WandbWatch,
    "cockpit": Cockpit,
}


def count_reads(work: Callable[[], Any]) -> int:
    """How many values the host asks tensors for (`.item()` and its like) while `work` runs."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):
        reads = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.reads += "_local_scalar_dense" in str(func)
            return func(*args, **(kwargs or {}))

    with Mode() as mode:
        work()
    return mode.reads


def read_memory(num_bytes: int) -> tuple[str, Callable[[], None]]:
    """The fastest plain read that torch has here, and a function that reads so many bytes by it.

    The bytes lie in one block of at most 256 MB, read more than once where a model has more.
    """
    block = torch.ones(max(min(num_bytes, 256_000_000) // 4, 1))
    whole, rest = divmod(num_bytes // 4, len(block))
    pieces = [block] * whole + ([block[:rest]] if rest else [])
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "sum": torch.sum,
        "dot": lambda x: torch.dot(x, x),
        "vector_norm": torch.linalg.vector_norm,
    }
    took = {}
    for name, way in ways.items():
        for _ in range(3):
            start = time.perf_counter()
            way(block)
            took[name] = min(time.perf_counter() - start, took.get(name, float("inf")))
    best = min(took, key=lambda name: took[name])

    def read() -> None:
        for piece in pieces:
            ways[best](piece)

    return best, read
