"""Labeled images in memory, and how files become such. The one module that imports Pillow.

Legend: N images, C channels, H × W pixels.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from thermoclaw.train.errors import DataError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pbm", ".pgm", ".ppm", ".webp")
MOST_PIXELS = 50_000_000
TEST_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class Labeled:
    """Images [N, C, H, W] of bytes, and the number of each one's class, [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Split:
    """What is learned from, what it is tested on, and the names of the classes.

    Attributes:
        train, test: the two parts.
        classes: their names, by number.
        left_out: files that were no images and were passed over.
    """

    train: Labeled
    test: Labeled
    classes: tuple[str, ...]
    left_out: int = 0


def stratified(whole: Labeled, num_classes: int, *, seed: int, share: float = TEST_SHARE) -> tuple[Labeled, Labeled]:
    """Two parts, the second with about this share of every class, and at least one image of each.

    Raises:
        DataError: a class has fewer than two images.
    """
    order = np.random.default_rng(seed)
    test = np.zeros(len(whole), dtype=bool)
    for number in range(num_classes):
        mine = np.flatnonzero(whole.labels == number)
        if len(mine) < 2:
            raise DataError(f"class number {number} has {len(mine)} image(s); at least 2 are needed to split them")
        count = min(max(round(share * len(mine)), 1), len(mine) - 1)
        test[order.permutation(mine)[:count]] = True
    parts = [Labeled(whole.images[chosen], whole.labels[chosen]) for chosen in (~test, test)]
    return parts[0], parts[1]


def has_image_suffix(name: str) -> bool:
    """Whether a file says that it is an image."""
    return name.lower().endswith(SUFFIXES)


def pillow() -> Any:
    """Pillow's module Image."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading images needs Pillow: pip install 'thermoclaw[train]'") from error
    return Image


def check_image(content: bytes, name: str) -> None:
    """Whether bytes are an image of a format that is read here, judged by themselves.

    Raises:
        DataError: they are not, or it is too large.
    """
    with _opened(io.BytesIO(content), name):
        pass


def read_image(handle: BinaryIO, name: str, *, size: int) -> NDArray[np.uint8]:
    """An image in color, [3, size, size]: its shorter side is scaled to `size`, and the middle is cut out.

    Raises:
        DataError: it cannot be read, or is too large.
    """
    with _opened(handle, name) as image:
        try:
            color = image.convert("RGBA").convert("RGB") if "transparency" in image.info else image.convert("RGB")
        except Exception as error:  # what a decoder says of damage is of many classes
            raise DataError(f"{name} is a damaged image ({type(error).__name__}: {error})") from None
    width, height = color.size
    scale = size / min(width, height)
    wide, high = max(round(width * scale), size), max(round(height * scale), size)
    if wide * high > MOST_PIXELS:
        raise DataError(f"{name} is {width} × {height} pixels, too narrow to be scaled to {size}")
    left, top = (wide - size) // 2, (high - size) // 2
    scaled = color.resize((wide, high), pillow().Resampling.BILINEAR).crop((left, top, left + size, top + size))
    return np.ascontiguousarray(np.asarray(scaled, dtype=np.uint8).transpose(2, 0, 1))


def without_color(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One channel where all three of every image are the same."""
    gray = bool((images[:, :1] == images).all())
    return np.ascontiguousarray(images[:, :1]) if gray else images


def _opened(handle: BinaryIO, name: str) -> Any:
    image_module = pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow about odd files; the size is looked at below
            image = image_module.open(handle, formats=FORMATS)
    except image_module.DecompressionBombError:
        raise DataError(f"{name} has more than {MOST_PIXELS:,} pixels") from None
    except Exception as error:  # of many classes
        raise DataError(
            f"{name} is not an image that can be read ({', '.join(FORMATS)}): {type(error).__name__}"
        ) from None
    if image.size[0] * image.size[1] > MOST_PIXELS:
        raise DataError(f"{name} is {image.size[0]} × {image.size[1]} pixels; at most {MOST_PIXELS:,} are read")
    if min(image.size) < 1:
        raise DataError(f"{name} has no pixels")
    return image
