"""Numbers and texts as a page can carry them: arrays in one compressed block, JSON that no text can break out of."""

from __future__ import annotations

import base64
import gzip
import json
import math
from typing import Any

import numpy as np

_KINDS = {"u1": np.uint8, "u2": np.uint16, "f4": np.float32, "f8": np.float64}


class Pack:
    """Gathers arrays into one block.

    Example:
        >>> pack = Pack()
        >>> pack.add([1.5, 2.5], "f4")
        {'kind': 'f4', 'at': 0, 'length': 2}
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._length = 0

    def add(self, values: Any, kind: str) -> dict[str, Any]:
        """Put an array in, flattened, little-endian; returns where it lies, for the page's script."""
        with np.errstate(over="ignore"):  # what single precision cannot hold is infinite
            array = np.ascontiguousarray(values, dtype=np.dtype(_KINDS[kind]).newbyteorder("<")).ravel()
        raw = array.tobytes()
        place = {"kind": kind, "at": self._length, "length": len(array)}
        raw += bytes(-len(raw) % 8)  # a browser's views of a block begin at multiples of their item
        self._parts.append(raw)
        self._length += len(raw)
        return place

    def text(self) -> str:
        """The block, compressed, in letters."""
        return squeezed(b"".join(self._parts))


def squeezed(raw: bytes) -> str:
    """Compressed and in letters; the same bytes give the same text."""
    return base64.b64encode(gzip.compress(raw, 6, mtime=0)).decode("ascii")


def safe_json(data: Any) -> str:
    r"""JSON for a script element: ASCII alone, with nothing in it that ends the element or begins a comment.

    Example:
        >>> safe_json({"name": "</script><!--"})
        '{"name":"\\u003c/script\\u003e\\u003c!--"}'
    """
    text = json.dumps(_plain(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(data: Any) -> Any:
    """Numpy's numbers as Python's, and what is not finite as null."""
    if isinstance(data, dict):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_plain(value) for value in data]
    if isinstance(data, (bool, np.bool_)):
        return bool(data)
    if isinstance(data, (int, np.integer)):
        return int(data)
    if isinstance(data, (float, np.floating)):
        return float(data) if math.isfinite(data) else None
    return data
