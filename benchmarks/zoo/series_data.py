"""Real sequences that Python makes of its own library: a run of `ast.unparse`, depths of trees, compiled code."""

from __future__ import annotations

import ast
import dis
import io
import keyword
import os
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.zoo.data import _split
from benchmarks.zoo.recipe import Data

UNPARSED = ("bisect.py", "calendar.py", "cmd.py", "copy.py", "csv.py", "fractions.py", "glob.py", "gzip.py", "heapq.py")
STRETCH, LINES, HORIZON = 24, 160, 12
WALKED: tuple[str, ...] = (
    "bdb.py",
    "cgi.py",
    "configparser.py",
    "doctest.py",
    "dis.py",
    "enum.py",
    "ftplib.py",
    "gettext.py",
)
WALKED += ("imaplib.py", "locale.py", "optparse.py", "pathlib.py", "plistlib.py", "pprint.py", "smtplib.py", "trace.py")
PAST, AHEAD, APART, HELD = 48, 8, 10, 60
COMPILED = ("[a-s]*.py", "email/*.py", "http/*.py")
LONGEST, START = 10, 1


def _parsed(name: str) -> ast.Module | None:
    """A module of the standard library, where this version has it."""
    path = Path(os.__file__).parent / name
    return ast.parse(path.read_bytes()) if path.exists() else None


def _followed(tree: ast.Module) -> list[tuple[tuple[CodeType, int], int]]:
    """Lines that `ast.unparse` comes by, and how many are left until it leaves the function that each is in."""
    lines: list[tuple[CodeType, int]] = []
    left: list[int] = []
    within: list[list[int]] = []
    file = ast.unparse.__code__.co_filename

    def local(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            within[-1].append(len(lines))
            lines.append((frame.f_code, frame.f_lineno))
            left.append(0)
        elif event == "return":
            for at in within.pop():
                left[at] = len(lines) - 1 - at
        return local

    def begin(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != file or frame.f_code.co_name == "escape_char":
            return None  # that one is called for each letter of a string
        within.append([])
        return local

    before = sys.gettrace()
    sys.settrace(begin)
    try:
        ast.unparse(tree)
    finally:
        sys.settrace(before)
    return list(zip(lines, left, strict=True))


@cache
def execution() -> Data:
    """Stretches of 24 lines as they are run; of each, how many follow within its function, or that it is too many."""
    run = [step for name in UNPARSED if (tree := _parsed(name)) is not None for step in _followed(tree)]
    common = Counter(line for line, _ in run).most_common(LINES - 1)
    number = {line: i + 1 for i, (line, _) in enumerate(common)}
    cut = len(run) // STRETCH * STRETCH
    x = torch.tensor([number.get(line, 0) for line, _ in run[:cut]]).view(-1, STRETCH)
    y = torch.tensor([min(left, HORIZON) for _, left in run[:cut]]).view(-1, STRETCH)
    held = torch.arange(len(x)) // 16 % 4 == 3
    return Data((x[~held], y[~held]), (x[held], y[held]))


def _depths(node: ast.AST, depth: int = 0) -> Iterator[int]:
    """How deep each node lies, parents before children."""
    yield depth
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr_context):
            yield from _depths(child, depth + 1)


@cache
def walks() -> Data:
    """Walks through syntax trees: depths of 48 nodes, and of the eight that follow as shares of the usual depth.

    Every fourth run of 60 windows validates, less those that share nodes with the runs around it.
    """
    windows: list[Tensor] = []
    for name in WALKED:
        if (tree := _parsed(name)) is not None:
            windows += torch.tensor(list(_depths(tree)), dtype=torch.float32).unfold(0, PAST + AHEAD, APART)
    table, place = torch.stack(windows), torch.arange(len(windows))
    shared = (PAST + AHEAD) // APART
    held, clear = place // HELD % 4 == 3, (place % HELD >= shared) & (place % HELD < HELD - shared)
    mean, std = table[~held].mean(), table[~held].std()
    x, y = (table[:, :PAST] - mean) / std, table[:, PAST:].clamp_min(1.0) / mean
    return Data((x[~held], y[~held]), (x[held & clear], y[held & clear]))


def _spoken(node: ast.expr) -> tuple[str, ...]:
    """Tokens of an expression; names, numbers and strings are all alike."""
    kinds = {tokenize.NUMBER: "number", tokenize.STRING: "string"}
    said = []
    for token in tokenize.generate_tokens(io.StringIO(ast.unparse(node)).readline):
        if token.type == tokenize.NAME:
            said.append(token.string if keyword.iskeyword(token.string) else "name")
        elif token.type in (tokenize.OP, tokenize.NUMBER, tokenize.STRING):
            said.append(kinds.get(token.type, token.string))
    return tuple(said)


def _done(node: ast.expr) -> tuple[str, ...]:
    """Instructions of an expression, operators apart, without what frames them."""
    code = compile(ast.fix_missing_locations(ast.Expression(node)), "", "eval")
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("RESUME", "PRECALL", "CACHE")]
    named = ("BINARY_OP", "COMPARE_OP")
    return tuple(f"{step.opname} {step.argrepr}" if step.opname in named else step.opname for step in steps)


def _expressions() -> Iterator[ast.expr]:
    """Expressions of the library that stand for themselves."""
    apart: tuple[type[ast.expr], ...] = (
        ast.Lambda,
        ast.ListComp,
        ast.SetComp,
        ast.DictComp,
        ast.GeneratorExp,
        ast.JoinedStr,
        ast.NamedExpr,
    )
    apart += (ast.Yield, ast.YieldFrom, ast.Await, ast.Starred)
    folder = Path(os.__file__).parent
    for path in sorted(path for pattern in COMPILED for path in folder.glob(pattern)):
        for node in ast.walk(ast.parse(path.read_bytes())):
            whole = isinstance(node, (ast.Assign, ast.Return, ast.Expr, ast.If, ast.AugAssign, ast.Call))
            for child in ast.iter_child_nodes(node) if whole else ():
                if isinstance(child, ast.expr) and isinstance(getattr(child, "ctx", ast.Load()), ast.Load):
                    parts = list(ast.walk(child))
                    if 3 <= len(parts) <= 24 and not any(isinstance(part, apart) for part in parts):
                        yield child


@cache
def compiled() -> tuple[Data, int, int]:
    """Different expressions as tokens and the instructions that they compile to; and both vocabularies' sizes."""
    pairs: dict[tuple[str, ...], tuple[str, ...]] = {}
    for node in _expressions():
        said = _spoken(node)
        if 2 <= len(said) <= LONGEST and said not in pairs and len(done := _done(node)) <= LONGEST:
            pairs[said] = done
    sides: list[Tensor] = []
    sizes: list[int] = []
    for rows in (list(pairs), list(pairs.values())):
        number = {word: i + 2 for i, word in enumerate(sorted({word for row in rows for word in row}))}
        padded = np.zeros((len(rows), LONGEST), dtype=np.int64)
        for i, row in enumerate(rows):
            padded[i, : len(row)] = [number[word] for word in row]
        sides.append(torch.from_numpy(padded))
        sizes.append(len(number) + 2)
    return _split(*sides), sizes[0], sizes[1]
