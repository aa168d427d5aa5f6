"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any


class atomic_file:
    """Open a file that appears under its name only when it was written whole."""

    def __init__(self, target: str | os.PathLike[str], mode: str) -> None:
        self._target, self._mode = Path(target), mode

    def __enter__(self) -> Any:
        folder = self._target.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            fd, name = tempfile.mkstemp(dir=folder, prefix=f".{self._target.name[:40]}.", suffix=".part")
        except OSError as error:
            raise OSError(
                f"cannot write {self._target}: {error.strerror or error}; choose a folder that can be written"
            ) from error
        self._temp = Path(name)
        text = "b" not in self._mode
        self._handle = os.fdopen(fd, self._mode, newline="" if text else None, encoding="utf-8" if text else None)
        return self._handle

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._handle.close()
        if kind is None:
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(self._temp, 0o666 & ~umask)
            os.replace(self._temp, self._target)
        else:
            self._temp.unlink(missing_ok=True)
