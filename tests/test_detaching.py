"""A failed integration lets go of its observer, unless other processes wait for that observer at each step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest


class Stub:
    """An observer that knows whether it was closed."""

    def __init__(self, *, has_peers: bool) -> None:
        self.has_peers, self.closed = has_peers, False

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("has_peers", [False, True])
def test_lightning(has_peers: bool) -> None:
    module = pytest.importorskip("thermoclaw.integrations.lightning")
    callback, observer = module.ThermoclawLightning(), Stub(has_peers=has_peers)
    callback._watches = [SimpleNamespace(observer=observer)]
    callback.detach()
    assert observer.closed is not has_peers
    callback._close()
    assert observer.closed


@pytest.mark.parametrize("has_peers", [False, True])
def test_accelerate(has_peers: bool) -> None:
    module = pytest.importorskip("thermoclaw.integrations.accelerate")
    observed: Any = object.__new__(module.Observed)
    observer, undone = Stub(has_peers=has_peers), []
    observed._undo, observed._watch = [lambda: undone.append(1)], SimpleNamespace(observer=observer)
    observed.detach()
    assert undone == [1]
    assert observer.closed is not has_peers
    observed._close()
    assert observer.closed
