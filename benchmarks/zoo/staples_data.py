"""Everyday facts: spellings of HTML entities, when clocks were changed, scatter plots of cells, calls in modules."""

from __future__ import annotations

import ast
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from functools import cache
from html.entities import html5
from itertools import combinations
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.zoo.data import _split, stretches
from benchmarks.zoo.recipe import Batch, Data

SPELLING = 20  # letters of an entity that are read
KINDS = {
    "arrow": ("ARROW", "HARPOON"),
    "styled letter": ("MATHEMATICAL", "SCRIPT", "DOUBLE-STRUCK", "BLACK-LETTER"),
    "Cyrillic": ("CYRILLIC",),
    "Greek": ("GREEK",),
    "Latin": ("LATIN",),
    "set": ("SUBSET", "SUPERSET", "ELEMENT", "UNION", "INTERSECTION"),
    "order": ("LESS", "GREATER", "PRECEDES", "SUCCEEDS"),
    "equality": ("EQUAL", "TILDE", "IDENTICAL", "EQUIV", "SIMILAR"),
    "operator": ("OPERATOR", "PLUS", "MINUS", "MULTIPLICATION", "TIMES", "INTEGRAL", "SUM", "LOGICAL"),
    "drawing": ("BOX", "SQUARE", "CIRCLE", "TRIANGLE", "LOZENGE", "STAR", "SUIT", "BLOCK", "SHADE"),
}
STRETCH = 48
LONGEST = 110  # weeks between two changes of the clock that have a number of their own; longer ones share a few
SIDE, HALF_WIDTH, TAKES, PATIENTS = 24, 2.4, 3, 60
RARE = 12  # a value that occurs less often than this is one of the rare ones
PLACES: dict[str, tuple[type[ast.AST], ...]] = {
    "loop": (ast.For, ast.While, ast.AsyncFor),
    "branch": (ast.If, ast.IfExp),
    "try": (ast.Try,),
    "with": (ast.With, ast.AsyncWith),
    "class": (ast.ClassDef,),
    "comprehension": (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp),
}


def _kind(characters: str) -> int:
    """Which kind of sign an entity stands for; those of no kind are one more."""
    name = unicodedata.name(characters[0], "")
    return next((i for i, words in enumerate(KINDS.values()) if any(word in name for word in words)), len(KINDS))


@cache
def entities() -> Data:
    """2,125 HTML entities, letter by letter with zeros behind, and which kind of sign each stands for."""
    signs = {name.rstrip(";"): characters for name, characters in html5.items()}
    place = {letter: i + 1 for i, letter in enumerate(sorted(set("".join(signs))))}
    rows = [[place[letter] for letter in name[:SPELLING]] for name in sorted(signs)]
    x = torch.tensor([row + [0] * (SPELLING - len(row)) for row in rows])
    return _split(x, torch.tensor([_kind(signs[name]) for name in sorted(signs)]))


def _offset(zone: ZoneInfo, moment: datetime) -> int:
    """How far a clock is ahead of universal time, in minutes."""
    ahead = moment.astimezone(zone).utcoffset()
    return round(ahead.total_seconds() / 60) if ahead is not None else 0


def _changes(zone: ZoneInfo, months: list[datetime]) -> Iterator[tuple[datetime, int]]:
    """Days on which a clock was changed from one month's beginning to the next, and by how many minutes."""
    offsets = [_offset(zone, month) for month in months]
    for place in np.flatnonzero(np.diff(offsets)):
        before, after = months[place], months[place + 1]
        while after - before > timedelta(days=1):
            middle = before + (after - before) / 2
            before, after = (before, middle) if _offset(zone, middle) != offsets[place] else (middle, after)
        yield after, offsets[place + 1] - offsets[place]


@cache
def _clocks() -> tuple[Data, int]:
    """Changes of clocks as stretches of numbers, and how many different numbers there are."""
    months = [datetime(year, month, 1, tzinfo=timezone.utc) for year in range(1900, 2038) for month in range(1, 13)]
    stories: dict[tuple[tuple[str, int], ...], None] = {}
    for name in sorted(available_timezones()):
        story: list[tuple[str, int]] = [("zone", 0)]
        last = months[0]
        for day, change in _changes(ZoneInfo(name), months):
            weeks = round((day - last).days / 7)
            story += [("wait", weeks if weeks <= LONGEST else LONGEST * (weeks // LONGEST)), ("change", change)]
            last = day
        stories.setdefault(tuple(story))
    words = [word for story in stories for word in story]
    often = Counter(words)
    place = {word: i + 1 for i, word in enumerate(sorted(word for word, times in often.items() if times >= RARE))}
    return stretches(torch.tensor([place.get(word, 0) for word in words]), STRETCH), len(place) + 1


def clocks() -> Data:
    """When the clocks of time zones were changed and how far, by turns: stretches of 48, and the same moved by one."""
    return _clocks()[0]


def num_changes() -> int:
    """How many different waits and changes there are."""
    return _clocks()[1]


@cache
def scatter_plots() -> Data:
    """2,610 scatter plots of two measures of cells of 60 patients each, and the smoothed plot of all such patients.

    No two measures are plotted against each other in both parts.
    """
    from sklearn.datasets import load_breast_cancer

    raw, random = load_breast_cancer(), np.random.default_rng(0)
    table = ((raw.data - raw.data.mean(0)) / raw.data.std(0)).clip(-HALF_WIDTH, HALF_WIDTH)
    edges = np.linspace(-HALF_WIDTH, HALF_WIDTH, SIDE + 1)
    pairs = list(combinations(range(table.shape[1]), 2))
    plotted: list[list[tuple[np.ndarray, np.ndarray]]] = []
    for pair in pairs:
        shots = []
        for diagnosis in (0, 1):
            points = table[raw.target == diagnosis][:, pair]
            whole = np.histogram2d(points[:, 0], points[:, 1], bins=(edges, edges))[0] / len(points)
            for _ in range(TAKES):
                some = points[random.choice(len(points), PATIENTS, replace=False)]
                shots.append((np.histogram2d(some[:, 0], some[:, 1], bins=(edges, edges))[0] / PATIENTS, whole))
        plotted.append(shots)
    order = random.permutation(len(pairs))
    cut = len(pairs) * 3 // 4

    def part(chosen: np.ndarray) -> Batch:
        shots = np.array([shot for at in chosen for shot in plotted[at]])
        x, y = torch.tensor(1e3 * shots[random.permutation(len(shots))], dtype=torch.float32).log1p().unbind(1)
        y = F.avg_pool2d(y[:, None], 3, stride=1, padding=1)
        return x[:, None], y

    train, validation = part(order[:cut]), part(order[cut:])
    means, widths = [p.mean() for p in train], [p.std() for p in train]

    def standard(batch: Batch) -> Batch:
        return tuple((p - mean) / width for p, mean, width in zip(batch, means, widths, strict=True))

    return Data(standard(train), standard(validation))


def _called(node: ast.AST, around: tuple[ast.AST, ...]) -> Iterator[tuple[ast.Call, tuple[ast.AST, ...]]]:
    """Calls in a tree, each with the nodes around it, outermost first."""
    if isinstance(node, ast.Call):
        yield node, around
    for child in ast.iter_child_nodes(node):
        yield from _called(child, (*around, node))


def _facts(call: ast.Call, around: tuple[ast.AST, ...], module: str) -> tuple[str, ...]:
    """What a row of the table says of a call: no number in it, every column a category."""
    target, first = call.func, call.args[0] if call.args else None
    name = target.attr if isinstance(target, ast.Attribute) else target.id if isinstance(target, ast.Name) else ""
    owner = target.value if isinstance(target, ast.Attribute) else None
    within = next((node.name for node in reversed(around) if isinstance(node, ast.FunctionDef)), "")
    return (
        module,
        name,
        owner.id if isinstance(owner, ast.Name) else type(owner).__name__,
        type(around[-1]).__name__,
        within,
        type(first).__name__,
        str(min(len(call.args), 5)),
        str(min(len(call.keywords), 3)),
        str(min(call.col_offset // 4, 12)),
    )


@cache
def _calls() -> tuple[Data, int]:
    """Rows of categories, numbered through all columns; where calls stand; and how many categories there are."""
    rows, places = [], []
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        for call, around in _called(ast.parse(path.read_bytes()), ()):
            rows.append(tuple(enumerate(_facts(call, around, path.stem))))
            places.append([any(isinstance(node, kinds) for node in around) for kinds in PLACES.values()])
    often = Counter(fact for row in rows for fact in row)
    usual = [fact for fact, times in often.items() if times >= RARE]
    columns = len(rows[0])
    place = {fact: columns + i for i, fact in enumerate(sorted(usual))}
    x = torch.tensor([[place.get(fact, fact[0]) for fact in row] for row in rows])
    return _split(x, torch.tensor(places, dtype=torch.float32)), columns + len(usual)


def calls() -> Data:
    """25,000 calls in the standard library by nine categories, and which of six kinds of statements are around each."""
    return _calls()[0]


def num_categories() -> int:
    """How many categories the columns have together."""
    return _calls()[1]
