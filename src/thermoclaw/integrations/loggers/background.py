"""Calls that may take long, on a thread of their own, so that training does not wait for a server."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable

LIMIT = 256


class Background:
    """Makes calls one after another on a thread. After one that failed it makes no more.

    Args:
        name: of the thread.
        limit: calls that may wait.
    """

    def __init__(self, name: str, *, limit: int = LIMIT) -> None:
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(limit)
        self._error: Exception | None = None
        self._failed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def submit(self, call: Callable[[], None]) -> None:
        """Have a call made later; returns at once.

        Raises:
            RuntimeError: as many calls as may wait are waiting.
            Exception: what an earlier call raised.
        """
        self._check()
        if not self._thread.is_alive():
            self._thread.start()
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            raise RuntimeError(f"{self._calls.maxsize} calls wait for an answer: the server is too slow") from None

    def close(self, *, timeout_s: float = 60.0) -> None:
        """Wait until all is done.

        Raises:
            RuntimeError: it took too long, and the rest is given up.
            Exception: what a call raised.
        """
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._calls.put(None, timeout=timeout_s)
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                raise RuntimeError(f"no answer within {timeout_s:.0f} s; what was not sent by then is given up")
        self._check()

    def _check(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        while True:
            call = self._calls.get()
            if call is None:
                return
            try:
                if not self._failed:
                    call()
            except Exception as error:
                self._error, self._failed = error, True
