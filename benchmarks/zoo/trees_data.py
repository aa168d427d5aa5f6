"""Real sums, syntax trees and sentences, for held-out programs: pairs of digits, functions, documentation."""

from __future__ import annotations

import ast
import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.zoo.data import _split
from benchmarks.zoo.recipe import Data

PAIRS, SUMS = 4800, 19
MODULES = (
    "_pydecimal.py", "_pyio.py", "argparse.py", "ast.py", "collections/__init__.py", "datetime.py", "inspect.py",
    "logging/__init__.py", "mailbox.py", "pickle.py", "pydoc.py", "tarfile.py", "turtle.py", "typing.py",
    "unittest/mock.py", "urllib/request.py",
)  # fmt: skip
FUNCTIONS_EACH, SMALLEST = 140, 24
NODES, NODE_TYPES = 80, 256
PAD, OTHER = 0, 1
TAGGED, AHEAD, TAGS = 36, 6, 4
DOCUMENTED = 260_000
CHARACTERS = 96  # printable ones, lower case; zero is every other


@cache
def digit_sums() -> Data:
    """4,800 pairs of handwritten digits side by side, [2, 64], and what they add up to; no digit is in both parts."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = torch.tensor(raw.data, dtype=torch.float32)
    pixels, digits = (pixels - pixels.mean()) / pixels.std(), torch.tensor(raw.target)
    random = np.random.default_rng(5)
    order = torch.from_numpy(random.permutation(len(digits)))
    cut = len(order) * 3 // 4

    def paired(of: Tensor, size: int) -> tuple[Tensor, Tensor]:
        at = of[torch.from_numpy(random.integers(len(of), size=(size, 2)))]
        return pixels[at], digits[at].sum(1)

    return Data(paired(order[:cut], PAIRS * 3 // 4), paired(order[cut:], PAIRS // 4))


@cache
def _tree(name: str) -> ast.Module:
    """A parsed module of the standard library."""
    return ast.parse((Path(os.__file__).parent / name).read_bytes())


def _walked(node: ast.AST) -> Iterator[str]:
    """What a tree consists of, parents before children: kinds of nodes, and names behind those that have one."""
    yield type(node).__name__
    name = getattr(node, "id", None) or getattr(node, "attr", None)
    if name is not None:
        yield f".{name}"
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr_context):
            yield from _walked(child)


@cache
def syntax() -> Data:
    """1,700 or so functions as the first nodes of their syntax trees, and which of sixteen modules each is from."""
    rows: list[list[list[str]]] = []
    for name in MODULES:
        nodes = [node for node in ast.walk(_tree(name)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        rows.append([walk for node in nodes if len(walk := list(_walked(node))[1:]) >= SMALLEST])
    often = Counter(kind for walks in rows for kind in {kind for walk in walks for kind in walk})
    common = sorted(often.items(), key=lambda pair: (-pair[1], pair[0]))[: NODE_TYPES - OTHER - 1]
    place = {kind: i for i, (kind, _) in enumerate(common, OTHER + 1)}
    inputs, labels = [], []
    for label, walks in enumerate(rows):
        for at in np.random.default_rng(label).permutation(len(walks))[:FUNCTIONS_EACH]:
            row = [place.get(kind, OTHER) for kind in walks[at][:NODES]]
            inputs.append([*row, *[PAD] * (NODES - len(row))])
            labels.append(label)
    return _split(torch.tensor(inputs), torch.tensor(labels))


@cache
def run_together() -> Data:
    """Documentation without spaces and capitals; of each character, whether a word begins there, and its case.

    Rows reach a few characters further than their labels.
    """
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts: dict[str, None] = {}
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        nodes = [node for node in ast.walk(_tree(path.name)) if isinstance(node, holders)]
        texts.update((text, None) for node in nodes if (text := ast.get_docstring(node)) and len(text) > 100)
        if sum(map(len, texts)) > DOCUMENTED:
            break
    text = re.sub(r"\s+", " ", " ".join(texts))
    letters, tags = [], []
    for before, letter in zip(" " + text, text, strict=False):
        if letter != " ":
            letters.append(ord(letter.lower()) - 31 if " " < letter <= "~" else 0)
            tags.append(2 * (before == " ") + letter.isupper())
    num = (len(letters) - AHEAD) // TAGGED
    rows = torch.tensor(letters).unfold(0, TAGGED + AHEAD, TAGGED)[:num].contiguous()
    labels = torch.tensor(tags)[: num * TAGGED].view(num, TAGGED)
    held = torch.arange(num) // 32 % 4 == 3
    return Data((rows[~held], labels[~held]), (rows[held], labels[held]))
