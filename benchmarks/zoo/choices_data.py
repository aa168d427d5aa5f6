"""Orders, waits and moves: words to be put in order, how long brackets stay open, a sliding puzzle solved."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.zoo.data import _split
from benchmarks.zoo.recipe import Data

HAND, LETTERS, HANDS = 8, 6, 8000  # words in a hand, letters that are read of each
RARE = 1  # times that are too seldom for a word
OPENERS, CLOSERS = ("(", "[", "{"), (")", "]", "}")
PIECE = r"'[^']*'|\"[^\"]*\"|\w+|[^\w\s]"  # a text, a name or number, a mark
ENDS = (1, 2, 3, 4, 6, 9, 14, 22)  # pieces after which an interval ends
LINES_EACH = 70  # of a module at most
SIDE, MOVES, FARTHEST = 3, 4, 31
POSITIONS_EACH = 600  # of a distance at most
NO_MOVE = -100


def _hands(words: list[str], num: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Letters of the words of each hand, and each word's place; three hands in ten share a first letter."""
    alike = defaultdict(list)
    for word in words:
        alike[word[0]].append(word)
    chances = np.array([len(group) if len(group) >= HAND else 0 for group in alike.values()], dtype=float)
    inputs, places = [], []
    for _ in range(num):
        one_letter = list(alike.values())[random.choice(len(alike), p=chances / chances.sum())]
        drawn = random.choice(one_letter if random.random() < 0.3 else words, HAND, replace=False)
        inputs.append([[ord(c) - ord("a") + 1 for c in word.ljust(LETTERS, "`")] for word in drawn])
        places.append(drawn.argsort().argsort())
    return torch.tensor(inputs), torch.tensor(np.stack(places))


@cache
def hands() -> Data:
    """8,000 hands of eight words, letter by letter, and where each word comes alphabetically; no word in both parts.

    The words are those of the standard library's modules, with their remarks and names, cut to six letters.
    """
    often = Counter[str]()
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        often.update(word[:LETTERS] for word in re.findall("[a-z]{3,}", path.read_text("utf-8", "ignore").lower()))
    random = np.random.default_rng(0)
    words = [str(word) for word in random.permutation(sorted(word for word, times in often.items() if times > RARE))]
    cut = len(words) * 3 // 4
    return Data(_hands(words[:cut], HANDS * 3 // 4, random), _hands(words[cut:], HANDS // 4, random))


def _bracketed(line: str) -> Iterator[tuple[list[float], list[float]]]:
    """Brackets that a line opens: what is around each; intervals that passed without its end, and its end."""
    found = list(re.finditer(PIECE, line))
    pieces = [match[0] for match in found]
    for at, opener in enumerate(pieces):
        if opener not in OPENERS:
            continue
        before, (after, then) = pieces[at - 1] if at else "", [*pieces[at + 1 : at + 3], "", ""][:2]
        rest = line[found[at].end() :].rstrip()
        known = [
            *(float(opener == kind) for kind in OPENERS),
            *(float(part[:1].isidentifier()) for part in (before, after, then)),
            float(after[:1] in ("'", '"')),
            *(float(part in CLOSERS) for part in (after, then)),
            float(then == ","),
            np.log1p(len(after)),
            *(np.log1p(sum(rest.count(mark) for mark in marks)) for marks in (OPENERS, CLOSERS, ",", ".", "=")),
            np.log1p(len(rest)),
            np.log1p(at),
            float(sum(piece in OPENERS for piece in pieces[:at]) - sum(piece in CLOSERS for piece in pieces[:at])),
            (len(line) - len(line.lstrip())) / 4,
            *(float(rest.endswith(mark)) for mark in (":", ",", ")")),
            float(pieces[0] == "def"),
        ]
        depth, wait, is_closed = 1, len(pieces) - at, False
        for place, piece in enumerate(pieces[at + 1 :], start=1):
            depth += (piece in OPENERS) - (piece in CLOSERS)
            if not depth:
                wait, is_closed = place, True
                break
        passed = [float(end < wait) for end in ENDS]
        ended = [float(is_closed and start < wait <= end) for start, end in zip((0, *ENDS), ENDS, strict=False)]
        yield known, [*passed, *ended]


@cache
def brackets() -> Data:
    """12,000 brackets of the standard library's lines: what is around; when they stay open, and when they are closed.

    Time is counted in names, numbers, texts and marks. A bracket that its line does not close is censored: nothing is
    known of the interval in which that happens. Every fourth module validates.
    """
    random = np.random.default_rng(0)
    parts: list[list[tuple[list[float], list[float]]]] = [[], []]
    for number, path in enumerate(sorted(Path(os.__file__).parent.glob("*.py"))):
        lines = [line for line in path.read_text("utf-8", "ignore").splitlines() if any(o in line for o in OPENERS)]
        for at in random.permutation(len(lines))[:LINES_EACH]:
            parts[number % 4 == 3].extend(_bracketed(lines[at]))
    (x, y), (other_x, other_y) = ([torch.tensor(columns) for columns in zip(*part, strict=True)] for part in parts)
    mean, deviation = x.mean(0), x.std(0)
    order, other = (torch.from_numpy(random.permutation(len(part))) for part in parts)
    x, other_x = (((values - mean) / deviation).clamp(-4.0, 4.0).float() for values in (x, other_x))
    return Data((x[order], y[order].float()), (other_x[other], other_y[other].float()))


def _neighbor(position: str, move: int) -> str | None:
    """The position with the stone below, above, right or left of the hole moved into it."""
    hole = position.index("0")
    row, column = hole // SIDE + (1, -1, 0, 0)[move], hole % SIDE + (0, 0, 1, -1)[move]
    if not (0 <= row < SIDE and 0 <= column < SIDE):
        return None
    stone = position[row * SIDE + column]
    return position.replace("0", "x").replace(stone, "0").replace("x", stone)


@cache
def sliding() -> Data:
    """12,000 positions of the puzzle of eight stones, near and far; how many moves are left after each that one has.

    All 181,440 positions are solved, breadth first; as many of each distance as there are, up to 600.
    """
    solved = "123456780"
    left, rings = {solved: 0}, [[solved]]
    while rings[-1]:
        ring = []
        for position in rings[-1]:
            for move in range(MOVES):
                after = _neighbor(position, move)
                if after is not None and after not in left:
                    left[after] = len(rings)
                    ring.append(after)
        rings.append(ring)
    random = np.random.default_rng(0)
    kept = [ring[i] for ring in rings for i in random.permutation(len(ring))[:POSITIONS_EACH]]
    reached = [[_neighbor(position, move) for move in range(MOVES)] for position in kept]
    y = torch.tensor([[NO_MOVE if position is None else left[position] for position in row] for row in reached])
    stones = torch.tensor([[int(stone) for stone in position] for position in kept])
    x = torch.nn.functional.one_hot(stones, SIDE * SIDE).flatten(1).float()
    return _split((x - x.mean()) / x.std(), y)
