"""Real sets, tables and points that come with Python and matplotlib: character sets, functions, seafloor, letters."""

from __future__ import annotations

import ast
import encodings.aliases
import os
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.zoo.data import _split
from benchmarks.zoo.recipe import Data

COUNTED = (
    "Name", "Attribute", "Call", "keyword", "Constant", "Assign", "AugAssign", "If", "For", "While", "Return",
    "Compare", "BinOp", "BoolOp", "UnaryOp", "Subscript", "Slice", "Tuple", "List", "Dict", "ListComp", "Lambda",
    "JoinedStr", "IfExp", "With", "Expr", "Import", "arg", "Starred", "Is", "IsNot", "In", "NotIn", "Eq", "Not",
    "And", "Or", "Add", "Sub", "Pass", "Continue", "Break",
)  # fmt: skip
FONTS = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral")
LATIN, CYRILLIC = "abcdefghijklmnopqrstuvwxyz", "абвгдежзийклмнопрстуфхцчшщъыьэюя"
POINTS = 48


def _characters(codec: str) -> set[str]:
    """What single bytes mean beyond ASCII, nothing where the codec is not about text."""
    try:
        found = {bytes([byte]).decode(codec, "ignore") for byte in range(256)}
    except LookupError:
        return set()
    return {c for c in found if len(c) == 1 and c >= "\xa0"}


@cache
def character_sets() -> tuple[Data, int, int]:
    """6,000 pairs of an encoding and a character that it has as one byte, and how many there are of either."""
    held = [chars for codec in sorted(set(encodings.aliases.aliases.values())) if len(chars := _characters(codec)) > 20]
    often = Counter(c for chars in held for c in chars)
    place = {c: i for i, c in enumerate(sorted(c for c, times in often.items() if times > 3))}
    pairs = torch.tensor([(i, place[c]) for i, chars in enumerate(held) for c in sorted(chars & place.keys())])
    return _split(pairs[:, 0], pairs[:, 1]), len(held), len(place)


@cache
def functions() -> Data:
    """7,000 functions of the standard library: how often each part of speech occurs, and whether errors are caught."""
    counts, catches = [], []
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                seen = Counter(type(part).__name__ for part in ast.walk(node))
                counts.append([seen[name] for name in COUNTED])
                catches.append(seen["Try"] > 0)
    x = torch.tensor(counts, dtype=torch.float32).log1p()
    return _split(
        ((x - x.mean(0)) / x.std(0).clamp_min(0.05)).clamp(-4.0, 4.0), torch.tensor(catches, dtype=torch.float32)
    )


@cache
def seafloor() -> Data:
    """7,900 places on and around Puget Sound: elevations of the four neighbors and the four diagonal ones."""
    from matplotlib.cbook import get_sample_data

    height = torch.from_numpy(np.load(get_sample_data("topobathy.npz", asfileobj=False))["topo"]).float()
    cells = ((height - height.mean()) / height.std()).unfold(0, 3, 1).unfold(1, 3, 1)
    rows, columns = (0, 1, 1, 2, 0, 0, 2, 2), (1, 0, 2, 1, 0, 2, 0, 2)
    around = cells[:, :, rows, columns].flatten(0, 1)
    return _split(around, around)


def _outline(letter: str, font: Any) -> np.ndarray:
    """Points at even distances along the outlines of a letter, around zero."""
    from matplotlib.textpath import TextPath

    loops = [np.asarray(loop) for loop in TextPath((0, 0), letter, size=100, prop=font).to_polygons()]
    corners = np.concatenate(loops)
    steps = np.linalg.norm(np.diff(corners, axis=0), axis=1)
    ends = np.cumsum(np.array([len(loop) for loop in loops[:-1]], dtype=np.int64))
    steps[ends - 1] = 0.0  # the pen is lifted between loops
    along = np.concatenate([[0.0], np.cumsum(steps)])
    at = np.linspace(0.0, along[-1], POINTS, endpoint=False)
    points = np.stack([np.interp(at, along, corners[:, i]) for i in range(2)], axis=1)
    return (points - points.mean(0)) / 25.0


@cache
def outlines(alphabet: str) -> Data:
    """Small and capital letters of an alphabet in sixteen fonts: points of the outline, and which letter it is."""
    from matplotlib import get_data_path
    from matplotlib.font_manager import FontProperties

    files = sorted(path for name in FONTS for path in Path(get_data_path(), "fonts/ttf").glob(f"{name}[-BI.]*"))
    fonts = [FontProperties(fname=path) for path in files if path.suffix == ".ttf"]
    drawn = [(_outline(form, font), i) for font in fonts for i, c in enumerate(alphabet) for form in (c, c.upper())]
    x = np.stack([points for points, _ in drawn]).astype(np.float32)
    return _split(x, np.array([letter for _, letter in drawn]))
