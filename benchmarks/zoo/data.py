"""Real data that comes with Python and scikit-learn, as inputs and targets; nothing is downloaded. No thermoclaw here.

Later programs have modules of data beside this one. No data is shared between development and held-out programs.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.zoo.recipe import Data

SOURCE_FILES = ("argparse.py", "ast.py", "datetime.py", "decimal.py", "difflib.py", "inspect.py", "tarfile.py")
SOURCE_FILES += ("typing.py", "zipfile.py", "subprocess.py", "socket.py", "threading.py", "turtle.py", "pdb.py")
WINDOW = 48


def _split(inputs: Any, targets: Any, *, seed: int = 0) -> Data:
    """Three quarters to train on, the rest to validate, shuffled once and for all."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(inputs)))
    x, y = torch.as_tensor(inputs)[order], torch.as_tensor(targets)[order]
    cut = len(x) * 3 // 4
    return Data((x[:cut], y[:cut]), (x[cut:], y[cut:]))


@cache
def digits() -> Data:
    """1,797 handwritten digits: 64 pixels around zero, and which digit it is."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.tensor(raw.data, dtype=torch.float32)
    return _split((x - x.mean()) / x.std(), torch.tensor(raw.target))


@cache
def some_digits(wanted: tuple[int, ...]) -> Data:
    """Only the digits asked for, numbered from zero."""
    place = {digit: i for i, digit in enumerate(wanted)}

    def chosen(part: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        keep = torch.tensor([int(y) in place for y in part[1]])
        return part[0][keep], torch.tensor([place[int(y)] for y in part[1][keep]])

    return digits().mapped(chosen)


def _table(loader: str) -> tuple[Tensor, Tensor]:
    """Standardized columns and the target of one of scikit-learn's tables."""
    import sklearn.datasets

    raw = getattr(sklearn.datasets, loader)()
    x = torch.tensor(raw.data, dtype=torch.float32)
    return (x - x.mean(0)) / x.std(0), torch.tensor(raw.target)


@cache
def diabetes() -> Data:
    """442 patients: ten measurements, and how the disease went on."""
    x, y = _table("load_diabetes")
    y = y.float()
    return _split(x, (y - y.mean()) / y.std())


@cache
def wine() -> Data:
    """178 wines: thirteen measurements, and the cultivar."""
    return _split(*_table("load_wine"))


@cache
def cancer() -> tuple[Tensor, Data]:
    """569 tumours: thirty measurements each, and node numbers with the diagnosis."""
    x, y = _table("load_breast_cancer")
    return x, _split(torch.arange(len(x)), y)


@cache
def english() -> Data:
    """Characters of the language reference: windows, and the same moved on by one."""
    from pydoc_data.topics import topics

    return _windows("\n\n".join(str(topics[name]) for name in sorted(topics))[:400_000])


@cache
def source() -> Data:
    """Bytes of the standard library's modules: windows, and the same moved on by one."""
    folder = Path(os.__file__).parent
    found = [folder / name for name in SOURCE_FILES if (folder / name).exists()]
    return _windows("".join(path.read_text(errors="ignore")[:40_000] for path in found), letters=128)


@cache
def vocabulary(name: str) -> int:
    """Number of different characters that a text has."""
    return int({"english": english, "source": source}[name]().train[0].max()) + 1


def _windows(text: str, *, letters: int | None = None) -> Data:
    """Non-overlapping windows; every fourth stretch of text validates."""
    if letters is None:
        place = {c: i for i, c in enumerate(sorted(set(text)))}
        tokens = torch.tensor([place[c] for c in text])
    else:
        tokens = torch.tensor([min(ord(c), letters - 1) for c in text])
    return stretches(tokens, WINDOW)


def stretches(tokens: Tensor, length: int) -> Data:
    """Tokens in stretches that do not overlap, and the same moved on by one; every fourth run of 32 validates."""
    num = (len(tokens) - 1) // length
    x = tokens[: num * length].view(num, length)
    y = tokens[1 : num * length + 1].view(num, length)
    held = torch.arange(num) // 32 % 4 == 3
    return Data((x[~held], y[~held]), (x[held], y[held]))


@cache
def _photo(number: int) -> Tensor:
    """One of scikit-learn's two photographs, [3, height, width], around zero."""
    from sklearn.datasets import load_sample_images

    image = torch.tensor(load_sample_images().images[number], dtype=torch.float32).permute(2, 0, 1)
    return (image - image.mean()) / image.std()


@cache
def patches() -> Data:
    """Patches of a photograph of a temple, sixteen pixels wide; the target is the patch itself."""
    image = _photo(0)
    tiles = image.unfold(1, 16, 12).unfold(2, 16, 12).permute(1, 2, 0, 3, 4).flatten(0, 1).contiguous()
    return _split(tiles, tiles)


@cache
def pixels() -> Data:
    """A photograph of a flower as a function: coordinates in −1 … 1, and the color there."""
    image = torch.nn.functional.avg_pool2d(_photo(1), 4)
    height, width = image.shape[1:]
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return _split(torch.stack([x, y], dim=-1).flatten(0, 1), image.permute(1, 2, 0).flatten(0, 1))
