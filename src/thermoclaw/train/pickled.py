"""Reads the pickles of CIFAR-10 without letting them do anything: no class of theirs is made, not even NumPy's.

A pickle is a program. Here the few names that it may call for are stand-ins, which keep what they are given; every
other name is refused before anything happens, and an array is built from the bytes alone.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from thermoclaw.train.errors import DataError
from thermoclaw.wording import one_line

MOST_BYTES = 256 << 20


class _Type:
    """Stands in for numpy.dtype."""

    def __init__(self, code: Any = None, *flags: Any) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: Any) -> None:
        """Byte order and fields, which bytes do not have."""


class _Array:
    """Stands in for numpy.ndarray: what it was filled with."""

    def __init__(self, *arguments: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def read(self) -> NDArray[np.uint8]:
        """The array, of bytes and nothing else."""
        match self.state:
            case (_, tuple() as shape, _Type(code="u1"), fortran, bytes() as raw):
                pass
            case _:
                raise DataError("it holds an array that is not one of bytes (uint8)")
        if not all(type(side) is int and side >= 0 for side in shape) or math.prod(shape) != len(raw):
            raise DataError("it holds an array whose shape is not that of its contents")
        return np.frombuffer(raw, dtype=np.uint8).reshape(shape, order="F" if fortran else "C")


def _encode(text: Any, coding: Any = "latin1") -> bytes:
    """Stands in for _codecs.encode, by which Python 3 writes bytes for Python 2."""
    if not isinstance(text, str) or coding != "latin1":
        raise DataError("it is not one that the CIFAR-10 authors' program wrote")
    return text.encode("latin1")


def _reconstruct(*arguments: Any) -> _Array:
    return _Array()


def _frombuffer(raw: Any, kind: Any, shape: Any, order: Any = "C") -> _Array:
    """Stands in for the way in which newer pickles keep arrays."""
    array = _Array()
    array.state = (1, shape, kind, order == "F", bytes(raw) if isinstance(raw, bytearray) else raw)
    return array


_NUMPY = ("numpy.core", "numpy._core")
_STANDINS: dict[tuple[str, str], Any] = {
    **{(f"{package}.multiarray", "_reconstruct"): _reconstruct for package in _NUMPY},
    **{(f"{package}.numeric", "_frombuffer"): _frombuffer for package in _NUMPY},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
}


class _Reader(pickle._Unpickler):
    """The unpickler that is written in Python: its memo is a dictionary, which no number in a file makes large."""

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in.

        Raises:
            DataError: the pickle asks for anything else.
        """
        if (module, name) not in _STANDINS:
            raise DataError(f"it asks for {module}.{name}, which images and labels have no need of")
        return _STANDINS[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Refuse what is kept elsewhere."""
        raise DataError("it refers to something outside of itself")

    def _fill(self) -> None:
        """Fill an array or a type; of nothing else are attributes set."""
        if not isinstance(self.stack[-2], (_Array, _Type)):  # type: ignore[attr-defined]
            raise DataError("it sets attributes of something that is no array")
        super().load_build()  # type: ignore[misc]

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: _fill}


def read_pickle(path: Path) -> dict[str, Any]:
    """A pickled dictionary: arrays of bytes as arrays, everything else as it stands there.

    Raises:
        DataError: it is damaged, too large, or asks for anything else.
    """
    if path.stat().st_size > MOST_BYTES:
        raise DataError(f"{path} is larger than {MOST_BYTES >> 20} MiB, which no batch of CIFAR-10 is")
    try:
        whole = _Reader(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        if not isinstance(whole, dict):
            raise DataError("it is not a dictionary")
        return {_text(key): value.read() if isinstance(value, _Array) else value for key, value in whole.items()}
    except DataError as error:
        raise DataError(f"{path} was not read: {error}") from None
    except Exception as error:  # damage shows in many classes, memory that there is not among them
        raise DataError(f"{path} is not a readable pickle ({type(error).__name__}: {one_line(error, 160)})") from None


def _text(key: Any) -> str:
    return key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)
