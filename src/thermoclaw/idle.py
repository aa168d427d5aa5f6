"""Parameters that no observed optimizer holds although they get gradients: told, unless somebody else moves them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor


class Idle:
    """Looks after parameters outside the optimizer, by their version counters. Never waits.

    Args:
        params: the parameters by name.
        is_anothers: whether one belongs to another optimizer that is observed.
    """

    def __init__(self, params: Mapping[str, Tensor], is_anothers: Callable[[Tensor], bool]) -> None:
        self._is_anothers = is_anothers
        self._versions = {name: p._version for name, p in params.items()}
        self._are_old = False  # weights may have been loaded since the versions were looked up
        self.told: dict[str, bool] = {}
        """Of those with a gradient: whether nobody moves them."""

    def look(self, params: Mapping[str, Tensor]) -> None:
        """Note which get gradients, and which were moved since the start; `params` as they are outside of it now."""
        if self._are_old:
            self._versions = {name: p._version for name, p in params.items()}
            self._are_old = False
        for name, p in params.items():
            if p._version != self._versions.get(name, p._version):
                self.told[name] = False
            elif p.grad is not None and name not in self.told:
                self.told[name] = not self._is_anothers(p)

    @property
    def names(self) -> list[str]:
        """Parameters that get gradients and are moved by nobody."""
        return [name for name, idle in self.told.items() if idle]

    def load(self, told: Mapping[str, bool]) -> None:
        """Go on from what was told before; weights are loaded with it, so versions are looked up anew."""
        self.told = {str(name): bool(idle) for name, idle in told.items()}
        self._are_old = True
