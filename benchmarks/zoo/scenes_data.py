"""Reliefs of syntax, pairs of views, distances to outlines: from the standard library and scikit-learn's pictures."""

from __future__ import annotations

import ast
import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.zoo.data import _split
from benchmarks.zoo.recipe import Batch, Data

LEVELS, ROWS, COLUMNS = 16, 10, 14
VIEWS, HEIGHT, WIDTH, FARTHEST = 2000, 16, 32, 7.0
POINTS, TRUNCATED, FINE = 24, 0.3, 6


def _relief(text: str) -> np.ndarray:
    """How deep in the syntax tree each character of a module is, one row a line; nothing beyond a line's end."""
    lines = [line.encode() for line in text.split("\n")]
    relief = np.zeros((len(lines), max(map(len, lines))), np.int64)

    def paint(node: ast.AST, depth: int) -> None:
        if isinstance(node, (ast.stmt, ast.expr)):
            depth += 1
            first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
            for row in range(first, last + 1):
                start = node.col_offset if row == first else 0
                end = node.end_col_offset if row == last else len(lines[row])
                relief[row, start:end] = min(depth, LEVELS - 1)
        for child in ast.iter_child_nodes(node):
            paint(child, depth)

    paint(ast.parse(text), 0)
    return relief


@cache
def reliefs() -> Data:
    """4,000 or so stretches of ten lines of the standard library, from where they begin to be indented on: how deep
    in the syntax tree each of the first fourteen characters is, from −1 to 1; the target is the picture itself.
    """
    pictures = []
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        relief = _relief(path.read_text(errors="ignore").expandtabs().replace("\f", " "))
        relief = np.pad(relief, ((0, 0), (0, COLUMNS)))
        for top in range(0, len(relief) - ROWS, 2 * ROWS):
            strip = relief[top : top + ROWS]
            ink = (np.diff(strip, axis=1) != 0).any(0).nonzero()[0]
            left = max(int(ink[0]) - 1, 0) if len(ink) else 0
            picture = strip[:, left : left + COLUMNS]
            if picture.shape[1] == COLUMNS and len(np.unique(picture)) > 3:
                pictures.append(picture)
    x = torch.tensor(np.stack(pictures), dtype=torch.float32).unsqueeze(1) * (2.0 / (LEVELS - 1)) - 1.0
    return _split(x, x)


@cache
def _brightness() -> list[Tensor]:
    """Both photographs without color, around zero."""
    from sklearn.datasets import load_sample_images

    gray = [torch.tensor(image, dtype=torch.float32).mean(2) for image in load_sample_images().images]
    return [(image - image.mean()) / image.std() for image in gray]


def _views(number: int, columns: tuple[float, float], random: np.random.Generator) -> Batch:
    """Pairs of views from a part of the photographs, and how far each place has moved, in pixels of half the size."""
    pairs: list[Tensor] = []
    moved: list[Tensor] = []
    while len(pairs) < number:
        photo = _brightness()[int(random.integers(2))]
        low, high = (int(share * photo.shape[1]) for share in columns)
        top = int(random.integers(photo.shape[0] - HEIGHT))
        left = int(random.integers(low, high - WIDTH - int(FARTHEST) - 1))
        strip = photo[top : top + HEIGHT, left : left + WIDTH + int(FARTHEST) + 1]
        if float(strip.std()) < 0.25:
            continue
        near, far = sorted(random.uniform(0.0, FARTHEST, 2))
        along, down = np.meshgrid(np.linspace(-1, 1, WIDTH), np.linspace(-1, 1, HEIGHT))
        slopes = random.uniform(-0.8, 0.8, 2)
        distance = near + slopes[0] * along + slopes[1] * down
        turn = random.uniform(0.0, 2.0 * np.pi)
        side = np.cos(turn) * along + np.sin(turn) * down > random.uniform(-0.5, 0.5)
        shift = torch.tensor(np.where(side, far, distance).clip(0.0, FARTHEST), dtype=torch.float32)
        at = torch.arange(WIDTH) + shift
        whole = at.floor().long()
        part = at - whole
        seen = (1.0 - part) * strip.gather(1, whole) + part * strip.gather(1, whole + 1)
        pairs.append(torch.stack([float(random.uniform(0.85, 1.15)) * seen, strip[:, :WIDTH]]))
        moved.append(F.avg_pool2d(shift[None], 2) / 2.0)
    return torch.stack(pairs), torch.stack(moved)


@cache
def views() -> Data:
    """2,000 pairs of views of a photographed strip in which a slope and what stands before it move apart; the last
    quarter of either photograph validates.
    """
    random = np.random.default_rng(2)
    return Data(_views(VIEWS * 3 // 4, (0.0, 0.75), random), _views(VIEWS // 4, (0.75, 1.0), random))


def _outline(field: Tensor) -> Tensor:
    """Where a field on a grid crosses zero between neighbors, as places from −1 to 1, [points, 2]."""
    side = len(field)
    found = []
    for axis in range(2):
        a, b = field.narrow(axis, 0, side - 1), field.narrow(axis, 1, side - 1)
        cells = ((a > 0) != (b > 0)).nonzero()
        values = a[cells[:, 0], cells[:, 1]], b[cells[:, 0], cells[:, 1]]
        places = cells.float()
        places[:, axis] += values[0] / (values[0] - values[1])
        found.append(places)
    return torch.cat(found) * (2.0 / (side - 1)) - 1.0


@cache
def distances() -> Data:
    """1,797 handwritten digits with 24 places each, and how far each place is from the digit's outline, negative
    within it, truncated, in units of the truncation.
    """
    from sklearn.datasets import load_digits

    images = torch.tensor(load_digits().images, dtype=torch.float32)
    padded = F.pad(images, (1, 1, 1, 1))[:, None] / 16.0 - 0.5
    random = torch.Generator().manual_seed(3)
    fields = F.interpolate(padded, scale_factor=FINE, mode="bicubic", align_corners=True)[:, 0]
    inputs, targets = [], []
    for image, field in zip((images - images.mean()) / images.std(), fields, strict=True):
        outline = _outline(field)
        chosen = outline[torch.randint(len(outline), (POINTS * 2 // 3,), generator=random)]
        close = chosen + 0.1 * torch.randn(chosen.shape, generator=random)
        anywhere = 2.0 * torch.rand(POINTS - len(close), 2, generator=random) - 1.0
        places = torch.cat([close, anywhere]).clamp(-1.0, 1.0)
        inside = F.grid_sample(field[None, None], places.flip(1)[None, None], align_corners=True).flatten() > 0
        far = torch.cdist(places, outline).amin(1)
        inputs.append(torch.cat([image.flatten(), places.flatten()]))
        targets.append(torch.where(inside, -far, far).clamp(-TRUNCATED, TRUNCATED) / TRUNCATED)
    return _split(torch.stack(inputs), torch.stack(targets))
