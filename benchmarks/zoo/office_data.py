"""Real pictures, tables, bytes and signatures: thumbnails of source, glyphs of fonts, compiled modules, operators."""

from __future__ import annotations

import io
import marshal
import os
import re
import sys
import tokenize
from collections import Counter
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.font_manager import get_font
from matplotlib.ft2font import FT2Font
from matplotlib.path import Path as Outline

from benchmarks.zoo.data import _split
from benchmarks.zoo.recipe import Data

LINES, COLUMNS, PAGES = 16, 64, 800
INKS = ("paper", "code", "comment", "string")
GLYPHS_EACH = 420
BYTES, STRETCHES = 64, 6000
SECTIONS = ("header", "instructions", "constants", "names", "line table", "exception table")
IS_NEW = sys.version_info >= (3, 11)  # a code object has other parts since then
HEAD = 20 if IS_NEW else 24
LAYOUT = (1, 2, 3, 3, 3, 3, 3, 3, -4, 4, 5) if IS_NEW else (1, 2, 3, 3, 3, 3, 3, 3, -4, 4)  # less than 0: a bare number
LENGTHS = {"s": 4, "t": 4, "u": 4, "a": 4, "A": 4, "z": 1, "Z": 1, "f": 1}
COUNTS = {"(": 4, ")": 1, "[": 4, "<": 4, ">": 4}
FIXED = {"i": 4, "r": 4, "I": 8, "g": 8, "y": 16}
WORDS, RARE = 40, 3
RESULTS = ("tensor", "view", "written", "list", "tensors", "nothing", "truth", "number", "other")


def _modules() -> list[Path]:
    """The standard library's modules."""
    return sorted(Path(os.__file__).parent.glob("*.py"))


def _fonts() -> list[str]:
    """Files of matplotlib's fonts for text."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [str(path) for pattern in ("DejaVu*.ttf", "STIXGeneral*.ttf") for path in sorted(folder.glob(pattern))]


@cache
def _darkness() -> np.ndarray:
    """How much ink each of 128 characters takes, from 0 to 1; what is not printed takes none."""
    font = get_font(next(name for name in _fonts() if name.endswith("DejaVuSansMono.ttf")))
    font.set_size(20, 72)
    ink = np.zeros(128)
    for code in range(33, 127):
        font.set_text(chr(code), 0.0)
        font.draw_glyphs_to_bitmap(antialiased=True)
        ink[code] = float(np.array(font.get_image()).sum())
    ink /= ink.max()
    return ink


def _thumbnail(text: str) -> tuple[np.ndarray, np.ndarray]:
    """A pixel for each two characters as an editor's overview draws them, and the kind of ink there."""
    lines = text.expandtabs().splitlines()
    codes, kinds = (np.zeros((len(lines), COLUMNS), np.int64) for _ in range(2))
    for row, line in enumerate(lines):
        letters = [min(ord(letter), 127) for letter in line[:COLUMNS]]
        codes[row, : len(letters)] = letters
    kinds[_darkness()[codes] > 0] = INKS.index("code")
    for token in tokenize.generate_tokens(io.StringIO(text.expandtabs()).readline):
        if token.type not in (tokenize.COMMENT, tokenize.STRING):
            continue
        kind = INKS.index("comment" if token.type == tokenize.COMMENT else "string")
        for row in range(token.start[0] - 1, token.end[0]):
            start = token.start[1] if row == token.start[0] - 1 else 0
            end = token.end[1] if row == token.end[0] - 1 else COLUMNS
            part = kinds[row, start:end]
            part[part > 0] = kind
    ink = _darkness()[codes]
    return ink.reshape(len(lines), -1, 2).mean(2), kinds.reshape(len(lines), -1, 2).max(2)


@cache
def thumbnails() -> Data:
    """800 overviews of 16 lines of the standard library, and of each pixel if it is code, comment, string or none."""
    pictures, targets = [], []
    for path in _modules():
        ink, kinds = _thumbnail(path.read_text(encoding="utf-8", errors="ignore"))
        for top in range(0, len(ink) - LINES + 1, LINES):
            rows = slice(top, top + LINES)
            if all((kinds[rows] == kind).mean() > 0.01 for kind in range(1, len(INKS))):
                pictures.append(ink[rows])
                targets.append(kinds[rows])
    chosen = np.random.default_rng(5).permutation(len(pictures))[:PAGES]
    x = torch.tensor(np.stack(pictures)[chosen], dtype=torch.float32)[:, None]
    return _split((x - x.mean()) / x.std(), torch.tensor(np.stack(targets)[chosen]))


def _area(outline: Outline) -> float:
    """What the closed curves of a glyph enclose, holes taken away (by the shoelace formula)."""
    whole = 0.0
    for loop in outline.to_polygons(closed_only=True):
        x, y = np.asarray(loop).T
        whole += float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2.0
    return abs(whole)


def _measures(font: FT2Font, name: str, code: int) -> list[float] | None:
    """What a type designer's table says of a glyph, then how much ink it takes; None where it is empty."""
    glyph = font.load_char(code)
    vertices, codes = font.get_path()
    if len(vertices) < 3:
        return None
    area = _area(Outline(vertices, codes))
    if area < 1.0:
        return None
    left, bottom, right, top = (float(edge) / 64.0 for edge in glyph.bbox)
    counts = [float((codes == kind).sum()) for kind in (Outline.MOVETO, Outline.LINETO, Outline.CURVE3)]
    letter = chr(code)
    is_what = [letter.islower(), letter.isupper(), letter.isdigit(), letter.isalpha(), not letter.isalnum()]
    style = [word in name for word in ("Bold", "Oblique", "Italic", "Mono", "Serif", "STIX")]
    sides = np.log([right - left, top - bottom])
    box = [left, bottom, *map(float, sides), glyph.linearHoriAdvance / 65536.0]
    return [*box, *np.log1p(counts), *map(float, is_what), *map(float, style), float(np.log(area))]


@cache
def glyphs() -> Data:
    """6,700 or so glyphs of eighteen fonts: box, advance, pieces of outline, kind and style; logarithm of the ink."""
    random = np.random.default_rng(6)
    rows = []
    for path in _fonts():
        font = FT2Font(path)
        font.set_size(64, 72)
        codes = sorted(font.get_charmap())
        for code in random.permutation(codes)[:GLYPHS_EACH]:
            row = _measures(font, Path(path).stem, int(code))
            if row is not None:
                rows.append(row)
    table = torch.tensor(rows, dtype=torch.float32)
    table = (table - table.mean(0)) / table.std(0).clamp_min(1e-3)
    return _split(table[:, :-1], table[:, -1:])


def _mark(data: bytes, at: int, section: int, marks: np.ndarray) -> int:
    """Write down the section of an object of Python's marshal format that begins at a byte; where it ends."""
    kind, begin = chr(data[at] & 0x7F), at
    at += 1
    if kind == "c":
        at += HEAD
        marks[begin:at] = 0
        for part in LAYOUT:
            if part > 0:
                at = _mark(data, at, part, marks)
            else:
                marks[at : at + 4] = -part
                at += 4
        return at
    if kind in COUNTS or kind == ":":
        width = COUNTS.get(kind, 0)
        num = int.from_bytes(data[at : at + width], "little") if width else 3
        at += width
        marks[begin:at] = section
        for _ in range(num):
            at = _mark(data, at, section, marks)
        return at
    if kind in LENGTHS:
        width = LENGTHS[kind]
        at += width + int.from_bytes(data[at : at + width], "little")
    elif kind == "l":
        at += 4 + 2 * abs(int.from_bytes(data[at : at + 4], "little", signed=True))
    else:
        at += FIXED.get(kind, 0)
    marks[begin:at] = section
    return at


@cache
def compiled() -> Data:
    """6,000 stretches of 64 bytes of compiled modules, and in which of six sections of a code object each byte is."""
    inputs, targets = [], []
    for path in _modules():
        data = marshal.dumps(compile(path.read_bytes(), path.name, "exec"))
        marks = np.full(len(data), -1)
        if _mark(data, 0, 0, marks) != len(data) or (marks < 0).any():
            raise RuntimeError(f"{path.name} is laid out in another way")
        num = len(data) // BYTES * BYTES
        inputs.append(np.frombuffer(data, np.uint8)[:num].reshape(-1, BYTES))
        targets.append(marks[:num].reshape(-1, BYTES))
    x, y = np.concatenate(inputs), np.concatenate(targets)
    chosen = np.random.default_rng(7).permutation(len(x))[:STRETCHES]
    return _split(torch.tensor(x[chosen], dtype=torch.long), torch.tensor(y[chosen], dtype=torch.long))


def _result(returned: str) -> int:
    """Which kind of result an operator gives, by what its signature says."""
    bare = returned.strip()
    first = re.match(r"\(?(\w+)", bare)
    kind = first[1] if first else ""
    if bare == "()":
        name = "nothing"
    elif "!" in bare:
        name = "written"
    elif bare.startswith("(") and "Tensor" in bare:
        name = "tensors"
    elif "Tensor" in bare:
        name = "list" if "[]" in bare else "view" if "(" in bare else "tensor"
    else:
        numbers = ("int", "float", "complex", "Scalar", "SymInt")
        name = "truth" if kind == "bool" else "number" if kind in numbers else "other"
    return RESULTS.index(name)


def _words(name: str, arguments: str) -> list[str]:
    """Words of an operator's name, then types and names of what it takes, without what says that it is written to."""
    plain = re.sub(r"\([a-z!*|\-> ]+\)", "", arguments)
    return [*re.findall(r"[a-z]+|\d+", name.lower()), *re.findall(r"[A-Za-z]+\??(?:\[\d*\])?|\*", plain)]


@cache
def _operators() -> tuple[Data, int]:
    """Signatures as numbers of words, and how many different words there are."""
    pattern = re.compile(r"([\w:.]+)\((.*)\) -> (.*)")
    texts: dict[str, None] = {}
    for schema in torch._C._jit_get_all_schemas():
        texts.setdefault(str(schema))
    rows, results = [], []
    for text in sorted(texts):
        found = pattern.fullmatch(text)
        if found is not None:
            rows.append(_words(found[1], found[2])[:WORDS])
            results.append(_result(found[3]))
    often = Counter(word for row in rows for word in row)
    usual = sorted(word for word, times in often.items() if times >= RARE)
    place = {word: i + 2 for i, word in enumerate(usual)}  # zero is padding, one a rare word
    padded = [[place.get(word, 1) for word in row] + [0] * (WORDS - len(row)) for row in rows]
    return _split(torch.tensor(padded), torch.tensor(results)), len(usual) + 2


def operators() -> Data:
    """4,300 or so signatures of PyTorch's operators, word by word with zeros behind, and what each gives back."""
    return _operators()[0]


def num_words() -> int:
    """How many different words the signatures have."""
    return _operators()[1]
