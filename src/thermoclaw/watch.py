"""Watching what modules put out: forward hooks that hand rows to a sampler, and the events that come of them."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from thermoclaw.diagnosis.checks import KIND
from thermoclaw.sampler import INPUT, Sampler, check_settings, first_tensor, input_of

logger = logging.getLogger("thermoclaw")

MOST_EVENTS, KEPT_FIRST, KEPT_LAST = 128, 16, 64  # of one name
SILENT = 128  # steps after which a hook that never fired is told of
DEFAULT_ROWS = 256


class Notes:
    """Events of the checks of one name, at the attachment that they belong to; old ones are thinned, never cut short.

    Args:
        attachment: of the optimizer; it is not kept alive.
        name: of what is looked at.
        joint_embedding: whether the loss pulls embeddings together.
    """

    def __init__(self, attachment: Any, name: str, *, joint_embedding: bool) -> None:
        self._attachment = weakref.ref(attachment)
        self.name, self.joint_embedding = name, joint_embedding

    def attachment(self) -> Any:
        """The attachment, or None once it is gone or measures no more."""
        found = self._attachment()
        return found if found is not None and not found.closed and not found.failed else None

    def put(self, step: int, values: dict[str, float]) -> None:
        """Add a check to the run's events."""
        attachment = self._attachment()
        if attachment is None:
            return
        event = {"kind": KIND, "step": step, "layer": self.name, "joint_embedding": self.joint_embedding}
        attachment.events.append({**event, **values})
        mine = [e for e in attachment.events if e.get("kind") == KIND and e.get("layer") == self.name]
        if len(mine) > MOST_EVENTS:
            gone = {id(e) for e in mine[KEPT_FIRST:-KEPT_LAST:2]}
            attachment.events[:] = [e for e in attachment.events if id(e) not in gone]


def steps_made(attachment: Any) -> int:
    """Optimizer steps made so far; never waits."""
    meter = attachment.meter
    made: int = meter.intake.start_step + meter.num_calls - meter.intake.num_skipped
    return made


class _Hook:
    """Calls a watch for as long as it lives. In a copy of the module, or one that was pickled, it is idle."""

    def __init__(self, watch: Watch) -> None:
        self._watch = weakref.ref(watch)

    def __call__(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling():  # inside of a graph nothing may be added; this line is compiled away
            return
        watch = self._watch()
        if watch is not None:
            watch._see(args, output)

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _idle, ()


def _idle() -> Callable[..., None]:
    return _nothing


def _nothing(*_: Any) -> None:
    """The hook of a copy."""


class Watch:
    """What `Observer.watch` returns: a forward hook on one module. `remove()` takes it off.

    Attributes:
        name: under which its checks stand in the record.
        num_checks: checks made so far.
    """

    def __init__(
        self,
        attachment: Any,
        module: nn.Module,
        name: str,
        *,
        every: int,
        rows: int,
        features: Callable[[Any], Tensor] | None,
        joint_embedding: bool,
    ) -> None:
        self.name = name
        self._notes = Notes(attachment, name, joint_embedding=joint_embedding)
        self._sampler = Sampler(every=every, rows=rows)
        self._features = features
        self._is_off = self._is_told = self._has_fired = False
        self._module = weakref.ref(module)
        self._handle = module.register_forward_hook(_Hook(self))
        self._finalizer = weakref.finalize(self, self._handle.remove)

    @property
    def num_checks(self) -> int:
        """Checks made so far."""
        return self._sampler.num_checks

    def is_of(self, module: nn.Module) -> bool:
        """Whether this is the module that is watched."""
        return self._module() is module and not self._is_off

    def remove(self) -> None:
        """Take the hook off; checks that are complete stay in the record. More than once is fine."""
        self._close()
        drop_watch(self._notes.attachment(), self)

    def catch_up(self) -> None:
        """Put every complete check into the record. May wait for the device."""
        attachment = self._notes.attachment()
        if attachment is not None and not self._is_off:
            self._guard(attachment, lambda: self._hand_on(0, everything=True))

    def on_rows(self, closing: bool) -> None:
        """Called by the attachment when rows reached the host, and at its end."""
        attachment = self._notes.attachment()
        if closing:
            self._close()
        elif attachment is not None and self._is_silent() and steps_made(attachment) >= SILENT:
            self._is_told = True
            logger.warning(
                "thermoclaw: %s is watched and was never seen to run in training mode: it is inside of a compiled "
                "model, in eval mode, or unused. RepresentationMonitor(observer).observe(features) looks anyway.",
                self.name,
            )

    def _is_silent(self) -> bool:
        return not (self._has_fired or self._is_told or self._is_off)

    def _close(self) -> None:
        if not self._is_off:
            self._sampler.finish()
            self._hand_on(0, everything=True)
            self._is_off = True
            self._finalizer()

    # -- the hot path -------------------------------------------------------------------------------------------------

    def _see(self, args: tuple[Any, ...], output: Any) -> None:
        module, attachment = self._module(), self._notes.attachment()
        if self._is_off or module is None or attachment is None or attachment.num_pauses or not module.training:
            return
        self._guard(attachment, lambda: self._take(steps_made(attachment) + 1, args, output))

    def _take(self, step: int, args: tuple[Any, ...], output: Any) -> None:
        self._has_fired = True
        if _is_traced():
            return
        if self._sampler.wants(step):
            with torch.no_grad():
                rows = rows_of(output, self._features)
                given = input_of(args, len(rows))
                self._sampler.take({"features": rows} if given is None else {"features": rows, INPUT: given})
        self._hand_on(step)

    def _hand_on(self, step: int, *, everything: bool = False) -> None:
        for then, found in self._sampler.due(step, everything=everything):
            given = found.get(INPUT, {})
            seen = {f"input_{name}": given[name] for name in ("scale", "spread") if name in given}
            self._notes.put(then, {**found["features"], **seen})

    def _guard(self, attachment: Any, work: Callable[[], None]) -> None:
        if not guarded(attachment, self.name, work):
            self._is_off = True
            self._finalizer()


def guarded(attachment: Any, name: str, work: Callable[[], None]) -> bool:
    """Whether the work was done; an error is said, and raised only where the observer is strict."""
    try:
        work()
    except Exception:
        if attachment.strict:
            raise
        logger.exception("thermoclaw: looking at %s failed and is off from here on; training goes on", name)
        return False
    return True


def rows_of(output: Any, features: Callable[[Any], Tensor] | None) -> Tensor:
    """The tensor [N, …] in what a module puts out, without its graph.

    Raises:
        TypeError: there is none, or it is no whole one.
    """
    chosen = features(output) if features is not None else first_tensor(output)
    if not isinstance(chosen, Tensor) or not chosen.ndim:
        raise TypeError(f"the features are a {type(chosen).__name__}: give a tensor with a row for each example")
    if hasattr(chosen, "to_local"):
        raise TypeError("the features are a DTensor: give features=lambda out: out.to_local() where its rows are whole")
    return chosen.detach()


def _is_traced() -> bool:
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return True
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def watch_module(
    attachment: Any,
    model: Any,
    module: Any,
    name: str | None,
    *,
    every: int,
    rows: int,
    features: Callable[[Any], Tensor] | None,
    joint_embedding: bool,
) -> Watch:
    """A watch on a module, kept by the attachment; the one that is there already where it is watched under this name.

    Raises:
        TypeError, ValueError: an argument is not what it should be.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"watch takes a module, not {type(module).__name__}: observer.watch(model.encoder)")
    check_settings(every, rows, features)
    if attachment.closed:
        raise ValueError("the observer is closed: watch before close()")
    name = str(name) if name is not None else _name_of(model, module)
    for there in _watches.get(attachment, ()):
        if isinstance(there, Watch) and there.is_of(module) and there.name == name:
            return there
    watch = Watch(attachment, module, name, every=every, rows=rows, features=features, joint_embedding=joint_embedding)
    add_watch(attachment, watch)
    return watch


_watches: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()


def add_watch(attachment: Any, watch: Any) -> None:
    """Let an attachment keep what looks at representations for it, and tell it of rows and of the end."""
    _watches.setdefault(attachment, []).append(watch)
    attachment.on_rows.append(watch.on_rows)


def drop_watch(attachment: Any, watch: Any) -> None:
    """Let an attachment forget what was added."""
    if attachment is not None:
        _watches[attachment] = [other for other in _watches.get(attachment, ()) if other is not watch]
        attachment.on_rows = [tell for tell in attachment.on_rows if tell != watch.on_rows]


def catch_up(attachment: Any) -> None:
    """Put every complete check of an attachment into its events."""
    for watch in _watches.get(attachment, ()):
        watch.catch_up()


def _name_of(model: Any, module: nn.Module) -> str:
    for part in model if isinstance(model, list) else [model]:
        with contextlib.suppress(Exception):
            for name, found in part.named_modules():
                if found is module:
                    return name or type(module).__name__
    return type(module).__name__
