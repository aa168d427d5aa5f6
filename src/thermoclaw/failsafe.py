"""Training goes on whatever fails: an error of ours turns measuring off, one of a user's callback is the user's own."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

logger = logging.getLogger("thermoclaw")


class Failsafe:
    """What can fail, is told once, and is off from then on.

    Args:
        strict: raise errors instead of logging them.

    Attributes:
        strict: see above.
        closed: nobody wants measurements any more.
        failed: there was an error.
    """

    def __init__(self, *, strict: bool) -> None:
        self.strict, self.closed, self.failed = strict, False, False
        self._warned: set[str] = set()

    @property
    def is_off(self) -> bool:
        """Whether nothing is measured any more."""
        return self.closed or self.failed

    def guard(self, work: Callable[[], None]) -> None:
        """Do some work unless measuring is off; where it fails, what follows is done all the same."""
        if self.is_off:
            return
        try:
            work()
        except Exception as error:
            if self.strict:
                raise
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Measuring is off from here on; said once. Called where the error is being handled."""
        if self.failed:
            return
        self.failed = True
        logger.exception(
            "thermoclaw: measuring failed and is off from here on; training goes on. What was recorded up to "
            "now can still be diagnosed. Please report this traceback."
        )

    def tell(self, listener: Callable[[Any], None], what: Any, *, given_to: str) -> None:
        """Call a user's callback; its errors are its own, and measuring goes on."""
        try:
            listener(what)
        except Exception:
            if self.strict:
                raise
            logger.exception("thermoclaw: a callback given to %s failed; measuring goes on", given_to)

    def warn_once(self, key: str, message: str) -> None:
        """Log a warning the first time it comes up."""
        if key not in self._warned:
            self._warned.add(key)
            logger.warning("thermoclaw: %s", message)


_S = TypeVar("_S", bound=Failsafe)


def never_stops(door: Callable[..., None]) -> Callable[..., None]:
    """For what hooks and users call: an error of ours goes no further than to the log, unless `strict` asks for it."""

    @functools.wraps(door)
    def guarded(self: _S, *args: Any, **kwargs: Any) -> None:
        try:
            door(self, *args, **kwargs)
        except Exception as error:
            if self.strict:
                raise
            self.fail(error)

    return guarded
