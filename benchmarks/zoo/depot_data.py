"""Real facts, pages, codes and words: when the sun rises in cities, pages of calendars, JPEG symbols, printed names."""

from __future__ import annotations

import ast
import calendar
import math
import os
from datetime import datetime, timedelta
from functools import cache
from importlib.resources import files
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from zoneinfo import TZPATH, ZoneInfo

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from benchmarks.zoo.data import _split, stretches
from benchmarks.zoo.recipe import Data

YEAR, DAYS_EACH = 2023, 16
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Bold", "STIXGeneral")
PAGE, FINER = 32, 3
YEARS = range(1900, 2100)
SYMBOLS, QUALITY = 48, 75
TALL, WIDE = 16, 48


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of matplotlib's fonts for text."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)


def _degrees(written: str) -> float:
    """An angle from the table of time zones: sign, degrees, minutes and perhaps seconds."""
    digits = written[1:]
    whole = len(digits) - (4 if len(digits) > 5 else 2)
    parts = (digits[:whole], digits[whole : whole + 2], digits[whole + 2 :] or "0")
    size = sum(int(part) / 60.0**power for power, part in enumerate(parts))
    return -size if written[0] == "-" else size


@cache
def _cities() -> tuple[tuple[str, float, float], ...]:
    """Names of time zones with the latitude and the longitude of the city that each is named after."""
    tables = [Path(folder) / "zone.tab" for folder in TZPATH]
    found = next((table for table in tables if table.exists()), None)
    text = found.read_text() if found else files("tzdata").joinpath("zoneinfo/zone.tab").read_text()
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    cities = []
    for _, place, name, *_ in rows:
        cut = max(place.rfind("+"), place.rfind("-"))
        cities.append((name, _degrees(place[:cut]), _degrees(place[cut:])))
    return tuple(sorted(cities))


def _sun(latitude: float, longitude: float, ahead: float, day: int) -> tuple[float, float] | None:
    """Sunrise and sunset by the clock, in hours, to a minute or two (Spencer 1971); None in polar day or night."""
    turn = 2.0 * math.pi * (day - 1) / 365.0
    once, twice = (math.cos(turn), math.sin(turn)), (math.cos(2.0 * turn), math.sin(2.0 * turn))
    slant = 0.006918 - 0.399912 * once[0] + 0.070257 * once[1] - 0.006758 * twice[0] + 0.000907 * twice[1]
    fast = 229.18 * (7.5e-5 + 0.001868 * once[0] - 0.032077 * once[1] - 0.014615 * twice[0] - 0.040849 * twice[1])
    up = math.radians(latitude)
    share = (math.cos(math.radians(90.833)) - math.sin(up) * math.sin(slant)) / (math.cos(up) * math.cos(slant))
    if abs(share) >= 1.0:
        return None
    noon = 12.0 + ahead - longitude / 15.0 - fast / 60.0
    half = math.degrees(math.acos(share)) / 15.0
    return noon - half, noon + half


@cache
def daylight() -> Data:
    """6,500 or so days in 418 cities: place, season and how far the clock is ahead; when the sun rises and sets."""
    random = np.random.default_rng(0)
    inputs, targets = [], []
    for name, latitude, longitude in _cities():
        zone = ZoneInfo(name)
        for day in random.choice(365, DAYS_EACH, replace=False) + 1:
            noon = datetime(YEAR, 1, 1, 12, tzinfo=zone) + timedelta(days=int(day) - 1)
            offset = noon.utcoffset()
            ahead = offset.total_seconds() / 3600.0 if offset is not None else 0.0
            ahead -= 24.0 * round((ahead - longitude / 15.0) / 24.0)  # the same clock, whatever day it is there
            times = _sun(latitude, longitude, ahead, int(day))
            if times is not None:
                season = 2.0 * math.pi * float(day) / 365.0
                inputs.append((latitude, longitude, ahead, math.cos(season), math.sin(season)))
                targets.append(times)
    x, y = torch.tensor(inputs), torch.tensor(targets)
    return _split((x - x.mean(0)) / x.std(0), (y - y.mean(0)) / y.std(0))


def _page(year: int, month: int, font: str) -> Image.Image:
    """A month as it is printed: its name, the days of the week from Monday on, the days below them."""
    side = PAGE * FINER
    image = Image.new("L", (side, side), 0)
    draw, small = ImageDraw.Draw(image), _font(font, 3 * FINER)
    row, column = side // 9, side // 8
    draw.text((side // 2, row), f"{calendar.month_name[month]} {year}", 255, _font(font, 4 * FINER), anchor="mm")
    names = [[calendar.day_abbr[day][:2] for day in range(7)]]
    weeks = [[str(day) if day else "" for day in week] for week in calendar.monthcalendar(year, month)]
    for down, words in enumerate(names + weeks):
        for across, word in enumerate(words):
            draw.text(((across + 1) * column, (down + 2) * row), word, 255, small, anchor="mm")
    return image


@cache
def pages() -> Data:
    """2,400 pages of a calendar, one for each month of two centuries, scanned a little askew; the first weekday."""
    random = np.random.default_rng(1)
    pictures, targets = [], []
    for year in YEARS:
        for month in range(1, 13):
            page = _page(year, month, FONTS[int(random.integers(len(FONTS)))])
            across, down = (int(shift) for shift in random.integers(-2 * FINER, 2 * FINER + 1, 2))
            page = page.rotate(float(random.uniform(-4, 4)), Image.Resampling.BILINEAR, translate=(across, down))
            small = np.asarray(page.resize((PAGE, PAGE), Image.Resampling.BOX), dtype=np.float32) / 255.0
            ink, grain = random.uniform(0.6, 1.0), 0.03 * random.standard_normal(small.shape)
            pictures.append((ink * small + grain).astype(np.float32))
            targets.append(calendar.weekday(year, month, 1))
    x = torch.tensor(np.stack(pictures))[:, None]
    return _split((x - x.mean()) / x.std(), torch.tensor(targets))


@cache
def _zigzag() -> tuple[int, ...]:
    """Places of a block of eight by eight, from low to high frequencies along the diagonals."""
    places = [(row, column) for row in range(8) for column in range(8)]
    places.sort(key=lambda at: (sum(at), at[0] if sum(at) % 2 else at[1]))
    return tuple(8 * row + column for row, column in places)


def _waves() -> np.ndarray:
    """The discrete cosine transform of eight numbers as an orthonormal matrix (Ahmed et al. 1974)."""
    frequency, place = np.arange(8)[:, None], np.arange(8)[None, :]
    waves = np.cos(np.pi * frequency * (2 * place + 1) / 16.0) / 2.0
    return np.where(frequency == 0, np.sqrt(0.125), waves)


def _divisors() -> np.ndarray:
    """What coefficients are divided by, as the library for JPEG has it, [8, 8]."""
    file = BytesIO()
    Image.new("L", (8, 8)).save(file, "JPEG", quality=QUALITY)
    return np.array(Image.open(file).quantization[0], dtype=np.float64).reshape(8, 8)  # type: ignore[attr-defined]


def _coded(block: np.ndarray, before: int) -> list[tuple[int, int]]:
    """Symbols of a block before Huffman's code: size of the change in mean, then (zeros skipped, size) by turns."""
    found, skipped = [(-1, abs(int(block[0]) - before).bit_length())], 0
    last = int(np.flatnonzero(block)[-1]) if block.any() else 0
    for value in block[1 : last + 1]:
        if value == 0:
            skipped += 1
            continue
        found += [(15, 0)] * (skipped // 16) + [(skipped % 16, abs(int(value)).bit_length())]
        skipped = 0
    return found if last == 63 else [*found, (0, 0)]


@cache
def _symbols() -> tuple[Data, int]:
    """Symbols of two photographs in stretches, and how many different ones there are."""
    from sklearn.datasets import load_sample_images

    story: list[tuple[int, int]] = []
    for picture in load_sample_images().images:
        gray = np.asarray(Image.fromarray(picture).convert("L"), dtype=np.float64) - 128.0
        rows, columns = (length // 8 for length in gray.shape)
        blocks = gray[: rows * 8, : columns * 8].reshape(rows, 8, columns, 8).swapaxes(1, 2).reshape(-1, 8, 8)
        numbers = np.rint(_waves() @ blocks @ _waves().T / _divisors()).astype(np.int64)
        ordered = numbers.reshape(-1, 64)[:, list(_zigzag())]
        for before, block in pairwise([np.zeros(64, np.int64), *ordered]):
            story += _coded(block, int(before[0]))
    place = {symbol: i for i, symbol in enumerate(sorted(set(story)))}
    return stretches(torch.tensor([place[symbol] for symbol in story]), SYMBOLS), len(place)


def symbols() -> Data:
    """Runs and sizes that JPEG writes for two photographs: stretches of 48, and the same moved on by one."""
    return _symbols()[0]


def num_symbols() -> int:
    """How many different symbols JPEG needs for them."""
    return _symbols()[1]


def _names() -> list[str]:
    """Names of functions, classes and attributes in the standard library, each once."""
    found = set()
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(node.name.strip("_"))
            elif isinstance(node, ast.Attribute):
                found.add(node.attr.strip("_"))
    return sorted(name for name in found if 3 <= len(name) <= 8)


def _printed(name: str, font: str) -> Tensor:
    """A word in the middle of a small picture, ink from 0 to 1, [1, height, width]."""
    image = Image.new("L", (WIDE, TALL), 0)
    ImageDraw.Draw(image).text((WIDE // 2, TALL // 2), name, 255, _font(font, 9), anchor="mm")
    return torch.tensor(np.asarray(image), dtype=torch.float32)[None] / 255.0


@cache
def printed_names() -> Data:
    """A few thousand names out of the standard library in print, around zero; what is wanted is the ink itself."""
    random = np.random.default_rng(2)
    ink = torch.stack([_printed(name, FONTS[int(random.integers(len(FONTS)))]) for name in _names()])
    return _split((ink - ink.mean()) / ink.std(), ink)
