"""Real data that comes with matplotlib, as inputs and targets: letters, terrain, a portrait, a cell's voltage."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.ft2font import FT2Font
from torch import Tensor
from torch.nn import functional as F

from benchmarks.zoo.data import _split
from benchmarks.zoo.recipe import Data

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"  # capitals, and lower case where it looks different
FONTS = tuple(f"DejaVu{family}{style}" for family in ("Sans", "SansMono") for style in ("", "-Oblique", "-Bold"))
FONTS += ("DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic", "STIXGeneral")
FONTS += ("STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta", "cmr10", "cmb10", "cmss10", "cmti10", "cmtt10")
VIEWS = 6
CANVAS, LETTER_SIZE = 48, 20

PAST, AHEAD, SPACING = 40, 10, 5


def _folder(name: str) -> Path:
    return Path(matplotlib.get_data_path()) / name


def _drawn(font: FT2Font, letter: str) -> Tensor:
    """A letter in the middle of a square, from 0 to 1."""
    font.set_text(letter, 0.0)
    font.draw_glyphs_to_bitmap(antialiased=True)
    ink = torch.tensor(np.array(font.get_image())[:CANVAS, :CANVAS], dtype=torch.float32) / 255.0
    top, left = (CANVAS - ink.shape[0]) // 2, (CANVAS - ink.shape[1]) // 2
    return F.pad(ink, (left, CANVAS - left - ink.shape[1], top, CANVAS - top - ink.shape[0]))


@cache
def letters() -> Data:
    """4,218 images of 37 letters in nineteen fonts, each turned, moved and scaled a little, and which letter it is.

    Old versions of matplotlib bring one font less.
    """
    images = []
    files = [path for name in FONTS if (path := _folder("fonts/ttf") / f"{name}.ttf").exists()]
    for path in files:
        font = FT2Font(str(path))
        font.set_size(36, 72)
        images += [_drawn(font, letter) for letter in LETTERS]
    drawn = torch.stack(images)[:, None].repeat(VIEWS, 1, 1, 1)
    random = torch.Generator().manual_seed(0)
    turn, scale, right, down = torch.rand(4, len(drawn), generator=random) * 2.0 - 1.0
    angle, zoom = 0.15 * turn, 0.75 + 0.12 * scale
    rows = [zoom * angle.cos(), -zoom * angle.sin(), 0.12 * right, zoom * angle.sin(), zoom * angle.cos(), 0.12 * down]
    turned = torch.stack(rows, 1).view(-1, 2, 3)
    grid = F.affine_grid(turned, [len(drawn), 1, LETTER_SIZE, LETTER_SIZE], align_corners=False)
    x = F.grid_sample(drawn, grid, align_corners=False)
    x = x + 0.05 * torch.randn(x.shape, generator=random)
    y = torch.arange(len(LETTERS)).repeat(VIEWS * len(files))
    return _split((x - x.mean()) / x.std(), y)


@cache
def terrain() -> Data:
    """1,968 tiles of an elevation model of Tennessee: eight pixels wide, and the same land at 24."""
    raw = np.load(_folder("sample_data") / "jacksboro_fault_dem.npz")["elevation"]
    height = torch.tensor(raw.astype(np.float32))
    height = (height - height.mean()) / height.std()
    fine = height.unfold(0, 24, 8).unfold(1, 24, 8).flatten(0, 1)[:, None]
    return _split(F.avg_pool2d(fine, 3), fine)


@cache
def portrait() -> Data:
    """1,116 patches of a portrait of Grace Hopper, sixteen pixels wide: brightness, and blue and red beside it."""
    from matplotlib.image import imread

    raw = torch.tensor(np.array(imread(_folder("sample_data") / "grace_hopper.jpg")), dtype=torch.float32)
    red, green, blue = F.avg_pool2d(raw.permute(2, 0, 1), 2)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    planes = torch.stack([luma, blue - luma, red - luma])
    planes = (planes - planes.mean((1, 2), keepdim=True)) / planes.std((1, 2), keepdim=True)
    tiles = planes.unfold(1, 16, 8).unfold(2, 16, 8).permute(1, 2, 0, 3, 4).flatten(0, 1).contiguous()
    return _split(tiles[:, :1], tiles[:, 1:])


@cache
def voltage() -> Data:
    """2,441 windows of a spiking cell's membrane potential: 40 moments, and the ten that follow."""
    raw = np.fromfile(_folder("sample_data") / "membrane.dat", np.float32)[1000:11000]
    trace = torch.tensor((raw - raw.mean()) / raw.std())
    windows = trace.unfold(0, (PAST + AHEAD) * SPACING, 4)[:, ::SPACING]
    return _split(windows[:, :PAST], windows[:, PAST:])
