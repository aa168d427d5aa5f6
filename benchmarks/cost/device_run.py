"""A model in training on a device, with or without all consumers, each step marked on the device's own time line."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from cost import models
from cost.instruments import Thermoclaw


class Clock:
    """Times between places in the program, on the device's own time line."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def mark(self) -> Any:
        """A place: a recorded event, or the time."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self, mark: Any) -> None:
        """Until the device has come to the place."""
        if self.cuda:
            mark.synchronize()

    def seconds(self, start: Any, stop: Any) -> float:
        """From one place to a later one, both waited for."""
        return start.elapsed_time(stop) / 1e3 if self.cuda else stop - start


SCOPES = ("step", "instrument", "nowhere")


@contextlib.contextmanager
def no_waiting(on: bool) -> Iterator[None]:
    """Torch raises an error at whatever waits for the device."""
    if not on:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Run:
    """A model in training, with or without an observer; `step` leaves marks of its parts.

    `scope` is where nothing may wait for the device: the whole step, the instrument's part of it, or nowhere.
    """

    def __init__(self, name: str, device: str, *, batch: int = 0, tokens: int = 0, compiled: bool = False) -> None:
        self.device, self.clock, self.scope = device, Clock(device), "step"
        self.model = models.build(name, device=device)
        self.forward = torch.compile(self.model) if compiled else self.model
        self.params = list(self.model.parameters())
        self.optimizer = models.make_optimizer("adamw-fused", self.params)
        self.instrument: Thermoclaw | None = None
        self.item_norms = self.tracing = False
        self.inside: list[tuple[Any, Any, float]] = []  # of the instrument: marks around it, seconds of the host
        self.count = 0
        generator = torch.Generator(device).manual_seed(1)
        self.real = models.has_forward(name)
        if self.real:
            self.batches = [models.make_batch(name, batch=batch, tokens=tokens, generator=generator) for _ in range(4)]
        else:
            models.set_gradients(self.model, generator)

    def attach(self) -> None:
        """Put all consumers around the optimizer, with marks around what they do."""
        self.instrument = Thermoclaw({})
        self.instrument.attach(self.model, self.optimizer)
        attachment = self.instrument.attachment
        assert attachment is not None, "the GPU part measures this version, not 0.1.6"
        attachment.before_step = self._marked(attachment.before_step)
        attachment.after_step = self._marked(attachment.after_step)

    def held_bytes(self) -> dict[str, int]:
        """What the observer holds, on the device and on the host."""
        assert self.instrument is not None
        return dict(self.instrument.attachment.meter.num_bytes())

    def backend(self) -> list[str]:
        """Which code measures, by its class names."""
        assert self.instrument is not None
        parts = getattr(self.instrument.attachment.meter, "_parts", [])
        return sorted({type(part.backend).__name__ for part in parts})

    def _checked(self, scope: str) -> Any:
        return no_waiting(self.clock.cuda and self.scope == scope)

    def _marked(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*args: Any, **kwargs: Any) -> Any:
            noted = torch.profiler.record_function("instrument") if self.tracing else contextlib.nullcontext()
            host, start = time.perf_counter(), self.clock.mark()
            with noted, self._checked("instrument"):
                result = call(*args, **kwargs)
            self.inside.append((start, self.clock.mark(), time.perf_counter() - host))
            return result

        return marked

    def step(self) -> dict[str, Any]:
        """One training step; nothing in it waits for the device."""
        with self._checked("step"):
            return self._step()

    def _step(self) -> dict[str, Any]:
        mark, self.inside = self.clock.mark, []
        marks = [mark()]
        if self.real:
            inputs, targets = self.batches[self.count % len(self.batches)]
            with torch.autocast(self.device, dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(self.forward(inputs), targets)
            loss.backward()
        else:
            loss = torch.zeros((), device=self.device)
        marks.append(mark())
        nn.utils.clip_grad_norm_(self.params, 1.0 if self.real else 1e9)
        marks.append(mark())
        if self.item_norms:
            for p in self.params:
                assert p.grad is not None
                p.grad.norm().item(), p.detach().norm().item()
        self.optimizer.step()
        if self.instrument is not None:
            self._marked(self.instrument.after_step)(loss.detach())
        if self.real:
            self.optimizer.zero_grad(set_to_none=True)
        marks.append(mark())
        self.count += 1
        return {"marks": marks, "inside": self.inside}

    def timed_step(self) -> dict[str, float]:
        """One step from an idle device to an idle device, on the host's clock and on the device's."""
        start = time.perf_counter()
        told = self.step()
        sent = time.perf_counter()
        self.clock.wait(told["marks"][-1])
        done = time.perf_counter()
        seconds = self.clock.seconds
        begun, passed, clipped, end = told["marks"]
        return {
            "wall_s": done - start,
            "host_s": sent - start,
            "device_s": seconds(begun, end),
            "forward_backward_s": seconds(begun, passed),
            "clip_s": seconds(passed, clipped),
            "after_clip_s": seconds(clipped, end),
            "instrument_s": sum(seconds(a, b) for a, b, _ in told["inside"]),
            "instrument_host_s": sum(host for _, _, host in told["inside"]),
        }

    def steps_without_wait(self, count: int) -> float:
        """Seconds of a step on the host's clock, when nothing waits before the last of so many."""
        start = time.perf_counter()
        for _ in range(count):
            told = self.step()
        self.clock.wait(told["marks"][-1])
        return (time.perf_counter() - start) / count
