"""Languages that programmers write, for held-out programs: documentation, error messages and bytecode."""

from __future__ import annotations

import dis
import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import CodeType

import numpy as np
import torch
from torch import Tensor

from benchmarks.zoo.data import _split
from benchmarks.zoo.recipe import Data

PACKAGES = ("matplotlib", "numpy", "sklearn", "torch")
ERRORS = ("ValueError", "AssertionError", "RuntimeError", "TypeError", "NotImplementedError")
LETTERS, STRETCH = 97, 80  # line ends and printable characters
PAD, MASK, WHOLE, UNKNOWN = range(4)
VOCABULARY, MESSAGE = 1600, 16
OPERATIONS = 48
DOCUMENTATION = re.compile(r'"""([^"]{64,})"""')
REMARK = re.compile(r"^ *# ([A-Z][^\n]{24,})$", re.MULTILINE)
RAISED = re.compile(r'raise (\w+)\(\s*[rf]*"([^"\n]{8,})"')


def _place(package: str | None) -> Path:
    """Where the files of a package are, or those of the standard library."""
    spec = find_spec(package) if package else None
    return Path(next(iter(spec.submodule_search_locations or ()))) if spec else Path(os.__file__).parent


@cache
def _sources(package: str | None) -> tuple[str, ...]:
    """Modules of a package and of those right below it, without tests."""
    folder = _place(package)
    found = [path.relative_to(folder) for path in sorted((*folder.glob("*.py"), *folder.glob("*/*.py")))]
    kept = [path for path in found if "test" not in str(path) and path.parts[0] not in ("site-packages", *PACKAGES)]
    return tuple((folder / path).read_text(errors="ignore") for path in kept)


@cache
def documentation() -> Data:
    """12,000 stretches of documentation in the source of four packages, letter by letter: which package it is."""
    rows: list[list[int]] = []
    labels: list[int] = []
    for label, package in enumerate(PACKAGES):
        found = {text for source in _sources(package) for text in DOCUMENTATION.findall(source)}
        text = re.sub(r"\s*\n\s*", "\n", "\n".join(sorted(found)))
        starts = np.random.default_rng(label).permutation(len(text) // STRETCH - 1)[:3000] * STRETCH
        rows += [[_letter(c) for c in text[start : start + STRETCH]] for start in starts]
        labels += [label] * len(starts)
    return _split(torch.tensor(rows), torch.tensor(labels))


def _letter(c: str) -> int:
    """Number of a character; all that are not ASCII are one."""
    return 0 if c == "\n" else min(max(ord(c) - 31, 1), LETTERS - 1)


@cache
def _messages() -> tuple[list[list[str]], list[int]]:
    """Words of different error messages, and which error each comes with."""
    found: dict[str, int] = {}
    for text in [text for package in (None, *PACKAGES) for text in _sources(package)]:
        for error, message in RAISED.findall(text):
            if error in ERRORS:
                found.setdefault(re.sub(r"\{[^}]*\}", "#", message), ERRORS.index(error))
    return [re.findall(r"[a-z]+|[#\d]|[^\w\s]", message.lower()) for message in found], list(found.values())


def _numbers(messages: list[list[str]]) -> Tensor:
    """Messages as numbers of words, behind a place for the whole."""
    common = Counter(word for message in _messages()[0] for word in message).most_common()
    ranked = sorted(common, key=lambda pair: (-pair[1], pair[0]))[: VOCABULARY - UNKNOWN - 1]
    number = {word: i for i, (word, _) in enumerate(ranked, UNKNOWN + 1)}
    rows = [[WHOLE, *(number.get(word, UNKNOWN) for word in message)][:MESSAGE] for message in messages]
    return torch.tensor([[*row, *[PAD] * (MESSAGE - len(row))] for row in rows])


@cache
def errors() -> Data:
    """7,000 or so error messages, word by word: which of five errors is raised with it."""
    messages, labels = _messages()
    return _split(_numbers(messages), torch.tensor(labels))


@cache
def prose() -> Tensor:
    """Remarks of the same packages, word by word, for training before there are labels."""
    found = sorted({line for package in PACKAGES for text in _sources(package) for line in REMARK.findall(text)})
    some = np.random.default_rng(0).permutation(len(found))[:8000]
    return _numbers([re.findall(r"[a-z]+|\d|[^\w\s]", found[i].lower()) for i in some])


@cache
def bytecode() -> Data:
    """3,700 or so short functions of the standard library as operations, and how deep a stack they need."""
    deep: dict[tuple[int, ...], float] = {}
    for path in sorted(_place(None).glob("*.py")):
        for code in _inside(compile(path.read_text(errors="ignore"), path.name, "exec")):
            operations = tuple(step.opcode for step in dis.get_instructions(code))
            if 8 <= len(operations) <= OPERATIONS:
                deep[operations] = np.log2(code.co_stacksize)
    number = {operation: i for i, operation in enumerate(sorted({step for row in deep for step in row}), 1)}
    rows = [[*(number[step] for step in row), *[0] * (OPERATIONS - len(row))] for row in deep]
    y = torch.tensor(list(deep.values()), dtype=torch.float32)
    return _split(torch.tensor(rows), (y - y.mean()) / y.std())


def _inside(code: CodeType) -> Iterator[CodeType]:
    """Functions and classes in a piece of code, and in those."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner
            yield from _inside(inner)
