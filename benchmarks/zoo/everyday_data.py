"""Real tables, charts and snippets that come with Python and its packages: named colors, plotted columns, files."""

from __future__ import annotations

import colorsys
import math
import os
import zlib
from functools import cache
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.colors import TABLEAU_COLORS, XKCD_COLORS, to_rgb
from PIL import Image, ImageDraw
from torch import Tensor

from benchmarks.zoo.data import _split
from benchmarks.zoo.recipe import Data

COLORS = ("green", "blue", "pink", "purple", "brown", "yellow", "red", "grey", "orange")
LIGHT = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = LIGHT.sum(1)
KINDS = ("line", "steps", "area", "columns", "bars", "stems", "points", "pie")
SIDE, CHARTS_EACH, FINER = 20, 300, 4
SNIPPET, SNIPPETS_EACH = 48, 600
FORMATS = (
    ("torch", "include/ATen/*.h"),
    ("numpy", "_core/include/numpy/*.h"),
    ("torch", "share/cmake/**/*.cmake"),
    ("torch", "**/*.pyi"),
    ("sklearn", "**/*.pyx"),
    ("sklearn", "datasets/descr/*.rst"),
    ("matplotlib", "backends/web_backend/js/*.js"),
    ("matplotlib", "mpl-data/images/*.svg"),
)
BLOCK, BLOCKS_EACH = 1024, 1000


def _lab(color: tuple[float, float, float]) -> list[float]:
    """Lightness, green to red and blue to yellow, as seen (CIE 1976)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color]
    x, y, z = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16.0 / 116.0 for v in LIGHT @ np.array(linear) / WHITE)
    return [116.0 * float(y) - 16.0, 500.0 * float(x - y), 200.0 * float(y - z)]


@cache
def named_colors() -> Data:
    """554 colors that people named in a survey (Munroe 2010): twelve coordinates, and which word the name ends in."""
    inputs, targets = [], []
    for name, code in sorted(XKCD_COLORS.items()):
        word = name.split(":")[1].split()[-1]
        if word not in COLORS:
            continue
        color = to_rgb(code)
        hue, lightness, saturation = colorsys.rgb_to_hls(*color)
        turn = 2.0 * math.pi * hue
        inputs.append([*color, math.sin(turn), math.cos(turn), lightness, saturation, *_lab(color), max(color)])
        inputs[-1].append(max(color) - min(color))
        targets.append(COLORS.index(word))
    x = torch.tensor(inputs)
    return _split((x - x.mean(0)) / x.std(0), torch.tensor(targets))


@cache
def _columns() -> list[np.ndarray]:
    """Columns of four of scikit-learn's tables, each from 0 to 1."""
    import sklearn.datasets

    found = []
    for loader in ("load_wine", "load_breast_cancer", "load_diabetes", "load_iris"):
        for column in getattr(sklearn.datasets, loader)().data.T:
            if len(np.unique(column)) > 20:
                low, high = np.quantile(column, (0.01, 0.99))
                found.append(((column - low) / (high - low)).clip(0.0, 1.0))
    return found


def _draw(kind: str, values: np.ndarray, others: np.ndarray, ink: str, paper: str) -> Image.Image:
    """One chart of a few numbers, drawn larger than it is kept."""
    side = SIDE * FINER
    image = Image.new("RGB", (side, side), paper)
    draw = ImageDraw.Draw(image)
    bottom, height, num = side - 5, side - 10, len(values)
    across = [5 + (side - 10) * (i + 0.5) / num for i in range(num)]
    top = [bottom - height * float(0.1 + 0.9 * value) for value in values]
    half = 0.35 * (side - 10) / num
    corners = list(zip(across, top, strict=True))
    match kind:
        case "line":
            draw.line(corners, fill=ink, width=4)
        case "steps":
            flat = [(x + shift, y) for x, y in corners for shift in (-half / 0.7, half / 0.7)]
            draw.line(flat, fill=ink, width=4)
        case "area":
            draw.polygon([(across[0], bottom), *corners, (across[-1], bottom)], fill=ink)
        case "columns":
            for x, y in corners:
                draw.rectangle((x - half, y, x + half, bottom), fill=ink)
        case "bars":
            for x, y in corners:
                draw.rectangle((5, x - half, 5 + bottom - y, x + half), fill=ink)
        case "stems":
            for x, y in corners:
                draw.line(((x, y), (x, bottom)), fill=ink, width=2)
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=ink)
        case "points":
            for value, y in zip(others, top, strict=True):
                x = 5 + (side - 10) * float(value)
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=ink)
        case "pie":
            ends = np.cumsum([0.0, *(values + 0.1)]) / (values + 0.1).sum() * 360.0
            for start, end in pairwise(ends.tolist()):
                draw.pieslice((8, 8, side - 8, side - 8), start, end, fill=ink, outline=paper, width=2)
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


@cache
def charts() -> Data:
    """2,400 small charts in color of five to nine numbers from tables, and which of eight kinds of chart it is."""
    random = np.random.default_rng(2)
    inks, papers = [*TABLEAU_COLORS.values(), "black"], ("white", "ivory", "lavender", "gainsboro")
    pictures, targets = [], []
    for label, kind in enumerate(KINDS):
        for _ in range(CHARTS_EACH):
            values, others = (_columns()[i] for i in random.choice(len(_columns()), 2, replace=False))
            num = int(random.integers(5, 10))
            rows, across = (random.integers(len(column), size=num) for column in (values, others))
            ink, paper = str(random.choice(inks)), str(random.choice(papers))
            pictures.append(np.asarray(_draw(kind, values[rows], others[across], ink, paper)))
            targets.append(label)
    x = torch.tensor(np.stack(pictures), dtype=torch.float32).permute(0, 3, 1, 2) / 255.0
    x = x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    return _split((x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True), torch.tensor(targets))


def _package(name: str) -> Path:
    """The folder of a package, without importing it."""
    return Path(matplotlib.__file__).parent.parent / name


@cache
def snippets() -> Data:
    """4,800 stretches of 48 characters out of files of packages, and which of eight formats the file has."""
    random = np.random.default_rng(3)
    inputs, targets = [], []
    for label, (name, pattern) in enumerate(FORMATS):
        files = sorted(_package(name).glob(pattern))
        text = b"\n".join(path.read_bytes()[:40_000] for path in files)
        starts = random.permutation(len(text) // SNIPPET)[:SNIPPETS_EACH] * SNIPPET
        inputs += [np.frombuffer(text[start : start + SNIPPET], np.uint8).clip(0, 127) for start in starts]
        targets += [label] * len(starts)
    return _split(torch.tensor(np.stack(inputs), dtype=torch.long), torch.tensor(targets))


def _facts(block: np.ndarray) -> list[float]:
    """What is easily counted in a block of bytes."""
    share = np.bincount(block, minlength=256) / len(block)
    some = share[share > 0]
    steps = np.abs(np.diff(block.astype(np.int64)))
    groups = ((0, 1), (1, 32), (32, 33), (33, 48), (48, 58), (65, 91), (97, 123), (128, 256))
    counted = [math.sqrt(share[low:high].sum()) for low, high in groups]
    surprise = -float((some * np.log2(some)).sum())
    return [surprise, len(some) / 256.0, float(steps.mean()) / 64.0, *counted]


def _blocks() -> Tensor:
    """Blocks of a kilobyte of six kinds of files, as many of each, [blocks, bytes]."""
    random = np.random.default_rng(4)
    data = _package("matplotlib") / "mpl-data"
    kinds = (
        sorted(Path(os.__file__).parent.glob("*.py")),
        sorted((data / "fonts" / "ttf").glob("*.ttf")),
        sorted((data / "fonts" / "afm").glob("*.afm")),
        sorted((data / "images").glob("*.p*")) + sorted((data / "sample_data").iterdir()),
        sorted(_package("sklearn").glob("datasets/data/*.csv*")),
        sorted(_package("numpy").glob("**/*.so")),
    )
    found = []
    for files in kinds:
        whole = np.frombuffer(b"".join(path.read_bytes()[:1_000_000] for path in files if path.is_file()), np.uint8)
        every = whole[: len(whole) // BLOCK * BLOCK].reshape(-1, BLOCK)
        found.append(every[random.permutation(len(every))[:BLOCKS_EACH]])
    return torch.from_numpy(np.concatenate(found))


@cache
def blocks() -> Data:
    """4,500 or so blocks of files: eleven counts of their bytes, and how small zlib makes them."""
    every = _blocks().numpy()
    x = torch.tensor([_facts(block) for block in every])
    y = torch.tensor([len(zlib.compress(block.tobytes(), 9)) / BLOCK for block in every])
    return _split((x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std())
