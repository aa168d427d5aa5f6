"""Data sets by name: digits, cifar10:PATH, folder:PATH, zip:FILE. No torch."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from thermoclaw.train.archive import Limits, unpack_images
from thermoclaw.train.cifar import read_cifar10
from thermoclaw.train.errors import DataError
from thermoclaw.train.folders import read_folder
from thermoclaw.train.images import Labeled, Split, stratified

KINDS = ("digits", "cifar10:PATH", "folder:PATH", "zip:FILE")
UNPACKED = "unpacked-"  # begins the names of folders that archives are unpacked into


def load_data(
    spec: str, *, seed: int = 0, image_size: int = 32, scratch: Path | None = None, limits: Limits | None = None
) -> Split:
    """Read a data set into memory.

    Args:
        spec: `digits` (scikit-learn's), `cifar10:PATH`, `folder:PATH` or `zip:FILE`.
        seed: of the division, where the data set has none.
        image_size: pixels a side of the images of a folder or a ZIP file.
        scratch: where a ZIP file is unpacked for as long as it is read; by default where temporary files go.
        limits: how much may come out of a ZIP file.

    Raises:
        DataError: it cannot be used; the message says why.
        ImportError: an extra is missing.
    """
    kind, _, where = spec.partition(":")
    path = Path(where).expanduser()
    if spec == "digits":
        return _digits(seed)
    if kind not in ("cifar10", "folder", "zip") or not where:
        raise DataError(f"data {spec!r} is not known: give one of {', '.join(KINDS)}")
    if not path.exists():
        raise DataError(f"data {spec!r}: there is no {path}")
    if kind == "cifar10":
        return read_cifar10(path)
    if kind == "folder":
        return read_folder(path, size=image_size, seed=seed)
    return _zipped(path, seed=seed, size=image_size, scratch=scratch, limits=limits)


def sweep(scratch: Path) -> None:
    """Remove what a run that was killed left of its archive."""
    for left in scratch.glob(f"{UNPACKED}*"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)


def fingerprint(split: Split) -> str:
    """A data set in 16 digits: the same images, labels and classes have the same."""
    digest = hashlib.sha256(repr(split.classes).encode())
    for part in (split.train, split.test):
        digest.update(repr(part.images.shape).encode())
        digest.update(np.ascontiguousarray(part.images).data)
        digest.update(np.ascontiguousarray(part.labels).data)
    return digest.hexdigest()[:16]


def _digits(seed: int) -> Split:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the data set digits needs scikit-learn: pip install 'thermoclaw[train]'") from error
    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    train, test = stratified(Labeled(images, labels.astype(np.int64)), 10, seed=seed)
    return Split(train, test, tuple("0123456789"))


def _zipped(path: Path, *, seed: int, size: int, scratch: Path | None, limits: Limits | None) -> Split:
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=UNPACKED, dir=scratch) as folder:
        left_out = unpack_images(path, Path(folder) / "images", limits)
        try:
            split = read_folder(Path(folder) / "images", size=size, seed=seed)
        except DataError as error:
            raise DataError(str(error).replace(str(Path(folder).resolve() / "images"), str(path))) from None
    return replace(split, left_out=left_out)
