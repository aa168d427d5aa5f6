"""Facts that every Python knows or can make: what signs are like, spoiled pictures, packed numbers, days in writing."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from functools import cache
from io import BytesIO

import numpy as np
import torch
from PIL import Image, ImageFilter

from benchmarks.zoo.data import _split, stretches
from benchmarks.zoo.recipe import Data

UNICODE = unicodedata.ucd_3_2_0  # the same in every Python
SEVERAL = 60  # signs that a category of its own has at least
SIDE, TAKES = 16, 5
FLAT = 6.0  # brightness by which a tile's pixels differ at least
BYTES, EXCERPTS_EACH = 24, 600
FIRST_DAY, DAYS, STRETCH = date(1970, 1, 1), 36524, 40


def _sign_facts(sign: str) -> list[float]:
    """What is easily measured about a sign and its name, without a look at the words of the name."""
    code, name = ord(sign), UNICODE.name(sign)
    words = name.replace("-", " ").split()
    apart, simple = UNICODE.decomposition(sign).split(), UNICODE.normalize("NFKD", sign)
    return [
        math.log2(code),
        code % 256,
        code % 16,
        code % 2,
        len(sign.encode()),
        len(name),
        len(words),
        max(map(len, words)),
        len(words[-1]),
        name.count("-"),
        sum(c in "AEIOU" for c in name) / len(name),
        sum(c.isdigit() for c in name),
        len(apart),
        float(UNICODE.decomposition(sign).startswith("<")),
        len(simple),
        float(simple.isascii()),
        UNICODE.combining(sign),
        UNICODE.mirrored(sign),
        float(UNICODE.east_asian_width(sign) in "WF"),
        float(UNICODE.bidirectional(sign) == "L"),
    ]


@cache
def categories() -> tuple[str, ...]:
    """General categories that have several signs, and what all others are called."""
    counts = Counter(UNICODE.category(sign) for sign in _signs())
    return (*sorted(name for name, count in counts.items() if count >= SEVERAL), "other")


@cache
def _signs() -> tuple[str, ...]:
    """Every sign of Unicode 3.2 whose name is not made by a rule."""
    every = (chr(code) for code in range(1, 0x20000))
    return tuple(s for s in every if not UNICODE.name(s, "CJK").startswith(("CJK", "HANGUL SYLLABLE")))


@cache
def signs() -> Data:
    """12,700 signs of Unicode: twenty facts about each, and its general category."""
    known = categories()
    x = torch.tensor([_sign_facts(sign) for sign in _signs()], dtype=torch.float32)
    names = [UNICODE.category(sign) for sign in _signs()]
    y = torch.tensor([known.index(name) if name in known else len(known) - 1 for name in names])
    return _split((x - x.mean(0)) / x.std(0), y)


def _as_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=np.float32)


def _blurred(tile: Image.Image, random: np.random.Generator) -> np.ndarray:
    return _as_array(tile.filter(ImageFilter.GaussianBlur(float(random.uniform(1.0, 2.0)))))


def _noisy(tile: Image.Image, random: np.random.Generator) -> np.ndarray:
    clean, strength = _as_array(tile), float(random.uniform(15, 40))
    return np.asarray(clean + strength * random.standard_normal(clean.shape).astype(np.float32))


def _coarse(tile: Image.Image, random: np.random.Generator) -> np.ndarray:
    fewer = SIDE // int(random.integers(2, 5))
    return _as_array(tile.resize((fewer, fewer), Image.Resampling.BOX).resize(tile.size, Image.Resampling.NEAREST))


def _compressed(tile: Image.Image, random: np.random.Generator) -> np.ndarray:
    file = BytesIO()
    tile.save(file, "JPEG", quality=int(random.integers(5, 16)))
    return _as_array(Image.open(file))


def _few_levels(tile: Image.Image, random: np.random.Generator) -> np.ndarray:
    step = float(random.uniform(60, 100))
    return np.floor(_as_array(tile) / step) * step + step / 2.0


def _sharpened(tile: Image.Image, random: np.random.Generator) -> np.ndarray:
    return _as_array(tile.filter(ImageFilter.UnsharpMask(2, int(random.integers(250, 450)), 0)))


def _smeared(tile: Image.Image, random: np.random.Generator) -> np.ndarray:
    clean, length = _as_array(tile), int(random.integers(4, 8))
    return np.asarray(np.mean([np.roll(clean, shift, axis=1) for shift in range(length)], axis=0))


Spoil = Callable[[Image.Image, np.random.Generator], np.ndarray]
DAMAGE: dict[str, Spoil] = {
    "none": lambda tile, random: _as_array(tile),
    "blur": _blurred,
    "noise": _noisy,
    "coarse": _coarse,
    "JPEG": _compressed,
    "few levels": _few_levels,
    "sharpened": _sharpened,
    "smear": _smeared,
}


@cache
def damaged() -> Data:
    """5,000 or so tiles of two photographs, [3, 16, 16], spoiled in one of eight ways; no tile is in both parts."""
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    tiles = []
    for picture in load_sample_images().images:
        for top in range(0, picture.shape[0] - SIDE + 1, SIDE):
            for left in range(0, picture.shape[1] - SIDE + 1, SIDE):
                tile = picture[top : top + SIDE, left : left + SIDE]
                if tile.std((0, 1)).mean() > FLAT:
                    tiles.append(Image.fromarray(tile))
    spoilers = list(DAMAGE.values())
    parts: tuple[list[tuple[np.ndarray, int]], ...] = ([], [])
    for rank, place in enumerate(random.permutation(len(tiles))):
        for kind in random.permutation(len(spoilers))[:TAKES]:
            spoiled = spoilers[kind](tiles[place], random).clip(0, 255)
            parts[rank % 4 == 3].append((spoiled, int(kind)))
    (x, y), (z, w) = (
        (torch.tensor(np.stack([tile for tile, _ in part])).permute(0, 3, 1, 2), torch.tensor([k for _, k in part]))
        for part in parts
    )
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    return Data(((x - mean) / std, y), ((z - mean) / std, w))


def _varint(number: int) -> bytes:
    """Seven bits a byte, lowest first, the highest bit set where more follow (LEB128)."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _packed_decimal(number: int) -> bytes:
    """Two decimal digits a byte and the sign in the last half byte, as COBOL packs them."""
    return bytes.fromhex(f"{number:07d}c")


PACKINGS: dict[str, Callable[[np.ndarray], bytes]] = {
    **{kind: lambda x, kind=kind: x.astype(kind).tobytes() for kind in ("<f2", "<f4", ">f4", "<f8", ">f8")},  # type: ignore[misc]
    **{kind: lambda x, kind=kind: np.rint(100 * x).astype(kind).tobytes() for kind in ("<i4", ">i4")},  # type: ignore[misc]
    "text": lambda x: ",".join(f"{value:g}" for value in x).encode(),
    "varint": lambda x: b"".join(_varint(round(100 * value)) for value in x),
    "packed decimal": lambda x: b"".join(_packed_decimal(round(100 * value)) for value in x),
}


@cache
def packed_numbers() -> Data:
    """6,000 excerpts of four tables, 24 bytes each from anywhere on, and in which of ten ways numbers are packed."""
    from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine

    random = np.random.default_rng(0)
    tables = [load_breast_cancer().data, load_diabetes(scaled=False).data, load_iris().data, load_wine().data]
    x, y = [], []
    for label, pack in enumerate(PACKINGS.values()):
        streams = [np.frombuffer(pack(table.ravel()), np.uint8) for table in tables]
        for _ in range(EXCERPTS_EACH):
            stream = streams[int(random.choice(len(tables), p=(0.4, 0.25, 0.1, 0.25)))]
            start = int(random.integers(len(stream) - BYTES))
            x.append(stream[start : start + BYTES].astype(np.int64))
            y.append(label)
    return _split(torch.tensor(np.stack(x)), torch.tensor(y))


def _written(day: date) -> str:
    """A day as letters, as mail, as a file's name, by week and by number."""
    year, week, weekday = day.isocalendar()
    return f"{day:%a, %d %b %Y} {day:%Y-%m-%d} {year}-W{week:02d}-{weekday} {day:%m/%d/%y} {day:%j}\n"


@cache
def _almanac() -> tuple[Data, int]:
    """Stretches of characters, and how many different ones there are."""
    order = np.random.default_rng(0).permutation(DAYS)[:12_000]
    text = "".join(_written(FIRST_DAY + timedelta(days=int(day))) for day in order)
    place = {letter: i for i, letter in enumerate(sorted(set(text)))}
    return stretches(torch.tensor([place[letter] for letter in text]), STRETCH), len(place)


def almanac() -> Data:
    """12,000 days of a hundred years in no order, each in five notations: windows, and the same moved on by one."""
    return _almanac()[0]


def num_letters() -> int:
    """Number of different characters in the almanac."""
    return _almanac()[1]
