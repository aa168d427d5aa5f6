"""Names and numbers as a picture can carry them: safe for matplotlib, cut to the room there is, rounded."""

from __future__ import annotations

import functools
import itertools
import math
import unicodedata
from collections.abc import Sequence

from thermoclaw.report.style import FONT, TextPath, font_manager, house_style


@functools.cache
def _glyphs() -> frozenset[int]:
    """The characters that the house font can draw."""
    return frozenset(font_manager.get_font(font_manager.findfont(FONT)).get_charmap())


@functools.lru_cache(maxsize=4096)
def _char_width(char: str) -> float:
    """Width of a character in units of the font size."""
    pair = "\\$" if char == "$" else char
    with house_style():
        spaced = TextPath((0, 0), f"n{pair}n", size=100).get_extents().width
        return float(spaced - TextPath((0, 0), "nn", size=100).get_extents().width) / 100


def text_width(text: str, size: float) -> float:
    """Width of a text in points."""
    return size * sum(_char_width(char) for char in text)


def plain(text: object) -> str:
    """Any text as one line of characters that the house font has; the others become "·"."""
    known = _glyphs()
    shown = (
        c if ord(c) in known and unicodedata.category(c)[0] not in "CZ" else " " if c.isspace() else "·"
        for c in unicodedata.normalize("NFC", str(text)[:2000])
    )  # fmt: skip
    return " ".join("".join(shown).split())


def clean(text: object, *, width: float = math.inf, size: float = 9.0, cut_end: bool = False) -> str:
    r"""Any text as matplotlib can draw it: one line, no control or unknown characters, `$` literal, cut to fit.

    Args:
        text: whatever a user named a layer or a run.
        width: room in points; longer text loses its middle to "…", and keeps more of its end than of its beginning.
        size: font size in points.
        cut_end: cut a sentence at its end instead.

    Returns:
        The text, escaped for matplotlib.

    Example:
        >>> print(clean("w$1$\n_a"), clean("transformer.h.11.attn.c_attn", width=100))
        w\$1\$ _a transfor….attn.c_attn
    """
    whole = short = plain(text)
    if whole and text_width(whole, size) > width:
        up_to = list(itertools.accumulate((size * _char_width(char) for char in whole), initial=text_width("…", size)))
        for kept in range(len(whole) - 1, -1, -1):
            head = kept if cut_end else (2 * kept) // 5
            tail = len(whole) - (kept - head)
            if up_to[head] + up_to[-1] - up_to[tail] <= width:
                break
        short = whole[:head] + "…" + whole[tail:]
    return short.replace("$", r"\$")


def short_names(names: Sequence[str], *, width: float, size: float) -> list[str]:
    """Layer names in the room that there is: a beginning that most share goes first, then the middle.

    Args:
        names: the layers' names.
        width: room in points.
        size: font size in points.

    Returns:
        The names, escaped for matplotlib, in the same order.

    Example:
        >>> short_names(["gpt.h.0.attn.c_attn", "gpt.h.1.attn.c_attn", "head"], width=72, size=8)
        ['…h.0.attn.c_attn', '…h.1.attn.c_attn', 'head']
    """
    shown = [plain(name) or "(unnamed)" for name in names]
    while True:
        heads = [name.removeprefix("…").split(".", 1)[0] for name in shown if "." in name]
        if not heads or max(text_width(name, size) for name in shown) <= width:
            break
        common = max(dict.fromkeys(heads), key=heads.count)
        cut = {name: "…" + name.removeprefix("…").split(".", 1)[1] for name in shown if _begins(name, common)}
        if len(cut) <= len(shown) / 2 or len({cut.get(name, name) for name in shown}) < len(set(shown)):
            break
        shown = [cut.get(name, name) for name in shown]
    return [clean(name, width=width, size=size) for name in shown]


def _begins(name: str, head: str) -> bool:
    return name.removeprefix("…").startswith(head + ".")
