"""Hands a run's rows, events and description to its writer, when they are on the host anyway."""

from __future__ import annotations

import atexit
import dataclasses
import logging
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from thermoclaw.record import LayerInfo
from thermoclaw.runs.claim import claim, take_over
from thermoclaw.runs.rows import Rows
from thermoclaw.runs.store import capacity_of, least_bytes
from thermoclaw.runs.writer import Description, Writer

logger = logging.getLogger("thermoclaw")

DEFAULT_BYTES = 64 << 20


class Keeper:
    """Keeps an attachment's run in a directory; the attachment calls it when rows reached the host, and at its end.

    Args:
        attachment: whose run it is. It is not kept alive.
        run_dir: where to; a directory that holds another run gets a sibling with a number.
        max_bytes: what the directory may take.

    Raises:
        OSError: it cannot be made or written.
        ValueError: `max_bytes` is too little for this model.
    """

    def __init__(self, attachment: Any, run_dir: str | os.PathLike[str], *, max_bytes: int = DEFAULT_BYTES) -> None:
        _check_size(attachment, max_bytes)
        if attachment.run_id is None:
            attachment.run_id = os.urandom(8).hex()
        self._max_bytes = max_bytes
        self._claim = claim(Path(run_dir), run_id=attachment.run_id)
        self._attachment = weakref.ref(attachment)
        self._writer: Writer | None = None
        self._last_step = 0  # of the rows handed over
        self._from_step = 0  # where the run goes on
        self._layers: tuple[LayerInfo, ...] = ()
        self._num_events, self._last_event = -1, None  # handed over
        self._is_done, self._pid = False, os.getpid()
        at_exit = _call_weakly(self)
        atexit.register(at_exit)
        self._forget: Callable[[], object] = lambda: atexit.unregister(at_exit)
        attachment.keepers.append(self)

    @property
    def folder(self) -> Path:
        """The directory that is written."""
        return self._claim.folder

    def go_on(self) -> None:
        """The attachment goes on with an earlier run: go on in its directory, if it is there.

        Raises:
            OSError: the directory cannot be written.
        """
        attachment = self._attachment()
        if attachment is None or self._writer is not None:
            return
        found = take_over(self._claim.wanted, run_id=attachment.run_id)
        if found is not None and found.folder != self._claim.folder:
            self._claim.release()
        self._claim = found or dataclasses.replace(self._claim, run_id=attachment.run_id)
        self._from_step = attachment.meter.intake.last_step

    def __call__(self, closing: bool) -> None:
        """Hand over what has reached the host. Never waits, except for the disk when closing."""
        attachment = self._attachment()
        if attachment is None or self._is_done or os.getpid() != self._pid:
            return
        if closing:
            self._finish(attachment, testify=True)
        elif self._writer is None or not self._writer.is_full:
            self._hand_over(attachment, stop=attachment.meter.due_step + 1)

    def at_exit(self) -> None:
        """The process ends and nobody has closed the run: keep what is on the host."""
        attachment = self._attachment()
        if attachment is None or self._is_done or os.getpid() != self._pid:
            return
        try:
            waits_for_nobody = attachment.meter.is_on_host
            if waits_for_nobody:
                attachment.catch_up()
            self._finish(attachment, testify=waits_for_nobody)
        except Exception:
            logger.exception("thermoclaw: the end of the run was not kept in %s", self.folder)

    def _finish(self, attachment: Any, *, testify: bool) -> None:
        self._is_done = True
        self._forget()
        if len(attachment.meter.intake.history) and attachment.has_stepped:
            self._hand_over(attachment, stop=None, describe=True)
            assert self._writer is not None
            if testify:
                self._writer.give(None, events=list(attachment.witnesses.heard(attachment.record()).events))
            self._writer.finish()
        elif not self._claim.goes_on:
            self._claim.release()

    def _hand_over(self, attachment: Any, *, stop: int | None, describe: bool = False) -> None:
        writer = self._writer or self._begin(attachment)
        if writer.is_off:
            return
        layers = attachment.meter.layout.layers
        described = None
        if describe or layers is not self._layers or writer.wants_description:
            self._layers = layers
            described = Description(layers, attachment.meta())
        writer.give(self._rows(attachment, stop), events=self._events(attachment), described=described)

    def _begin(self, attachment: Any) -> Writer:
        self._writer = Writer(self._claim, max_bytes=self._max_bytes, last_step=self._from_step)
        weakref.finalize(attachment, self._writer.end).atexit = False
        if self.folder != self._claim.wanted and not self._claim.goes_on:
            logger.warning("thermoclaw: %s holds another run: this one is kept in %s", self._claim.wanted, self.folder)
        return self._writer

    def _rows(self, attachment: Any, stop: int | None) -> Rows:
        history, start = attachment.meter.intake.history, self._last_step + 1
        steps, layer_values, run_values = history.arrays(start=start, stop=stop)
        if len(steps):
            self._last_step = int(steps[-1])
        return Rows(history.orders(start=start, stop=stop), steps, layer_values, run_values)

    def _events(self, attachment: Any) -> list[dict[str, Any]] | None:
        """All events, if any came or went since the last time."""
        events = attachment.events
        last = events[-1] if events else None
        if len(events) == self._num_events and last is self._last_event:
            return None
        self._num_events, self._last_event = len(events), last
        return list(events)


def _check_size(attachment: Any, max_bytes: int) -> None:
    history = attachment.meter.intake.history
    _, layer_values, _ = history.arrays(stop=0)
    num_layers, dtype = layer_values.shape[1], layer_values.dtype
    least = least_bytes(num_layers, dtype)
    if max_bytes < least:
        rows = max(capacity_of(max_bytes, num_layers=num_layers, dtype=dtype), 0)
        raise ValueError(
            f"run_bytes={max_bytes} is room for {rows} rows of these {num_layers} layers: give at least {least}"
        )


def _call_weakly(keeper: Keeper) -> Callable[[], None]:
    ref = weakref.ref(keeper)

    def at_exit() -> None:
        alive = ref()
        if alive is not None:
            alive.at_exit()

    return at_exit
