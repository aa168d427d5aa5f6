"""What `observer.step()` returns: a mapping in the layout of 0.1.6, read from the device only when somebody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

from thermoclaw.record import Record

_RUN = ("D", "rho_mean", "R_median", "E_param_dist")
_LAYER = {
    "sigma": "sigma",
    "sigma_ema": "sigma_ema",
    "sigma_star": "sigma_star",
    "r": "r",
    "rho": "coherence",
    "lr": "lr",
    "gnorm_sq": "grad_sq",
}
KEYS = ("step", "epoch", "optimizer", *_RUN, "loss", "layers")


def _plain(value: float) -> float | None:
    """None where a quantity is not defined."""
    return None if value != value else float(value)


def snapshot_dict(record: Record, row: int) -> dict[str, Any]:
    """One row of a record in the layout of thermoclaw 0.1.6."""
    layers = []
    columns = {key: record[name][row] for key, name in _LAYER.items()}
    for i, layer in enumerate(record.layers):
        values = {key: float(column[i]) for key, column in columns.items()}
        if values["rho"] != values["rho"]:
            values["rho"] = 0.0  # as in 0.1.6, before there are two gradients
        layers.append({"name": layer.name, "ltype": layer.ltype, **values})
    snap: dict[str, Any] = {
        "step": int(record.steps[row]),
        "epoch": int(record["epoch"][row]),
        "optimizer": record.optimizer,
    }
    snap.update({name: _plain(record[name][row]) for name in _RUN})
    if snap["rho_mean"] is None:
        snap["rho_mean"] = 0.0
    snap["loss"] = _plain(record.loss[row])
    snap["layers"] = layers
    return snap


class Snapshot(Mapping[str, Any]):
    """A read-only mapping with the keys `KEYS`; the first look waits for the device, making one costs nothing."""

    __slots__ = ("_read", "_value")

    def __init__(self, read: Callable[[], dict[str, Any]]) -> None:
        self._read: Callable[[], dict[str, Any]] | None = read
        self._value: dict[str, Any] = {}

    def _dict(self) -> dict[str, Any]:
        if self._read is not None:
            self._value = self._read()
            self._read = None
        return self._value

    def __getitem__(self, key: str) -> Any:
        return self._dict()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._dict())

    def __len__(self) -> int:
        return len(self._dict())

    def __repr__(self) -> str:
        return repr(self._dict())

    def __bool__(self) -> bool:
        return True


class StepHistory(Sequence[dict[str, Any]]):
    """The recorded steps as a list of dictionaries in the layout of 0.1.6, each built when it is asked for."""

    def __init__(self, record: Record, build: Callable[[Record, int], Any] = snapshot_dict) -> None:
        self._record, self._build = record, build

    def __len__(self) -> int:
        return len(self._record)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self._build(self._record, i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"step_history has {len(self)} rows, no row {index}")
        return self._build(self._record, index % len(self))
