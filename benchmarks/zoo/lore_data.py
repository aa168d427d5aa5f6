"""Real tokens, tiles and files for held-out programs: packages as Python reads them, photographs, bytes on disk."""

from __future__ import annotations

import ast
import base64
import io
import keyword
import os
import pickle
import tokenize
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.zoo.data import _photo, _split, stretches
from benchmarks.zoo.recipe import Data

SPOKEN = ("asyncio", "concurrent/futures", "email", "http", "importlib", "logging", "multiprocessing", "unittest")
STORED = (
    "collections",
    "ctypes",
    "curses",
    "dbm",
    "html",
    "json",
    "sqlite3",
    "tkinter",
    "urllib",
    "wsgiref",
    "xml/sax",
)
NAMES, STRETCH = 320, 48
TILE, STRIDE, STRIP = 24, 8, 80
BYTES, PIECES_EACH = 16, 260
LAYOUT = {
    tokenize.NEWLINE: "line",
    tokenize.INDENT: "in",
    tokenize.DEDENT: "out",
    tokenize.NUMBER: "number",
    tokenize.STRING: "string",
    tokenize.NAME: "name",
}
SMALL = ("0", "1", "2", "''", '""')


@cache
def _sources(packages: tuple[str, ...]) -> tuple[str, ...]:
    """Modules of packages of the standard library."""
    folder = Path(os.__file__).parent
    return tuple(
        path.read_text(encoding="utf-8") for package in packages for path in sorted((folder / package).glob("*.py"))
    )


def _read(text: str) -> Iterator[tokenize.TokenInfo]:
    """Tokens of a module."""
    return tokenize.generate_tokens(io.StringIO(text).readline)


def _words(text: str) -> Iterator[tuple[int, str]]:
    """Kinds and spellings of the tokens that mean something, a docstring's first quote marks for all of it."""
    for token in _read(text):
        if token.type == tokenize.STRING:
            long = token.string.lstrip("rbfuRBFU").startswith('"""')
            yield token.type, '"""' if long else token.string
        elif token.type == tokenize.OP or token.type in LAYOUT:
            yield token.type, token.string


def _is_itself(kind: int, spelling: str) -> bool:
    """Whether a token has a number of its own however rare it is."""
    return kind == tokenize.OP or keyword.iskeyword(spelling) or spelling in SMALL or spelling == '"""'


@cache
def _spoken() -> tuple[Tensor, int]:
    """Tokens of several packages in a row, and how many there are: marks, keywords, common names, kinds of the rest."""
    words = [word for text in _sources(SPOKEN) for word in _words(text)]
    counts = Counter(spelling for kind, spelling in words if kind == tokenize.NAME and not keyword.iskeyword(spelling))
    common = {spelling for spelling, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:NAMES]}
    said = [
        spelling
        if _is_itself(kind, spelling) or (kind == tokenize.NAME and spelling in common)
        else f"<{LAYOUT[kind]}>"
        for kind, spelling in words
    ]
    place = {spelling: i for i, spelling in enumerate(sorted(set(said)))}
    return torch.tensor([place[spelling] for spelling in said]), len(place)


@cache
def spoken() -> Data:
    """Tokens of the standard library's packages: stretches of 48, and the same moved on by one."""
    return stretches(_spoken()[0], STRETCH)


def num_tokens() -> int:
    """How many different ones there are."""
    return _spoken()[1]


def _tiles(image: Tensor) -> tuple[Tensor, Tensor]:
    """Tiles of a picture to train on, also mirrored, and those that lie wholly in every fourth upright strip."""
    lefts = range(0, image.shape[2] - TILE + 1, STRIDE)
    columns = {left: {left // STRIP % 4 == 3, (left + TILE - 1) // STRIP % 4 == 3} for left in lefts}
    parts = []
    for held in (False, True):
        rows = [
            image[:, top : top + TILE, left : left + TILE]
            for left in lefts
            if columns[left] == {held}
            for top in range(0, image.shape[1] - TILE + 1, STRIDE)
        ]
        parts.append(torch.stack(rows))
    return torch.cat([parts[0], parts[0].flip(3)]), parts[1]


@cache
def views() -> Data:
    """2,700 or so tiles of both photographs at half their size, 24 pixels wide; the target is the tile itself."""
    train, held = zip(*(_tiles(F.avg_pool2d(_photo(number), 2)) for number in range(2)), strict=True)
    x, x_held = torch.cat(train), torch.cat(held)
    return Data((x, x), (x_held, x_held))


def _instructions(code: CodeType) -> Iterator[bytes]:
    """Bytecode of a module and of all that is in it."""
    yield code.co_code
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _instructions(part)


def _kinds(text: str) -> dict[str, bytes]:
    """A module as programs would store it."""
    tokens = [(token.type, token.string, *token.start) for token in _read(text)]
    bytecode = b"".join(_instructions(compile(text, "module", "exec")))
    packed = zlib.compress(text.encode())
    return {
        "source": text.encode(),
        "wide source": text.encode("utf-16-le"),
        "compressed": packed,
        "mailed": base64.encodebytes(packed),
        "printed": base64.b85encode(packed),
        "bytecode": bytecode,
        "hexadecimal": bytecode.hex().encode(),
        "tree": ast.dump(ast.parse(text)).encode(),
        "pickled tokens": pickle.dumps([string for _, string, _, _ in tokens], protocol=4),
        "places": np.array([(kind, *start) for kind, _, *start in tokens], dtype="<i4").tobytes(),
    }


@cache
def byte_plots() -> Data:
    """2,600 pieces of 256 bytes as pictures (Conti et al. 2008), and in which of ten ways a module was stored."""
    size = BYTES**2
    stored = [_kinds(text) for text in _sources(STORED) if len(text) > 2000]
    inputs, targets = [], []
    for label, kind in enumerate(stored[0]):
        streams = [np.frombuffer(kinds[kind], np.uint8) for kinds in stored]
        pieces = [stream[at : at + size] for stream in streams for at in range(0, len(stream) - size + 1, size)]
        chosen = np.linspace(0, len(pieces) - 1, PIECES_EACH).astype(int)
        inputs += [pieces[at] for at in chosen]
        targets += [label] * PIECES_EACH
    x = torch.tensor(np.stack(inputs), dtype=torch.float32).view(-1, 1, BYTES, BYTES)
    return _split((x - x.mean()) / x.std(), torch.tensor(targets))
