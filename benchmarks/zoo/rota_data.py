"""Everyday facts: how packages write their source, set formulas, comparisons of sorting, where modules lie on disk."""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch

from benchmarks.zoo.data import _split
from benchmarks.zoo.recipe import Data

WRITERS = ("", "torch", "scipy", "sklearn", "matplotlib", "sympy")
LINES, STRETCHES_EACH = 60, 600
MANUALS = ("torch", "scipy", "sklearn", "numpy", "matplotlib")
LOOKS = ("equation", "comparison", "product", "tuple", "call", "power", "index", "symbol")
HEIGHT, WIDTH, LONGEST = 20, 64, 30
TYPEFACES = ("cm", "dejavusans", "dejavuserif", "stix")
NUM_WORDS, COMPARISONS, SORTED_EACH = 20, 20, 500
OWNERS = ("", "torch", "scipy", "sklearn", "numpy", "sympy", "networkx", "matplotlib")
PATH, PATHS_EACH = 28, 450
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789_/"

Trace = Iterator[tuple[int, int]]


def _folder(package: str) -> Path:
    """Where a package lies, or the standard library, without importing it."""
    if not package:
        return Path(os.__file__).parent
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(package)
    return Path(spec.origin).parent


def _modules(package: str) -> list[Path]:
    """Modules of a package and of those in it; none of other packages, none of tests of the standard library."""
    folder = _folder(package)
    apart = {"site-packages", "dist-packages", "__pycache__", "test", "idle_test"}
    found = [(path, path.relative_to(folder)) for path in sorted(folder.rglob("*.py"))]
    return [path for path, inside in found if not apart & set(inside.parts)]


def _habits(lines: list[str]) -> list[float]:
    """What a reader sees of the style of some lines, without understanding them."""
    text = "\n".join(lines)
    full = [line for line in lines if line.strip()]
    lengths = np.array([len(line) for line in full])
    depths = np.array([len(line) - len(line.lstrip()) for line in full])
    names = [name for name in re.findall(r"[A-Za-z_]\w*", text) if not keyword.iskeyword(name)] or [""]
    num = len(full)
    return [
        num / len(lines),
        float(lengths.mean()),
        float(lengths.std()),
        float(lengths.max()),
        float(depths.mean()),
        float(depths.std()),
        sum(line.lstrip().startswith("#") for line in full) / num,
        sum("  # " in line for line in full) / num,
        sum(line.rstrip().endswith((",", "(", "[", "{")) for line in full) / num,
        sum(line.strip() in (")", "]", "}", "),", "],", "},") for line in full) / num,
        text.count("'") / num,
        text.count('"') / num,
        text.count('"""') / num,
        text.count("`") / num,
        text.count("->") / num,
        text.count(": ") / num,
        text.count(" = ") / num,
        text.count(", ") / num,
        text.count(".") / num,
        text.count("self.") / num,
        text.count("*") / num,
        text.count(">>>") / num,
        text.count("---") / num,
        (text.count(":param") + text.count(":class:")) / num,
        len(re.findall(r"\d", text)) / num,
        float(np.mean([len(name) for name in names])),
        sum("_" in name.strip("_") for name in names) / len(names),
        sum(name.startswith("_") for name in names) / len(names),
        sum(name[:1].isupper() for name in names) / len(names),
        sum(name.isupper() for name in names) / len(names),
        sum(len(name) == 1 for name in names) / len(names),
        len(set(names)) / len(names),
    ]


@cache
def habits() -> Data:
    """3,600 stretches of 60 lines of source: 32 measures of style, and which of six packages it is from."""
    random = np.random.default_rng(11)
    inputs, targets = [], []
    for label, package in enumerate(WRITERS):
        modules = _modules(package)
        kept = 0
        for at in random.permutation(len(modules)):
            if kept == STRETCHES_EACH:
                break
            lines = modules[at].read_text(errors="ignore").splitlines()
            for start in range(0, min(len(lines) - LINES, 8 * LINES), 2 * LINES):
                stretch = lines[start : start + LINES]
                if kept < STRETCHES_EACH and sum(bool(line.strip()) for line in stretch) > LINES // 2:
                    inputs.append(_habits(stretch))
                    targets.append(label)
                    kept += 1
    x = torch.tensor(inputs)
    x = (x - x.mean(0)) / x.std(0)
    return _split(x.clamp(-4.0, 4.0), torch.tensor(targets))


def _look(formula: str) -> int:
    """What a formula is at first sight."""
    bare = re.sub(r"\\(text|mathrm|mathbf|mathcal|mathbb|operatorname)\b", "", formula)
    if "=" in bare or "\\equiv" in bare or "\\approx" in bare:
        return LOOKS.index("equation")
    if re.search(r"[<>]|\\(in|le|leq|ge|geq|ne|neq|lt|gt|subset)(?![a-z])", bare):
        return LOOKS.index("comparison")
    if re.search(r"\\(times|cdot)(?![a-z])", bare):
        return LOOKS.index("product")
    if bare.removeprefix("\\left").startswith(("(", "[", "\\{")):
        return LOOKS.index("tuple")
    if "(" in bare or "[" in bare:
        return LOOKS.index("call")
    return LOOKS.index("power" if "^" in bare else "index" if "_" in bare else "symbol")


@cache
def _formulas() -> list[str]:
    """Different short formulas in the documentation of packages, in no order."""
    found: dict[str, None] = {}
    for package in MANUALS:
        for path in _modules(package):
            for formula in re.findall(r":math:`([^`]+)`", path.read_text(errors="ignore")):
                found[" ".join(formula.split()).replace("\\\\", "\\")] = None
    short = [formula for formula in found if len(formula) <= LONGEST]
    return [short[i] for i in np.random.default_rng(12).permutation(len(short))]


@cache
def formulas() -> Data:
    """1,800 or so formulas as they are set, [1, 20, 64], in one of four typefaces, and what each is at first sight."""
    from matplotlib import rc_context
    from matplotlib.mathtext import MathTextParser

    random, parser = np.random.default_rng(13), MathTextParser("agg")
    pictures, targets = [], []
    for number, typeface in enumerate(TYPEFACES):
        with rc_context({"mathtext.fontset": typeface}):
            for formula in _formulas()[number :: len(TYPEFACES)]:
                try:
                    ink = np.asarray(parser.parse(f"${formula}$", dpi=int(random.integers(64, 80))).image) / 255.0
                except ValueError:  # what matplotlib does not know of TeX
                    continue
                ink = ink[:HEIGHT, :WIDTH]
                page = np.zeros((HEIGHT, WIDTH))
                top = int(random.integers(HEIGHT - ink.shape[0] + 1))
                left = int(random.integers(min(WIDTH - ink.shape[1], 4) + 1))
                page[top : top + ink.shape[0], left : left + ink.shape[1]] = ink * random.uniform(0.7, 1.0)
                pictures.append(page)
                targets.append(_look(formula))
    x = torch.tensor(np.stack(pictures), dtype=torch.float32)[:, None]
    x = x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(13))
    return _split((x - x.mean()) / x.std(), torch.tensor(targets))


def _bubble(items: list[str]) -> Trace:
    for last in range(len(items) - 1, 0, -1):
        for i in range(last):
            yield i, i + 1
            if items[i] > items[i + 1]:
                items[i], items[i + 1] = items[i + 1], items[i]


def _gnome(items: list[str]) -> Trace:
    i = 1
    while i < len(items):
        yield i - 1, i
        if items[i - 1] > items[i]:
            items[i - 1], items[i] = items[i], items[i - 1]
        i = i + 1 if items[i - 1] <= items[i] and (i == 1 or items[i - 2] <= items[i - 1]) else max(i - 1, 1)


def _selection(items: list[str]) -> Trace:
    for i in range(len(items) - 1):
        least = i
        for j in range(i + 1, len(items)):
            yield least, j
            least = j if items[j] < items[least] else least
        items[i], items[least] = items[least], items[i]


def _shell(items: list[str]) -> Trace:
    for gap in (8, 4, 2, 1):
        for i in range(gap, len(items)):
            j = i
            while j >= gap:
                yield j - gap, j
                if items[j - gap] <= items[j]:
                    break
                items[j - gap], items[j] = items[j], items[j - gap]
                j -= gap


def _comb(items: list[str]) -> Trace:
    gap, moved = len(items), True
    while gap > 1 or moved:
        gap, moved = max(int(gap / 1.3), 1), False
        for i in range(len(items) - gap):
            yield i, i + gap
            if items[i] > items[i + gap]:
                items[i], items[i + gap], moved = items[i + gap], items[i], True


def _heap(items: list[str]) -> Trace:
    def sift(root: int, end: int) -> Trace:
        while (child := 2 * root + 1) < end:
            if child + 1 < end:
                yield child, child + 1
                child += items[child] < items[child + 1]
            yield root, child
            if items[root] >= items[child]:
                return
            items[root], items[child] = items[child], items[root]
            root = child

    for root in range(len(items) // 2 - 1, -1, -1):
        yield from sift(root, len(items))
    for end in range(len(items) - 1, 0, -1):
        items[0], items[end] = items[end], items[0]
        yield from sift(0, end)


def _quick(items: list[str], low: int = 0, high: int = NUM_WORDS - 1) -> Trace:
    if low >= high:
        return
    wall = low
    for i in range(low, high):
        yield i, high
        if items[i] < items[high]:
            items[i], items[wall] = items[wall], items[i]
            wall += 1
    items[wall], items[high] = items[high], items[wall]
    yield from _quick(items, low, wall - 1)
    yield from _quick(items, wall + 1, high)


def _merge(items: list[str], low: int = 0, high: int = NUM_WORDS) -> Trace:
    if high - low < 2:
        return
    middle = (low + high) // 2
    yield from _merge(items, low, middle)
    yield from _merge(items, middle, high)
    left, right, merged = low, middle, []
    while left < middle and right < high:
        yield left, right
        if items[right] < items[left]:
            merged.append(items[right])
            right += 1
        else:
            merged.append(items[left])
            left += 1
    items[low:high] = merged + items[left:middle] + items[right:high]


SORTS: tuple[Callable[[list[str]], Trace], ...] = (_bubble, _gnome, _selection, _shell, _comb, _heap, _quick, _merge)


@cache
def comparisons() -> Data:
    """4,000 stretches of 20 comparisons while twenty words are sorted, as places, and which of eight ways it is."""
    from pydoc_data.topics import topics

    words = sorted({word for text in topics.values() for word in re.findall(r"[a-z]{3,}", str(text))})
    random = np.random.default_rng(14)
    inputs, targets = [], []
    for label, sort in enumerate(SORTS):
        for _ in range(SORTED_EACH):
            trace = list(sort([str(word) for word in random.choice(words, NUM_WORDS, replace=False)]))
            start = int(random.integers(len(trace) - COMPARISONS + 1))
            inputs.append(np.array(trace[start : start + COMPARISONS]).flatten())
            targets.append(label)
    return _split(torch.tensor(np.stack(inputs)), torch.tensor(targets))


@cache
def paths() -> Data:
    """3,400 or so paths of modules within their packages, letter by letter with zeros behind, and which package."""
    random = np.random.default_rng(15)
    inputs, targets = [], []
    for label, package in enumerate(OWNERS):
        folder = _folder(package)
        inside = [path.relative_to(folder).with_suffix("").as_posix().lower() for path in _modules(package)]
        for at in random.permutation(len(inside))[:PATHS_EACH]:
            letters = [LETTERS.find(letter) + 2 for letter in inside[at][-PATH:]]
            inputs.append(letters + [0] * (PATH - len(letters)))
            targets.append(label)
    return _split(torch.tensor(inputs), torch.tensor(targets))
