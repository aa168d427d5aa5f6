"""What a framework calls must not stop its training: an error is logged once, and turns off what failed."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

logger = logging.getLogger("thermoclaw")


class Stoppable(Protocol):
    """Something that a framework calls, and that can be turned off."""

    strict: bool
    off: bool

    def detach(self) -> None:
        """Take every hook off."""


_S = TypeVar("_S", bound=Stoppable)


def never_stops(event: Callable[..., None]) -> Callable[..., None]:
    """An unexpected error in an event is logged once and turns its owner off (or is raised, if that is `strict`)."""

    @functools.wraps(event)
    def guarded(self: _S, *args: Any, **kwargs: Any) -> None:
        if self.off:
            return
        try:
            event(self, *args, **kwargs)
        except Exception:
            if self.strict:
                raise
            self.off = True
            self.detach()
            logger.exception(
                "thermoclaw: %s failed in %s and is off from here on; training goes on. Please report this traceback.",
                type(self).__name__,
                event.__name__,
            )

    return guarded
