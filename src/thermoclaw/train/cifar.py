"""CIFAR-10 from its own files: the pickled version for Python, or the binary one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermoclaw.train.errors import DataError
from thermoclaw.train.images import Labeled, Split
from thermoclaw.train.pickled import MOST_BYTES, read_pickle

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE, CHANNELS = 32, 3
PIXELS = SIDE * SIDE * CHANNELS
FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin")


def read_cifar10(path: Path) -> Split:
    """The training batches that are there, and the test batch.

    Args:
        path: the folder `cifar-10-batches-py` or `cifar-10-batches-bin`, or the one that it is in.

    Raises:
        DataError: they are missing or damaged.
    """
    if path.is_file():
        raise DataError(f"{path} is a file; unpack it, and give the folder (cifar-10-batches-py or -bin) in it")
    for folder in (path, *(path / name for name in FOLDERS)):
        for suffix, read in (("", _pickled), (".bin", _binary)):
            train = sorted(folder.glob(f"data_batch_[0-9]{suffix}"))
            test = folder / f"test_batch{suffix}"
            if train and test.is_file():
                return Split(_joined([read(file) for file in train]), read(test), CLASSES)
    raise DataError(
        f"{path} has no CIFAR-10: data_batch_1 and test_batch (or data_batch_1.bin and test_batch.bin) were looked for "
        "in it and in cifar-10-batches-py and cifar-10-batches-bin there"
    )


def _pickled(file: Path) -> Labeled:
    batch = read_pickle(file)
    pixels, labels = batch.get("data"), batch.get("labels")
    if isinstance(pixels, bytes):
        pixels = np.frombuffer(pixels, dtype=np.uint8)
    if not isinstance(pixels, np.ndarray) or pixels.size == 0 or pixels.size % PIXELS:
        raise DataError(f"{file} has no images of {CHANNELS} × {SIDE} × {SIDE} bytes under 'data'")
    if not isinstance(labels, list):
        raise DataError(f"{file} has no list under 'labels'")
    return _labeled(file, pixels, labels)


def _binary(file: Path) -> Labeled:
    size = file.stat().st_size
    if size == 0 or size % (PIXELS + 1) or size > MOST_BYTES:
        raise DataError(f"{file} has {size} bytes, which is no whole number of records of {PIXELS + 1}")
    rows = np.frombuffer(file.read_bytes(), dtype=np.uint8).reshape(-1, PIXELS + 1)
    return _labeled(file, rows[:, 1:], rows[:, 0].tolist())


def _labeled(file: Path, pixels: NDArray[np.uint8], labels: list[Any]) -> Labeled:
    images = np.ascontiguousarray(pixels.reshape(-1, CHANNELS, SIDE, SIDE))
    if len(labels) != len(images):
        raise DataError(f"{file} has {len(images)} images and {len(labels)} labels")
    if not all(type(label) is int and 0 <= label < len(CLASSES) for label in labels):
        raise DataError(f"{file} has a label that is no number from 0 to {len(CLASSES) - 1}")
    return Labeled(images, np.array(labels, dtype=np.int64))


def _joined(parts: list[Labeled]) -> Labeled:
    images, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    return Labeled(images, labels)
