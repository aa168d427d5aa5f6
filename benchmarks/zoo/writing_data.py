"""Writing that comes with Python and its packages, for held-out programs: the Unicode database and documentation."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.zoo.data import _split, stretches
from benchmarks.zoo.recipe import Data

JAMO = 67  # 19 first consonants, 21 vowels, 27 last consonants; zero is what pads
ROOM = 10  # longest name of a character, in words with the end
START, END, UNKNOWN = 1, 2, 3
WORDS, STRETCH = 1200, 24
BUCKETS = 16384
FUNCTION = re.compile(r'^ *def (\w+)\([^"]*?\)[^"\n]*:\n +r?"""([A-Z][^"\n]+)', re.MULTILINE)
UNICODE = unicodedata.ucd_3_2_0  # the same in every Python


def _padded(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    """Rows of one width, zeros at the end."""
    return torch.tensor([[*row[:width], *[0] * (width - len(row))] for row in rows])


@cache
def hangul() -> Data:
    """11,172 words of three Korean syllables: Latin letters of their Unicode names, and the jamo they consist of."""
    random = np.random.default_rng(0)
    columns = [random.permutation(range(0xAC00, 0xD7A4)) for _ in range(3)]
    words = ["".join(map(chr, word)) for word in zip(*columns, strict=True)]
    latin = ["".join(UNICODE.name(syllable).split()[-1] for syllable in word) for word in words]
    letters = [[ord(letter) - ord("A") + 1 for letter in word] for word in latin]
    jamo = [[_jamo(ord(part)) for part in UNICODE.normalize("NFD", word)] for word in words]
    return _split(_padded(letters, max(map(len, letters))), _padded(jamo, 9))


def _jamo(code: int) -> int:
    """Which of the 67 a combining jamo is, from one on."""
    start, before = (0x1100, 1) if code < 0x1161 else (0x1161, 20) if code < 0x11A8 else (0x11A8, 41)
    return code - start + before


@cache
def character_names() -> tuple[Data, int, int]:
    """What a character is made of and the words of its name, in the Unicode database; and both vocabularies."""
    texts = [chr(code) for code in range(0x20000) if not 0xAC00 <= code < 0xD7A4]
    found = [
        (parts.split(), UNICODE.name(text, "").split()) for text in texts if (parts := UNICODE.decomposition(text))
    ]
    pairs = [(parts, name) for parts, name in found if 0 < len(parts) < 6 and 0 < len(name) < ROOM]
    parts_of = _numbered([part for parts, _ in pairs for part in parts], least=2)
    words_of = _numbered([word for _, name in pairs for word in name], least=2)
    known = [pair for pair in pairs if all(p in parts_of for p in pair[0]) and all(w in words_of for w in pair[1])]
    inputs = _padded([[parts_of[part] for part in parts] for parts, _ in known], 5)
    targets = _padded([[*(words_of[word] for word in name), END] for _, name in known], ROOM)
    return _split(inputs, targets), len(parts_of) + UNKNOWN + 1, len(words_of) + UNKNOWN + 1


def _numbered(words: list[str], *, least: int = 1, most: int | None = None) -> dict[str, int]:
    """Numbers of the words that are frequent enough, commonest first, after the special ones."""
    common = sorted(Counter(words).items(), key=lambda pair: (-pair[1], pair[0]))[:most]
    return {word: i for i, (word, times) in enumerate(common, UNKNOWN + 1) if times >= least}


@cache
def manual() -> Data:
    """Words of numpy's documentation: stretches, and the same moved on by one."""
    namespaces = (np, np.ndarray, np.linalg, np.fft, np.random, np.ma, np.polynomial.Polynomial)
    docs = {
        value.__doc__: None
        for space in namespaces
        for name, value in sorted(vars(space).items())
        if not name.startswith("_") and isinstance(getattr(value, "__doc__", None), str)
    }
    words = re.findall(r"[A-Za-z]+|\d|[^\w\s]|\n", re.sub(r"\s*\n\s*", "\n", "\n\n".join(docs)).lower())
    place = _numbered(words, most=WORDS - UNKNOWN - 1)
    tokens = torch.tensor([place.get(word, UNKNOWN) for word in words])
    return stretches(tokens, STRETCH)


@cache
def functions() -> Data:
    """Names of functions in three packages and the first lines of their documentation, as hashed words and letters."""
    found = set()
    for package in ("matplotlib", "sklearn", "torch"):
        spec = find_spec(package)
        for folder in spec.submodule_search_locations or () if spec else ():
            for path in sorted(Path(folder).rglob("*.py")):
                found.update(FUNCTION.findall(path.read_text(errors="ignore")))
    pairs = sorted((name, line) for name, line in found if not name.endswith("__"))
    return _split(*(_padded([_hashed(pair[i]) for pair in pairs], 24 * (i + 1)) for i in range(2)))


def _hashed(text: str) -> list[int]:
    """Buckets of the words of a text and of the four letters that they begin with."""
    words = re.findall(r"[a-z]+", text.lower())
    pieces = [*words, *(f"{word[:4]}…" for word in words if len(word) > 4)]
    return [zlib.crc32(piece.encode()) % (BUCKETS - 1) + 1 for piece in pieces]
