"""Unpacks images from a ZIP file that somebody else made: nothing in it is believed, everything is counted.

A name, a size and a number of entries in a ZIP file are what its maker wrote there. Names are taken only if they stay
below the folder, sizes are counted while they are read, and what is written are images, judged by their contents.
"""

from __future__ import annotations

import shutil
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path

from thermoclaw.train.errors import DataError
from thermoclaw.train.images import check_image, has_image_suffix

_CHUNK = 1 << 20
_ENTRY = b"PK\x01\x02"  # begins each entry of a ZIP file's list of contents
_DEEPEST, _LONGEST = 8, 200
_JUNK = ("__macosx", "thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class Limits:
    """How much may come out of an archive.

    Attributes:
        total_bytes: of all files together, unpacked.
        file_bytes: of one file, unpacked.
        files: how many.
    """

    total_bytes: int = 2 << 30
    file_bytes: int = 32 << 20
    files: int = 200_000


def unpack_images(archive: Path, folder: Path, limits: Limits | None = None) -> int:
    """Unpack the images of a ZIP file into a folder of their own, which goes again if anything is wrong.

    Args:
        archive: the file.
        folder: it must not exist yet.
        limits: how much may come out.

    Returns:
        How many files were passed over, because they say that they are something else.

    Raises:
        DataError: the archive is damaged, is too large, or tries to get out of its folder.
    """
    limits = limits or Limits()
    folder.mkdir(parents=True)
    try:
        return _unpack(archive, folder, limits)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _unpack(archive: Path, folder: Path, limits: Limits) -> int:
    if not zipfile.is_zipfile(archive):
        raise DataError(f"{archive} is not a ZIP file")
    _check_entries(archive, limits)
    left_out = written = files = 0
    try:
        with zipfile.ZipFile(archive) as opened:
            for entry in opened.infolist():
                name = _safe_name(entry)
                if name is None:
                    continue
                files += 1
                if files > limits.files:
                    raise DataError(f"more than {limits.files:,} files")
                if not has_image_suffix(name):
                    left_out += 1
                    continue
                content = _content(opened, entry, name, limits, written)
                written += len(content)
                check_image(content, name)
                _write(folder / name, content, name)
    except DataError as error:
        raise DataError(f"{archive} was refused: {error}") from None
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, OSError, ValueError) as error:
        raise DataError(f"{archive} cannot be unpacked ({type(error).__name__}: {error})") from None
    except Exception as error:  # zlib's own, or memory that there is not
        raise DataError(f"{archive} is damaged ({type(error).__name__}: {error})") from None
    return left_out


def _check_entries(archive: Path, limits: Limits) -> None:
    """Refuse a list of contents that is too long before it is read into memory."""
    found, tail = 0, b""
    with open(archive, "rb") as handle:
        while chunk := handle.read(_CHUNK):
            found += (tail + chunk).count(_ENTRY)
            tail = chunk[-len(_ENTRY) + 1 :]
    if found > 2 * limits.files:  # folders, and what only looks like an entry
        raise DataError(f"{archive} was refused: it lists {found:,} entries, at most {limits.files:,} files are read")


def _safe_name(entry: zipfile.ZipInfo) -> str | None:
    """The entry's path below the folder; None for folders and for what file managers leave behind.

    Raises:
        DataError: it leads elsewhere, is a link or something else that is no file, or is encrypted.
    """
    name = entry.filename.replace("\\", "/")
    shown = repr(name[:80])
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise DataError(f"{shown} is a link or a device, not a file")
    parts = name.rstrip("/").split("/")
    if name.startswith("/") or ":" in name or any(part in ("", ".", "..") for part in parts):
        raise DataError(f"{shown} leads out of the folder")
    if len(parts) > _DEEPEST or any(len(part.encode("utf-8", "replace")) > _LONGEST for part in parts):
        raise DataError(f"{shown} is longer or deeper than any name that is read")
    if not all(part.isprintable() and part == part.strip(" ") for part in parts):
        raise DataError(f"{shown} has characters in it that no name should have")
    if name.endswith("/") or kind == stat.S_IFDIR or any(p.startswith(".") or p.lower() in _JUNK for p in parts):
        return None
    if entry.flag_bits & 0x1:
        raise DataError(f"{shown} is encrypted")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{shown} is compressed in an unusual way; use an ordinary ZIP file")
    return "/".join(parts)


def _content(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str, limits: Limits, before: int) -> bytes:
    """What is in it, counted while it is read."""
    parts, size = [], 0
    with opened.open(entry) as handle:
        while chunk := handle.read(_CHUNK):
            size += len(chunk)
            if size > limits.file_bytes:
                raise DataError(f"{name!r} has more than {limits.file_bytes:,} bytes")
            if before + size > limits.total_bytes:
                raise DataError(f"it holds more than {limits.total_bytes:,} bytes")
            parts.append(chunk)
    return b"".join(parts)


def _write(target: Path, content: bytes, name: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(target, "xb") as handle:
            handle.write(content)
    except FileExistsError:
        raise DataError(f"{name!r} is in it twice") from None
