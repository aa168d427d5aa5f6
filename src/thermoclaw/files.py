"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any


class atomic_file:
    """Open a file that appears under its name only when it was written whole."""

    def __init__(self, target: str | os.PathLike[str], mode: str) -> None:
        self._target, self._mode = Path(target), mode

    def __enter__(self) -> Any:
        folder = self._target.parent
        self._temp = folder / f".{self._target.name[:40]}.{os.urandom(6).hex()}.part"
        text = "b" not in self._mode
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._handle = open(
                self._temp,
                self._mode.replace("w", "x"),
                newline="" if text else None,
                encoding="utf-8" if text else None,
            )
        except OSError as error:
            raise OSError(
                f"cannot write {self._target}: {error.strerror or error}; choose a folder that can be written"
            ) from error
        return self._handle

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self._handle.close()  # on a full disk, what was buffered may fail only here
            if kind is None:
                os.replace(self._temp, self._target)
        finally:
            with contextlib.suppress(OSError):
                self._temp.unlink(missing_ok=True)
