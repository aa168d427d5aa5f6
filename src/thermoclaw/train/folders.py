"""A folder of images: train and test with a folder for each class, or the classes alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from thermoclaw.train.errors import DataError
from thermoclaw.train.images import SUFFIXES, Labeled, Split, has_image_suffix, read_image, stratified, without_color

TRAIN, TEST = ("train", "training"), ("test", "val", "valid", "validation")
MOST_BYTES = 4 << 30
MOST_FILE_BYTES = 64 << 20

Files = list[tuple[Path, int]]


def read_folder(root: Path, *, size: int, seed: int) -> Split:
    """The images below a folder, all scaled to size × size.

    Args:
        root: with `train/CLASS/…` and `test/CLASS/…`, or `CLASS/…` alone, of which a fifth is then kept for testing.
        size: pixels a side.
        seed: of the division.

    Raises:
        DataError: there are fewer than two classes, or a file cannot be read, or leads out of the folder.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}")
    root = root.resolve()
    base = _innermost(root)
    train_dir, test_dir = (_first(base, names) for names in (TRAIN, TEST))
    if train_dir is None and test_dir is not None:
        raise DataError(f"{base} has a folder '{test_dir.name}' and none called 'train'")
    classes = _classes(train_dir or base, root)
    train, left_out = _files(train_dir or base, classes, root)
    if test_dir is None:
        parts = stratified(_read(train, size), len(classes), seed=seed)
        images = without_color(np.concatenate([part.images for part in parts]))
        count = len(parts[0])
        return Split(
            Labeled(images[:count], parts[0].labels), Labeled(images[count:], parts[1].labels), classes, left_out
        )
    strange = [name for name in _classes(test_dir, root, least=1) if name not in classes]
    if strange:
        raise DataError(f"{test_dir} has classes that {train_dir} has not: {', '.join(strange[:5])}")
    test, more = _files(test_dir, classes, root)
    whole = _read(train + test, size)
    images = without_color(whole.images)
    count = len(train)
    return Split(
        Labeled(images[:count], whole.labels[:count]),
        Labeled(images[count:], whole.labels[count:]),
        classes,
        left_out + more,
    )


def _innermost(folder: Path) -> Path:
    """Down through folders that hold one folder and nothing else, as archives do."""
    for _ in range(4):
        inside = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        if len(inside) != 1 or not inside[0].is_dir() or inside[0].is_symlink():
            break
        folder = inside[0]
    return folder


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    found = {entry.name.lower(): entry for entry in sorted(folder.iterdir(), reverse=True) if entry.is_dir()}
    return next((found[name] for name in names if name in found), None)


def _classes(folder: Path, root: Path, *, least: int = 2) -> tuple[str, ...]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(names) < least:
        raise DataError(
            f"{folder} has {len(names)} folder(s); a folder for each of at least {least} classes is needed, "
            "in it or in a folder 'train' (and 'test') of it"
        )
    for name in names:
        _check_inside(folder / name, root)
    return tuple(names)


def _files(folder: Path, classes: tuple[str, ...], root: Path) -> tuple[Files, int]:
    found: Files = []
    left_out = 0
    for number, name in enumerate(classes):
        mine = list(_below(folder / name))
        images = sorted(path for path in mine if has_image_suffix(path.name))
        left_out += len(mine) - len(images)
        if not images and (folder / name).is_dir():
            raise DataError(f"{folder / name} has no image; {', '.join(SUFFIXES)} are read")
        found += [(path, number) for path in images]
    for path, _ in found:
        _check_inside(path, root)
    return found, left_out


def _below(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place) / name for name in files if not name.startswith("."))


def _check_inside(path: Path, root: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        raise DataError(f"{path} is a link that leads out of {root}")


def _read(files: Files, size: int) -> Labeled:
    if len(files) * 3 * size * size > MOST_BYTES:
        raise DataError(
            f"{len(files):,} images of {size} × {size} pixels take more than {MOST_BYTES >> 30} GiB: lower image_size"
        )
    images = np.empty((len(files), 3, size, size), dtype=np.uint8)
    for place, (path, _) in enumerate(files):
        if not path.is_file() or path.stat().st_size > MOST_FILE_BYTES:
            raise DataError(f"{path} is no file of at most {MOST_FILE_BYTES >> 20} MiB")
        with open(path, "rb") as handle:
            images[place] = read_image(handle, str(path), size=size)
    return Labeled(images, np.array([number for _, number in files], dtype=np.int64))
