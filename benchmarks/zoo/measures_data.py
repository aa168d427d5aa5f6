"""Real scenes, curves and counts that come with matplotlib and Python: digits among letters, outlines, bytecode."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType

import matplotlib
import numpy as np
import torch
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font
from matplotlib.textpath import TextPath
from torch import Tensor

from benchmarks.zoo.data import _split
from benchmarks.zoo.recipe import Data

SANS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold")
SERIF = ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol")
SIDE, SCENES = 24, 1800
DIGITS, CLUTTER = "0123456789", "ABCDEFGHJKLMNPQRTUVWXYabdefhkmnprtuy"
GREEK = "ΓΔΘΛΠΣΦΨΩαβγδεζηθκλμνξπρστφχψω"
CURVE, CURVES_EACH = 40, 8


def _file(name: str) -> str:
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf")


@cache
def _ink(name: str, size: int, letter: str) -> Tensor:
    """A drawn letter without a margin, from 0 to 1."""
    font = FT2Font(_file(name))
    font.set_size(size, 72)
    font.set_text(letter, 0.0)
    font.draw_glyphs_to_bitmap(antialiased=True)
    ink = torch.tensor(np.array(font.get_image()), dtype=torch.float32) / 255.0
    rows, columns = ink.amax(1).nonzero().flatten(), ink.amax(0).nonzero().flatten()
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@cache
def scenes() -> Data:
    """1,800 scenes of up to two digits and two letters that overlap a little, and which pixels are a digit's."""
    random = np.random.default_rng(0)
    x, y = torch.zeros(SCENES, 1, SIDE, SIDE), torch.zeros(SCENES, 1, SIDE, SIDE)
    for scene, target in zip(x, y, strict=True):
        counts = random.integers(1, 3, 2)
        quarters = [int(quarter) for quarter in random.permutation(4)]
        for wanted in random.permutation([True] * counts[0] + [False] * counts[1]):
            letter = str(random.choice(list(DIGITS if wanted else CLUTTER)))
            ink = _ink(str(random.choice(SANS + SERIF)), int(random.integers(11, 15)), letter)[:SIDE, :SIDE]
            corner = [part * SIDE // 2 + int(random.integers(-2, 3)) for part in divmod(quarters.pop(), 2)]
            top, left = (min(max(at, 0), SIDE - length) for at, length in zip(corner, ink.shape, strict=True))
            place = (0, slice(top, top + ink.shape[0]), slice(left, left + ink.shape[1]))
            scene[place] = torch.maximum(scene[place], float(random.uniform(0.6, 1.0)) * ink)
            target[place] = torch.where(ink > 0.4, float(wanted), target[place])
    x = x + 0.08 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return _split((x - x.mean()) / x.std(), y)


def _curve(name: str, letter: str) -> np.ndarray:
    """The longest outline of a letter, as many points at equal distances, in the middle, [2, points]."""
    path = TextPath((0.0, 0.0), letter, size=100.0, prop=FontProperties(fname=_file(name)))
    loops = [np.asarray(loop) for loop in path.to_polygons()]
    lengths = [np.linalg.norm(np.diff(loop, axis=0), axis=1) for loop in loops]
    loop, steps = max(zip(loops, lengths, strict=True), key=lambda pair: float(pair[1].sum()))
    walked = np.concatenate([[0.0], steps.cumsum()])
    at = np.linspace(0.0, walked[-1], CURVE, endpoint=False)
    points = np.stack([np.interp(at, walked, loop[:, axis]) for axis in range(2)])
    return points - points.mean(1, keepdims=True)


@cache
def curves() -> Data:
    """2,400 outlines of thirty Greek letters in ten fonts, bent, begun anywhere, and which letter it is."""
    random = np.random.default_rng(1)
    inputs, targets = [], []
    for name in SANS + SERIF:
        for label, letter in enumerate(GREEK):
            curve = _curve(name, letter)
            for _ in range(CURVES_EACH):
                bend = np.eye(2) + 0.12 * random.standard_normal((2, 2))
                trembling = bend @ curve + random.standard_normal(curve.shape)
                inputs.append(np.roll(trembling, int(random.integers(CURVE)), axis=1))
                targets.append(label)
    x = torch.tensor(np.stack(inputs), dtype=torch.float32)
    return _split(x / x.std(), torch.tensor(targets))


def _inside(code: CodeType) -> Iterator[CodeType]:
    """The code objects within one."""
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield part
            yield from _inside(part)


@cache
def bytecode() -> Data:
    """8,400 compiled functions: how often each instruction occurs; how many lines, names, locals, how deep a stack."""
    counts, sizes = [], []
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        for code in _inside(compile(path.read_bytes(), path.name, "exec")):
            lines = {line for _, _, line in code.co_lines() if line is not None}
            counts.append(np.bincount(np.frombuffer(code.co_code, np.uint8)[::2], minlength=256))
            sizes.append((len(lines), len(code.co_names), code.co_nlocals, code.co_stacksize))
    table, wanted = np.stack(counts), np.array(sizes)
    x = torch.tensor(table[:, (table > 0).mean(0) > 0.02], dtype=torch.float32).log1p()
    y = torch.tensor(wanted, dtype=torch.float32).log1p()
    return _split((x - x.mean(0)) / x.std(0), (y - y.mean(0)) / y.std(0))
