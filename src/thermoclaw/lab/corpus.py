"""Real text without a download, a small tokenizer for it, and batches that can be drawn again.

Two corpora come with every Python: the English of its language reference (`english_text`, half a megabyte) and the
source of its standard library (`python_source`, tens of megabytes).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_PIECE = re.compile(r" ?[^\W\d_]+| ?\d+| ?(?:[^\w\s]|_)+|\s+(?!\S)|\s+")
_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__"})
_BLOCK = 512  # tokens; every tenth block is validation text


class CorpusError(RuntimeError):
    """This Python installation came without the text that a corpus is made of."""


def english_text() -> str:
    """The English of Python's language reference, as `pydoc_data` carries it (about half a megabyte)."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise CorpusError(
            "this Python has no pydoc_data.topics, the English text of the demo; install Python's full standard "
            "library (on a slim system image it is a separate package)"
        ) from error
    return "\n\n".join(str(topics[name]) for name in sorted(topics))


def python_source(*, max_bytes: int = 24_000_000, folder: str | None = None) -> str:
    """The source of the standard library, file after file in sorted order, cut at `max_bytes`.

    Args:
        max_bytes: at most so many bytes, so that every installation yields much the same text.
        folder: where to read, the standard library's own folder by default.

    Returns:
        The text; installed packages and caches are left out.

    Raises:
        CorpusError: there is no Python source there.
    """
    root = folder if folder is not None else os.path.dirname(os.__file__)
    parts: list[str] = []
    left = max_bytes
    for where, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS)
        for name in sorted(names):
            if not name.endswith(".py") or left <= 0:
                continue
            data = (Path(where, name).read_bytes() + b"\n")[:left]
            left -= len(data)
            parts.append(data.decode("utf-8", errors="ignore"))
    if not parts:
        raise CorpusError(f"no Python source in {root}; run from an installation that keeps its .py files")
    return "".join(parts)


@dataclass(frozen=True)
class Tokenizer:
    """Words, numbers and marks with the space before them; whatever is not in the table is spelled in bytes.

    Tokens 0–255 are the bytes, so every text can be encoded and `decode(encode(text)) == text`.

    Example:
        >>> tokenizer = Tokenizer.build("the cat and the dog and the end", vocab_size=258)
        >>> tokenizer.pieces
        (' and', ' the')
        >>> tokenizer.encode("a the").tolist()
        [97, 257]
        >>> tokenizer.decode(tokenizer.encode("ünknown the"))
        'ünknown the'
    """

    pieces: tuple[str, ...]
    vocab_size: int
    _place: dict[str, list[int]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def build(cls, text: str, *, vocab_size: int) -> Tokenizer:
        """The most frequent pieces of the text, up to the vocabulary (the earlier one first where they tie).

        Raises:
            ValueError: the vocabulary does not hold the 256 bytes and one piece.
        """
        if vocab_size <= 256:
            raise ValueError(f"vocab_size is {vocab_size}: it must exceed 256, the bytes that spell unknown pieces")
        counts = Counter(match.group() for match in _PIECE.finditer(text))
        spelled = [(piece, count) for piece, count in counts.items() if len(piece.encode()) > 1]
        spelled.sort(key=lambda item: -item[1])
        return cls(tuple(piece for piece, _ in spelled[: vocab_size - 256]), vocab_size)

    def __post_init__(self) -> None:
        self._place.update({piece: [256 + i] for i, piece in enumerate(self.pieces)})

    def encode(self, text: str) -> Tensor:
        """Token numbers, int64 [N]."""
        place = self._place
        tokens: list[int] = []
        for match in _PIECE.finditer(text):
            piece = match.group()
            known = place.get(piece)
            if known is None:
                known = place[piece] = list(piece.encode())
            tokens += known
        return torch.from_numpy(np.asarray(tokens, dtype=np.int64))

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """The text again; bytes that are no UTF-8 become replacement marks."""
        numbers = tokens.tolist() if isinstance(tokens, Tensor) else tokens
        data = b"".join(bytes([n]) if n < 256 else self.pieces[n - 256].encode() for n in numbers)
        return data.decode("utf-8", errors="replace")


@dataclass(frozen=True)
class Corpus:
    """A text as tokens: nine blocks in ten to train on, the tenth to validate."""

    name: str
    vocab_size: int
    train: Tensor
    validation: Tensor

    def to(self, device: torch.device | str) -> Corpus:
        """The same corpus with its tokens on another device."""
        return Corpus(self.name, self.vocab_size, self.train.to(device), self.validation.to(device))


def make_corpus(text: str, *, vocab_size: int, name: str) -> Corpus:
    """Tokenize a text and split it; the split depends on nothing but the text.

    Args:
        text: the text.
        vocab_size: number of tokens, bytes included.
        name: what to call it.

    Returns:
        The corpus, on the CPU.

    Raises:
        ValueError: the text is too short to be split.
    """
    tokens = Tokenizer.build(text, vocab_size=vocab_size).encode(text)
    blocks = tokens.split(_BLOCK)
    if len(blocks) < 10:
        raise ValueError(f"the text {name!r} has {len(tokens)} tokens; {10 * _BLOCK} are needed to split it")
    kept = torch.cat([block for i, block in enumerate(blocks) if i % 10 != 9])
    held_out = torch.cat([block for i, block in enumerate(blocks) if i % 10 == 9])
    return Corpus(name, vocab_size, kept, held_out)


@dataclass(frozen=True)
class Batches:
    """Random windows of a token stream; batch number `i` is a pure function of the seed and `i`.

    So two arms that branch from one step see the same data in the same order, and nothing has to be copied for it.
    """

    tokens: Tensor
    batch_size: int
    length: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.tokens) <= self.length:
            raise ValueError(f"{len(self.tokens)} tokens hold no window of length {self.length}")

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a batch, each int64 [batch_size, length]."""
        random = np.random.default_rng([self.seed, index])
        starts = torch.from_numpy(random.integers(0, len(self.tokens) - self.length, size=self.batch_size))
        at = (starts[:, None] + torch.arange(self.length + 1)).to(self.tokens.device)
        windows = self.tokens[at]
        return windows[:, :-1], windows[:, 1:]
